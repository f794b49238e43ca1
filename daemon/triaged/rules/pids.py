# SPDX-License-Identifier: Apache-2.0
"""Forks that a pids.max refused."""
from __future__ import annotations

from triaged.model.facts import PidsFacts
from triaged.model.fix import Fix
from triaged.model.limit import Unknown
from triaged.model.quoting import shown
from triaged.model.usage import Usage
from triaged.model.verdict import Evidence, Fine, Problem, Severity, Verdict
from triaged.rules.cgroup_limits import cgroup_subject, limit_evidence, named, owner_evidence, process_evidence, raise_limit
from triaged.rules.rule import rule

_MINIMUM = 64
_GO_HINT = "\"may need to increase max user processes (ulimit -u)\" is wrong here: that is RLIMIT_NPROC, and pids.max refused"


def _ruled_out(other: Usage, time_usec: int) -> Evidence:
    """Another limit on tasks as it stood: it gives the same error, and the counter of pids.max says that it was not this one."""
    used = "" if isinstance(other.used, Unknown) else f", in use {other.used}"
    note = f" ({other.note})" if other.note else ""
    return Evidence(f"not {other.limit_name}", f"{other.limit} for {other.where}{used}{note}", other.limit_from, time_usec)


@rule(
    "cgroup.pids.limit-hit", on=PidsFacts, severity=Severity.ERROR, expires_after_s=7 * 86400,
    references=(
        "man:systemd.resource-control(5)",
        "https://docs.kernel.org/admin-guide/cgroup-v2.html#pid",
        "https://github.com/golang/go/issues/15476",
    ),
)
def pids_limit_hit(facts: PidsFacts) -> Verdict:
    """The kernel refused to make a process or thread because a cgroup already held pids.max tasks.

    Programs then fail with EAGAIN, "resource temporarily unavailable", often far from the fork itself: fork/exec of a
    compiler, a new thread of the Go runtime. Go adds "may need to increase max user processes (ulimit -u)" to every such
    failure; that hint is wrong here. RLIMIT_NPROC, which ulimit -u sets, is another limit, and it does not bind root at all.
    pids.max counts threads as well as processes, and it is inherited downwards: the limit that was full may be an ancestor's,
    and then raising it at the leaf changes nothing. systemd calls it TasksMax=, Docker and Podman --pids-limit,
    Kubernetes podPidsLimit.
    """
    limit = facts.owner
    subject = cgroup_subject(limit.cgroup if limit else facts.cgroup)
    if facts.forks_refused <= 0:
        return Fine(subject, "no fork was refused")
    refused = f"{facts.forks_refused_total} fork{'' if facts.forks_refused_total == 1 else 's'} refused"
    when = " before triaged started" if facts.before_start else ""
    if limit is None:
        summary = f"{refused}{when} in cgroup {shown(facts.cgroup.path, 400)}; it is not decided which cgroup's pids.max was full"
    else:
        at = f" at {limit.limit} tasks" if isinstance(limit.limit, int) else ""
        summary = f"{refused}{when}: {named(limit)} was full{at}"
        if limit.cgroup.path != facts.cgroup.path:
            summary += f", counted in {shown(facts.cgroup.path, 400)}"
    evidence = [
        Evidence("forks refused", facts.forks_refused_total, facts.counter_file, facts.time_usec),
        *limit_evidence(facts.ancestry or ((limit,) if limit else ()), facts.time_usec),
        *process_evidence(facts.process, "process", facts.time_usec),
    ]
    if limit is not None:
        evidence += owner_evidence(limit, facts.time_usec)
    evidence += [_ruled_out(other, facts.time_usec) for other in facts.others]
    evidence.append(Evidence("Go's hint", _GO_HINT, "", facts.time_usec))
    if facts.record:
        evidence.append(Evidence("kernel log", shown(facts.record, 1000), "kernel log", facts.time_usec))
    fixes: tuple[Fix, ...] = ()
    if limit is not None and isinstance(limit.limit, int):
        fixes = raise_limit(limit, "TasksMax", max(limit.limit * 2, _MINIMUM), "--pids-limit", "podPidsLimit (kubelet)")
    return Problem(
        subject, summary, tuple(evidence), fixes, occurrences=facts.forks_refused,
        pid=facts.process.pid if facts.process else 0, time_usec=facts.time_usec,
    )
