# SPDX-License-Identifier: Apache-2.0
"""The kernel's counters above a run, read before it and after: what they rose by is the run's, or its neighbours'."""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.model.cgroup import ancestors_of
from triaged.model.counter import READ_AT

Counters = dict[tuple[str, str], int]

_V2_FILES = (
    "pids.events", "pids.events.local", "memory.events", "memory.events.local", "memory.swap.events", "cpu.stat", "memory.pressure",
    "cpu.pressure", "io.pressure", "io.stat", "cgroup.stat.local",
)
_V1_FILES = {
    "pids": ("pids.events",), "memory": ("memory.failcnt", "memory.oom_control"), "cpu": ("cpu.stat",), "hugetlb": (),
}
_HOST_FILES = ("vmstat", "net/netstat", "net/snmp", "pressure/memory", "pressure/cpu", "pressure/io")
# Of the longer files only these: the rest is thousands of numbers that speak of no limit.
_WANTED = {
    "vmstat": frozenset({"oom_kill"}),
    "netstat": frozenset({
        "ListenOverflows", "ListenDrops", "TCPBacklogDrop", "TCPReqQFullDrop", "TCPAbortOnMemory", "TCPMemoryPressures",
        "PruneCalled",
    }),
    "snmp": frozenset({"RcvbufErrors", "SndbufErrors", "MemErrors"}),
}


def counter_files(paths: KernelPaths, layout: CgroupLayout, cgroups: Mapping[str, str]) -> list[str]:
    """The files that count for a process in these cgroups: of each cgroup and its ancestors, and of the machine."""
    files = [f"{paths.proc}/{name}" for name in _HOST_FILES]
    for hierarchy in layout.hierarchies:
        names = _V2_FILES if hierarchy.is_v2 else tuple(
            name for controller in sorted(hierarchy.controllers) for name in _V1_FILES.get(controller, ())
        )
        path = cgroups.get("" if hierarchy.is_v2 else hierarchy.name)
        if not names or path is None:
            continue
        for each in ancestors_of(path):
            try:
                directory = hierarchy.directory(each)
            except KernelError:
                continue  # a part of the tree that is not shown here
            files += [f"{directory}/{name}" for name in names]
    return files


def read_counters(files: Iterable[str], *, is_stamped: bool = False) -> Counters:
    """Every counter in the files, by file and name; files that are not there are left out.

    A file that is one number counts under its own name. Pressure: µs stalled, as "some" and "full". Network: the field's name.
    I/O: "253:0 wbytes". `is_stamped`: with the time at which each file was read, also where it counts nothing yet.
    """
    found: Counters = {}
    for path in files:
        try:
            text = read_text(path)
        except KernelError:
            continue  # the controller is off, the kernel is older, the cgroup went away
        if is_stamped:
            found[(path, READ_AT)] = time.monotonic_ns() // 1000
        name = os.path.basename(path)
        wanted = _WANTED.get(name)
        parse = _PARSERS.get(name)
        pairs = parse(text) if parse is not None else _pairs(text, name)
        found.update(((path, key), value) for key, value in pairs if wanted is None or key in wanted)
    return found


def _pairs(text: str, name: str) -> Iterable[tuple[str, int]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1 and words[0].isdecimal():
            yield name, int(words[0])
        elif len(words) == 2 and words[1].isdecimal():
            yield words[0], int(words[1])
        elif words and words[-1].startswith("total=") and words[-1][6:].isdecimal():
            yield words[0], int(words[-1][6:])


def _pairs_of_tables(text: str) -> Iterable[tuple[str, int]]:
    """Lines in pairs: "TcpExt: NAME ..." and "TcpExt: NUMBER ..."."""
    lines = text.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        for key, value in zip(names.split()[1:], values.split()[1:], strict=False):
            if value.isdecimal():
                yield key, int(value)


def _pairs_of_devices(text: str) -> Iterable[tuple[str, int]]:
    """Lines of io.stat: "253:0 rbytes=0 wbytes=4096 ..."."""
    for line in text.splitlines():
        device, *fields = line.split()
        for field in fields:
            name, _, value = field.partition("=")
            if value.isdecimal():
                yield f"{device} {name}", int(value)


_PARSERS: Mapping[str, Callable[[str], Iterable[tuple[str, int]]]] = {
    "netstat": _pairs_of_tables, "snmp": _pairs_of_tables, "io.stat": _pairs_of_devices,
}
