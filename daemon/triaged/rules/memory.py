# SPDX-License-Identifier: Apache-2.0
"""Processes that the OOM killer ended."""
from __future__ import annotations

from collections.abc import Sequence

from triaged.model.cgroup import CgroupId
from triaged.model.facts import OomFacts
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.memory import MemoryDetail, MemorySample, OomReport, OomTask
from triaged.model.quoting import shown
from triaged.model.subject import HostSubject
from triaged.model.verdict import Evidence, Fine, Problem, Severity, Undecided, Verdict
from triaged.rules.cgroup_limits import cgroup_subject, limit_evidence, named, owner_evidence, process_evidence, raise_limit
from triaged.rules.rule import rule

_SAMPLES_SHOWN = 15
_V1_FILES = (
    "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.failcnt", "memory.memsw.usage_in_bytes",
    "memory.memsw.limit_in_bytes",
)
_V2_FILES = ("memory.current", "memory.peak", "memory.events.local", "memory.swap.current", "memory.swap.max")
LOWER_USE = ManualStep(
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
        *process_evidence(facts.victim, "victim", facts.time_usec),
    ]
    if facts.cgroup.path:
        out.insert(1, Evidence("victim's cgroup", shown(facts.cgroup.path, 400), facts.counter_file, facts.time_usec))
    if facts.record:
        out.append(Evidence("kernel log", shown(facts.record, 1000), "kernel log", facts.time_usec))
    if facts.candidates:
        text = ", ".join(shown(path, 200) for path in facts.candidates)
        if not facts.is_place_known:
            name = "gone at that time"
        elif len(facts.candidates) == 1:
            name = "by elimination, the only one gone at that time without a kill of its own"
        else:
            name = "by elimination, one kill each of as many that name no cgroup"
        out.append(Evidence(name, text, "", facts.time_usec))
    if facts.unit_result:
        out.append(Evidence("where, says systemd", shown(facts.unit_result), "org.freedesktop.systemd1", facts.time_usec))
    if facts.report is not None:
        out += _report_evidence(facts.report, facts.time_usec)
    if facts.detail is not None:
        out += _detail_evidence(facts.detail, facts.time_usec)
    if facts.samples:
        out += _sample_evidence(facts.samples, facts.time_usec)
    return out


def _report_evidence(report: OomReport, now: int) -> list[Evidence]:
    """What the kernel said of the cgroup at the moment of the kill."""
    out = []
    if isinstance(report.used_bytes, int):
        text = f"{report.used_bytes} bytes in use of {report.limit}, failcnt {report.limit_hits}"
        out.append(Evidence("memory at that moment", text, "kernel log", now))
    if isinstance(report.swap_used_bytes, int):
        text = f"{report.swap_used_bytes} bytes in use, limit {report.swap_limit}"
        out.append(Evidence("swap at that moment", text, "kernel log", now))
    if report.tasks:
        rows = [f"{shown(task.comm) or '?'}[{task.pid}] {_mib(task.rss_bytes)}{_swapped(task)}" for task in report.tasks]
        more = f" and {report.tasks_left_out} smaller ones" if report.tasks_left_out else ""
        # Whose processes these are is not known: the kernel log is not for everybody either.
        out.append(Evidence("tasks by memory", ", ".join(rows) + more, "kernel log", now, private=True))
    return out


def _swapped(task: OomTask) -> str:
    return f" (+{_mib(task.swap_bytes)} swap)" if task.swap_bytes else ""


def _mib(value: int) -> str:
    return f"{value / (1 << 20):.1f} MiB"


def _detail_evidence(detail: MemoryDetail, now: int) -> list[Evidence]:
    """What the files of the cgroup said when the kill was told."""
    files = _V1_FILES if detail.swap_counts_memory else _V2_FILES
    together = "memory and swap" if detail.swap_counts_memory else "swap"
    values = (detail.used_bytes, detail.peak_bytes, detail.limit_hits, detail.swap_used_bytes, detail.swap_limit)
    names = ("memory afterwards", "peak", "times at the limit", "swap afterwards", f"limit of {together}")
    out = [
        Evidence(name, value if isinstance(value, int) else str(value), f"{detail.directory}/{file}", now)
        for name, value, file in zip(names, values, files, strict=True) if not isinstance(value, Unknown)
    ]
    if not isinstance(detail.under_oom, Unknown):
        text = "1: tasks wait for memory" if detail.under_oom else "0, as always after a kill: it says nothing about it"
        out.append(Evidence("under_oom", text, f"{detail.directory}/memory.oom_control", now))
    if not isinstance(detail.is_group, Unknown):
        text = "1: all processes of the cgroup are killed together" if detail.is_group else "0: one process at a time"
        out.append(Evidence("oom.group", text, f"{detail.directory}/memory.oom.group", now))
    return out


def _sample_evidence(samples: Sequence[MemorySample], now: int) -> list[Evidence]:
    """The minute before: what was in use, by how many seconds before the kill."""
    step = -(-len(samples) // _SAMPLES_SHOWN)
    picked = samples[::-step][::-1]  # the newest is always shown
    points = [f"-{(now - sample.at_usec) / 1e6:.0f} s {_mib(sample.used_bytes)}" for sample in picked]
    last, greatest = samples[-1], max(samples, key=lambda sample: sample.used_bytes)
    return [
        Evidence("memory in the minute before", ", ".join(points), "samples of triaged, once a second", now),
        Evidence("last sample", f"{(now - last.at_usec) / 1e6:.2f} s before: {last.used_bytes} bytes", "", now),
        Evidence("greatest sample", greatest.used_bytes, "", greatest.at_usec),
    ]


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
    path = shown(facts.cgroup.path, 400)
    # Of more than ten kills in five seconds the kernel does not say where: somewhere below the root.
    subject = cgroup_subject(limit.cgroup if limit else facts.cgroup if path else CgroupId("/"))
    if facts.is_host_wide:
        return Undecided(subject, "the host ran out of memory, no cgroup limit was hit")
    if facts.kills <= 0:
        return Fine(subject, "nothing was killed")
    when = " before triaged started" if facts.before_start else ""
    if not facts.is_place_known and limit is None:
        # The kernel writes ten reports in 5 s at most, and the cgroup was gone before its counter was read.
        summary = f"OOM killer ended {_victims(facts)}{when} in a cgroup that was gone at once: which one is not known"
    elif limit is None:
        where = f"cgroup {path}" if path else "a cgroup that no record names"
        summary = f"OOM killer ended {_victims(facts)}{when} in {where}; it is not decided whose memory limit was hit"
    else:
        of = f" of {limit.limit} bytes" if isinstance(limit.limit, int) else ""
        summary = f"OOM killer ended {_victims(facts)}{when}: {named(limit)} was at its limit{of}"
        if path and limit.cgroup.path != facts.cgroup.path:
            summary += f", the victim was in {path}"
    evidence = _evidence(facts)
    fixes: tuple[Fix, ...] = ()
    if limit is not None:
        evidence += limit_evidence((limit,), facts.time_usec)
        evidence += owner_evidence(limit, facts.time_usec)
        if isinstance(limit.limit, int):
            fixes = raise_limit(limit, "MemoryMax", limit.limit * 2, "--memory", "resources.limits.memory")
    return Problem(
        subject, summary, tuple(evidence), (*fixes, LOWER_USE), occurrences=facts.kills,
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
        (LOWER_USE,), occurrences=facts.kills, pid=facts.victim.pid if facts.victim else 0, time_usec=facts.time_usec,
    )
