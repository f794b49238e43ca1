# SPDX-License-Identifier: Apache-2.0
"""Processes that a SIGKILL ended, and not for lack of memory."""
from __future__ import annotations

import signal

from triaged.model.facts import ExitFacts
from triaged.model.fix import Fix, ManualStep
from triaged.model.killed import KillEvidence, Relative
from triaged.model.limit import Unknown
from triaged.model.quoting import shown
from triaged.model.subject import ProcessSubject
from triaged.model.verdict import Evidence, Problem, Severity, Undecided, Verdict
from triaged.rules.cgroup_limits import process_evidence
from triaged.rules.rule import rule

_RUN = (("triagectl", "run", "--", "go", "test", "./..."),)
_CLOCK_SLACK_S = 0.3  # start times are in ticks of 10 ms, and timeout(1) is somewhat older than its clock


@rule(
    "process.killed", on=ExitFacts, severity=Severity.NOTICE, expires_after_s=86400,
    references=("man:signal(7)", "man:timeout(1)", "man:setrlimit(2)", "https://docs.kernel.org/admin-guide/cgroup-v2.html"),
)
def killed(facts: ExitFacts) -> Verdict:
    """A workload's process was ended by SIGKILL, and it was not the OOM killer.

    The log says "signal: killed", which most people read as lack of memory. The kernel counts every OOM kill, in the victim's
    cgroup and for the whole machine, before it sends the signal: where those counters did not move while the process lived,
    somebody else sent it. Who, the kernel does not keep; what speaks for one sender is shown: the hard RLIMIT_CPU used up (the
    kernel itself), a timeout(1) above it that sends SIGKILL and whose time is just over, or a cgroup that was emptied (cgroup.kill,
    a unit that was stopped). Otherwise the sender is unknown; go test itself is one that may be, some time after its -timeout.
    """
    subject = ProcessSubject(facts.process)
    found = facts.evidence
    if facts.signal != signal.SIGKILL:
        return Undecided(subject, f"signal {facts.signal}, not SIGKILL")
    if found is None:
        return Undecided(subject, "it was not seen to begin: the counters from before are not known")
    if found.oom_kills:
        where = shown(found.oom_kills[0].path, 400) or "the host"
        return Undecided(subject, f"oom_kill rose in {where} meanwhile: it may have been that")
    if not found.is_oom_ruled_out:
        return Undecided(subject, "the counters of OOM kills could not be read again")
    who, now = facts.process, facts.time_usec
    sender, fixes = _sender(found)
    return Problem(
        subject, f"{shown(who.comm or who.exe)} (pid {who.pid}) was killed by SIGKILL, not for lack of memory: {sender}",
        (*_evidence(found, sender, now), *process_evidence(who, "process", now)), fixes, pid=who.pid, time_usec=now,
    )


def _sender(found: KillEvidence) -> tuple[str, tuple[Fix, ...]]:
    if found.is_cpu_limit_hit:
        step = ManualStep("cpu-time", f"raise LimitCPU= of the unit that starts it, or ulimit -t; it is {found.cpu_limit} s")
        return f"probably by the kernel, for its RLIMIT_CPU of {found.cpu_limit} s was used up", (step,)
    for relative in found.relatives:
        if relative.is_killing_timeout and not _is_early(relative):
            step = ManualStep("time-out", "it took longer than timeout(1) gave it: more time, or less to do")
            if relative.kills_after_s is None or relative.age_s is None:
                return f"probably by pid {relative.pid} `timeout`, above it", (step,)
            return f"by pid {relative.pid} `timeout`, whose {relative.kills_after_s:g} s were over", (step,)
    if found.is_cgroup_empty:
        return "its whole cgroup was emptied (cgroup.kill, or its unit was stopped)", ()
    step = ManualStep("trace", "run it again below triagectl run, which sees each signal with its sender", _RUN)
    return "sender unknown", (step,)


def _is_early(timeout: Relative) -> bool:
    """Whether its time was not over yet: then it was not this one."""
    after, age = timeout.kills_after_s, timeout.age_s
    return after is not None and age is not None and age < after - _CLOCK_SLACK_S


def _evidence(found: KillEvidence, sender: str, now: int) -> list[Evidence]:
    out = [Evidence("sender", sender, "", now)]
    counters = [*found.counters, *((found.host,) if found.host else ())]
    for counter in counters:
        at = shown(counter.path, 400) or "the host"
        value = str(counter.after) if isinstance(counter.after, Unknown) else f"unchanged at {counter.before}"
        out.append(Evidence(f"oom_kill of {at}", value, counter.file, now))
    if isinstance(found.cpu_limit, int):
        used = str(found.cpu_used_s) if isinstance(found.cpu_used_s, Unknown) else f"{found.cpu_used_s:.2f} s"
        out.append(Evidence("CPU time", f"{used} of RLIMIT_CPU {found.cpu_limit} s", "", now))
    for number, relative in enumerate(found.relatives, 1):
        what = shown(" ".join(relative.command) or relative.comm, 400)
        source = f"/proc/{relative.pid}/cmdline"
        out.append(Evidence(f"ancestor {number}", f"pid {relative.pid}: {what}", source, now, private=True))
        if relative.is_killing_timeout and relative.kills_after_s is not None and relative.age_s is not None:
            when = f"after {relative.kills_after_s:g} s; it was {relative.age_s:.1f} s old"
            verdict = "ruled out, not over yet" if _is_early(relative) else "over"
            source = f"/proc/{relative.pid}/stat"
            out.append(Evidence(f"time of ancestor {number}", f"sends SIGKILL {when}: {verdict}", source, now))
    return out
