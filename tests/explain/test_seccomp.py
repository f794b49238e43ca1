# SPDX-License-Identifier: Apache-2.0
"""seccomp.<call>: the trace, the filters, the arguments, and whose filter it is."""
from __future__ import annotations

import pytest
from situations import blamed, call, outcomes, own_fault, ruled_out, undecided
from surroundings import deed, filter_of, filter_on_flags, seeing, someone, told

from triaged.explain.seccomp import seccomp_killed, seccomp_refused
from triaged.explain.seccomp_answer import Answered, passed_by_seccomp, seccomp_answer
from triaged.model.cause import Blamed, Status
from triaged.model.limit import Unknown
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.seccomp.syscalls import native_arch, number_of

EPERM, ENOSYS, KILL = 0x00050001, 0x00050026, 0x80000000
FLAGS = 0x7E020000


def number(name: str) -> int:
    found = number_of(native_arch(), name)
    assert found is not None
    return found


def filtered(*filters: bytes, **more: object) -> object:
    return someone(seccomp_mode="filter", filters=filters, **more)


def test_a_call_that_ends_without_having_begun_is_proved() -> None:
    who = filtered(filter_of((number("memfd_create"), EPERM)))
    found = blamed(seccomp_refused, seeing(call("memfd_create", "EPERM", entered=False), who))
    assert (found.cause, found.status) == ("seccomp.memfd_create", Status.PROVED)
    assert {each.name for each in found.evidence} >= {"entered", "filter answers", "Seccomp"}


def test_without_the_filters_the_trace_alone_proves() -> None:
    who = someone(seccomp_mode="filter", filters=Unknown("not permitted"))
    assert blamed(seccomp_refused, seeing(call("bpf", "EPERM", entered=False), who)).status is Status.PROVED
    assert blamed(seccomp_refused, seeing(call("bpf", "EPERM", entered=False), None)).status is Status.PROVED


def test_filters_that_answer_the_error_prove_it_without_a_trace() -> None:
    who = filtered(filter_of((number("bpf"), EPERM)))
    found = blamed(seccomp_refused, seeing(call("bpf", "EPERM"), who))
    assert found.status is Status.PROVED
    assert "ERRNO(EPERM)" in found.summary


def test_a_process_without_filters_was_not_refused_by_one() -> None:
    assert "Seccomp: 0" in ruled_out(seccomp_refused, seeing(call("bpf", "EPERM"), someone()))


def test_a_lost_beginning_is_no_proof_against_a_process_without_filters() -> None:
    assert "has lost" in ruled_out(seccomp_refused, seeing(call("bpf", "EPERM", entered=False), someone()))


def test_the_trace_is_believed_of_a_process_that_was_gone_too_soon() -> None:
    gone = someone(0, stands_for=500)
    assert blamed(seccomp_refused, seeing(call("bpf", "EPERM", entered=False), gone)).status is Status.PROVED


def test_a_call_that_began_was_let_through() -> None:
    who = filtered(filter_of((number("bpf"), EPERM)))
    assert "the kernel began" in ruled_out(seccomp_refused, seeing(call("bpf", "EPERM", entered=True), who))


def test_a_filter_that_would_answer_another_error_is_ruled_out() -> None:
    who = filtered(filter_of((number("bpf"), ENOSYS)))
    assert "another error" in ruled_out(seccomp_refused, seeing(call("bpf", "EPERM"), who))


def test_filters_that_cannot_be_read_leave_it_open() -> None:
    who = someone(seccomp_mode="filter", filters=Unknown("not permitted"))
    assert "not permitted" in undecided(seccomp_refused, seeing(call("bpf", "EPERM"), who))


def test_without_a_process_nothing_can_be_told() -> None:
    assert undecided(seccomp_refused, seeing(call("bpf", "EPERM", seen_in=SeenIn.ASKED), None))


