# SPDX-License-Identifier: Apache-2.0
"""What the process's seccomp filters answer to a system call: every other cause of a refusal depends on it.

In a trace a call that seccomp answered has an end and no beginning (measured on 6.18, 6.12, 6.1). Where that was not seen the
filters themselves are asked, with the call's arguments or, where these are not known, for every argument (`seccomp.outcomes`).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from triaged.errors import InterfaceMissing, Malformed
from triaged.explain.replay import is_old
from triaged.explain.situation import Situation
from triaged.explain.view import own_deeds
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.symptom import Deed, SeenIn, Symptom
from triaged.seccomp.action import Action, ActionKind, errno_name
from triaged.seccomp.bpf import Program, SeccompData, parse_program, run_stacked
from triaged.seccomp.outcomes import demands_text, outcomes_of
from triaged.seccomp.syscalls import audit_arch_of, native_arch, number_of

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38


class Answered(str, Enum):
    """refused: the filters answer the call themselves; passed: they let it through; depends: on arguments that are not known;
    unknown: there are filters, and they could not be read."""

    REFUSED = "refused"
    PASSED = "passed"
    DEPENDS = "depends"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class SeccompAnswer:
    """`actions` are what the filters answer, strictest first, where they were asked; `why` says it in words."""

    answered: Answered
    why: str
    actions: tuple[Action, ...] = ()
    is_traced: bool = False

    def gives(self, error: str) -> bool:
        """Whether the answer may be what a program saw as this error (any, where "" or where a supervisor answers)."""
        if not self.actions or not error:
            return True
        for action in self.actions:
            if action.kind in (ActionKind.USER_NOTIF, ActionKind.TRACE):
                return True
            if action.kind is ActionKind.ERRNO and errno_name(action.data) == error:
                return True
        return False


def seccomp_answer(situation: Situation, syscall: str) -> SeccompAnswer:
    """What the filters of the process say to the call."""
    # Until the end of the run: who installed a filter, and in which process, is known only then.
    return situation.kept(f"count:seccomp:{syscall}", lambda: _answer(situation, syscall))


def passed_by_seccomp(situation: Situation, calls: Sequence[str]) -> bool | None:
    """Whether no filter had a hand in it: True, False, or None where that cannot be told. Of several calls the worst counts."""
    answers = [seccomp_answer(situation, call) for call in calls] or [_without_call(situation)]
    if any(each.answered is Answered.REFUSED and each.gives(situation.symptom.errno) for each in answers):
        return False
    if all(
        each.answered is Answered.PASSED or (each.answered is not Answered.UNKNOWN and not each.gives(situation.symptom.errno))
        for each in answers
    ):
        return True
    return None


def has_filters(situation: Situation) -> bool | None:
    """Whether the process has filters; None where that is not known."""
    process = situation.process
    if process is None or isinstance(process.seccomp_mode, Unknown):
        return None
    return process.seccomp_mode != "none" or bool(own_filters(situation))


def own_filters(situation: Situation) -> tuple[Deed, ...]:
    """The times that the program under test installed a filter itself."""
    return tuple(each for each in own_deeds(situation, "seccomp", "prctl") if installs_filter(each))


def installs_filter(deed: Deed) -> bool:
    """Whether the deed installed a seccomp filter: seccomp(SET_MODE_STRICT or SET_MODE_FILTER) or prctl(PR_SET_SECCOMP)."""
    first = deed.arguments[0] if deed.arguments else None
    return (deed.syscall == "seccomp" and first in (0, 1, None)) or (deed.syscall == "prctl" and first == PR_SET_SECCOMP)


def asked_of(process: ProcessState, symptom: Symptom, syscall: str) -> SeccompAnswer:
    """What a process's filters answer to the call, by what is known of them alone."""
    mode = process.seccomp_mode
    if mode == "none":
        return SeccompAnswer(Answered.PASSED, "the process has no seccomp filter (Seccomp: 0)")
    if mode == "strict":
        return SeccompAnswer(Answered.UNKNOWN, "the process is in seccomp's strict mode")
    if isinstance(mode, Unknown):
        return SeccompAnswer(Answered.UNKNOWN, f"whether it has seccomp filters is {mode}")
    if isinstance(process.filters, Unknown):
        return SeccompAnswer(Answered.UNKNOWN, f"its seccomp filters could not be read: {process.filters.why}")
    try:
        arch = native_arch()
        programs = [parse_program(each) for each in process.filters]
    except (Malformed, InterfaceMissing) as error:
        return SeccompAnswer(Answered.UNKNOWN, str(error))
    number = number_of(arch, syscall)
    if number is None:
        return SeccompAnswer(Answered.UNKNOWN, f"{arch} has no call {syscall}")
    # Registers of another call, or fewer than six, are no arguments of this one.
    known = symptom.arguments if symptom.syscall == syscall and len(symptom.arguments) == 6 else None
    return _evaluated(programs, number, audit_arch_of(arch), known)


