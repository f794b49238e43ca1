# SPDX-License-Identifier: Apache-2.0
"""Incidents, output and hypotheses in; verdict out. The hypotheses here are small ones of the test's own."""
from __future__ import annotations

import json
import signal
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import pytest

from triaged.cli.run_verdict import verdict_lines
from triaged.cli.style import Style
from triaged.explain.hypothesis import Hypothesis, hypothesis
from triaged.explain.situation import Situation
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.fix import SetUnitProperty
from triaged.model.mention import FailedStage, Failure, OutputReport, ToldResult
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.output.error_texts import parse_mention
from triaged.run.record import Incident, Role, RunRecord
from triaged.verdict.annotations import github_lines, gitlab_lines
from triaged.verdict.decide import judge
from triaged.verdict.junit import junit_xml
from triaged.verdict.report import Report, Verdict

PACKAGE = "example.org/app/worker"
EXIT_1 = 1 << 8
PIDS = Blamed(
    "cgroup.pids.max", Status.PROVED, "ci.service", "ci.service has TasksMax=64 and was full",
    fixes=(SetUnitProperty("ci.service", "TasksMax", "128"),), rule="cgroup.pids.limit-hit", subject_key="cgroup:/ci.service",
)


@hypothesis("cgroup.pids.max", syscalls={"clone", "clone3"}, errnos={"EAGAIN"})
def tasks(situation: Situation) -> Outcome:
    """Full."""
    return PIDS


@hypothesis("rlimit.NPROC", syscalls={"clone", "clone3"}, errnos={"EAGAIN"})
def free(situation: Situation) -> Outcome:
    """Free."""
    return RuledOut("rlimit.NPROC", "63,512 free")


@hypothesis("seccomp.", errnos={"EPERM"})
def refused(situation: Situation) -> Outcome | None:
    """Refused."""
    symptom = situation.symptom
    return Blamed(f"seccomp.{symptom.syscall}", Status.PROVED, "process 1", "refused") if symptom.entered is False else None


@hypothesis("mode", errnos={"EACCES"})
def mode(situation: Situation) -> Outcome:
    """Mode."""
    return SelfInflicted("mode", "the file's own mode denies it")


@hypothesis("lsm.landlock", errnos={"EBUSY"})
def unseen(situation: Situation) -> Outcome:
    """Unseen."""
    return NotDecidable("lsm.landlock", "it leaves no trace")


@hypothesis("cgroup.memory.max", kinds={SymptomKind.KILLED}, signals={signal.SIGKILL})
def memory(situation: Situation) -> Outcome:
    """Memory."""
    if situation.symptom.sender_pid:
        return SelfInflicted("kill", f"process {situation.symptom.sender_pid} of the run sent it")
    return Blamed("cgroup.memory.max", Status.PROVED, "/job", "/job was full")


ALL: tuple[Hypothesis, ...] = (tasks, free, refused, mode, unseen, memory)


def call(syscall: str, errno: str, *, package: str = PACKAGE, role: Role = Role.TEST, **more: object) -> Incident:
    symptom = Symptom(SymptomKind.CALL, syscall, errno, seen_in=SeenIn.TRACE, **more)  # type: ignore[arg-type]
    return Incident(symptom, None, role, Situation(symptom, None), package)


def killed(role: Role, sender: int = 0) -> Incident:
    symptom = Symptom(SymptomKind.KILLED, signal=signal.SIGKILL, seen_in=SeenIn.TRACE, sender_pid=sender)
    return Incident(symptom, None, role, Situation(symptom, None), PACKAGE)


def failed(*lines: str, stage: FailedStage = FailedStage.TEST, package: str = PACKAGE, test: str = "TestSpawn") -> Failure:
    mentions = tuple(mention for line in lines if (mention := parse_mention(line, 10**9)) is not None)
    return Failure(stage, package, test, mentions, "\n".join(lines), 10**9)


def judged(
    incidents: Sequence[Incident], *failures: Failure, is_traced: bool = True, wait_status: int = EXIT_1,
    hidden: frozenset[tuple[str, str]] = frozenset(), followed: frozenset[str] = frozenset({PACKAGE}),
    was_deaf: bool = False,
) -> Report:
    record = RunRecord(
        ("go", "test"), wait_status, 0, 0, lambda symptom, package: Situation(symptom, None), incidents=list(incidents),
        is_traced=is_traced, hidden=hidden, followed=followed, was_deaf=was_deaf,
    )
    return judge(record, OutputReport(failures, (ToldResult(PACKAGE, "TestSpawn", "fail", 0.5),)), ALL)


