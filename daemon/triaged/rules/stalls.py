# SPDX-License-Identifier: Apache-2.0
"""Cgroups that slow their processes down or hold them: memory.high, pressure, cpusets, the freezer."""
from __future__ import annotations

from collections.abc import Sequence

from triaged.model.cgroup import is_user_manager
from triaged.model.facts import CpusetFacts, FrozenFacts, MemoryHighFacts, PressureFacts
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.quoting import shown
from triaged.model.subject import CgroupSubject, ProcessSubject
from triaged.model.verdict import Evidence, Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.rules.cgroup_limits import cgroup_subject, limit_evidence, named, owner_evidence, process_evidence, raise_limit
from triaged.rules.rule import rule

_HIGH_STALL_THAT_HURTS = 0.05
_STALL_THAT_HURTS = {"memory": 0.10, "io": 0.40}
_PROCESSES_SHOWN = 8


def _who(processes: Sequence[ProcessIdentity], time_usec: int) -> list[Evidence]:
    out = []
    for number, process in enumerate(processes[:_PROCESSES_SHOWN], 1):
        out += process_evidence(process, f"process {number}" if len(processes) > 1 else "process", time_usec)
    if len(processes) > _PROCESSES_SHOWN:
        out.append(Evidence("more processes", len(processes) - _PROCESSES_SHOWN, "", time_usec))
    return out


def _place(path: str, unit: str) -> str:
    return shown(unit) if unit else f"cgroup {shown(path, 400)}"


@rule(
    "cgroup.memory.high", on=MemoryHighFacts, severity=Severity.WARNING, expires_after_s=86400,
    references=(
        "man:systemd.resource-control(5)",
        "https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files",
        "https://docs.kernel.org/accounting/psi.html",
    ),
)
def memory_high(facts: MemoryHighFacts) -> Verdict:
    """A cgroup is above its memory.high, and the kernel makes its tasks sleep for it.

    Nothing is killed and nothing fails at once: every allocation beyond memory.high reclaims first and then sleeps, up to two
    seconds each time, so that a test that ran in a second runs into its time-out ("panic: test timed out") without a word about
    memory in its log. The limit may be an ancestor's. systemd calls it MemoryHigh=; Docker, Podman and the Kubernetes
    kubelet leave it alone, unless MemoryQoS is on.
    """
    limit = facts.owner
    subject = CgroupSubject(limit.cgroup, cgroup_subject(limit.cgroup).uid)
    if not isinstance(limit.limit, int):
        return Fine(subject, "there is no memory.high any more")
    if facts.throttled <= 0:
        return Undecided(subject, "nothing was held back in the last look")
    if isinstance(facts.stalled_usec, Unknown):
        return Undecided(subject, f"how long tasks stood still is not known: {facts.stalled_usec.why}")
    share = facts.stalled_usec / facts.interval_usec
    if share < _HIGH_STALL_THAT_HURTS:
        return Undecided(subject, f"all tasks stood still for {share:.0%} of the time: too little to be a harm")
    now = facts.time_usec
    evidence = [
        Evidence("held back since the last look", facts.throttled, facts.counter_file, now),
        Evidence(
            "no task could run", f"{share:.0%} of {facts.interval_usec / 1_000_000:.1f} s",
            facts.counter_file.replace("events.local", "pressure"), now,
        ),
        *limit_evidence((limit,), now),
        *owner_evidence(limit, now),
        *_who(facts.processes, now),
    ]
    less = ManualStep("lower-use", "or use less: go test -p 1, GOMEMLIMIT below memory.high")
    fixes: tuple[Fix, ...] = (*raise_limit(limit, "MemoryHigh", limit.limit * 2, "--memory-reservation", "MemoryQoS"), less)
    return Problem(
        subject,
        f"{named(limit)} was above its memory.high of {limit.limit} bytes: all its tasks stood still {share:.0%} of the time",
        tuple(evidence), fixes, occurrences=facts.throttled, pid=facts.processes[0].pid if facts.processes else 0, time_usec=now,
    )


@rule(
    "cgroup.pressure", on=PressureFacts, severity=Severity.NOTICE, kind=Kind.RISK, expires_after_s=3600,
    references=("https://docs.kernel.org/accounting/psi.html", "man:systemd.resource-control(5)"),
)
def pressure(facts: PressureFacts) -> Verdict:
    """All tasks of a workload's cgroup stood still for a good part of the time, waiting for memory or for the disk.

    Pressure stall information says how long, not why: a limit of this cgroup or of an ancestor (memory.high, memory.max, io.max:
    those that apply are listed), or a host that is short of it altogether. Time-outs and slow tests follow; nothing was refused.
    Where no limit applies, the host itself is short: fewer tests at once, or a larger machine.
    """
    subject = CgroupSubject(facts.cgroup, cgroup_subject(facts.cgroup).uid, scope=facts.resource)
    share = facts.full_usec / facts.interval_usec
    if share < _STALL_THAT_HURTS[facts.resource]:
        return Fine(subject, f"all tasks stood still for {share:.0%} of the time")
    now = facts.time_usec
    seconds = facts.interval_usec / 1_000_000
    what = "memory" if facts.resource == "memory" else "the disk"
    evidence = [
        Evidence("no task could run", f"{share:.0%} of {seconds:.1f} s", facts.file, now),
        Evidence("some task waited", f"{facts.some_usec / facts.interval_usec:.0%} of {seconds:.1f} s", facts.file, now),
        *(Evidence(shown(name, 500), shown(value, 400), "", now) for name, value in facts.limits),
        *_who(facts.processes, now),
    ]
    why = "" if facts.limits else "; no limit of a cgroup applies: the host is short of it"
    return Problem(
        subject, f"all tasks of cgroup {shown(facts.cgroup.path, 400)} waited for {what} {share:.0%} of the time{why}",
        tuple(evidence), (), pid=facts.processes[0].pid if facts.processes else 0, time_usec=now,
    )


