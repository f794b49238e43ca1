# SPDX-License-Identifier: Apache-2.0
"""Which unit file sets a limit, by a plain look at systemd's load path; no bus is asked.

Hard facts (systemd 252 and 257):
- Of a unit's files the fragment counts first, then its drop-ins in the order of their names, wherever they lie; the last assignment
  wins. Of drop-ins with one name only that of the foremost directory is read. A unit foo-bar.service also takes foo-.service.d and
  service.d, an instance foo@x.service also foo@.service.d.
- `systemctl set-property` writes a drop-in below system.control, for a transient unit below transient; so does SetUnitProperties.
  A transient unit's files go with it.
- A unit that sets none, other than a slice, has DefaultTasksMax= (15 % where nothing says otherwise); no file of its own says so.
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from triaged.errors import KernelError
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.model.cgroup import container_of, is_user_manager
from triaged.model.facts import CgroupLimit

# The file of a cgroup and what sets it, the newest name first.
PROPERTIES = {
    "pids.max": ("TasksMax",),
    "memory.max": ("MemoryMax", "MemoryLimit"),
    "memory.limit_in_bytes": ("MemoryMax", "MemoryLimit"),
    "memory.high": ("MemoryHigh",),
    "cpu.max": ("CPUQuota",),
    "cpu.cfs_quota_us": ("CPUQuota",),
    "blkio.throttle.read_bps_device": ("IOReadBandwidthMax", "BlockIOReadBandwidth"),
    "blkio.throttle.write_bps_device": ("IOWriteBandwidthMax", "BlockIOWriteBandwidth"),
    "io.max": ("IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax"),
}
_FACTORS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_FILE_SIZE = 1 << 18
_PAGE = 4096


def with_origin(paths: KernelPaths, limit: CgroupLimit) -> CgroupLimit:
    """The limit with what set it, as far as files tell. About 0.3 ms."""
    return replace(limit, origin=read_limit_origin(paths, limit)) if isinstance(limit.limit, int) else limit


def read_limit_origin(paths: KernelPaths, limit: CgroupLimit) -> str:
    """What set a limit: "PATH:LINE, MemoryMax=150M" of its unit, or what else it may have been.

    Source: the unit load path (systemd.unit(5)). Where the file says something else than the cgroup holds, that is said too.
    """
    name = limit.file.rsplit("/", 1)[-1]
    if container_of(limit.cgroup.path):
        return "the container's runtime, from the container's options"
    if not limit.unit:
        return "whoever made the cgroup: it is no unit's"
    settings = PROPERTIES.get(name)
    if settings is None:
        return ""
    if is_user_manager(limit.cgroup.path):
        manager, remark = "user", " (files in the user's own directories are not looked at)"
    else:
        manager, remark = "system", ""
    found = _last_assignment(paths, limit.unit, settings, manager)
    if found is not None:
        where, setting, value = found
        differs = isinstance(limit.limit, int) and _differs(name, value, limit.limit)
        more = f"; the cgroup holds {limit.limit}: set otherwise since, or written by hand" if differs else ""
        return f"{where}, {setting}={value}{more}"
    if name == "pids.max" and not limit.unit.endswith(".slice"):
        return f"no unit file{remark}: DefaultTasksMax= (systemd-system.conf(5)), or set at run time"
    return f"no unit file that exists now{remark}: a transient unit's went with it, or it was written by hand"


def _last_assignment(paths: KernelPaths, unit: str, settings: Sequence[str], manager: str) -> tuple[str, str, str] | None:
    found = None
    for path in _files_of(paths, unit, manager):
        try:
            text = read_text(path, _FILE_SIZE)
        except KernelError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            name, separator, value = line.partition("=")
            if separator and name.strip() in settings:
                # An empty value takes back what was said before.
                found = (f"{path}:{number}", name.strip(), value.strip()) if value.strip() else None
    return found


def _load_path(paths: KernelPaths, manager: str) -> tuple[str, ...]:
    etc, run, lib = f"{paths.etc}/systemd", f"{paths.run}/systemd", f"{paths.usr_lib}/systemd"
    local = f"{os.path.dirname(paths.usr_lib)}/local/lib/systemd"
    if manager == "user":
        return (f"{etc}/user", f"{run}/user", f"{local}/user", f"{lib}/user")
    return (
        f"{etc}/system.control", f"{run}/system.control", f"{run}/transient", f"{run}/generator.early", f"{etc}/system",
        f"{run}/system", f"{run}/generator", f"{local}/system", f"{lib}/system", f"{run}/generator.late",
    )


def _files_of(paths: KernelPaths, unit: str, manager: str) -> Iterator[str]:
    """The files that make up a unit, in the order in which they count."""
    directories = _load_path(paths, manager)
    names = _names_of(unit)
    fragment = next(
        (path for name in names[:2] for directory in directories if os.path.isfile(path := f"{directory}/{name}")), None
    )
    if fragment is not None:
        yield fragment
    stem, _, kind = unit.rpartition(".")
    prefixes = [f"{stem[:at + 1]}.{kind}" for at in range(len(stem) - 1, 0, -1) if stem[at] == "-" and at + 1 < len(stem)]
    drop_ins: dict[str, str] = {}
    for name in (*names, *prefixes, kind):
        for directory in directories:
            try:
                found = os.listdir(f"{directory}/{name}.d")
            except OSError:
                continue
            for each in found:
                if each.endswith(".conf"):
                    drop_ins.setdefault(each, f"{directory}/{name}.d/{each}")
    for each in sorted(drop_ins):
        yield drop_ins[each]


def _names_of(unit: str) -> tuple[str, ...]:
    stem, _, kind = unit.rpartition(".")
    template, at, instance = stem.partition("@")
    return (unit, f"{template}@.{kind}") if at and instance else (unit,)


def _differs(file: str, value: str, limit: int) -> bool:
    factor = _FACTORS.get(value[-1:], 1)
    number = value[:-1] if factor > 1 else value
    if not number.isdecimal() or file.startswith(("cpu", "io")):
        return False  # infinity, a share of something, a rate: not to be compared here
    wanted = int(number) * factor
    return wanted // _PAGE != limit // _PAGE if file.startswith("memory") else wanted != limit
