# SPDX-License-Identifier: Apache-2.0
"""Real cgroups, real refusals, real kills: what the counters' and the kernel log's sources make of them together.

Needs root and a version 1 or 2 hierarchy in which own cgroups may be made. Version 2's semantics are tested in tests/vm.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy, read_layout
from triaged.kernel.cgroups import read_event_counter
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import Fact, OomFacts, PidsFacts, SubjectGone
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


@pytest.fixture(scope="module")
def layout() -> CgroupLayout:
    try:
        return read_layout(KernelPaths())
    except KernelError as error:
        pytest.skip(f"no cgroups here: {error}")


@pytest.fixture
def own_cgroup(layout: CgroupLayout) -> Iterator[Callable[[str, str], tuple[Hierarchy, str, Path]]]:
    """Makes a cgroup of the test's own in a controller's hierarchy; gives the hierarchy, its path and its directory."""
    made: list[Path] = []

    def make(controller: str, name: str) -> tuple[Hierarchy, str, Path]:
        hierarchy = layout.holding(controller)
        if hierarchy is None:
            pytest.skip(f"no hierarchy here has the {controller} controller")
        path = f"/triaged-test-{os.getpid()}-{name}"
        directory = Path(hierarchy.directory(path))
        try:
            directory.mkdir()
        except PermissionError:
            pytest.skip("making cgroups needs root")
        made.append(directory)
        return hierarchy, path, directory

    yield make
    for directory in reversed(made):
        remove(directory)


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


async def test_refused_forks_are_told_within_a_second_with_the_cgroup_whose_limit_it_was(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "owner")
    (directory / "pids.max").write_text("4")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        count = await asyncio.to_thread(fork_in, directory, 6)
        assert count > 0
        await watching.until(lambda: refused(watching.about(path)) == count, 1.0)
    fact = watching.about(path)[0]
    assert isinstance(fact, PidsFacts)
    assert fact.owner is not None
    assert (fact.owner.cgroup.path, fact.owner.limit) == (path, 4)
    assert path in fact.record
    assert not fact.before_start


async def test_a_process_that_lives_in_the_cgroup_is_named(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "resident")
    (directory / "pids.max").write_text("3")
    lives_there = sleeper_in(directory)
    try:
        ledger = Ledger()
        table = ProcessTable(KernelPaths(), ())
        events, log = CgroupEvents(KernelPaths(), table, ledger=ledger), KernelLog(KernelPaths(), table, ledger)
        async with Watching(log, events) as watching:
            await need_log(log)
            await asyncio.to_thread(fork_in, directory, 5)
            await watching.until(lambda: refused(watching.about(path)) > 0)
    finally:
        lives_there.kill()
        lives_there.wait()
    fact = next(fact for fact in watching.about(path) if isinstance(fact, PidsFacts))
    assert fact.process is not None
    assert fact.process.pid == lives_there.pid


async def test_an_ancestors_pids_max_is_named_as_the_owner(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("pids", "ancestor")
    (directory / "pids.max").write_text("3")
    leaf = make_below(hierarchy, "pids", directory, "middle", "leaf")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        count = await asyncio.to_thread(fork_in, leaf, 5)
        await watching.until(lambda: refused(watching.about(path)) == count)
    owners = {fact.owner.cgroup.path for fact in watching.about(path) if isinstance(fact, PidsFacts) and fact.owner}
    assert owners == {path}


async def test_later_refusals_in_the_same_cgroup_are_counted_too(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "again")
    (directory / "pids.max").write_text("3")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        first = await asyncio.to_thread(fork_in, directory, 5)
        await watching.until(lambda: refused(watching.about(path)) == first)
        second = await asyncio.to_thread(fork_in, directory, 6)
        await watching.until(lambda: refused(watching.about(path)) == first + second)


async def test_a_refusal_is_told_although_its_cgroup_is_removed_at_once(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("pids", "fleeting")
    (directory / "pids.max").write_text("3")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)

        def hit_and_vanish() -> None:
            leaf = make_below(hierarchy, "pids", directory, "leaf")
            assert fork_in(leaf, 5) > 0
            remove(leaf)

        await asyncio.to_thread(hit_and_vanish)
        await watching.until(lambda: refused(watching.about(path)) > 0)
    fact = next(fact for fact in watching.about(path) if isinstance(fact, PidsFacts))
    assert fact.owner is not None
    assert fact.owner.cgroup.path == path


async def test_a_refusal_below_a_path_of_4000_characters_is_told_with_all_of_it(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("pids", "long")
    (directory / "pids.max").write_text("3")
    names = []
    while len(str(directory)) + 201 * (len(names) + 1) < 4050:
        names.append("x" * 200)
    leaf = make_below(hierarchy, "pids", directory, *names)
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        count = await asyncio.to_thread(fork_in, leaf, 5)
        await watching.until(lambda: refused(watching.about(path)) == count)
    facts = [fact for fact in watching.about(path) if isinstance(fact, PidsFacts)]
    assert all(fact.owner and fact.owner.cgroup.path == path for fact in facts)
    counter = read_event_counter(hierarchy, "pids", str(leaf))
    assert counter is not None
    if not counter.is_hierarchical:  # it counts where the task was
        assert all(fact.cgroup.path == path + "".join(f"/{name}" for name in names) for fact in facts)


async def test_a_kill_is_told_once_with_victim_record_and_owner(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("memory", "oom")
    limit_memory(hierarchy, directory)
    leaf = make_below(hierarchy, "memory", directory, "leaf")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        pid = await asyncio.to_thread(eat_in, leaf, "a b),task=\n")
        await watching.until(lambda: killed(watching.about(path)) >= 1)
        await asyncio.sleep(0.5)  # long enough for the counter to tell it a second time
    facts = [fact for fact in watching.about(path) if isinstance(fact, OomFacts)]
    assert [fact.kills for fact in facts] == [1]
    fact = facts[0]
    assert fact.victim is not None
    assert (fact.victim.pid, fact.victim.comm) == (pid, "a b),task=\n")
    assert fact.owner is not None
    assert (fact.owner.cgroup.path, fact.owner.limit) == (path, LIMIT_BYTES)
    assert "Killed process" in fact.record
    assert not fact.is_host_wide


async def test_many_kills_in_fleeting_cgroups_are_each_told_once(own_cgroup) -> None:
    hierarchy, _, directory = own_cgroup("memory", "storm")
    limit_memory(hierarchy, directory, 8 << 20)
    kills = 20  # more than the ten oom-kill lines that the kernel writes in 5 s
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)

        def storm() -> None:
            for number in range(kills):
                leaf = make_below(hierarchy, "memory", directory, f"leaf-{number}")
                eat_in(leaf)
                remove(leaf)

        await asyncio.to_thread(storm)
        await watching.until(lambda: killed(watching.facts) >= kills)
        await asyncio.sleep(0.5)
    assert killed(watching.facts) == kills


async def test_without_the_kernel_log_counters_still_tell_and_the_status_says_what_is_lost(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("memory", "unlogged")
    limit_memory(hierarchy, directory)
    events, _ = sources()
    async with Watching(events) as watching:
        await asyncio.to_thread(eat_in, directory)
        await watching.until(lambda: killed(watching.about(path)) == 1)
        if not hierarchy.is_v2:
            assert events.status.state is SourceState.DEGRADED
            assert "kernel log" in events.status.reason
    fact = watching.about(path)[0]
    assert isinstance(fact, OomFacts)
    assert fact.victim is None
    assert fact.owner is not None
    assert fact.owner.cgroup.path == path


async def test_counters_from_before_the_start_are_told_as_such_and_once_over_restarts(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "earlier")
    (directory / "pids.max").write_text("3")
    count = fork_in(directory, 5)
    saved: dict[str, int] = {}
    events = CgroupEvents(KernelPaths(), NobodyKnown(), on_counter=saved.__setitem__)
    async with Watching(events) as watching:
        await watching.until(lambda: refused(watching.about(path)) == count)
    fact = watching.about(path)[0]
    assert isinstance(fact, PidsFacts)
    assert fact.before_start
    again = CgroupEvents(KernelPaths(), NobodyKnown(), baseline=saved, on_counter=saved.__setitem__)
    async with Watching(again) as watching:
        more = await asyncio.to_thread(fork_in, directory, 5)
        await watching.until(lambda: refused(watching.about(path)) == more)


async def test_a_removed_cgroup_that_was_reported_is_told_as_gone(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "removed")
    (directory / "pids.max").write_text("3")
    fork_in(directory, 5)
    saved: dict[str, int] = {}
    events = CgroupEvents(KernelPaths(), NobodyKnown(), on_counter=saved.__setitem__)
    async with Watching(events) as watching:
        await watching.until(lambda: refused(watching.about(path)) > 0)
        remove(directory)
        await watching.until(lambda: any(isinstance(fact, SubjectGone) for fact in watching.about(path)))
    assert not [key for key, total in saved.items() if path in key and total]


async def test_idle_the_source_sleeps(own_cgroup) -> None:
    events, log = sources()
    async with Watching(log, events):
        await need_log(log)
        before = events.counters.get("events", 0)
        used = time.process_time()
        await asyncio.sleep(2.0)
        used = time.process_time() - used
        if events.counters.get("events", 0) - before > 50:
            pytest.skip("somebody else makes and removes cgroups here at this moment")
    assert used < 0.1


async def test_a_cgroup_that_was_hit_before_is_polled_again_when_another_one_is_hit(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "twice")
    (directory / "pids.max").write_text("3")
    fork_in(directory, 5)
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        await watching.until(lambda: refused(watching.about(path)) > 0)
        _, other, second = own_cgroup("pids", "other")
        (second / "pids.max").write_text("3")
        for _ in range(2):  # the kernel logs the first time only
            before = refused(watching.about(other))
            count = await asyncio.to_thread(fork_in, second, 5)
            await watching.until(lambda count=count, before=before: refused(watching.about(other)) == before + count)


def test_one_pass_over_log_and_counters_tells_an_earlier_kill_once_with_its_victim(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("memory", "past")
    limit_memory(hierarchy, directory)
    pid = eat_in(directory)
    events, log = sources()
    facts = [*log.snapshot(), *events.snapshot()]
    if log.status.state is not SourceState.ACTIVE:
        pytest.skip(f"the kernel log cannot be read here: {log.status.reason}")
    kills = [fact for fact in facts if isinstance(fact, OomFacts) and fact.cgroup.path == path]
    assert [(fact.kills, fact.before_start) for fact in kills] == [(1, True)]
    assert kills[0].victim is not None
    assert kills[0].victim.pid == pid