SPAWN = "    w_test.go:9: fork/exec /bin/sh: resource temporarily unavailable"


def test_an_incident_that_the_failed_test_speaks_of_is_the_cause() -> None:
    report = judged([call("clone", "EAGAIN", count=12), call("clone", "EAGAIN")], failed(SPAWN))
    assert report.verdict is Verdict.MACHINE
    (charge,) = report.charges
    assert (charge.blamed, charge.count, charge.rank) == (PIDS, 13, 1)
    assert [each.cause for each in report.ruled_out] == ["rlimit.NPROC"]


def test_the_same_incident_is_no_cause_of_a_test_that_fails_of_something_else() -> None:
    report = judged([call("clone", "EAGAIN")], failed("    w_test.go:9: got 3, want 4"))
    assert (report.verdict, report.charges) == (Verdict.CODE, ())


def test_an_error_that_no_call_gave_is_the_programs_own_text() -> None:
    report = judged([], failed(SPAWN))
    assert (report.verdict, report.charges) == (Verdict.CODE, ())
    assert "no system call" in report.failures[0].reasons[0]


def test_an_error_that_the_trace_leaves_out_is_explained_from_the_text() -> None:
    broken = failed("    w_test.go:9: read /x: input/output error")
    assert judged([], broken).failures[0].reasons
    assert not judged([], broken, hidden=frozenset({("read", "EIO")})).failures[0].reasons


def test_what_is_left_out_because_it_means_try_again_is_no_refusal() -> None:
    assert judged([], failed(SPAWN), hidden=frozenset({("read", "EAGAIN"), ("write", "EAGAIN")})).verdict is Verdict.CODE


def test_without_a_trace_the_text_is_explained() -> None:
    assert judged([], failed(SPAWN), is_traced=False).verdict is Verdict.MACHINE


def test_an_incident_without_a_path_is_explained_with_the_one_that_the_line_names() -> None:
    @hypothesis("mount.read-only", errnos={"EROFS"})
    def read_only(situation: Situation) -> Outcome:
        """Says which path it was asked about."""
        return Blamed("mount.read-only", Status.PROVED, situation.symptom.path or "nowhere", "read-only")

    failures = [failed(f"    x_test.go:9: open {path}: read-only file system", test=path) for path in ("/a/x", "/b/y")]
    incident = call("openat", "EROFS")
    record = RunRecord(
        ("go", "test"), EXIT_1, 0, 0, lambda symptom, package: Situation(symptom, None), incidents=[incident], is_traced=True
    )
    report = judge(record, OutputReport(tuple(failures)), (read_only,))
    assert [charge.blamed.subject for charge in report.charges] == ["/a/x", "/b/y"]
    assert incident.situation.symptom.path == ""
    known = judged([call("openat", "EACCES", path="/c")], failed("    x_test.go:9: open /c: permission denied"))
    assert known.verdict is Verdict.CODE


def test_of_a_test_that_was_not_seen_to_run_the_trace_says_nothing() -> None:
    assert judged([], failed(SPAWN)).verdict is Verdict.CODE
    report = judged([], failed(SPAWN), followed=frozenset({"example.org/app/other"}))
    assert report.verdict is not Verdict.CODE


def test_where_the_first_calls_went_untold_what_names_no_package_may_have_made_them() -> None:
    nameless = failed(SPAWN, package="", stage=FailedStage.COMMAND)
    assert judged([], nameless).verdict is Verdict.CODE
    assert judged([], nameless, was_deaf=True).verdict is not Verdict.CODE
    assert judged([], failed(SPAWN), was_deaf=True).verdict is Verdict.CODE, "its own process was heard"


def test_an_incident_of_another_package_is_not_taken() -> None:
    report = judged([call("clone", "EAGAIN", package="example.org/other")], failed(SPAWN))
    assert report.verdict is Verdict.CODE


def test_an_incident_of_the_go_command_is_no_cause_of_a_tests_own_failure() -> None:
    incidents = [call("clone", "EAGAIN", package="", role=Role.COMMAND), call("openat", "EISDIR")]
    assert judged(incidents, failed(SPAWN)).verdict is Verdict.CODE
    assert judged(incidents, failed(SPAWN, stage=FailedStage.PACKAGE, test="")).verdict is Verdict.MACHINE


def test_an_incident_after_the_line_that_tells_is_not_taken() -> None:
    assert judged([call("clone", "EAGAIN", first_ns=3 * 10**9)], failed(SPAWN)).verdict is Verdict.CODE


