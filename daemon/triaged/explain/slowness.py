# SPDX-License-Identifier: Apache-2.0
"""What made a test run out of time though nothing failed: a CPU quota, memory.high, a frozen cgroup, too few CPUs.

Hard facts:
- Periods in which a quota was used up (nr_throttled) are counted at the cgroup that holds the quota, not below it.
- What is counted is of the whole run and of all in the cgroup. A test that waited for itself (a deadlock) used no CPU time: then no
  quota is to blame, however much compiling was held back.
- A frozen cgroup counts for how long only since 6.18 (cgroup.stat.local); before, it is seen only while it is frozen.
"""
from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from triaged.errors import KernelError
from triaged.explain.cgroup_limits import cpu_quotas, memory_highs
from triaged.explain.hypothesis import hypothesis
from triaged.explain.situation import Change, Situation
from triaged.explain.wording import size
from triaged.kernel.cgroup_states import read_cpuset, read_freezers, read_online_cpus
from triaged.kernel.cpu_quota import QuotaState
from triaged.kernel.files import read_text
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.cgroup import ancestors_of, container_of, own_unit_of
from triaged.model.counter import READ_AT
from triaged.model.facts import CgroupLimit
from triaged.model.fix import Fix, ManualStep, SetUnitProperty
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown
from triaged.model.symptom import SymptomKind
from triaged.model.verdict import Evidence
from triaged.rules.cgroup_limits import cgroup_subject, named, raise_limit
from triaged.rules.memory import LOWER_USE

