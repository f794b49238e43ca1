# SPDX-License-Identifier: Apache-2.0
"""Limits that end a process by a signal: the OOM killer of a cgroup or of the machine, RLIMIT_CPU, RLIMIT_FSIZE.

Hard facts:
- An OOM kill is counted at the victim's cgroup and in /proc/vmstat before the signal is sent; what did not move proves that there
  was none.
- Version 2 counts `oom` at the cgroup whose limit was hit (memory.events.local). Version 1 does not: failcnt says that it was at
  its limit, which page cache alone does too.
- A kill for want of memory of the whole machine is counted at the victim's cgroup as well.
- Beyond the hard RLIMIT_CPU the kernel sends SIGKILL, beyond the soft one SIGXCPU, which a Go program ignores. It measures in
  ticks: seen on 6.18 under load, a limit of 1 s killed at 0.78 to 0.96 s.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from triaged.errors import KernelError
from triaged.explain.hypothesis import hypothesis
from triaged.explain.own_cgroups import made_by_test
from triaged.explain.resource_limits import blame_resource, of_unread
from triaged.explain.situation import Change, Situation
from triaged.explain.wording import bound, size, who
from triaged.kernel.cgroups import read_cgroup_limit
from triaged.kernel.files import read_text
from triaged.kernel.kernel_log import LogParser, LogRecord, OomKill
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.facts import CgroupLimit
from triaged.model.limit import UNLIMITED, Unknown, Unlimited
from triaged.model.quoting import shown
from triaged.model.symptom import SymptomKind
from triaged.model.verdict import Evidence
from triaged.rules.cgroup_limits import cgroup_subject, limit_evidence, named, raise_limit
from triaged.rules.memory import LOWER_USE

_KILL, _XCPU, _XFSZ = 9, 24, 25
_AT_LEAST = 1 << 30  # what a compiler and a linker of Go need
_OOM_DAEMONS = ("systemd-oomd", "earlyoom", "nohang", "oomd")
_KILLED = (SymptomKind.KILLED,)


@dataclass(frozen=True)
class OomTraces:
    """What tells of OOM kills: the log's line about this process, and the counters that rose.

    `victims` are counters of the process's own memory cgroup, `owners` those of a limit that was hit, `host` the machine's.
    `own_is_known`: those of its own cgroup were read before and after.
    """

    kill: OomKill | None = None
    victims: tuple[Change, ...] = ()
    owners: tuple[Change, ...] = ()
    host: Change | None = None
    own_is_known: bool = False

    @property
    def is_known(self) -> bool:
        """Whether an OOM kill of the process would have been seen."""
        return self.host is not None and (self.host.rise == 0 or self.own_is_known)

    @property
    def is_none(self) -> bool:
        """Whether it is proved that no OOM kill happened where the process was."""
        return self.is_known and self.kill is None and not self.victims


def traces_of(situation: Situation) -> OomTraces:
    """What tells of OOM kills above the process."""

    def read() -> OomTraces:
        changes, limits = situation.changes(), situation.cgroup_limits("memory")
        victims, owners, own_is_known = [], [], False
        for number, limit in enumerate(limits):
            directory = limit.file.rsplit("/", 1)[0]
            for name in ("memory.events.local", "memory.events", "memory.oom_control"):
                kills = changes.get((f"{directory}/{name}", "oom_kill"))
                if kills is None:
                    continue
                if number == 0:
                    own_is_known = True
                    if kills.rise > 0:
                        victims.append(kills)
                hits = changes.get((f"{directory}/{name}", "oom"))
                if hits is not None and hits.rise > 0 and name == "memory.events.local":
                    owners.append(hits)
                break
        host = changes.get((f"{situation.paths.proc}/vmstat", "oom_kill"))
        return OomTraces(_logged(situation), tuple(victims), tuple(owners), host, own_is_known)

    return situation.kept("count:oom", read)


def _logged(situation: Situation) -> OomKill | None:
    process = situation.process
    if process is None:
        return None
    return next((each for each in reversed(list(_kills_in(situation))) if each.pid == process.identity.pid), None)


def _kills_in(situation: Situation) -> Iterator[OomKill]:
    """The OOM kills that the log tells of."""
    parser = LogParser()
    for line in situation.log():
        event = parser.feed(LogRecord(6, 0, 0, line))
        if isinstance(event, OomKill):
            yield event


def _owner(situation: Situation, traces: OomTraces) -> CgroupLimit | None:
    """The cgroup whose limit was hit: as the log says, as it was counted, else the limit with the least left."""
    limits = [each for each in situation.cgroup_limits("memory") if isinstance(each.limit, int)]
    if traces.kill is not None and traces.kill.limit_path:
        hierarchy = situation.layout.holding("memory")
        named_limit = next((each for each in limits if each.cgroup.path == traces.kill.limit_path), None)
        if named_limit is None and hierarchy is not None:
            named_limit = read_cgroup_limit(hierarchy, "memory", traces.kill.limit_path)
        return named_limit
    hit = {change.file.rsplit("/", 1)[0] for change in traces.owners}
    for each in limits:
        if each.file.rsplit("/", 1)[0] in hit:
            return each

    def left(each: CgroupLimit) -> int:
        used = each.used if isinstance(each.used, int) else 0
        return each.limit - used if isinstance(each.limit, int) else 0

    return min(limits, key=left, default=None)


def _is_host_wide(situation: Situation, traces: OomTraces) -> bool:
    """Whether a kill was for want of memory of the machine: so the log says, or no limit above the process was there to be hit."""
    if traces.kill is not None:
        return traces.kill.is_host_wide
    if traces.owners:
        return False
    if not any(isinstance(each.limit, int) for each in situation.cgroup_limits("memory")):
        return True
    # Version 2 would have counted whose limit it was.
    return any(change.file.endswith("memory.events.local") for change in traces.victims)


def _was_killed_so(traces: OomTraces) -> bool:
    return traces.kill is not None or bool(traces.victims)


def _status(situation: Situation, traces: OomTraces) -> Status:
    if traces.kill is not None:
        return Status.PROVED
    return Status.PROVED if situation.symptom.sender_pid == 0 else Status.POSSIBLE


def _oom_evidence(situation: Situation, traces: OomTraces) -> list[Evidence]:
    now = situation.time_usec
    changes = [*traces.victims, *traces.owners, *((traces.host,) if traces.host else ())]
    out = [Evidence(f"{each.name} in {each.file}", f"{each.before} -> {each.after}", each.file, now) for each in changes]
    if traces.kill is not None:
        out.append(Evidence("kernel log", shown(traces.kill.text.replace("\n", "; "), 1000), "kernel log", now))
    return out


@hypothesis("cgroup.memory.max", kinds=_KILLED, signals=(_KILL,))
def memory_max(situation: Situation) -> Outcome:
    """A cgroup above the process was at its memory.max (MemoryMax=, --memory), and the OOM killer took the process.

    The log shows nothing but "signal: killed". The limit may be an ancestor's; files in tmpfs count as memory.
    """
    cause = "cgroup.memory.max"
    if situation.process is None:
        logged = list(_kills_in(situation))
        last = f"; the kernel log's last OOM kill was of process {logged[-1].pid} ({shown(logged[-1].comm)})" if logged else ""
        return NotDecidable(cause, f"which process was killed is not known{last}")
    traces = traces_of(situation)
    if not _was_killed_so(traces):
        if traces.is_known:
            return RuledOut(cause, "no oom_kill above it rose")
        if not any(isinstance(each.limit, int) for each in situation.cgroup_limits("memory")):
            return RuledOut(cause, "no cgroup above it has a memory limit")
        return NotDecidable(cause, "oom_kill of its cgroup was not read before and after")
    if _is_host_wide(situation, traces):
        return RuledOut(cause, "the whole machine was out of memory, no cgroup's limit was hit")
    owner, evidence = _owner(situation, traces), _oom_evidence(situation, traces)
    kills = max((change.rise for change in traces.victims), default=1)
    counted = f" (oom_kill +{kills})"
    if owner is None or not isinstance(owner.limit, int):
        place = shown(traces.kill.limit_path, 400) if traces.kill is not None else ""
        summary = f"cgroup {place} was at its memory limit{counted}" if place else f"a memory limit above it was hit{counted}"
        return Blamed(cause, _status(situation, traces), place, summary, tuple(evidence), (LOWER_USE,), "cgroup.memory.oom-kill")
    own = made_by_test(situation, "memory", owner.cgroup.path)
    if own:
        return SelfInflicted(cause, own)
    limit = owner.limit
    has = f"MemoryMax={limit}" if owner.unit else f"{owner.file.rsplit('/', 1)[-1]}={limit}"
    return Blamed(
        cause, _status(situation, traces), named(owner),
        f"{named(owner)} has {has} ({size(limit)}), and the OOM killer ended {who(situation.process)} there{counted}",
        (*evidence, *limit_evidence(situation.cgroup_limits("memory"), situation.time_usec)),
        (*raise_limit(owner, "MemoryMax", max(limit * 2, _AT_LEAST), "--memory", "resources.limits.memory"), LOWER_USE),
        "cgroup.memory.oom-kill", cgroup_subject(owner.cgroup).key, weight=10,
    )


@hypothesis("host.memory", kinds=_KILLED, signals=(_KILL, 15))
def host_memory(situation: Situation) -> Outcome:
    """The whole machine was out of memory, and the OOM killer (or a daemon for that, systemd-oomd, earlyoom) took the process."""
    cause = "host.memory"
    daemon = _oom_daemon(situation)
    if daemon:
        sender = Evidence("sender", f"pid {situation.symptom.sender_pid} ({daemon})", "signal_generate", situation.time_usec)
        summary = f"{daemon} ended {who(situation.process)} to free memory"
        return Blamed(cause, Status.PROVED, "host", summary, (sender,), (LOWER_USE,))
    if situation.symptom.signal != _KILL:
        return RuledOut(cause, "the OOM killer sends SIGKILL")
    traces = traces_of(situation)
    if _was_killed_so(traces):
        if not _is_host_wide(situation, traces):
            return RuledOut(cause, "a cgroup's limit was hit")
        summary = f"the machine was out of memory, and the OOM killer ended {who(situation.process)}"
        evidence = tuple(_oom_evidence(situation, traces))
        return Blamed(
            cause, _status(situation, traces), "host", summary, evidence, (LOWER_USE,), "host.memory.oom-kill", "host", weight=9
        )
    if traces.is_known:
        return RuledOut(cause, "its own cgroup counted no OOM kill" if traces.own_is_known else "no OOM kill was counted")
    if traces.host is None:
        return NotDecidable(cause, "oom_kill of /proc/vmstat was not read before and after")
    why = f"{traces.host.rise} OOM kills were counted on this machine, and whom they ended is not known"
    if any(isinstance(each.limit, int) for each in situation.cgroup_limits("memory")) or situation.symptom.sender_pid:
        return NotDecidable(cause, why)
    summary = f"the machine was out of memory (oom_kill +{traces.host.rise}), and {who(situation.process)} was killed"
    return Blamed(cause, Status.LIKELY, "host", summary, tuple(_oom_evidence(situation, traces)), (LOWER_USE,))


def _oom_daemon(situation: Situation) -> str:
    sender = situation.symptom.sender_pid
    if not sender:
        return ""

    def read() -> str:
        try:
            return read_text(f"{situation.paths.proc}/{sender}/comm", 64).strip()
        except KernelError:
            return ""

    name = situation.kept("sender", read)
    return next((each for each in _OOM_DAEMONS if name == each[:15]), "")


@hypothesis("rlimit.CPU", kinds=_KILLED, signals=(_KILL, _XCPU))
def cpu_time(situation: Situation) -> Outcome:
    """The process had used up RLIMIT_CPU (ulimit -t, LimitCPU=): SIGXCPU at the soft limit (Go ignores it), SIGKILL at the hard."""
    cause, process, symptom = "rlimit.CPU", situation.process, situation.symptom
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    limit = process.hard("CPU") if symptom.signal == _KILL else process.soft("CPU")
    if not isinstance(limit, int):
        if isinstance(limit, Unknown) and traces_of(situation).is_none and not symptom.sender_pid:
            return of_unread(situation, "CPU", limit, UNLIMITED)
        return RuledOut(cause, "unlimited") if limit is UNLIMITED else NotDecidable(cause, str(limit))
    used = process.cpu_time_s
    has = f"{used:.2f} s" if isinstance(used, float) else str(used)
    if symptom.sender_pid and symptom.sender_pid != process.identity.pid:
        return RuledOut(cause, f"process {symptom.sender_pid} sent the signal")
    if symptom.signal == _KILL and _was_killed_so(traces_of(situation)):
        return RuledOut(cause, "it was the OOM killer")
    is_used_up = isinstance(used, float) and used >= limit * 0.7
    if situation.was_asked and not is_used_up:
        return RuledOut(cause, f"{has} used of {bound(limit)} s")
    if not is_used_up and not traces_of(situation).is_none and symptom.signal == _KILL:
        return NotDecidable(cause, f"{has} used of {bound(limit)} s when it was read")
    evidence = (Evidence("CPU time", has, f"/proc/{process.identity.pid}/stat", situation.time_usec),)
    kind = "hard" if symptom.signal == _KILL else "soft"
    summary = f"{who(process)} may use {bound(limit)} s of CPU time ({kind} RLIMIT_CPU)"
    wanted: int | Unlimited = UNLIMITED
    status = Status.PROVED if is_used_up or symptom.signal == _XCPU else Status.LIKELY
    return blame_resource(situation, "CPU", status, summary, evidence, wanted, 5)


@hypothesis("rlimit.FSIZE", kinds=_KILLED, signals=(_XFSZ,))
def file_size(situation: Situation) -> Outcome:
    """The process wrote beyond RLIMIT_FSIZE (ulimit -f, LimitFSIZE=) and did not ignore SIGXFSZ, as a Go program does."""
    cause, process = "rlimit.FSIZE", situation.process
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    limit = process.soft("FSIZE")
    if not isinstance(limit, int):
        return RuledOut(cause, "unlimited") if limit is UNLIMITED else NotDecidable(cause, str(limit))
    summary = f"{who(process)} may make files of {size(limit)} at most (RLIMIT_FSIZE)"
    return blame_resource(situation, "FSIZE", Status.PROVED, summary, (), UNLIMITED, 5)


KILLS = (memory_max, host_memory, cpu_time, file_size)
