# SPDX-License-Identifier: Apache-2.0
"""Cgroups of a test's own, what is done in them, and the sources that watch them."""
from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from triaged.kernel.cgroup_layout import Hierarchy
from triaged.kernel.paths import KernelPaths
from triaged.model.facts import Fact, OomFacts, PidsFacts
from triaged.model.process import ProcessIdentity
from triaged.sources.cgroups import CgroupEvents
from triaged.sources.kernel_log import KernelLog
from triaged.sources.ledger import Ledger
from triaged.sources.source import Source, SourceState

WITHIN_S = 5.0
LIMIT_BYTES = 32 << 20

# Moves itself into the cgroup (argv 1), then tries to have `argv 2` children at once; prints how many were refused.
_FORKS = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
refused, (hold, release) = 0, os.pipe()
for _ in range(int(sys.argv[2])):
    try:
        pid = os.fork()
    except BlockingIOError:
        refused += 1
        continue
    if not pid:
        os.close(release)
        os.read(hold, 1)
        os._exit(0)
print(refused, flush=True)
os.close(release)
while refused < int(sys.argv[2]):
    try:
        os.wait()
    except ChildProcessError:
        break
"""
# Moves itself into the cgroup, takes the comm of argv 2, and touches 128 MiB.
_EATS = """
import sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
with open("/proc/self/comm", "w") as comm:
    comm.write(sys.argv[2])
eaten = bytearray(128 << 20)
"""


class NobodyKnown:
    """A process table that knows nobody: what is reported comes from the kernel log and the counters alone."""

    def identify(self, pid: int) -> ProcessIdentity | None:
        return None

    def is_inherited(self, pid: int) -> bool:
        return False


def remove(directory: Path) -> None:
    """Removes a cgroup and those below it; waits until the kernel let its dead processes go."""
    deepest_first = sorted((path for path in directory.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
    for each in (*deepest_first, directory):
        until = time.monotonic() + WITHIN_S
        while each.exists():
            try:
                each.rmdir()
            except OSError:
                assert time.monotonic() < until, f"{each} stays busy"
                time.sleep(0.01)


def make_below(hierarchy: Hierarchy, controller: str, directory: Path, *names: str) -> Path:
    """Makes a cgroup below another one, with the controller's files in it."""
    for name in names:
        if hierarchy.is_v2:
            (directory / "cgroup.subtree_control").write_text(f"+{controller}")
        directory = directory / name
        directory.mkdir()
    return directory


def fork_in(directory: Path, children: int) -> int:
    """How many of so many forks in the cgroup were refused."""
    done = subprocess.run([sys.executable, "-c", _FORKS, str(directory), str(children)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def sleeper_in(directory: Path) -> subprocess.Popen[bytes]:
    """A process that lives in the cgroup until it is killed."""
    process = subprocess.Popen(["sleep", "60"])
    (directory / "cgroup.procs").write_text(str(process.pid))
    return process


def eat_in(directory: Path, comm: str = "eater") -> int:
    """The pid of a process that the OOM killer ended in the cgroup."""
    process = subprocess.Popen([sys.executable, "-c", _EATS, str(directory), comm])
    assert process.wait() == -9, "it was not killed"
    return process.pid


def limit_memory(hierarchy: Hierarchy, directory: Path, limit: int = LIMIT_BYTES) -> None:
    if hierarchy.is_v2:
        (directory / "memory.max").write_text(str(limit))
        with contextlib.suppress(OSError):
            (directory / "memory.swap.max").write_text("0")
    else:
        (directory / "memory.limit_in_bytes").write_text(str(limit))
        with contextlib.suppress(OSError):
            (directory / "memory.memsw.limit_in_bytes").write_text(str(limit))


class Watching:
    """Sources at work, and what they yielded so far."""

    def __init__(self, *sources: Source) -> None:
        self.facts: list[Fact] = []
        self._news = asyncio.Event()
        self._sources = sources
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Watching:
        self._tasks = [asyncio.create_task(self._collect(source.facts())) for source in self._sources]
        until = time.monotonic() + WITHIN_S
        while any(source.status.state is SourceState.STARTING for source in self._sources):
            assert time.monotonic() < until, "a source does not start"
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _collect(self, facts: AsyncIterator[Fact]) -> None:
        async for fact in facts:
            self.facts.append(fact)
            self._news.set()

    def about(self, path: str) -> list[Fact]:
        return [fact for fact in self.facts if (cgroup := getattr(fact, "cgroup", None)) and cgroup.path.startswith(path)]

    async def until(self, enough: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        """Waits until `enough` of what was yielded."""
        until = time.monotonic() + within_s
        while not enough():
            self._news.clear()
            left = until - time.monotonic()
            assert left > 0, f"not within {within_s} s; so far {self.facts}"
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)


def sources() -> tuple[CgroupEvents, KernelLog]:
    ledger = Ledger()
    return CgroupEvents(KernelPaths(), NobodyKnown(), ledger=ledger), KernelLog(KernelPaths(), NobodyKnown(), ledger)


async def need_log(log: KernelLog) -> None:
    if log.status.state is not SourceState.ACTIVE:
        pytest.skip(f"the kernel log cannot be read here: {log.status.reason}")


def refused(facts: list[Fact]) -> int:
    return sum(fact.forks_refused for fact in facts if isinstance(fact, PidsFacts))


def killed(facts: list[Fact]) -> int:
    return sum(fact.kills for fact in facts if isinstance(fact, OomFacts))
