# SPDX-License-Identifier: Apache-2.0
"""Which cgroup hierarchies there are and where: version 2, version 1, or both beside each other (hybrid).

Hard facts:
- A controller belongs to one hierarchy only: to a version 1 mount, or to version 2 (whose root lists it in cgroup.controllers).
- In a container without a cgroup namespace the mount shows a part of the tree: its `root` in mountinfo is
  a prefix of every path in /proc/PID/cgroup and in the kernel log.
- The mount options memory_localevents and pids_localevents of version 2 change what its counters mean.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from triaged.errors import Gone, InterfaceMissing, KernelError, Malformed
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths

_CANONICAL_MOUNT = "/sys/fs/cgroup"
_V1_CONTROLLERS = frozenset({
    "cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls", "perf_event", "net_prio", "hugetlb", "pids",
    "rdma", "misc",
})
_OCTAL = re.compile(r"\\([0-7]{3})")


class LayoutKind(str, Enum):
    """v1: only version 1; v2: only version 2 holds controllers; hybrid: both are mounted; none: no cgroup file system."""

    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"
    NONE = "none"


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy. `name` is "" for version 2, else its first controller or "name=systemd".

    `mount` is the directory that shows the cgroup `root`; `options` are the mount options of the file system.
    """

    name: str
    mount: str
    root: str = "/"
    controllers: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()

    @property
    def is_v2(self) -> bool:
        return self.name == ""

    def directory(self, path: str) -> str:
        """The directory of the cgroup `path`.

        Raises: Gone where the mount does not show that part of the tree.
        """
        if self.root == "/":
            return self.mount if path == "/" else self.mount + path
        if path == self.root:
            return self.mount
        if path.startswith(self.root + "/"):
            return self.mount + path[len(self.root) :]
        raise Gone(path)


@dataclass(frozen=True)
class CgroupLayout:
    """All mounted hierarchies."""

    hierarchies: tuple[Hierarchy, ...]

    @property
    def kind(self) -> LayoutKind:
        versions = {hierarchy.is_v2 for hierarchy in self.hierarchies}
        if not versions:
            return LayoutKind.NONE
        if len(versions) == 2:
            return LayoutKind.HYBRID
        return LayoutKind.V2 if True in versions else LayoutKind.V1

    def holding(self, controller: str) -> Hierarchy | None:
        """The hierarchy that limits `controller` ("pids", "memory", "cpu"), or None where none does."""
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers:
                return hierarchy
        return None

    @property
    def unified(self) -> Hierarchy | None:
        """Version 2's hierarchy, with or without controllers."""
        return next((hierarchy for hierarchy in self.hierarchies if hierarchy.is_v2), None)


def read_layout(paths: KernelPaths) -> CgroupLayout:
    """The hierarchies that are mounted where this process can see them.

    Source: /proc/self/mountinfo (proc_pid_mountinfo(5)), cgroup.controllers of version 2's root.
    Raises: InterfaceMissing where no cgroup file system is mounted; Malformed, NotPermitted.
    """
    path = f"{paths.proc}/self/mountinfo"
    found = []
    for hierarchy in parse_hierarchies(read_text(path), paths.cgroup, path):
        if hierarchy.is_v2:
            hierarchy = _with_controllers(hierarchy)
        found.append(hierarchy)
    if not found:
        raise InterfaceMissing(paths.cgroup, "no cgroup file system is mounted", "mount cgroup2 on /sys/fs/cgroup")
    return CgroupLayout(tuple(found))


def _with_controllers(hierarchy: Hierarchy) -> Hierarchy:
    try:
        names = read_text(f"{hierarchy.mount}/cgroup.controllers").split()
    except KernelError:
        names = []
    return Hierarchy(hierarchy.name, hierarchy.mount, hierarchy.root, frozenset(names), hierarchy.options)


def parse_hierarchies(text: str, cgroup: str = _CANONICAL_MOUNT, path: str = "mountinfo") -> tuple[Hierarchy, ...]:
    """The cgroup hierarchies in a mountinfo text; of several mounts of one, the one that shows most of it.

    `cgroup` is where /sys/fs/cgroup is (elsewhere in a fixture tree). Version 2's `controllers` are left empty.
    Raises: Malformed.
    """
    best: dict[str, Hierarchy] = {}
    for line in text.split("\n"):
        head, separator, tail = line.partition(" - ")
        if not separator:
            if line:
                raise Malformed(path, line)
            continue
        kind = tail.partition(" ")[0]
        if kind not in ("cgroup", "cgroup2"):
            continue
        fields, rest = head.split(" "), tail.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            raise Malformed(path, line)
        root, mount = _unescaped(fields[3]), _unescaped(fields[4])
        options = frozenset(rest[2].split(","))
        controllers = options & _V1_CONTROLLERS if kind == "cgroup" else frozenset()
        named = next((option for option in sorted(options) if option.startswith("name=")), "")
        if kind == "cgroup" and not controllers and not named:
            continue
        name = "" if kind == "cgroup2" else named or min(controllers, key=rest[2].split(",").index)
        if mount == _CANONICAL_MOUNT or mount.startswith(_CANONICAL_MOUNT + "/"):
            mount = cgroup + mount[len(_CANONICAL_MOUNT) :]
        elif cgroup != _CANONICAL_MOUNT:
            continue
        known = best.get(name)
        new = Hierarchy(name, mount, root, controllers, options)
        if known is None or _preference(new, cgroup) < _preference(known, cgroup):
            best[name] = new
    return tuple(best.values())


def _preference(hierarchy: Hierarchy, cgroup: str) -> tuple[int, bool]:
    # The whole tree before a part of it, the usual place before another one.
    return (0 if hierarchy.root == "/" else len(hierarchy.root), not hierarchy.mount.startswith(cgroup))


def _unescaped(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), field)