def test_known_flags_decide_and_unknown_ones_make_it_likely() -> None:
    who = filtered(filter_on_flags(number("clone"), FLAGS, EPERM))
    with_flags = call("clone", "EPERM", arguments=(0x10000011, 0, 0, 0, 0, 0))
    assert blamed(seccomp_refused, seeing(with_flags, who)).status is Status.PROVED
    without = call("clone", "EPERM", arguments=(0x00004111, 0, 0, 0, 0, 0))
    assert "with these arguments" in ruled_out(seccomp_refused, seeing(without, who))
    found = blamed(seccomp_refused, seeing(call("clone", "EPERM"), who))
    assert found.status is Status.LIKELY
    assert "args[0]" in found.summary


def test_errors_that_filters_do_not_give_are_not_spoken_of() -> None:
    assert outcomes(seccomp_refused, seeing(call("openat", "ENOENT"), someone())) == []


def test_an_error_that_no_filter_gives_by_habit_is_blamed_where_this_one_gives_it() -> None:
    who = filtered(filter_of((number("openat"), 0x00050002)))
    assert blamed(seccomp_refused, seeing(call("openat", "ENOENT"), who)).cause == "seccomp.openat"


def test_a_fork_exec_of_the_output_is_blamed_on_what_always_happens() -> None:
    who = filtered(filter_of((number("execve"), EPERM), (number("unshare"), EPERM)))
    symptom = told("fork/exec /bin/true: operation not permitted", "EPERM", path="/bin/true")
    found = blamed(seccomp_refused, seeing(symptom, who))
    assert (found.cause, found.status) == ("seccomp.execve", Status.LIKELY)


def test_a_fork_exec_with_what_was_asked_for_is_only_possible() -> None:
    who = filtered(filter_of((number("unshare"), EPERM)))
    found = blamed(seccomp_refused, seeing(told("fork/exec /bin/true: operation not permitted", "EPERM"), who))
    assert (found.cause, found.status) == ("seccomp.unshare", Status.POSSIBLE)


@pytest.mark.parametrize(("text", "errno", "syscall", "denied"), [
    ("runtime/cgo: pthread_create failed: Operation not permitted", "EPERM", "clone3", "clone3"),
    ("runtime: epollcreate failed with 1", "EPERM", "epoll_create1", "epoll_create1"),
    ("fatal error: runtime: netpollinit failed", "", "", "epoll_create1"),
    ("runtime: eventfd failed with 38", "ENOSYS", "eventfd2", "eventfd2"),
    ("link: mapping output file failed: function not implemented", "ENOSYS", "fallocate", "fallocate"),
    ("go: RLock /x/go.mod: operation not permitted", "EPERM", "flock", "flock"),
    ("listen tcp4 127.0.0.1:0: setsockopt: operation not permitted", "EPERM", "setsockopt", "setsockopt"),
])
def test_what_is_printed_leads_to_the_call_that_the_filters_refuse(text: str, errno: str, syscall: str, denied: str) -> None:
    who = filtered(filter_of((number(denied), EPERM if errno != "ENOSYS" else ENOSYS)))
    found = outcomes(seccomp_refused, seeing(told(text, errno, syscall), who))
    causes = [each for each in found if isinstance(each, Blamed)]
    assert [each.cause for each in causes] == [f"seccomp.{denied}"]
    assert causes[0].status in (Status.PROVED, Status.LIKELY)


def test_the_fix_for_clone3_is_enosys_first_and_never_unconfined() -> None:
    who = filtered(filter_of((number("clone3"), EPERM)), cgroup="/docker/" + "a" * 64)
    found = blamed(seccomp_refused, seeing(call("clone3", "EPERM", entered=False), who))
    assert "ENOSYS" in found.fixes[0].title
    assert "container aaaaaaaaaaaa" in found.fixes[1].title
    assert found.subject == "container aaaaaaaaaaaa"
    assert not any("unconfined" in str(fix) for fix in found.fixes)


