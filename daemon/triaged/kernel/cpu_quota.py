# SPDX-License-Identifier: Apache-2.0
"""The CPU quota of a cgroup and of each ancestor, with what was counted when it was used up.

Hard facts:
- A task is held back when any quota on its way to the root is used up, so the tightest one binds, whoever holds it.
- nr_throttled counts at the cgroup whose quota was used up, not below it. The leaf of a process that an ancestor holds back
  shows no throttling at all (seen on 6.18 and 6.12).
- throttled time is summed over the CPUs that had to wait: it can grow faster than the clock.
- nr_periods only counts periods in which the cgroup was active.
"""
from __future__ import annotations

from dataclasses import dataclass

from triaged.errors import Gone, InterfaceMissing
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.cgroups import CpuState, cgroup_id, read_cpu, read_inode
from triaged.model.cgroup import ancestors_of, own_unit_of
from triaged.model.cpu import CpuQuota


@dataclass(frozen=True)
class QuotaState:
    """A cgroup's quota with its counters as they are now. `directory` is where its files are."""

    quota: CpuQuota
    state: CpuState
    directory: str


def read_quotas(layout: CgroupLayout, path: str) -> tuple[QuotaState, ...]:
    """The quota of the cgroup `path` and of each ancestor, innermost first; the root, which has none, left out.

    Cgroups without the controller are left out. Empty where nothing holds the controller.
    Raises: Gone if the cgroup was removed; NotPermitted, Malformed.
    """
    hierarchy = layout.holding("cpu")
    if hierarchy is None:
        return ()
    found = []
    for each in ancestors_of(path):
        if each == "/":
            continue
        try:
            directory = hierarchy.directory(each)
        except Gone:
            break  # above what the mount shows
        try:
            state = read_cpu(hierarchy, each)
        except InterfaceMissing:
            continue
        name = "cpu.max" if hierarchy.is_v2 else "cpu.cfs_quota_us"
        where = cgroup_id(hierarchy, "cpu", each, read_inode(directory))
        quota = CpuQuota(where, f"{directory}/{name}", state.quota_usec, state.period_usec, own_unit_of(each))
        found.append(QuotaState(quota, state, directory))
    return tuple(found)
