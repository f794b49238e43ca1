# SPDX-License-Identifier: Apache-2.0
"""Limits that are nearly used up."""
from __future__ import annotations

from triaged.model.cgroup import uid_of
from triaged.model.facts import HeadroomFacts
from triaged.model.fix import Fix, ManualStep, SetParameter, SetResourceLimit
from triaged.model.quoting import shown
from triaged.model.subject import CgroupSubject, HostSubject, ProcessSubject, Subject
from triaged.model.usage import CLOSES_BELOW, OPENS_AT, Usage
from triaged.model.verdict import Evidence, Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.rules.cgroup_limits import named, raise_limit
from triaged.rules.rule import rule

_CRITICAL_AT = 0.95
_PROPERTIES = {"pids.max": "TasksMax", "memory.max": "MemoryMax", "memory.limit_in_bytes": "MemoryMax", "memory.high": "MemoryHigh"}
_OPTIONS = {"TasksMax": ("--pids-limit", "podPidsLimit (kubelet)"), "MemoryMax": ("--memory", "resources.limits.memory")}


@rule(
    "headroom.nearly-used-up", on=HeadroomFacts, severity=Severity.WARNING, kind=Kind.HEADROOM,
    references=("man:systemd.resource-control(5)", "https://docs.kernel.org/admin-guide/sysctl/kernel.html"),
)
def nearly_used_up(facts: HeadroomFacts) -> Verdict:
    """More than 80 % of a limit is in use; nothing has been refused yet, as far as this look shows.

    The next fork, file, mapping or allocation beyond it fails with an error that does not name the limit. The finding opens
    at 80 % and closes below 70 %. Of memory only what the kernel cannot give back is counted: a cgroup whose
    memory.current is at its limit because of page cache is well. Where several limits bound the same thing, the one with the
    least left is reached first; `triagectl inspect` shows them side by side.
    """
    usage = facts.usage
    subject = _subject(facts)
    share = usage.share
    if share is None:
        return Undecided(subject, f"{usage.limit_name}: in use {usage.used}, limit {usage.limit}")
    if share < CLOSES_BELOW:
        return Fine(subject, f"{share:.0%} of {usage.limit_name} is in use")
    if share < OPENS_AT:
        return Undecided(subject, f"{share:.0%} of {usage.limit_name} is in use: between the marks")
    place = named(facts.cgroup) if facts.cgroup else _who(facts) if facts.process else "the host"
    return Problem(
        subject,
        f"{usage.resource}: {share:.0%} of {usage.limit_name} of {place} is in use ({usage.used} of {usage.limit})",
        (
            Evidence("in use", _number(usage.used), usage.used_from, facts.time_usec),
            Evidence(usage.limit_name, _number(usage.limit), usage.limit_from, facts.time_usec),
        ),
        _fixes(facts, usage),
        severity=Severity.ERROR if share >= _CRITICAL_AT else None,
        pid=facts.process.pid if facts.process else 0,
        time_usec=facts.time_usec,
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0  # `share` is a number: both are


def _who(facts: HeadroomFacts) -> str:
    who = facts.process
    return f"{shown(who.comm or who.exe)} (pid {who.pid})" if who else ""


def _subject(facts: HeadroomFacts) -> Subject:
    if facts.cgroup is not None:
        where = facts.cgroup.cgroup
        return CgroupSubject(where, uid_of(where.path), scope=facts.usage.limit_name)
    if facts.process is not None:
        return ProcessSubject(facts.process, scope=facts.usage.limit_name)
    return HostSubject(parameter=facts.usage.limit_name)


def _fixes(facts: HeadroomFacts, usage: Usage) -> tuple[Fix, ...]:
    if not isinstance(usage.limit, int):
        return ()
    twice = usage.limit * 2
    if facts.cgroup is not None:
        name = _PROPERTIES.get(usage.limit_name, "")
        options = _OPTIONS.get(name)
        if options:
            return raise_limit(facts.cgroup, name, twice, *options)
        # No property of systemd's and no option of a container runtime's stands behind these.
        is_number = usage.limit_name.startswith("cgroup.max")
        why = "; mkdir() of a cgroup below it fails with EAGAIN, counted nowhere" if is_number else ""
        return (ManualStep("cgroup-file", f"write {twice}, or max, into {shown(facts.cgroup.file, 1000)}{why}"),)
    if usage.limit_name == "RLIMIT_NOFILE" and facts.process is not None and facts.process.start_ticks:
        risk = "only this process and what it starts from now on"
        return (SetResourceLimit(facts.process.pid, facts.process.start_ticks, "NOFILE", twice, twice, risk),)
    if usage.limit_name.startswith("RLIMIT_"):
        return (ManualStep("resource-limit", f"raise Limit{usage.limit_name[7:]}= of the unit that starts it, or limits.conf(5)"),)
    return tuple(SetParameter(usage.limit_name, str(twice), lasting, seen=str(usage.limit)) for lasting in (False, True))
