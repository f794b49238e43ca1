# SPDX-License-Identifier: Apache-2.0
"""`triagectl dismiss`: say that a finding does not matter, and why."""
from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl dismiss`."""
    parser = subparsers.add_parser(
        "dismiss", help="say that a finding does not matter",
        description="Closes a finding that does not matter; it stays closed when it comes again. polkit decides who may "
                    "(org.triaged.dismiss). Exit status: 0 done, 1 not done.",
    )
    parser.add_argument("id", metavar="ID", help="the finding, or the beginning of its id")
    parser.add_argument("--why", metavar="TEXT", required=True, help="the reason, which is kept with the finding")


def run(args: argparse.Namespace) -> int:
    """Dismisses. Raises BusError."""
    from triaged.cli.__main__ import say_error
    from triaged.cli.daemon import daemon
    from triaged.cli.repair import NotMeant, read_finding
    from triaged.cli.style import safe
    from triaged.errors import BusError

    with daemon(args.bus) as client:
        try:
            finding = read_finding(client, args.id)
            client.call("DismissFinding", "ss", finding["Id"], args.why, may_interact=sys.stdin.isatty())
        except NotMeant as error:
            say_error(str(error), error.remedy)
            return ExitStatus.FOUND
        except BusError as error:
            if not error.name.startswith("org.triaged."):
                raise
            say_error(str(error), error.remedy)
            return ExitStatus.FOUND
    print(f"dismissed {safe(finding['Id'])}")
    return ExitStatus.FINE
