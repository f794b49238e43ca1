# SPDX-License-Identifier: Apache-2.0
"""cgroup.io.max: what made a test run out of time because it may read or write only so fast.

Hard facts:
- Nothing counts how often the limit was hit. What shows it is a rate at the limit, and tasks that waited for a device meanwhile
  (io.pressure). Version 1 has no pressure, and its limits let buffered writes pass.
- What was written is counted when it is sent to the device: after the wait. What is still waiting shows as a stall only.
"""
from __future__ import annotations

from collections.abc import Iterator

from triaged.explain.cgroup_limits import io_limits
from triaged.explain.hypothesis import hypothesis
from triaged.explain.situation import Situation
from triaged.explain.slowness import GONE, TIMED_OUT, elapsed_usec
from triaged.kernel.io_limits import IoState, counter_name, read_device_name
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.counter import READ_AT
from triaged.model.facts import CgroupLimit
from triaged.model.io import IoLimit
from triaged.model.limit import Unknown
from triaged.model.quoting import shown
from triaged.model.verdict import Evidence
from triaged.rules.cgroup_limits import cgroup_subject, named
from triaged.rules.devices import faster

_AT_THE_LIMIT = 0.5  # of what the limit allows in the time, start and end of the run included
_NEAR_IT = 0.2
_STALLED = 0.3


@hypothesis("cgroup.io.max", kinds=TIMED_OUT)
def io_max(situation: Situation) -> Iterator[Outcome]:
    """A cgroup may read or write a device only so fast (io.max, IOWriteBandwidthMax=): who goes beyond it sleeps, nothing fails."""
    cause = "cgroup.io.max"
    if situation.process is None:
        yield NotDecidable(cause, "it is the process's cgroup's; name a process")
        return
    states = io_limits(situation)
    if not states:
        controller = "io" if situation.layout.holding("io") is not None else "blkio"
        is_known = situation.knows_limits("io", controller)
        yield RuledOut(cause, "no cgroup above it has an I/O limit") if is_known else NotDecidable(cause, GONE)
    for state in states:
        yield _judged(situation, state)


def _judged(situation: Situation, state: IoState) -> Outcome:
    cause, changes = "cgroup.io.max", situation.changes()
    if (state.counter_file, READ_AT) not in changes:
        return NotDecidable(cause, f"{shown(state.cgroup.path, 400)} has an I/O limit; its counters were not read before")
    elapsed = max(elapsed_usec(situation, state.counter_file), 1)
    used = []
    for (device, what), per_s in state.limits.items():
        done = changes.get((state.counter_file, counter_name(device, what)))
        # A device that nobody has used yet is not in the file.
        used.append((IoLimit(device, what, per_s, done.rise if done is not None else 0), done))
    limit, done = max(used, key=lambda each: each[0].share(elapsed))
    share = limit.share(elapsed)
    stall = changes.get((f"{state.counter_file.rpartition('/')[0]}/io.pressure", "full"))
    stalled = stall.rise / elapsed if stall is not None else None
    if share < _NEAR_IT and (stalled is None or stalled < _STALLED):
        return RuledOut(cause, f"{share:.0%} of the rate that is allowed was used")
    if stalled is not None and stalled < _STALLED:
        return RuledOut(cause, f"all of its tasks waited for a device for {stalled:.0%} of the run only")
    is_sure = share >= _AT_THE_LIMIT and stalled is not None
    place = named(CgroupLimit(state.cgroup, state.file, Unknown("a rate"), Unknown("a rate"), state.unit))
    name = read_device_name(situation.paths, limit.device)
    limit = IoLimit(name, limit.what, limit.per_s, limit.done)
    waited = f", and all its tasks waited for a device for {stalled:.0%} of the run" if stalled is not None else ""
    evidence = [
        Evidence("limit", limit.words, state.file, situation.time_usec),
        Evidence("done", f"{limit.done} in {elapsed / 1e6:.1f} s", state.counter_file, situation.time_usec),
    ]
    if stall is not None:
        evidence.append(Evidence("io.pressure full", f"+{stall.rise / 1e6:.2f} s", stall.file, situation.time_usec))
    return Blamed(
        cause, Status.PROVED if is_sure else Status.LIKELY if done is not None and done.rise else Status.POSSIBLE, place,
        f"{place} may do no more than {limit.words} on {shown(name)}, {share:.0%} of it was used{waited}", tuple(evidence),
        (faster(state.cgroup, state.unit, state.file, limit),), "cgroup.io.throttled", cgroup_subject(state.cgroup).key, weight=6,
    )


IO_RATES = (io_max,)
