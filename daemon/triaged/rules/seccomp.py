# SPDX-License-Identifier: Apache-2.0
"""What audit records (type 1326) say about seccomp filters."""
from __future__ import annotations

from triaged.model.cgroup import CgroupId, container_of, is_user_manager
from triaged.model.facts import FilterFacts, SeccompFacts
from triaged.model.fix import Fix, ManualStep, SetUnitSetting
from triaged.model.process import ProcessIdentity
from triaged.model.quoting import shown
from triaged.model.subject import ProcessSubject
from triaged.model.unit_filter import MOST_CALLS, SETTING, is_addable
from triaged.model.verdict import Evidence, Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.rules.rule import rule

_CALLS_SHOWN = 24
_REFUSING = ("KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO")


def _call(facts: SeccompFacts) -> str:
    name = shown(facts.syscall)
    return f"system call {name} ({shown(facts.arch)})" if name.isdigit() else f"{name}()"


def _who(facts: SeccompFacts) -> str:
    who = facts.process
    name = shown(who.exe or who.comm, 400)
    return f"{name} (pid {who.pid})" if name else f"pid {who.pid}"


def _subject(facts: SeccompFacts) -> ProcessSubject:
    # A Go test binary has another path in every run: its runs in one place are one cause. Other programs are told apart by exe.
    return ProcessSubject(facts.process, by_program=True, by_workload=True, scope=f"{facts.syscall}/{facts.action}")


def _evidence(facts: SeccompFacts) -> tuple[Evidence, ...]:
    source = "audit record 1326"
    out = [
        Evidence("syscall", shown(facts.syscall), source, facts.time_usec),
        Evidence("syscall number", facts.syscall_number, source, facts.time_usec),
        Evidence("arch", shown(facts.arch), source, facts.time_usec),
        Evidence("action", shown(facts.action), source, facts.time_usec),
    ]
    if facts.errno:
        out.append(Evidence("errno", facts.errno, source, facts.time_usec))
    if facts.signal:
        out.append(Evidence("signal", facts.signal, source, facts.time_usec))
    if facts.interval_usec:
        rate = facts.records * 1_000_000 / facts.interval_usec
        told = f"{rate:.0f} records/s in the last {facts.interval_usec / 1e6:.1f} s" if rate >= 10 else f"{rate:.1f} records/s"
        out.append(Evidence("rate", told, source, facts.time_usec))
    if facts.record:
        out.append(Evidence("record", shown(facts.record, 1000), source, facts.time_usec, private=True))
    return tuple(out)


def allowing(process: ProcessIdentity, syscall: str) -> tuple[Fix, ...]:
    """The steps that let a process make a call which a filter refuses: always that one call, never no filter at all."""
    path, name = process.cgroup, shown(syscall)
    unit, container = CgroupId(path).unit, container_of(path)
    if container:
        title = f"allow {name} in the seccomp profile that container {container.identifier[:12]} is started with"
        if container.runtime in ("docker", "podman") and not container.pod:
            show = (container.runtime, "inspect", "--format", "{{.HostConfig.SecurityOpt}}", container.identifier)
            return (ManualStep("container-profile", title + "; the command shows which one that is", (show,)),)
        return (ManualStep("container-profile", title),)
    if unit.endswith(".service") and not name.isdigit():
        is_users = is_user_manager(path)
        manager = ("systemctl", "--user") if is_users else ("systemctl",)
        title = f"if {shown(unit)} sets SystemCallFilter= and the program has no filter of its own, add {name} to it"
        show = (*manager, "show", "--property=SystemCallFilter,SystemCallErrorNumber", unit)
        by_hand = ManualStep("unit-filter", title, (show, (*manager, "edit", unit)))
        if is_users or not is_addable(syscall):
            return (by_hand,)
        return (SetUnitSetting(unit, SETTING, syscall, f"whoever breaks into {shown(unit)} can call {name}, too"), by_hand)
    return (ManualStep("filter", f"allow {name} in the filter, where it is loaded: by the program itself or by what started it"),)


