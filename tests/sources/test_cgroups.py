# SPDX-License-Identifier: Apache-2.0
"""The source on a fixture tree of version 2: its status, what it does without inotify, and what it keeps over a restart."""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from triaged.errors import Exhausted
from triaged.kernel.inotify import IN_Q_OVERFLOW, Inotify, InotifyEvent
from triaged.kernel.kernel_log import ForkRejected
from triaged.kernel.paths import KernelPaths
from triaged.model.facts import Fact, OomFacts, PidsFacts, SubjectGone
from triaged.model.process import ProcessIdentity
from triaged.sources import cgroups
from triaged.sources.cgroup_facts import full_limit
from triaged.sources.cgroups import CgroupEvents
from triaged.sources.ledger import Ledger
from triaged.sources.source import SourceState


class NobodyKnown:
    def identify(self, pid: int) -> ProcessIdentity | None:
        return None


class Machine:
    """A machine with version 2, Linux 6.11 or newer unless `is_old`: then pids.events counts where the task was."""

    def __init__(self, root: Path, is_old: bool = False) -> None:
        self.cgroup = root / "sys/fs/cgroup"
        self.is_old = is_old
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


async def test_without_inotify_the_source_is_degraded_with_a_remedy_and_still_looks(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.make("/ci.slice")

    def exhausted(self: Inotify) -> None:
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
