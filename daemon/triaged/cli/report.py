# SPDX-License-Identifier: Apache-2.0
"""Findings and sources as a person reads them. Pure: documents in, lines out."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from triaged.cli.document import (
    WARNING,
    EvidenceDocument,
    FindingDocument,
    FixDocument,
    Report,
    SourceDocument,
    in_reading_order,
    severity_priority,
)
from triaged.cli.style import Style, columns, command_line, fitted, padded, safe, wrapped

KINDS: tuple[tuple[str, str], ...] = (
    ("hit", "a limit was hit; the kernel says so"),
    ("headroom", "nothing hit yet, but more than 80 % of a limit is in use"),
    ("risk", "nothing hit; below what the policy asks for"),
)
_LABEL_WIDTH = 10


def age(usec: int, now_usec: int) -> str:
    """How long ago, in one short word: now, 40s, 5m, 3h, 2d. '-' where the time is not known."""
    if not usec:
        return "-"
    seconds = max(0, now_usec - usec) // 1_000_000
    if seconds < 2:
        return "now"
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{letter}"
    return f"{seconds}s"


def moment(usec: int) -> str:
    """A time of day for people, local time; 'unknown' for 0."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(usec / 1e6)) if usec else "unknown"


def counted(number: int, noun: str) -> str:
    """'1 finding', '2 findings'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def subject_text(subject: Mapping[str, str | int]) -> str:
    """What a finding is about, in one line."""
    kind = subject.get("type", "")
    name = safe(subject.get("name", "?"))
    if kind == "process":
        text = f"process {safe(subject.get('comm') or name)} (pid {safe(subject.get('pid', '?'))})"
        if "workload" in subject:
            text += f", {safe(subject['workload'])} {safe(subject.get('role', ''))}".rstrip()
        if "package" in subject:
            text += f" of {safe(subject['package'])}"
        return text + _place(subject)
    if kind == "cgroup":
        text = safe(subject["unit"]) if "unit" in subject else f"cgroup {name}"
        if "container" in subject:
            runtime = safe(subject.get("container_runtime", ""))
            text = f"{runtime} container {safe(subject['container'])[:12]}".lstrip()
        return text + _place({**subject, "unit": ""})
    return "this host" if name == "host" else f"this host: {name}"


def _place(subject: Mapping[str, str | int]) -> str:
    where = ""
    unit, slice_ = safe(subject.get("unit", "")), safe(subject.get("slice", ""))
    if unit:
        where = f" in {unit}"
    if slice_ and slice_ != unit and slice_ != "-.slice":
        where += f" in {slice_}"
    return where


def short_subject(subject: Mapping[str, str | int]) -> str:
    """The subject in a word or two, for tables."""
    kind = subject.get("type", "")
    if kind == "process":
        return f"{safe(subject.get('comm') or subject.get('name', '?'))}[{safe(subject.get('pid', '?'))}]"
    if kind == "cgroup":
        return safe(subject.get("unit") or subject.get("name", "?"))
    return safe(subject.get("name", "?"))


def _labelled(label: str, text: str, style: Style, indent: str) -> list[str]:
    head = indent + padded(label, _LABEL_WIDTH)
    lines = wrapped(text, style.width, head)
    return [indent + style.faint(padded(label, _LABEL_WIDTH)) + lines[0][len(head):], *lines[1:]] if label else lines


def evidence_lines(evidence: Mapping[str, EvidenceDocument], style: Style, indent: str) -> list[str]:
    """Names and values of evidence, each with the file or record that it is from."""
    out = []
    label = "evidence"
    for name, item in evidence.items():
        head = indent + padded(label, _LABEL_WIDTH)
        inner = " " * (len(head) + 2)
        # A record of several lines keeps them, each further in than the names: what a user chose cannot pass for a name.
        first, *more = str(item["value"]).splitlines() or [""]
        lines = wrapped(f"{safe(name)} = {safe(first)}", style.width, head, inner)
        for text in more:
            lines += wrapped(safe(text), style.width, inner)
        lines[0] = indent + style.faint(padded(label, _LABEL_WIDTH)) + lines[0][len(head):]
        source = safe(item["source"])
        if source and columns(lines[-1]) + 2 + columns(source) <= style.width:
            lines[-1] += "  " + style.faint(source)
        elif source:
            lines.append(inner + style.faint(source))
        out += lines
        label = " "
    return out


def fix_lines(fix: FixDocument, style: Style, indent: str) -> list[str]:
    """A fix: what it does, what to type, and what gets weaker by it. Commands are never wrapped: they are for copying."""
    lines = _labelled("fix", safe(fix.get("title", fix.get("key", ""))), style, indent)
    inner = indent + " " * _LABEL_WIDTH
    lines += [inner + style.strong("# " + command_line(argv)) for argv in fix.get("commands", [])]
    if fix.get("risk"):
        lines += wrapped(safe(fix["risk"]), style.width, inner + "risk: ", inner + "      ")
    return lines


def finding_lines(finding: FindingDocument, style: Style, *, with_id: bool = True) -> list[str]:
    """A finding with its evidence and fixes, a few indented lines."""
    indent = "    "
    severity = safe(finding["severity"])
    head = f"  {padded(severity, 9)}"
    lines = wrapped(safe(finding["summary"]), style.width, head)
    lines[0] = "  " + style.severity(severity, padded(severity, 9)) + style.strong(lines[0][len(head):])
    lines[1:] = [style.strong(line) for line in lines[1:]]
    lines += _labelled("subject", subject_text(finding["subject"]), style, indent)
    lines += evidence_lines(finding["evidence"], style, indent)
    for fix in finding["fixes"]:
        lines += fix_lines(fix, style, indent)
    if not finding["fixes"]:
        lines += _labelled("fix", "none that triaged knows", style, indent)
    if with_id:
        lines += _labelled("id", style.faint(safe(finding["id"])), style, indent)
    return lines


def whole_finding_lines(finding: FindingDocument, explanation: str, style: Style) -> list[str]:
    """A finding with what it means and its history, for `triagectl show`."""
    lines = [style.strong(safe(finding["id"])), *finding_lines(finding, style, with_id=False)]
    first, last = moment(finding["first_seen_usec"]), moment(finding["last_seen_usec"])
    history = f"{counted(finding['count'], 'time')}, first {first}, last {last}"
    state = safe(finding["state"]) + (f": {safe(finding['reason'])}" if finding["reason"] else "")
    about = _labelled("kind", f"{safe(finding['kind'])}: {dict(KINDS).get(finding['kind'], '')}", style, "    ")
    about += _labelled("state", state, style, "    ")
    about += _labelled("seen", history, style, "    ")
    lines += about
    for index, reference in enumerate(finding["references"]):
        lines += _labelled("" if index else "see", safe(reference), style, "    ")
    return [*lines, "", *explanation_lines(explanation, style)] if explanation else lines


def explanation_lines(text: str, style: Style) -> list[str]:
    """A rule's explanation: paragraphs are wrapped, indented blocks are kept as they are."""
    lines = []
    for paragraph in text.split("\n\n"):
        if any(line.startswith(" ") for line in paragraph.splitlines()):
            lines += ["  " + safe(line) for line in paragraph.splitlines()]
        else:
            lines += wrapped(safe(" ".join(paragraph.split())), min(style.width, 100), "  ")
        lines.append("")
    return lines[:-1]


