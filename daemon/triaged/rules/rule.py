# SPDX-License-Identifier: Apache-2.0
"""What a rule is: a pure function from one fact to one verdict, with its knowledge beside it."""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triaged.model.verdict import Kind, Severity, Verdict


@dataclass(frozen=True)
class Rule:
    """A rule. `identifier` is stable and never reused; `explanation` is its entry in the manual (the function's docstring).

    `expires_after_s` ends a finding that was not seen again for so long (one-off events); 0: it stays until it is resolved.
    """

    identifier: str
    on: type[Any]
    kind: Kind
    severity: Severity
    title: str
    explanation: str
    judge: Callable[[Any], Verdict]
    references: tuple[str, ...] = ()
    expires_after_s: int = 0


def rule(
    identifier: str,
    *,
    on: type[Any],
    severity: Severity,
    kind: Kind = Kind.HIT,
    references: tuple[str, ...] = (),
    expires_after_s: int = 0,
) -> Callable[[Callable[[Any], Verdict]], Rule]:
    """Makes a Rule of the function below it. The docstring's first line is its title."""

    def make(judge: Callable[[Any], Verdict]) -> Rule:
        text = inspect.getdoc(judge)
        if not text:
            raise TypeError(f"rule {identifier} has no docstring; it is its entry in the manual")
        return Rule(identifier, on, kind, severity, text.splitlines()[0], text, judge, references, expires_after_s)

    return make
