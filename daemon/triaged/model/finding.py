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
    `owner_uid` is the user whose private matter the subject is, or None.
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
    extra: Mapping[str, str] = field(default_factory=dict)

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
