# SPDX-License-Identifier: Apache-2.0
"""From a risen counter or a line of the kernel log to a fact: whose limit it was, as far as the evidence decides."""
from __future__ import annotations

import time
from dataclasses import replace
from typing import Protocol

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.cgroups import ancestry, cgroup_id, read_cgroup_limit, read_counters, read_inode, read_number, read_pids_in
from triaged.kernel.kernel_log import ForkRejected, OomKill, realtime_of
from triaged.model.cgroup import CgroupId, ancestors_of
from triaged.model.facts import CgroupLimit, OomFacts, PidsFacts
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity
from triaged.sources.cgroup_tree import Increase

_RESIDENTS = 16


class Identifies(Protocol):
    """Who a pid is, if that is known (`kernel.process_table.ProcessTable`)."""

    def identify(self, pid: int) -> ProcessIdentity | None: ...


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


def pids_facts(layout: CgroupLayout, increase: Increase, record: ForkRejected | None, table: Identifies) -> PidsFacts:
    """The fact that a pids counter rose."""
    cgroup, owner = increase.cgroup, None
    is_now = not increase.before_start and not increase.is_lost
    names_task = record is not None and not record.is_cut and _is_within(record.path, cgroup.path)
    limits = ancestry(layout, "pids", record.path if record and names_task else cgroup.path)
    if increase.is_lost:
        if len(increase.removed) == 1:
            cgroup = CgroupId(increase.removed[0], 0, cgroup.hierarchy)
            owner = _limit_at(layout, "pids", cgroup.path)
    elif increase.is_hierarchical:
        owner = _limit_at(layout, "pids", cgroup.path)
    else:
        owner = full_limit(limits)
    return PidsFacts(
        cgroup=cgroup,
        forks_refused=increase.by,
        forks_refused_total=increase.by if increase.is_lost else increase.total,
        owner=owner,
        ancestry=limits,
        counter_file=increase.own_file,
        record=record.text if record else "",
        process=resident(layout, limits[0].cgroup.path, table) if limits and is_now else None,
        before_start=increase.before_start,
        time_usec=now_usec(),
    )


def refusal_facts(layout: CgroupLayout, record: ForkRejected, table: Identifies, before_start: bool = False) -> PidsFacts:
    """The fact that the kernel log alone tells: a fork was refused in a cgroup whose counters cannot be read any more."""
    limits = ancestry(layout, "pids", record.path)
    return PidsFacts(
        cgroup=_identity(layout, "pids", record.path),
        forks_refused=1,
        forks_refused_total=1,
        owner=full_limit(limits),
        ancestry=limits,
        record=record.text,
        process=None if before_start else resident(layout, record.path, table),
        before_start=before_start,
        time_usec=log_time(record.stamp_usec),
    )


def kill_facts(layout: CgroupLayout, kill: OomKill, path: str, victim: ProcessIdentity, before_start: bool = False) -> OomFacts:
    """The fact of one line of the kernel log. `path` is the victim's memory cgroup, "" if unknown."""
    owner = None
    if not kill.is_host_wide:
        owner = _limit_at(layout, "memory", kill.limit_path) if kill.limit_path else memory_owner(layout, path) if path else None
    return OomFacts(
        cgroup=_identity(layout, "memory", path or "/"),
        kills=1,
        owner=owner,
        victim=victim,
        record=kill.text,
        is_host_wide=kill.is_host_wide,
        before_start=before_start,
        time_usec=log_time(kill.stamp_usec),
    )


def count_facts(layout: CgroupLayout, increase: Increase, kills: int) -> OomFacts:
    """The fact that a counter of kills rose and no line of the kernel log said whom."""
    cgroup = increase.cgroup
    if increase.is_lost and len(increase.removed) == 1:
        cgroup = CgroupId(increase.removed[0], 0, cgroup.hierarchy)
    return OomFacts(
        cgroup=cgroup,
        kills=kills,
        owner=memory_owner(layout, increase.cgroup.path),
        counter_file=increase.own_file,
        before_start=increase.before_start,
        time_usec=now_usec(),
    )


def resident(layout: CgroupLayout, path: str, table: Identifies) -> ProcessIdentity | None:
    """A process that lives in the cgroup, one of a workload if there is one among the first few; None if none is known."""
    hierarchy = layout.holding("pids")
    if hierarchy is None:
        return None
    try:
        pids = read_pids_in(hierarchy, path)[:_RESIDENTS]
    except KernelError:
        return None
    found = [identity for pid in pids if pid and (identity := table.identify(pid)) is not None]
    return next((identity for identity in found if identity.workload is not None), found[0] if found else None)


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


def _limit_at(layout: CgroupLayout, controller: str, path: str) -> CgroupLimit | None:
    hierarchy = layout.holding(controller)
    return read_cgroup_limit(hierarchy, controller, path) if hierarchy else None


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
