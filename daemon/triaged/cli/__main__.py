# SPDX-License-Identifier: Apache-2.0
"""triagectl: arguments, the border where errors become text, and the exit status."""
from __future__ import annotations

import io
import os
import sys

from triaged.cli.commands import build_parser, load, typed_command
from triaged.cli.exit_status import ExitStatus
from triaged.errors import BusError, TriagedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def say_error(message: str, remedy: str) -> None:
    """Writes what failed and, on its own line, what to do next."""
    from triaged.cli.style import safe

    print(f"triagectl: {safe(message)}", file=sys.stderr)
    if remedy:
        print(f"           {safe(remedy)}", file=sys.stderr)


def _run(words: Sequence[str]) -> int:
    parser = build_parser(words)
    args = parser.parse_args(words)
    command = typed_command(words)
    if command is None:
        parser.print_help()
        return ExitStatus.COULD_NOT_LOOK
    return load(command).run(args)


def main(words: Sequence[str] | None = None) -> int:
    """Runs triagectl. Gives the exit status; argparse leaves by SystemExit for --help, --version and wrong arguments."""
    # asyncio imports ssl if it is there; nothing here needs it, and it is a tenth of the time that `list` takes.
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    if sys.stderr is None:  # closed by whoever started this; print() would take standard output instead
        sys.stderr = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 gets escapes, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if words is None else words
    command = typed_command(words)
    # Closed by whoever started this: nothing can be said. Only `run` writes nothing there itself.
    if sys.stdout is None and (command is None or command.name != "run"):
        say_error("cannot write the output: standard output is closed", "")
        return ExitStatus.COULD_NOT_LOOK
    try:
        try:
            return int(_run(words))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except TriagedError as error:
        say_error(str(error), error.remedy)
        return ExitStatus.NO_DAEMON if isinstance(error, BusError) else ExitStatus.COULD_NOT_LOOK
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return ExitStatus.OUTPUT_CLOSED
    except OSError as error:
        _forget_output()
        say_error(f"{error.filename or 'cannot write the output'}: {os.strerror(error.errno or 0).lower()}", "")
        return ExitStatus.COULD_NOT_LOOK


def _forget_output() -> None:
    # What is left in stdout's buffer would fail again when the interpreter closes it.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)


if __name__ == "__main__":
    sys.exit(main())
