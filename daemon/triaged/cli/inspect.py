# SPDX-License-Identifier: Apache-2.0
"""`triagectl inspect`: every limit of a process or unit on one screen, with what is in use of it and which binds first."""
from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from triaged.cli.exit_status import ExitStatus
from triaged.cli.style import Style, fitted, padded, safe, style_for
from triaged.model.limit import Unknown, Unlimited
from triaged.model.usage import CLOSES_BELOW, OPENS_AT, Usage

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers
    from triaged.inspection import Inspection
    from triaged.model.process import ProcessIdentity

_BAR = 20
_BYTES = ("memory", "address space", "locked memory")


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl inspect`."""
    parser = subparsers.add_parser(
        "inspect", help="every limit of a process or unit, and which binds first",
        description="Shows every limit that bounds a process or a unit (its own, its user's, its cgroup's and each ancestor's, the "
                    "host's) with what is in use of it. Needs no daemon. Of other users' processes root sees more. "
                    "Exit status: 0 all is well, 1 a limit is more than 80 % used, 2 there is no such process or unit.",
    )
    parser.add_argument("subject", metavar="PID|UNIT", help="a process id, the name of a systemd unit, or a cgroup path")
    parser.add_argument("--json", action="store_true", help="print JSON")


def amount(usage: Usage, value: object) -> str:
    """A value of the usage for people: bytes with a binary prefix, counts with thin groups."""
    if isinstance(value, Unlimited):
        return "unlimited"
    if not isinstance(value, int):
        return "unknown"
    if usage.resource not in _BYTES:
        return f"{value:,}"
    size = float(value)
    for prefix in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {prefix}" if prefix == "B" else f"{size:.1f} {prefix}"
        size /= 1024
    return f"{size:.1f} TiB"


def bar(share: float | None, style: Style) -> str:
    """The share as a bar; empty brackets where it is not known."""
    if share is None:
        return "[" + " " * _BAR + "]"
    filled = min(_BAR, max(round(share * _BAR), 1 if share > 0 else 0))
    text = "#" * filled + "." * (_BAR - filled)
    word = "error" if share >= OPENS_AT else "warning" if share >= CLOSES_BELOW else ""
    return "[" + (style.severity(word, text) if word else text) + "]"


def usage_lines(usages: tuple[Usage, ...], first: tuple[Usage, ...], style: Style) -> list[str]:
    """A table of usages, grouped by resource; the one that binds first is marked with a star."""
    lines = []
    for resource in dict.fromkeys(usage.resource for usage in usages):
        lines.append(style.strong(resource))
        for usage in usages:
            if usage.resource != resource:
                continue
            share = usage.share
            percent = f"{share:4.0%}" if share is not None else "   -"
            at_least = ">=" if usage.is_lower_bound and isinstance(usage.used, int) else ""
            used = f"{at_least}{amount(usage, usage.used)} of {amount(usage, usage.limit)}"
            mark = "*" if usage in first and sum(other.resource == resource for other in usages) > 1 else " "
            why = usage.note or next((each.why for each in (usage.used, usage.limit) if isinstance(each, Unknown)), "")
            where = f"{safe(usage.unit)} ({safe(usage.where)})" if usage.unit else safe(usage.where)
            tail = f"{where}  ({safe(why)})" if why else where
            head = f"{mark} {padded(usage.limit_name, 30)} {bar(share, style)} {percent}  {padded(used, 26)} "
            lines.append(head + fitted(tail, max(style.width - 30 - _BAR - 40, 24)))
    return lines


def _process_lines(process: ProcessIdentity, style: Style) -> list[str]:
    """Who the process is, with psutil's view of what it does where psutil is installed."""
    words = f"process {process.pid}  {safe(process.comm)}"
    if process.workload:
        words += f"  {process.workload.workload} {process.workload.role} {safe(process.workload.package)}"
    lines = [style.strong(words)]
    if process.argv:
        lines.append("  command  " + fitted(safe(" ".join(process.argv)), max(style.width - 11, 40)))
    lines.append(f"  cgroup   {safe(process.cgroup)}")
    try:
        import psutil

        with (view := psutil.Process(process.pid)).oneshot():
            times, memory = view.cpu_times(), view.memory_info()
            lines.append(
                f"  user     {safe(view.username())}   threads {view.num_threads()}   CPU {times.user + times.system:.1f} s   "
                f"resident {memory.rss / 2**20:.1f} MiB   for {time.time() - view.create_time():.0f} s"
            )
    except ImportError:
        lines.append("  (install python3-psutil to see its CPU time and memory)")
    except psutil.Error as error:
        lines.append(f"  (not all can be read: {safe(error)})")
    return lines


def inspection_lines(inspection: Inspection, style: Style) -> list[str]:
    """The whole screen."""
    if inspection.process is not None:
        lines = _process_lines(inspection.process, style)
    else:
        lines = [style.strong(f"cgroup {safe(inspection.cgroup)}"), f"  processes {len(inspection.members)}"]
        for process in inspection.members:
            if process.workload:
                lines.append(f"  {process.pid} {safe(process.comm)}  {process.workload.workload} {safe(process.workload.package)}")
    lines += ["", *usage_lines(inspection.usages, inspection.binding(), style)]
    if any(line.startswith("* ") for line in lines):
        lines.append(style.faint("* is reached first of several limits on the same thing"))
    for text in inspection.blind:
        lines.append(style.faint(f"not seen  {safe(text)}"))
    near = [usage for usage in inspection.usages if (usage.share or 0.0) >= OPENS_AT]
    lines.append("")
    if near:
        names = ", ".join(f"{usage.limit_name} of {safe(usage.unit or usage.where)} ({usage.share:.0%})" for usage in near)
        lines.append(style.severity("error", f"nearly used up: {names}"))
    else:
        lines.append("nothing is more than 80 % used")
    return lines


def _usage_document(usage: Usage) -> dict[str, Any]:
    def value(of: object) -> Any:
        return of if isinstance(of, int) else None if isinstance(of, Unknown) else str(of)

    why = next((each.why for each in (usage.used, usage.limit) if isinstance(each, Unknown)), "")
    return {
        "resource": usage.resource, "limit": usage.limit_name, "where": usage.where, "unit": usage.unit, "used": value(usage.used),
        "of": value(usage.limit), "share": usage.share, "used_from": usage.used_from, "limit_from": usage.limit_from,
        "is_lower_bound": usage.is_lower_bound, "note": usage.note or why,
    }


def document(inspection: Inspection) -> dict[str, Any]:
    """The inspection as `--json` prints it."""
    who = inspection.process
    return {
        "process": {"pid": who.pid, "comm": who.comm, "exe": who.exe, "argv": list(who.argv), "uid": who.uid} if who else None,
        "cgroup": inspection.cgroup,
        "members": [process.pid for process in inspection.members],
        "usages": [_usage_document(usage) for usage in inspection.usages],
        "binding": [
            {"resource": usage.resource, "limit": usage.limit_name, "where": usage.where} for usage in inspection.binding()
        ],
        "blind": list(inspection.blind),
    }


def run(args: argparse.Namespace) -> int:
    """Inspects and prints. Raises ConfigError."""
    from triaged.config import config_paths, load_workloads
    from triaged.errors import KernelError
    from triaged.inspection import inspect_process, inspect_unit
    from triaged.kernel.paths import KernelPaths
    from triaged.kernel.process_table import ProcessTable

    kernel = KernelPaths()
    table = ProcessTable(kernel, load_workloads(config_paths()))
    try:
        if args.subject.isdecimal():
            inspection = inspect_process(kernel, table, int(args.subject))
        else:
            inspection = inspect_unit(kernel, table, args.subject)
    except KernelError as error:
        what = "process" if args.subject.isdecimal() else "unit with processes, and no cgroup,"
        print(f"triagectl: there is no {what} {safe(args.subject)} that can be read ({safe(error)})", file=sys.stderr)
        print("triagectl: 'systemd-cgls' and 'ps' show what there is; other users' processes need root", file=sys.stderr)
        return ExitStatus.COULD_NOT_LOOK
    if args.json:
        print(json.dumps(document(inspection), indent=2))
    else:
        print("\n".join(inspection_lines(inspection, style_for(sys.stdout, args.color))))
    return ExitStatus.FOUND if any((usage.share or 0.0) >= OPENS_AT for usage in inspection.usages) else ExitStatus.FINE
