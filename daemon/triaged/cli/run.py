# SPDX-License-Identifier: Apache-2.0
"""`triagectl run`: a command under observation, and beside its failed tests what of the machine is to blame for them."""
from __future__ import annotations

import argparse
import io
import os
import sys
from typing import TYPE_CHECKING

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers
    from triaged.verdict.report import Report


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl run`."""
    parser = subparsers.add_parser(
        "run", help="run a command, and say which of its failures are the machine's",
        usage="triagectl run [options] -- COMMAND ...",
        description="Runs a command (go test ./..., pytest, make check) and says afterwards, on standard error, which of its "
                    "failures are not the code's but the machine's: which limit, proved by what, and how it is put right. The "
                    "command's output, terminal, signals and exit status stay what they are without triagectl. As root its failing "
                    "system calls are traced; without that less is seen, and said.",
    )
    parser.add_argument("--report", metavar="FILE", help="write the verdict to FILE as JSON, and nothing to standard error")
    parser.add_argument("--junit", metavar="FILE", help="write the tests with the verdict to FILE as JUnit XML")
    parser.add_argument("--annotate", choices=("github", "gitlab"), help="print the verdict as annotations of a CI system")
    parser.add_argument(
        "--exit-infra", metavar="N", type=_status, help="exit status where the machine is to blame (default: the command's)",
    )
    parser.add_argument("--slice", metavar="SLICE", help="run the command in a scope of its own in this slice")
    parser.add_argument("--no-trace", action="store_true", help="do not trace failing system calls")
    parser.add_argument("--ask", action="store_true", help="not root: let triaged ask for a password where it needs one to trace")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing where the machine is not to blame")
    parser.add_argument("command_line", metavar="COMMAND", nargs=argparse.REMAINDER)


def _status(text: str) -> int:
    if not text.isdecimal() or int(text) > 255:
        raise argparse.ArgumentTypeError(f"{text!r} is no exit status (0 to 255)")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Runs the command and tells the verdict; the command's exit status, or its death. Raises TriagedError."""
    words = args.command_line[1:] if args.command_line[:1] == ["--"] else args.command_line
    if not words:
        print("triagectl: run: no command: triagectl run [options] -- COMMAND ...", file=sys.stderr)
        return ExitStatus.COULD_NOT_LOOK
    from triaged.run.command import NotStarted, end_as
    from triaged.run.session import Options, Session

    reader = _Reader()
    try:
        # Of a run that passed nothing is said, unless it is asked for: then nobody waits for what would judge it.
        is_judged = bool(args.report or args.junit or args.annotate)
        options = Options(not args.no_trace, args.bus, args.ask, args.slice or "", _warn, is_judged)
        with Session(words, reader.feed, options, preload=_load) as session:
            record = session.run()
            if record.unwritten:
                _warn(f"the command's output was lost: {record.unwritten}")
            if not record.wait_status and not is_judged:
                return ExitStatus.COULD_NOT_LOOK if record.unwritten else 0
            report = reader.report(record)
            is_told = _tell(report, args)
    except NotStarted as error:
        from triaged.cli.style import safe

        _say(f"triagectl: {safe(error)}")
        _tell(_of_nothing(words, error.status), args)
        return error.status
    if args.exit_infra is not None and report.verdict.value == "machine":
        status: int = args.exit_infra
        return status
    if not record.wait_status and (not is_told or record.unwritten):
        return ExitStatus.COULD_NOT_LOOK  # whoever waits for the file must not take this for a success
    return end_as(record.wait_status)


def _warn(text: str) -> None:
    from triaged.cli.style import safe

    _say(f"triagectl: run: {safe(text)}")


def _say(text: str) -> None:
    """Writes on standard error. That nobody reads it, or that it is full, does not change how the command ended."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = io.StringIO()


def _load() -> None:
    """Loads what the verdict needs, while the command runs."""
    import triaged.cli.run_verdict
    import triaged.output.reader
    import triaged.verdict.decide  # noqa: F401


class _Reader:
    """Reads the output; what reads it is loaded with the first piece, when the command is working already."""

    def __init__(self) -> None:
        self._reader: object = None

    def feed(self, stream: str, data: bytes, at_ns: int) -> None:
        from triaged.output.reader import OutputReader

        if not isinstance(self._reader, OutputReader):
            self._reader = OutputReader()
        self._reader.feed(stream, data, at_ns)

    def report(self, record: object) -> Report:
        import time

        from triaged.explain.hypotheses import HYPOTHESES
        from triaged.output.reader import OutputReader
        from triaged.run.record import RunRecord
        from triaged.verdict.decide import judge

        assert isinstance(record, RunRecord)
        reader = self._reader if isinstance(self._reader, OutputReader) else OutputReader()
        return judge(record, reader.finish(record.wait_status != 0, time.monotonic_ns()), HYPOTHESES)


def _of_nothing(words: list[str], status: int) -> Report:
    """The report of a command that could not be started: for whoever reads it in any case."""
    from triaged.verdict.report import Report, Verdict

    return Report(Verdict.CODE, status, tuple(words))


def _tell(report: Report, args: argparse.Namespace) -> bool:
    """Writes the verdict wherever it was asked for, and where that cannot be, on standard error. Whether it could."""
    from triaged.cli.run_verdict import known_findings, verdict_lines
    from triaged.cli.style import style_for

    is_written = True
    if args.report:
        import json

        is_written = _write(args.report, json.dumps(report.as_json(), indent=2) + "\n")
    is_reported = bool(args.report) and is_written
    if args.junit:
        from triaged.verdict.junit import junit_xml

        is_written = _write(args.junit, junit_xml(report)) and is_written
    lines: list[str] = []
    if args.annotate:
        from triaged.verdict.annotations import github_lines, gitlab_lines

        lines = list(github_lines(report) if args.annotate == "github" else gitlab_lines(report))
    elif not is_reported and not _is_no_news(report, args.quiet):
        lines = verdict_lines(report, style_for(sys.stderr, args.color), known_findings(report, args.bus))
    if lines:
        _say("\n".join(("", *lines)))  # the command's last line may have no end; an annotation has to begin one
    return is_written


def _is_no_news(report: Report, is_quiet: bool) -> bool:
    """Whether nobody wants to hear the verdict. Who has pressed Ctrl-C knows why the command ended."""
    from triaged.verdict.report import Verdict

    was_interrupted = report.verdict is Verdict.CODE and report.exit_status == ExitStatus.INTERRUPTED
    return was_interrupted or (is_quiet and report.verdict is not Verdict.MACHINE)


def _write(path: str, text: str) -> bool:
    """Writes the file, and says so where it cannot. Whether it could."""
    try:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        _warn(f"{path}: {os.strerror(error.errno or 0).lower()}")
        return False
    return True
