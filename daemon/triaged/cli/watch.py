# SPDX-License-Identifier: Apache-2.0
"""`triagectl watch`: findings as they are opened."""
from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.bus.client import Client, FindingOpened
    from triaged.cli.commands import Subparsers
    from triaged.cli.document import FindingDocument
    from triaged.cli.style import Style


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl watch`."""
    parser = subparsers.add_parser(
        "watch", help="print findings as they come",
        description="Prints every finding that the daemon opens, until Ctrl-C. "
                    "Of another user's finding that you may not see it prints only the rule and the id.",
    )
    parser.add_argument("-n", "--number", metavar="N", type=int, help="end after N findings")
    parser.add_argument("--json", action="store_true", help="print JSON, one finding a line")


async def _read(client: Client, opened: FindingOpened) -> FindingDocument | None:
    from triaged.cli.document import finding_from_bus
    from triaged.errors import BusError

    try:
        return finding_from_bus(await client.get_finding(opened.identifier))
    except BusError:
        return None  # somebody else's, or gone again: what the signal says can be told


def _print(opened: FindingOpened, document: FindingDocument | None, style: Style, as_json: bool) -> None:
    from triaged.cli.document import severity_word
    from triaged.cli.report import finding_lines
    from triaged.cli.style import padded, safe

    if as_json:
        import json

        severity = severity_word(opened.severity)
        print(json.dumps(document or {"id": opened.identifier, "rule": opened.rule, "severity": severity}), flush=True)
        return
    stamp = style.faint(time.strftime("%H:%M:%S"))
    if document is None:
        word = severity_word(opened.severity)
        lines = [f"  {style.severity(word, padded(word, 9))}{safe(opened.rule)}", f"    id        {safe(opened.identifier)}"]
    else:
        lines = finding_lines(document, style)
    print("\n".join([stamp, *lines]), flush=True)


async def _watch(args: argparse.Namespace) -> None:
    from triaged.bus.client import Client
    from triaged.cli.daemon import bus_name
    from triaged.cli.style import style_for
    from triaged.errors import BusError

    style = style_for(sys.stdout, args.color)
    client = await Client.connect(args.bus)
    try:
        await client.subscribe()
        await client.manager_properties()  # is anybody there?
        if sys.stderr.isatty():
            print(f"watching {bus_name(args.bus)}; Ctrl-C ends it", file=sys.stderr)
        seen = 0
        async for opened in client.opened():
            _print(opened, await _read(client, opened), style, args.json)
            seen += 1
            if seen == args.number:
                return
        raise BusError("org.freedesktop.DBus.Error.Disconnected", "the connection to the bus was lost")
    finally:
        await client.close()


def run(args: argparse.Namespace) -> int:
    """Prints findings until interrupted. Raises BusError."""
    import asyncio

    from triaged.cli.daemon import unreachable
    from triaged.errors import BusError

    try:
        asyncio.run(_watch(args))
    except BusError as error:
        raise unreachable(args.bus, error) from error
    return ExitStatus.FINE
