# SPDX-License-Identifier: Apache-2.0
"""What fix, undo and dismiss share: which finding is meant, and how a preview or an outcome is shown."""
from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from triaged.cli.style import Style, command_line, padded, safe, wrapped
from triaged.errors import BusError

if TYPE_CHECKING:
    from triaged.bus.client import BlockingClient

APPLY_TIMEOUT_S = 130.0  # two probes and a systemd that reloads; a person who is asked for a password takes longer


class NotMeant(Exception):
    """What was named is not one finding or fix. `remedy` says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def read_finding(client: BlockingClient, name: str) -> dict[str, Any]:
    """The properties of the finding with this id, or with the only id that begins so. Raises NotMeant, BusError."""
    from triaged.cli.daemon import NO_SUCH_FINDING

    try:
        return client.get_finding(name)
    except BusError as error:
        if error.name != NO_SUCH_FINDING:
            raise
    fitting = sorted(row["Id"] for row in client.list_findings(state="all") if row["Id"].startswith(name))
    if len(fitting) == 1:
        return client.get_finding(fitting[0])
    if fitting:
        raise NotMeant(f"{name!r} is the beginning of {len(fitting)} findings", f"which one: {', '.join(fitting[:5])}?")
    raise NotMeant(f"there is no finding {name!r} that you may see", "'triagectl list --state all' lists them")


def labelled(label: str, text: str, style: Style) -> list[str]:
    """A line with its label, wrapped."""
    first = f"  {padded(label, 9)} "
    return wrapped(safe(text), style.width, first, " " * len(first))


def preview_lines(preview: Mapping[str, Any], style: Style) -> list[str]:
    """Exactly what would change."""
    lines = [style.strong(safe(preview["Title"]))]
    lines += labelled("changes", f"{preview['Target']}: {preview['Old']} -> {preview['New']}", style)
    for file in preview["Files"]:
        lines += labelled("file", file, style)
    lasts = "over a reboot" if preview["Lasting"] else "until the next boot, or the end of what it is set on"
    lines += labelled("lasts", lasts, style)
    lines += labelled("undo", "triagectl undo puts it back" if preview["Undoable"] else "cannot be undone", style)
    if preview["Risk"]:
        lines += labelled("risk", preview["Risk"], style)
    if preview["Verification"]:
        lines += labelled("tested", preview["Verification"], style)
    for note in preview["Notes"]:
        lines += labelled("note", note, style)
    for argv in preview["Commands"]:
        lines += labelled("by hand", command_line(list(argv)), style)
    if preview["Diff"]:
        lines += ["", *(f"  {safe(line)}" for line in preview["Diff"].splitlines())]
    if preview["Obstacle"]:
        lines += labelled("but", preview["Obstacle"], style)
    return lines


def outcome_lines(outcome: Mapping[str, Any], style: Style) -> list[str]:
    """What was done."""
    lines = [f"{style.strong(safe(outcome['State']))}  {safe(outcome['Title'])}"]
    if outcome["Message"]:
        lines += labelled("now", outcome["Message"], style)
    if outcome["Verification"] and outcome["State"] in ("applied", "verified"):
        lines += labelled("tested", outcome["Verification"], style)
    return lines


def is_agreed(question: str) -> bool:
    """Whether a person at the terminal says yes. Raises NotMeant where nobody can be asked."""
    if not sys.stdin.isatty():
        raise NotMeant("nobody can be asked: standard input is no terminal", "--yes agrees beforehand, --preview only looks")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
