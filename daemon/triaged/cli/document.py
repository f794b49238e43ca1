# SPDX-License-Identifier: Apache-2.0
"""What triagectl prints and `--json` gives: the same shape, whether it comes from a scan or from the daemon.

Finding.as_json() of `triaged.model.finding` is the authority for a finding; the D-Bus properties of
dbus/org.triaged.Triage1.xml are turned into it here.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

# model.verdict.Severity in words. Importing that takes as long as the rest of `triagectl list`; a test compares the two.
SEVERITY_WORDS = {2: "critical", 3: "error", 4: "warning", 5: "notice", 6: "info"}
WARNING = 4


class EvidenceDocument(TypedDict):
    """A value as the kernel wrote it; the file or record that it is from, or ''; µs since the epoch, or 0."""

    value: str | int | float | bool
    source: str
    time_usec: int


class FixDocument(TypedDict, total=False):
    """A fix; what else its type has stands beside these."""

    type: str
    key: str
    title: str
    risk: str
    commands: list[list[str]]


class FindingDocument(TypedDict):
    """A finding. `severity` is a word; times are µs since the epoch."""

    id: str
    rule: str
    kind: str
    severity: str
    state: str
    subject: dict[str, str | int]
    summary: str
    evidence: dict[str, EvidenceDocument]
    fixes: list[FixDocument]
    count: int
    first_seen_usec: int
    last_seen_usec: int
    references: list[str]
    reason: str


class SourceDocument(TypedDict):
    """A source: its state, why it is not active and what that costs, how to get it, and what it has counted."""

    name: str
    state: str
    reason: str
    remedy: str
    counters: dict[str, int]


class Report(TypedDict):
    """What `scan --json` and `list --json` print."""

    findings: list[FindingDocument]
    sources: list[SourceDocument]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def finding_from_bus(properties: Mapping[str, Any]) -> FindingDocument:
    """The finding whose D-Bus properties these are, variants already opened."""
    sources = properties.get("EvidenceSources", {})
    evidence: dict[str, EvidenceDocument] = {}
    for name, value in properties.get("Evidence", {}).items():
        source, time_usec = sources.get(name, ("", 0))
        evidence[name] = {"value": value, "source": source, "time_usec": time_usec}
    fixes: list[Any] = [{_snake(key): value for key, value in fix.items()} for fix in properties.get("Fixes", ())]
    return {
        "id": properties["Id"],
        "rule": properties["Rule"],
        "kind": properties["Kind"],
        "severity": severity_word(properties["Severity"]),
        "state": properties["State"],
        "subject": dict(properties.get("Subject", {})),
        "summary": properties["Summary"],
        "evidence": evidence,
        "fixes": fixes,
        "count": properties.get("Count", 1),
        "first_seen_usec": properties.get("FirstSeen", 0),
        "last_seen_usec": properties.get("LastSeen", 0),
        "references": list(properties.get("References", ())),
        "reason": properties.get("Reason", ""),
    }


def source_from_bus(properties: Mapping[str, Any]) -> SourceDocument:
    """The source that the Manager's Sources property describes so, variants already opened."""
    return {
        "name": properties["Name"],
        "state": properties["State"],
        "reason": properties.get("Reason", ""),
        "remedy": properties.get("Remedy", ""),
        "counters": dict(properties.get("Counters", {})),
    }


def severity_word(priority: int) -> str:
    """The word for a syslog priority; the number itself for one that a newer daemon may have."""
    return SEVERITY_WORDS.get(priority, str(priority))


def severity_priority(word: str) -> int:
    """The syslog priority of the word; 7 for one that is unknown, so that it sorts last."""
    return next((priority for priority, known in SEVERITY_WORDS.items() if known == word), 7)


def in_reading_order(findings: Sequence[FindingDocument]) -> list[FindingDocument]:
    """The worst first, and of the equally bad ones the latest first."""
    return sorted(findings, key=lambda finding: (severity_priority(finding["severity"]), -finding["last_seen_usec"], finding["id"]))
