# SPDX-License-Identifier: Apache-2.0
"""Which processes there are and were: what was read while they lived, for the time after."""
from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from triaged.errors import Gone, KernelError, NotPermitted
from triaged.kernel.build_info import BuildInfoCache
from triaged.kernel.go_module import read_package_in
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import (
    parse_cgroups,
    pids,
    read_cgroup_record,
    read_ci_job,
    read_comm,
    read_exe,
    read_process,
    read_start_ticks,
)
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.workload import PackageFrom, WorkloadDefinition, match_workload

_ANSWERS_CAP = 1024
_PARSED_CAP = 256


class ProcessTable:
    """Processes by pid, the newest `cap` of them; what was forgotten for lack of room is counted in `forgotten`.

    Of a process of no workload that was only seen to be executed, as little as is needed is kept (about 100 bytes).
    Live processes of workloads are kept apart from the rest (`workload_processes`), at most `cap` too.
    `unreadable_programs` counts executables that were no sound ELF files; `unreadable_processes` are those whose
    executable the last look through /proc might not read. `on_new_place` is called, in whatever thread reads, when a
    process of a workload is found in a cgroup in which none lived.
    """

    def __init__(self, paths: KernelPaths, workloads: Sequence[WorkloadDefinition], cap: int = 4096) -> None:
        self._paths = paths
        self._definitions = tuple(workloads)
        self._cap = cap
        self._known: OrderedDict[int, ProcessIdentity] = OrderedDict()
        self._brief: dict[int, tuple[str, str, Mapping[str, str]]] = {}
        self._inherited: OrderedDict[int, None] = OrderedDict()
        self._live: dict[int, ProcessIdentity] = {}
        self._parsed: dict[tuple[str, str, bytes], tuple[str, str, Mapping[str, str]]] = {}
        self._answers: dict[str, bool] = {}
        self._build_infos = BuildInfoCache()
        self._executed_in: dict[tuple[int, int], str] = {}
        self._places: Counter[str] = Counter()
        self.on_new_place: Callable[[], None] = lambda: None
        self.forgotten = 0
        self.unreadable_programs = 0
        self.unreadable_processes = 0

    def may_be_workload(self, exe: str) -> bool:
        """Whether some workload has executables of that name. Cheap: asked for every exec."""
        answer = self._answers.get(exe)
        if answer is None:
            if len(self._answers) >= _ANSWERS_CAP:
                self._answers.clear()
            answer = any(pattern.matches_exe(exe) for definition in self._definitions for pattern in definition.processes)
            self._answers[exe] = answer
        return answer

    def role_by_exe(self, exe: str) -> str:
        """What a process that is gone may have been, by the name of its program alone: a workload's role, or ""."""
        patterns = (pattern for definition in self._definitions for pattern in definition.processes)
        return next((pattern.role for pattern in patterns if pattern.matches_exe(exe)), "")

    def read(self, pid: int) -> ProcessIdentity:
        """A live process, with its workload and CI job; remembers it.

        Raises: Gone, NotPermitted, Malformed.
        """
        identity = self._recognised(read_process(self._paths, pid))
        known = self.last_known(pid)
        if known is not None and known.start_ticks in (0, identity.start_ticks) and not (identity.exe and identity.cgroups):
            return known  # a zombie, or about to be one: little is left of it
        self.remember(identity)
        return identity

    def identify(self, pid: int) -> ProcessIdentity | None:
        """Who a pid is: as /proc has it now, else as it was last known; None where it was never seen.

        A pid that was reused meanwhile gives the new process: compare what the event says of it (see `last_known`).
        """
        try:
            return self.read(pid)
        except KernelError:
            return self.last_known(pid)

    def remember_executed(self, pid: int, exe: str) -> None:
        """Keeps of a process of no workload what a later record cannot tell: its cgroup; and its comm, which tells whether the
        record speaks of the same process. About 30 µs.

        Raises: Gone, NotPermitted, Malformed.
        """
        record = read_cgroup_record(self._paths, pid)
        comm = read_comm(self._paths, pid)
        # Most are the same few programs in the same few places: they share what is kept.
        brief = self._parsed.get((exe, comm, record))
        if brief is None:
            if len(self._parsed) >= _PARSED_CAP:
                self._parsed.clear()
            brief = self._parsed[exe, comm, record] = (exe, comm, parse_cgroups(record, f"{self._paths.proc}/{pid}/cgroup"))
        self._known.pop(pid, None)
        self._inherited.pop(pid, None)
        self._drop_live(pid)
        self._brief.pop(pid, None)  # the newest goes to the end
        self._brief[pid] = brief
        if len(self._brief) > self._cap:
            del self._brief[next(iter(self._brief))]
            self.forgotten += 1

    def look_again(self, pid: int) -> None:
        """Reads a process that an event spoke of, if it lives and was not read in full since its last exec.

        The exec that made it what it is may have been lost in a burst, so a known process is compared by its executable.
        """
        known = self.last_known(pid)
        try:
            if known is None or not known.start_ticks or read_exe(self._paths, pid) != known.exe:
                self.read(pid)
        except KernelError:
            return  # gone: what is known of it stays

    def last_known(self, pid: int) -> ProcessIdentity | None:
        """What was last read of a pid, without looking again."""
        identity = self._known.get(pid)
        if identity is None and pid in self._brief:
            exe, comm, cgroups = self._brief[pid]
            identity = ProcessIdentity(pid=pid, comm=comm, exe=exe, cgroups=cgroups)
        return identity

    def remember(self, identity: ProcessIdentity) -> None:
        """Keeps an identity; the least recently remembered one makes room."""
        self._brief.pop(identity.pid, None)
        self._inherited.pop(identity.pid, None)
        self._known[identity.pid] = identity
        self._known.move_to_end(identity.pid)
        if len(self._known) > self._cap:
            self._known.popitem(last=False)
            self.forgotten += 1
        if identity.workload is None:
            self._drop_live(identity.pid)
        elif identity.pid in self._live or len(self._live) < self._cap:
            self._drop_live(identity.pid)
            self._live[identity.pid] = identity
            self._places[identity.cgroup] += 1
            if identity.cgroup:
                self._executed_in.setdefault((identity.pid, identity.start_ticks), identity.cgroup)
                if len(self._executed_in) > self._cap:
                    del self._executed_in[next(iter(self._executed_in))]
            if self._places[identity.cgroup] == 1:
                self.on_new_place()
        else:
            self.forgotten += 1

    def remember_killed(self, pid: int, parent: int, may_look: bool = True) -> None:
        """Takes note that a signal ended a process. Of one that was never read (it lived too short, or it only forked) the
        parent's cgroup is taken: a child is born into it. An unknown parent is looked up if `may_look`.
        """
        known = self.last_known(pid) or ProcessIdentity(pid=pid)
        if known.cgroups:
            return
        origin = self.last_known(parent) or (self.identify(parent) if may_look else None)
        if origin is not None:
            self.remember(replace(known, ppid=parent, cgroups=origin.cgroups))
            self._inherited[pid] = None
            if len(self._inherited) > self._cap:
                self._inherited.popitem(last=False)

    def is_inherited(self, pid: int) -> bool:
        """Whether the cgroup that is known of a process is only its parent's: it may have been put elsewhere meanwhile."""
        return pid in self._inherited

    def workload_processes(self) -> list[ProcessIdentity]:
        """The processes of workloads that live as far as is known."""
        return list(self._live.values())

    def ended(self, identity: ProcessIdentity) -> None:
        """Takes note that a process of a workload ended; what was read of it is kept."""
        live = self._live.get(identity.pid)
        if live is not None and live.start_ticks == identity.start_ticks:
            self._drop_live(identity.pid)
        self._executed_in.pop((identity.pid, identity.start_ticks), None)

    def _drop_live(self, pid: int) -> None:
        live = self._live.pop(pid, None)
        if live is not None:
            self._places[live.cgroup] -= 1
            if not self._places[live.cgroup]:
                del self._places[live.cgroup]

    def executed_in(self, identity: ProcessIdentity) -> str:
        """The cgroup in which a live process of a workload was first seen; '' where that was not noted."""
        return self._executed_in.get((identity.pid, identity.start_ticks), "")

    def rescan(self) -> list[ProcessIdentity]:
        """Looks through all of /proc for processes of workloads; those found. Blocking, about 10 µs a process.

        Raises: InterfaceMissing or NotPermitted where /proc cannot be listed.
        """
        return [identity for identity in self.rescan_steps() if identity is not None]

    def rescan_steps(self) -> Iterator[ProcessIdentity | None]:
        """As `rescan`, one process a step (None: of no workload), so that the caller can let others run in between.

        Raises: as `rescan`.
        """
        self.unreadable_processes = 0
        for pid in pids(self._paths):
            # exe alone tells nearly all apart: a third of the cost of reading cmdline as well (measured on 6.18).
            try:
                found = self.read(pid) if self.may_be_workload(read_exe(self._paths, pid)) else None
            except NotPermitted:
                self.unreadable_processes += 1
                found = None
            except KernelError:
                found = None
            yield found if found and found.workload else None

    def forget_dead(self) -> list[ProcessIdentity]:
        """Looks at each live process of a workload again; those that ended. Blocking, about 15 µs a process."""
        ended = [identity for identity in self.workload_processes() if not self.is_alive(identity)]
        for identity in ended:
            self.ended(identity)
        return ended

    def is_alive(self, identity: ProcessIdentity) -> bool:
        """Whether exactly this process still exists (a zombie does)."""
        try:
            return read_start_ticks(self._paths, identity.pid) == identity.start_ticks
        except Gone:
            return False
        except KernelError:
            return True

    def _recognised(self, identity: ProcessIdentity) -> ProcessIdentity:
        match = match_workload(self._definitions, identity.exe, identity.argv) if identity.exe else None
        if match is None:
            return identity
        definition, pattern = match
        package = toolchain = ""
        if pattern.package_from is PackageFrom.GO_BUILD_INFO:
            package, toolchain = self._go_package(identity.pid)
        try:
            ci_job = read_ci_job(self._paths, identity.pid)
        except KernelError:
            ci_job = ""  # it ended meanwhile; what was read of it is still worth keeping
        return replace(identity, workload=WorkloadMatch(definition.name, pattern.role, package, toolchain), ci_job=ci_job)

    def _go_package(self, pid: int) -> tuple[str, str]:
        package = toolchain = ""
        try:
            info = self._build_infos.read(f"{self._paths.proc}/{pid}/exe")
            if info is not None:
                package, toolchain = info.tested_package, info.go_version
            # Built from a list of files, the binary calls itself command-line-arguments.
            if info is not None and not package:
                package = read_package_in(self._paths, pid)
        except Gone:
            pass
        except KernelError:
            self.unreadable_programs += 1
        return package, toolchain