def _evaluated(programs: Sequence[Program], number: int, arch: int, arguments: tuple[int, ...] | None) -> SeccompAnswer:
    if arguments is not None:
        action = run_stacked(programs, SeccompData(number, arch, arguments))
        if action.is_allowed:
            return SeccompAnswer(Answered.PASSED, "its seccomp filters let the call pass with these arguments")
        return SeccompAnswer(Answered.REFUSED, f"its seccomp filters answer {action} to the call with these arguments", (action,))
    found = outcomes_of(programs, number, arch)
    denying = tuple(action for action in found.actions if not action.is_allowed)
    if not denying and found.is_exact:
        return SeccompAnswer(Answered.PASSED, "its seccomp filters let the call pass whatever its arguments are")
    if found.is_exact and len(denying) == len(found.actions):
        given = " or ".join(map(str, denying))
        return SeccompAnswer(
            Answered.REFUSED, f"its seccomp filters answer {given} to the call, whatever its arguments are", denying
        )
    refusing = [each for each in found.outcomes if not each.action.is_allowed and each.demands]
    conditions = [f"{each.action} if {demands_text(each.demands, arch)}" for each in refusing]
    why = "its seccomp filters refuse the call for some arguments" + (f" ({'; '.join(conditions[:3])})" if conditions else "")
    return SeccompAnswer(Answered.DEPENDS, why, denying)


def _answer(situation: Situation, syscall: str) -> SeccompAnswer:
    symptom, process = situation.symptom, situation.process
    is_this_call = symptom.syscall == syscall
    if is_this_call and symptom.entered:
        return SeccompAnswer(Answered.PASSED, "the trace shows that the kernel began the call", is_traced=True)
    by_filters = (
        asked_of(process, symptom, syscall) if process is not None
        else SeccompAnswer(Answered.UNKNOWN, "nothing is known of the process's filters")
    )
    # Of what only the output tells, the process that made the call is not even known.
    is_unsure = process is not None and (is_old(process) or symptom.seen_in is SeenIn.OUTPUT)
    if is_unsure and by_filters.answered is Answered.PASSED and _may_have_more(situation):
        by_filters = SeccompAnswer(
            Answered.UNKNOWN, "the process was gone before its filters could be read, and filters were installed during the run"
        )
    if is_this_call and symptom.entered is False and symptom.errno:
        if by_filters.answered is Answered.PASSED and not (process is not None and is_old(process)):
            # What the filters let pass, they did not refuse: the trace lost the beginning of the call.
            return SeccompAnswer(Answered.PASSED, f"{by_filters.why}, so that the trace has lost the call's beginning")
        why = "the trace shows the end of the call and no beginning: a seccomp filter answered it before the kernel did"
        return SeccompAnswer(Answered.REFUSED, why, by_filters.actions, is_traced=True)
    return by_filters


def _may_have_more(situation: Situation) -> bool:
    return any(installs_filter(each) for each in situation.deeds)


def _without_call(situation: Situation) -> SeccompAnswer:
    """Where it is not known which call failed: without filters none of them was refused."""
    has = has_filters(situation)
    if has is False:
        return SeccompAnswer(Answered.PASSED, "the process has no seccomp filter (Seccomp: 0)")
    return SeccompAnswer(Answered.UNKNOWN, "which call failed is not known")
