# SPDX-License-Identifier: Apache-2.0
"""`triagectl list`: the daemon's findings."""
from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers

STATES = ("open", "fixed", "resolved", "dismissed", "expired", "all")
KINDS = ("hit", "headroom", "risk")
SEVERITIES = ("critical", "error", "warning", "notice", "info")


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl list`."""
    parser = subparsers.add_parser(
        "list", help="the findings of the daemon",
        description="Lists the findings that the daemon has and that you may see, the worst first. "
                    "'triagectl show ID' says more about one.",
    )
    parser.add_argument("--state", choices=STATES, default="open", help="in which state (default: open)")
    parser.add_argument("--kind", choices=KINDS, help="of which kind")
    parser.add_argument("--severity", choices=SEVERITIES, help="this severe or worse")
    parser.add_argument("--rule", metavar="RULE", help="found by this rule")
    parser.add_argument("--unit", metavar="UNIT", help="about this systemd unit")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the ids")
    parser.add_argument("--json", action="store_true", help="print JSON, in the shape of 'triagectl scan --json'")


def run(args: argparse.Namespace) -> int:
    """Lists the findings. Raises BusError."""
    from triaged.cli.daemon import daemon
    from triaged.cli.document import Report, finding_from_bus, in_reading_order, severity_priority, source_from_bus

    options: dict[str, str | int] = {
        name: value for name in ("state", "kind", "rule", "unit") if (value := getattr(args, name)) is not None
    }
    if args.severity is not None:
        options["severity"] = severity_priority(args.severity)
    with daemon(args.bus) as client:
        rows = client.list_findings(**options)
        manager = client.manager_properties() if args.json else {}
    findings = in_reading_order([finding_from_bus(row) for row in rows])
    if args.json:
        import json

        report: Report = {"findings": findings, "sources": [source_from_bus(source) for source in manager.get("Sources", ())]}
        print(json.dumps(report, indent=2))
        return ExitStatus.FINE
    from triaged.cli.style import safe, style_for

    if args.quiet:
        lines = [safe(finding["id"]) for finding in findings]
    else:
        import time

        from triaged.cli.report import list_lines

        lines = list_lines(findings, style_for(sys.stdout, args.color), time.time_ns() // 1000)
    if lines:
        print("\n".join(lines))
    elif not args.quiet:
        state = "" if args.state == "all" else f"{args.state} "
        print(f"no {state}findings", file=sys.stderr)
    return ExitStatus.FINE
