# SPDX-License-Identifier: Apache-2.0
"""seccomp records, resource limits and placement: facts in, verdict out."""
from __future__ import annotations

from dataclasses import replace

import pytest

from triaged.config import config_paths
from triaged.model.cgroup import CgroupId
from triaged.model.facts import PlacementFacts, ResourceLimitFacts, SeccompFacts
from triaged.model.fix import ManualStep, MoveProcesses, SetResourceLimit, SetUnitSetting
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.requirement import PlacementRequirement, ResourceLimitRequirement
from triaged.model.verdict import Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.model.way import Step, Way
from triaged.policy import load_policies
from triaged.rules.placement import forbidden_slice
from triaged.rules.resource_limits import below_policy
from triaged.rules.rule import Rule
from triaged.rules.seccomp import seccomp_denied, seccomp_logged

IDENTIFIER = "0123456789abcdef" * 4


def process(path: str = "/system.slice/ci.service", **more: object) -> ProcessIdentity:
    made = ProcessIdentity(
        77, 700, uid=1000, comm="x.test", exe="/tmp/go-build1/b001/x.test", argv=("/tmp/x.test", "-test.v"), cgroups={"": path},
        workload=WorkloadMatch("go-test", "test-binary", "example.org/x"),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def problem(verdict: Verdict) -> Problem:
    assert isinstance(verdict, Problem), verdict
    return verdict


# seccomp

DENIED = SeccompFacts(process(), "memfd_create", 319, "x86_64", "KILL_PROCESS", 4, 31, record="type=1326 ...", time_usec=42)


@pytest.mark.parametrize(
    ("action", "errno", "summary"),
    [
        ("KILL_PROCESS", 0, "seccomp killed /tmp/go-build1/b001/x.test (pid 77) for memfd_create()"),
        ("KILL_THREAD", 0, "seccomp killed a thread of /tmp/go-build1/b001/x.test (pid 77) for memfd_create()"),
        ("TRAP", 0, "seccomp sent SIGSYS to /tmp/go-build1/b001/x.test (pid 77) for memfd_create()"),
        ("ERRNO", 1, "seccomp refused memfd_create() of /tmp/go-build1/b001/x.test (pid 77) with errno 1"),
        ("ERRNO", 0, "seccomp refused memfd_create() of /tmp/go-build1/b001/x.test (pid 77)"),
    ],
)
def test_a_refused_call_is_a_hit(action: str, errno: int, summary: str) -> None:
    facts = replace(DENIED, action=action, errno=errno)
    verdict = problem(seccomp_denied.judge(facts))
    assert verdict.summary == summary
    assert (verdict.occurrences, verdict.pid) == (4, 77)
    assert verdict.subject.key == f"workload:go-test@/system.slice/ci.service#memfd_create/{action}"
    assert isinstance(seccomp_logged.judge(facts), Undecided)
    assert seccomp_denied.kind is Kind.HIT


@pytest.mark.parametrize(("rule", "action"), [(seccomp_denied, "KILL_PROCESS"), (seccomp_logged, "LOG")])
def test_every_run_of_a_test_that_is_refused_a_call_is_the_same_finding(rule: Rule, action: str) -> None:
    def key(**changes: object) -> str:
        return problem(rule.judge(replace(DENIED, action=action, **changes))).subject.key  # type: ignore[arg-type]

    again = process(pid=78, start_ticks=800, exe="/tmp/go-build2/b001/y.test")
    assert key() == key(process=again)
    assert key() != key(process=process("/system.slice/other.service"))
    assert key() != key(syscall="swapoff", syscall_number=168)


def test_refusals_of_programs_of_no_workload_are_told_apart_by_exe_call_action_and_cgroup() -> None:
    def key(who: ProcessIdentity, **changes: object) -> str:
        return problem(seccomp_denied.judge(replace(DENIED, process=who, **changes))).subject.key  # type: ignore[arg-type]

    plain = process(workload=None, exe="/usr/bin/nginx")
    assert key(plain) == key(replace(plain, pid=78, start_ticks=800))
    others = {
        key(plain), key(replace(plain, exe="/usr/bin/curl")), key(replace(plain, cgroups={"": "/b.slice"})),
        key(plain, syscall="swapoff"), key(plain, action="TRAP"),
    }
    assert len(others) == 5


@pytest.mark.parametrize(
    ("action", "says"), [("LOG", "nothing was refused"), ("USER_NOTIF", "not recorded"), ("TRACE", "not recorded")]
)
def test_a_call_that_was_let_through_is_no_hit(action: str, says: str) -> None:
    facts = replace(DENIED, action=action)
    assert isinstance(seccomp_denied.judge(facts), Undecided)
    verdict = problem(seccomp_logged.judge(facts))
    assert says in verdict.summary
    assert verdict.fixes == ()
    assert (seccomp_logged.kind, seccomp_logged.severity) == (Kind.RISK, Severity.NOTICE)


def test_an_unknown_action_decides_nothing() -> None:
    for rule in (seccomp_denied, seccomp_logged):
        assert isinstance(rule.judge(replace(DENIED, action="NEW")), Undecided)
        assert isinstance(rule.judge(replace(DENIED, records=0)), Fine)


def test_a_stream_of_records_has_a_rate_and_a_single_one_has_none() -> None:
    def rate(**changes: int) -> list[object]:
        verdict = problem(seccomp_denied.judge(replace(DENIED, **changes)))  # type: ignore[arg-type]
        return [item.value for item in verdict.evidence if item.name == "rate"]

    assert rate(records=5000, interval_usec=100_000) == ["50000 records/s in the last 0.1 s"]
    assert rate(records=1, interval_usec=500_000) == ["2.0 records/s"]
    assert rate(records=1) == []


def test_a_call_without_a_name_keeps_its_number() -> None:
    verdict = problem(seccomp_denied.judge(replace(DENIED, syscall="999", syscall_number=999)))
    assert "for system call 999 (x86_64)" in verdict.summary
    assert [fix.key for fix in verdict.fixes] == ["manual:filter"]


@pytest.mark.parametrize(
    ("path", "key", "first"),
    [
        ("/system.slice/ci.service", "manual:unit-filter", "systemctl"),
        (f"/docker/{IDENTIFIER}", "manual:container-profile", "docker"),
        (f"/kubepods/pod12345678-1234-1234-1234-123456789abc/{IDENTIFIER}", "manual:container-profile", ""),
        ("/user.slice/user-1000.slice/session-1.scope", "manual:filter", ""),
    ],
)
def test_where_the_filter_comes_from_decides_the_step(path: str, key: str, first: str) -> None:
    step = problem(seccomp_denied.judge(replace(DENIED, process=process(path)))).fixes[-1]
    assert step.key == key
    assert (step.commands[0][0] if step.commands else "") == first


def test_a_call_is_added_to_the_filter_of_a_system_unit_only_and_never_one_that_changes_the_host() -> None:
    def fixes(path: str, syscall: str = "memfd_create") -> list[str]:
        return [fix.key for fix in problem(seccomp_denied.judge(replace(DENIED, process=process(path), syscall=syscall))).fixes]

    assert fixes("/system.slice/ci.service") == ["set-unit-setting:ci.service:SystemCallFilter", "manual:unit-filter"]
    assert fixes("/system.slice/ci.service", "init_module") == ["manual:unit-filter"]
    assert fixes("/user.slice/user-1000.slice/user@1000.service/app.slice/ci.service") == ["manual:unit-filter"]
    assert fixes(f"/docker/{IDENTIFIER}") == ["manual:container-profile"]
    (fix, _) = problem(seccomp_denied.judge(replace(DENIED, process=process("/system.slice/ci.service")))).fixes
    assert isinstance(fix, SetUnitSetting)
    assert (fix.unit, fix.name, fix.value) == ("ci.service", "SystemCallFilter", "memfd_create")


def test_a_comm_full_of_control_characters_is_escaped() -> None:
    facts = replace(DENIED, process=process(exe="", comm="\x1b]0;x\x07\udcff"))
    assert problem(seccomp_denied.judge(facts)).summary == "seccomp killed \\x1b]0;x\\x07\\xff (pid 77) for memfd_create()"


# Resource limits

WANTED = ResourceLimitRequirement("default", "NOFILE", 4096, Severity.WARNING, "because", ("go-test",), origin="default.toml:9")
LOW = ResourceLimitFacts(process(), "NOFILE", 64, 64, WANTED, 42)


def test_a_hard_limit_below_the_policy_is_a_risk() -> None:
    verdict = problem(below_policy.judge(LOW))
    assert verdict.summary == "hard RLIMIT_NOFILE of /tmp/go-build1/b001/x.test is 64, policy default wants at least 4096"
    assert below_policy.kind is Kind.RISK
    assert verdict.fixes[0] == SetResourceLimit(
        77, 700, "NOFILE", 4096, 4096, "only this process and what it starts from now on", "64:64"
    )
    assert isinstance(verdict.fixes[1], SetUnitSetting)
    assert (verdict.fixes[1].unit, verdict.fixes[1].name, verdict.fixes[1].value) == ("ci.service", "LimitNOFILE", "4096")
    assert {item.source for item in verdict.evidence} == {"/proc/77/limits", "default.toml:9"}


def test_every_run_of_a_workload_in_a_place_is_the_same_finding() -> None:
    again = replace(LOW, process=process(pid=78, start_ticks=800, exe="/tmp/go-build2/b001/y.test"))
    assert problem(below_policy.judge(again)).subject.key == problem(below_policy.judge(LOW)).subject.key
    other = replace(LOW, resource="NPROC")
    assert problem(below_policy.judge(other)).subject.key != problem(below_policy.judge(LOW)).subject.key


@pytest.mark.parametrize("hard", [4096, 5000, UNLIMITED])
def test_a_low_soft_limit_alone_is_fine(hard: object) -> None:
    assert isinstance(below_policy.judge(replace(LOW, soft=64, hard=hard)), Fine)  # type: ignore[arg-type]


def test_a_limit_that_could_not_be_read_decides_nothing() -> None:
    assert isinstance(below_policy.judge(replace(LOW, hard=Unknown("permission denied"))), Undecided)


def test_without_a_start_time_no_process_is_changed() -> None:
    fixes = problem(below_policy.judge(replace(LOW, process=process(start_ticks=0)))).fixes
    assert not any(isinstance(fix, SetResourceLimit) for fix in fixes)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/user.slice/user-1000.slice/session-1.scope", "manual:login-limit"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", "manual:unit-limit"),
        (f"/docker/{IDENTIFIER}", "manual:container-ulimit"),
    ],
)
def test_where_the_limit_comes_from_decides_the_lasting_fix(path: str, key: str) -> None:
    assert problem(below_policy.judge(replace(LOW, process=process(path)))).fixes[1].key == key


