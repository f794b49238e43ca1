# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters of tests that failed: what container runtimes refuse leaves no trace, so the filters are read.

A process that ended has none any more. So they are read when the first process of a workload begins under filters, and asked
when it fails, or one that it started: filters are inherited. Where that was not in time, the parent that still lives is
read. Once for each cgroup and number of filters in a while: a run may start hundreds of processes.
"""
from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from triaged.errors import BusError, ConfigError, Gone, KernelError, TriagedError
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.kernel.seccomp_dump import read_seccomp_status
from triaged.model.facts import Fact, FilterFacts, Refusals
from triaged.model.filters import FilterDump
from triaged.model.process import ProcessIdentity
from triaged.sources.failures import Began, Failure, Failures
from triaged.sources.filter_reader import FilterReader
from triaged.sources.source import Source, SourceState

_ASKED_CAP = 256
_KEPT_CAP = 32
_KEPT_FILTERS_CAP = 128  # of at most 32 KiB each, mostly of less than 8
_COST = "what a filter refuses without a record (the default profiles of containers) is not found by itself"
_SERVICE = "run triaged as a service"
Judge = Callable[[FilterDump, ProcessIdentity], Refusals]


@dataclass(frozen=True)
class _Kept:
    process: ProcessIdentity
    dump: FilterDump


class SeccompFilters(Source):
    """Says what the filters of a failed process of a workload refuse, once in `again_after_s` for each cgroup.

    `reader` None: nobody reads filters here. There are at least `pause_s` between two that are read.
    """

    name: ClassVar[str] = "seccomp-filters"

    def __init__(
        self, paths: KernelPaths, failures: Failures, reader: FilterReader | None, judge: Judge, *,
        again_after_s: float = 60.0, pause_s: float = 1.0,
    ) -> None:
        super().__init__()
        self._paths = paths
        self._failures = failures
        self._reader = reader
        self._judge = judge
        self._again_after_s = again_after_s
        self._pause_s = pause_s
        self._read: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._asked: OrderedDict[tuple[str, int], float] = OrderedDict()
        self._dumps: OrderedDict[tuple[int, int], _Kept] = OrderedDict()
        self._last_read_s = float("-inf")
        self._trouble = ("", "")

    async def facts(self) -> AsyncIterator[Fact]:
        if self._reader is None:
            self._tell_status()
            return
        self._failures.on_blindness = self._tell_status
        self._failures.is_wanted = True
        self._trouble = self._reader.obstacle()
        self._tell_status()
        try:
            while True:
                event = await self._failures.take()
                if self._failures.dropped:
                    self.counters["dropped"] = self._failures.dropped
                if isinstance(event, Began):
                    await self._began(event)
                    continue
                self.count("failures")
                fact = await self._failed(event)
                if fact is not None:
                    yield fact
        finally:
            self._failures.is_wanted = False
            self._failures.on_blindness = lambda: None

    def snapshot(self) -> Iterator[Fact]:
        self.set_status(SourceState.DEGRADED, "filters are asked when a test fails; one look shows none", _SERVICE)
        yield from ()

    def _is_due(self, known: OrderedDict[tuple[str, int], float], event: Began | Failure) -> bool:
        """Whether that was not done for the cgroup and number of filters in the last `again_after_s`; takes note that it is."""
        key, now = (event.process.cgroup, event.filters), time.monotonic()
        last = known.pop(key, float("-inf"))
        is_due = now - last >= self._again_after_s
        known[key] = now if is_due else last
        if len(known) > _ASKED_CAP:
            known.popitem(last=False)
        return is_due

    async def _began(self, event: Began) -> None:
        if self._is_due(self._read, event) and await self._dump_of(event.process) is None:
            self._read.pop((event.process.cgroup, event.filters), None)

    async def _failed(self, failure: Failure) -> FilterFacts | None:
        who = failure.process
        if not self._is_due(self._asked, failure):
            self.count("not_asked_again")
            return None
        kept = self._dumps.get((who.pid, who.start_ticks)) or self._dumps.get((who.ppid, failure.starter_ticks))
        if kept is not None and 0 <= failure.filters < len(kept.dump.filters):
            kept = None  # it has added some since
        if kept is None:
            heir = await asyncio.to_thread(self._heir, failure)
            kept = await self._dump_of(heir) if heir is not None else None
        if kept is None:
            self.count("nobody_left")
            self._asked.pop((who.cgroup, failure.filters), None)  # the next one may be in time
            return None
        try:
            refusals = await asyncio.to_thread(self._judge, kept.dump, who)
        except (KernelError, ConfigError) as error:
            self._set_trouble(error)
            return None
        filters = kept.dump.filters
        return FilterFacts(
            who, failure.ending, failure.filters, kept.process, len(filters), sum(one.is_logged for one in filters), refusals,
            time.time_ns() // 1000,
        )

    async def _dump_of(self, process: ProcessIdentity) -> _Kept | None:
        """Reads the filters of a living process and keeps them for a while; None where it is gone, or they cannot be read."""
        assert self._reader is not None
        await asyncio.sleep(max(0.0, self._last_read_s + self._pause_s - time.monotonic()))
        self._last_read_s = time.monotonic()
        try:
            dump = await self._reader.read(process.pid, process.start_ticks)
        except Gone:
            return None
        except (KernelError, BusError) as error:
            self.count("not_read")
            self._set_trouble(error)
            return None
        self.count("read")
        self._set_trouble(None)
        kept = self._dumps[(process.pid, process.start_ticks)] = _Kept(process, dump)
        while len(self._dumps) > _KEPT_CAP or sum(len(one.dump.filters) for one in self._dumps.values()) > _KEPT_FILTERS_CAP:
            self._dumps.popitem(last=False)
        return kept

    def _heir(self, failure: Failure) -> ProcessIdentity | None:
        """The parent, if it lives and has filters: the failed process inherited all of those that the parent had then."""
        pid = failure.parent or failure.process.ppid
        try:
            who = read_process(self._paths, pid)
            mode, filters, _ = read_seccomp_status(self._paths, pid)
        except KernelError:
            return None
        # More than the failed one had: it has added some since, and they cannot be told apart.
        return None if mode != "filter" or 0 <= failure.filters < filters else who

    def _set_trouble(self, error: TriagedError | None) -> None:
        trouble = ("", "") if error is None else (str(error), error.remedy)
        if trouble != self._trouble:
            self._trouble = trouble
            self._tell_status()

    def _tell_status(self) -> None:
        if self._reader is None:
            self.set_status(SourceState.UNAVAILABLE, f"nobody reads filters here; {_COST}", _SERVICE)
        elif self._trouble[0]:
            self.set_status(SourceState.UNAVAILABLE, f"{self._trouble[0]}; {_COST}", self._trouble[1])
        elif self._failures.blindness:
            remedy = "triagectl seccomp dump PID shows it on request"
            self.set_status(SourceState.DEGRADED, f"{self._failures.blindness}; {_COST}", remedy)
        else:
            self.set_status(SourceState.ACTIVE)
