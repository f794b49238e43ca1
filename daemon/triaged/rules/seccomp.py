# SPDX-License-Identifier: Apache-2.0
"""What audit records (type 1326) say about seccomp filters."""
from __future__ import annotations

from triaged.model.cgroup import CgroupId, container_of, is_user_manager
from triaged.model.facts import SeccompFacts
from triaged.model.fix import Fix, ManualStep
from triaged.model.quoting import shown
from triaged.model.subject import ProcessSubject
from triaged.model.verdict import Evidence, Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.rules.rule import rule

_REFUSING = ("KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO")


def _call(facts: SeccompFacts) -> str:
    name = shown(facts.syscall)
    return f"system call {name} ({shown(facts.arch)})" if name.isdigit() else f"{name}()"


def _who(facts: SeccompFacts) -> str:
    who = facts.process
    name = shown(who.exe or who.comm, 400)
    return f"{name} (pid {who.pid})" if name else f"pid {who.pid}"


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
    if facts.record:
        out.append(Evidence("record", shown(facts.record, 1000), source, facts.time_usec, private=True))
    return tuple(out)


def _fixes(facts: SeccompFacts) -> tuple[Fix, ...]:
    path, name = facts.process.cgroup, shown(facts.syscall)
    unit, container = CgroupId(path).unit, container_of(path)
    if container:
        title = f"allow {name} in the seccomp profile that container {container.identifier[:12]} is started with"
        if container.runtime in ("docker", "podman") and not container.pod:
            show = (container.runtime, "inspect", "--format", "{{.HostConfig.SecurityOpt}}", container.identifier)
            return (ManualStep("container-profile", title + "; the command shows which one that is", (show,)),)
        return (ManualStep("container-profile", title),)
    if unit.endswith(".service") and not name.isdigit():
        manager = ("systemctl", "--user") if is_user_manager(path) else ("systemctl",)
        title = f"if {shown(unit)} sets SystemCallFilter= and the program has no filter of its own, add {name} to it"
        show = (*manager, "show", "--property=SystemCallFilter,SystemCallErrorNumber", unit)
        return (ManualStep("unit-filter", title, (show, (*manager, "edit", unit))),)
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
    subject = ProcessSubject(facts.process, by_program=True, scope=facts.syscall)
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
        subject, what, _evidence(facts), _fixes(facts), occurrences=facts.records,
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
    subject = ProcessSubject(facts.process, by_program=True, scope=facts.syscall)
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
