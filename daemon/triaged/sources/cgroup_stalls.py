# SPDX-License-Identifier: Apache-2.0
"""What slows down or holds the cgroups of live processes of workloads: differences since the last look, and changes of state."""
from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.cgroup_states import (
    Freezer,
    HighState,
    pressure_of,
    read_applying_limits,
    read_cpuset,
    read_depth,
    read_descendants,
    read_freezers,
    read_high,
    read_huge_pages,
    read_hugetlb,
    read_online_cpus,
)
from triaged.kernel.cgroups import cgroup_id, read_inode
from triaged.kernel.io_limits import IoState, read_device_name, read_io
from triaged.kernel.paths import KernelPaths
from triaged.kernel.pressure import Pressure
from triaged.kernel.unit_settings import read_limit_origin, with_origin
from triaged.model.cgroup import CgroupId, own_unit_of
from triaged.model.cpu import GoProcess
from triaged.model.facts import (
    CgroupLimit,
    CpusetFacts,
    Fact,
    FrozenFacts,
    HeadroomFacts,
    HugePagesFacts,
    IoFacts,
    MemoryHighFacts,
    PressureFacts,
)
from triaged.model.io import IoLimit
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.usage import CLOSES_BELOW

_RESOURCES = ("memory", "io")
_NEAR_THE_RATE = 0.8
Key = tuple[str, int]


@dataclass(frozen=True)
class _HighSample:
    state: HighState
    at_usec: int


