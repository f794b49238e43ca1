# SPDX-License-Identifier: Apache-2.0
"""The I/O limits of a cgroup and each ancestor, with what was read and written so far.

Hard facts:
- Version 2: io.max, "MAJOR:MINOR rbps=max wbps=1048576 riops=max wiops=max" a device; io.stat counts what is below too. Buffered
  writes count as the cgroup's own when they are written out: the memory controller tells whose pages they are.
- Version 1: blkio.throttle.*_device, "MAJOR:MINOR LIMIT"; blkio.throttle.io_service_bytes_recursive and io_serviced_recursive.
  Buffered writes are nobody's there, and pass every limit. There is no pressure.
- Nothing counts how often a limit was hit: what shows it is a rate at the limit, and tasks that stand still.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from triaged.errors import Gone, KernelError, Malformed
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.cgroups import cgroup_id, read_inode
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.kernel.pressure import read_pressure
from triaged.model.cgroup import CgroupId, ancestors_of, own_unit_of
from triaged.model.limit import Unknown

_V1_LIMITS = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops", "wiops": "write_iops"}
_V2_COUNTERS = {"rbps": "rbytes", "wbps": "wbytes", "riops": "rios", "wiops": "wios"}

ByDevice = Mapping[tuple[str, str], int]


@dataclass(frozen=True)
class IoState:
    """A cgroup with I/O limits: each by (major:minor, what), with the counter of the same key; `stalled_usec` is PSI io full."""

    cgroup: CgroupId
    file: str
    unit: str
    limits: ByDevice
    done: ByDevice
    stalled_usec: int | Unknown
    counter_file: str


def read_io(layout: CgroupLayout, path: str) -> Iterator[IoState]:
    """The cgroups from `path` to the root that have an I/O limit, innermost first.

    Source: see the module's facts. Raises: NotPermitted, Malformed; what was removed, or has no such controller, is left out.
    """
    hierarchy = layout.holding("io") or layout.holding("blkio")
    if hierarchy is None or not path:
        return
    for each in ancestors_of(path):
        try:
            directory = hierarchy.directory(each)
            if each == "/" and hierarchy.is_v2:
                return  # the root has no limits
            file = f"{directory}/io.max" if hierarchy.is_v2 else f"{directory}/blkio.throttle.write_bps_device"
            limits = parse_io_max(read_text(file, 1 << 16), file) if hierarchy.is_v2 else _v1_limits(directory)
            if not limits:
                continue
            if hierarchy.is_v2:
                counter_file = f"{directory}/io.stat"
                done = parse_io_stat(read_text(counter_file, 1 << 16), counter_file)
                stalled = _stalled(f"{directory}/io.pressure")
            else:
                counter_file = f"{directory}/blkio.throttle.io_service_bytes_recursive"
                done = {
                    **parse_v1_counters(read_text(counter_file, 1 << 16), "bps", counter_file),
                    **parse_v1_counters(read_text(f"{directory}/blkio.throttle.io_serviced_recursive", 1 << 16), "iops"),
                }
                stalled = Unknown("version 1 has no pressure")
                of_limit = next(what for _, what in limits)
                file = f"{directory}/blkio.throttle.{_V1_LIMITS[of_limit]}_device"
            where = cgroup_id(hierarchy, "blkio", each, read_inode(directory))
        except Gone:
            continue
        yield IoState(where, file, own_unit_of(each), limits, done, stalled, counter_file)


def counter_name(device: str, what: str) -> str:
    """Under which name a run's counters have what counts towards a limit: "253:0 wbytes"."""
    return f"{device} {_V2_COUNTERS[what]}"


def read_device_name(paths: KernelPaths, number: str) -> str:
    """The name of a block device ("/dev/vda") by "MAJOR:MINOR", or the number. Source: /sys/dev/block/MAJOR:MINOR/uevent."""
    try:
        text = read_text(f"{paths.sys}/dev/block/{number}/uevent", 4096)
    except KernelError:
        return number
    name = next((line[8:] for line in text.splitlines() if line.startswith("DEVNAME=")), "")
    return f"/dev/{name}" if name else number


def parse_io_max(text: str, path: str = "io.max") -> ByDevice:
    """The finite limits of an io.max, by device and kind. Raises: Malformed."""
    return {
        (device, what): number for device, fields in _lines(text, path)
        for what, value in fields if what in _V2_COUNTERS and value != "max" and (number := _number(value, path)) >= 0
    }


def parse_io_stat(text: str, path: str = "io.stat") -> ByDevice:
    """The counters of an io.stat under the names that io.max has for them. Raises: Malformed."""
    names = {counter: what for what, counter in _V2_COUNTERS.items()}
    return {
        (device, names[counter]): _number(value, path) for device, fields in _lines(text, path)
        for counter, value in fields if counter in names
    }


def parse_v1_counters(text: str, kind: str, path: str = "blkio") -> ByDevice:
    """The Read and Write lines of version 1's counters; `kind` is "bps" or "iops". Raises: Malformed."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in ("Read", "Write"):
            found[words[0], ("r" if words[1] == "Read" else "w") + kind] = _number(words[2], path)
    return found


def _v1_limits(directory: str) -> ByDevice:
    found = {}
    for what, name in _V1_LIMITS.items():
        path = f"{directory}/blkio.throttle.{name}_device"
        for line in read_text(path, 1 << 16).splitlines():
            device, _, value = line.partition(" ")
            found[device, what] = _number(value, path)
    return found


def _lines(text: str, path: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for line in text.splitlines():
        device, *words = line.split()
        if ":" not in device:
            raise Malformed(path, line)
        fields = [word.partition("=") for word in words]
        yield device, [(name, value) for name, separator, value in fields if separator]


def _number(text: str, path: str) -> int:
    if not text.isdecimal():
        raise Malformed(path, text)
    return int(text)


def _stalled(path: str) -> int | Unknown:
    try:
        return read_pressure(path).full_usec
    except KernelError as error:
        return Unknown(str(error))
