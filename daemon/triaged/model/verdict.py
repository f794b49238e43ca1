# SPDX-License-Identifier: Apache-2.0
"""What a rule says of a fact: Problem, Fine, or Undecided."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Union

from triaged.model.fix import Fix
from triaged.model.subject import Subject

EvidenceValue = Union[str, int, float, bool]


class Severity(IntEnum):
    """A syslog priority (RFC 5424, section 6.2.1); lower is worse."""

    CRITICAL = 2
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6

    @property
    def word(self) -> str:
        return self.name.lower()


class Kind(str, Enum):
    """hit: the kernel says that a limit was hit; headroom: in use beyond 80 % of it; risk: below the policy, nothing hit."""

    HIT = "hit"
    HEADROOM = "headroom"
    RISK = "risk"


@dataclass(frozen=True)
class Evidence:
    """One name and value as the kernel wrote them, with where (a file or a record) and when (µs since the epoch).

    `private` evidence (command lines) is shown only to the subject's owner and to root.
    """

    name: str
    value: EvidenceValue
    source: str = ""
    time_usec: int = 0
    private: bool = False


@dataclass(frozen=True)
class Problem:
    """Something is wrong. `occurrences` is how often it happened since the last verdict (>= 1).

    `severity` overrides the rule's own. `pid` is a process that it happened to, where the subject is none (0: not known).
    """

    subject: Subject
    summary: str
    evidence: Sequence[Evidence] = ()
    fixes: Sequence[Fix] = ()
    occurrences: int = 1
    severity: Severity | None = None
    pid: int = 0
    time_usec: int = 0


@dataclass(frozen=True)
class Fine:
    """Looked, and it is well: closes the subject's finding, for the reason that is kept."""

    subject: Subject
    reason: str = ""


@dataclass(frozen=True)
class Undecided:
    """Could not tell: closes nothing and opens nothing."""

    subject: Subject
    why: str = ""


Verdict = Union[Problem, Fine, Undecided]
