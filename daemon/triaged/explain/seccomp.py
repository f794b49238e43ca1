# SPDX-License-Identifier: Apache-2.0
"""seccomp.<call>: a filter answered the call, or ended the process for making it."""
from __future__ import annotations

import re

from triaged.errors import InterfaceMissing, TriagedError
from triaged.explain.calls import FORK_EXEC, FORK_EXEC_ALWAYS, TRAPPED, calls_of, denied_calls
from triaged.explain.hypothesis import hypothesis
from triaged.explain.seccomp_answer import Answered, SeccompAnswer, asked_of, own_filters, seccomp_answer
from triaged.explain.situation import Situation
from triaged.explain.view import owner_of, pids_of, state_evidence, subject_of
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown
from triaged.model.subject import ProcessSubject
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.model.verdict import Evidence
from triaged.rules.seccomp import allowing
from triaged.seccomp.action import ActionKind
from triaged.seccomp.bpf import parse_program
from triaged.seccomp.outcomes import outcomes_of
from triaged.seccomp.syscalls import audit_arch_of, name_of, names_on, native_arch, number_of

SIGSYS = 31
# Errors with which filters refuse in practice; another one is thought of only if the filters are known to give it.
_USUAL = ("EPERM", "ENOSYS", "EACCES")
_RECORD = re.compile(r'type=1326\b.*?\bpid=(\d+)\b.*? exe="([^"]*)" sig=(\d+) arch=([0-9a-f]+) syscall=(\d+)\b')
_MOST_NAMED = 3


@hypothesis("seccomp.")
def seccomp_refused(situation: Situation) -> list[Outcome] | None:
    """A seccomp filter answers the call with an error, before the kernel looks at it.

    It leaves no record (unless the filter was loaded with SECCOMP_FILTER_FLAG_LOG), and the error looks as if the kernel had
    given it: EPERM like a missing capability, ENOSYS like an old kernel. Proved by a trace in which the call ends and never
    begins, or by the filters of the process themselves. clone3 answered with EPERM ends programs with
    cgo; with ENOSYS it is harmless.
    """
    symptom, process = situation.symptom, situation.process
    is_ours = symptom.entered is False and bool(symptom.syscall)
    candidates = _candidates(symptom)
    if not candidates or (not symptom.errno and not denied_calls(symptom.text)):
        return None
    if process is None and not is_ours:
        if symptom.errno in _USUAL:
            return [NotDecidable(f"seccomp.{call}", "no process whose filters could be asked") for call in candidates[:_MOST_NAMED]]
        return None
    judged = [(call, seccomp_answer(situation, call)) for call in candidates]
    blamed = [outcome for call, answer in judged if (outcome := _blamed(situation, call, answer, len(judged) > 1)) is not None]
    if blamed:
        return _best(blamed)
    if symptom.errno not in _USUAL:
        return None
    return _cleared(judged)


def _candidates(symptom: Symptom) -> tuple[str, ...]:
    """The calls that may have been refused, likeliest first."""
    if symptom.syscall and symptom.seen_in is not SeenIn.OUTPUT:
        return (symptom.syscall,)
    by_text = denied_calls(symptom.text)
    if by_text:
        return by_text
    if symptom.syscall:
        return (symptom.syscall, *sorted(calls_of(symptom) - {symptom.syscall}))
    calls = calls_of(symptom)
    if calls >= FORK_EXEC:
        return (*FORK_EXEC_ALWAYS, *sorted(FORK_EXEC - set(FORK_EXEC_ALWAYS)))
    return tuple(sorted(calls))


