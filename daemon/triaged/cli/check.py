# SPDX-License-Identifier: Apache-2.0
"""`triagectl check`: policies held against this machine, as a gate."""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus
from triaged.cli.style import Style, padded, safe, style_for, wrapped

if TYPE_CHECKING:
    from triaged.check import Item
    from triaged.cli.commands import Subparsers

_WORDS = {"pass": "ok", "fail": "FAIL", "unknown": "unknown", "absent": "absent", "conflict": "CONFLICT"}
_COLOURS = {"fail": "error", "conflict": "error", "unknown": "warning"}


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl check`."""
    parser = subparsers.add_parser(
        "check", help="hold policies against this machine, as a gate",
        description="Holds each item of the policies against this machine: pass, fail or unknown, with the running value, where it "
                    "comes from, and the reason of the wish. Needs no daemon. Exit status: 0 every item passes, 1 an item fails, "
                    "2 policies contradict each other, a policy is wrong, or (with --strict) an item is unknown.",
    )
    parser.add_argument(
        "--policy", metavar="NAME", action="append",
        help="hold this policy against the machine, not the configured ones; may be given again",
    )
    parser.add_argument("--list", action="store_true", help="list the policies that there are")
    parser.add_argument(
        "--pid", type=_pid, default=0, metavar="PID",
        help="judge resource limits, and parameters of the network namespace, as they are for this process",
    )
    parser.add_argument("--strict", action="store_true", help="exit status 2 also where an item is unknown")
    parser.add_argument("--all", action="store_true", help="show items that pass with their reasons too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--junit", metavar="FILE", help="also write the result as JUnit XML")


def _pid(word: str) -> int:
    """A process id. Raises: ArgumentTypeError."""
    if not word.isdecimal() or not 0 < int(word) < 1 << 22:
        raise argparse.ArgumentTypeError(f"{safe(word[:40])!r} is not the number of a process")
    return int(word)


def item_lines(items: Sequence[Item], style: Style, show_all: bool) -> list[str]:
    """The table. What fails has its reason and where its value comes from below it."""
    width = max([len(item.subject) for item in items] + [10])
    lines = []
    for item in items:
        word = padded(_WORDS[item.outcome.value], 8)
        colour = _COLOURS.get(item.outcome.value, "")
        value = safe(item.value) or "-"
        text = f"{padded(safe(item.subject), width)}  {value}"
        if item.outcome.value != "conflict":  # whose detail names every wish
            text += f"  (wanted: {safe(item.wish)})"
        lines.append((style.severity(colour, word) if colour else word) + " " + text)
        if item.outcome.value in ("pass", "absent") and not show_all:
            continue
        for label, words in (
            ("", item.detail), ("from", item.origin), ("why", item.why), ("costs", item.weakens),
            ("policy", f"{item.wanted_by} ({item.entry})" if item.entry else item.wanted_by),
        ):
            if words:
                first = f"         {padded(label, 7)}"
                lines += [style.faint(line) for line in wrapped(safe(words), style.width, first, " " * len(first))]
    return lines


def summary_text(items: Sequence[Item]) -> str:
    """The counts, in one line."""
    counts = Counter(item.outcome.value for item in items)
    return ", ".join(f"{counts[word]} {word}" for word in _WORDS if counts[word]) or "no items"


def junit_document(items: Sequence[Item]) -> str:
    """The result as JUnit XML: one test case an item; unknown, absent and conflict as skipped, skipped and error."""
    from xml.etree.ElementTree import Element, SubElement, tostring

    counts = Counter(item.outcome.value for item in items)
    suite = Element(
        "testsuite", name="triagectl check", tests=str(len(items)), failures=str(counts["fail"]), errors=str(counts["conflict"]),
        skipped=str(counts["unknown"] + counts["absent"]),
    )
    for item in items:
        case = SubElement(suite, "testcase", classname=f"policy.{item.wanted_by or 'conflict'}", name=item.subject)
        words = f"{item.subject} is {item.value or 'unknown'}, wanted: {item.wish}"
        if item.outcome.value == "fail":
            failure = SubElement(case, "failure", message=safe(words), type="policy")
            failure.text = "\n".join(safe(text) for text in (item.origin, item.why, item.entry) if text)
        elif item.outcome.value == "conflict":
            SubElement(case, "error", message=safe(item.detail), type="conflict")
        elif item.outcome.value in ("unknown", "absent"):
            SubElement(case, "skipped", message=safe(item.detail))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(suite, encoding="unicode") + "\n"


def exit_status(items: Sequence[Item], is_strict: bool) -> ExitStatus:
    """What the items mean for a gate."""
    outcomes = {item.outcome.value for item in items}
    if "fail" in outcomes:
        return ExitStatus.FOUND
    if "conflict" in outcomes or (is_strict and "unknown" in outcomes):
        return ExitStatus.COULD_NOT_LOOK
    return ExitStatus.FINE


def _reader_in(pid: int) -> Callable[[str], str] | None:
    """Reads net.* where the process sees it, everything else here; None if that is here. Raises: KernelError if there is none."""
    from triaged.errors import KernelError
    from triaged.fixers.network_namespace import in_network_namespace
    from triaged.kernel.parameters import ParameterReader
    from triaged.kernel.paths import KernelPaths
    from triaged.kernel.process import read_start_ticks
    from triaged.kernel.usage import shares_network

    paths = KernelPaths()
    here = ParameterReader(paths)
    if not os.path.exists(f"{paths.proc}/{pid}"):
        raise KernelError(f"{paths.proc}/{pid}", "there is no such process")
    if shares_network(paths, pid):
        return None
    ticks = read_start_ticks(paths, pid)

    def read(key: str) -> str:
        if not key.startswith("net."):
            return here.read(key)
        # A reader of its own: a file that is open already stays with the namespace in which it was opened.
        return in_network_namespace(paths, pid, ticks, lambda: ParameterReader(paths).read(key))

    return read


def run(args: argparse.Namespace) -> int:
    """Checks, and prints the result. Raises ConfigError, KernelError."""
    from triaged.assembly import load_settings
    from triaged.check import check
    from triaged.kernel.paths import KernelPaths
    from triaged.policy import load_policies, load_policy, policy_names

    settings = load_settings()
    if args.list:
        for name in policy_names(settings.paths):
            print(f"{name:22} {safe(load_policy(settings.paths, name).title)}")
        return ExitStatus.FINE
    policies = load_policies(settings.paths, args.policy) if args.policy else settings.policies
    read = _reader_in(args.pid) if args.pid else None
    network = f"the network namespace of process {args.pid}" if read else ""
    items = list(check(policies, KernelPaths(), pid=args.pid, read=read, network=network))
    if args.junit:
        with open(args.junit, "w", encoding="utf-8") as file:
            file.write(junit_document(items))
    if args.json:
        names = list(policies.names)
        print(json.dumps({"policies": names, "items": [asdict(item) for item in items]}, indent=2))
    else:
        style = style_for(sys.stdout, args.color)
        print("\n".join(item_lines(items, style, args.all)))
        print(f"\npolicies {', '.join(policies.names)}: {summary_text(items)}")
    return exit_status(items, args.strict)
