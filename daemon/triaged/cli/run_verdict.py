# SPDX-License-Identifier: Apache-2.0
"""The verdict of `triagectl run` as a person reads it, after the command's own output."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from triaged.cli.style import Style, command_line, padded, safe, wrapped
from triaged.model.fix import Fix, ManualStep
from triaged.model.mention import Failure
from triaged.verdict.report import Charge, FailureVerdict, Report, Verdict
from triaged.verdict.wording import cause_text, failed_names, headline, limit_name

_LABEL = 10
_SHOWN = 12
_REASONS = 4


def verdict_lines(report: Report, style: Style, is_known: Callable[[str], bool] = lambda finding: False) -> list[str]:
    """What to print; nothing for a run that passed. `is_known` says whether the daemon has a finding of that id."""
    lines: list[str] = []
    if report.verdict is Verdict.PASSED:
        return lines
    groups = _grouped(report.failures)
    for judged, failures in groups[:_SHOWN]:
        if lines:
            lines.append("")
        lines += _failure_lines(judged, failures, style, is_known)
    if len(groups) > _SHOWN:
        lines.append(f"... and {len(groups) - _SHOWN} more; --report FILE has all of them")
    if report.verdict is not Verdict.CODE or not report.failures:
        for text in report.blind:
            lines += _labelled("not seen", text, style)
    return lines


def known_findings(report: Report, bus: str) -> Callable[[str], bool]:
    """Whether the daemon has a finding of an id: then `triagectl fix ID` will do. Asks only where a cause may have one."""
    wanted = {charge.finding for charge in report.charges if charge.finding}
    known: set[str] = set()
    if wanted:
        from triaged.bus.client import BlockingClient
        from triaged.errors import BusError

        with contextlib.suppress(BusError, OSError), BlockingClient(bus) as client:
            known = wanted & {str(finding["Id"]) for finding in client.list_findings()}
    return known.__contains__


def _grouped(failures: Sequence[FailureVerdict]) -> list[tuple[FailureVerdict, list[Failure]]]:
    """Failed things that have the same causes are told once; the machine's first."""
    groups: dict[tuple[object, ...], tuple[FailureVerdict, list[Failure]]] = {}
    order = {Verdict.MACHINE: 0, Verdict.UNDECIDED: 1, Verdict.CODE: 2}
    for judged in sorted(failures, key=lambda each: order.get(each.verdict, 3)):
        causes = tuple((charge.blamed.cause, charge.blamed.subject) for charge in judged.charges)
        key = (judged.verdict, causes, () if judged.verdict is Verdict.CODE else judged.reasons)
        groups.setdefault(key, (judged, []))[1].append(judged.failure)
    return list(groups.values())


def _failure_lines(
    judged: FailureVerdict, failures: list[Failure], style: Style, is_known: Callable[[str], bool]
) -> list[str]:
    text = headline(judged)
    if len(failures) > 1:
        text = failed_names(failures) + headline(judged).removeprefix(failed_names([judged.failure]))
    word = "error" if judged.verdict is Verdict.MACHINE else "warning" if judged.verdict is Verdict.UNDECIDED else ""
    head = style.strong(style.severity(word, safe(f"triaged: {text}")) if word else safe(f"triaged: {text}"))
    lines = [head]
    for charge in judged.charges:
        lines += _labelled("cause", cause_text(charge), style)
    if judged.ruled_out and judged.verdict is not Verdict.CODE:
        blamed = {charge.blamed.cause for charge in judged.charges}
        found = {each.cause: each for each in judged.ruled_out if each.cause not in blamed}
        if found:
            lines += _labelled("not", ", ".join(f"{limit_name(each.cause)} ({each.because})" for each in found.values()), style)
    if judged.verdict is Verdict.CODE:
        for reason in judged.reasons[:_REASONS] if len(failures) == 1 else ():
            lines += _labelled("because", reason, style)
    else:
        for reason in judged.reasons[:_REASONS] if judged.verdict is Verdict.UNDECIDED else ():
            lines += _labelled("unclear", reason, style)
        for charge in judged.charges[:1]:
            lines += _fix_lines(charge, style, is_known)
    return lines


def _fix_lines(charge: Charge, style: Style, is_known: Callable[[str], bool]) -> list[str]:
    lines: list[str] = []
    finding = charge.finding
    for fix in charge.blamed.fixes[:1] if finding and is_known(finding) else charge.blamed.fixes[:2]:
        if finding and is_known(finding) and not isinstance(fix, ManualStep):
            lines += _labelled("fix", f"triagectl fix {finding}   {fix.title}", style)
        else:
            lines += _labelled("fix", fix.title, style)
            lines += _commands(fix)
    return lines


def _commands(fix: Fix) -> list[str]:
    return [f"{' ' * (_LABEL + 2)}$ {command_line(list(argv))}" for argv in fix.commands]


def _labelled(label: str, text: str, style: Style) -> list[str]:
    head = "  " + padded(label, _LABEL)
    lines = wrapped(safe(text), style.width, head)
    return ["  " + style.faint(padded(label, _LABEL)) + lines[0][len(head):], *lines[1:]]