def blind_source_lines(sources: Sequence[SourceDocument], style: Style) -> list[str]:
    """The sources that see less than they could, each with why and what to do."""
    blind = [source for source in sources if source["state"] != "active" or source["reason"]]
    width = max((columns(safe(source["name"])) for source in blind), default=0)
    lines = []
    for source in blind:
        lines.append(f"  {padded(safe(source['name']), width)}  {style.source_state(source['state'], safe(source['state']))}")
        lines += _why_lines(source, style)
    return lines


def _why_lines(source: SourceDocument, style: Style) -> list[str]:
    lines = []
    if source["reason"]:
        lines += _labelled("note" if source["state"] == "active" else "why", safe(source["reason"]), style, "    ")
    if source["remedy"]:
        lines += _labelled("remedy", safe(source["remedy"]), style, "    ")
    return lines


def report_lines(report: Report, style: Style) -> list[str]:
    """The whole report: hits, headroom and risks apart, then the sources that could not look."""
    lines = []
    findings = in_reading_order(report["findings"])
    for kind, meaning in KINDS:
        of_kind = [finding for finding in findings if finding["kind"] == kind]
        if not of_kind:
            continue
        lines.append(style.strong(kind.upper()) + "  " + style.faint(meaning))
        for finding in of_kind:
            lines += [*finding_lines(finding, style), ""]
    blind = blind_source_lines(report["sources"], style)
    if blind:
        lines += [style.strong("SOURCES") + "  " + style.faint("what could not be looked at, or not fully"), *blind, ""]
    lines += wrapped(summary_text(report), style.width)
    return lines


