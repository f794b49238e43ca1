# SPDX-License-Identifier: Apache-2.0
"""`triagectl show`: one finding with all that is known of it."""
from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl show`."""
    parser = subparsers.add_parser(
        "show", help="one finding with its evidence and fixes",
        description="Shows one finding of the daemon: what it means, the evidence with the kernel files and records it is from, "
                    "and the fixes with the commands to type. The beginning of an id will do where it fits only one finding.",
    )
    parser.add_argument("id", metavar="ID", help="the finding, as 'triagectl list' names it")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Shows the finding. Raises BusError."""
    from triaged.cli.__main__ import say_error
    from triaged.cli.daemon import daemon
    from triaged.cli.document import finding_from_bus
    from triaged.cli.repair import NotMeant, read_finding

    with daemon(args.bus) as client:
        try:
            properties = read_finding(client, args.id)
        except NotMeant as error:
            say_error(str(error), error.remedy)
            return ExitStatus.FOUND
    document = finding_from_bus(properties)
    if args.json:
        import json

        print(json.dumps(document, indent=2))
    else:
        from triaged.cli.report import whole_finding_lines
        from triaged.cli.style import style_for

        print("\n".join(whole_finding_lines(document, str(properties.get("Explanation", "")), style_for(sys.stdout, args.color))))
    return ExitStatus.FINE
