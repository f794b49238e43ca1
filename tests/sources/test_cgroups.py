# SPDX-License-Identifier: Apache-2.0
"""The source on a fixture tree of version 2: its status, what it does without inotify, and what it keeps over a restart."""
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from triaged.errors import Exhausted
from triaged.kernel.inotify import IN_Q_OVERFLOW, Inotify, InotifyEvent
from triaged.kernel.kernel_log import ForkRejected
from triaged.kernel.paths import KernelPaths
from triaged.model.facts import Fact, OomFacts, PidsFacts, SubjectGone
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.sources import cgroups
from triaged.sources.cgroup_facts import full_limit
from triaged.sources.cgroup_tree import CgroupTree
from triaged.sources.cgroups import CgroupEvents
from triaged.sources.ledger import Ledger
from triaged.sources.source import SourceState, numberless


class NobodyKnown:
    def identify(self, pid: int) -> ProcessIdentity | None:
        return None

    def is_inherited(self, pid: int) -> bool:
        return False


class Machine:
    """A machine with version 2, Linux 6.11 or newer unless `is_old`: then pids.events counts where the task was."""

    def __init__(self, root: Path, is_old: bool = False) -> None:
        self.cgroup = root / "sys/fs/cgroup"
        self.is_old = is_old
        root.mkdir(exist_ok=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/sys/kernel/random").mkdir(parents=True)
        (root / "proc/sys/kernel/random/boot_id").write_text("00000000-1111\n")
        (root / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        self.cgroup.mkdir(parents=True)
        (self.cgroup / "cgroup.controllers").write_text("memory pids\n")
        self.paths = KernelPaths.below(str(root))

    def make(self, path: str, pids_max: str = "max", pids_current: int = 0) -> Path:
        directory = self.cgroup / path.strip("/")
        directory.mkdir()
        files = {
            "pids.max": pids_max, "pids.current": str(pids_current), "pids.events": "max 0",
            "memory.max": "max", "memory.current": "0",
            "memory.events": "oom 0\noom_kill 0", "memory.events.local": "oom 0\noom_kill 0",
        }
        if not self.is_old:
            files["pids.events.local"] = "max 0"
        for name, text in files.items():
            (directory / name).write_text(text + "\n")
        return directory

    def refuse(self, path: str, total: int) -> None:
        directory = self.cgroup / path.strip("/")
        if not self.is_old:
            rewrite(directory / "pids.events.local", f"max {total}\n")
        rewrite(directory / "pids.events", f"max {total}\n")

    def kill(self, path: str, total: int) -> None:
        directory = self.cgroup / path.strip("/")
        rewrite(directory / "memory.events.local", f"oom 1\noom_kill {total}\n")
        rewrite(directory / "memory.events", f"oom 1\noom_kill {total}\n")


def rewrite(file: Path, text: str) -> None:
    """Writes as long a text in one step, so that no reader sees half of it."""
    with open(file, "r+") as opened:
        opened.write(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def old_machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, is_old=True)


@contextlib.asynccontextmanager
async def watching(source: CgroupEvents) -> AsyncIterator[asyncio.Queue[Fact]]:
    queue: asyncio.Queue[Fact] = asyncio.Queue()

    async def collect() -> None:
        async for fact in source.facts():
            queue.put_nowait(fact)

    started = asyncio.Event()
    source.on_status = lambda status: started.set()
    task = asyncio.create_task(collect())
    try:
        await asyncio.wait_for(started.wait(), 5)
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end, "not within 5 s"
        await asyncio.sleep(0.005)


async def following(queue: asyncio.Queue[Fact]) -> Fact:
    return await asyncio.wait_for(queue.get(), 5)


async def test_on_new_kernels_the_cgroup_that_counts_owns_the_limit(machine: Machine) -> None:
    machine.make("/ci.slice", pids_max="12", pids_current=3)
    source = CgroupEvents(machine.paths, NobodyKnown())
    async with watching(source) as queue:
        assert source.status.state is SourceState.ACTIVE
        machine.refuse("/ci.slice", 2)
        fact = await following(queue)
    assert isinstance(fact, PidsFacts)
    assert (fact.forks_refused, fact.forks_refused_total) == (2, 2)
    assert fact.owner is not None
    assert (fact.owner.cgroup.path, fact.owner.limit, fact.owner.unit) == ("/ci.slice", 12, "ci.slice")


class Known:
    """A process table that knows these processes."""

    def __init__(self, *processes: ProcessIdentity) -> None:
        self._processes = {process.pid: process for process in processes}

    def identify(self, pid: int) -> ProcessIdentity | None:
        return self._processes.get(pid)

    def is_inherited(self, pid: int) -> bool:
        return False


def going(pid: int, role: str = "", package: str = "") -> ProcessIdentity:
    """A process, of a Go test if it has a role there."""
    return ProcessIdentity(pid, 1, workload=WorkloadMatch("go-test", role, package) if role else None)


@pytest.mark.parametrize(
    ("inside", "below", "named"),
    [
        ((), (going(7), going(8, "command"), going(9, "test-binary", "example.org/x")), 9),
        ((), (going(7), going(8, "command")), 8),
        ((), (going(7),), 7),
        ((going(6),), (going(8, "command"),), 8),
        ((going(5, "command"),), (going(9, "test-binary", "example.org/x"),), 5),
        ((), (), 0),
    ],
)
async def test_a_process_is_named_where_the_slice_of_its_scope_is_full(
    machine: Machine, inside: tuple[ProcessIdentity, ...], below: tuple[ProcessIdentity, ...], named: int
) -> None:
    for path, processes in (("/ci.slice", inside), ("/ci.slice/run.scope", below)):
        directory = machine.make(path, pids_max="12", pids_current=12)
        (directory / "cgroup.procs").write_text("".join(f"{process.pid}\n" for process in processes))
    async with watching(CgroupEvents(machine.paths, Known(*inside, *below))) as queue:
        machine.refuse("/ci.slice", 1)
        fact = await following(queue)
    assert isinstance(fact, PidsFacts)
    assert (fact.process.pid if fact.process else 0) == named


async def test_on_old_kernels_the_owner_is_the_full_ancestor(old_machine: Machine) -> None:
    old_machine.make("/ci.slice", pids_max="12", pids_current=12)
    old_machine.make("/ci.slice/run.scope", pids_max="500", pids_current=12)
    ledger = Ledger()
    ledger.log_is_read = True
    async with watching(CgroupEvents(old_machine.paths, NobodyKnown(), ledger=ledger)) as queue:
        old_machine.refuse("/ci.slice/run.scope", 1)
        fact = await following(queue)
    assert isinstance(fact, PidsFacts)
    assert fact.cgroup.path == "/ci.slice/run.scope"
    assert fact.owner is not None
    assert fact.owner.cgroup.path == "/ci.slice"


async def test_where_two_limits_are_finite_and_none_is_full_no_owner_is_claimed(old_machine: Machine) -> None:
    old_machine.make("/ci.slice", pids_max="12", pids_current=5)
    old_machine.make("/ci.slice/run.scope", pids_max="500", pids_current=5)
    async with watching(CgroupEvents(old_machine.paths, NobodyKnown())) as queue:
        old_machine.refuse("/ci.slice/run.scope", 1)
        fact = await following(queue)
    assert isinstance(fact, PidsFacts)
    assert fact.owner is None
    assert [limit.limit for limit in fact.ancestry] == [500, 12]
    assert full_limit(fact.ancestry[:1]) is fact.ancestry[0]


async def test_a_kill_without_a_line_of_the_log_is_told_after_a_moment(machine: Machine) -> None:
    machine.make("/ci.slice")
    rewrite(machine.cgroup / "ci.slice/memory.max", "64\n")
    ledger = Ledger()
    ledger.log_is_read = True
    async with watching(CgroupEvents(machine.paths, NobodyKnown(), ledger=ledger)) as queue:
        machine.kill("/ci.slice", 3)
        fact = await following(queue)
    assert isinstance(fact, OomFacts)
    assert (fact.kills, fact.record, fact.victim) == (3, "", None)
    assert fact.owner is not None
    assert fact.owner.cgroup.path == "/ci.slice"


async def test_a_refusal_that_only_the_log_tells_is_believed_after_a_last_look(machine: Machine) -> None:
    machine.make("/ci.slice", pids_max="12", pids_current=12)
    ledger = Ledger()
    source = CgroupEvents(machine.paths, NobodyKnown(), ledger=ledger)
    async with watching(source) as queue:
        assert ledger.on_refusal is not None
        ledger.on_refusal(ForkRejected("/ci.slice/gone.scope", 1, "the line"))
        fact = await following(queue)
        assert queue.empty()
    assert isinstance(fact, PidsFacts)
    assert (fact.cgroup.path, fact.forks_refused) == ("/ci.slice/gone.scope", 1)
    assert fact.owner is not None
    assert fact.owner.cgroup.path == "/ci.slice"
    assert ledger.on_refusal is None


async def test_a_line_and_a_counter_about_one_refusal_are_one_fact(machine: Machine) -> None:
    machine.make("/ci.slice", pids_max="12")
    machine.make("/ci.slice/run.scope")
    ledger = Ledger()
    async with watching(CgroupEvents(machine.paths, NobodyKnown(), ledger=ledger)) as queue:
        machine.refuse("/ci.slice", 1)
        assert ledger.on_refusal is not None
        ledger.on_refusal(ForkRejected("/ci.slice/run.scope", 1, "the line"))
        fact = await following(queue)
        await asyncio.sleep(0.5)
        assert queue.empty()
    assert isinstance(fact, PidsFacts)
    assert fact.record == "the line"


@pytest.mark.parametrize("is_old", [False, True])
async def test_a_line_that_comes_after_the_counter_was_told_is_no_second_refusal(tmp_path: Path, is_old: bool) -> None:
    machine = Machine(tmp_path, is_old)
    machine.make("/ci.slice", pids_max="12", pids_current=12)
    machine.make("/ci.slice/run.scope", pids_current=12)
    ledger = Ledger()
    async with watching(CgroupEvents(machine.paths, NobodyKnown(), ledger=ledger)) as queue:
        machine.refuse("/ci.slice/run.scope" if is_old else "/ci.slice", 1)
        fact = await following(queue)
        assert ledger.on_refusal is not None
        ledger.on_refusal(ForkRejected("/ci.slice/run.scope", 1, "the line"))
        ledger.on_refusal(ForkRejected("/ci.slice/gone.scope", 1, "another line"))
        if is_old:  # its counter would have been one of its own
            another = await following(queue)
            assert isinstance(another, PidsFacts)
            assert another.cgroup.path == "/ci.slice/gone.scope"
        await asyncio.sleep(0.5)
        assert queue.empty()
    assert isinstance(fact, PidsFacts)
    assert fact.forks_refused == 1


async def test_without_inotify_the_source_is_degraded_with_a_remedy_and_still_looks(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make("/ci.slice")

    def exhausted(self: Inotify, most: int | None = None) -> None:
        raise Exhausted("inotify", "no instance left for this user", "raise fs.inotify.max_user_instances")

    monkeypatch.setattr(Inotify, "__init__", exhausted)
    source = CgroupEvents(machine.paths, NobodyKnown())
    async with watching(source) as queue:
        assert source.status.state is SourceState.DEGRADED
        assert source.status.remedy == "raise fs.inotify.max_user_instances"
        machine.make("/ci.slice/new.scope", pids_max="5")
        machine.refuse("/ci.slice/new.scope", 1)
        machine.refuse("/ci.slice", 0)
        rewrite(machine.cgroup / "ci.slice/pids.events", "max 1\n")
        source.refresh()
        fact = await following(queue)
    assert isinstance(fact, PidsFacts)
    assert fact.cgroup.path == "/ci.slice/new.scope"


async def test_without_watches_left_the_source_says_how_many_cgroups_it_sees_late(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make("/ci.slice")

    def exhausted(self: Inotify, path: str, mask: int) -> int:
        raise Exhausted("inotify", "no watch left for this user", "raise fs.inotify.max_user_watches")

    monkeypatch.setattr(Inotify, "watch", exhausted)
    source = CgroupEvents(machine.paths, NobodyKnown())
    async with watching(source):
        assert source.status.state is SourceState.DEGRADED
        assert source.status.remedy == "raise fs.inotify.max_user_watches"
        assert source.status.counters["unwatched"] >= 2


async def test_cgroups_that_come_and_go_without_a_watch_are_no_news_of_the_source_and_are_watched_when_there_is_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make("/ci.slice")
    real = Inotify.watch

    def exhausted(self: Inotify, path: str, mask: int) -> int:
        if path.endswith(".scope"):
            raise Exhausted("inotify", "no watch left for this user", "raise fs.inotify.max_user_watches")
        return real(self, path, mask)

    monkeypatch.setattr(Inotify, "watch", exhausted)
    source = CgroupEvents(machine.paths, NobodyKnown())
    async with watching(source):
        told: list[str] = []
        source.on_status = lambda status: told.append(status.reason)
        for number in range(3):
            directory = machine.make(f"/ci.slice/{number}.scope")
            await until(lambda number=number: source.status.counters.get("unwatched") == number + 1)
        assert len({numberless(reason) for reason in told}) == 1
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()
        await until(lambda: source.status.counters["unwatched"] == 2)
        monkeypatch.setattr(Inotify, "watch", real)
        source.refresh()
        await until(lambda: source.status.state is SourceState.ACTIVE)
        assert source.status.counters["unwatched"] == 0
        assert len({numberless(reason) for reason in told}) == 2


async def test_a_line_of_the_log_that_comes_while_a_thread_reads_the_tree_waits_for_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make("/ci.slice", pids_max="12", pids_current=12)
    reading, go_on = threading.Event(), threading.Event()
    meanwhile: list[str] = []
    real_count, real_mark = CgroupTree.count_dirty, CgroupTree.mark

    def count_dirty(self: CgroupTree) -> None:
        if threading.current_thread() is not threading.main_thread():
            reading.set()
            assert go_on.wait(5)
        real_count(self)
        reading.clear()

    def mark(self: CgroupTree, path: str, controller: str) -> None:
        if reading.is_set():
            meanwhile.append(path)
        real_mark(self, path, controller)

    monkeypatch.setattr(CgroupTree, "count_dirty", count_dirty)
    monkeypatch.setattr(CgroupTree, "mark", mark)
    ledger = Ledger()
    source = CgroupEvents(machine.paths, NobodyKnown(), ledger=ledger)
    async with watching(source) as queue:
        source.refresh()
        await until(reading.is_set)
        assert ledger.on_refusal is not None
        assert ledger.on_kill is not None
        ledger.on_refusal(ForkRejected("/ci.slice", 1, "the line"))
        ledger.on_kill("/ci.slice")
        machine.refuse("/ci.slice", 1)
        go_on.set()
        fact = await following(queue)
    assert isinstance(fact, PidsFacts)
    assert (fact.record, fact.forks_refused) == ("the line", 1)
    assert meanwhile == []


async def test_whoever_asks_again_and_again_gets_a_bounded_share_of_a_core(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make("/ci.slice", pids_max="12")
    looks = 0
    real = CgroupTree.mark_all

    def mark_all(self: CgroupTree) -> None:
        nonlocal looks
        looks += 1
        time.sleep(0.02)  # as ten thousand cgroups would
        real(self)

    source = CgroupEvents(machine.paths, NobodyKnown())
    async with watching(source):
        monkeypatch.setattr(CgroupTree, "mark_all", mark_all)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            source.refresh()
            await asyncio.sleep(0.002)
        assert 1 <= looks <= 4  # 20 ms of work, then 400 ms of rest
        machine.refuse("/ci.slice", 1)
        source.refresh()
        await until(lambda: source.counters.get("refused forks", 0) == 1)


async def test_a_thousand_cgroups_that_were_hit_hold_up_nobody(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.make("/ci.slice")
    for number in range(300):
        machine.make(f"/ci.slice/{number}.scope", pids_max="12")
        machine.refuse(f"/ci.slice/{number}.scope", 1)
    rewrite(machine.cgroup / "ci.slice/pids.events", "max 300\n")
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(others())
    source = CgroupEvents(machine.paths, NobodyKnown())
    facts = source.facts()
    for number in range(300):
        await anext(facts)
        if number == 0:
            turns = 0
    assert turns >= 300 // 8 - 1
    task.cancel()
    await facts.aclose()  # type: ignore[attr-defined]


async def test_a_source_that_is_started_again_tells_nothing_twice(machine: Machine) -> None:
    machine.make("/ci.slice", pids_max="12")
    source = CgroupEvents(machine.paths, NobodyKnown())
    async with watching(source) as queue:
        machine.refuse("/ci.slice", 2)
        assert await following(queue)
    source.set_status(SourceState.DEGRADED, "died", "restarts by itself")
    async with watching(source) as queue:
        machine.refuse("/ci.slice", 5)
        fact = await following(queue)
    assert isinstance(fact, PidsFacts)
    assert (fact.forks_refused, fact.forks_refused_total) == (3, 5)


async def test_an_overflown_queue_is_counted_and_everything_looked_at_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make("/ci.slice")
    real = Inotify.read

    def overflown(self: Inotify) -> list[InotifyEvent]:
        return [InotifyEvent(-1, IN_Q_OVERFLOW, "")] if real(self) else []

    source = CgroupEvents(machine.paths, NobodyKnown())
    async with watching(source) as queue:
        monkeypatch.setattr(Inotify, "read", overflown)
        machine.make("/ci.slice/new.scope", pids_max="5")
        machine.refuse("/ci.slice/new.scope", 1)
        rewrite(machine.cgroup / "ci.slice/pids.events", "max 1\n")
        fact = await following(queue)
    assert isinstance(fact, PidsFacts)
    assert fact.cgroup.path == "/ci.slice/new.scope"
    assert source.counters["overflows"] >= 1
    assert source.counters["rescans"] >= 1


@pytest.mark.parametrize("begins_with_it", [True, False])
async def test_a_cgroup_may_vanish_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins_with_it: bool) -> None:
    """Before each look at its files in turn: what was refused in it and in its parent is told all the same, and nothing twice."""
    moments = 0
    for moment in range(200):
        machine = Machine(tmp_path / f"{moment}")
        machine.make("/ci.slice", pids_max="12", pids_current=12)
        if begins_with_it:
            machine.make("/ci.slice/run.scope")
        looks = 0
        doomed = f"{machine.cgroup}/ci.slice/run.scope"

        def look(real: Callable[..., Any], moment: int = moment, doomed: str = doomed) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **more: Any) -> Any:
                nonlocal looks
                if any(doomed in str(argument) for argument in arguments) and looks <= moment:
                    looks += 1
                    if looks == moment + 1:
                        shutil.rmtree(doomed)
                return real(*arguments, **more)

            return wrapped

        with monkeypatch.context() as patched:
            for holder, name in ((os, "open"), (os, "stat"), (os, "scandir"), (Inotify, "watch")):
                patched.setattr(holder, name, look(getattr(holder, name)))
            source = CgroupEvents(machine.paths, Known(going(9)))
            async with watching(source) as queue:
                refused: list[PidsFacts] = []

                async def until_refused(total: int, queue: asyncio.Queue[Fact] = queue, refused: list[PidsFacts] = refused) -> None:
                    while sum(fact.forks_refused for fact in refused) < total:
                        fact = await following(queue)
                        if isinstance(fact, PidsFacts):
                            refused.append(fact)

                with contextlib.suppress(FileNotFoundError):
                    if not begins_with_it:
                        machine.make("/ci.slice/run.scope")
                    machine.refuse("/ci.slice/run.scope", 1)
                rewrite(machine.cgroup / "ci.slice/pids.events", "max 1\n")  # hierarchical: it counts those below too
                await until_refused(1)
                rewrite(machine.cgroup / "ci.slice/pids.events.local", "max 2\n")
                rewrite(machine.cgroup / "ci.slice/pids.events", "max 3\n")
                await until_refused(3)
                source.refresh()
                await asyncio.sleep(0.05)
                assert queue.empty() or not isinstance(queue.get_nowait(), PidsFacts)
        by_path = Counter({fact.cgroup.path: 0 for fact in refused})
        for fact in refused:
            by_path[fact.cgroup.path] += fact.forks_refused
        assert by_path == {"/ci.slice": 2, "/ci.slice/run.scope": 1}, (moment, looks, refused)
        if looks <= moment:
            break
        moments += 1
    assert moments >= 4


async def test_over_a_restart_what_was_told_is_not_told_again(machine: Machine) -> None:
    machine.make("/ci.slice")
    machine.make("/gone.slice")
    machine.refuse("/ci.slice", 2)
    machine.refuse("/gone.slice", 1)
    saved: dict[str, int] = {}
    first = [fact for fact in CgroupEvents(machine.paths, NobodyKnown(), on_counter=saved.__setitem__).snapshot()]
    assert {fact.cgroup.path for fact in first if isinstance(fact, PidsFacts) and fact.before_start} == {"/ci.slice", "/gone.slice"}
    for file in (machine.cgroup / "gone.slice").iterdir():
        file.unlink()
    (machine.cgroup / "gone.slice").rmdir()
    machine.refuse("/ci.slice", 5)
    source = CgroupEvents(machine.paths, NobodyKnown(), baseline=saved, on_counter=saved.__setitem__)
    async with watching(source) as queue:
        facts = [await following(queue), await following(queue)]
    (gone,) = (fact for fact in facts if isinstance(fact, SubjectGone))
    (refused,) = (fact for fact in facts if isinstance(fact, PidsFacts))
    assert gone.cgroup is not None
    assert gone.cgroup.path == "/gone.slice"
    assert (refused.forks_refused, refused.forks_refused_total, refused.before_start) == (3, 5, True)
    assert sorted(total for total in saved.values()) == [0, 5]


async def test_counters_of_another_boot_are_not_believed(machine: Machine, tmp_path: Path) -> None:
    machine.make("/ci.slice")
    machine.refuse("/ci.slice", 2)
    saved: dict[str, int] = {}
    list(CgroupEvents(machine.paths, NobodyKnown(), on_counter=saved.__setitem__).snapshot())
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("99999999-1111\n")
    (fact,) = CgroupEvents(machine.paths, NobodyKnown(), baseline=saved, on_counter=saved.__setitem__).snapshot()
    assert isinstance(fact, PidsFacts)
    assert fact.forks_refused == 2


def test_without_cgroups_the_source_is_unavailable_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("21 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    source = CgroupEvents(KernelPaths.below(str(tmp_path)), NobodyKnown())
    assert list(source.snapshot()) == []
    assert source.status.state is SourceState.UNAVAILABLE
    assert source.status.remedy


def test_without_the_controllers_the_source_is_unavailable_and_says_why(machine: Machine) -> None:
    (machine.cgroup / "cgroup.controllers").write_text("cpu\n")
    source = CgroupEvents(machine.paths, NobodyKnown())
    assert list(source.snapshot()) == []
    assert "controller" in source.status.reason
    assert source.status.state is SourceState.UNAVAILABLE


async def test_where_the_kernel_tells_everything_nothing_is_polled(machine: Machine) -> None:
    machine.make("/ci.slice")
    source = CgroupEvents(machine.paths, NobodyKnown())
    async with watching(source):
        await asyncio.sleep(0.05)
        assert source._sweep_at == source._hot_at == source._settle_at == cgroups._NEVER
