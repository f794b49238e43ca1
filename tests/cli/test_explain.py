# SPDX-License-Identifier: Apache-2.0
"""`triagectl explain`: questions, and answers about real processes of our own."""
from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest

from triaged.cli.explain import answer_lines, numbers
from triaged.cli.style import Style
from triaged.errors import ConfigError
from triaged.explain.question import Answer, parse_question
from triaged.model.cause import Blamed, Explanation, NotDecidable, RuledOut, SelfInflicted, Status
from triaged.model.fix import SetParameter
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.model.verdict import Evidence

HOLD = "import os, sys\nwhile True:\n    try: os.dup(0)\n    except OSError: break\nprint(1, flush=True); sys.stdin.read()"


def triagectl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "triaged.cli", *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def holder() -> Iterator[int]:
    """A process that has all the files open that it may."""
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48)),
    )
    assert child.stdout is not None
    child.stdout.readline()
    yield child.pid
    child.communicate()


@pytest.mark.parametrize(("words", "wanted"), [
    (["clone", "EAGAIN"], Symptom(SymptomKind.CALL, "clone", "EAGAIN")),
    (["openat", "EWOULDBLOCK"], Symptom(SymptomKind.CALL, "openat", "EAGAIN")),
    (["clone", "11"], Symptom(SymptomKind.CALL, "clone", "EAGAIN")),
    (["EMFILE"], Symptom(SymptomKind.CALL, "", "EMFILE")),
    (["killed"], Symptom(SymptomKind.KILLED, signal=9)),
    (["killed", "XCPU"], Symptom(SymptomKind.KILLED, signal=24)),
    (["killed", "24"], Symptom(SymptomKind.KILLED, signal=24)),
    (["timed-out"], Symptom(SymptomKind.TIMED_OUT)),
])  # fmt: skip
def test_a_question_is_a_call_and_an_error_or_a_fate(words: list[str], wanted: Symptom) -> None:
    assert parse_question(words) == wanted


def test_a_line_of_output_is_a_question() -> None:
    text = "    worker_test.go:12: start: fork/exec /bin/sleep: resource temporarily unavailable"
    asked = parse_question([text])
    assert (asked.kind, asked.errno, asked.seen_in, asked.text) == (SymptomKind.CALL, "EAGAIN", SeenIn.ASKED, text)
    assert parse_question(["signal:", "killed"]).signal == 9  # not quoted: the shell made words of it


def test_arguments_and_the_path_are_part_of_it() -> None:
    asked = parse_question(["mmap", "ENOMEM"], numbers("0,0x1000,3,0x22"), "/dev/zero")
    assert (asked.arguments, asked.path) == ((0, 4096, 3, 34), "/dev/zero")
    with pytest.raises(ConfigError, match="at most 6"):
        parse_question(["mmap", "ENOMEM"], range(7))


@pytest.mark.parametrize(
    "words", [["clonk", "EAGAIN"], ["clone", "ENOTHING"], ["killed", "SIGNOTHING"], ["all is well"], ["killed", "99"]]
)
def test_what_is_no_question_is_said_with_what_to_ask(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        parse_question(words)
    done = triagectl("explain", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) >= 1
    assert "Traceback" not in done.stderr


def test_the_limit_that_is_reached_is_shown_with_its_proof_and_its_fix(holder: int) -> None:
    done = triagectl("explain", "openat", "EMFILE", "--pid", str(holder))
    assert done.returncode == 1, done.stderr
    assert f"openat() = EMFILE in process {holder}" in done.stdout
    assert "proved    rlimit.NOFILE" in done.stdout
    assert "open files = 48" in done.stdout
    assert f"# prlimit --pid={holder} --nofile=65536:65536" in done.stdout


def test_a_limit_that_is_not_reached_is_ruled_out_with_what_is_free() -> None:
    done = triagectl("explain", "clone", "EAGAIN", "--pid", str(os.getpid()))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "kernel.threads-max" in line]
    assert len(lines) == 1
    assert lines[0].split()[0] == "not"
    assert "free" in lines[0]
    assert "no limit is reached" in done.stdout


def test_without_a_process_it_is_about_the_machine() -> None:
    document = json.loads(triagectl("explain", "clone", "EAGAIN", "--json").stdout)
    assert document["process"] is None
    assert "sysctl.kernel.pid_max" in {each["cause"] for each in document["ruled_out"]}
    assert "rlimit.NPROC" in {each["cause"] for each in document["not_decidable"]}
    assert "seccomp." in {each["cause"] for each in document["others"]}


def test_a_process_that_is_not_there_is_said_with_what_to_do() -> None:
    done = triagectl("explain", "clone", "EAGAIN", "--pid", "4194304")
    assert done.returncode == 2
    assert "no process 4194304" in done.stderr
    assert "ps" in done.stderr


def test_of_a_process_that_was_killed_and_is_gone_the_kernel_log_is_asked() -> None:
    done = triagectl("explain", "killed", "--pid", "4194304", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["process"]["pid"] == 4194304
    assert document["causes"] == []


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    bad = "\x1b[31m"
    blamed = Blamed(
        "cgroup.pids.max", Status.PROVED, bad, f"{bad} was full", (Evidence(bad, bad, bad),), (SetParameter("a.b", bad),)
    )
    found = Explanation((blamed,), (RuledOut("rlimit.NPROC", bad),), (NotDecidable("x.y", bad),), (SelfInflicted("z", bad),))
    text = "\n".join(answer_lines(Answer(Symptom(SymptomKind.CALL, "clone", "EAGAIN"), None, found, ()), Style()))
    assert "\x1b" not in text
    assert "\\x1b[31m was full" in text
    for word in ("proved", "own fault", "not ", "unclear"):
        assert word in text
