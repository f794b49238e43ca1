# SPDX-License-Identifier: Apache-2.0
"""From a risen counter or a line of the kernel log to a fact: whose limit it was, as far as the evidence decides."""
from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.cgroups import (
    ancestry,
    cgroup_id,
    child_names,
    read_cgroup_limit,
    read_counters,
    read_inode,
    read_number,
    read_pids_in,
)
from triaged.kernel.kernel_log import ForkRejected, OomKill, realtime_of
from triaged.kernel.memory_detail import read_memory_detail
from triaged.kernel.paths import KernelPaths
from triaged.kernel.resource_limits import read_resource_limits
from triaged.kernel.unit_settings import with_origin
from triaged.kernel.usage import read_host_usage
from triaged.model.cgroup import CgroupId, ancestors_of
from triaged.model.facts import CgroupLimit, OomFacts, PidsFacts
from triaged.model.limit import Unknown
from triaged.model.memory import MemoryDetail
from triaged.model.process import ProcessIdentity
from triaged.model.usage import Usage
from triaged.sources.cgroup_tree import Increase
from triaged.sources.memory_history import MemoryHistory

_RESIDENTS = 16
_PLACES = 16
_CANDIDATES_KEPT = 64


class Identifies(Protocol):
    """Who a pid is, if that is known (`kernel.process_table.ProcessTable`)."""

    def identify(self, pid: int) -> ProcessIdentity | None: ...

    def is_inherited(self, pid: int) -> bool: ...


def full_limit(limits: tuple[CgroupLimit, ...]) -> CgroupLimit | None:
    """The pids.max that refused a fork, of a cgroup and its ancestors (innermost first); None where that is not decided.

    The kernel charges from the task's cgroup upwards, so the innermost full one refuses. If none is full any more, the only finite
    one must have been it.
    """
    finite = [limit for limit in limits if isinstance(limit.limit, int)]
    for limit in finite:
        if isinstance(limit.used, int) and isinstance(limit.limit, int) and limit.used >= limit.limit:
            return limit
    undecided = any(isinstance(limit.limit, Unknown) for limit in limits)
    return finite[0] if len(finite) == 1 and not undecided else None