@rule(
    "cgroup.cpuset.small", on=CpusetFacts, severity=Severity.NOTICE, kind=Kind.RISK, expires_after_s=86400,
    references=("https://docs.kernel.org/admin-guide/cgroup-v2.html#cpuset", "man:systemd.resource-control(5)", "man:taskset(1)"),
)
def cpuset_small(facts: CpusetFacts) -> Verdict:
    """A Go process runs more at once than the CPUs that it may use.

    Without a GOMAXPROCS of its own Go takes the CPUs of its affinity mask, which a cpuset makes smaller; so somebody set it, in the
    environment or by go test -cpu. The threads then take turns on too few CPUs: tests that wait for each other by spinning, or that
    measure time, become slow and unsteady. Unset GOMAXPROCS, or give the cgroup more CPUs (AllowedCPUs=, docker --cpuset-cpus).
    """
    go = facts.process
    subject = ProcessSubject(go.process, by_workload=True)
    if isinstance(go.gomaxprocs, Unknown) or isinstance(go.cpus, Unknown):
        return Undecided(subject, "GOMAXPROCS or the CPUs are not known")
    if go.gomaxprocs <= go.cpus:
        return Fine(subject, f"GOMAXPROCS {go.gomaxprocs} fits {go.cpus} CPUs")
    if go.cpus >= facts.host_cpus:
        return Undecided(subject, "no cpuset and no mask makes it smaller: the machine has no more CPUs")
    now, who = facts.time_usec, go.process
    by = f"the cpuset of {_place(facts.cgroup.path, facts.unit)}" if isinstance(facts.cpus, int) else "its affinity mask (taskset)"
    evidence = [
        Evidence("GOMAXPROCS", f"{go.gomaxprocs} ({shown(go.origin, 400)})", f"/proc/{who.pid}/environ", now),
        Evidence("CPUs that it may use", go.cpus, f"/proc/{who.pid}/status", now),
        Evidence("CPUs of the machine", facts.host_cpus, "/sys/devices/system/cpu/online", now),
        Evidence("bounded by", by, facts.file, now),
        *process_evidence(who, "process", now),
    ]
    steps = [ManualStep("unset-gomaxprocs", f"unset GOMAXPROCS, or set it to {go.cpus}")]
    if isinstance(facts.cpus, int) and facts.unit:
        scope = ("--user",) if is_user_manager(facts.cgroup.path) else ()
        command = ("systemctl", *scope, "set-property", "--runtime", facts.unit, f"AllowedCPUs=0-{go.gomaxprocs - 1}")
        steps.append(ManualStep("allowed-cpus", f"or gives {shown(facts.unit)} more CPUs", (command,)))
    return Problem(
        subject, f"GOMAXPROCS is {go.gomaxprocs}, and {by} leaves {go.cpus} CPU{'' if go.cpus == 1 else 's'}", tuple(evidence),
        tuple(steps), pid=who.pid, time_usec=now,
    )


@rule(
    "cgroup.frozen", on=FrozenFacts, severity=Severity.ERROR, expires_after_s=86400,
    references=("https://docs.kernel.org/admin-guide/cgroup-v2.html#core-interface-files", "man:systemctl(1)"),
)
def frozen(facts: FrozenFacts) -> Verdict:
    """A cgroup with a workload's processes in it is frozen: they do not run at all, and time goes on.

    Somebody wrote 1 into cgroup.freeze (systemctl freeze, docker pause, a checkpoint, a sleeping session), in the workload's cgroup
    or above it. Signals but SIGKILL wait as well, so that a time-out of `go test` cannot dump its goroutines; to ps the processes
    look as if they slept. When it is thawed, every deadline that passed meanwhile fails at once.
    """
    subject = cgroup_subject(facts.cgroup)
    if not facts.is_frozen:
        return Fine(subject, "it is not frozen any more")
    now = facts.time_usec
    place = _place(facts.cgroup.path, facts.unit)
    if facts.unit and not is_user_manager(facts.cgroup.path):
        step = ManualStep("thaw", f"thaws {shown(facts.unit)}", (("systemctl", "thaw", facts.unit),))
    else:
        value = "THAWED" if facts.cgroup.hierarchy else "0"
        file = facts.file.replace("self_freezing", "state")
        step = ManualStep("thaw", f"write {value} into {shown(file, 1000)}, or thaw it where it was frozen (docker unpause)")
    number = len(facts.processes)
    return Problem(
        subject, f"{place} is frozen with {number} process{'' if number == 1 else 'es'} of workloads in it",
        (Evidence(facts.file.rsplit("/", 1)[-1], 1, facts.file, now), *_who(facts.processes, now)), (step,),
        pid=facts.processes[0].pid if facts.processes else 0, time_usec=now,
    )