def summary_text(report: Report) -> str:
    """One sentence: how many of each kind, and how much of the machine was looked at."""
    findings, sources = report["findings"], report["sources"]
    kinds = [counted(sum(finding["kind"] == kind for finding in findings), kind) for kind, _ in KINDS
             if any(finding["kind"] == kind for finding in findings)]
    found = ", ".join(kinds).replace("headrooms", "headroom") if kinds else "Nothing found"
    looking = sum(source["state"] in ("active", "degraded") for source in sources)
    text = f"{found}; {looking} of {counted(len(sources), 'source')} could look."
    if findings and not any(severity_priority(finding["severity"]) <= WARNING for finding in findings):
        text += " Nothing of severity warning or worse."
    return text


def list_lines(findings: Sequence[FindingDocument], style: Style, now_usec: int) -> list[str]:
    """A table: one line a finding where that fits or nobody is at a terminal, otherwise two."""
    if not findings:
        return []
    states = any(finding["state"] != "open" for finding in findings)
    names = ("SEVERITY", "KIND", *(("STATE",) if states else ()), "LAST", "COUNT")
    rows = [
        (safe(finding["severity"]), safe(finding["kind"]), *((safe(finding["state"]),) if states else ()),
         age(finding["last_seen_usec"], now_usec), str(finding["count"]))
        for finding in findings
    ]
    widths = [max(len(row[index]) for row in (names, *rows)) for index in range(len(names))]
    identifiers = [safe(finding["id"]) for finding in findings]
    identifier_width = max(2, *(columns(identifier) for identifier in identifiers))
    left = style.width - sum(widths) - 2 * len(widths)
    one_line = not style.is_terminal or left - identifier_width - 2 >= 40
    head = "  ".join(padded(name, width) for name, width in zip(names, widths, strict=True))
    lines = [style.strong(f"{head}  {padded('ID', identifier_width)}  SUMMARY" if one_line else f"{head}  SUMMARY")]
    for finding, row, identifier in zip(findings, rows, identifiers, strict=True):
        cells = [padded(cell, width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = style.severity(finding["severity"], cells[0])
        start = "  ".join(cells)
        text = f"{short_subject(finding['subject'])}: {safe(finding['summary'])}"
        if one_line:
            room = left - identifier_width - 2
            lines.append(f"{start}  {padded(identifier, identifier_width)}  {fitted(text, room) if style.is_terminal else text}")
        else:
            lines += [f"{start}  {fitted(text, left)}", " " * (style.width - left) + style.faint(identifier)]
    return lines


def source_table_lines(sources: Sequence[SourceDocument], style: Style) -> list[str]:
    """Every source: state, why, remedy and counters."""
    lines = []
    width = max((columns(safe(source["name"])) for source in sources), default=0)
    for source in sources:
        line = f"  {padded(safe(source['name']), width)}  {style.source_state(source['state'], padded(safe(source['state']), 11))}"
        counters = ", ".join(f"{safe(name).replace('_', ' ')} {value}" for name, value in sorted(source["counters"].items()))
        if counters and columns(line) + 2 + columns(counters) <= style.width:
            line += "  " + style.faint(counters)
            counters = ""
        lines.append(line.rstrip())
        if counters:
            lines += [style.faint(text) for text in wrapped(counters, style.width, "    ")]
        lines += _why_lines(source, style)
    return lines