# Placement

(SHIPPED,) = load_policies(config_paths({}), ["default"]).placements


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/default.slice/run.scope", "default.slice, unit run.scope"),
        ("/default.slice", "default.slice"),
        ("/", "-.slice"),
        ("/init.scope", "init.scope"),
        ("/system.slice/cron.service", "system.slice, unit cron.service"),
        ("/system.slice/ssh.service", "system.slice, unit ssh.service"),
        ("/system.slice/system-foo.slice/foo@1.service", "system-foo.slice, unit foo@1.service"),
    ],
)
def test_the_default_policy_minds_the_system_s_own_places(path: str, where: str) -> None:
    verdict = problem(forbidden_slice.judge(PlacementFacts(process(path), SHIPPED, time_usec=42)))
    assert verdict.summary == f"go-test runs in {where}, which policy default forbids; policy default wants it in ci.slice"
    assert verdict.severity is Severity.WARNING
    assert verdict.pid == 77


@pytest.mark.parametrize(
    "path",
    [
        "/user.slice/user-1000.slice/session-3.scope",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-1.scope",
        "/system.slice/actions.runner.org-repo.host.service",
        "/system.slice/gitlab-runner.service",
        "/system.slice/system-buildkite\\x2dagent.slice/buildkite-agent@1.service",
        "/system.slice/run-r0123456789abcdef.scope",
        "/ci.slice/job.scope",
        f"/system.slice/docker-{IDENTIFIER}.scope",
        f"/docker/{IDENTIFIER}",
        "/machine.slice/machine-x.scope",
    ],
)
def test_the_default_policy_does_not_mind_places_that_are_meant_for_it(path: str) -> None:
    assert isinstance(forbidden_slice.judge(PlacementFacts(process(path), SHIPPED)), Fine)


