# SPDX-License-Identifier: Apache-2.0
"""A policy held against what a workload needs: per call, what the filter answers and what that does to the workload."""
from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from triaged.seccomp.action import Action, ActionKind, errno_name
from triaged.seccomp.needs import Feature, Needs, Part
from triaged.seccomp.policy import ArchPolicy
from triaged.seccomp.syscalls import number_of

_NOT_TOGETHER = "done without when denied alone, but not together with all others of its kind"
Answer = tuple[Action, str]  # and the condition under which it is given, "" for always


class Outcome(str, Enum):
    """What the answer to a call does to the workload.

    breaks: it is denied, and the workload fails or loses what it was for. depends: it is denied only for some arguments, or by a
    supervisor, and it is not known which of them the workload uses. harmless: denied, and the workload does without.
    """

    BREAKS = "breaks"
    DEPENDS = "depends"
    HARMLESS = "harmless"
    ALLOWED = "allowed"


@dataclass(frozen=True)
class CallVerdict:
    """One call of the workload. `answers` are all that the filter can give, strictest first.

    `is_required`: the workload does not work without it (False: it is only probed). `programs` make it, `shows` is what the
    program prints, `gates` what would let it through.
    """

    call: str
    outcome: Outcome
    answers: tuple[Answer, ...]
    is_required: bool
    programs: tuple[str, ...]
    shows: str = ""
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """All calls of one workload, the worst first."""

    workload: str
    verdicts: tuple[CallVerdict, ...]

    def of(self, outcome: Outcome) -> tuple[CallVerdict, ...]:
        """The calls with that outcome."""
        return tuple(verdict for verdict in self.verdicts if verdict.outcome is outcome)

    @property
    def works(self) -> bool:
        """Whether nothing is known that breaks the workload."""
        return not self.of(Outcome.BREAKS)


def check_workload(
    answers_of: Callable[[str], Sequence[Answer] | None], needs: Needs, workload: str,
    gates_of: Callable[[str], tuple[str, ...]] = lambda call: (), decide: Callable[[str, tuple[int, ...]], Action] | None = None,
) -> CheckResult:
    """Judges each call of a workload.

    `answers_of` gives what the filter can answer to a call (None: this architecture does not have it), `decide` its answer for
    certain arguments, `gates_of` what a profile makes the call depend on.
    """
    def is_denied(call: str) -> bool:
        return not any(action.is_allowed for action, _ in answers_of(call) or ())

    holding = {call: note for call, note in needs.notes.items() if all(is_denied(other) for other in note.only_with)}
    needs = replace(needs, notes=holding)
    parts = needs.parts_of(workload)
    given: dict[str, tuple[Answer, ...]] = {}
    for call in sorted(needs.calls_of(workload)):
        answers = answers_of(call)
        if answers is not None:
            given[call] = _narrowed(call, answers, needs, decide)
    doubtful = {(part.name, call) for part in parts for call in _doubtful(part, given, needs)}
    verdicts = []
    for call, found in given.items():
        makers = [part for part in parts if call in part.seen]
        verdicts.append(_judged(call, found, makers, needs, gates_of(call), doubtful))
    order = list(Outcome)
    return CheckResult(workload, tuple(sorted(verdicts, key=lambda v: (order.index(v.outcome), v.call))))


def _narrowed(
    call: str, answers: Sequence[Answer], needs: Needs, decide: Callable[[str, tuple[int, ...]], Action] | None
) -> tuple[Answer, ...]:
    """The answers for the arguments that the workload is known to use, where it is known."""
    note = needs.notes.get(call)
    if len(answers) < 2 or decide is None or note is None or not note.arguments:
        return tuple(answers)
    used = {decide(call, (*arguments, *(0,) * (6 - len(arguments)))) for arguments in note.arguments}
    kept = [answer for answer in answers if answer[0] in used]
    return tuple(kept) or tuple(answers)


