# SPDX-License-Identifier: Apache-2.0
"""The cgroups of workloads while they run: what slows a process down without refusing it anything.

A used-up CPU quota notifies nobody, nor does pressure below a limit. So the counters are looked at while processes of
workloads live: at once, after 1 s, and then at most every 10 s. Where none lives there is no timer.
"""
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import ClassVar

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import parse_cgroups, read_cgroup_record
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import Fact
from triaged.model.process import ProcessIdentity
from triaged.sources.cgroup_stalls import StallLooks
from triaged.sources.source import Source, SourceState
from triaged.sources.throttling import QuotaLooks

FIRST_LOOK_AFTER_S = 1.0
LOOK_EVERY_S = 10.0
_PROCESSES_EACH_LOOK = 256


class WorkloadCgroups(Source):
    """Looks at the cgroups of live processes of workloads, and of their ancestors."""

    name: ClassVar[str] = "workload-cgroups"

    def __init__(self, paths: KernelPaths, table: ProcessTable) -> None:
        super().__init__()
        self._paths = paths
        self._table = table
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

        self._table.on_first_workload = wake_up
        pause_s = FIRST_LOOK_AFTER_S
        try:
            while True:
                wake.clear()
                processes = self._processes()
                for fact in await loop.run_in_executor(None, list, self._look(layout, processes)):
                    yield fact
                if not processes:
                    pause_s = FIRST_LOOK_AFTER_S
                    await wake.wait()
                    continue
                try:
                    await asyncio.wait_for(wake.wait(), pause_s)
                except asyncio.TimeoutError:
                    pause_s = min(pause_s * 3, LOOK_EVERY_S)
        finally:
            self._table.on_first_workload = lambda: None

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

    def _where_they_are(self, processes: list[ProcessIdentity]) -> Iterator[ProcessIdentity]:
        # A process may have been moved since its exec; of one that ended, the old path would be another's.
        for process in processes:
            try:
                record = read_cgroup_record(self._paths, process.pid)
                if self._table.is_alive(process):
                    yield replace(process, cgroups=parse_cgroups(record))
            except KernelError:
                continue
