# SPDX-License-Identifier: Apache-2.0
"""The cgroups of workloads while they run: what slows a process down without refusing it anything.

A used-up CPU quota notifies nobody, nor does pressure below a limit. So the counters are looked at while processes of
workloads live: at once, after 1 s, and then at most every 10 s; at once too when one begins in another cgroup. In between
the memory in use is sampled once a second, of cgroups with a finite memory limit only. Where no process of a workload lives
there is no timer.
"""
from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import ClassVar

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.memory_detail import limited_paths, read_memory_sample
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import parse_cgroups, read_cgroup_record
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import Fact
from triaged.model.memory import MemorySample
from triaged.model.process import ProcessIdentity
from triaged.sources.cgroup_stalls import StallLooks
from triaged.sources.memory_history import CGROUPS_CAP, SAMPLE_EVERY_S, MemoryHistory
from triaged.sources.source import Source, SourceState
from triaged.sources.throttling import QuotaLooks

FIRST_LOOK_AFTER_S = 1.0
LOOK_EVERY_S = 10.0
_PROCESSES_EACH_LOOK = 256
# Scopes may come and go many times a second: so long between two looks at least, and at most 5 % of a core.
_LOOK_PAUSE_S = 0.25
_LOOK_SHARE = 20


class WorkloadCgroups(Source):
    """Looks at the cgroups of live processes of workloads, and of their ancestors."""

    name: ClassVar[str] = "workload-cgroups"

    def __init__(self, paths: KernelPaths, table: ProcessTable, history: MemoryHistory | None = None) -> None:
        super().__init__()
        self._paths = paths
        self._table = table
        self._history = history or MemoryHistory()
        self._limited: tuple[str, ...] = ()
        self._quotas = QuotaLooks(paths)
        self._stalls = StallLooks(paths)
        self._wake = asyncio.Event()

    def refresh(self) -> None:
        self._wake.set()

    async def facts(self) -> AsyncIterator[Fact]:
        self._wake = wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        layout = self._layout()
        if layout is None:
            return

        def wake_up() -> None:
            loop.call_soon_threadsafe(wake.set)

        self._table.on_new_place = wake_up
        pause_s = FIRST_LOOK_AFTER_S
        try:
            while True:
                wake.clear()
                processes, begun = self._processes(), loop.time()
                for fact in await loop.run_in_executor(None, list, self._look(layout, processes)):
                    yield fact
                took = loop.time() - begun
                if not processes:
                    pause_s = FIRST_LOOK_AFTER_S
                    await wake.wait()
                    continue
                await self._sample(layout, pause_s)
                if wake.is_set():
                    pause_s = FIRST_LOOK_AFTER_S
                    await asyncio.sleep(max(_LOOK_PAUSE_S, _LOOK_SHARE * took) - (loop.time() - begun))
                else:
                    pause_s = min(pause_s * 3, LOOK_EVERY_S)
        finally:
            self._table.on_new_place = lambda: None

    async def _sample(self, layout: CgroupLayout, for_s: float) -> None:
        """Samples the cgroups with a memory limit, once a second, until the next look is due, or wanted."""
        loop = asyncio.get_running_loop()
        until = loop.time() + for_s
        while (left := until - loop.time()) > 0 and not self._wake.is_set():
            if self._limited and self._table.workload_processes():
                samples = await loop.run_in_executor(None, self._read_samples, layout, self._limited)
                self._history.keep(samples)
                self.count("memory samples", len(samples))
                left = min(until - loop.time(), SAMPLE_EVERY_S)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(left, 0.0))

    @staticmethod
    def _read_samples(layout: CgroupLayout, paths: tuple[str, ...]) -> list[tuple[str, MemorySample]]:
        hierarchy = layout.holding("memory")
        samples = []
        for path in paths:
            with contextlib.suppress(KernelError):  # gone, or raised to no limit at all: the next look tells
                if hierarchy is not None:
                    samples.append((path, read_memory_sample(hierarchy, path)))
        return samples

    def snapshot(self) -> Iterator[Fact]:
        """Two looks, a second apart, where something is to be seen."""
        layout = self._layout()
        if layout is None:
            return
        processes = self._processes()
        if processes:
            yield from self._look(layout, processes)
            time.sleep(FIRST_LOOK_AFTER_S)
            yield from self._look(layout, processes)

    def _layout(self) -> CgroupLayout | None:
        try:
            layout = read_layout(self._paths)
        except KernelError as error:
            self.set_status(SourceState.UNAVAILABLE, f"no cgroup is seen: {error}", error.remedy)
            return None
        missing = [name for name in ("cpu",) if layout.holding(name) is None]
        if missing:
            self.set_status(SourceState.DEGRADED, f"no {', '.join(missing)} controller: CPU quotas are not seen")
        else:
            self.set_status(SourceState.ACTIVE)
        return layout

    def _processes(self) -> list[ProcessIdentity]:
        processes = self._table.workload_processes()
        if len(processes) > _PROCESSES_EACH_LOOK:
            self.count("processes_left_out", len(processes) - _PROCESSES_EACH_LOOK)
        return processes[:_PROCESSES_EACH_LOOK]

    def _look(self, layout: CgroupLayout, processes: list[ProcessIdentity]) -> Iterator[Fact]:
        self.count("looks")
        alive = list(self._where_they_are(processes))
        found = list(self._quotas.go_processes(layout, alive))
        yield from self._quotas.look(found)
        yield from self._stalls.look(layout, alive, [go for go, _ in found])
        places = dict.fromkeys(path for process in alive if (path := process.cgroup_for("memory")))
        limited = list(dict.fromkeys(above for path in places for above in limited_paths(layout, path)))
        if len(limited) > CGROUPS_CAP:
            self.count("cgroups not sampled", len(limited) - CGROUPS_CAP)
        self._limited = tuple(limited[:CGROUPS_CAP])

    def _where_they_are(self, processes: list[ProcessIdentity]) -> Iterator[ProcessIdentity]:
        # A process may have been moved since its exec; of one that ended, the old path would be another's.
        for process in processes:
            try:
                record = read_cgroup_record(self._paths, process.pid)
                if self._table.is_alive(process):
                    yield replace(process, cgroups=parse_cgroups(record))
            except KernelError:
                continue