def memory_owner(layout: CgroupLayout, path: str) -> CgroupLimit | None:
    """The cgroup whose memory limit ended a task of `path`, from the counters alone; None where they do not decide.

    Only a finite limit that was hit at least once can be it (version 2: its own `oom`; version 1: its failcnt or peak): where
    there is exactly one, it is. A kill because the host was out of memory leaves no such trace.
    """
    hierarchy = layout.holding("memory")
    if hierarchy is None:
        return None
    found = []
    for limit in ancestry(layout, "memory", path):
        if not isinstance(limit.limit, int):
            if isinstance(limit.limit, Unknown):
                return None
            continue
        directory = hierarchy.directory(limit.cgroup.path)
        try:
            if hierarchy.is_v2:
                hits = read_counters(f"{directory}/memory.events.local").get("oom", 0)
            else:
                # Where memory and memory+swap have the same limit, no failcnt rises (seen on 6.18): the peak says it then.
                hits = read_number(f"{directory}/memory.failcnt") or (
                    read_number(f"{directory}/memory.max_usage_in_bytes") >= limit.limit
                )
        except KernelError:
            return None
        if hits:
            found.append(limit)
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class FactMaker:
    """Makes facts of what was told; what else belongs to them is read at that moment."""

    paths: KernelPaths
    layout: CgroupLayout
    table: Identifies
    history: MemoryHistory

    def refusals(self, increase: Increase, record: ForkRejected | None) -> PidsFacts:
        """The fact that a pids counter rose."""
        cgroup, owner = increase.cgroup, None
        is_now = not increase.before_start and not increase.is_lost
        names_task = record is not None and not record.is_cut and _is_within(record.path, cgroup.path)
        limits = ancestry(self.layout, "pids", record.path if record and names_task else cgroup.path)
        if increase.is_lost:
            if len(increase.removed) == 1:
                cgroup = CgroupId(increase.removed[0], 0, cgroup.hierarchy)
                owner = self._limit_at("pids", cgroup.path)
        elif increase.is_hierarchical:
            owner = self._limit_at("pids", cgroup.path)
        else:
            owner = full_limit(limits)
        process = resident(self.layout, limits[0].cgroup.path, self.table) if limits and is_now else None
        return PidsFacts(
            cgroup=cgroup,
            forks_refused=increase.by,
            forks_refused_total=increase.by if increase.is_lost else increase.total,
            owner=self._with_origin(owner),
            ancestry=limits,
            counter_file=increase.own_file,
            record=record.text if record else "",
            process=process,
            before_start=increase.before_start,
            others=() if increase.before_start else self._other_limits(process),
            time_usec=now_usec(),
        )

    def refusal(self, record: ForkRejected, before_start: bool = False) -> PidsFacts:
        """The fact that the kernel log alone tells: a fork was refused in a cgroup whose counters cannot be read any more."""
        limits = ancestry(self.layout, "pids", record.path)
        process = None if before_start else resident(self.layout, record.path, self.table)
        return PidsFacts(
            cgroup=_identity(self.layout, "pids", record.path),
            forks_refused=1,
            forks_refused_total=1,
            owner=self._with_origin(full_limit(limits)),
            ancestry=limits,
            record=record.text,
            process=process,
            before_start=before_start,
            others=() if before_start else self._other_limits(process),
            time_usec=log_time(record.stamp_usec),
        )

    def kill(self, kill: OomKill, path: str, victim: ProcessIdentity, before_start: bool = False) -> OomFacts:
        """The fact of one line of the kernel log. `path` is the victim's memory cgroup, "" if unknown."""
        owner, at = None, log_time(kill.stamp_usec)
        if not kill.is_host_wide:
            if kill.limit_path:
                owner = self._limit_at("memory", kill.limit_path)
            elif path:
                owner = memory_owner(self.layout, path)
        if owner is not None and isinstance(owner.limit, Unknown) and kill.report is not None:
            owner = replace(owner, limit=kill.report.limit)  # the cgroup is gone: what the log said stands
        return OomFacts(
            cgroup=_identity(self.layout, "memory", path) if path else CgroupId(""),
            kills=1,
            owner=self._with_origin(owner),
            victim=victim,
            record=kill.text,
            is_host_wide=kill.is_host_wide,
            is_place_known=bool(path),
            before_start=before_start,
            report=kill.report,
            detail=self._detail(owner),
            samples=self.history.before(owner.cgroup.path, at) if owner else (),
            time_usec=at,
        )

    def kills(self, increase: Increase, kills: int, line: OomKill | None = None) -> OomFacts:
        """The fact that a counter of kills rose and no line of the kernel log said where. `line`: the one that may mean it."""
        cgroup = increase.cgroup
        if increase.is_lost and len(increase.removed) == 1:
            cgroup = CgroupId(increase.removed[0], 0, cgroup.hierarchy)
        owner, at = memory_owner(self.layout, increase.cgroup.path), now_usec()
        return OomFacts(
            cgroup=cgroup,
            kills=kills,
            owner=self._with_origin(owner),
            victim=victim_of(line, self.table) if line is not None else None,
            record=line.text if line is not None else "",
            is_place_known=not increase.is_lost or len(increase.removed) == 1,
            candidates=increase.removed[:_CANDIDATES_KEPT],
            counter_file=increase.own_file,
            before_start=increase.before_start,
            detail=self._detail(owner),
            samples=self.history.before(owner.cgroup.path, at) if owner and not increase.before_start else (),
            time_usec=at,
        )

    def _limit_at(self, controller: str, path: str) -> CgroupLimit | None:
        hierarchy = self.layout.holding(controller)
        return read_cgroup_limit(hierarchy, controller, path) if hierarchy else None

    def _with_origin(self, limit: CgroupLimit | None) -> CgroupLimit | None:
        return None if limit is None else with_origin(self.paths, limit)

    def _detail(self, owner: CgroupLimit | None) -> MemoryDetail | None:
        hierarchy = self.layout.holding("memory")
        if owner is None or hierarchy is None or not owner.cgroup.inode:
            return None  # nothing is left to read
        try:
            return read_memory_detail(hierarchy, owner.cgroup.path)
        except KernelError:
            return None

    def _other_limits(self, process: ProcessIdentity | None) -> tuple[Usage, ...]:
        """The limits besides pids.max that refuse a fork with the same error, as they are now."""
        found = [usage for usage in read_host_usage(self.paths) if usage.resource == "tasks"]
        if process is not None:
            try:
                soft = read_resource_limits(self.paths, process.pid)["NPROC"].soft
            except (KernelError, KeyError):
                return tuple(found)
            note = "root is exempt" if process.uid == 0 else ""
            used = Unknown("not counted")
            source = f"{self.paths.proc}/{process.pid}/limits"
            found.append(Usage("tasks", "RLIMIT_NPROC", f"user {process.uid}", used, soft, "", source, note=note))
        return tuple(found)


