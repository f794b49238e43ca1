# SPDX-License-Identifier: Apache-2.0
"""`triagectl log`: what triaged wrote to the journal about a unit, a finding or a rule.

Anybody may write SYSLOG_IDENTIFIER=triaged to the journal. Believed is what the journal itself says of the writer: the
units of the packages, or a daemon that root or the caller started by hand.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triaged.cli.document import severity_word
from triaged.cli.exit_status import ExitStatus
from triaged.cli.report import moment
from triaged.cli.style import Style, padded, safe, style_for, wrapped
from triaged.errors import TriagedError

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers

_UNIT_TYPES = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")
_FIELDS = (
    "MESSAGE", "MESSAGE_ID", "PRIORITY", "TRIAGED_RULE", "TRIAGED_FINDING", "TRIAGED_SUBJECT", "OBJECT_SYSTEMD_UNIT", "OBJECT_PID",
)


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl log`."""
    parser = subparsers.add_parser(
        "log", help="what the journal says of a unit's findings",
        description="Prints what triaged wrote to the journal: findings opened and resolved, fixes applied and undone. "
                    "Needs no daemon, but the right to read the system's journal. journalctl -u UNIT does not show these: of "
                    "what is about a unit it takes only entries that the unit itself, systemd or root wrote.",
    )
    parser.add_argument("unit", metavar="UNIT", nargs="?", help="only what is about this systemd unit")
    parser.add_argument("--finding", metavar="ID", help="only what is about this finding")
    parser.add_argument("--rule", metavar="RULE", help="only what this rule found")
    parser.add_argument("--since", metavar="TIME", help="not older than this, as for journalctl: today, --since=-1h, ...")
    parser.add_argument("--directory", metavar="DIR", help="read the journal files in this directory, not this machine's journal")
    parser.add_argument("-n", "--lines", metavar="N", type=int, help="only the last N entries")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new entries as they come")
    parser.add_argument("-x", "--explain", action="store_true", help="add the message catalog's explanation to each entry")
    parser.add_argument("--json", action="store_true", help="print each entry's journal fields as JSON, one entry a line")


def unit_name(name: str) -> str:
    """The unit's whole name: as with systemctl, a name without a type is a service."""
    return name if name.endswith(_UNIT_TYPES) else f"{name}.service"


def journalctl_argv(args: argparse.Namespace, uid: int) -> list[str]:
    """The journalctl command that gives the entries asked for as JSON lines."""
    argv = ["journalctl", "--no-pager", "--all", "--output=json"]
    if not args.json and not args.explain:  # an explanation may speak of any field
        argv.append("--output-fields=" + ",".join(_FIELDS))
    if args.directory is not None:
        argv.append(f"--directory={args.directory}")
    if args.since is not None:
        argv.append(f"--since={args.since}")
    if args.lines is not None:
        argv.append(f"--lines={args.lines}")
    elif args.follow:
        argv.append("--lines=10")
    if args.follow:
        argv.append("--follow")
    about = []
    if args.finding is not None:
        about.append(f"TRIAGED_FINDING={args.finding}")
    if args.rule is not None:
        about.append(f"TRIAGED_RULE={args.rule}")
    writers: list[list[str]] = [["_SYSTEMD_UNIT=triaged.service"], ["_SYSTEMD_UNIT=triaged-helper.service"]]
    writers += [["SYSLOG_IDENTIFIER=triaged", f"_UID={writer}"] for writer in sorted({0, uid})]
    units: list[list[str]] = [[]]
    if args.unit is not None:
        # The system's, and those of the users' own systemd.
        units = [[f"{name}={unit_name(args.unit)}"] for name in ("OBJECT_SYSTEMD_UNIT", "OBJECT_SYSTEMD_USER_UNIT")]
    matches = [writer + unit + about for writer in writers for unit in units]
    for index, match in enumerate(matches):
        argv += (["+"] if index else []) + match
    return argv


