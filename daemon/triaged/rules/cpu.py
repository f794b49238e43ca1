# SPDX-License-Identifier: Apache-2.0
"""CPU quotas that hold Go processes back."""
from __future__ import annotations

from dataclasses import replace

from triaged.model.cgroup import container_of, is_user_manager, pod_of
from triaged.model.cpu import CpuQuota, GoProcess
from triaged.model.facts import CgroupLimit, CpuFacts
from triaged.model.fix import Fix, ManualStep, SetUnitProperty
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.quoting import shown
from triaged.model.verdict import Evidence, Fine, Problem, Severity, Undecided, Verdict
from triaged.rules.cgroup_limits import cgroup_subject, named, owner_evidence, process_evidence, raise_limit
from triaged.rules.rule import rule

_SHARE_THAT_HURTS = 0.10
_PERIODS_TO_JUDGE_BY = 5
_PROCESSES_SHOWN = 8


@rule(
    "cgroup.cpu.throttled", on=CpuFacts, severity=Severity.WARNING, expires_after_s=86400,
    references=(
        "man:systemd.resource-control(5)",
        "https://docs.kernel.org/scheduler/sched-bwc.html",
        "https://go.dev/doc/go1.25#container-aware-gomaxprocs",
        "https://github.com/golang/go/issues/73193",
    ),
)
def cpu_throttled(facts: CpuFacts) -> Verdict:
    """A CPU quota stopped Go processes in more than a tenth of the periods, and is smaller than their GOMAXPROCS.

    A quota is so much CPU time in each period, usually of 100 ms. GOMAXPROCS threads that run at once use it up early, and all of
    them then stand still until the next period: timers fire late, deadlines pass, tests time out. The quota may be an
    ancestor's. Go reads only that of the process's own cgroup, only since 1.25, only if the go line of go.mod is 1.25 or later, and
    never takes less than 2; so a quota below 2 cores holds every Go program back that does not set GOMAXPROCS. A smaller
    GOMAXPROCS does not make work that needs the CPU faster, for the quota bounds that in any case; it makes the pauses shorter.
    Only a larger quota, or less work at once (go test -p, -parallel), brings time back.
    systemd calls it CPUQuota=, Docker and Podman --cpus, Kubernetes resources.limits.cpu.
    """
    quota = facts.quota
    subject = cgroup_subject(quota.cgroup)
    cores = quota.cores
    if cores is None:
        if quota.quota_usec is UNLIMITED:
            return Fine(subject, "there is no CPU quota any more")
        return Undecided(subject, f"CPU quota: {quota.quota_usec}")
    known = [each.gomaxprocs for each in facts.processes if isinstance(each.gomaxprocs, int)]
    wanted, together = max(known, default=0), sum(known)
    if facts.periods < _PERIODS_TO_JUDGE_BY:
        return Undecided(subject, f"{facts.periods} periods are too few to judge by")
    share = facts.throttled_periods / facts.periods
    if not known:
        return Undecided(subject, "GOMAXPROCS of the processes is not known")
    if cores >= together:
        return Fine(subject, f"the quota of {cores:g} cores is enough for GOMAXPROCS {together}")
    if share <= _SHARE_THAT_HURTS:
        return Undecided(subject, f"{share:.0%} of the periods were throttled in the last look: too few to be a harm")
    procs = max(int(cores), 1)
    tests = sum(1 for each in facts.processes if each.process.workload and each.process.workload.role == "test-binary")
    at_once = max(procs // wanted, 1) if tests > 1 else procs
    many = f" {len(known)} Go processes with GOMAXPROCS {together} together" if len(known) > 1 else f" GOMAXPROCS {wanted}"
    # Not "was slowed down by": what would have run in that time is not known.
    summary = (
        f"{named(_as_limit(quota))} used up its CPU quota of {cores:.3g} cores in {share:.0%} of the periods;"
        f" it bounds{many}"
    )
    first = facts.processes[0].process
    return Problem(
        subject, summary, tuple(_evidence(facts, procs, at_once)), _fixes(facts, procs, at_once, together),
        occurrences=facts.throttled_periods, pid=first.pid, time_usec=facts.time_usec,
    )


def slow_down(facts: CpuFacts) -> tuple[float, str] | None:
    """How many times longer the work took at least, and what says so; None where nothing does.

    Of the time in which all tasks stood still nothing can have come: 1 / (1 - share) is a lower bound for work that needs the CPU.
    """
    if isinstance(facts.stalled_usec, int):
        share, source = facts.stalled_usec / facts.interval_usec, "PSI cpu full"
    else:
        cpus = [each.cpus for each in facts.processes if isinstance(each.cpus, int)]
        if not cpus:
            return None
        # Summed over the CPUs that waited, of which there were at most as many as the processes may use.
        share, source = facts.throttled_usec / facts.interval_usec / max(cpus), "cpu.stat"
    return 1 / (1 - min(share, 0.99)), source


def _evidence(facts: CpuFacts, procs: int, at_once: int) -> list[Evidence]:
    now, seconds = facts.time_usec, facts.interval_usec / 1_000_000
    out = [
        Evidence("throttled periods", f"{facts.throttled_periods} of {facts.periods} in {seconds:.1f} s", facts.counter_file, now),
        Evidence("throttled time", f"{facts.throttled_usec / 1_000_000:.2f} s, summed over CPUs", facts.counter_file, now),
    ]
    if isinstance(facts.stalled_usec, int):
        pressure = facts.counter_file.replace("cpu.stat", "cpu.pressure")
        out.append(Evidence("all tasks stood still", f"{facts.stalled_usec / facts.interval_usec:.0%} of the time", pressure, now))
    slower = slow_down(facts)
    if slower is not None:
        out.append(Evidence("slow-down, at least", f"{slower[0]:.1f} times (estimate from {slower[1]})", facts.counter_file, now))
    for each in facts.chain:
        file = each.file.rsplit("/", 1)[-1]
        out.append(Evidence(f"{file} at {shown(each.cgroup.path, 400)}", _quota_text(each), each.file, now))
    out += owner_evidence(replace(_as_limit(facts.quota), origin=facts.origin), now)
    leaf = facts.processes[0].process.cgroup_for("cpu")
    if leaf != facts.quota.cgroup.path:
        out.append(Evidence("why Go does not see it", f"it reads only the quota of its own cgroup, {shown(leaf, 400)}", "", now))
    for number, each_process in enumerate(facts.processes[:_PROCESSES_SHOWN], 1):
        out += _process_evidence(each_process, f"process {number}" if len(facts.processes) > 1 else "process", now)
    if len(facts.processes) > _PROCESSES_SHOWN:
        out.append(Evidence("more Go processes", len(facts.processes) - _PROCESSES_SHOWN, "", now))
    out.append(Evidence("recommended", f"GOMAXPROCS={procs}, go test -p {at_once} -parallel {procs}", "", now))
    return out


def _process_evidence(each: GoProcess, role: str, now: int) -> list[Evidence]:
    out = process_evidence(each.process, role, now)
    value = str(each.gomaxprocs) if isinstance(each.gomaxprocs, Unknown) else f"{each.gomaxprocs} ({shown(each.origin, 400)})"
    out.append(Evidence(f"{role} GOMAXPROCS", value, f"/proc/{each.process.pid}/environ", now))
    return out


def _quota_text(quota: CpuQuota) -> str:
    cores = quota.cores
    return str(quota.quota_usec) if cores is None else f"{quota.quota_usec} of every {quota.period_usec} µs: {cores:.3g} cores"


def _as_limit(quota: CpuQuota) -> CgroupLimit:
    return CgroupLimit(quota.cgroup, quota.file, quota.quota_usec, Unknown("a rate is not used up"), quota.unit)


def _fixes(facts: CpuFacts, procs: int, at_once: int, together: int) -> tuple[Fix, ...]:
    argv = ("env", f"GOMAXPROCS={procs}", "go", "test", f"-p={at_once}", f"-parallel={procs}", "./...")
    risk = "spreads the pauses; work that needs more CPU than the quota gives stays as slow"
    smaller = ManualStep("gomaxprocs", f"run no more at once than the quota gives: GOMAXPROCS={procs}", (argv,), risk)
    return (*_larger_quota(facts, together), smaller)


def _larger_quota(facts: CpuFacts, together: int) -> tuple[Fix, ...]:
    quota = facts.quota
    cpus = [each.cpus for each in facts.processes if isinstance(each.cpus, int)]
    cores = min(together, max(cpus, default=together))
    if quota.cores is None or cores <= quota.cores:
        return ()
    percent = f"{cores * 100}%"
    path = quota.cgroup.path
    if container_of(path) or pod_of(path):
        return raise_limit(_as_limit(quota), "CPUQuota", cores, "--cpus", "resources.limits.cpu")
    if quota.unit and is_user_manager(path):
        command = ("systemctl", "--user", "set-property", quota.unit, f"CPUQuota={percent}")
        return (ManualStep("user-unit-limit", f"sets CPUQuota={percent} of {shown(quota.unit)}, typed by its user", (command,)),)
    if quota.unit:
        share = quota.cores * 100
        seen = f"{share:.0f}%" if share == int(share) else ""
        return tuple(SetUnitProperty(quota.unit, "CPUQuota", percent, lasting, seen=seen) for lasting in (False, True))
    value = f"{cores * quota.period_usec}"
    where = shown(quota.file, 1000)
    return (ManualStep("cgroup-limit", f"write {value} into {where}, or raise the quota where the cgroup is made"),)