@pytest.mark.parametrize("path", ["", "/docker/buildkit/abcdefgh", "/made-by-hand"])
def test_a_place_that_no_unit_owns_decides_nothing(path: str) -> None:
    assert isinstance(forbidden_slice.judge(PlacementFacts(process(path), SHIPPED)), Undecided)


def test_the_next_run_can_be_started_elsewhere_and_the_unit_moved() -> None:
    step, setting = problem(forbidden_slice.judge(PlacementFacts(process("/system.slice/cron.service"), SHIPPED))).fixes
    assert isinstance(step, ManualStep)
    assert step.commands[0][:3] == ("systemd-run", "--scope", "--slice=ci.slice")
    assert isinstance(setting, SetUnitSetting)
    assert (setting.unit, setting.name, setting.value) == ("cron.service", "Slice", "ci.slice")


def test_without_a_preferred_slice_nothing_is_proposed() -> None:
    wanted = PlacementRequirement("mine", ("go-test",), ("system.slice",), why="w")
    verdict = problem(forbidden_slice.judge(PlacementFacts(process("/system.slice/cron.service"), wanted, "/etc/x.slice")))
    assert verdict.fixes == ()
    assert verdict.summary == "go-test runs in system.slice, unit cron.service, which policy mine forbids"
    assert "slice comes from" in {item.name for item in verdict.evidence}