def _doubtful(part: Part, given: Mapping[str, Sequence[Answer]], needs: Needs) -> frozenset[str]:
    """The calls that the part does without one at a time, of which more than one is denied, and which were not all done without.

    Go 1.19 waits with waitid or with wait4: either may be missing, both may not.
    """
    out: set[str] = set()
    for name in part.not_together:
        denied = {
            call for call in part.seen & given.keys()
            if any(action.kind is ActionKind.ERRNO and errno_name(action.data) == name for action, _ in given[call])
            and needs.is_harmless(part, call, name)
        }
        out |= denied if len(denied) > 1 else set()
    return frozenset(out)


def _judged(
    call: str, answers: Sequence[Answer], makers: Sequence[Part], needs: Needs, gates: tuple[str, ...],
    doubtful: Container[tuple[str, str]],
) -> CallVerdict:
    denials = [action for action, _ in answers if not action.is_allowed]
    effects = [_effect(call, action, part, needs) for action in denials for part in makers]
    if any((part.name, call) in doubtful for part in makers):
        effects = [(Outcome.DEPENDS, _NOT_TOGETHER) if effect[0] is Outcome.HARMLESS else effect for effect in effects]
    required = any(not needs.is_harmless(part, call, "EPERM") for part in makers)
    breaking = (text for outcome, text in effects if outcome is Outcome.BREAKS and text)
    shows = next(breaking, _NOT_TOGETHER if (Outcome.DEPENDS, _NOT_TOGETHER) in effects else "")
    programs = tuple(dict.fromkeys(part.program for part in makers))
    outcome = Outcome.ALLOWED
    if denials:
        worst = [outcome for outcome, _ in effects]
        outcome = next(candidate for candidate in Outcome if candidate in worst)
        if outcome is Outcome.BREAKS and len(denials) < len(answers):
            outcome = Outcome.DEPENDS
    return CallVerdict(call, outcome, tuple(answers), required, programs, shows, gates if denials else ())


def _effect(call: str, action: Action, part: Part, needs: Needs) -> tuple[Outcome, str]:
    if action.is_fatal:
        if action.kind is ActionKind.KILL_THREAD:
            return Outcome.BREAKS, "one thread is killed and the program hangs"
        return Outcome.BREAKS, "SIGSYS: bad system call"
    if action.kind is not ActionKind.ERRNO:
        return Outcome.DEPENDS, action.effect
    name = errno_name(action.data)
    if not part.was_denied:
        return Outcome.DEPENDS, ""
    if needs.is_harmless(part, call, name):
        return Outcome.HARMLESS, ""
    note = needs.notes.get(call)
    if note is not None and note.effect:
        return Outcome.BREAKS, note.effect
    shown = part.shows.get((call, name))
    if shown is not None:
        return Outcome.BREAKS, shown
    other = part.shows.get((call, "EPERM")) or part.shows.get((call, "ENOSYS"), "")
    return Outcome.BREAKS, f"not tried with {name}; with another errno: {other}" if other else ""


def refusal_of(feature: Feature, arch: str, decide: Callable[[str, tuple[int, ...]], Action]) -> Action | None:
    """What refuses a feature's call, if each of the ways in which it may be made is refused; the first one's answer."""
    if number_of(arch, feature.call) is None:
        return None
    answers = [decide(feature.call, (*arguments, *(0,) * (6 - len(arguments)))) for arguments in feature.arguments or ((),)]
    denied = [action for action in answers if not action.is_allowed]
    return denied[0] if len(denied) == len(answers) else None


def policy_answers(policy: ArchPolicy | None, foreign: Action, arch: str, call: str) -> tuple[Answer, ...] | None:
    """What a resolved profile can answer to a call, in the order of its rules; None if the architecture has no such call."""
    number = number_of(arch, call)
    if number is None:
        return None
    if policy is None:
        return ((foreign, ""),)
    found: list[Answer] = []
    for branch in policy.branches.get(number, ()):
        conditions = policy.conditions(branch)
        found.append((branch.action, " and ".join(str(condition) for condition in conditions)))
        if not conditions:
            break
    else:
        found.append((policy.fallback(number), "otherwise" if found else ""))
    return tuple(found)