def test_what_the_test_did_itself_is_the_codes_fault() -> None:
    report = judged([call("openat", "EACCES", path="/x")], failed("open /x: permission denied"))
    assert (report.verdict, report.charges) == (Verdict.CODE, ())
    assert report.failures[0].reasons == ("the file's own mode denies it",)


def test_a_file_of_the_tests_own_directory_is_not_the_machines() -> None:
    path = "/tmp/TestOpen123/001/x"
    assert judged([call("openat", "EBUSY", path=path)], failed(f"open {path}: device or resource busy")).verdict is Verdict.CODE


@pytest.mark.parametrize(("option", "test"), [
    (("-run", "^TestSpawn$"), "TestSpawn"), (("-test.run=^TestSpawn$",), "TestSpawn"), (("-run", "TestSp"), ""), (("-run",), ""),
    ((), ""),
])  # fmt: skip
def test_a_package_that_died_in_its_only_test_names_it(option: tuple[str, ...], test: str) -> None:
    dead = failed("signal: killed", stage=FailedStage.PACKAGE, test="")
    record = RunRecord(
        ("go", "test", *option, "./worker"), EXIT_1, 0, 0, lambda symptom, package: Situation(symptom, None),
        incidents=[killed(Role.TEST)], is_traced=True,
    )
    (charge,) = judge(record, OutputReport((dead,)), ALL).charges
    assert charge.failure.test == test


def test_what_cannot_be_told_is_undecided() -> None:
    report = judged([call("openat", "EBUSY")], failed("open /x: device or resource busy"))
    assert (report.verdict, report.charges) == (Verdict.UNDECIDED, ())


def test_a_refused_call_that_go_does_not_tell_counts_where_the_binary_crashes_or_hangs() -> None:
    refused_call = [call("getsockname", "EPERM", entered=False)]
    for line in ("panic: invalid memory address", "panic: test timed out after 9s"):
        report = judged(refused_call, failed(line, stage=FailedStage.PACKAGE))
        assert [charge.blamed.cause for charge in report.charges] == ["seccomp.getsockname"]


def test_a_refused_call_that_a_test_copes_with_is_no_cause_of_its_crash() -> None:
    crash = failed("panic: assignment to entry in nil map", stage=FailedStage.PACKAGE)
    assert judged([call("unshare", "EPERM", entered=False)], crash).verdict is Verdict.CODE
    assert judged([call("close", "ENOSYS", entered=False)], crash).verdict is Verdict.CODE
    assert judged([call("getsockname", "EPERM", entered=False)], failed("    got 1, want 2")).verdict is Verdict.CODE


def test_a_refused_call_is_no_cause_where_the_test_tells_of_something_else() -> None:
    incidents = [call("clone3", "EPERM", entered=False), call("clone", "EAGAIN")]
    assert [charge.blamed.cause for charge in judged(incidents, failed(SPAWN)).charges] == ["cgroup.pids.max"]


def test_a_kill_counts_for_a_test_binary_and_not_for_a_child_that_a_test_says_nothing_of() -> None:
    silent = failed("    x_test.go:1: got 3, want 4")
    assert judged([killed(Role.TEST)], failed("signal: killed", stage=FailedStage.PACKAGE)).verdict is Verdict.MACHINE
    assert judged([killed(Role.CHILD)], silent).verdict is Verdict.CODE
    # Without a workload everything is a test; the one that says nothing of it was not killed.
    assert judged([killed(Role.TEST)], silent).verdict is Verdict.CODE
    assert judged([killed(Role.CHILD)], failed("    x_test.go:1: signal: killed")).verdict is Verdict.MACHINE


@pytest.mark.parametrize(("ended_by", "is_traced", "verdict"), [
    (signal.SIGKILL, False, Verdict.MACHINE), (signal.SIGKILL, True, Verdict.CODE), (signal.SIGTERM, False, Verdict.CODE),
])  # fmt: skip
def test_without_a_trace_the_commands_own_death_tells_of_it(ended_by: int, is_traced: bool, verdict: Verdict) -> None:
    dead = failed("=== RUN   TestX", stage=FailedStage.COMMAND, test="")
    record = RunRecord(
        ("/tmp/x.test",), ended_by, 0, 0, lambda symptom, package: Situation(symptom, None), is_traced=is_traced,
    )
    assert judge(record, OutputReport((dead,)), ALL).verdict is verdict


def test_a_kill_that_the_run_itself_sent_is_the_codes_fault() -> None:
    assert judged([killed(Role.CHILD, 77)], failed("    x_test.go:1: signal: killed")).verdict is Verdict.CODE