@rule(
    "seccomp.denied", on=SeccompFacts, severity=Severity.ERROR, expires_after_s=7 * 86400,
    references=("man:seccomp(2)", "https://docs.kernel.org/userspace-api/seccomp_filter.html"),
)
def seccomp_denied(facts: SeccompFacts) -> Verdict:
    """A seccomp filter refused a system call; the kernel's audit record names it.

    KILL ends the process or the thread (a Go test whose thread was killed may hang until its time-out), TRAP sends SIGSYS,
    ERRNO makes the call fail with an error of the filter's choice. Records exist for both KILLs, and for ERRNO and TRAP
    only where the filter was loaded with SECCOMP_FILTER_FLAG_LOG: the plain EPERM of a container runtime's profile leaves none. So
    the absence of this finding does not mean that no filter refused anything. Programs that probe for a system call expect ENOSYS
    where it is missing: a filter that kills or gives EPERM breaks them where ENOSYS would not.
    """
    subject = _subject(facts)
    if facts.records <= 0:
        return Fine(subject, "no record")
    if facts.action not in _REFUSING:
        return Undecided(subject, f"action {shown(facts.action)} does not refuse the call")
    what = {
        "KILL_PROCESS": f"seccomp killed {_who(facts)} for {_call(facts)}",
        "KILL_THREAD": f"seccomp killed a thread of {_who(facts)} for {_call(facts)}",
        "TRAP": f"seccomp sent SIGSYS to {_who(facts)} for {_call(facts)}",
        "ERRNO": f"seccomp refused {_call(facts)} of {_who(facts)}" + (f" with errno {facts.errno}" if facts.errno else ""),
    }[facts.action]
    return Problem(
        subject, what, _evidence(facts), allowing(facts.process, facts.syscall), occurrences=facts.records,
        pid=facts.process.pid, time_usec=facts.time_usec,
    )


@rule(
    "seccomp.logged", on=SeccompFacts, severity=Severity.NOTICE, kind=Kind.RISK, expires_after_s=86400,
    references=("man:seccomp(2)",),
)
def seccomp_logged(facts: SeccompFacts) -> Verdict:
    """A seccomp filter logged a system call, or handed it to a supervisor, without refusing it itself.

    LOG lets the call through: whoever wrote the filter wants to know of it, and a stricter version of the same filter would refuse
    it. USER_NOTIF and TRACE leave the decision to a supervisor or tracer; what it decided is not in the record.
    """
    subject = _subject(facts)
    if facts.records <= 0:
        return Fine(subject, "no record")
    what = {
        "LOG": f"seccomp let {_call(facts)} of {_who(facts)} through and logged it; nothing was refused",
        "USER_NOTIF": f"seccomp handed {_call(facts)} of {_who(facts)} to a supervisor; whether it was refused is not recorded",
        "TRACE": f"seccomp handed {_call(facts)} of {_who(facts)} to a tracer; whether it was refused is not recorded",
    }.get(facts.action)
    if what is None:
        return Undecided(subject, f"action {shown(facts.action)} is not one that lets the call go on")
    return Problem(
        subject, what, _evidence(facts), (), occurrences=facts.records, pid=facts.process.pid, time_usec=facts.time_usec,
    )


@rule(
    "seccomp.silent-denials", on=FilterFacts, severity=Severity.WARNING, kind=Kind.RISK, expires_after_s=86400,
    references=("man:seccomp(2)", "https://docs.kernel.org/userspace-api/seccomp_filter.html"),
)
def silent_denials(facts: FilterFacts) -> Verdict:
    """A workload's process failed, and its seccomp filters refuse calls of its kind without leaving a trace.

    The default profiles of Docker, containerd, Podman and Kubernetes answer with EPERM or ENOSYS and record nothing, so a test sees
    "operation not permitted" as if the kernel had said so. triaged reads the filters and asks them about every call that such runs
    are known to make. It is a risk and not a hit: that the failed process made one of these calls was not seen (triagectl
    seccomp record shows it, so does a run under triagectl run). Where every filter records its refusals, seccomp.denied is proof.
    """
    subject = ProcessSubject(facts.process, by_program=True, by_workload=True)
    found = facts.refusals
    if not found.breaks and not found.features:
        return Fine(subject, "its seccomp filters let through all that such runs are known to need")
    if facts.filters and facts.logged == facts.filters:
        return Undecided(subject, "each of its filters records what it refuses: see seccomp.denied")
    features = [text.partition(":")[0] for text in found.features[:3]]
    what = [f"{shown(one.call)} ({one.answer})" for one in found.breaks[:4]] or features
    more = max(len(found.breaks) - 4, 0) if found.breaks else max(len(found.features) - 3, 0)
    told = ", ".join(what) + (f" and {more} more" if more else "")
    who = shown(facts.process.exe or facts.process.comm, 400)
    summary = f"{who} failed ({facts.ending}) under seccomp filters that refuse, without a record: {told}"
    return Problem(
        subject, summary, _filter_evidence(facts), _filter_fixes(facts), pid=facts.process.pid, time_usec=facts.time_usec,
        severity=Severity.WARNING if found.breaks else Severity.NOTICE,
    )


