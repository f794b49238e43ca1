# SPDX-License-Identifier: Apache-2.0
"""Processes that the OOM killer ended."""
from __future__ import annotations

from triaged.model.facts import OomFacts
from triaged.model.fix import Fix, ManualStep
from triaged.model.quoting import shown
from triaged.model.subject import HostSubject
from triaged.model.verdict import Evidence, Fine, Problem, Severity, Undecided, Verdict
from triaged.rules.cgroup_limits import cgroup_subject, limit_evidence, named, process_evidence, raise_limit
from triaged.rules.rule import rule

_LOWER_USE = ManualStep(
    "lower-use", "or use less: go test -p 1 builds and runs one package at a time, GOMEMLIMIT makes a Go program collect earlier"
)


def _victims(facts: OomFacts) -> str:
    many = f"{facts.kills} process{'' if facts.kills == 1 else 'es'}"
    victim = facts.victim
    if victim is None or not victim.pid:
        return many
    name = shown(victim.comm or victim.exe.rsplit("/", 1)[-1])
    one = f"pid {victim.pid}" + (f" ({name})" if name else "")
    return one if facts.kills <= 1 else f"{many}, one of them {one}"


def _evidence(facts: OomFacts) -> list[Evidence]:
    out = [
        Evidence("oom_kill since the last look", facts.kills, facts.counter_file, facts.time_usec),
        Evidence("victim's cgroup", shown(facts.cgroup.path, 400), facts.counter_file, facts.time_usec),
        *process_evidence(facts.victim, "victim", facts.time_usec),
    ]
    if facts.record:
        out.append(Evidence("kernel log", shown(facts.record, 1000), "kernel log", facts.time_usec))
    return out


@rule(
    "cgroup.memory.oom-kill", on=OomFacts, severity=Severity.ERROR, expires_after_s=7 * 86400,
    references=(
        "man:systemd.resource-control(5)",
        "https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files",
    ),
)
def cgroup_oom_kill(facts: OomFacts) -> Verdict:
    """The kernel killed a process because a cgroup was at its memory limit and nothing more could be reclaimed.

    The test log then shows nothing but "signal: killed" and FAIL; where the compiler or the go command itself was the victim, a
    failed build or exit status 137. Page cache is reclaimed first and does not kill; files in tmpfs (on Debian 13 also /tmp) are
    memory like any other and do. The limit may be an ancestor's: the victim's own cgroup then shows a kill and no limit.
    systemd calls it MemoryMax=, Docker and Podman --memory, Kubernetes resources.limits.memory.
    """
    limit = facts.owner
    subject = cgroup_subject(limit.cgroup if limit else facts.cgroup)
    if facts.is_host_wide:
        return Undecided(subject, "the host ran out of memory, no cgroup limit was hit")
    if facts.kills <= 0:
        return Fine(subject, "nothing was killed")
    when = " before triaged started" if facts.before_start else ""
    if limit is None:
        summary = (
            f"OOM killer ended {_victims(facts)}{when} in cgroup {shown(facts.cgroup.path, 400)}; "
            "it is not decided whose memory limit was hit"
        )
    else:
        summary = f"OOM killer ended {_victims(facts)}{when}: {named(limit)} was at its limit of {limit.limit} bytes"
        if limit.cgroup.path != facts.cgroup.path:
            summary += f", the victim was in {shown(facts.cgroup.path, 400)}"
    evidence = _evidence(facts)
    fixes: tuple[Fix, ...] = ()
    if limit is not None:
        evidence += limit_evidence((limit,), facts.time_usec)
        evidence.append(Evidence("limit set by", named(limit), limit.file, facts.time_usec))
        if isinstance(limit.limit, int):
            fixes = raise_limit(limit, "MemoryMax", limit.limit * 2, "--memory", "resources.limits.memory")
    return Problem(
        subject, summary, tuple(evidence), (*fixes, _LOWER_USE), occurrences=facts.kills,
        pid=facts.victim.pid if facts.victim else 0, time_usec=facts.time_usec,
    )


@rule(
    "host.memory.oom-kill", on=OomFacts, severity=Severity.ERROR, expires_after_s=7 * 86400,
    references=("https://docs.kernel.org/admin-guide/mm/concepts.html#oom-killer",),
)
def host_oom_kill(facts: OomFacts) -> Verdict:
    """The kernel killed a process because the whole host, or a memory node that the process is bound to, was out of memory.

    No cgroup limit was involved, so raising one does not help: the host needs more memory or swap, or less must run at once.
    """
    subject = HostSubject()
    if not facts.is_host_wide:
        return Undecided(subject, "a cgroup's limit was hit")
    if facts.kills <= 0:
        return Fine(subject, "nothing was killed")
    when = " before triaged started" if facts.before_start else ""
    where = f" (cgroup {shown(facts.cgroup.path, 400)})" if facts.cgroup.path else ""
    return Problem(
        subject, f"OOM killer ended {_victims(facts)}{where}{when}: the host was out of memory", tuple(_evidence(facts)),
        (_LOWER_USE,), occurrences=facts.kills, pid=facts.victim.pid if facts.victim else 0, time_usec=facts.time_usec,
    )