TIMED_OUT = (SymptomKind.TIMED_OUT,)
_SPEAKS_OF_CPUS = re.compile(r"\bCPUs?\b|NumCPU|GOMAXPROCS")
_MORE_CPUS = ManualStep("more-cpus", "let it run on more CPUs: AllowedCPUs= of its unit, --cpuset-cpus of its container, taskset")
_HELD_BACK = 0.3  # of the run, at least, before it is to blame for a time-out
_STALLED = 0.05
GONE = "its cgroup has gone, and was not read before"
_WAITED = 0.5
_FULL = 0.85  # of the CPUs that it may use
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def elapsed_usec(situation: Situation, file: str = "") -> int:
    """For how long the counters (of a file) have been counting; 0 where that is not known.

    Since the run's own command was read, or since a cgroup was first seen in which it was put.
    """
    looked = situation.changes().get((file, READ_AT))
    if looked is not None:
        return looked.rise
    start = situation.at_start
    if start is None or not start.time_usec or not situation.baseline:
        return 0
    begun = start.time_usec
    return situation.kept("count:elapsed", lambda: time.time_ns() // 1000 - begun)


def _waited_for_itself(situation: Situation, cores: float) -> str:
    """What says that the process did not want the CPU: "" where nothing does."""
    process = situation.process
    if process is None or not isinstance(process.cpu_time_s, float):
        return ""
    lived = _lived_s(situation)
    if lived is None or lived < 2:
        return ""
    share = process.cpu_time_s / lived
    return f"it used the CPU for {process.cpu_time_s:.1f} s of {lived:.0f} s" if share < min(cores, 1) * 0.2 else ""


def _lived_s(situation: Situation) -> float | None:
    """For how long the process had run when it was read; None where that is not known."""
    process = situation.process
    if process is None or not process.identity.start_ticks or not process.time_usec:
        return None
    begun = situation.kept("boot", lambda: _boot_s(situation))
    return None if begun is None else process.time_usec / 1e6 - begun - process.identity.start_ticks / _TICKS_PER_S


def _boot_s(situation: Situation) -> float | None:
    try:
        text = read_text(f"{situation.paths.proc}/stat", 1 << 16)
    except KernelError:
        return None
    for line in text.splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return None


def _cpu_fixes(state: QuotaState, cores: float) -> tuple[Fix, ...]:
    quota = state.quota
    limit = CgroupLimit(quota.cgroup, quota.file, quota.quota_usec, Unknown("a rate is not used up"), quota.unit)
    wanted = max(cores * 2, 1)  # less than one core holds every program back
    twice = round(wanted * 100)
    if quota.unit and not quota.cgroup.path.startswith("/user.slice/"):
        return tuple(SetUnitProperty(quota.unit, "CPUQuota", f"{twice}%", lasting) for lasting in (False, True))
    if quota.unit:
        command = ("systemctl", "--user", "set-property", quota.unit, f"CPUQuota={twice}%")
        return (ManualStep("user-unit-limit", f"sets CPUQuota={twice}% of {shown(quota.unit)}, typed by its user", (command,)),)
    if container_of(quota.cgroup.path):
        return raise_limit(limit, "CPUQuota", round(wanted), "--cpus", "resources.limits.cpu")
    value, file = round(wanted * quota.period_usec), shown(quota.file, 1000)
    return (ManualStep("cgroup-limit", f"write {value} into {file}, or raise the quota where the cgroup is made"),)


@hypothesis("cgroup.cpu.max", kinds=TIMED_OUT)
def cpu_max(situation: Situation) -> Iterator[Outcome]:
    """A CPU quota (cpu.max, CPUQuota=, --cpus) held the test back: when it is used up, everything waits for the next period."""
    cause = "cgroup.cpu.max"
    finite = [each for each in cpu_quotas(situation) if each.quota.cores is not None]
    if not finite:
        if situation.process is None:
            yield NotDecidable(cause, "it is the process's cgroup's; name a process")
        elif not situation.knows_limits("cpu", "cpu"):
            yield NotDecidable(cause, GONE)
        else:
            yield RuledOut(cause, "no cgroup above it has a CPU quota")
        return
    changes = situation.changes()
    for state in finite:
        file, cores = f"{state.directory}/cpu.stat", state.quota.cores or 0.0
        elapsed = elapsed_usec(situation, file)
        throttled, periods = changes.get((file, "nr_throttled")), changes.get((file, "nr_periods"))
        if throttled is None or periods is None or elapsed <= 0:
            at = shown(state.quota.cgroup.path, 400)
            yield NotDecidable(cause, f"{at} has {cores:.3g} cores; its counters were not read before")
            continue
        share = throttled.rise * state.quota.period_usec / elapsed
        because = f"its quota was used up in {min(share, 1):.0%} of the run"
        idle = _waited_for_itself(situation, cores)
        if share < _HELD_BACK or idle:
            yield RuledOut(cause, idle or because)
            continue
        place = named(CgroupLimit(state.quota.cgroup, state.quota.file, state.quota.quota_usec, Unknown(""), state.quota.unit))
        lived = _lived_s(situation)
        is_busy = lived is not None and lived >= 2 and not idle
        yield Blamed(
            cause, Status.PROVED if is_busy and share >= _WAITED else Status.LIKELY, place,
            f"{place} has a CPU quota of {cores:.3g} cores, and {because} ({throttled.rise} of {periods.rise} periods)",
            (Evidence("nr_throttled", f"{throttled.before} -> {throttled.after}", file, situation.time_usec),
             Evidence("quota in µs", f"{state.quota.quota_usec} of {state.quota.period_usec}", state.quota.file)),
            _cpu_fixes(state, cores), "cgroup.cpu.throttled", cgroup_subject(state.quota.cgroup).key, weight=5,
        )


@hypothesis("cgroup.memory.high", kinds=TIMED_OUT)
def memory_high(situation: Situation) -> Iterator[Outcome]:
    """A cgroup was above its memory.high (MemoryHigh=): every allocation then sleeps, and nothing fails. Version 2 only."""
    cause, process = "cgroup.memory.high", situation.process
    if process is None:
        yield NotDecidable(cause, "it is the process's cgroup's; name a process")
        return

    limits = memory_highs(situation)
    if not limits:
        if situation.knows_limits("memory.high", "memory"):
            yield RuledOut(cause, "no cgroup above it has a memory.high")
        else:
            yield NotDecidable(cause, GONE)
        return
    changes = situation.changes()
    for limit in limits:
        directory = limit.file.rsplit("/", 1)[0]
        elapsed = elapsed_usec(situation, f"{directory}/memory.pressure")
        held = changes.get((f"{directory}/memory.events.local", "high")) or changes.get((f"{directory}/memory.events", "high"))
        stalled = changes.get((f"{directory}/memory.pressure", "full"))
        if held is None:
            yield NotDecidable(cause, "its counters were not read before")
            continue
        share = stalled.rise / elapsed if stalled is not None and elapsed > 0 else None
        if held.rise <= 0 or (share is not None and share < _STALLED) or not isinstance(limit.limit, int):
            yield RuledOut(cause, "nothing was held back" if held.rise <= 0 else f"all stood still for {share or 0:.0%} of the run")
            continue
        waited = f", and all tasks stood still for {share:.0%} of the run" if share is not None else ""
        evidence = [Evidence("memory.events high", f"{held.before} -> {held.after}", held.file, situation.time_usec)]
        if stalled is not None:
            evidence.append(_difference(stalled, "memory.pressure full", situation))
        yield Blamed(
            cause, Status.PROVED if share is not None and share >= 0.2 else Status.LIKELY, named(limit),
            f"{named(limit)} was above its memory.high of {size(limit.limit)} {held.rise} times{waited}", tuple(evidence),
            (*raise_limit(limit, "MemoryHigh", limit.limit * 2, "--memory-reservation", "MemoryQoS"), LOWER_USE),
            "cgroup.memory.high", cgroup_subject(limit.cgroup).key, weight=6,
        )


def _difference(change: Change, name: str, situation: Situation) -> Evidence:
    return Evidence(name, f"+{change.rise / 1e6:.2f} s", change.file, situation.time_usec)


@hypothesis("cgroup.freeze", kinds=TIMED_OUT)
def freeze(situation: Situation) -> Outcome:
    """A cgroup above the process is, or was, frozen (systemctl freeze, docker pause): nothing in it runs, and time goes on."""
    cause, process = "cgroup.freeze", situation.process
    if process is None:
        return NotDecidable(cause, "it is the process's cgroup's; name a process")
    try:
        freezers = list(read_freezers(situation.layout, process.identity))
    except KernelError as error:
        return NotDecidable(cause, str(error))
    frozen = next((each for each in freezers if each.is_freezing), None)
    rises = [
        each for key, each in situation.changes().items()
        if key[0].endswith("cgroup.stat.local") and key[1] == "frozen_usec" and each.rise > 0
    ]
    elapsed = elapsed_usec(situation)
    if frozen is None and not rises:
        if not freezers:
            return NotDecidable(cause, "no freezer can be read")
        return RuledOut(cause, "no cgroup above it is frozen")
    if frozen is None:
        longest = max(rises, key=lambda change: change.rise)
        if elapsed and longest.rise < elapsed * _HELD_BACK:
            return RuledOut(cause, f"it was frozen for {longest.rise / 1e6:.1f} s only")
        directory = longest.file.rsplit("/", 1)[0]
        summary = f"{shown(directory, 400)} was frozen for {longest.rise / 1e6:.1f} s of the run"
        return Blamed(cause, Status.PROVED, shown(directory, 400), summary, (_difference(longest, "frozen", situation),), weight=8)
    place = shown(frozen.unit) if frozen.unit else f"cgroup {shown(frozen.cgroup.path, 400)}"
    file = frozen.file.replace("self_freezing", "state")
    value = "THAWED" if frozen.cgroup.hierarchy else "0"
    if frozen.unit:
        step = ManualStep("thaw", f"thaws {shown(frozen.unit)}", (("systemctl", "thaw", frozen.unit),))
    else:
        step = ManualStep("thaw", f"write {value} into {shown(file, 1000)}, or thaw it where it was frozen (docker unpause)")
    evidence = (Evidence(frozen.file.rsplit("/", 1)[-1], 1, frozen.file, situation.time_usec),)
    return Blamed(
        cause, Status.PROVED, place, f"{place} is frozen", evidence, (step,), "cgroup.frozen", cgroup_subject(frozen.cgroup).key, 8
    )


@hypothesis("cgroup.cpuset", kinds=(*TIMED_OUT, SymptomKind.SILENT))
def cpuset(situation: Situation) -> Outcome | None:
    """The process may run on few of the machine's CPUs (cpuset.cpus, AllowedCPUs=, --cpuset-cpus, taskset), and waited for them.

    Or a test says that it needs more of them than it found. Go itself starts no more threads than it has CPUs: then nothing waits,
    and that all of them were in use the whole time says only that more might have been used.
    """
    cause, process = "cgroup.cpuset", situation.process
    is_told = situation.symptom.kind is SymptomKind.SILENT
    if is_told and not _SPEAKS_OF_CPUS.search(situation.symptom.text):
        return None
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")

    def read() -> int | Unknown:
        try:
            return read_online_cpus(situation.paths.sys)
        except KernelError as error:
            return Unknown(str(error))

    online, allowed = situation.kept("cpus:online", read), process.cpus_allowed
    if not isinstance(online, int) or not isinstance(allowed, int):
        return NotDecidable(cause, "the CPUs of the machine or of the process cannot be read")
    if allowed >= online:
        return RuledOut(cause, f"it may run on all {online} CPUs")
    if is_told:
        return _too_few(situation, process, allowed, online)
    waited, elapsed = _cpu_waited(situation), elapsed_usec(situation)
    if waited is None or elapsed <= 0:
        return NotDecidable(cause, f"it may run on {allowed} of {online} CPUs; how long it waited for them was not measured")
    share = waited.rise / elapsed
    idle = _waited_for_itself(situation, float(allowed))
    is_full = situation.cpus_used is not None and situation.cpus_used >= allowed * _FULL
    if (share < _WAITED or idle) and not is_full:
        return RuledOut(cause, idle or f"tasks waited for a CPU {share:.0%} of the run only")
    evidence = (
        Evidence("CPUs that it may use", allowed, f"/proc/{process.identity.pid}/status Cpus_allowed", situation.time_usec),
        Evidence("CPUs of the machine", online, "/sys/devices/system/cpu/online", situation.time_usec),
        _difference(waited, "waited for a CPU", situation),
    )
    has = f"it may run on {allowed} of {online} CPUs"
    if share < _WAITED or idle:
        used = Evidence("CPUs in use on the average", f"{situation.cpus_used:.2f}", "wait4(2) ru_utime, ru_stime")
        why = f"{has}, and they were in use for the whole run"
        return Blamed(cause, Status.POSSIBLE, f"process {process.identity.pid}", why, (*evidence, used), (_MORE_CPUS,), weight=2)
    return Blamed(
        cause, Status.LIKELY, f"process {process.identity.pid}", f"{has}, and some task waited for one {share:.0%} of the run",
        evidence, (_MORE_CPUS,), weight=2,
    )


def _too_few(situation: Situation, process: ProcessState, allowed: int, online: int) -> Outcome:
    """A test that speaks of CPUs had fewer than the machine has: by a cpuset, or by taskset."""
    cause = "cgroup.cpuset"
    try:
        bound = read_cpuset(situation.layout, process.identity)
    except KernelError as error:
        return NotDecidable(cause, str(error))
    evidence = [
        Evidence("CPUs that it may use", allowed, f"/proc/{process.identity.pid}/status Cpus_allowed", situation.time_usec),
        Evidence("CPUs of the machine", online, "/sys/devices/system/cpu/online", situation.time_usec),
    ]
    if bound is None or bound[2] >= online:
        return RuledOut(cause, f"its cpuset has all {online} CPUs: its affinity was set (taskset)")
    where, file, number = bound
    place = shown(where.unit) if own_unit_of(where.path) else f"cgroup {shown(where.path, 400)}"
    evidence.append(Evidence(file.rsplit("/", 1)[-1], f"{number} CPUs", file, situation.time_usec))
    unit = own_unit_of(where.path)
    if unit:
        command = ("systemctl", "set-property", "--runtime", unit, f"AllowedCPUs=0-{online - 1}")
        step = ManualStep("allowed-cpus", f"gives {shown(unit)} all CPUs", (command,))
    else:
        target = f"{file.rsplit('/', 1)[0]}/cpuset.cpus"
        step = ManualStep("cpuset", f"write 0-{online - 1} into {shown(target, 1000)}, or raise it where the cgroup is made")
    summary = f"{place} may use {number} of the machine's {online} CPUs, and the test speaks of them"
    return Blamed(cause, Status.LIKELY, place, summary, tuple(evidence), (step, _MORE_CPUS), weight=2)


def _cpu_waited(situation: Situation) -> Change | None:
    """The time in which tasks of the process's cgroup (version 2), or else of the machine, waited for a CPU."""
    process, unified, changes = situation.process, situation.layout.unified, situation.changes()
    for path in ancestors_of(process.identity.cgroups.get("", "/")) if process is not None and unified is not None else ():
        try:
            change = changes.get((f"{unified.directory(path)}/cpu.pressure", "some")) if unified is not None else None
        except KernelError:
            continue
        if change is not None:
            return change
    return changes.get((f"{situation.paths.proc}/pressure/cpu", "some"))


SLOWNESS = (cpu_max, memory_high, freeze, cpuset)