def test_a_filter_that_the_test_installed_is_its_own_matter() -> None:
    who = filtered(filter_of((number("bpf"), EPERM)))
    situation = seeing(call("bpf", "EPERM", entered=False), who, at_start=someone(), deeds=(deed("seccomp", 1, 0, 0),))
    assert "installed a filter itself" in own_fault(seccomp_refused, situation)


def test_a_filter_of_what_prepared_the_run_is_not_the_tests_own() -> None:
    who = filtered(filter_of((number("bpf"), EPERM)))
    situation = seeing(
        call("bpf", "EPERM", entered=False), who, at_start=someone(), deeds=(deed("seccomp", 1, 0, 0, is_test=False),)
    )
    assert blamed(seccomp_refused, situation).cause == "seccomp.bpf"


def killed(text: str = "", **more: object) -> Symptom:
    return Symptom(SymptomKind.KILLED, signal=31, text=text, seen_in=SeenIn.TRACE, **more)  # type: ignore[arg-type]


def test_the_audit_record_names_the_call_that_killed() -> None:
    line = (
        'audit: type=1326 audit(1.2:3): auid=0 uid=0 gid=0 ses=1 pid=500 comm="a.test" exe="/a" sig=31 arch=c000003e '
        "syscall=272 compat=0 ip=0x1 code=0x80000000"
    )
    nobody = seeing(Symptom(SymptomKind.KILLED, signal=31), None, log=[line])
    assert "which process was killed is not known" in undecided(seccomp_killed, nobody)
    found = blamed(seccomp_killed, seeing(killed(), someone(), log=[line]))
    assert (found.cause, found.status, found.rule) == ("seccomp.unshare", Status.PROVED, "seccomp.denied")
    assert found.subject_key.endswith("#unshare")


def test_a_record_of_another_process_names_nothing() -> None:
    line = "audit: type=1326 audit(1.2:3): pid=501 sig=31 arch=c000003e syscall=272 compat=0 ip=0x1 code=0x80000000"
    assert undecided(seccomp_killed, seeing(killed(), someone(), log=[line]))


def test_the_registers_that_go_prints_name_the_call() -> None:
    text = f"SIGSYS: bad system call\ngoroutine 1 [syscall]:\nsyscall.Syscall({number('ptrace'):#x}, 0x0, 0x0)"
    assert blamed(seccomp_killed, seeing(killed(text), someone())).cause == "seccomp.ptrace"


def test_the_traced_call_names_itself() -> None:
    assert blamed(seccomp_killed, seeing(killed(syscall="keyctl"), someone())).cause == "seccomp.keyctl"


def test_a_filter_that_kills_for_one_call_only_names_it() -> None:
    who = filtered(filter_of((number("bpf"), KILL)))
    assert blamed(seccomp_killed, seeing(killed(), who)).cause == "seccomp.bpf"


def test_a_filter_that_kills_for_most_calls_names_none() -> None:
    who = filtered(filter_of((number("read"), 0x7FFF0000), otherwise=KILL))
    assert undecided(seccomp_killed, seeing(killed(), who))


def test_a_sigsys_that_somebody_sent_is_no_filters() -> None:
    assert "process 77" in own_fault(seccomp_killed, seeing(killed(sender_pid=77), someone()))


def test_seccomp_is_out_only_where_no_call_may_have_been_refused() -> None:
    who = filtered(filter_of((number("bpf"), EPERM)))
    situation = seeing(call("", "EPERM"), who)
    assert passed_by_seccomp(situation, ["bpf", "read"]) is False
    assert passed_by_seccomp(situation, ["read"]) is True
    assert passed_by_seccomp(situation, []) is None
    assert passed_by_seccomp(seeing(call("", "EPERM"), someone()), []) is True


def test_a_process_that_was_gone_may_have_had_filters_that_were_installed_during_the_run() -> None:
    who = someone(stands_for=400)
    situation = seeing(call("bpf", "EPERM"), who, deeds=(deed("prctl", 22, 2, is_test=False),))
    assert seccomp_answer(situation, "bpf").answered is Answered.UNKNOWN
