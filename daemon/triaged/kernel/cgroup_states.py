# SPDX-License-Identifier: Apache-2.0
"""States of a cgroup that slow its processes down or hold them, without refusing anything.

Hard facts:
- memory.high exists on version 2 only; version 1's soft limit holds nobody back. memory.events counts `high` for the whole tree
  below, memory.events.local for the cgroup itself.
- Freezing: version 2 writes 1 into cgroup.freeze and says `frozen 1` in cgroup.events once all stopped, also below. Version 1 has
  freezer.self_freezing for the cgroup itself and freezer.parent_freezing for one above. A frozen process looks like a sleeping one.
- cgroup.max.descendants and cgroup.max.depth exist in version 2's tree, on the hybrid layout too. mkdir() then fails with EAGAIN;
  nothing counts that.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from triaged.errors import Gone, KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.cgroups import cgroup_id, read_cgroup_limit, read_counters, read_inode, read_limit, read_number, walk
from triaged.kernel.files import read_text
from triaged.kernel.go_runtime import parse_cpu_list
from triaged.kernel.pressure import Pressure, read_pressure
from triaged.model.cgroup import CgroupId, ancestors_of, own_unit_of
from triaged.model.facts import CgroupLimit
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.usage import Usage

_LOOKED_THROUGH = 10_000


@dataclass(frozen=True)
class Freezer:
    """A cgroup's own freezer: `file` says whether it was told to freeze."""

    cgroup: CgroupId
    file: str
    is_freezing: bool
    unit: str


@dataclass(frozen=True)
class HighState:
    """A cgroup with a memory.high, how often it held tasks back, and the memory pressure of the cgroup."""

    limit: CgroupLimit
    throttled: int
    pressure: Pressure | Unknown
    counter_file: str


def _in_sight(hierarchy: Hierarchy, path: str) -> Iterator[tuple[str, str]]:
    """The cgroup and its ancestors without the root, each with its directory, as far as the mount shows them."""
    for each in ancestors_of(path):
        if each == "/":
            return
        try:
            yield each, hierarchy.directory(each)
        except Gone:
            return


def read_high(layout: CgroupLayout, path: str) -> Iterator[HighState]:
    """The cgroups from `path` to the root that have a finite memory.high, innermost first.

    Source: memory.{high,current,events.local,pressure} (cgroup-v2.rst, "Memory Interface Files").
    Raises: NotPermitted, Malformed; what was removed is left out.
    """
    hierarchy = layout.holding("memory")
    if hierarchy is None or not hierarchy.is_v2:
        return
    for each, directory in _in_sight(hierarchy, path):
        try:
            high = read_limit(f"{directory}/memory.high")
            if not isinstance(high, int):
                continue
            file = f"{directory}/memory.events.local"
            throttled = read_counters(file).get("high", 0)
            where = cgroup_id(hierarchy, "memory", each, read_inode(directory))
            used = read_number(f"{directory}/memory.current")
        except Gone:
            continue
        limit = CgroupLimit(where, f"{directory}/memory.high", high, used, own_unit_of(each))
        yield HighState(limit, throttled, pressure_of(f"{directory}/memory.pressure"), file)


def pressure_of(path: str) -> Pressure | Unknown:
    """A pressure file, or why it cannot be read."""
    try:
        return read_pressure(path)
    except KernelError as error:
        return Unknown(str(error))


def read_freezers(layout: CgroupLayout, process: ProcessIdentity) -> Iterator[Freezer]:
    """The freezers that apply to a process, from its own cgroup to the root.

    Source: cgroup.freeze (cgroup-v2.rst); freezer.self_freezing (cgroup-v1/freezer-subsystem.rst).
    Raises: NotPermitted, Malformed; what was removed is left out.
    """
    for hierarchy, path, name in (
        (layout.unified, process.cgroups.get("", ""), "cgroup.freeze"),
        (layout.holding("freezer"), process.cgroups.get("freezer", ""), "freezer.self_freezing"),
    ):
        if hierarchy is None or not path:
            continue
        for each, directory in _in_sight(hierarchy, path):
            try:
                is_freezing = read_number(f"{directory}/{name}") != 0
                where = cgroup_id(hierarchy, "freezer", each, read_inode(directory))
            except Gone:
                continue
            yield Freezer(where, f"{directory}/{name}", is_freezing, own_unit_of(each))


def read_cpuset(layout: CgroupLayout, process: ProcessIdentity) -> tuple[CgroupId, str, int] | None:
    """The cpuset of a process: its cgroup, the file that says which CPUs it may use, and how many they are; None without one.

    Source: cpuset.cpus.effective, version 1: cpuset.effective_cpus.
    Raises: Gone, NotPermitted, Malformed.
    """
    hierarchy = layout.holding("cpuset")
    path = process.cgroup_for("cpuset")
    if hierarchy is None or not path:
        return None
    name = "cpuset.cpus.effective" if hierarchy.is_v2 else "cpuset.effective_cpus"
    for each in ancestors_of(path):
        directory = hierarchy.directory(each)
        file = f"{directory}/{name}"
        try:
            cpus = parse_cpu_list(read_text(file, 4096), file)
        except Gone:
            continue  # the controller is off in this cgroup: its ancestor's counts
        return cgroup_id(hierarchy, "cpuset", each, read_inode(directory)), file, len(cpus)
    return None


def read_online_cpus(sys: str) -> int:
    """The number of CPUs of the machine that are online. Source: /sys/devices/system/cpu/online. Raises: Gone, Malformed."""
    path = f"{sys}/devices/system/cpu/online"
    return len(parse_cpu_list(read_text(path, 4096), path))


