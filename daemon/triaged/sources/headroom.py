# SPDX-License-Identifier: Apache-2.0
"""How close the host, the cgroups with a finite limit, and the processes of known workloads are to their limits.

None of these counters notifies before the limit is hit, so they are looked at once a minute, and on request.
"""
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

from triaged.errors import Gone, KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.cgroups import read_cgroup_limit, walk
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.usage import limit_usage, read_host_usage, read_process_usage
from triaged.model.facts import Fact, HeadroomFacts
from triaged.model.usage import CLOSES_BELOW, Usage
from triaged.sources.source import Source, SourceState

LOOK_EVERY_S = 60.0
_CONTROLLERS = ("pids", "memory")


class Headroom(Source):
    """Use against limit. Of what is far from its limit nothing is told, except once when it was near before."""

    name: ClassVar[str] = "headroom"

    def __init__(self, paths: KernelPaths, table: ProcessTable) -> None:
        super().__init__()
        self._paths = paths
        self._table = table
        self._near: set[tuple[str, str]] = set()
        self._wake = asyncio.Event()

    def refresh(self) -> None:
        self._wake.set()

    async def facts(self) -> AsyncIterator[Fact]:
        self._wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            for fact in await loop.run_in_executor(None, list, self.snapshot()):
                yield fact
            try:
                await asyncio.wait_for(self._wake.wait(), LOOK_EVERY_S)
            except asyncio.TimeoutError:
                continue

    def snapshot(self) -> Iterator[Fact]:
        missing: list[str] = []
        try:
            layout = read_layout(self._paths)
        except KernelError as error:
            layout = CgroupLayout(())
            missing.append(f"cgroups are not looked at: {error}")
        near: set[tuple[str, str]] = set()
        for fact in self._all(layout, missing):
            share = fact.usage.share
            what = (fact.usage.where, fact.usage.limit_name)
            self.count("limits")
            if share is not None and share >= CLOSES_BELOW:
                near.add(what)
                yield fact
            elif what in self._near and share is not None:
                yield fact  # it was near: the rule closes its finding
        self._near = near
        self.count("looks")
        self.set_status(SourceState.DEGRADED if missing else SourceState.ACTIVE, "; ".join(missing))

    def _all(self, layout: CgroupLayout, missing: list[str]) -> Iterator[HeadroomFacts]:
        now = time.time_ns() // 1000
        for usage in read_host_usage(self._paths):
            yield HeadroomFacts(usage, time_usec=now)
        for controller in _CONTROLLERS:
            hierarchy = layout.holding(controller)
            if hierarchy is None:
                missing.append(f"no {controller} controller")
                continue
            for path, _ in walk(hierarchy):
                limit = read_cgroup_limit(hierarchy, controller, path)
                if not isinstance(limit.limit, int):
                    continue
                for each in limit_usage(hierarchy, controller, limit):
                    yield HeadroomFacts(each, cgroup=limit, time_usec=now)
        for process in self._table.workload_processes():
            usages: list[Usage] = []
            try:
                usages += read_process_usage(self._paths, process)
            except Gone:
                continue
            except KernelError:
                self.count("unreadable processes")
            for usage in usages:
                yield HeadroomFacts(usage, process=process, time_usec=now)