def _blamed(situation: Situation, call: str, answer: SeccompAnswer, is_guess: bool) -> Outcome | None:
    symptom, process = situation.symptom, situation.process
    if answer.answered in (Answered.PASSED, Answered.UNKNOWN) or not answer.gives(symptom.errno):
        return None
    cause = f"seccomp.{call}"
    own = _own_filter(situation, call)
    if own:
        return SelfInflicted(cause, own)
    if answer.answered is Answered.DEPENDS:
        # Which arguments it were is not known; nothing that always happens in a fork/exec is refused for its arguments alone.
        status = Status.POSSIBLE if is_guess and call not in FORK_EXEC_ALWAYS else Status.LIKELY
    elif is_guess:
        status = Status.LIKELY if call in FORK_EXEC_ALWAYS or not calls_of(symptom) >= FORK_EXEC else Status.POSSIBLE
    else:
        status = Status.PROVED
    error = f" = {symptom.errno}" if symptom.errno else ""
    times = f", {symptom.count} times" if symptom.count > 1 else ""
    summary = f"{call}(){error}{times}: {answer.why}"
    return Blamed(cause, status, owner_of(process), summary, _evidence(situation, answer), _fixes(process, call), weight=10)


def _own_filter(situation: Situation, call: str) -> str:
    """By what it is shown that the program under test installed the filter itself, or ""."""
    deeds, before = own_filters(situation), situation.at_start
    if not deeds or before is None:
        return ""
    earlier = asked_of(before, situation.symptom, call)
    if earlier.answered is not Answered.PASSED:
        return ""
    return f"{shown(deeds[0].comm)} (pid {deeds[0].pid}) installed a filter itself, and the filters at the start let the call pass"


def _best(outcomes: list[Outcome]) -> list[Outcome]:
    """At most a few calls, and no mere possibilities next to a likely one."""
    causes = [each for each in outcomes if isinstance(each, Blamed)]
    rest = [each for each in outcomes if not isinstance(each, Blamed)]
    if causes:
        best = min(each.status.order for each in causes)
        causes = [each for each in causes if each.status.order == best][:_MOST_NAMED]
    return [*causes, *rest[:_MOST_NAMED]]


def _cleared(judged: list[tuple[str, SeccompAnswer]]) -> list[Outcome]:
    out: list[Outcome] = []
    for call, answer in judged[:_MOST_NAMED]:
        if answer.answered is Answered.UNKNOWN:
            out.append(NotDecidable(f"seccomp.{call}", answer.why))
        elif answer.answered is Answered.PASSED:
            out.append(RuledOut(f"seccomp.{call}", answer.why))
        else:
            given = " or ".join(map(str, answer.actions))
            out.append(RuledOut(f"seccomp.{call}", f"its seccomp filters would answer {given}, which is another error"))
    return out


