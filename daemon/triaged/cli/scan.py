# SPDX-License-Identifier: Apache-2.0
"""`triagectl scan`: one look at this machine with the daemon's own sources, rules and engine; no daemon, no bus, no root."""
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from triaged.cli.document import WARNING, Report, severity_priority
from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.assembly import Settings
    from triaged.cli.commands import Subparsers
    from triaged.kernel.paths import KernelPaths

_ERASE_LINE = "\r\x1b[K"


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl scan`."""
    parser = subparsers.add_parser(
        "scan", help="look once at this machine, without the daemon",
        description="Looks once at everything that can be read now, judges it with the same rules as the daemon, and says what was "
                    "hit, what is nearly full and what is below the policy. Needs no daemon, no bus and no root; what could "
                    "not be looked at is named with the reason. Exit status: 0 nothing found, 1 findings of severity warning or "
                    "worse, 2 no source could look.",
    )
    parser.add_argument(
        "--policy", metavar="NAME", action="append", help="judge by this policy, not the configured ones; may be given again",
    )
    parser.add_argument("--strict", action="store_true", help="exit status 2 also where any source could not look fully")
    parser.add_argument("--json", action="store_true", help='print JSON: {"findings": [...], "sources": [...]}')


def scan(settings: Settings, kernel: KernelPaths, show_progress: bool = False) -> Report:
    """One pass over every source. `show_progress` writes the name of what is looked at to standard error, and wipes it again."""
    from triaged.assembly import assemble, look_once
    from triaged.store import Store

    def progress(name: str) -> None:
        if show_progress:
            print(f"{_ERASE_LINE}looking at {name} ...", end="", file=sys.stderr, flush=True)

    store = Store(cap=settings.config.findings_cap)
    sources: list[Any] = []
    try:
        for status in look_once(assemble(settings, store, kernel), store, progress):
            sources.append({
                "name": status.name, "state": status.state.value, "reason": status.reason, "remedy": status.remedy,
                "counters": dict(status.counters),
            })
    finally:
        if show_progress:
            print(_ERASE_LINE, end="", file=sys.stderr, flush=True)
    findings: list[Any] = [finding.as_json() for finding in store.findings() if finding.is_open]
    if store.dropped:
        print(f"triagectl: {store.dropped} findings are left out: more than 'cap' of triaged.toml(5)", file=sys.stderr)
    return {"findings": findings, "sources": sources}


def exit_status(report: Report, is_strict: bool) -> ExitStatus:
    """What the report means for a gate."""
    if any(severity_priority(finding["severity"]) <= WARNING for finding in report["findings"]):
        return ExitStatus.FOUND
    blind = [source["state"] == "unavailable" for source in report["sources"]]
    if all(blind) or (is_strict and any(source["state"] != "active" for source in report["sources"])):
        return ExitStatus.COULD_NOT_LOOK
    return ExitStatus.FINE


def run(args: argparse.Namespace) -> int:
    """Scans, and prints the report. Raises ConfigError."""
    import logging

    from triaged.assembly import load_settings
    from triaged.cli.style import safe
    from triaged.kernel.paths import KernelPaths
    from triaged.policy import load_policies

    logging.basicConfig(level=logging.WARNING, format="triagectl: %(message)s")
    settings = load_settings()
    if args.policy:
        policies = load_policies(settings.paths, args.policy)
        settings = replace(settings, config=replace(settings.config, policies=tuple(args.policy)), policies=policies)
    for conflict in settings.policies.conflicts:
        print(f"triagectl: {safe(conflict.summary)}", file=sys.stderr)
    report = scan(settings, KernelPaths(), show_progress=sys.stderr.isatty() and not args.json)
    if args.json:
        import json

        print(json.dumps(report, indent=2))
    else:
        from triaged.cli.report import report_lines
        from triaged.cli.style import style_for

        print("\n".join(report_lines(report, style_for(sys.stdout, args.color))))
    return exit_status(report, args.strict)
