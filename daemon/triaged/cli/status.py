# SPDX-License-Identifier: Apache-2.0
"""`triagectl status`: how the daemon and each of its sources stand."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from triaged.cli.exit_status import ExitStatus
from triaged.cli.report import counted, source_table_lines
from triaged.cli.style import Style, safe, style_for, wrapped

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl status`."""
    parser = subparsers.add_parser(
        "status", help="how the daemon and its sources stand",
        description="Shows the daemon's version and bus, every source with its state, why it is not active and how to get it, "
                    "what it has counted, and what was lost. With status 3 the daemon does not answer.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def status_document(where: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """The status as `--json` prints it."""
    from triaged.cli.document import source_from_bus

    return {
        "version": properties["Version"],
        "bus": where,
        "open_findings": properties["OpenFindings"],
        "policies": list(properties["Policies"]),
        "dropped": dict(properties["Dropped"]),
        "sources": [source_from_bus(source) for source in properties["Sources"]],
    }


def status_lines(document: Mapping[str, Any], style: Style) -> list[str]:
    """The status for people."""
    from triaged.cli.daemon import bus_name

    dropped = ", ".join(f"{safe(name).replace('_', ' ')} {value}" for name, value in sorted(document["dropped"].items()) if value)
    policies = ", ".join(safe(name) for name in document["policies"]) or "none"
    lines = wrapped(f"triaged {safe(document['version'])} answers on {bus_name(document['bus'])}.", style.width)
    lines[0] = style.strong(lines[0])
    lines.append(f"  findings  {counted(document['open_findings'], 'open finding')}")
    lines += wrapped(policies, style.width, "  policies  ")
    lines += wrapped(dropped or "nothing", style.width, "  dropped   ")
    return [*lines, style.strong("Sources"), *source_table_lines(document["sources"], style)]


def run(args: argparse.Namespace) -> int:
    """Shows the status. Raises BusError."""
    from triaged.cli.daemon import daemon

    with daemon(args.bus) as client:
        document = status_document(args.bus, client.manager_properties())
    if args.json:
        import json

        print(json.dumps(document, indent=2))
    else:
        print("\n".join(status_lines(document, style_for(sys.stdout, args.color))))
    return ExitStatus.FINE