def _filter_evidence(facts: FilterFacts) -> tuple[Evidence, ...]:
    now, found, heir = facts.time_usec, facts.refusals, facts.heir
    source = f"PTRACE_SECCOMP_GET_FILTER of pid {heir.pid}"
    itself = (heir.pid, heir.start_ticks) == (facts.process.pid, facts.process.start_ticks)
    of = "the process itself, when it began" if itself else f"pid {heir.pid} ({shown(heir.comm)}), which started it: inherited"
    unknown = facts.filters_then < 0
    then = f"of the {facts.filters_then} that it had" if not unknown else "; how many it had is not known on this kernel"
    out = [
        Evidence("ending", facts.ending, "process connector", now),
        Evidence("filters", f"{facts.filters} read from {of}{' ' if not unknown else ''}{then}", source, now),
        Evidence("filters that record refusals", facts.logged, source, now),
        Evidence("a refused call was seen", "no: such a refusal leaves no trace", "", now),
        Evidence("needs measured with", shown(f"{found.toolchain}: {found.measured}", 400), "", now),
    ]
    for one in found.breaks[:_CALLS_SHOWN]:
        shows = f'; prints "{shown(one.shows, 300)}"' if one.shows else ""
        out.append(Evidence(f"{shown(one.call)} refused", f"{one.answer}: breaks {', '.join(one.workloads)}{shows}", source, now))
    if len(found.breaks) > _CALLS_SHOWN:
        more = ", ".join(f"{shown(one.call)} ({one.answer})" for one in found.breaks[_CALLS_SHOWN:])
        out.append(Evidence("also refused, and needed", more, source, now))
    for number, sentence in enumerate(found.features, 1):
        out.append(Evidence(f"packages {number}", shown(sentence, 400), source, now))
    if found.harmless:
        told = ", ".join(f"{shown(one.call)} ({one.answer})" for one in found.harmless)
        out.append(Evidence("refused and done without", told, source, now))
    return tuple(out)


def _filter_fixes(facts: FilterFacts) -> tuple[Fix, ...]:
    path = facts.process.cgroup
    unit, container = CgroupId(path).unit, container_of(path)
    record = ManualStep(
        "record", "see which calls the tests really make, and have the smallest profile written that lets them pass",
        (("triagectl", "seccomp", "record", "-o", "profile.json", "--", "go", "test", "./..."),),
    )
    calls = [one.call for one in facts.refusals.breaks if is_addable(one.call)]
    if unit.endswith(".service") and not container and not is_user_manager(path) and calls:
        risk = f"whoever breaks into {shown(unit)} can make these calls, too"
        return (SetUnitSetting(unit, SETTING, " ".join(sorted(calls)[:MOST_CALLS]), risk), record)
    if container:
        names = " ".join(sorted(one.call for one in facts.refusals.breaks))
        allowed = names or "what its packages need"
        title = f"start container {container.identifier[:12]} with a seccomp profile that allows {allowed}"
        if container.runtime in ("docker", "podman") and not container.pod:
            run = (container.runtime, "run", "--security-opt", "seccomp=profile.json", "IMAGE")
            return (record, ManualStep("container-profile", title, (run,)))
        return (record, ManualStep("container-profile", title + " (securityContext.seccompProfile, type Localhost)"))
    return (record,)
