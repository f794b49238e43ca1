# SPDX-License-Identifier: Apache-2.0
"""triaged: arguments, logging, and the event loop; nothing else."""
from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys

from triaged import __version__
from triaged.errors import ConfigError, TriagedError

EX_CONFIG = 78  # sysexits.h; systemd shows it as EXIT_CONFIG


class JournalFormatter(logging.Formatter):
    """Lines with the priority prefix that journald reads from standard error (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        priority = 3 if record.levelno >= logging.ERROR else 4 if record.levelno >= logging.WARNING else 6
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse makes one for every option, and without a width each asks shutil for the terminal's: 0.7 MB with its compressors.
    try:
        width = os.get_terminal_size().columns
    except (OSError, ValueError):
        width = 80
    return argparse.HelpFormatter(prog, width=max(width - 2, 40))


def build_parser() -> argparse.ArgumentParser:
    """The daemon's command line; docs/man/triaged.8 describes it."""
    parser = argparse.ArgumentParser(
        prog="triaged",
        description="Watches this machine's limits and says over D-Bus which of them was hit.",
        epilog="Clients: triagectl(1), busctl(1). Configuration: triaged.toml(5). Ctrl-C or SIGTERM ends it, SIGHUP reloads it.",
        allow_abbrev=False,
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"triaged {__version__}")
    parser.add_argument(
        "--bus",
        metavar="BUS",
        default="auto",
        help="system, session, private (a bus of its own), none, an address, or auto: the system bus where this user may own the "
        "name there, otherwise a private one (default: auto)",
    )
    parser.add_argument("--state-directory", metavar="DIR", help="where findings are kept (default: from the configuration)")
    parser.add_argument("--no-state", action="store_true", help="keep findings in memory only")
    parser.add_argument(
        "--print-findings",
        action=argparse.BooleanOptionalAction,
        default=sys.stdout is not None and sys.stdout.isatty(),
        help="print sources, the line that queries the daemon, and findings as they come (default: on a terminal)",
    )
    return parser


def set_up_logging() -> None:
    """Log lines on standard error; with priorities where journald reads it."""
    handler = logging.StreamHandler()
    in_journal = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(JournalFormatter("%(message)s") if in_journal else logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def leave_out_openssl() -> None:
    """Hides what would load OpenSSL for nothing: asyncio imports ssl, hashlib imports _hashlib. To be called before either.

    Measured on 6.18 with Python 3.11 (2026-11-26): 29.2 MB resident with both, 24.4 MB without; a bare asyncio process has 20.2.
    """
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    if importlib.util.find_spec("_sha2") or importlib.util.find_spec("_sha256"):  # hashlib's own, from 3.12 and before it
        sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]


def main() -> int:
    """Runs the daemon. The exit status: 0 after a signal, 78 for a configuration that is wrong, 1 for anything else."""
    arguments = build_parser().parse_args()
    set_up_logging()
    leave_out_openssl()
    import asyncio

    from triaged.daemon import Options, run

    options = Options(
        bus=arguments.bus,
        state_directory="" if arguments.no_state else arguments.state_directory,
        print_findings=arguments.print_findings,
    )
    try:
        asyncio.run(run(options))
    except ConfigError as error:
        print(f"triaged: {error.shown()}", file=sys.stderr)
        return EX_CONFIG
    except TriagedError as error:
        print(f"triaged: {error.shown()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
