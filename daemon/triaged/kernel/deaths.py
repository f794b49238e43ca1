# SPDX-License-Identifier: Apache-2.0
"""Why a process may have got a SIGKILL: what is read when it begins, and again when it has ended.

Hard facts:
- The kernel raises oom_kill of the victim's cgroup, and of /proc/vmstat, before it sends the signal (mm/oom_kill.c,
  __oom_kill_process). So an unchanged counter after the end is a proof. vmstat counts every OOM kill of the machine, a cgroup's or
  not.
- Beyond the hard RLIMIT_CPU the kernel sends SIGKILL (posix-cpu-timers.c); no counter and no log says so.
- Nothing tells afterwards who sent a signal. What can be known is who might have: a parent that is `timeout`, an emptied cgroup.
- Of a process that ended and was not yet reaped /proc/PID/stat still gives its CPU time.
"""
from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from triaged.errors import Gone, KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.cgroups import read_counters
from triaged.kernel.files import read_bytes, read_text
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import parse_stat, read_process
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.resource_limits import read_resource_limits
from triaged.model.cgroup import ancestors_of
from triaged.model.killed import KillEvidence, OomCounter, Relative
from triaged.model.limit import Limit, Unknown
from triaged.model.process import ProcessIdentity

_CAP = 512
_RELATIVES = 3
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class _Beginning:
    counters: tuple[tuple[str, str, int], ...]
    host: int | None
    cpu_limit: Limit
    relatives: tuple[tuple[Relative, int], ...]


class Witness:
    """Remembers what was so when a process of a workload began, of at most 512 of them."""

    def __init__(self, paths: KernelPaths, table: ProcessTable) -> None:
        self._paths = paths
        self._table = table
        self._layout: CgroupLayout | None = None
        self._begun: OrderedDict[tuple[int, int], _Beginning] = OrderedDict()

    def begin(self, process: ProcessIdentity) -> None:
        """Takes note of the counters above a process. About 0.3 ms."""
        key = (process.pid, process.start_ticks)
        if key in self._begun:
            return
        files = self._files(process)
        counters = [(path, file, self._read(file)) for path, file in files]
        known = tuple((path, file, count) for path, file, count in counters if isinstance(count, int))
        host = self._read_host()
        try:
            limit: Limit = read_resource_limits(self._paths, process.pid)["CPU"].hard
        except (KernelError, KeyError) as error:
            limit = Unknown(str(error))
        self._begun[key] = _Beginning(known, host if isinstance(host, int) else None, limit, self._relatives(process))
        if len(self._begun) > _CAP:
            self._begun.popitem(last=False)

    def forget(self, process: ProcessIdentity) -> None:
        """Forgets a process that ended otherwise."""
        self._begun.pop((process.pid, process.start_ticks), None)

    def end(self, process: ProcessIdentity) -> KillEvidence | None:
        """What can be said of the end of a process; None if its beginning was not seen."""
        began = self._begun.pop((process.pid, process.start_ticks), None)
        if began is None:
            return None
        counters = tuple(OomCounter(path, file, before, self._read(file)) for path, file, before in began.counters)
        host = None
        if began.host is not None:
            host = OomCounter("", f"{self._paths.proc}/vmstat", began.host, self._read_host())
        used = self._cpu_used(process)
        # Start times count from boot, with the time of suspension.
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        relatives = tuple(replace(each, age_s=max(now - start / _TICKS_PER_S, 0.0)) for each, start in began.relatives)
        return KillEvidence(counters, host, used, began.cpu_limit, relatives, self._is_empty(process))

    def _files(self, process: ProcessIdentity) -> list[tuple[str, str]]:
        try:
            self._layout = self._layout or read_layout(self._paths)
            hierarchy = self._layout.holding("memory")
            path = process.cgroup_for("memory")
            if hierarchy is None or not path:
                return []
            name = "memory.events" if hierarchy.is_v2 else "memory.oom_control"
            return [(each, f"{hierarchy.directory(each)}/{name}") for each in ancestors_of(path) if each != "/"]
        except KernelError:
            return []

    def _read(self, file: str) -> int | Unknown:
        try:
            return read_counters(file).get("oom_kill", 0)
        except Gone:
            return Unknown("the cgroup was removed")
        except KernelError as error:
            return Unknown(str(error))

    def _read_host(self) -> int | Unknown:
        path = f"{self._paths.proc}/vmstat"
        try:
            count = read_counters(path).get("oom_kill")
        except KernelError as error:
            return Unknown(str(error))
        return Unknown("this kernel does not count it") if count is None else count

    def _cpu_used(self, process: ProcessIdentity) -> float | Unknown:
        path = f"{self._paths.proc}/{process.pid}/stat"
        try:
            record = read_bytes(path, 4096)
            if parse_stat(record, path).start_ticks != process.start_ticks:
                return Unknown("it was reaped")
        except KernelError:
            return Unknown("it was reaped")
        user, system = record[record.rfind(b")") + 1 :].split()[11:13]
        return (int(user) + int(system)) / _TICKS_PER_S

    def _relatives(self, process: ProcessIdentity) -> tuple[tuple[Relative, int], ...]:
        """The processes above it, each with its start in ticks since boot."""
        found: list[tuple[Relative, int]] = []
        pid = process.ppid
        while pid > 1 and len(found) < _RELATIVES:
            try:
                parent = read_process(self._paths, pid)
            except KernelError:
                break
            found.append((Relative(pid, parent.comm, parent.argv), parent.start_ticks))
            pid = parent.ppid
        return tuple(found)

    def _is_empty(self, process: ProcessIdentity) -> bool:
        if self._layout is None:
            return False
        for hierarchy in self._layout.hierarchies:
            path = process.cgroups.get(hierarchy.name, "")
            if path != process.cgroup or path in ("", "/"):
                continue
            try:
                text = read_text(f"{hierarchy.directory(path)}/cgroup.procs")
            except Gone:
                return True
            except KernelError:
                return False
            return all(int(word) == process.pid for word in text.split())
        return False
