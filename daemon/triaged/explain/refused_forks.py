# SPDX-License-Identifier: Apache-2.0
"""Forks that a pids.max refused: what was counted above a process, which cgroup was full, and who put the process there.

Hard facts (kernel/cgroup/pids.c):
- Up to 6.10 pids.events counts at the forking task's cgroup, since 6.11 at the one whose limit was full and in every one above
  it; pids.events.local, which counts only there, exists since then.
- The counter belongs to the cgroup: what else lives there counts too.
"""
from __future__ import annotations

from dataclasses import dataclass

from triaged.errors import KernelError
from triaged.explain.situation import Change, Situation
from triaged.explain.standing import Standing
from triaged.explain.wording import count
from triaged.kernel.cgroups import read_cgroup_limit, read_counter, walk
from triaged.model.facts import CgroupLimit
from triaged.model.limit import Unknown
from triaged.rules.cgroup_limits import named


@dataclass(frozen=True)
class Refusals:
    """Forks refused above the process: in this run (`risen`; `is_known`: all counters were read before), and since they count."""

    risen: tuple[Change, ...] = ()
    ever: int = 0
    is_known: bool = False


def refusals_of(situation: Situation) -> Refusals:
    limits = situation.cgroup_limits("pids")

    def read() -> Refusals:
        changes = situation.changes()
        risen, ever, known = [], 0, 0
        for limit in limits:
            directory = limit.file.rsplit("/", 1)[0]
            for name in ("pids.events.local", "pids.events"):
                file = f"{directory}/{name}"
                change = changes.get((file, "max"))
                if change is None:
                    try:
                        now = read_counter(file, "max")
                    except KernelError:
                        continue
                    ever = max(ever, now)
                    # A cgroup that was not there when the run began was made in it: it began at 0.
                    if not situation.baseline or (file, "max") in situation.baseline:
                        break
                    change = Change(file, "max", 0, now)
                known += 1
                ever = max(ever, change.after)
                if change.rise > 0:
                    risen.append(change)
                break  # without .local, pids.events is it
        return Refusals(tuple(risen), ever, bool(known) and known >= len(limits))

    return situation.kept("count:pids", read)


def full_limits(situation: Situation) -> list[CgroupLimit]:
    return [
        each for each in situation.cgroup_limits("pids")
        if isinstance(each.limit, int) and isinstance(each.used, int) and each.used >= each.limit
    ]


def pids_standing(situation: Situation) -> Standing:
    cause = "cgroup.pids.max"
    if situation.process is None:
        return _fullest_cgroup(situation)
    if not situation.process.identity.cgroups:
        return Standing(cause, unknown="its cgroup is not known: it was exiting when it was read")
    limits = situation.cgroup_limits("pids")
    finite = [each for each in limits if isinstance(each.limit, int)]
    refusals = refusals_of(situation)
    if refusals.risen:
        return Standing(cause, is_counted=True)
    if full_limits(situation) and not refusals.is_known:
        return Standing(cause, is_full=True)
    if not finite and any(isinstance(each.limit, Unknown) for each in limits):
        return Standing(cause, unknown="its cgroup was gone before its pids.max could be read")
    if not finite:
        return Standing(cause, "no cgroup above it has a pids.max")
    left = min(
        (each.limit - each.used for each in finite if isinstance(each.limit, int) and isinstance(each.used, int)), default=0
    )
    if refusals.is_known:
        # Full all the same: it was moved there after the counters had been read, or somebody else filled it.
        return Standing(cause, f"no pids.events above it rose, {count(max(left, 0))} free", is_near=bool(full_limits(situation)))
    if refusals.ever == 0 or situation.was_asked:
        return Standing(cause, f"{count(max(left, 0))} free" + (", never hit" if refusals.ever == 0 else ""))
    return Standing(cause, f"{count(max(left, 0))} free", is_near=True)


def _fullest_cgroup(situation: Situation) -> Standing:
    """Without a process: whether any cgroup of the machine is full."""
    hierarchy = situation.layout.holding("pids")
    if hierarchy is None:
        return Standing("cgroup.pids.max", unknown="no hierarchy has the pids controller")
    full = situation.kept("cgroups:full", lambda: _full_cgroups(situation))
    if full:
        more = f" and {len(full) - 1} more" if len(full) > 1 else ""
        return Standing("cgroup.pids.max", unknown=f"{full[0]} is full{more}; name a process to see whether it is in there")
    return Standing("cgroup.pids.max", "no cgroup is full now")


def _full_cgroups(situation: Situation) -> tuple[str, ...]:
    hierarchy = situation.layout.holding("pids")
    if hierarchy is None:
        return ()
    found = []
    try:
        for path, _ in walk(hierarchy):
            if path == "/":
                continue
            limit = read_cgroup_limit(hierarchy, "pids", path)
            if isinstance(limit.limit, int) and isinstance(limit.used, int) and limit.used >= limit.limit:
                found.append(f"{named(limit)} ({count(limit.used)} of {count(limit.limit)})")
    except KernelError:
        pass  # the mount shows a part that was removed
    return tuple(found)


def owner_of(situation: Situation) -> CgroupLimit | None:
    """Whose limit was full: where the refusal was counted, else the one that was full, else the one with the least left."""
    limits = situation.cgroup_limits("pids")
    finite = [each for each in limits if isinstance(each.limit, int)]
    risen = {change.file for change in refusals_of(situation).risen}
    for each in finite:
        if f"{each.file.rsplit('/', 1)[0]}/pids.events.local" in risen:
            return each
    full = full_limits(situation)
    if full:
        return full[0]

    def left(each: CgroupLimit) -> int:
        used = each.used if isinstance(each.used, int) else 0
        return each.limit - used if isinstance(each.limit, int) else 0

    return min(finite, key=left, default=None)