def test_the_way_to_a_forbidden_place_is_evidence() -> None:
    steps = (
        Step(77, "w.test", "/tmp/w.test", "/default.slice"), Step(70, "bash", "/bin/bash", "/default.slice"),
        Step(60, "sudo", "/usr/bin/sudo", "/ci.slice/run-r1.scope"),
    )
    verdict = problem(forbidden_slice.judge(PlacementFacts(process("/default.slice"), SHIPPED, way=Way(steps))))
    shown = {item.name: item for item in verdict.evidence}
    assert shown["way"].value == (
        "sudo[60] in /ci.slice/run-r1.scope > bash[70] in /default.slice > w.test[77] in /default.slice"
    )
    assert shown["way"].private
    assert shown["how it got there"].value == "it, or a process above it, left the unit of its parent"
    assert shown["unit that it came from"].value == "run-r1.scope"
    assert shown["started by"].value == "sudo"


def test_the_whole_run_is_moved_and_not_one_test_binary_of_it() -> None:
    steps = (
        Step(77, "w.test", "/tmp/w.test", "/default.slice/run.scope", start_ticks=7, is_workload=True),
        Step(76, "go", "/usr/bin/go", "/default.slice/run.scope", start_ticks=6, is_workload=True),
        Step(70, "bash", "/bin/bash", "/default.slice/run.scope", start_ticks=5),
        Step(60, "sshd", "/usr/sbin/sshd", "/system.slice/ssh.service", start_ticks=4),
    )
    verdict = problem(forbidden_slice.judge(PlacementFacts(process("/default.slice/run.scope"), SHIPPED, way=Way(steps))))
    move = verdict.fixes[0]
    assert isinstance(move, MoveProcesses)
    assert (move.pid, move.start_ticks, move.slice, move.seen) == (76, 6, "ci.slice", "/default.slice/run.scope")


def test_what_a_container_runtime_started_is_not_moved_out_of_its_container() -> None:
    here = "/default.slice/ci-tests.scope"
    steps = (
        Step(77, "w.test", "/w.test", here, start_ticks=7, is_workload=True),
        Step(60, "runc", "/usr/sbin/runc", "/system.slice/runner.service", start_ticks=4),
    )
    verdict = problem(forbidden_slice.judge(PlacementFacts(process(here), SHIPPED, way=Way(steps))))
    (step,) = verdict.fixes
    assert isinstance(step, ManualStep)
    assert step.commands[0] == ("docker", "run", "--cgroup-parent=ci.slice", "...")
    assert {item.name: item.value for item in verdict.evidence}["started by"] == "container runtime"


@pytest.mark.parametrize(
    ("path", "is_forbidden"),
    [
        ("/default.slice/run-r0123.scope", True), ("/default.slice/actions.runner.x.service", True), ("/init.scope", True),
        ("/system.slice/run-r0123.scope", False), ("/system.slice/actions.runner.x.service", False),
        ("/system.slice/sshd.service", True),
    ],
)
def test_a_unit_that_may_run_tests_excuses_the_system_slice_only(path: str, is_forbidden: bool) -> None:
    requirement = PlacementRequirement(
        "p", ("go-test",), ("default.slice", "init.scope", "system.slice"), ("run-*.scope", "actions.runner.*.service")
    )
    assert requirement.forbids(CgroupId(path)) is is_forbidden
