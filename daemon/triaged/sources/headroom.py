# SPDX-License-Identifier: Apache-2.0
"""How close the host, the cgroups with a finite limit, and the processes of known workloads are to their limits.

None of these counters notifies before the limit is hit, so they are looked at once a minute, and on request. Where a look takes
long (tens of thousands of cgroups) the next one is put off, so that all of them take at most 1/300 of a core. Ten thousand cgroups
without a limit take 0.14 s of CPU time (measured on 6.18).
"""
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

from triaged.errors import Gone, KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.cgroups import read_finite_limits
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.usage import limit_usage, read_host_usage, read_process_usage, read_task_limits
from triaged.model.facts import Fact, HeadroomFacts
from triaged.model.usage import CLOSES_BELOW, Usage
from triaged.sources.source import Source, SourceState

LOOK_EVERY_S = 60.0
LOOK_SHARE = 300
REST_SHARE = 20
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
            facts, took_s = await loop.run_in_executor(None, self._look)
            for fact in facts:
                yield fact
            await asyncio.sleep(REST_SHARE * took_s)  # whoever asks again and again gets a bounded share of a core
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the wake-up.
            timer = loop.call_later(max(LOOK_EVERY_S, LOOK_SHARE * took_s), self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    def _look(self) -> tuple[list[Fact], float]:
        """What a look gives, and the CPU time that it took in its thread."""
        began = time.thread_time()
        facts = list(self.snapshot())
        return facts, time.thread_time() - began

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
        held = {controller: layout.holding(controller) for controller in _CONTROLLERS}
        missing += [f"no {controller} controller" for controller, hierarchy in held.items() if hierarchy is None]
        for hierarchy in layout.hierarchies:  # version 2 holds both controllers: one walk for both
            controllers = [controller for controller in _CONTROLLERS if held[controller] is hierarchy]
            for controller, limit in read_finite_limits(hierarchy, controllers) if controllers else ():
                for each in limit_usage(hierarchy, controller, limit):
                    yield HeadroomFacts(each, cgroup=limit, time_usec=now)
        workloads = self._table.workload_processes()
        for process, usage in read_task_limits(self._paths, workloads):
            yield HeadroomFacts(usage, process=process, time_usec=now)
        for process in workloads:
            usages: list[Usage] = []
            try:
                usages += read_process_usage(self._paths, process)
            except Gone:
                continue
            except KernelError:
                self.count("unreadable processes")
            for usage in usages:
                yield HeadroomFacts(usage, process=process, time_usec=now)
