# SPDX-License-Identifier: Apache-2.0
"""Real processes that are really killed: by hand, by timeout(1), by their RLIMIT_CPU, by the OOM killer."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.deaths import Witness
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import ExitFacts
from triaged.model.killed import KillEvidence
from triaged.model.verdict import Problem, Undecided
from triaged.rules.killed import killed

PATHS = KernelPaths()
_WAITS = "print('ready', flush=True); import sys; sys.stdin.read()"
_SPINS = "print('ready', flush=True)\nwhile True: pass"
_EATS = "import sys; print('ready', flush=True); sys.stdin.readline(); eaten = bytearray(128 << 20)"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a program of one line that says when it is ready."""
    children: list[subprocess.Popen[bytes]] = []

    def run(program: str, *before: str, prepare: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
        argv = [*before, sys.executable, "-c", program]
        child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=prepare)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def wait_unreaped(pid: int) -> None:
    """Until the process has ended; it stays a zombie."""
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) is not None


def verdict_on(witness: Witness, pid: int, process: object, until: Callable[[], None]) -> tuple[KillEvidence, object]:
    who = process
    until()
    evidence = witness.end(who)  # type: ignore[arg-type]
    assert evidence is not None
    return evidence, killed.judge(ExitFacts(who, signal.SIGKILL, evidence=evidence))  # type: ignore[arg-type]


def test_a_kill_by_hand_is_no_oom_kill_and_its_sender_unknown(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    child = start(_WAITS)
    who, witness = read_process(PATHS, child.pid), Witness(PATHS, ProcessTable(PATHS, []))
    witness.begin(who)
    child.kill()
    evidence, verdict = verdict_on(witness, child.pid, who, lambda: wait_unreaped(child.pid))
    if evidence.oom_kills:
        pytest.skip("something else on this machine was killed for lack of memory at this moment")
    assert evidence.is_oom_ruled_out
    assert evidence.relatives[0].pid == os.getpid()
    assert isinstance(verdict, Problem)
    assert "not for lack of memory" in verdict.summary
    assert witness.end(who) is None


def test_a_used_up_cpu_limit_is_recognised(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    child = start(_SPINS, prepare=lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 1)))
    who, witness = read_process(PATHS, child.pid), Witness(PATHS, ProcessTable(PATHS, []))
    witness.begin(who)
    evidence, _ = verdict_on(witness, child.pid, who, lambda: wait_unreaped(child.pid))
    assert evidence.cpu_limit == 1
    assert evidence.is_cpu_limit_hit
    assert child.wait() == -signal.SIGKILL


def test_a_timeout_that_kills_is_named(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    parent = start(_WAITS, "timeout", "-s", "KILL", "3")
    pid = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()[0])
    who, witness = read_process(PATHS, pid), Witness(PATHS, ProcessTable(PATHS, []))
    witness.begin(who)
    evidence, verdict = verdict_on(witness, pid, who, lambda: parent.wait() and None)
    assert evidence.relatives[0].pid == parent.pid
    assert evidence.relatives[0].is_killing_timeout
    assert evidence.relatives[0].age_s == pytest.approx(3.5, abs=0.8)
    if evidence.is_oom_ruled_out:
        assert isinstance(verdict, Problem)
        assert f"by pid {parent.pid} `timeout`, whose 3 s were over" in verdict.summary


def test_a_timeout_whose_time_was_not_over_is_ruled_out(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    parent = start(_WAITS, "timeout", "-s", "KILL", "60")
    pid = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()[0])
    who, witness = read_process(PATHS, pid), Witness(PATHS, ProcessTable(PATHS, []))
    witness.begin(who)
    os.kill(pid, signal.SIGKILL)
    evidence, verdict = verdict_on(witness, pid, who, lambda: parent.wait() and None)
    if not evidence.is_oom_ruled_out:
        pytest.skip("something else on this machine was killed for lack of memory at this moment")
    assert isinstance(verdict, Problem)
    assert "`timeout`" not in verdict.summary
    assert {item.name: str(item.value) for item in verdict.evidence}["time of ancestor 1"].endswith("ruled out, not over yet")


def test_an_oom_kill_is_never_called_something_else(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    try:
        hierarchy = read_layout(PATHS).holding("memory")
    except KernelError as error:
        pytest.skip(f"no cgroups here: {error}")
    if hierarchy is None:
        pytest.skip("no memory controller here")
    directory = Path(hierarchy.directory(f"/triaged-death-{os.getpid()}"))
    try:
        directory.mkdir()
    except PermissionError:
        pytest.skip("making cgroups needs root")
    try:
        (directory / ("memory.max" if hierarchy.is_v2 else "memory.limit_in_bytes")).write_text(str(48 << 20))
        swap = directory / ("memory.swap.max" if hierarchy.is_v2 else "memory.memsw.limit_in_bytes")
        if swap.exists():
            swap.write_text("0" if hierarchy.is_v2 else str(48 << 20))
        child = start(_EATS, prepare=lambda: (directory / "cgroup.procs").write_text("0") and None)
        who, witness = read_process(PATHS, child.pid), Witness(PATHS, ProcessTable(PATHS, []))
        witness.begin(who)
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        evidence, verdict = verdict_on(witness, child.pid, who, lambda: wait_unreaped(child.pid))
        assert child.wait() == -signal.SIGKILL
        assert [each.path for each in evidence.oom_kills] == [f"/{directory.name}", ""]
        assert isinstance(verdict, Undecided)
        assert "oom_kill rose" in verdict.why
    finally:
        until = time.monotonic() + 5
        while directory.exists():
            try:
                directory.rmdir()
            except OSError:
                assert time.monotonic() < until, "it stays busy"
                time.sleep(0.02)
