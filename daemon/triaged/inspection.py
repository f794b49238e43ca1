# SPDX-License-Identifier: Apache-2.0
"""Everything that bounds one process or one unit, with what is in use of it: `triagectl inspect` and D-Bus InspectProcess."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from triaged.errors import Gone, KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.cgroups import walk
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.sockets import read_accept_queues
from triaged.kernel.usage import (
    read_cgroup_usage,
    read_host_usage,
    read_port_usage,
    read_process_usage,
    read_user_usage,
)
from triaged.model.process import ProcessIdentity
from triaged.model.usage import Usage, binding

_MEMBERS = 200


@dataclass(frozen=True)
class Inspection:
    """What was read of one process, or of one unit (`process` is then None). `blind` says what could not be read, and why.

    `members` are the processes of the unit's cgroup, at most 200.
    """

    process: ProcessIdentity | None
    cgroup: str
    usages: tuple[Usage, ...]
    blind: tuple[str, ...]
    members: tuple[ProcessIdentity, ...] = ()

    def binding(self) -> tuple[Usage, ...]:
        """For each resource the limit that is reached first, the nearest to its limit first."""
        resources = dict.fromkeys(usage.resource for usage in self.usages)
        first = [usage for usage in (binding(self.usages, resource) for resource in resources) if usage is not None]
        return tuple(sorted(first, key=lambda usage: -(usage.share or 0.0)))


def _gathered(parts: list[tuple[str, Callable[[], Iterator[Usage]]]], usages: list[Usage], blind: list[str]) -> None:
    for what, read in parts:
        try:
            usages += read()
        except KernelError as error:
            blind.append(f"{what}: {error.shown()}")


def _layout(paths: KernelPaths, blind: list[str]) -> CgroupLayout:
    try:
        return read_layout(paths)
    except KernelError as error:
        blind.append(f"cgroups: {error.shown()}")
        return CgroupLayout(())


def inspect_process(paths: KernelPaths, table: ProcessTable, pid: int) -> Inspection:
    """One process, its user, its cgroup with every ancestor, and the host. Looks through all of /proc.

    Raises: Gone if there is no such process, NotPermitted if it may not be read at all.
    """
    process = table.identify(pid)
    if process is None:
        process = read_process(paths, pid)
    usages: list[Usage] = []
    blind: list[str] = []
    layout = _layout(paths, blind)
    _gathered(
        [
            ("the process", lambda: read_process_usage(paths, process)),
            ("accept queues", lambda: read_accept_queues(paths, pid)),
            ("ports", lambda: read_port_usage(paths, process)),
            ("tasks of the cgroup", lambda: read_cgroup_usage(layout, "pids", process.cgroup_for("pids"))),
            ("memory of the cgroup", lambda: read_cgroup_usage(layout, "memory", process.cgroup_for("memory"))),
            ("the user", lambda: read_user_usage(paths, process)),
            ("the host", lambda: read_host_usage(paths)),
        ],
        usages, blind,
    )
    return Inspection(process, process.cgroup, tuple(usages), tuple(blind))


def find_unit(layout: CgroupLayout, unit: str) -> str:
    """The cgroup path of a unit, found by its name in the cgroup tree; '' where no cgroup has it. `unit` may be a path already."""
    if unit.startswith("/"):
        return unit
    for hierarchy in layout.hierarchies:
        for path, _ in walk(hierarchy):
            if path.rsplit("/", 1)[-1] == unit:
                return path
    return ""


def inspect_unit(paths: KernelPaths, table: ProcessTable, unit: str) -> Inspection:
    """One unit (or cgroup path): its cgroup with every ancestor, and the host. Raises: Gone if it has no cgroup."""
    usages: list[Usage] = []
    blind: list[str] = []
    layout = _layout(paths, blind)
    path = find_unit(layout, unit)
    if not path:
        raise Gone(unit)
    _gathered(
        [
            ("tasks", lambda: read_cgroup_usage(layout, "pids", path)),
            ("memory", lambda: read_cgroup_usage(layout, "memory", path)),
            ("the host", lambda: read_host_usage(paths)),
        ],
        usages, blind,
    )
    members = tuple(_members(paths, table, layout, path))
    for process in members:
        if process.workload is not None:
            _gathered([(f"process {process.pid}", lambda who=process: read_process_usage(paths, who))], usages, blind)  # type: ignore[misc]
    return Inspection(None, path, tuple(usages), tuple(blind), members)


def _members(paths: KernelPaths, table: ProcessTable, layout: CgroupLayout, path: str) -> Iterator[ProcessIdentity]:
    seen: set[int] = set()
    for hierarchy in layout.hierarchies:
        try:
            text = read_text(f"{hierarchy.directory(path)}/cgroup.procs")
        except KernelError:
            continue
        for word in text.split():
            pid = int(word)
            if pid in seen or len(seen) >= _MEMBERS:
                continue
            seen.add(pid)
            process = table.identify(pid)
            if process is not None:
                yield process
