# SPDX-License-Identifier: Apache-2.0
"""Outputs of Go 1.27.3 and of pytest and unittest, recorded from one module with known failures; paths were shortened."""
from __future__ import annotations

from pathlib import Path

import pytest

from triaged.model.mention import FailedStage, OutputReport
from triaged.output.go_test import GoTestReader
from triaged.output.reader import OutputReader

RECORDED = Path(__file__).parent / "recorded"
APP = "example.org/app"
A_FAILURES = [
    (FailedStage.TEST, "TestOpen", ["ENOENT"]),
    (FailedStage.TEST, "TestSub/one", ["ENOENT"]),
    (FailedStage.TEST, "TestKill", ["signal 9"]),
]


def read(name: str, piece: int = 1 << 20) -> OutputReport:
    reader = OutputReader()
    for stream in ("stdout", "stderr"):
        data = (RECORDED / f"{name}.{stream}").read_bytes()
        for start in range(0, len(data), piece):
            reader.feed(stream, data[start : start + piece], start)
    return reader.finish(True)


def told(report: OutputReport, package: str) -> list[tuple[FailedStage, str, list[str]]]:
    return [
        (failure.stage, failure.test, [mention.errno or f"signal {mention.signal}" for mention in failure.mentions])
        for failure in report.failures if failure.package == package
    ]


@pytest.mark.parametrize("piece", [1 << 20, 7])
@pytest.mark.parametrize("name", ["plain", "v", "json"])
def test_every_notation_tells_the_same_failures(name: str, piece: int) -> None:
    report = read(name, piece)
    assert told(report, f"{APP}/a") == A_FAILURES
    assert told(report, f"{APP}/b") == [(FailedStage.PACKAGE, "TestNil", [])]
    (timed_out,) = [failure for failure in report.failures if failure.package == f"{APP}/c"]
    assert (timed_out.stage, timed_out.test) == (FailedStage.PACKAGE, "TestHang")
    assert [mention.kind.value for mention in timed_out.mentions] == ["timed-out"]
    if name != "v":
        (unbuilt,) = [failure for failure in report.failures if failure.package == f"{APP}/d"]
        assert unbuilt.stage is FailedStage.BUILD
        assert "undefined: undefined" in unbuilt.text


def test_a_test_binary_by_itself_names_no_package() -> None:
    assert told(read("bin"), "") == A_FAILURES


def test_a_package_that_is_not_built_keeps_what_the_compiler_said() -> None:
    (failure,) = read("d").failures
    assert failure.stage is FailedStage.BUILD
    assert "undefined" in failure.text


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_what_the_linker_says_belongs_to_the_package_that_is_not_built(stream: str) -> None:
    reader = GoTestReader()
    reader.feed(stream, b"# example.org/app/a.test\nlink: mapping output file failed: no space left on device\n", 1)
    reader.feed("stdout", b"FAIL\texample.org/app/a [build failed]\nFAIL\n", 2)
    assert told(reader.finish(True), f"{APP}/a") == [(FailedStage.BUILD, "", ["ENOSPC"])]


@pytest.mark.parametrize("own", [b"", b"# example.org/app/b\n./b.go:3:1: syntax error\n"])
def test_what_was_printed_of_a_dependency_belongs_to_who_needs_it(own: bytes) -> None:
    reader = GoTestReader()
    text = b"runtime: out of memory: cannot allocate 4194304-byte block\n"
    reader.feed("stderr", b"# runtime\n" + text + own, 1)
    reader.feed("stdout", b"FAIL\texample.org/app/a [build failed]\nFAIL\texample.org/app/b [build failed]\nFAIL\n", 2)
    first, second = reader.finish(True).failures
    assert [(mention.syscall, mention.errno) for mention in first.mentions] == [("mmap", "ENOMEM")]
    assert [mention.errno for mention in second.mentions] == ([] if own else ["ENOMEM"])


def test_results_of_passed_tests_are_kept_where_they_are_told() -> None:
    outcomes = {(result.package, result.test): result.outcome for result in read("json").results}
    assert outcomes[f"{APP}/a", "TestFine"] == "pass"
    assert outcomes[f"{APP}/a", "TestSub"] == "fail"


def test_pytest_sections_are_tests_under_their_full_names() -> None:
    report = read("py")
    assert [(failure.test, [mention.errno for mention in failure.mentions]) for failure in report.failures] == [
        ("test_p.py::test_a", ["ENOENT"]), ("test_p.py::TestB::test_c", []), ("test_p.py::U::test_u", ["EMFILE"]),
    ]


def test_unittest_sections_are_tests() -> None:
    (failure,) = read("ut").failures
    assert failure.test == "test_u (test_p.U.test_u)"
    assert [mention.errno for mention in failure.mentions] == ["EMFILE"]


