# SPDX-License-Identifier: Apache-2.0
"""`triagectl undo`: put back what a fix changed."""
from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl undo`."""
    parser = subparsers.add_parser(
        "undo", help="put back what a fix changed",
        description="Puts back what a fix of the finding changed, as far as nobody has changed it since; otherwise says who has "
                    "the value now. Without an id it lists the fixes that were made. polkit decides who may "
                    "(org.triaged.undo-fix). Exit status: 0 done, 1 not done.",
    )
    parser.add_argument("id", metavar="ID", nargs="?", default="", help="the finding whose fix is undone")
    parser.add_argument("key", metavar="FIX", nargs="?", default="", help="which of its fixes (default: the only one that holds)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Undoes. Raises BusError."""
    from triaged.cli.__main__ import say_error
    from triaged.cli.daemon import daemon
    from triaged.cli.repair import APPLY_TIMEOUT_S, outcome_lines
    from triaged.cli.style import padded, safe, style_for
    from triaged.errors import BusError

    style = style_for(sys.stdout, args.color)
    with daemon(args.bus) as client:
        if not args.id:
            rows = client.call("ListFixes")[0]
            if args.json:
                print(json.dumps(rows, indent=2))
            else:
                for row in rows:
                    print(f"{padded(safe(row['State']), 10)} {safe(row['Finding'])}  {safe(row['Key'])}  {safe(row['Title'])}")
                if not rows:
                    print("no fix was made")
            return ExitStatus.FINE
        try:
            outcome = client.call(
                "UndoFix", "ssa{sv}", _whole_id(client.call("ListFixes")[0], args.id), args.key, {}, timeout_s=APPLY_TIMEOUT_S,
                may_interact=sys.stdin.isatty(),
            )[0]
        except BusError as error:
            if not error.name.startswith("org.triaged."):
                raise
            say_error(str(error), error.remedy or "'triagectl undo' without an id lists the fixes that were made")
            return ExitStatus.FOUND
    print(json.dumps(outcome, indent=2) if args.json else "\n".join(outcome_lines(outcome, style)))
    return ExitStatus.FINE if outcome["State"] == "undone" else ExitStatus.FOUND


def _whole_id(rows: list[dict[str, str]], name: str) -> str:
    """The only finding with a fix whose id begins so; otherwise what was typed, for the daemon to refuse."""
    fitting = {row["Finding"] for row in rows if row["Finding"].startswith(name)}
    return fitting.pop() if len(fitting) == 1 else name
