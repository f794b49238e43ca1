# SPDX-License-Identifier: Apache-2.0
"""Processes of workloads: where they run, with which resource limits, and how they end."""
from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import ClassVar

from triaged.errors import Gone, KernelError, NotPermitted
from triaged.kernel.ancestors import read_way
from triaged.kernel.capabilities import CAP_SYS_PTRACE, has_capability
from triaged.kernel.connector import Exit, ProcessConnector
from triaged.kernel.deaths import Witness
from triaged.kernel.namespaces import is_initial_namespace
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_exes, read_start_ticks
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.resource_limits import read_resource_limits
from triaged.kernel.seccomp_dump import read_seccomp_status
from triaged.kernel.unit_files import read_slice_origin
from triaged.model.cgroup import CgroupId
from triaged.model.facts import ExitFacts, Fact, PlacementFacts, ResourceLimitFacts, SubjectGone
from triaged.model.process import ProcessIdentity
from triaged.model.requirement import PlacementRequirement, ResourceLimitRequirement
from triaged.sources.burst import BurstReader
from triaged.sources.failures import Began, Failure, Failures
from triaged.sources.source import Source, SourceState

log = logging.getLogger(__name__)

_OTHERS_EACH_BATCH = 16  # processes of no workload whose cgroup is read, for a seccomp record that may come later
_PARENTS_EACH_BATCH = 16
_PROCESSES_EACH_STEP = 64  # of a look through /proc, about 1 ms: then others run
_PENDING_CAP = 8192
_WATCHED_CAP = 256  # pidfds: RLIMIT_NOFILE of a service is 1024 at first
_ENDED_CAP = 256
_EXIT_WITHIN_S = 1.0
_LOOK_PAUSE_S = 1.0
_UNWATCHED_EVERY_S = 60.0


