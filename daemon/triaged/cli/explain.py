# SPDX-License-Identifier: Apache-2.0
"""`triagectl explain`: which limits and settings give an error, and how each of them stands."""
from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers
    from triaged.cli.style import Style
    from triaged.explain.question import Answer

_WORD_WIDTH, _NAME_WIDTH = 9, 37
_VERDICTS = {"proved": "error", "likely": "warning", "possible": "notice"}


def numbers(text: str) -> tuple[int, ...]:
    """The arguments of a call as a person types them: "0,0x1000,3". Raises: ValueError."""
    return tuple(int(word, 0) for word in text.split(","))


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl explain`."""
    parser = subparsers.add_parser(
        "explain", help="which limit gives an error, and how each stands",
        description="Says which limits and settings of the system give an error, and holds each against the process as it is now, "
                    "or, without one, against this machine: what is to blame, what is not and by what that is proved, what cannot "
                    "be told. The question is a system call and an error (clone EAGAIN), an error alone, 'killed' (with a signal), "
                    "'timed-out', or the line that a test printed. Needs no daemon. Of other users' processes root sees more. Exit "
                    "status: 0 no limit is reached, 1 one is, 2 there is no such process, call or error.",
    )
    parser.add_argument("words", metavar="QUESTION", nargs="+", help="a call and an error, killed, timed-out, or a line of text")
    parser.add_argument("--pid", metavar="PID", type=int, default=0, help="the process in which it failed")
    parser.add_argument("--arguments", metavar="N,N", type=numbers, default=(), help="the call's arguments, as numbers (0,0x1000)")
    parser.add_argument("--path", metavar="FILE", default="", help="the file that the call was about")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _question_text(answer: Answer) -> str:
    from triaged.cli.style import safe
    from triaged.verdict.wording import symptom_text

    text = symptom_text(answer.symptom)
    if answer.process is None:
        return f"{text} on this machine"
    who = answer.process.identity
    return f"{text} in process {who.pid} ({safe(who.comm)})"


def _row(verdict: str, cause: str, text: str, style: Style) -> list[str]:
    from triaged.cli.style import padded, safe, wrapped

    head = f"  {padded(verdict, _WORD_WIDTH)} {padded(safe(cause), _NAME_WIDTH)} "
    lines = wrapped(safe(text), style.width, head)
    plain = 2 + _WORD_WIDTH
    return [style.faint(head[:plain]) + lines[0][plain:], *lines[1:]]


def answer_lines(answer: Answer, style: Style) -> list[str]:
    """The whole answer."""
    from triaged.cli.report import evidence_lines, fix_lines
    from triaged.cli.style import padded, safe, wrapped

    found = answer.explanation
    lines = [style.strong(_question_text(answer)), ""]
    for cause in found.causes:
        document = cause.as_json()
        word = cause.status.value
        head = f"  {padded(word, _WORD_WIDTH)} "
        told = wrapped(f"{safe(cause.cause)}: {safe(cause.summary)}", style.width, head)
        lines += ["  " + style.severity(_VERDICTS[word], padded(word, _WORD_WIDTH)) + " " + style.strong(told[0][len(head):])]
        lines += [style.strong(line) for line in told[1:]]
        lines += evidence_lines(document["evidence"], style, "    ")
        for fix in document["fixes"]:
            lines += fix_lines(fix, style, "    ")
        lines.append("")
    for own in found.self_inflicted:
        lines += _row("own fault", own.what, own.because, style)
    for cleared in found.ruled_out:
        lines += _row("not", cleared.cause, cleared.because, style)
    for unclear in found.not_decidable:
        lines += _row("unclear", unclear.cause, unclear.why, style)
    for hypothesis in answer.others():
        lines += _row("also", hypothesis.cause, " ".join(hypothesis.explanation.split("\n\n")[0].split()), style)
    if not answer.hypotheses:
        lines.append("  no limit or setting that triaged knows gives this error")
    elif not found.causes:
        lines += ["", "no limit is reached that would give this error now"]
    return lines


def run(args: argparse.Namespace) -> int:
    """Explains and prints. Raises ConfigError."""
    import os

    from triaged.cli.style import safe, style_for
    from triaged.config import config_paths, load_workloads
    from triaged.errors import KernelError
    from triaged.explain.hypotheses import HYPOTHESES
    from triaged.explain.question import answer, parse_question
    from triaged.kernel.paths import KernelPaths
    from triaged.kernel.process_table import ProcessTable
    from triaged.model.cause import Status

    kernel = KernelPaths()
    symptom = parse_question(args.words, args.arguments, args.path)
    try:
        identity = ProcessTable(kernel, load_workloads(config_paths())).identify(args.pid) if args.pid else None
        given = answer(kernel, symptom, HYPOTHESES, args.pid, identity=identity, with_filters=os.geteuid() == 0)
    except KernelError as error:
        print(f"triagectl: there is no process {args.pid} that can be read ({safe(error)})", file=sys.stderr)
        print("triagectl: 'ps' shows what there is; other users' processes need root", file=sys.stderr)
        return ExitStatus.COULD_NOT_LOOK
    if args.json:
        import json

        print(json.dumps(given.as_json(), indent=2))
    else:
        print("\n".join(answer_lines(given, style_for(sys.stdout, args.color))))
    return ExitStatus.FOUND if any(cause.status is not Status.POSSIBLE for cause in given.explanation.causes) else ExitStatus.FINE
