# SPDX-License-Identifier: Apache-2.0
"""What the files of a cgroup say, on version 1 and version 2.

Hard facts:
- A cgroup can be removed between any two system calls. ENOENT on opening and ENODEV on reading both mean `Gone`;
  ENOENT also means that the controller is off there, which a look at the directory tells apart.
- pids.events counts where the limit was hit and in every ancestor since Linux 6.11 (`pids.events.local`
  exists then), at the forking task's cgroup before, and there always on version 1.
- memory.events is hierarchical (kills below count too), memory.events.local is not; version 1's oom_kill never is.
- st_nlink of a cgroup directory is 2 and its children's number: a leaf needs no readdir().
- The root of a hierarchy has no limit files. A newline cannot be in a cgroup's name (EINVAL), every other byte can.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from triaged.errors import Gone, InterfaceMissing, KernelError, Malformed
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.files import read_text, translated
from triaged.model.cgroup import CgroupId, ancestors_of, own_unit_of
from triaged.model.facts import CgroupLimit
from triaged.model.limit import UNLIMITED, Limit, Unknown

# Version 1 writes "no limit" as the page counter's maximum: LONG_MAX rounded down to pages of at most 64 KiB.
_V1_UNLIMITED = (1 << 63) - (1 << 16)

_LIMIT_FILES = {
    ("pids", True): ("pids.max", "pids.current"),
    ("pids", False): ("pids.max", "pids.current"),
    ("memory", True): ("memory.max", "memory.current"),
    ("memory", False): ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


@dataclass(frozen=True)
class PidsState:
    """The pids controller of one cgroup. Units: tasks; `refused` counts forks since it was made (see the module's facts).

    `peak` is Unknown before Linux 6.1 or so.
    """

    limit: Limit
    tasks: int
    peak: int | Unknown
    refused: int


@dataclass(frozen=True)
class MemoryState:
    """The memory controller of one cgroup. Units: bytes; counters since it was made.

    `kills` counts tasks of this very cgroup that the OOM killer ended, `limit_hits` how often its own limit made reclaim necessary
    (version 2's `max`, version 1's failcnt: this is not a number of kills), `out_of_memory` how often reclaim was not enough.
    """

    limit: Limit
    used_bytes: int
    peak_bytes: int | Unknown
    kills: int
    limit_hits: int | Unknown
    out_of_memory: int | Unknown


@dataclass(frozen=True)
class CpuState:
    """The CPU bandwidth of one cgroup. `quota_usec` of every `period_usec`; counters since it was made."""

    quota_usec: Limit
    period_usec: int
    periods: int
    throttled_periods: int
    throttled_usec: int


def read_limit(path: str) -> Limit:
    """A limit file's value; both versions' ways to say *unlimited* are UNLIMITED.

    Raises: Gone, NotPermitted, Malformed.
    """
    return parse_limit(read_text(path, 64), path)


def parse_limit(text: str, path: str = "limit") -> Limit:
    """The limit in the text of a limit file.

    Raises: Malformed.
    """
    word = text.strip()
    if word in ("max", "-1"):
        return UNLIMITED
    value = _number(word, path)
    return UNLIMITED if value >= _V1_UNLIMITED else value


def read_number(path: str) -> int:
    """A file that holds one number.

    Raises: Gone, NotPermitted, Malformed.
    """
    return _number(read_text(path, 64).strip(), path)


def read_counters(path: str) -> Mapping[str, int]:
    """A flat keyed file (`memory.events`, `cpu.stat`, version 1's `memory.oom_control`).

    Raises: Gone, NotPermitted, Malformed.
    """
    return parse_counters(read_text(path, 1 << 16), path)


def read_counter(path: str, field: str) -> int:
    """One counter of a flat keyed file; 0 where it has no such field. A third of the cost of `read_counters` (measured on 6.18).

    Raises: as `read_counters`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise translated(error, path) from error
    try:
        text = os.read(descriptor, 4096)  # seq_file gives a file of less than a page at once
    except OSError as error:
        raise translated(error, path) from error
    finally:
        os.close(descriptor)
    for line in text.split(b"\n"):
        name, separator, number = line.partition(b" ")
        if separator and name == field.encode():
            return _number(number.decode("ascii", "replace"), path)
        if line and not separator:
            raise Malformed(path, text.decode("latin-1"))
    return 0


def parse_counters(text: str, path: str = "counters") -> Mapping[str, int]:
    """The counters in a flat keyed text, "name number" a line.

    Raises: Malformed.
    """
    found = {}
    for line in text.splitlines():
        name, separator, number = line.partition(" ")
        if not separator:
            raise Malformed(path, line)
        found[name] = _number(number.strip(), path)
    return found


def read_pids(hierarchy: Hierarchy, path: str) -> PidsState:
    """The pids controller of one cgroup.

    Source: pids.{max,current,peak,events} (cgroup-v2.rst, "PID"; cgroup-v1/pids.rst).
    Raises: Gone if it was removed; InterfaceMissing if the controller is off there or it is the root; Malformed, NotPermitted.
    """
    directory = hierarchy.directory(path)
    try:
        return PidsState(
            limit=read_limit(f"{directory}/pids.max"),
            tasks=read_number(f"{directory}/pids.current"),
            peak=_optional_number(f"{directory}/pids.peak"),
            refused=read_counters(f"{directory}/pids.events").get("max", 0),
        )
    except Gone as error:
        raise _absent(error, directory) from error


def read_memory(hierarchy: Hierarchy, path: str) -> MemoryState:
    """The memory controller of one cgroup.

    Source: version 2: memory.{max,current,peak,events.local} (cgroup-v2.rst, "Memory Interface Files"); version 1:
    memory.{limit_in_bytes,usage_in_bytes,max_usage_in_bytes,failcnt,oom_control} (cgroup-v1/memory.rst).
    Raises: as `read_pids`.
    """
    directory = hierarchy.directory(path)
    try:
        if not hierarchy.is_v2:
            return MemoryState(
                limit=read_limit(f"{directory}/memory.limit_in_bytes"),
                used_bytes=read_number(f"{directory}/memory.usage_in_bytes"),
                peak_bytes=_optional_number(f"{directory}/memory.max_usage_in_bytes"),
                kills=read_counters(f"{directory}/memory.oom_control").get("oom_kill", 0),
                limit_hits=_optional_number(f"{directory}/memory.failcnt"),
                out_of_memory=Unknown("version 1 does not count it"),
            )
        events = _local_memory_events(directory)
        return MemoryState(
            limit=read_limit(f"{directory}/memory.max"),
            used_bytes=read_number(f"{directory}/memory.current"),
            peak_bytes=_optional_number(f"{directory}/memory.peak"),
            kills=events.get("oom_kill", 0),
            limit_hits=events.get("max", 0),
            out_of_memory=events.get("oom", 0),
        )
    except Gone as error:
        raise _absent(error, directory) from error


def read_cpu(hierarchy: Hierarchy, path: str) -> CpuState:
    """The CPU bandwidth of one cgroup.

    Source: version 2: cpu.max, cpu.stat (cgroup-v2.rst, "CPU Interface Files"); version 1: cpu.cfs_{quota,period}_us, cpu.stat.
    Raises: as `read_pids`.
    """
    directory = hierarchy.directory(path)
    try:
        stat = read_counters(f"{directory}/cpu.stat")
        if hierarchy.is_v2:
            text = read_text(f"{directory}/cpu.max", 64)
            quota, _, period = text.strip().partition(" ")
            limit, length = parse_limit(quota, f"{directory}/cpu.max"), _number(period, f"{directory}/cpu.max")
            throttled = stat.get("throttled_usec", 0)
        else:
            limit = read_limit(f"{directory}/cpu.cfs_quota_us")
            length = read_number(f"{directory}/cpu.cfs_period_us")
            throttled = stat.get("throttled_time", 0) // 1000  # ns on version 1
        return CpuState(limit, length, stat.get("nr_periods", 0), stat.get("nr_throttled", 0), throttled)
    except Gone as error:
        raise _absent(error, directory) from error


def read_pids_in(hierarchy: Hierarchy, path: str) -> list[int]:
    """The processes of one cgroup, without those below it; 0 stands for one of another pid namespace.

    Source: cgroup.procs.
    Raises: Gone, NotPermitted, Malformed.
    """
    file = f"{hierarchy.directory(path)}/cgroup.procs"
    return [_number(word, file) for word in read_text(file).split()]


def read_cgroup_limit(hierarchy: Hierarchy, controller: str, path: str) -> CgroupLimit:
    """The limit at one cgroup and what is in use there; what could not be read is Unknown with the reason.

    `controller` is "pids" or "memory". Units: tasks or bytes.
    Raises: nothing: a limit that cannot be read is still an answer.
    """
    limit_name, used_name = _LIMIT_FILES[controller, hierarchy.is_v2]
    try:
        directory = hierarchy.directory(path)
        inode = read_inode(directory)
    except KernelError:
        unknown = Unknown("the cgroup was removed")
        return CgroupLimit(cgroup_id(hierarchy, controller, path), limit_name, unknown, unknown, own_unit_of(path))
    limit: Limit
    used: int | Unknown
    try:
        limit = read_limit(f"{directory}/{limit_name}")
    except Gone:
        limit = UNLIMITED if path == "/" else Unknown(f"the {controller} controller is off here, or the cgroup was removed")
    except KernelError as error:
        limit = Unknown(str(error))
    try:
        used = read_number(f"{directory}/{used_name}")
    except KernelError as error:
        used = Unknown(str(error))
    where = cgroup_id(hierarchy, controller, path, inode)
    return CgroupLimit(where, f"{directory}/{limit_name}", limit, used, own_unit_of(path))


def read_finite_limits(hierarchy: Hierarchy, controllers: Iterable[str]) -> Iterator[tuple[str, CgroupLimit]]:
    """Every cgroup of the hierarchy with a finite limit of one of the controllers ("pids", "memory"), with the controller.

    About 15 µs for a cgroup without a limit, of which nothing else is read. One whose limit cannot be read is left out.
    Units: tasks or bytes.
    Raises: Gone, NotPermitted for the hierarchy itself.
    """
    names = [(controller, *_LIMIT_FILES[controller, hierarchy.is_v2]) for controller in controllers]
    for path, inode in walk(hierarchy):
        directory = hierarchy.directory(path)
        for controller, limit_name, used_name in names:
            file = f"{directory}/{limit_name}"
            try:
                limit = read_limit(file)
            except KernelError:
                continue
            if not isinstance(limit, int):
                continue
            used: int | Unknown
            try:
                used = read_number(f"{directory}/{used_name}")
            except KernelError as error:
                used = Unknown(str(error))
            where = cgroup_id(hierarchy, controller, path, inode)
            yield controller, CgroupLimit(where, file, limit, used, own_unit_of(path))


def ancestry(layout: CgroupLayout, controller: str, path: str) -> tuple[CgroupLimit, ...]:
    """The controller's limit at a cgroup and at each of its ancestors, innermost first; the root, which has no limit, left out.

    Cgroups that are gone, and those in which the controller is off, are in it with an Unknown limit. Empty where nothing holds
    the controller.
    """
    hierarchy = layout.holding(controller)
    if hierarchy is None:
        return ()
    return tuple(read_cgroup_limit(hierarchy, controller, each) for each in ancestors_of(path) if each != "/")


def cgroup_id(hierarchy: Hierarchy, controller: str, path: str, inode: int = 0) -> CgroupId:
    """The identity of a cgroup in the hierarchy that holds `controller`."""
    return CgroupId(path, inode, "" if hierarchy.is_v2 else controller)


def read_inode(directory: str) -> int:
    """The inode of a cgroup's directory: the cgroup's id, never reused on version 2 while the machine is up.

    Raises: Gone, NotPermitted.
    """
    try:
        return os.stat(directory).st_ino
    except OSError as error:
        raise translated(error, directory) from error


def walk(hierarchy: Hierarchy, path: str = "/") -> Iterator[tuple[str, int]]:
    """Every cgroup at and below `path` with its inode, a parent before its children. Those that vanish meanwhile are left out.

    Raises: Gone, NotPermitted for `path` itself.
    """
    top = hierarchy.directory(path)
    try:
        status = os.stat(top)
    except OSError as error:
        raise translated(error, top) from error
    yield path, status.st_ino
    stack = [(top, "" if path == "/" else path)]
    while stack:
        directory, above = stack.pop()
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        # Relative to the open directory each stat looks up one name, not the whole path.
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    name = entry.name
                    yield f"{above}/{name}", status.st_ino
                    if status.st_nlink != 2:  # else a leaf; a file system that does not count subdirectories gives 1
                        stack.append((f"{directory}/{name}", f"{above}/{name}"))
        except OSError:
            continue
        finally:
            os.close(descriptor)


def child_names(directory: str, at_most: int | None = None) -> list[str]:
    """The names of a directory's child cgroups, or of the first few of them. A directory that vanished has none."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in islice((each for each in entries if each.is_dir(follow_symlinks=False)), at_most)]
    except OSError:
        return []


@dataclass(frozen=True)
class EventCounter:
    """Which file and field of a cgroup counts what a controller refused or killed, and how.

    `is_hierarchical`: `file` counts for all cgroups below as well, and `local_file` for this one only. Otherwise `file` is local.
    """

    controller: str
    file: str
    field: str
    local_file: str = ""

    @property
    def is_hierarchical(self) -> bool:
        return bool(self.local_file)


def read_event_counter(hierarchy: Hierarchy, controller: str, directory: str) -> EventCounter | None:
    """How this kernel counts the refusals of `controller` ("pids" or "memory"), seen at a cgroup that is not the root.

    None where the cgroup has no such files.
    """
    if not hierarchy.is_v2 and controller == "memory":
        counter = EventCounter("memory", "memory.oom_control", "oom_kill")
    else:
        local = f"{controller}.events.local"
        counts_locally = not hierarchy.is_v2 or f"{controller}_localevents" in hierarchy.options
        if counts_locally or not os.path.exists(f"{directory}/{local}"):
            local = ""
        counter = EventCounter(controller, f"{controller}.events", "max" if controller == "pids" else "oom_kill", local)
    return counter if os.path.exists(f"{directory}/{counter.file}") else None


def _local_memory_events(directory: str) -> Mapping[str, int]:
    try:
        return read_counters(f"{directory}/memory.events.local")
    except Gone:
        return read_counters(f"{directory}/memory.events")  # before Linux 5.2 it was local itself


def _optional_number(path: str) -> int | Unknown:
    try:
        return read_number(path)
    except Gone:
        return Unknown("not on this kernel")


def _absent(error: Gone, directory: str) -> KernelError:
    if os.path.isdir(directory):
        return InterfaceMissing(error.path, "not in this cgroup", "the controller is off here, or this is the root")
    return Gone(directory)


def _number(word: str, path: str) -> int:
    if not word.isascii() or not word.isdigit():
        raise Malformed(path, word)
    return int(word)