def _evidence(situation: Situation, answer: SeccompAnswer) -> tuple[Evidence, ...]:
    symptom, process = situation.symptom, situation.process
    out: list[Evidence] = []
    if answer.is_traced:
        out.append(Evidence("entered", False, "raw_syscalls:sys_exit without sys_enter", symptom.first_ns // 1000))
    if answer.actions:
        out.append(Evidence("filter answers", " or ".join(map(str, answer.actions)), "PTRACE_SECCOMP_GET_FILTER"))
    if process is not None and isinstance(process.seccomp_mode, str):
        out.append(state_evidence(situation, "Seccomp", process.seccomp_mode, "status"))
    return tuple(out)


def _fixes(process: ProcessState | None, call: str) -> tuple[Fix, ...]:
    steps: list[Fix] = []
    if call == "clone3":
        title = (
            "let the filter answer clone3 with ENOSYS: the C library then takes clone. Docker does so from 20.10.10 on; without "
            "cgo (CGO_ENABLED=0) Go does not call clone3"
        )
        steps.append(ManualStep("clone3-enosys", title))
    if process is not None:
        steps += allowing(process.identity, call)
    else:
        title = f"allow {call} in the filter, where it is loaded: by the program itself or by what started it"
        steps.append(ManualStep("filter", title))
    return tuple(steps)


@hypothesis("seccomp.", kinds=(SymptomKind.KILLED, SymptomKind.CALL, SymptomKind.TIMED_OUT), signals=(SIGSYS,))
def seccomp_killed(situation: Situation) -> list[Outcome] | None:
    """A seccomp filter ended the process, or one of its threads, for a system call (SIGSYS).

    KILL_PROCESS prints as "bad system call"; after KILL_THREAD a Go program often hangs, since only the thread is gone. After TRAP
    Go's runtime prints "SIGSYS: bad system call" and the registers, the call's number first. Both KILLs leave an audit record.
    """
    symptom, process = situation.symptom, situation.process
    if symptom.kind is SymptomKind.CALL and "SIGSYS" not in symptom.text and "bad system call" not in symptom.text.lower():
        return None
    if symptom.sender_pid and symptom.sender_pid not in pids_of(situation):
        return [SelfInflicted("SIGSYS", f"process {symptom.sender_pid} sent it")]
    recorded = _recorded_call(situation)
    if symptom.kind is SymptomKind.TIMED_OUT and (not recorded or process is None):
        return None  # a thread that was killed leaves the others waiting; nothing but the record tells
    if recorded and process is None and situation.was_asked:
        why = f"which process was killed is not known; the kernel log's last record of one is about {recorded}()"
        return [NotDecidable("seccomp.", why)]
    calls: tuple[str, ...]
    if recorded:
        calls = (recorded,)
    elif symptom.syscall:
        calls = (symptom.syscall,)
    else:
        match = TRAPPED.search(symptom.text)
        number = int(match.group(1), 16) if match else -1
        calls = (_native_name(number),) if number >= 0 else _killing_calls(process)
    if not calls:
        return [NotDecidable("seccomp.", "SIGSYS ended the process, and nothing tells for which call")]
    out: list[Outcome] = []
    for call in calls:
        own = _own_filter(situation, call)
        if own:
            out.append(SelfInflicted(f"seccomp.{call}", own))
            continue
        status = Status.LIKELY if len(calls) > 1 else Status.PROVED
        evidence = [Evidence("signal", SIGSYS)]
        if recorded:
            evidence.append(Evidence("audit record 1326", recorded, "audit"))
        rule = key = ""
        if recorded and process is not None:
            rule, key = "seccomp.denied", ProcessSubject(process.identity, by_program=True, scope=call).key
        out.append(Blamed(
            f"seccomp.{call}", status, owner_of(process), f"a seccomp filter ended {subject_of(process)} for {call}() (SIGSYS)",
            tuple(evidence), _fixes(process, call), rule, key, weight=10,
        ))  # fmt: skip
    return out


def _recorded_call(situation: Situation) -> str:
    """The call of the audit record about this process, or ""."""
    pids, process = pids_of(situation), situation.process
    programs = {process.identity.exe, *process.identity.argv} if process is not None else set()
    for line in reversed(situation.log()):
        match = _RECORD.search(line)
        # Where a thread was killed, "pid" is the thread's.
        if match and int(match[3]) == SIGSYS and (not pids or int(match[1]) in pids or match[2] in programs):
            return name_of(int(match[4], 16), int(match[5]))
    return ""


def _native_name(number: int) -> str:
    try:
        return name_of(audit_arch_of(native_arch()), number)
    except InterfaceMissing:
        return str(number)


def _killing_calls(process: ProcessState | None) -> tuple[str, ...]:
    """Which calls the filters end a process for, where that are so few that each may be named; the default's many are not."""
    if process is None or isinstance(process.filters, Unknown) or not process.filters:
        return ()
    try:
        arch = native_arch()
        programs = [parse_program(each) for each in process.filters]
    except TriagedError:
        return ()
    fatal = (ActionKind.KILL_PROCESS, ActionKind.KILL_THREAD, ActionKind.TRAP)
    found = []
    for name in names_on(arch):
        actions = outcomes_of(programs, number_of(arch, name) or 0, audit_arch_of(arch)).actions
        if any(action.kind in fatal for action in actions):
            found.append(name)
            if len(found) > _MOST_NAMED:
                return ()
    return tuple(found)


SECCOMP = (seccomp_refused, seccomp_killed)
