# SPDX-License-Identifier: Apache-2.0
"""What filters refuse without a record: facts in, verdict out."""
from __future__ import annotations

from dataclasses import replace

from triaged.model.facts import FilterFacts, Refusals, RefusedCall
from triaged.model.fix import SetUnitSetting
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.verdict import Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.rules.seccomp import silent_denials

CONTAINER = "/docker/" + "c0ffee" * 10 + "beef"
CLONE3 = RefusedCall("clone3", "ERRNO(ENOSYS)")
EPOLL = RefusedCall("epoll_create1", "ERRNO(EPERM)", "runtime: epollcreate failed with 1 (exit 2)", ("go-test", "go-race"))
FEATURE = ('unshare(CLONE_NEWUSER) returns EPERM: a package that uses SysProcAttr.Unshareflags with CLONE_NEWUSER fails with '
           '"fork/exec PATH: operation not permitted"')


def process(cgroup: str = CONTAINER, pid: int = 77, comm: str = "x.test") -> ProcessIdentity:
    match = WorkloadMatch("go-test", "test-binary")
    return ProcessIdentity(pid, pid * 10, 1, 1000, comm, f"/tmp/b001/{comm}", (), {"": cgroup}, match)


def facts(refusals: Refusals, cgroup: str = CONTAINER, **changes: object) -> FilterFacts:
    found = FilterFacts(process(cgroup), "exit status 2", 1, process(cgroup, 70, "go"), 1, 0, refusals, 42)
    return replace(found, **changes)  # type: ignore[arg-type]


def problem(verdict: Verdict) -> Problem:
    assert isinstance(verdict, Problem), verdict
    return verdict


def test_what_a_run_needs_and_is_refused_is_a_risk_and_never_a_hit() -> None:
    found = problem(silent_denials.judge(facts(Refusals((EPOLL,), (CLONE3,), (FEATURE,), "go1.27.3", "measured"))))
    assert silent_denials.kind is Kind.RISK
    assert found.severity is Severity.WARNING
    assert found.summary == (
        "/tmp/b001/x.test failed (exit status 2) under seccomp filters that refuse, without a record: epoll_create1 (ERRNO(EPERM))"
    )
    told = {item.name: str(item.value) for item in found.evidence}
    assert told["a refused call was seen"].startswith("no")
    assert told["filters"] == "1 read from pid 70 (go), which started it: inherited of the 1 that it had"
    assert "epollcreate failed with 1" in told["epoll_create1 refused"]
    assert told["refused and done without"] == "clone3 (ERRNO(ENOSYS))"
    assert told["packages 1"] == FEATURE
    keys = [fix.key for fix in found.fixes]
    assert keys == ["manual:record", "manual:container-profile"]
    assert "unconfined" not in " ".join(word for fix in found.fixes for argv in fix.commands for word in argv)


def test_what_only_some_packages_do_is_a_notice() -> None:
    found = problem(silent_denials.judge(facts(Refusals((), (CLONE3,), (FEATURE,)))))
    assert found.severity is Severity.NOTICE
    assert found.summary.endswith("without a record: unshare(CLONE_NEWUSER) returns EPERM")


def test_filters_that_refuse_nothing_that_is_needed_are_fine() -> None:
    verdict = silent_denials.judge(facts(Refusals((), (CLONE3,), ())))
    assert isinstance(verdict, Fine)
    assert verdict.subject.key == problem(silent_denials.judge(facts(Refusals((EPOLL,))))).subject.key


def test_filters_that_record_what_they_refuse_leave_it_to_the_records() -> None:
    assert isinstance(silent_denials.judge(facts(Refusals((EPOLL,)), logged=1)), Undecided)
    assert isinstance(silent_denials.judge(facts(Refusals((EPOLL,)), logged=1, filters=2)), Problem)


def test_in_a_unit_of_the_system_the_calls_are_added_to_its_filter() -> None:
    reboot = RefusedCall("reboot", "ERRNO(EPERM)")
    found = problem(silent_denials.judge(facts(Refusals((EPOLL, reboot)), "/system.slice/ci.service")))
    assert isinstance(found.fixes[0], SetUnitSetting)
    assert (found.fixes[0].unit, found.fixes[0].name, found.fixes[0].value) == ("ci.service", "SystemCallFilter", "epoll_create1")


def test_the_process_itself_and_an_old_kernel_are_named_as_such() -> None:
    itself = facts(Refusals((EPOLL,)), heir=process(), filters_then=-1)
    told = {item.name: str(item.value) for item in problem(silent_denials.judge(itself)).evidence}
    assert told["filters"] == "1 read from the process itself, when it began; how many it had is not known on this kernel"


def test_a_long_list_is_cut_and_nothing_is_lost() -> None:
    many = tuple(RefusedCall(f"call{number}", "ERRNO(EPERM)", "", ("go-test",)) for number in range(40))
    found = problem(silent_denials.judge(facts(Refusals(many))))
    assert "and 36 more" in found.summary
    assert len(found.evidence) < 40
    text = " ".join(f"{item.name} {item.value}" for item in found.evidence)
    assert all(one.call in text for one in many)
