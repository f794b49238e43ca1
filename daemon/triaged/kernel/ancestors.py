# SPDX-License-Identifier: Apache-2.0
"""The ancestors of a process with their cgroups, up to the first one that is elsewhere.

Hard facts:
- fork() inherits the cgroup. So a process whose parent is elsewhere was moved itself, or was born elsewhere by
  clone3(CLONE_INTO_CGROUP), or its parent was moved later.
- An orphan is given to pid 1 or to the nearest subreaper: its parent in /proc is then not the one that started it. Who that was is
  known only if it was seen when the process was executed.
"""
from __future__ import annotations

from dataclasses import replace

from triaged.errors import KernelError
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.kernel.process_table import ProcessTable
from triaged.model.process import ProcessIdentity
from triaged.model.way import Step, Way

_DEPTH = 32


def read_way(paths: KernelPaths, table: ProcessTable, process: ProcessIdentity) -> Way:
    """How the process got where it is. Of an ancestor that ended, what the table remembers. About 60 µs an ancestor.

    Source: /proc/PID/{stat,cgroup}. Ends early where an ancestor may not be read, or is not known any more.
    """
    steps = [_step(process)]
    current = process
    while len(steps) < _DEPTH and current.ppid > 0:
        parent, is_remembered = _parent(paths, table, current)
        if parent is None:
            break
        steps.append(_step(parent, is_remembered))
        if parent.cgroup and parent.cgroup != process.cgroup:
            break
        current = parent
    return Way(tuple(steps), table.executed_in(process))


def _parent(paths: KernelPaths, table: ProcessTable, child: ProcessIdentity) -> tuple[ProcessIdentity | None, bool]:
    try:
        parent = read_process(paths, child.ppid)
    except KernelError:
        parent = None
    # A parent that began after its child has only its number.
    if parent is not None and parent.start_ticks <= child.start_ticks:
        known = table.last_known(parent.pid)
        if known is not None and known.start_ticks == parent.start_ticks:
            parent = replace(parent, workload=known.workload)
        return parent, False
    return table.last_known(child.ppid), True


def _step(process: ProcessIdentity, is_remembered: bool = False) -> Step:
    is_workload = process.workload is not None
    return Step(process.pid, process.comm, process.exe, process.cgroup, is_remembered, process.start_ticks, is_workload)