def resident(layout: CgroupLayout, path: str, table: Identifies) -> ProcessIdentity | None:
    """A process that lives in the cgroup, or else in one of the first few below it; None if none is known.

    One of a workload comes before others, and before all one whose package is known: a test binary says more than `go test`.
    """
    hierarchy = layout.holding("pids")
    if hierarchy is None:
        return None
    found: list[ProcessIdentity] = []
    places = [path]
    for place in places:
        try:
            pids = read_pids_in(hierarchy, place)[: _RESIDENTS - len(found)]
        except KernelError:
            continue
        found += [identity for pid in pids if pid and (identity := table.identify(pid)) is not None]
        if len(found) >= _RESIDENTS or any(identity.workload is not None for identity in found):
            break
        # A slice has no processes of its own: the limit that was full is its, the tasks are those of the scopes in it.
        names = child_names(hierarchy.directory(place), _PLACES - len(places))
        places += [f"{'' if place == '/' else place}/{name}" for name in names]
    return min(found, key=_says_less, default=None)


def _says_less(identity: ProcessIdentity) -> int:
    return 2 if identity.workload is None else 1 if not identity.workload.package else 0


def victim_of(kill: OomKill, table: Identifies) -> ProcessIdentity:
    """The killed process, as far as it is known: the kernel log names pid and comm, the table the rest if it is the same one."""
    known = table.identify(kill.pid)
    if known is not None and known.comm == kill.comm:
        return known
    if known is not None and known.start_ticks and kill.cgroup_path and known.cgroup_for("memory") == kill.cgroup_path:
        return replace(known, comm=kill.comm)
    cgroups = {"memory": kill.cgroup_path} if kill.cgroup_path else {}
    return ProcessIdentity(kill.pid, uid=kill.uid, comm=kill.comm, cgroups=cgroups)


def now_usec() -> int:
    return int(time.time() * 1_000_000)


def log_time(stamp_usec: int) -> int:
    """The wall-clock time of a stamp of the kernel log."""
    return realtime_of(stamp_usec, time.clock_gettime(time.CLOCK_MONOTONIC), time.time())


def _identity(layout: CgroupLayout, controller: str, path: str) -> CgroupId:
    hierarchy = layout.holding(controller)
    if hierarchy is None:
        return CgroupId(path)
    try:
        inode = read_inode(hierarchy.directory(path))
    except KernelError:
        inode = 0
    return cgroup_id(hierarchy, controller, path, inode)


def _is_within(path: str, top: str) -> bool:
    return top in ancestors_of(path)
