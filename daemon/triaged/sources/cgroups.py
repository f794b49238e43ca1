# SPDX-License-Identifier: Apache-2.0
"""Forks that a pids.max refused, and tasks that the OOM killer ended, from the counters of all cgroups.

Where hierarchical counters exist (version 2; for pids since Linux 6.11) the kernel wakes this source and nothing is ever polled.
A local counter whose file is not in the inode cache changes without a notification, and version 1's pids.events
never notifies since 6.11. There the kernel log's line for the first refusal of a cgroup is the wake-up;
after it the cgroup is looked at once a second while refusals go on or its limit is 80 % full, every 10 s while it holds
tasks; and all local counters once a minute. Without the kernel log all are looked at once a second, or seldom enough to cost
2 % of a core.
"""
from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.cgroups import ancestry
from triaged.kernel.files import read_text
from triaged.kernel.inotify import IN_MODIFY, IN_Q_OVERFLOW, Inotify, InotifyEvent, read_watch_limit
from triaged.kernel.kernel_log import ForkRejected
from triaged.kernel.paths import KernelPaths
from triaged.model.cgroup import CgroupId
from triaged.model.facts import Fact, SubjectGone
from triaged.model.limit import Unknown
from triaged.sources.burst import BurstReader
from triaged.sources.cgroup_facts import FactMaker, Identifies, now_usec
from triaged.sources.cgroup_tree import CgroupTree, Increase
from triaged.sources.ledger import Ledger
from triaged.sources.memory_history import MemoryHistory
from triaged.sources.source import Source, SourceState

_CONTROLLERS = ("pids", "memory")
_SETTLE_S = 0.05
_SETTLE_SHARE = 20  # after reading downwards for t, wait 20 t: at most 5 % of a core
_SWEEP_SHARE = 50
_SWEEP_S = 60.0
_SWEEP_WITHOUT_LOG_S = 1.0
_HOT_S = 1.0
_WARM_S = 10.0
_HOT_FOR_S = 60.0
_RECORD_WAIT_S = 0.3
_RECORD_KEEP_S = 2.0
_RESCAN_PAUSE_S = 1.0
_LOOK_PAUSE_S = 0.1
_LOOK_SHARE = 10
_EVENTS_CAP = 65536
_EVENTS_EACH_STEP = 256
_FACTS_EACH_STEP = 8
_COUNTED_AT_ONCE = 256  # counters, about 3 ms
_REFUSALS_CAP = 256
_KILLED_IN_CAP = 4096
_MEMBER_READS_EACH_DRAIN = 32
_BURST_S = 0.005  # what is to be read of a cgroup that vanishes is gone sooner than that of a process
_NEVER = float("inf")
_WATCHES_SHARE = 0.75  # of what the user may have: as root, others need watches too


@dataclass
class _Refusal:
    """A line of the kernel log, whether the counters it is about were marked, and whether one said the same."""

    record: ForkRejected
    taken_at: float
    is_marked: bool = False
    is_told: bool = False