def test_a_run_that_passed_has_no_cause_whatever_happened() -> None:
    report = judged([call("clone", "EAGAIN")], wait_status=0)
    assert (report.verdict, report.exit_status, report.charges) == (Verdict.PASSED, 0, ())
    assert verdict_lines(report, Style()) == []


def test_the_machine_is_named_where_some_of_the_failures_are_its_fault() -> None:
    report = judged([call("clone", "EAGAIN")], failed("    got 1, want 2", test="TestOther"), failed(SPAWN))
    assert report.verdict is Verdict.MACHINE
    assert [each.verdict for each in report.failures] == [Verdict.CODE, Verdict.MACHINE]


def test_a_death_by_a_signal_gives_the_status_that_a_shell_gives() -> None:
    assert judged([], failed(), wait_status=9).exit_status == 137


def test_the_report_has_the_promised_fields() -> None:
    document = json.loads(json.dumps(judged([call("clone", "EAGAIN", count=13)], failed(SPAWN)).as_json()))
    assert {"verdict", "exit_status", "causes", "ruled_out"} <= set(document)
    (cause,) = document["causes"]
    assert {"cause", "rank", "status", "package", "test", "process", "syscall", "errno", "count", "subject", "summary", "evidence",
            "fixes"} <= set(cause)
    assert (cause["cause"], cause["count"], cause["package"], cause["test"]) == ("cgroup.pids.max", 13, PACKAGE, "TestSpawn")
    assert document["ruled_out"] == [{"cause": "rlimit.NPROC", "because": "63,512 free"}]


def test_the_report_lists_what_the_kernel_told_of_although_nothing_failed_because_of_it() -> None:
    report = judged([call("clone", "EAGAIN", count=13)], failed("    got 1, want 2"))
    (seen,) = json.loads(json.dumps(report.as_json()))["seen"]
    assert (seen["syscall"], seen["errno"], seen["count"], seen["role"]) == ("clone", "EAGAIN", 13, "test")
    assert report.verdict is Verdict.CODE


def test_a_person_reads_cause_what_it_was_not_and_the_fix() -> None:
    report = judged([call("clone", "EAGAIN", count=13)], failed(SPAWN))
    lines = verdict_lines(report, Style(width=200))
    assert lines[0] == f"triaged: {PACKAGE} TestSpawn failed because of the machine, not the code"
    assert lines[1] == "  cause     clone() = EAGAIN, 13 times: ci.service has TasksMax=64 and was full"
    assert lines[2] == "  not       RLIMIT_NPROC (63,512 free)"
    assert lines[3] == "  fix       sets TasksMax=128 of ci.service for this boot"
    assert "systemctl set-property --runtime ci.service TasksMax=128" in lines[4]
    known = verdict_lines(report, Style(width=200), lambda finding: True)
    assert known[3].startswith("  fix       triagectl fix cgroup.pids.limit-hit-")


def test_failures_of_one_cause_are_told_together() -> None:
    report = judged([call("clone", "EAGAIN")], *(failed(SPAWN, test=f"Test{number}") for number in range(5)))
    heads = [line for line in verdict_lines(report, Style(width=300)) if line.startswith("triaged:")]
    assert len(heads) == 1
    assert "and 2 more" in heads[0]


def test_control_characters_of_a_test_name_reach_no_terminal_and_no_file() -> None:
    report = judged([call("clone", "EAGAIN")], failed(SPAWN, test="Test\x1b[31m\x00\x01"))
    assert all(line.isprintable() for line in verdict_lines(report, Style()))
    ET.fromstring(junit_xml(report).encode())
    assert all(line.isprintable() for line in github_lines(report))


def test_junit_tells_the_machine_from_the_code() -> None:
    report = judged([call("clone", "EAGAIN")], failed("    got 1, want 2", test="TestOther"), failed(SPAWN))
    root = ET.fromstring(junit_xml(report).encode())
    (suite,) = root
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("2", "1", "1")
    error = root.find(".//testcase[@name='TestSpawn']/error")
    assert error is not None
    assert error.get("type") == "cgroup.pids.max"


def test_annotations_name_cause_and_fix() -> None:
    report = judged([call("clone", "EAGAIN")], failed(SPAWN))
    (line,) = github_lines(report)
    assert line.startswith("::error title=triaged%3A cgroup.pids.max::")
    assert "%0Afix: sets TasksMax=128" in line
    assert next(iter(gitlab_lines(report, 5))).startswith("\x1b[0Ksection_start:5:triaged_0[collapsed=false]")
