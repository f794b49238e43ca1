# SPDX-License-Identifier: Apache-2.0
"""`triagectl rules`: what triaged can find, from the rules themselves. Needs no daemon."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from triaged.cli.exit_status import ExitStatus
from triaged.cli.report import explanation_lines
from triaged.cli.style import Style, padded, style_for, wrapped
from triaged.errors import TriagedError
from triaged.rules.rule import Rule

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl rules`."""
    parser = subparsers.add_parser(
        "rules", help="what triaged can find: the rule manual",
        description="Lists the rules, or prints the manual entry of one: what it means, how severe it is, what to read. "
                    "Needs no daemon.",
    )
    parser.add_argument("rule", metavar="RULE", nargs="?", help="the rule to explain (default: a list of all)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the names of the rules")
    parser.add_argument("--json", action="store_true", help="print JSON")


def rule_document(rule: Rule) -> dict[str, Any]:
    """A rule as `--json` prints it."""
    return {
        "id": rule.identifier,
        "kind": rule.kind.value,
        "severity": rule.severity.word,
        "title": rule.title,
        "explanation": rule.explanation,
        "references": list(rule.references),
        "expires_after_s": rule.expires_after_s,
    }


def table_lines(rules: Sequence[Rule], style: Style) -> list[str]:
    """The rules, a line or a few each."""
    width = max(len(rule.identifier) for rule in rules)
    lines = [style.strong(f"{padded('RULE', width)}  {'KIND':8}  {'SEVERITY':8}  MEANING")]
    for rule in rules:
        head = f"{padded(rule.identifier, width)}  {rule.kind.value:8}  {rule.severity.word:8}  "
        if style.is_terminal and style.width - len(head) < 30:
            lines += [head.rstrip(), *wrapped(rule.title, style.width, "    ")]
        elif style.is_terminal:
            lines += wrapped(rule.title, style.width, head)
        else:
            lines.append(head + rule.title)
    return lines


def entry_lines(rule: Rule, style: Style) -> list[str]:
    """The manual entry of one rule."""
    lines = [style.strong(rule.identifier), "", *explanation_lines(rule.explanation, style), ""]
    lines.append(f"  kind        {rule.kind.value}")
    lines.append(f"  severity    {style.severity(rule.severity.word, rule.severity.word)}")
    if rule.expires_after_s:
        lines.append(f"  expires     when it was not seen again for {rule.expires_after_s} s")
    for index, reference in enumerate(rule.references):
        lines.append(f"  {'references' if index == 0 else '':10}  {reference}")
    return lines


def run(args: argparse.Namespace) -> int:
    """Prints the list or the entry."""
    from triaged.rules import RULES

    rules: Sequence[Rule] = sorted(RULES, key=lambda rule: rule.identifier)
    if args.rule is not None:
        # The id of a finding is the rule and a hash: who pastes one means its rule.
        chosen = [rule for rule in rules if args.rule == rule.identifier]
        chosen = chosen or [rule for rule in rules if args.rule.startswith(rule.identifier + "-")]
        if not chosen:
            from difflib import get_close_matches

            near = get_close_matches(args.rule, [rule.identifier for rule in rules], 1)
            raise TriagedError(
                f"there is no rule {args.rule!r}", f"did you mean {near[0]}?" if near else "'triagectl rules' lists them all"
            )
        rules = chosen
    style = style_for(sys.stdout, args.color)
    if args.json:
        print(json.dumps([rule_document(rule) for rule in rules], indent=2))
    elif args.quiet:
        print("\n".join(rule.identifier for rule in rules))
    elif args.rule is not None:
        print("\n".join(entry_lines(rules[0], style)))
    else:
        print("\n".join(table_lines(rules, style)))
    return ExitStatus.FINE
