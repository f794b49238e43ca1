# SPDX-License-Identifier: Apache-2.0
"""A hypothesis: one possible cause of a symptom, and the function that holds it against the state of the machine."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from triaged.explain.replay import replayed
from triaged.explain.situation import Situation
from triaged.model.cause import Blamed, Explanation, NotDecidable, Outcome, RuledOut, SelfInflicted
from triaged.model.symptom import Symptom, SymptomKind

Judge = Callable[[Situation], "Iterable[Outcome] | Outcome | None"]


@dataclass(frozen=True)
class Hypothesis:
    """A cause and when to think of it: the error and the call must both fit (an empty set fits every one).

    `cause` is its id, or the part that all its ids begin with ("seccomp."). `judge` gives its outcome, several outcomes, or None
    where on a closer look (at arguments, at the path) it does not apply. `explanation` is the judge's docstring: what `explain`
    without a process shows.
    """

    cause: str
    judge: Judge
    explanation: str
    kinds: frozenset[SymptomKind] = frozenset({SymptomKind.CALL})
    syscalls: frozenset[str] = frozenset()
    errnos: frozenset[str] = frozenset()
    signals: frozenset[int] = field(default_factory=frozenset)

    def concerns(self, symptom: Symptom) -> bool:
        """Whether the symptom may be this cause's. A symptom without a call (a text) fits every call.

        A call that ended without having begun came to no limit: that is seccomp's alone.
        """
        if symptom.kind not in self.kinds:
            return False
        if symptom.entered is False and not self.cause.startswith("seccomp"):
            return False
        if symptom.kind is SymptomKind.KILLED:
            return not self.signals or symptom.signal in self.signals
        if symptom.kind is not SymptomKind.CALL:
            return True
        if self.syscalls and symptom.syscall and symptom.syscall not in self.syscalls:
            return False
        return not self.errnos or symptom.errno in self.errnos


def hypothesis(
    cause: str,
    *,
    syscalls: Iterable[str] = (),
    errnos: Iterable[str] = (),
    kinds: Iterable[SymptomKind] = (SymptomKind.CALL,),
    signals: Iterable[int] = (),
) -> Callable[[Judge], Hypothesis]:
    """Makes a Hypothesis of the function below it. Its docstring is what a person is told of the cause."""

    def make(judge: Judge) -> Hypothesis:
        text = inspect.getdoc(judge)
        if not text:
            raise TypeError(f"hypothesis {cause} has no docstring")
        return Hypothesis(
            cause, judge, text, frozenset(kinds), frozenset(syscalls), frozenset(errnos), frozenset(signals)
        )

    return make


def explain(situation: Situation, hypotheses: Iterable[Hypothesis]) -> Explanation:
    """Every outcome of the hypotheses that concern the symptom, the causes ranked."""
    situation = replayed(situation)
    outcomes: list[Outcome] = []
    for each in hypotheses:
        if not each.concerns(situation.symptom):
            continue
        found = each.judge(situation)
        if found is None:
            continue
        outcomes += [found] if isinstance(found, (Blamed, RuledOut, NotDecidable, SelfInflicted)) else found
    causes = sorted(
        (each for each in outcomes if isinstance(each, Blamed)), key=lambda cause: (cause.status.order, -cause.weight)
    )
    return Explanation(
        tuple(causes),
        tuple(each for each in outcomes if isinstance(each, RuledOut)),
        tuple(each for each in outcomes if isinstance(each, NotDecidable)),
        tuple(each for each in outcomes if isinstance(each, SelfInflicted)),
    )
