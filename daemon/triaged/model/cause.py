# SPDX-License-Identifier: Apache-2.0
"""What is to blame for a symptom, what is not, and what cannot be told."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Union

from triaged.model.fix import Fix, fix_as_dict
from triaged.model.verdict import Evidence


class Status(str, Enum):
    """proved: the kernel's own state or records leave no other cause; likely: everything speaks for it, and something that would
    prove it could not be seen; possible: it gives this error, and neither speaks for nor against it."""

    PROVED = "proved"
    LIKELY = "likely"
    POSSIBLE = "possible"

    @property
    def order(self) -> int:
        return list(Status).index(self)


@dataclass(frozen=True)
class Blamed:
    """A limit or setting of the machine that made it happen.

    `cause` is the domain and the kernel's own name ("cgroup.pids.max", "sysctl.vm.max_map_count", "seccomp.clone3"). `subject` says
    whose it is ("run-tests.scope", "/ci-job", "process 12", "host"). `rule` is the id of the rule whose finding tells of the same,
    with the key of its subject, where there is one: the daemon then has the finding. `weight` breaks ties: the more specific
    explanation has the greater one.
    """

    cause: str
    status: Status
    subject: str
    summary: str
    evidence: tuple[Evidence, ...] = ()
    fixes: tuple[Fix, ...] = ()
    rule: str = ""
    subject_key: str = ""
    weight: int = 0

    def as_json(self) -> dict[str, Any]:
        """The cause as reports print it."""
        return {
            "cause": self.cause, "status": self.status.value, "subject": self.subject, "summary": self.summary,
            "evidence": evidence_as_json(self.evidence), "fixes": [fix_as_dict(fix) for fix in self.fixes],
        }


@dataclass(frozen=True)
class RuledOut:
    """A cause that gives the same symptom and was not it: `because` says by what that is proved ("63,512 free")."""

    cause: str
    because: str


@dataclass(frozen=True)
class NotDecidable:
    """A cause that gives the same symptom, of which nothing could be told: `why` says what could not be seen."""

    cause: str
    why: str


@dataclass(frozen=True)
class SelfInflicted:
    """The program itself is to blame, not the machine: `because` says by what that is proved."""

    what: str
    because: str


Outcome = Union[Blamed, RuledOut, NotDecidable, SelfInflicted]


@dataclass(frozen=True)
class Explanation:
    """Every outcome for one symptom: `causes` in their rank, the first the most to blame."""

    causes: tuple[Blamed, ...] = ()
    ruled_out: tuple[RuledOut, ...] = ()
    not_decidable: tuple[NotDecidable, ...] = ()
    self_inflicted: tuple[SelfInflicted, ...] = ()


def evidence_as_json(evidence: tuple[Evidence, ...]) -> Mapping[str, Any]:
    """Evidence by name, as findings print it."""
    return {item.name: {"value": item.value, "source": item.source, "time_usec": item.time_usec} for item in evidence}
