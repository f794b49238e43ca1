# SPDX-License-Identifier: Apache-2.0
"""The commands of triagectl and the parser of its command line.

A command is a module of this package with `add_parser(subparsers)` and `run(args) -> int`. Only the module of the
command that was typed is imported: `triagectl --help` costs no more than argparse.
"""
from __future__ import annotations

import argparse
import importlib
import os

from triaged import __version__

TYPE_CHECKING = False  # as typing's own, without importing it: a fifth of the time that --help takes
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

    class CommandModule(Protocol):
        """What a command's module offers."""

        def add_parser(self, subparsers: Subparsers) -> object:
            """Adds the command's own parser, under the command's name and summary."""

        def run(self, args: argparse.Namespace) -> int:
            """Does it. Gives the exit status. Raises TriagedError for what a person should be told."""


class Command:
    """A command's name, what it does in one line, and the module below `triaged.cli` that does it."""

    __slots__ = ("module", "name", "summary")

    def __init__(self, name: str, summary: str, module: str) -> None:
        self.name = name
        self.summary = summary
        self.module = module


COMMANDS: tuple[Command, ...] = (
    Command("scan", "look once at this machine, without the daemon", "scan"),
    Command("status", "how the daemon and its sources stand", "status"),
    Command("list", "the findings of the daemon", "list"),
    Command("show", "one finding with its evidence and fixes", "show"),
    Command("watch", "print findings as they come", "watch"),
    Command("fix", "preview and apply the fix of a finding", "fix"),
    Command("undo", "put back what a fix changed", "undo"),
    Command("dismiss", "say that a finding does not matter", "dismiss"),
    Command("check", "hold policies against this machine, as a gate", "check"),
    Command("inspect", "every limit of a process or unit, and which binds first", "inspect"),
    Command("explain", "which limit gives an error, and how each stands", "explain"),
    Command("run", "run a command, and say which of its failures are the machine's", "run"),
    Command("seccomp", "what seccomp filters refuse, and profiles that fit", "seccomp"),
    Command("log", "what the journal says of a unit's findings", "log"),
    Command("rules", "what triaged can find: the rule manual", "rules"),
    Command("completion", "print the completion script of a shell", "completion"),
)


def load(command: Command) -> CommandModule:
    """The module of a command, imported."""
    module: Any = importlib.import_module(f"triaged.cli.{command.module}")
    found: CommandModule = module
    return found


def command_named(name: str) -> Command | None:
    """The command of that name, or None."""
    return next((command for command in COMMANDS if command.name == name), None)


def typed_command(words: Sequence[str]) -> Command | None:
    """The command that a command line names, found without a parser; None where it names none."""
    takes_value = False
    for word in words:
        if takes_value:
            takes_value = False
        elif word in ("--bus", "--color"):
            takes_value = True
        elif not word.startswith("-"):
            return command_named(word)
    return None


def add_shared_options(parser: argparse.ArgumentParser, *, is_top: bool = False) -> None:
    """The options that stand before or after the command. Below the top they have no default, so as not to undo it."""
    bus: Any = os.environ.get("TRIAGED_BUS") or os.environ.get("TRIAGED_BUS_ADDRESS") or "system"
    color: Any = "auto"
    if not is_top:
        bus = color = argparse.SUPPRESS
    parser.add_argument(
        "--bus", metavar="BUS", default=bus,
        help="the message bus where the daemon is: system, session, or an address (default: $TRIAGED_BUS, else system)",
    )
    parser.add_argument(
        "--color", metavar="WHEN", choices=("auto", "always", "never"), default=color,
        help="colours: auto (on a terminal, unless $NO_COLOR is set), always, never",
    )


def build_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser. With `words`, only the command that they name has its options; without, every command is loaded.

    The latter is for what is made from the parser: completions, the manual, tests.
    """
    parser = argparse.ArgumentParser(
        prog="triagectl",
        description="Finds out which limit of the operating system broke a test run, and proves it.",
        epilog="'triagectl COMMAND --help' says more about a command. See triagectl(1).",
        allow_abbrev=False,  # `typed_command` knows only whole options
    )
    parser.add_argument("--version", action="version", version=f"triagectl {__version__}")
    add_shared_options(parser, is_top=True)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    wanted = typed_command(words) if words is not None else None
    for command in COMMANDS:
        if words is None or command is wanted:
            load(command).add_parser(subparsers)
            add_shared_options(subparsers.choices[command.name])
        else:
            subparsers.add_parser(command.name, help=command.summary, add_help=False)
    return parser