class StallLooks:
    """Remembers the last look at the cgroups of live processes of workloads, and which of them something was told about."""

    def __init__(self, paths: KernelPaths) -> None:
        self._paths = paths
        self._high: dict[Key, _HighSample] = {}
        self._high_told: set[Key] = set()
        self._pressure: dict[tuple[str, str], tuple[Pressure, int]] = {}
        self._pressed: set[tuple[str, str]] = set()
        self._frozen: dict[Key, Freezer] = {}
        self._small: set[str] = set()
        self._near: set[tuple[str, str]] = set()
        self._io: dict[Key, tuple[IoState, int]] = {}
        self._io_told: set[Key] = set()
        self._huge_pages: dict[str, int] = {}
        self._page_sizes = _page_sizes(paths)
        self._online = 0

    def look(self, layout: CgroupLayout, processes: Sequence[ProcessIdentity], found: Sequence[GoProcess]) -> Iterator[Fact]:
        """What changed since the last look. Cgroups that are gone, or may not be read, are left out."""
        now = time.time_ns() // 1000
        yield from self._look_at_high(layout, processes, now)
        yield from self._look_at_pressure(layout, processes, now)
        yield from self._look_at_freezers(layout, processes, now)
        yield from self._look_at_cpusets(layout, found, now)
        yield from self._look_at_io(layout, processes, now)
        yield from self._look_at_huge_pages(layout, processes, now)
        yield from self._look_at_headroom(layout, processes, now)

    def _look_at_high(self, layout: CgroupLayout, processes: Sequence[ProcessIdentity], now: int) -> Iterator[Fact]:
        samples: dict[Key, _HighSample] = {}
        for path, below in _by_path(processes, "memory"):
            try:
                states = list(read_high(layout, path))
            except KernelError:
                continue
            for state in states:
                where = state.limit.cgroup
                key = (where.path, where.inode)
                if key in samples:
                    continue
                samples[key] = after = _HighSample(state, time.monotonic_ns() // 1000)
                before = self._high.get(key)
                if before is not None and state.throttled > before.state.throttled:
                    self._high_told.add(key)
                    fact = _high_difference(before, after, below, now)
                    yield replace(fact, owner=with_origin(self._paths, fact.owner))
        for key in self._high_told - set(samples):  # removed, raised to max, or its processes are gone
            old = self._high[key].state.limit
            if os.path.isdir(old.file.rsplit("/", 1)[0]) and any(_is_below(each, key[0]) for each in processes):
                limit = replace(old, limit=UNLIMITED)
                yield MemoryHighFacts(limit, 0, 0, 1, counter_file=old.file, time_usec=now)
        self._high_told &= set(samples)
        self._high = samples

    def _look_at_pressure(self, layout: CgroupLayout, processes: Sequence[ProcessIdentity], now: int) -> Iterator[Fact]:
        hierarchy = layout.unified
        samples: dict[tuple[str, str], tuple[Pressure, int]] = {}
        for path, below in _by_path(processes, ""):
            if hierarchy is None or path == "/":  # the root's pressure is the host's
                continue
            for resource in _RESOURCES:
                try:
                    directory = hierarchy.directory(path)
                    file = f"{directory}/{resource}.pressure"
                    after = pressure_of(file)
                    if isinstance(after, Unknown):
                        continue
                    where = cgroup_id(hierarchy, "", path, read_inode(directory))
                except KernelError:
                    continue
                at, key = time.monotonic_ns() // 1000, (path, resource)
                samples[key] = (after, at)
                if key not in self._pressure:
                    continue
                before, then = self._pressure[key]
                some, full = after.some_usec - before.some_usec, after.full_usec - before.full_usec
                if full > 0 or key in self._pressed:
                    self._pressed.add(key)
                    limits = tuple(read_applying_limits(layout, resource, path)) if full > 0 else ()
                    yield PressureFacts(
                        where, resource, max(some, 0), max(full, 0), max(at - then, 1), file, limits, tuple(below), now
                    )
        self._pressed &= set(samples)
        self._pressure = samples

    def _look_at_freezers(self, layout: CgroupLayout, processes: Sequence[ProcessIdentity], now: int) -> Iterator[Fact]:
        held: dict[Key, tuple[Freezer, list[ProcessIdentity]]] = {}
        seen: dict[Key, Freezer] = {}
        for process in processes:
            try:
                for freezer in read_freezers(layout, process):
                    key = (freezer.cgroup.path, freezer.cgroup.inode)
                    seen[key] = freezer
                    if freezer.is_freezing:
                        held.setdefault(key, (freezer, []))[1].append(process)
            except KernelError:
                continue
        for freezer, inside in held.values():
            yield FrozenFacts(freezer.cgroup, freezer.file, True, freezer.unit, tuple(inside), now)
        for key in self._frozen.keys() - held.keys():
            if key in seen:
                yield FrozenFacts(seen[key].cgroup, seen[key].file, False, seen[key].unit, (), now)
        self._frozen = {key: freezer for key, (freezer, _) in held.items()}

    def _look_at_cpusets(self, layout: CgroupLayout, found: Sequence[GoProcess], now: int) -> Iterator[Fact]:
        told = set()
        for go in found:
            if not isinstance(go.gomaxprocs, int) or not isinstance(go.cpus, int):
                continue
            name = go.process.cgroup
            is_small = go.gomaxprocs > go.cpus
            if not is_small and name not in self._small:
                continue
            try:
                self._online = self._online or read_online_cpus(self._paths.sys)
                cpuset = read_cpuset(layout, go.process)
            except KernelError:
                continue
            if is_small:
                told.add(name)
            where, file, cpus = cpuset if cpuset is not None else (CgroupId(name), "", 0)
            # A mask smaller than the cpuset is the process's own (taskset).
            bound: int | Unknown = cpus if cpus == go.cpus else Unknown("its affinity mask is smaller than its cpuset")
            yield CpusetFacts(where, file, bound, self._online, go, own_unit_of(where.path), now)
        self._small = told

    def _look_at_io(self, layout: CgroupLayout, processes: Sequence[ProcessIdentity], now: int) -> Iterator[Fact]:
        samples: dict[Key, tuple[IoState, int]] = {}
        controller = "io" if layout.holding("io") else "blkio"
        for path, below in _by_path(processes, controller):
            try:
                states = list(read_io(layout, path))
            except KernelError:
                continue
            for after in states:
                key = (after.cgroup.path, after.cgroup.inode)
                if key in samples:
                    continue
                at = time.monotonic_ns() // 1000
                samples[key] = (after, at)
                if key not in self._io:
                    continue
                before, then = self._io[key]
                limits = tuple(
                    IoLimit(read_device_name(self._paths, device), what, per_s, max(_done(after, which) - _done(before, which), 0))
                    for which, per_s in after.limits.items() for device, what in (which,)
                )
                fact = IoFacts(
                    after.cgroup, limits, _rise(before.stalled_usec, after.stalled_usec), max(at - then, 1), after.file,
                    after.counter_file, after.unit, processes=tuple(below), time_usec=now,
                )
                if any(limit.share(fact.interval_usec) >= _NEAR_THE_RATE for limit in limits):
                    self._io_told.add(key)
                    limit = CgroupLimit(after.cgroup, after.file, 0, Unknown("a rate"), after.unit)
                    yield replace(fact, origin=read_limit_origin(self._paths, limit))
        for key in self._io_told - set(samples):
            old = self._io[key][0]
            if os.path.isdir(old.file.rsplit("/", 1)[0]) and any(_is_below(each, key[0], controller) for each in processes):
                yield IoFacts(old.cgroup, (), 0, 1, old.file, old.counter_file, old.unit, time_usec=now)
        self._io_told &= set(samples)
        self._io = samples

    def _look_at_huge_pages(self, layout: CgroupLayout, processes: Sequence[ProcessIdentity], now: int) -> Iterator[Fact]:
        counts: dict[str, int] = {}
        for path, below in _by_path(processes, "hugetlb"):
            try:
                found = list(read_huge_pages(layout, path, self._page_sizes))
            except KernelError:
                continue
            for each in found:
                if each.counter_file in counts:
                    continue
                counts[each.counter_file] = each.refused
                # A cgroup that is seen for the first time was made with its counter at 0, or refused something before.
                before = self._huge_pages.get(each.counter_file, 0)
                if each.refused > before:
                    yield HugePagesFacts(
                        each.limit, each.page_size, each.refused - before, each.counter_file, tuple(below), now
                    )
        self._huge_pages = counts

    def _look_at_headroom(self, layout: CgroupLayout, processes: Sequence[ProcessIdentity], now: int) -> Iterator[Fact]:
        near = set()
        seen: set[tuple[str, str]] = set()
        for process in processes:
            try:
                limits = [
                    *read_descendants(layout, process.cgroups.get("", "")),
                    *read_depth(layout, process.cgroups.get("", "")),
                    *read_hugetlb(layout, process.cgroup_for("hugetlb"), self._page_sizes),
                ]
            except KernelError:
                continue
            for limit, usage in limits:
                key = (limit.file, usage.limit_name)
                if key in seen:
                    continue
                seen.add(key)
                is_near = usage.share is not None and usage.share >= CLOSES_BELOW
                if is_near:
                    near.add(key)
                if is_near or key in self._near:
                    yield HeadroomFacts(usage, cgroup=limit, time_usec=now)
        self._near = near


def _by_path(processes: Sequence[ProcessIdentity], controller: str) -> Iterator[tuple[str, list[ProcessIdentity]]]:
    paths: dict[str, list[ProcessIdentity]] = {}
    for process in processes:
        path = process.cgroup_for(controller) if controller else process.cgroups.get("", "")
        if path:
            paths.setdefault(path, []).append(process)
    yield from paths.items()


def _is_below(process: ProcessIdentity, path: str, controller: str = "memory") -> bool:
    return f"{process.cgroup_for(controller)}/".startswith(f"{path}/")


def _done(state: IoState, which: tuple[str, str]) -> int:
    return state.done.get(which, 0)


def _rise(before: int | Unknown, after: int | Unknown) -> int | Unknown:
    if isinstance(after, Unknown):
        return after
    return max(after - before, 0) if isinstance(before, int) else Unknown("this is the first look at it")


def _high_difference(before: _HighSample, after: _HighSample, below: list[ProcessIdentity], now: int) -> MemoryHighFacts:
    old, new = before.state.pressure, after.state.pressure
    stalled: int | Unknown
    if isinstance(new, Unknown):
        stalled = new
    else:
        stalled = new.full_usec - old.full_usec if isinstance(old, Pressure) else Unknown("this is the first look at it")
    return MemoryHighFacts(
        after.state.limit, after.state.throttled - before.state.throttled, stalled, max(after.at_usec - before.at_usec, 1),
        tuple(below), after.state.counter_file, now,
    )


def _page_sizes(paths: KernelPaths) -> tuple[str, ...]:
    """The sizes of huge pages of this kernel as cgroup files are named: "2MB", "1GB". Source: /sys/kernel/mm/hugepages."""
    try:
        names = os.listdir(f"{paths.sys}/kernel/mm/hugepages")
    except OSError:
        return ()
    found = []
    for name in sorted(names):
        kib = name.removeprefix("hugepages-").removesuffix("kB")
        if kib.isdecimal():
            size = int(kib)
            found.append(f"{size >> 20}GB" if size >= 1 << 20 else f"{size >> 10}MB" if size >= 1 << 10 else f"{size}KB")
    return tuple(found)