def test_a_go_command_that_gives_up_is_a_failure_of_the_command() -> None:
    reader = GoTestReader()
    reader.feed(
        "stderr",
        b"go: error obtaining buildID for go tool compile: fork/exec /x/compile: resource temporarily unavailable\n", 1,
    )
    (failure,) = reader.finish(True).failures
    assert failure.stage is FailedStage.COMMAND
    assert [mention.errno for mention in failure.mentions] == ["EAGAIN"]


def test_a_test_binary_that_cannot_be_executed_is_a_failure_of_its_package() -> None:
    reader = GoTestReader()
    reader.feed("stdout", b"fork/exec /tmp/go-build1/b001/c.test: permission denied\nFAIL\texample.org/c\t0.000s\nFAIL\n", 1)
    (failure,) = reader.finish(True).failures
    assert (failure.stage, failure.package) == (FailedStage.PACKAGE, "example.org/c")
    assert [mention.errno for mention in failure.mentions] == ["EACCES"]


def test_a_run_that_succeeded_has_no_failure() -> None:
    reader = OutputReader()
    reader.feed("stdout", b"a log line: permission denied\nok  \texample.org/c\t0.1s\n", 1)
    assert reader.finish(False).failures == ()


def test_what_a_passed_package_printed_is_not_held_against_the_next() -> None:
    reader = GoTestReader()
    reader.feed("stdout", b"x: permission denied\nok  \texample.org/a\t0.1s\n", 1)
    reader.feed("stdout", b"--- FAIL: TestY (0.00s)\n    y_test.go:3: 1 is not 2\nFAIL\n", 1)
    reader.feed("stdout", b"FAIL\texample.org/b\t0.1s\nFAIL\n", 2)
    (failure,) = reader.finish(True).failures
    assert (failure.package, failure.test, failure.mentions) == ("example.org/b", "TestY", ())


def test_endless_output_is_bounded_and_its_last_errors_are_kept() -> None:
    reader = OutputReader()
    noise = b"a line with an error in it: not found\n" * 1000 + b"x" * 100_000 + b"\n"
    for _ in range(50):
        reader.feed("stdout", noise, 1)
    reader.feed("stdout", b"open /x: too many open files\n", 2)
    (failure,) = reader.finish(True).failures
    assert failure.mentions[-1].errno == "EMFILE"
    assert len(failure.mentions) <= 60
    assert len(failure.text) < 300_000


def test_a_test_binary_that_dies_on_standard_error_names_its_test() -> None:
    reader = OutputReader()
    reader.feed("stderr", b"panic: test timed out after 2s\n\trunning tests:\n\t\tTestMemfd (2s)\n\ngoroutine 5 [running]:\n", 1)
    (failure,) = reader.finish(True).failures
    assert (failure.stage, failure.test) == (FailedStage.PACKAGE, "TestMemfd")
    assert [mention.kind.value for mention in failure.mentions] == ["timed-out"]


KILLED_PLAIN = """--- FAIL: TestLimit (0.00s)
    x_test.go:8: open /x: too many open files
signal: killed
FAIL	example.org/app	0.013s
"""
KILLED_VERBOSE = """=== RUN   TestLimit
    x_test.go:8: open /x: too many open files
--- FAIL: TestLimit (0.00s)
=== RUN   TestDeath
signal: killed
FAIL	example.org/app	0.013s
"""
KILLED_JSON = """{"Action":"run","Package":"example.org/app","Test":"TestLimit"}
{"Action":"output","Package":"example.org/app","Test":"TestLimit","Output":"    x_test.go:8: open /x: too many open files\\n"}
{"Action":"fail","Package":"example.org/app","Test":"TestLimit","Elapsed":0}
{"Action":"output","Package":"example.org/app","Test":"TestDeath","Output":"=== RUN   TestDeath\\n"}
{"Action":"output","Package":"example.org/app","Test":"TestDeath","Output":"signal: killed\\n"}
{"Action":"output","Package":"example.org/app","Output":"FAIL\\texample.org/app\\t0.114s\\n"}
{"Action":"fail","Package":"example.org/app","Elapsed":0.114}
"""


@pytest.mark.parametrize(
    ("text", "running"), [(KILLED_PLAIN, ""), (KILLED_VERBOSE, "TestDeath"), (KILLED_JSON, "TestDeath")]
)
def test_a_binary_that_is_killed_takes_no_test_with_it_that_had_failed_before(text: str, running: str) -> None:
    reader = GoTestReader()
    reader.feed("stdout", text.encode(), 1)
    assert told(reader.finish(True), APP) == [
        (FailedStage.PACKAGE, running, ["signal 9"]), (FailedStage.TEST, "TestLimit", ["EMFILE"]),
    ]