def read_descendants(layout: CgroupLayout, path: str) -> Iterator[tuple[CgroupLimit, Usage]]:
    """The limits on how many cgroups may be below the cgroup and each ancestor of it (version 2's tree), with what is in use.

    Source: cgroup.max.descendants, cgroup.stat nr_descendants (cgroup-v2.rst, "Core Interface Files").
    Raises: NotPermitted, Malformed; what was removed is left out.
    """
    hierarchy = layout.unified
    if hierarchy is None or not path:
        return
    for each, directory in _in_sight(hierarchy, path):
        file, stat = f"{directory}/cgroup.max.descendants", f"{directory}/cgroup.stat"
        try:
            bound = read_limit(file)
            if bound is UNLIMITED:
                continue
            used = read_counters(stat).get("nr_descendants", 0)
            where = cgroup_id(hierarchy, "", each, read_inode(directory))
        except Gone:
            continue
        unit = own_unit_of(each)
        yield CgroupLimit(where, file, bound, used, unit), Usage(
            "cgroups", "cgroup.max.descendants", each, used, bound, stat, file, unit
        )


def read_depth(layout: CgroupLayout, path: str) -> Iterator[tuple[CgroupLimit, Usage]]:
    """The limits on how deep cgroups may lie below the cgroup and each ancestor (version 2's tree), with how deep they do.

    Source: cgroup.max.depth (cgroup-v2.rst, "Core Interface Files"). What is below is looked through, 10,000 cgroups at most.
    Raises: NotPermitted, Malformed; what was removed is left out.
    """
    hierarchy = layout.unified
    if hierarchy is None or not path:
        return
    for each, directory in _in_sight(hierarchy, path):
        file = f"{directory}/cgroup.max.depth"
        try:
            bound = read_limit(file)
            if bound is UNLIMITED:
                continue
            above = 0 if each == "/" else each.count("/")
            used = max(below.count("/") for below, _ in islice(walk(hierarchy, each), _LOOKED_THROUGH)) - above
            where = cgroup_id(hierarchy, "", each, read_inode(directory))
        except Gone:
            continue
        unit = own_unit_of(each)
        yield CgroupLimit(where, file, bound, used, unit), Usage(
            "levels of cgroups", "cgroup.max.depth", each, used, bound, directory, file, unit
        )


def read_hugetlb(layout: CgroupLayout, path: str, sizes: tuple[str, ...]) -> Iterator[tuple[CgroupLimit, Usage]]:
    """The huge pages of each size ("2MB") of the cgroup and each ancestor with a limit. Units: bytes.

    Source: hugetlb.SIZE.{max,current} (cgroup-v2.rst, "HugeTLB"); version 1: hugetlb.SIZE.{limit,usage}_in_bytes.
    Raises: NotPermitted, Malformed; what was removed is left out.
    """
    hierarchy = layout.holding("hugetlb")
    if hierarchy is None or not path:
        return
    limit_name, used_name = ("max", "current") if hierarchy.is_v2 else ("limit_in_bytes", "usage_in_bytes")
    for each, directory in _in_sight(hierarchy, path):
        for size in sizes:
            file, used_file = f"{directory}/hugetlb.{size}.{limit_name}", f"{directory}/hugetlb.{size}.{used_name}"
            try:
                bound = read_limit(file)
                if not isinstance(bound, int):
                    continue
                used = read_number(used_file)
                where = cgroup_id(hierarchy, "hugetlb", each, read_inode(directory))
            except Gone:
                continue
            unit = own_unit_of(each)
            name = file.rsplit("/", 1)[-1]
            yield CgroupLimit(where, file, bound, used, unit), Usage(
                f"huge pages {size}", name, each, used, bound, used_file, file, unit
            )


@dataclass(frozen=True)
class HugePages:
    """A cgroup's limit on huge pages of one size, and how often it refused some."""

    limit: CgroupLimit
    page_size: str
    refused: int
    counter_file: str


def read_huge_pages(layout: CgroupLayout, path: str, sizes: tuple[str, ...]) -> Iterator[HugePages]:
    """The refusals of huge pages at the cgroup and each ancestor with a limit.

    Source: hugetlb.SIZE.events.local max (cgroup-v2.rst, "HugeTLB"); version 1: hugetlb.SIZE.failcnt.
    Raises: NotPermitted, Malformed; what was removed is left out.
    """
    for limit, usage in read_hugetlb(layout, path, sizes):
        size = usage.resource.rsplit(" ", 1)[-1]
        directory = limit.file.rsplit("/", 1)[0]
        try:
            if limit.cgroup.hierarchy:
                file = f"{directory}/hugetlb.{size}.failcnt"
                refused = read_number(file)
            else:
                file = f"{directory}/hugetlb.{size}.events.local"
                refused = read_counters(file).get("max", 0)
        except Gone:
            continue
        yield HugePages(limit, size, refused, file)


def read_applying_limits(layout: CgroupLayout, resource: str, path: str) -> Iterator[tuple[str, str]]:
    """The limits that bound a pressure's resource, "FILE at PATH" with the value: memory.high and memory.max, or io.max.

    Version 2 only, where pressure is. What cannot be read is left out: the pressure stands for itself.
    """
    hierarchy = layout.holding("memory" if resource == "memory" else "io")
    if hierarchy is None or not hierarchy.is_v2:
        return
    for each, directory in _in_sight(hierarchy, path):
        if resource == "memory":
            for name in ("memory.high", "memory.max"):
                try:
                    value = read_limit(f"{directory}/{name}")
                except KernelError:
                    continue
                if isinstance(value, int):
                    used = read_cgroup_limit(hierarchy, "memory", each).used
                    yield f"{name} at {each}", f"{value}, in use {used}"
        else:
            try:
                text = read_text(f"{directory}/io.max", 4096).strip()
            except KernelError:
                continue
            if text:
                yield f"io.max at {each}", text