class ProcessEvents(Source):
    """The process connector: executions and deaths, of which those of workloads become facts.

    An execution is read at once, because the process may be gone in the next millisecond. The end of a process of a workload
    is told by its pidfd (no event of the connector has to be let through for it). Where the connector is not to be had, /proc
    is looked through at the start and on `refresh`.
    """

    name: ClassVar[str] = "process-events"

    def __init__(
        self,
        paths: KernelPaths,
        table: ProcessTable,
        placements: Sequence[PlacementRequirement] = (),
        limits: Sequence[ResourceLimitRequirement] = (),
        failures: Failures | None = None,
    ) -> None:
        super().__init__()
        self._paths = paths
        self._table = table
        self._placements = tuple(placements)
        self._limits = tuple(limits)
        self._failures = failures or Failures()
        # By pid, with the number of seccomp filters and the parent's start time.
        self._filtered: dict[int, tuple[ProcessIdentity, int, int]] = {}
        self._pending: deque[Fact] = deque()
        self._wake = asyncio.Event()
        self._connector: ProcessConnector | None = None
        self._watched: dict[tuple[int, int], int] = {}
        self._ended: OrderedDict[int, tuple[ProcessIdentity, float]] = OrderedDict()
        self._look_wanted = False
        self._everything_wanted = False
        self._looked_at = float("-inf")
        self._asked_at = float("-inf")
        self._failure: KernelError | None = None
        self._is_somebody_unwatched = False
        self._witness = Witness(paths, table)

    async def facts(self) -> AsyncIterator[Fact]:
        self._failure = None
        self._wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        reader: BurstReader | None = None
        shortfall = ("", "")
        try:
            self._connector = ProcessConnector.open()
            reader = BurstReader(loop, self._connector.fileno(), self._drain)
        except KernelError as error:
            shortfall = (f"{error}; processes are seen only in a look through /proc, at the start and on request", error.remedy)
        self._failures.set_blindness("processes that fail are not seen (process-events)" if reader is None else "")
        try:
            self.refresh()
            while True:
                if self._look_wanted and loop.time() >= self._looked_at + _LOOK_PAUSE_S:
                    self._look_wanted = False
                    if not await self._look_through_proc(shortfall):
                        return
                    self._looked_at = loop.time()
                if self._is_somebody_unwatched and loop.time() >= self._asked_at + _UNWATCHED_EVERY_S:
                    self._ask_for_unwatched()
                    self._asked_at = loop.time()
                while self._pending:
                    yield self._pending.popleft()
                if self._failure is not None:
                    raise self._failure
                await self._wait(loop)
        finally:
            if reader is not None:
                reader.close()
            if self._connector is not None:
                self._connector.close()
                self._connector = None
            for descriptor in self._watched.values():
                loop.remove_reader(descriptor)
                os.close(descriptor)
            self._watched.clear()
            self._filtered.clear()

    def snapshot(self) -> Iterator[Fact]:
        try:
            for identity in self._table.rescan_steps():
                if identity is not None:
                    yield from self._facts_of(identity)
        except KernelError as error:
            self.set_status(SourceState.UNAVAILABLE, str(error), error.remedy)
            return
        self._tell_status(("", ""))

    def refresh(self) -> None:
        """Asks for a look through /proc; every live process of a workload yields its facts again."""
        self._look_wanted = self._everything_wanted = True
        self._wake.set()

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        timer, until = None, float("inf")
        if self._look_wanted:  # not yet: a storm that overruns the socket again and again must not fill the time with looking
            until = self._looked_at + _LOOK_PAUSE_S
        if self._is_somebody_unwatched:
            until = min(until, self._asked_at + _UNWATCHED_EVERY_S)
        if until < float("inf"):
            timer = loop.call_at(until, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._wake.clear()

    async def _look_through_proc(self, shortfall: tuple[str, str]) -> bool:
        self.count("rescans")
        everything, self._everything_wanted = self._everything_wanted, False
        try:
            for done, identity in enumerate(self._table.rescan_steps()):
                if identity is not None and (everything or (identity.pid, identity.start_ticks) not in self._watched):
                    self._found(identity)
                if done % _PROCESSES_EACH_STEP == _PROCESSES_EACH_STEP - 1:
                    await asyncio.sleep(0)
        except KernelError as error:
            if self._connector is None:
                self.set_status(SourceState.UNAVAILABLE, f"{error}; {shortfall[0]}", error.remedy or shortfall[1])
                return False
            shortfall = (f"{error}; processes that began before triaged are not seen", error.remedy)
        for identity in self._table.forget_dead():
            self._put(SubjectGone(process=identity, time_usec=_now_usec()))
        self._tell_status(shortfall)
        return True

    def _ask_for_unwatched(self) -> None:
        """Whether those still live of whom nothing would tell, and a watch for them where there is one now."""
        self._is_somebody_unwatched, self.counters["unwatched"] = False, 0
        for identity in self._table.forget_dead():
            self._put(SubjectGone(process=identity, time_usec=_now_usec()))
        for identity in self._table.workload_processes():
            self._watch(identity)

    def _tell_status(self, shortfall: tuple[str, str]) -> None:
        self.counters["forgotten"] = self._table.forgotten
        if shortfall[0]:
            self.set_status(SourceState.DEGRADED, *shortfall)
        elif self._table.unreadable_processes and not self._may_look_at_all():
            self.set_status(
                SourceState.DEGRADED,
                f"the executables of {self._table.unreadable_processes} processes may not be read; they are not recognised",
                "run triaged as a service, or as root",
            )
        elif self._placements and not self._sees_slices():
            self.set_status(SourceState.ACTIVE, "slices are not judged: no systemd, or not the whole cgroup tree in sight")
        else:
            self.set_status(SourceState.ACTIVE)

    def _drain(self) -> bool:
        assert self._connector is not None
        try:
            batch = self._connector.drain()
        except KernelError as error:
            self._failure = error
            self._wake.set()
            return False
        if batch.malformed:
            if not self.counters.get("malformed"):  # the first is shown, all are counted
                log.warning("process connector: message that cannot be parsed, ignoring")
            self.count("malformed", batch.malformed)
        if batch.lost:
            self._lost()
        if batch.executed:
            self.count("executions", len(batch.executed))
            self._executed(batch.executed)
        for number, exit_event in enumerate(batch.killed):
            self._killed(exit_event, may_look=number < _PARENTS_EACH_BATCH)
            self._failed(exit_event.pid, exit_event.signal, exit_event.parent)
        for failed in batch.failed:
            self._failed(*failed)
        return bool(batch.executed or batch.killed or batch.failed or batch.lost or batch.malformed)

    def _executed(self, batch: list[int]) -> None:
        pids = dict.fromkeys(batch)
        alive, refused = read_exes(self._paths, pids)
        if refused:
            self.count("not_permitted", refused)
        gone = len(pids) - len(alive) - refused
        others = _OTHERS_EACH_BATCH
        for pid, exe in alive:
            try:
                if self._table.may_be_workload(exe):
                    identity = self._table.read(pid)
                    if identity.workload is not None:
                        self.count("workload_processes")
                        self._found(identity)
                elif others > 0:
                    others -= 1
                    self._table.remember_executed(pid, exe)
            except Gone:
                gone += 1
            except NotPermitted:
                self.count("not_permitted")
            except KernelError:
                self.count("malformed")
        if gone:
            self.count("gone_before_read", gone)

    def _killed(self, event: Exit, may_look: bool) -> None:
        self.count("killed_by_signal")
        self._table.remember_killed(event.pid, event.parent, may_look)
        identity, ended_at = self._ended.pop(event.pid, (self._table.last_known(event.pid), 0.0))
        if identity is None or identity.workload is None:
            return
        # The pid of one that ended otherwise, long ago, may be another's now.
        if (ended_at and time.monotonic() - ended_at < _EXIT_WITHIN_S) or (event.pid, identity.start_ticks) in self._watched:
            evidence = self._witness.end(identity) if event.signal == signal.SIGKILL else None
            self._put(ExitFacts(identity, event.signal, event.dumped_core, _now_usec(), evidence))

    def _look_for_filters(self, identity: ProcessIdentity) -> None:
        """Notes that a process runs under seccomp filters: then the kernel is asked to tell of processes that fail."""
        if not self._failures.is_wanted or self._connector is None:
            return
        try:
            mode, filters, _ = read_seccomp_status(self._paths, identity.pid)
        except KernelError:
            return
        if mode != "filter":
            self._forget_filtered(identity)
            return
        if len(self._filtered) >= _WATCHED_CAP and identity.pid not in self._filtered:
            self.count("unwatched")
            return
        try:
            starter_ticks = read_start_ticks(self._paths, identity.ppid)
        except KernelError:
            starter_ticks = 0
        is_first = not self._filtered
        self._filtered[identity.pid] = (identity, filters, starter_ticks)
        if is_first:
            self._connector.let_failures_through(True)
        self._failures.put(Began(identity, filters))

    def _forget_filtered(self, identity: ProcessIdentity) -> None:
        known = self._filtered.get(identity.pid)
        if known is None or known[0].start_ticks != identity.start_ticks:
            return
        del self._filtered[identity.pid]
        if not self._filtered and self._connector is not None:
            self._connector.let_failures_through(False)

    def _failed(self, pid: int, status: int, parent: int) -> None:
        known = self._filtered.get(pid)
        if known is None:
            return
        self.count("failed_under_filters")
        self._failures.put(Failure(known[0], status, parent, known[1], known[2]))
        self._forget_filtered(known[0])

    def _lost(self) -> None:
        self.count("overruns")
        assert self._connector is not None
        try:
            self.counters["dropped"] = self._connector.read_drops(self._paths)
        except KernelError:
            self.count("drops_unread")
        self._look_wanted = True
        self._wake.set()

    def _found(self, identity: ProcessIdentity) -> None:
        self._witness.begin(identity)
        self._look_for_filters(identity)
        for fact in self._facts_of(identity):
            self._put(fact)
        self._watch(identity)

    def _facts_of(self, identity: ProcessIdentity) -> Iterator[Fact]:
        if identity.workload is None:
            return
        name, now = identity.workload.workload, _now_usec()
        placements = [want for want in self._placements if not want.workloads or name in want.workloads]
        if placements and identity.cgroup and self._sees_slices():
            origin = read_slice_origin(self._paths, identity.cgroup)
            for placement in placements:
                is_forbidden = placement.forbids(CgroupId(identity.cgroup))
                way = read_way(self._paths, self._table, identity) if is_forbidden else None
                yield PlacementFacts(identity, placement, origin, way, time_usec=now)
        wanted = [want for want in self._limits if not want.workloads or name in want.workloads]
        if not wanted:
            return
        try:
            limits = read_resource_limits(self._paths, identity.pid)
        except Gone:
            self.count("gone_before_read")
            return
        except KernelError:
            self.count("limits_unread")
            return
        for want in wanted:
            limit = limits.get(want.resource)
            if limit is not None:
                yield ResourceLimitFacts(identity, want.resource, limit.soft, limit.hard, want, time_usec=now)

    def _may_look_at_all(self) -> bool:
        try:
            return has_capability(self._paths, CAP_SYS_PTRACE)
        except KernelError:
            return False

    def _sees_slices(self) -> bool:
        # Without systemd there are no slices, and in a container's cgroup namespace every path begins at "/".
        return os.path.isdir(f"{self._paths.run}/systemd/system") and is_initial_namespace(self._paths, "cgroup")

    def _watch(self, identity: ProcessIdentity) -> None:
        key = (identity.pid, identity.start_ticks)
        if key in self._watched:
            return
        if len(self._watched) >= _WATCHED_CAP:
            self._note_unwatched()
            return
        try:
            descriptor = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            self._process_ended(identity)
            return
        except OSError:  # an old kernel, or no descriptor left
            self._note_unwatched()
            return
        if not self._table.is_alive(identity):  # the pid was reused before it was opened
            os.close(descriptor)
            self._process_ended(identity)
            return
        self._watched[key] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._on_ended, identity)

    def _note_unwatched(self) -> None:
        if not self._is_somebody_unwatched:
            self._asked_at = asyncio.get_running_loop().time()
        self._is_somebody_unwatched = True
        self.count("unwatched")

    def _on_ended(self, identity: ProcessIdentity) -> None:
        descriptor = self._watched.pop((identity.pid, identity.start_ticks))
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        self._process_ended(identity)

    def _process_ended(self, identity: ProcessIdentity) -> None:
        known = self._table.last_known(identity.pid)
        if known is not None and known.start_ticks == identity.start_ticks:
            identity = known  # it may have executed something else since
        self._table.ended(identity)
        if identity.pid in self._filtered:  # its exit event may still be waiting in a batch
            asyncio.get_running_loop().call_later(_EXIT_WITHIN_S, self._forget_filtered, identity)
        # The kernel wakes the pidfd before it sends the exit event, which may be waiting in a batch besides.
        self._ended[identity.pid] = (identity, time.monotonic())
        if len(self._ended) > _ENDED_CAP:
            self._ended.popitem(last=False)
        self._put(SubjectGone(process=identity, time_usec=_now_usec()))

    def _put(self, fact: Fact) -> None:
        if len(self._pending) >= _PENDING_CAP:
            self._pending.popleft()
            self.count("facts_dropped")
        self._pending.append(fact)
        self._wake.set()


def _now_usec() -> int:
    return time.time_ns() // 1000