class CgroupEvents(Source):
    """The pids and memory counters of all cgroups, on version 1, version 2 and the hybrid layout.

    `baseline` is what `on_counter` was given before the restart; `on_counter(key, total)` says what to keep, 0 to forget the key.
    Counters: `events`, `overflows` (the kernel's event queue was full), `rescans`, `unwatched` (no inotify watch left for so many
    cgroups), `untracked cgroups`, `cgroups gone before they were read`, `counters that fell`, `malformed`, `unreadable`,
    `refused forks`, `oom kills`.
    """

    name: ClassVar[str] = "cgroup-events"

    def __init__(
        self,
        paths: KernelPaths,
        table: Identifies,
        baseline: Mapping[str, int] | None = None,
        on_counter: Callable[[str, int], None] | None = None,
        ledger: Ledger | None = None,
        history: MemoryHistory | None = None,
    ) -> None:
        super().__init__()
        self._paths = paths
        self._table = table
        self._baseline = dict(baseline or {})
        self._keep_counter = on_counter or (lambda key, total: None)
        self._ledger = ledger or Ledger()
        self._history = history or MemoryHistory()
        self._layout = CgroupLayout(())
        self._trees: list[CgroupTree] = []
        self._inotify: Inotify | None = None
        self._watch_limit: int | Unknown = Unknown("not read yet")
        self._events: list[InotifyEvent] = []
        self._is_overflown = False
        self._wake = asyncio.Event()
        self._look_wanted = False
        self._look_at = _NEVER
        self._refusals: list[_Refusal] = []
        self._killed_in: set[str] = set()
        # Rises that were told before a line about them came: the kernel writes the line first, but wakes who reads it later.
        self._told_alone: deque[tuple[Increase, float]] = deque(maxlen=_REFUSALS_CAP)
        self._settle_at = _NEVER
        self._settle_not_before = 0.0
        self._hot_at = _NEVER
        self._rose_at = -_NEVER
        self._sweep_at = _NEVER
        self._swept_at = 0.0
        self._sweep_took = 0.0
        self._rescanned_at = -_NEVER
        self._boot = ""

    # -- watching

    async def facts(self) -> AsyncIterator[Fact]:
        self._wake = asyncio.Event()
        self._events, self._is_overflown, self._refusals, self._killed_in = [], False, [], set()
        self._settle_at = self._hot_at = self._sweep_at = _NEVER
        burst: BurstReader | None = None
        shortfall: KernelError | None = None
        try:
            try:
                self._watch_limit = read_watch_limit(self._paths)
                limit = self._watch_limit
                self._inotify = Inotify(int(limit * _WATCHES_SHARE) if isinstance(limit, int) else None)
            except KernelError as error:
                shortfall = error
            if not await asyncio.to_thread(self._make_trees):
                return
            if self._inotify is not None:
                burst = BurstReader(asyncio.get_running_loop(), self._inotify.fileno(), self._drain, _BURST_S)
            for tree in self._trees:
                await asyncio.to_thread(tree.scan)
                if "memory" in tree.controllers:
                    tree.on_members, tree.on_vanished = self._ledger.note_members, self._ledger.note_vanished
            self._swept_at = time.monotonic()
            self._ledger.on_kill, self._ledger.on_refusal = self._hint_kill, self._hint_refusal
            self._tell_status(shortfall)
            for fact in self._forget_others():
                yield fact
            while True:
                for number, fact in enumerate(self._take_facts(), 1):
                    yield fact
                    if number % _FACTS_EACH_STEP == 0:  # each reads some files: a thousand of them must not hold up others
                        await asyncio.sleep(0)
                self._plan()
                await self._sleep()
                await self._handle()
                self._tell_status(shortfall)
        finally:
            self._ledger.on_kill = self._ledger.on_refusal = None
            if burst is not None:
                burst.close()
            if self._inotify is not None:
                self._inotify.close()
                self._inotify = None

    def snapshot(self) -> Iterator[Fact]:
        if not self._make_trees():
            return
        for tree in self._trees:
            tree.scan()
        self._tell_status(None)
        yield from self._take_facts()

    def refresh(self) -> None:
        self._look_wanted = True
        self._wake.set()

    def _make_trees(self) -> bool:
        """Finds the hierarchies. False, with the status set, where there is nothing to watch."""
        self._trees = []
        try:
            self._layout = read_layout(self._paths)
        except KernelError as error:
            self.set_status(SourceState.UNAVAILABLE, f"{error}: limits of cgroups are not seen", error.remedy)
            return False
        try:
            self._boot = read_text(f"{self._paths.proc}/sys/kernel/random/boot_id", 64).strip()
        except KernelError:
            self._boot = ""
        of: dict[str, list[str]] = {}
        for controller in _CONTROLLERS:
            hierarchy = self._layout.holding(controller)
            if hierarchy is not None:
                of.setdefault(hierarchy.name, []).append(controller)
        for hierarchy in self._layout.hierarchies:
            if hierarchy.name in of:
                self._trees.append(CgroupTree(hierarchy, of[hierarchy.name], self._inotify, self.count, self._saved))
        if not self._trees:
            self.set_status(
                SourceState.UNAVAILABLE, "no cgroup hierarchy has the pids or the memory controller: their limits are not seen",
                "boot without cgroup_disable=memory, or enable the controllers in cgroup.subtree_control",
            )
        return bool(self._trees)

    def _drain(self) -> bool:
        if self._inotify is None:
            return False
        try:
            events = self._inotify.read()
        except KernelError:
            self.count("malformed")
            self._is_overflown = True
            self._wake.set()
            return True
        if events:
            self.count("events", len(events))
            self._note_members(events)
            if len(self._events) < _EVENTS_CAP:
                self._events += events
            else:
                self._is_overflown = True
            self._wake.set()
        return bool(events)

    def _note_members(self, events: list[InotifyEvent]) -> None:
        """Reads at once who was put into a cgroup: it may be dead, and the cgroup gone, a moment later."""
        tree = self._tree_of("memory")
        if tree is None:
            return
        told = (event for event in events if event.mask & IN_MODIFY and event.name in ("cgroup.procs", "tasks"))
        watches = dict.fromkeys(event.watch for event in told)
        for watch in list(watches)[-_MEMBER_READS_EACH_DRAIN:]:
            tree.note_members(watch)

    async def _sleep(self) -> None:
        told = (self._ledger.next_due() or _NEVER, self._next_refusal())
        until = min(self._settle_at, self._hot_at, self._look_at, self._sweep_at, *told)
        timer: asyncio.TimerHandle | None = None
        if until != _NEVER:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the wake-up.
            timer = asyncio.get_running_loop().call_later(max(0.0, until - time.monotonic()), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._wake.clear()

    async def _handle(self) -> None:
        """Brings the trees up to date with what was told since, and with the clock."""
        events, self._events = self._events, []
        for begin in range(0, len(events), _EVENTS_EACH_STEP):
            for event in events[begin : begin + _EVENTS_EACH_STEP]:
                if event.mask & IN_Q_OVERFLOW:
                    self.count("overflows")
                    self._is_overflown = True
                else:
                    any(tree.take(event) for tree in self._trees)
            await asyncio.sleep(0)
        now = time.monotonic()
        if self._is_overflown and now - self._rescanned_at >= _RESCAN_PAUSE_S:
            self._is_overflown = False
            self.count("rescans")
            for tree in self._trees:
                await asyncio.to_thread(tree.scan)
            self._rescanned_at = time.monotonic()
        is_wanted = self._look_wanted and now >= self._swept_at + _SETTLE_SHARE * self._sweep_took
        if now >= min(self._sweep_at, self._look_at) or is_wanted:
            self._look_wanted, self._look_at = False, _NEVER
            for tree in self._trees:
                if self._inotify is None or tree.unwatched:
                    await asyncio.to_thread(tree.scan)
                else:
                    tree.mark_all()
                await asyncio.to_thread(tree.count_dirty)
            self._swept_at = time.monotonic()
            self._sweep_took = self._swept_at - now
            self._ledger.note_living_read(now)
        if now >= self._hot_at:
            self._hot_at = _NEVER
            for tree in self._polled_trees():
                tree.mark_hot()
        self._mark_hinted(now)
        for tree in self._trees:
            if tree.dirty > _COUNTED_AT_ONCE:
                await asyncio.to_thread(tree.count_dirty)
            else:
                tree.count_dirty()
        if now >= self._settle_at:
            self._settle_at = _NEVER
            begun = time.monotonic()
            for tree in self._trees:
                if tree.unsettled:
                    await asyncio.to_thread(tree.settle)
            ended = time.monotonic()
            self._settle_not_before = ended + _SETTLE_SHARE * (ended - begun)

    def _plan(self) -> None:
        """When to look again although nothing was told. Never, where the kernel tells everything."""
        now = time.monotonic()
        if self._settle_at == _NEVER and any(tree.unsettled for tree in self._trees):
            self._settle_at = max(now + _SETTLE_S, self._settle_not_before)
        if self._hot_at == _NEVER and any(tree.hot for tree in self._polled_trees()):
            self._hot_at = now + self._hot_interval(now)
        if self._inotify is None or any(tree.unwatched or tree.has_local_counters() for tree in self._trees):
            least = _SWEEP_S if self._ledger.log_is_read else _SWEEP_WITHOUT_LOG_S
            self._sweep_at = self._swept_at + max(least, _SWEEP_SHARE * self._sweep_took)
        else:
            self._sweep_at = _NEVER
        if self._look_wanted:  # not yet: whoever asks again and again gets a bounded share of a core
            self._sweep_at = min(self._sweep_at, max(now, self._swept_at + _SETTLE_SHARE * self._sweep_took))
        if self._is_overflown:
            self._settle_at = min(self._settle_at, max(now, self._rescanned_at + _RESCAN_PAUSE_S))

    def _polled_trees(self) -> list[CgroupTree]:
        """The trees whose local counters may rise untold: version 1's, until the kernel is seen to tell of them."""
        return [tree for tree in self._trees if not tree.hierarchy.is_v2 and not set(tree.controllers) <= tree.told]

    def _hot_interval(self, now: float) -> float:
        if now - self._rose_at < _HOT_FOR_S:
            return _HOT_S
        interval = _SWEEP_S
        for tree in self._polled_trees():
            for node, controller in tree.hot:
                for limit in ancestry(self._layout, controller, tree.path(node)):
                    if isinstance(limit.limit, int) and isinstance(limit.used, int):
                        if limit.used * 5 >= limit.limit * 4:
                            return _HOT_S
                        if limit.used:
                            interval = _WARM_S
        return interval

    # -- hints of the kernel log: noted at once, taken to the trees by this source's own task, which may have a thread at work there

    def _tree_of(self, controller: str) -> CgroupTree | None:
        return next((tree for tree in self._trees if controller in tree.controllers), None)

    def _hint_kill(self, path: str) -> None:
        if len(self._killed_in) >= _KILLED_IN_CAP:
            self.count("dropped")
            return
        self._killed_in.add(path)
        self._wake.set()

    def _hint_refusal(self, record: ForkRejected) -> None:
        if len(self._refusals) >= _REFUSALS_CAP:
            self.count("dropped")
            return
        now = time.monotonic()
        told = [each for each in self._told_alone if now < each[1] + _RECORD_KEEP_S and _speaks_of(record, each[0])]
        for each in told:
            if not each[0].is_hierarchical:  # there is one line only for each cgroup; the next is another cgroup's of that name
                self._told_alone.remove(each)
        self._refusals.append(_Refusal(record, now, is_marked=bool(told), is_told=bool(told)))
        self._wake.set()

    def _mark_refusal(self, record: ForkRejected) -> None:
        tree = self._tree_of("pids")
        if tree is not None:
            for path in tree.beginning_with(record.path) if record.is_cut else (record.path,):
                tree.mark(path, "pids")

    def _mark_hinted(self, now: float) -> None:
        tree = self._tree_of("memory")
        killed_in, self._killed_in = self._killed_in, set()
        if tree is not None:
            for path in killed_in:
                if path:
                    tree.mark(path, "memory")
                    continue
                tree.mark_newest("memory")
                # Where it was is found by elimination, which needs every counter; a storm must not fill the time with looking.
                self._look_at = max(now, self._swept_at + max(_LOOK_PAUSE_S, _LOOK_SHARE * self._sweep_took))
        for refusal in self._refusals:
            # At once, and again: the last look before the line alone is believed.
            if not refusal.is_marked or (not refusal.is_told and now >= refusal.taken_at + _RECORD_WAIT_S):
                refusal.is_marked = True
                self._mark_refusal(refusal.record)

    def _next_refusal(self) -> float:
        return min((each.taken_at + _RECORD_WAIT_S for each in self._refusals if not each.is_told), default=_NEVER)

    def _record_for(self, increase: Increase) -> ForkRejected | None:
        """The newest line about a fork that this rise counts; it counts as told."""
        found = None
        for refusal in self._refusals:
            if _speaks_of(refusal.record, increase):
                refusal.is_told = True
                found = refusal.record
        if found is None and not increase.before_start:
            self._told_alone.append((increase, time.monotonic()))
        return found

    # -- facts

    def _take_facts(self) -> Iterator[Fact]:
        make = FactMaker(self._paths, self._layout, self._table, self._history)
        for tree in self._trees:
            increases, tree.increases = tree.increases, []
            for increase in increases:
                if not increase.is_lost:
                    self._on_counter(self._key(increase.cgroup, increase.own_file), increase.total)
                if not increase.before_start:
                    self._rose_at = time.monotonic()
                    if self._polled_trees():
                        self._hot_at = min(self._hot_at, self._rose_at + _HOT_S)
                if increase.controller == "pids":
                    self.count("refused forks", increase.by)
                    yield make.refusals(increase, self._record_for(increase))
                else:
                    self.count("oom kills", increase.by)
                    self._ledger.take_count(increase.cgroup.path, increase.by, increase, increase.is_lost)
        for owed in self._ledger.due():
            if isinstance(owed.source, Increase):
                yield make.kills(owed.source, owed.kills, owed.line)
        yield from self._untold_refusals(make)
        for tree in self._trees:
            gone, tree.gone = tree.gone, []
            for cgroup, was_hit in gone:
                if was_hit:
                    self._forget(cgroup)
                # Findings of other sources end with a cgroup too. A unit's cgroups go together: one tree tells for all.
                if was_hit or tree is self._trees[0]:
                    yield SubjectGone(cgroup=cgroup, time_usec=now_usec())

    def _untold_refusals(self, make: FactMaker) -> Iterator[Fact]:
        now = time.monotonic()
        untold = [each for each in self._refusals if not each.is_told and now >= each.taken_at + _RECORD_WAIT_S]
        for refusal in untold:
            refusal.is_told = True
        self._refusals = [each for each in self._refusals if now < each.taken_at + _RECORD_KEEP_S]
        for refusal in untold:
            self.count("refused forks")
            yield make.refusal(refusal.record)

    # -- what is kept over a restart

    def _key(self, cgroup: CgroupId, file: str) -> str:
        return f"{self._boot}:{cgroup.hierarchy}:{cgroup.inode}:{file.rsplit('/', 1)[-1]}:{cgroup.path}"

    def _on_counter(self, key: str, total: int) -> None:
        # Kept here too: this source may be started anew with the daemon still running, and what was told stays told.
        if total:
            self._baseline[key] = total
        else:
            self._baseline.pop(key, None)
        self._keep_counter(key, total)

    def _saved(self, cgroup: CgroupId, file: str) -> int:
        return self._baseline.get(self._key(cgroup, file), 0)

    def _forget(self, cgroup: CgroupId) -> None:
        end = f":{cgroup.path}"
        begin = f"{self._boot}:{cgroup.hierarchy}:{cgroup.inode}:"
        for file in ("pids.events", "pids.events.local", "memory.events", "memory.events.local", "memory.oom_control"):
            self._on_counter(begin + file + end, 0)

    def _forget_others(self) -> Iterator[Fact]:
        """Forgets what was saved of cgroups that are no more."""
        for key in list(self._baseline):
            boot, _, rest = key.partition(":")
            hierarchy, _, rest = rest.partition(":")
            inode, _, rest = rest.partition(":")
            _, _, path = rest.partition(":")
            trees = (each for each in self._trees if (each.hierarchy.is_v2 if hierarchy == "" else hierarchy in each.controllers))
            tree = next(trees, None)
            node = tree.find(path) if tree else None
            if tree is None or node is None or tree.path(node) != path:
                yield SubjectGone(cgroup=CgroupId(path, int(inode) if inode.isdecimal() else 0, hierarchy), time_usec=now_usec())
            elif boot == self._boot and str(node.inode) == inode:
                continue
            self._on_counter(key, 0)

    def _tell_status(self, shortfall: KernelError | None) -> None:
        unwatched = sum(tree.unwatched for tree in self._trees)
        if unwatched or "unwatched" in self.counters:
            self.counters["unwatched"] = unwatched
        if self._inotify is not None:
            self.counters["watches"] = len(self._inotify)
        if shortfall is not None:
            self.set_status(SourceState.DEGRADED, f"{shortfall}: cgroups are looked at now and then", shortfall.remedy)
        elif unwatched:
            self.set_status(
                SourceState.DEGRADED,
                f"no inotify watch was left for {unwatched} cgroups: what happens there is seen late "
                f"({self.counters.get('watches', 0)} are taken; user {os.getuid()} may have {self._watch_limit}, "
                f"{_WATCHES_SHARE:.0%} of them for this)",
                "raise fs.inotify.max_user_watches",
            )
        elif any(tree.has_local_counters() for tree in self._trees) and self._inotify is not None and not self._ledger.log_is_read:
            self.set_status(
                SourceState.DEGRADED, "this kernel does not tell of every counter, and the kernel log is not read: all are polled",
                "give triaged the kernel log (CAP_SYSLOG)",
            )
        else:
            self.set_status(SourceState.ACTIVE)


def _speaks_of(record: ForkRejected, increase: Increase) -> bool:
    """Whether a line of the kernel log is about forks that a counter's rise counts. A local counter counts where the task was."""
    path, named = increase.cgroup.path, record.path
    if named == path or (record.is_cut and path.startswith(named)):
        return True
    return increase.is_hierarchical and named.startswith(path if path.endswith("/") else path + "/")
