# SPDX-License-Identifier: Apache-2.0
"""A finding: one cause at one subject, counted, kept until it is resolved, fixed, dismissed or expired."""
from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from triaged.model.fix import Fix, fix_as_dict
from triaged.model.verdict import Evidence, Kind, Severity


class State(str, Enum):
    """open: as far as triaged knows it still holds; the others are ends of a finding, each with its reason."""

    OPEN = "open"
    FIXED = "fixed"
    RESOLVED = "resolved"
    DISMISSED = "dismissed"
    EXPIRED = "expired"


def finding_id(rule: str, subject_key: str, digits: int = 8) -> str:
    """The stable name of a finding: the rule and a hash of its subject (`digits` hexadecimal digits of it)."""
    digest = hashlib.sha256(subject_key.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{rule}-{digest[:digits]}"


@dataclass(frozen=True)
class Finding:
    """One finding as it stands. Times in µs since the epoch; `count` is how often it happened.

    `subject` is the subject's `as_dict()`: a finding outlives the objects that it was made from.
    `owner_uid` is the user whose private matter the subject is, or None. `pid` is a process that it happened to (0: not known).
    `expires_after_s` ends an open finding that was not seen again for so long (0: never).
    """

    identifier: str
    rule: str
    kind: Kind
    severity: Severity
    state: State
    subject_key: str
    subject: Mapping[str, str | int]
    summary: str
    first_seen_usec: int
    last_seen_usec: int
    count: int = 1
    owner_uid: int | None = None
    evidence: tuple[Evidence, ...] = ()
    fixes: tuple[Fix, ...] = ()
    references: tuple[str, ...] = ()
    reason: str = ""
    pid: int = 0
    expires_after_s: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        return self.state is State.OPEN

    @property
    def expires_at_usec(self) -> int | None:
        """When an open finding ends if it is not seen again, µs since the epoch; None: it does not expire."""
        return self.last_seen_usec + self.expires_after_s * 1_000_000 if self.is_open and self.expires_after_s else None

    def as_json(self) -> dict[str, Any]:
        """The finding as `--json` prints it."""
        return {
            "id": self.identifier,
            "rule": self.rule,
            "kind": self.kind.value,
            "severity": self.severity.word,
            "state": self.state.value,
            "subject": dict(self.subject),
            "summary": self.summary,
            "evidence": {
                item.name: {"value": item.value, "source": item.source, "time_usec": item.time_usec} for item in self.evidence
            },
            "fixes": [fix_as_dict(fix) for fix in self.fixes],
            "count": self.count,
            "first_seen_usec": self.first_seen_usec,
            "last_seen_usec": self.last_seen_usec,
            "references": list(self.references),
            "reason": self.reason,
        }