def field(record: Mapping[str, Any], name: str) -> str:
    """A field of a record, '' if it is not there. The journal gives a list of bytes for what is not printable UTF-8,
    and a list of values for a field that was given more than once.
    """
    value = record.get(name)
    if isinstance(value, list):
        if value and all(isinstance(byte, int) for byte in value):
            return bytes(value).decode("utf-8", "surrogateescape")
        return field({name: value[-1]}, name) if value else ""
    return value if isinstance(value, str) else ""


def entry_lines(record: Mapping[str, Any], style: Style) -> list[str]:
    """One entry: when, how severe, what; then which finding."""
    stamp = field(record, "__REALTIME_TIMESTAMP")
    priority = field(record, "PRIORITY")
    word = severity_word(int(priority)) if priority.isdigit() else "-"
    time_text = moment(int(stamp) if stamp.isdigit() else 0)[:19]
    head = f"{time_text}  {padded(word, 8)}  "
    first, *more = (field(record, "MESSAGE") or "(no text)").splitlines() or [""]
    lines = wrapped(safe(first), style.width, head)
    lines[0] = f"{style.faint(time_text)}  {style.severity(word, padded(word, 8))}  {lines[0][len(head):]}"
    for text in more:
        lines += wrapped(safe(text), style.width, " " * len(head))
    finding = field(record, "TRIAGED_FINDING")
    if finding:
        lines.append(" " * len(head) + style.faint(safe(finding)))
    return lines


def explanation_lines(catalog: str, record: Mapping[str, Any], style: Style) -> list[str]:
    """A catalog entry as `journalctl --catalog` sets it: marked at the left, @FIELD@ replaced by the record's field."""
    text = re.sub(r"@([A-Z0-9_]+)@", lambda match: safe(field(record, match[1])) or match[0], catalog)
    return ["  " + style.faint(f"░░ {safe(line)}".rstrip()) for line in text.splitlines()]


def _records(lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        if not line.startswith("{"):
            continue
        try:
            record = json.loads(line)
        except ValueError:
            print(f"triagectl: a journal entry cannot be read and is left out: {safe(line[:80])!r}", file=sys.stderr)
            continue
        yield record


def _catalog(message_id: str) -> str:
    import subprocess

    try:
        argv = ["journalctl", "--dump-catalog", message_id]
        answer = subprocess.run(argv, capture_output=True, text=True, errors="backslashreplace", check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    body = answer.stdout.partition("\n\n")[2]  # the head is mail-like: -- ID, Subject:, Defined-By:
    return body.strip() if answer.returncode == 0 else ""


def _show(records: Iterator[Mapping[str, Any]], args: argparse.Namespace) -> int:
    style = style_for(sys.stdout, args.color)
    explained: dict[str, str] = {}
    shown = 0
    for record in records:
        shown += 1
        if args.json:
            print(json.dumps(record), flush=args.follow)
            continue
        lines = entry_lines(record, style)
        identifier = field(record, "MESSAGE_ID")
        if args.explain and identifier:
            if identifier not in explained:
                explained[identifier] = _catalog(identifier)
            lines += explanation_lines(explained[identifier], record, style)
        print("\n".join(lines), flush=args.follow)
    return shown


def run(args: argparse.Namespace) -> int:
    """Runs journalctl and shows its entries. Raises TriagedError if it is not there or fails."""
    import subprocess

    argv: Sequence[str] = journalctl_argv(args, os.getuid())
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, errors="surrogateescape")
    except FileNotFoundError as error:
        raise TriagedError("journalctl is not installed", "on a machine without systemd see 'triagectl list' instead") from error
    assert process.stdout is not None
    try:
        shown = _show(_records(process.stdout), args)
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        process.stdout.close()
    if status:
        raise TriagedError(f"journalctl failed with status {status}", "its own words are above")
    if not shown and not args.json:
        print("no entries", file=sys.stderr)
    return ExitStatus.FINE
