# SPDX-License-Identifier: Apache-2.0
"""Findings, sources and rules as D-Bus values, in the view that a reader may have. The only place with untyped values."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from triaged.bus.seam import Variant, clean, marshal
from triaged.model.cause import Blamed
from triaged.model.finding import Finding
from triaged.model.fix import Fix
from triaged.model.verdict import Evidence

if TYPE_CHECKING:  # triaged-helper needs neither, and they would be half of its start
    from triaged.rules.rule import Rule
    from triaged.sources.source import SourceStatus

TEXT_CHARACTERS = 8000
EVIDENCE_ITEMS = 64
FIX_ITEMS = 16

FINDINGS_PATH = "/org/triaged/Triage1/finding"

# Of a subject that is a user's private matter everybody may know that it is there, and whose.
_PUBLIC_SUBJECT_KEYS = ("type", "uid", "slice", "workload", "role")
PRIVATE = "(private: shown to its owner and to administrators)"


class View(Enum):
    """What of a finding a reader sees.

    full: everything (the owner, root).
    plain: all but private evidence (everybody, of what is nobody's private matter; members of the administrators' groups).
    broadcast: as plain, but of somebody's private matter only that it is there.
    """

    FULL = "full"
    PLAIN = "plain"
    BROADCAST = "broadcast"


def finding_path(identifier: str) -> str:
    """The object path of a finding: every byte that is not a letter or a digit is written _xx."""
    return f"{FINDINGS_PATH}/{finding_node(identifier)}"


def finding_node(identifier: str) -> str:
    """The last element of a finding's path."""
    return re.sub(r"[^A-Za-z0-9]", lambda match: "".join(f"_{byte:02x}" for byte in match.group().encode("utf-8")), identifier)


def finding_of_path(path: str) -> str:
    """The id of the finding that a path names, or '' if it is no finding's path."""
    node = path.removeprefix(FINDINGS_PATH + "/")
    if node == path or not re.fullmatch(r"(?:[A-Za-z0-9]|_[0-9a-f]{2})+", node):
        return ""
    encoded = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes((int(match.group(1), 16),)), node.encode("ascii"))
    identifier = encoded.decode("utf-8", "replace")
    return identifier if finding_path(identifier) == path else ""


def finding_properties(finding: Finding, explanation: str, view: View) -> dict[str, Any]:
    """The properties of org.triaged.Triage1.Finding as plain values (a{sv} inside are already variants)."""
    hidden = view is View.BROADCAST and finding.owner_uid is not None
    evidence = [] if hidden else [item for item in finding.evidence if view is View.FULL or not item.private][:EVIDENCE_ITEMS]
    subject = {key: value for key, value in finding.subject.items() if not hidden or key in _PUBLIC_SUBJECT_KEYS}
    return {
        "Id": text(finding.identifier),
        "Rule": text(finding.rule),
        "Kind": finding.kind.value,
        "Severity": int(finding.severity),
        "State": finding.state.value,
        "Reason": "" if hidden else text(finding.reason),
        "Subject": {text(key): variant(value) for key, value in subject.items()},
        "Summary": PRIVATE if hidden else text(finding.summary),
        "Explanation": text(explanation),
        "Evidence": {text(item.name): variant(item.value) for item in evidence},
        "EvidenceSources": {text(item.name): _origin(item) for item in evidence},
        "Fixes": [] if hidden else [fix_row(fix) for fix in finding.fixes[:FIX_ITEMS]],
        "References": [text(reference) for reference in finding.references],
        "FirstSeen": _unsigned(finding.first_seen_usec),
        "LastSeen": _unsigned(finding.last_seen_usec),
        "Count": _unsigned(finding.count),
    }


def fix_row(fix: Fix) -> dict[str, Any]:
    """A fix as a{sv}: Key, Type, Title, Risk, Commands, and the fields of its type in CamelCase."""
    row = {
        "".join(part.capitalize() for part in item.name.split("_")): variant(getattr(fix, item.name))
        for item in fields(fix) if item.name not in ("commands", "name") and isinstance(getattr(fix, item.name), (str, int, bool))
    }
    if hasattr(fix, "name"):
        row["Name"] = variant(fix.name)
    row.update(
        Key=Variant("s", text(fix.key)), Type=Variant("s", fix.type), Title=Variant("s", text(fix.title)),
        Commands=Variant("aas", [[text(word) for word in argv] for argv in fix.commands]),
    )
    return row


def cause_row(cause: Blamed) -> dict[str, Any]:
    """A cause as a{sv}: Cause, Status, Subject, Summary, Evidence, EvidenceSources, Fixes, Rule, SubjectKey."""
    evidence = cause.evidence[:EVIDENCE_ITEMS]
    texts = {
        "Cause": cause.cause, "Status": cause.status.value, "Subject": cause.subject, "Summary": cause.summary, "Rule": cause.rule,
        "SubjectKey": cause.subject_key,
    }
    return {
        **{name: Variant("s", text(value)) for name, value in texts.items()},
        "Evidence": Variant("a{sv}", {text(item.name): variant(item.value) for item in evidence}),
        "EvidenceSources": Variant("a{s(st)}", {text(item.name): _origin(item) for item in evidence}),
        "Fixes": Variant("aa{sv}", [fix_row(fix) for fix in cause.fixes[:FIX_ITEMS]]),
    }


def source_row(status: SourceStatus) -> dict[str, Any]:
    """A source as a{sv}: Name, State, Reason, Remedy, Counters."""
    return {
        "Name": Variant("s", text(status.name)),
        "State": Variant("s", status.state.value),
        "Reason": Variant("s", text(status.reason)),
        "Remedy": Variant("s", text(status.remedy)),
        "Counters": Variant("a{st}", counts(status.counters)),
    }


def rule_row(rule: Rule) -> dict[str, Any]:
    """A rule as a{sv}: Id, Title, Kind, Severity, Explanation, References."""
    return {
        "Id": Variant("s", text(rule.identifier)),
        "Title": Variant("s", text(rule.title)),
        "Kind": Variant("s", rule.kind.value),
        "Severity": Variant("y", int(rule.severity)),
        "Explanation": Variant("s", text(rule.explanation)),
        "References": Variant("as", [text(reference) for reference in rule.references]),
    }


def counts(numbers: Mapping[str, int]) -> dict[str, int]:
    """Counters as a{st}."""
    return {text(name): _unsigned(value) for name, value in numbers.items()}


def entries(properties: Mapping[str, Any], signatures: Mapping[str, str]) -> bytes:
    """The properties as the marshalled entries of an a{sv}: what follows its length and padding."""
    return marshal("a{sv}", [{name: Variant(signatures[name], value) for name, value in properties.items()}])[8:]


def text(value: str) -> str:
    """The text as D-Bus can carry it, at most 8000 characters."""
    value = clean(value)
    return value if len(value) <= TEXT_CHARACTERS else value[:TEXT_CHARACTERS] + "…"


def variant(value: str | int | float | bool) -> Any:
    """A value as a variant of b, t (x if negative), d or s."""
    if isinstance(value, bool):
        return Variant("b", value)
    if isinstance(value, int):
        if 0 <= value < 1 << 64:
            return Variant("t", int(value))
        return Variant("x", value) if -(1 << 63) <= value < 0 else Variant("s", str(value))
    if isinstance(value, float):
        return Variant("d", value)
    return Variant("s", text(str(value)))


def _origin(item: Evidence) -> list[Any]:
    return [text(item.source), _unsigned(item.time_usec)]


def _unsigned(value: int) -> int:
    return min(max(int(value), 0), (1 << 64) - 1)
