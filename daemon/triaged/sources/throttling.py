# SPDX-License-Identifier: Apache-2.0
"""CPU quotas above live Go processes: how often each was used up since the last look."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from triaged.errors import KernelError
from triaged.kernel.build_info import BuildInfoCache
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.cgroups import CpuState
from triaged.kernel.cpu_quota import QuotaState, read_quotas
from triaged.kernel.go_runtime import GoRuntime
from triaged.kernel.paths import KernelPaths
from triaged.kernel.pressure import read_pressure
from triaged.kernel.unit_settings import with_origin
from triaged.model.cpu import GoProcess
from triaged.model.facts import CgroupLimit, CpuFacts
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity

_NO_PRESSURE = Unknown("version 1 has no pressure of a cgroup")

Below = tuple[GoProcess, tuple[QuotaState, ...]]


@dataclass(frozen=True)
class _Sample:
    """A cgroup's counters at one time."""

    state: CpuState
    stalled_usec: int | Unknown
    at_usec: int


class QuotaLooks:
    """Remembers the counters of the last look, of the cgroups above live processes only."""

    def __init__(self, paths: KernelPaths) -> None:
        self._paths = paths
        self._build_infos = BuildInfoCache(64)
        self._runtimes: dict[tuple[int, int], GoRuntime | None] = {}
        self._samples: dict[tuple[str, int], _Sample] = {}
        self._told: set[tuple[str, int]] = set()

    def go_processes(self, layout: CgroupLayout, processes: Sequence[ProcessIdentity]) -> Iterator[Below]:
        """The Go processes among them that live, each with the quotas above it. `processes` were read just now."""
        chains: dict[str, tuple[QuotaState, ...]] = {}
        runtimes: dict[tuple[int, int], GoRuntime | None] = {}
        for process in processes:
            key = (process.pid, process.start_ticks)
            runtimes[key] = self._runtimes[key] if key in self._runtimes else self._read_runtime(process)
            runtime = runtimes[key]
            path = process.cgroup_for("cpu")
            if runtime is None or not path:
                continue
            try:
                if path not in chains:
                    chains[path] = read_quotas(layout, path)
            except KernelError:
                continue  # removed meanwhile
            chain = chains[path]
            leaf = chain[0].quota if chain and chain[0].quota.cgroup.path == path else None
            yield runtime.now(leaf), chain
        self._runtimes = runtimes

    def look(self, found: Sequence[Below]) -> Iterator[CpuFacts]:
        """What was counted since the last look at each cgroup with a quota; nothing of one that is seen for the first time.

        A cgroup whose quota went away is told once more.
        """
        below: dict[tuple[str, int], list[GoProcess]] = {}
        states: dict[tuple[str, int], tuple[QuotaState, tuple[QuotaState, ...]]] = {}
        for process, chain in found:
            for state in chain:
                where = state.quota.cgroup
                key = (where.path, where.inode)
                if state.quota.cores is not None or key in self._told:
                    below.setdefault(key, []).append(process)
                    states.setdefault(key, (state, chain))
        samples = {key: _sample(state) for key, (state, _) in states.items()}
        for key, (state, chain) in states.items():
            before, after = self._samples.get(key), samples[key]
            if before is None:
                continue
            fact = _difference(state, chain, tuple(below[key]), before, after)
            if fact.throttled_periods > 0:
                self._told.add(key)
            if key in self._told:
                limit = CgroupLimit(
                    state.quota.cgroup, state.quota.file, state.quota.quota_usec, Unknown("a rate"), state.quota.unit
                )
                yield replace(fact, origin=with_origin(self._paths, limit).origin)
        self._samples = samples
        self._told &= set(samples)

    def _read_runtime(self, process: ProcessIdentity) -> GoRuntime | None:
        try:
            info = self._build_infos.read(f"{self._paths.proc}/{process.pid}/exe")
        except KernelError:
            return None
        return GoRuntime(self._paths, process, info) if info is not None else None


def _sample(state: QuotaState) -> _Sample:
    stalled: int | Unknown = _NO_PRESSURE
    if state.quota.cgroup.hierarchy == "":
        try:
            stalled = read_pressure(f"{state.directory}/cpu.pressure").full_usec
        except KernelError as error:
            stalled = Unknown(str(error))
    return _Sample(state.state, stalled, time.monotonic_ns() // 1000)


def _difference(
    state: QuotaState, chain: tuple[QuotaState, ...], processes: tuple[GoProcess, ...], before: _Sample, after: _Sample
) -> CpuFacts:
    stalled: int | Unknown
    if isinstance(before.stalled_usec, int) and isinstance(after.stalled_usec, int):
        stalled = max(after.stalled_usec - before.stalled_usec, 0)
    else:
        stalled = after.stalled_usec if isinstance(after.stalled_usec, Unknown) else Unknown("this is the first look at it")
    return CpuFacts(
        state.quota,
        tuple(each.quota for each in chain),
        processes,
        interval_usec=max(after.at_usec - before.at_usec, 1),
        periods=max(after.state.periods - before.state.periods, 0),
        throttled_periods=max(after.state.throttled_periods - before.state.throttled_periods, 0),
        throttled_usec=max(after.state.throttled_usec - before.state.throttled_usec, 0),
        stalled_usec=stalled,
        counter_file=f"{state.directory}/cpu.stat",
        time_usec=time.time_ns() // 1000,
    )
