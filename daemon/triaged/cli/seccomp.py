# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp`: what filters refuse, what they would refuse, and the smallest profile that works."""
from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING, Any

from triaged.cli.exit_status import ExitStatus
from triaged.errors import ConfigError, TriagedError

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers

_MODULES = {
    "check": "seccomp_check", "dump": "seccomp_show", "disasm": "seccomp_show", "run": "seccomp_run", "record": "seccomp_record",
    "merge": "seccomp_record",
}
METHODS = ("auto", "tracefs", "audit", "ptrace")
RUNTIMES = ("docker", "podman", "containerd", "cri-o")


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl seccomp`."""
    parser = subparsers.add_parser(
        "seccomp", help="what seccomp filters refuse, and profiles that fit",
        description="Says what a seccomp filter or profile does to a workload, and makes the smallest profile that works.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_check(actions)
    _add_dump(actions)
    _add_disasm(actions)
    _add_run(actions)
    _add_record(actions)
    _add_merge(actions)


def _count(word: str) -> int:
    if not word.isascii() or not word.isdecimal() or not 0 < int(word) < 1 << 31:
        raise argparse.ArgumentTypeError(f"a number from 1 up is wanted, not {word!r}")
    return int(word)


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e7:
        raise argparse.ArgumentTypeError(f"a number of seconds is wanted, not {word!r}")
    return seconds


def _profile_setting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", metavar="ARCH", help="the machine's architecture (default: this machine's)")
    parser.add_argument(
        "--caps", metavar="CAPS", default="default",
        help="the container's bounding set: none, default (what Docker gives), all, or a list: SYS_ADMIN,BPF",
    )
    parser.add_argument("--kernel", metavar="VERSION", default="", help="the kernel: 6.12 (default: this one)")
    parser.add_argument("--runtime", choices=RUNTIMES, default="docker", help="what applies the profile (default: docker)")


def _toolchain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--toolchain", metavar="GO", default="", help="needs as measured with this toolchain: go1.19 (default: the newest)"
    )


def _add_check(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "check", help="hold a profile against what workloads need",
        description="Says for each system call that a workload makes what the profile does to it, whether the workload can do "
                    "without, and what it prints if not. PROFILE is a file of OCI JSON (Docker, Podman, containerd, Kubernetes' "
                    "localhostProfile), a systemd unit or list of SystemCallFilter=, or a default by name: docker, podman-0.62.",
    )
    parser.add_argument("profile", metavar="PROFILE")
    parser.add_argument("--workload", metavar="NAMES", default="go-test", help="workloads, with commas, or all (default: go-test)")
    _toolchain(parser)
    _profile_setting(parser)
    parser.add_argument("--fix", metavar="FILE", help="write a profile under which the workloads work to FILE")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the calls that are allowed, too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_dump(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "dump", help="what the filters of a process answer",
        description="Reads the filters out of a process, newest first, and says which calls they refuse. Needs root, and must not "
                    "run under a filter itself; other users get from triaged, about their own processes, what that does to "
                    "workloads. The process stands still for less than a millisecond.",
    )
    parser.add_argument("pid", metavar="PID", type=_count)
    parser.add_argument("--workload", metavar="NAMES", default="", help="hold the filters against workloads, with commas, or all")
    _toolchain(parser)
    parser.add_argument("--call", metavar="NAME", action="append", default=[], help="only this call (may be given again)")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the filters to FILE.0 (the newest), FILE.1, ...")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_disasm(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "disasm", help="print a filter readably",
        description="Prints filters instruction by instruction, with the names of calls, architectures and actions. WHAT is a file "
                    "of raw instructions (as dump -o and seccomp-tools write it), a profile that is compiled first, or a PID.",
    )
    parser.add_argument("what", metavar="WHAT")
    _profile_setting(parser)


def _add_run(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "run", help="run a command under a profile", usage="triagectl seccomp run --profile PROFILE [options] -- COMMAND ...",
        description="Loads a profile and runs a command under it. The exit status is the command's; 128 and the signal's number if "
                    "a signal ended it.",
    )
    parser.add_argument("--profile", metavar="PROFILE", required=True, action="append", help="may be given again: filters stack")
    parser.add_argument("--log", action="store_true", help="have refusals logged (SECCOMP_FILTER_FLAG_LOG)")
    _profile_setting(parser)
    parser.add_argument("command_line", metavar="COMMAND", nargs=argparse.REMAINDER)


def _add_record(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "record", help="make the smallest profile under which a command works",
        usage="triagectl seccomp record [options] -- COMMAND ...",
        description="Runs a command, observes every system call of all that it starts, writes a profile that allows these and no "
                    "others, and runs the command again under it, until it passes.",
    )
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="where the profile goes (default: standard output)")
    parser.add_argument("--format", choices=("oci", "systemd"), default="oci", help="OCI JSON, or a drop-in with SystemCallFilter=")
    parser.add_argument("--base", metavar="PROFILE", help="give the difference to this profile; with -o write it, extended")
    parser.add_argument(
        "--bare", action="store_true", help="leave out what a container runtime calls before it starts the command"
    )
    parser.add_argument("--method", choices=METHODS, default="auto", help="how to observe (default: the best that is to be had)")
    parser.add_argument("--deny", metavar="ERRNO", default="EPERM", help="what other calls get: an errno, or kill (default: EPERM)")
    parser.add_argument("--runs", metavar="N", type=_count, default=1, help="how often to observe before the profile is tried")
    parser.add_argument("--tries", metavar="N", type=_count, default=5, help="how often the profile is tried and corrected")
    parser.add_argument("--no-verify", action="store_true", help="do not run the command again under the profile")
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=600, help="for each run (default: 600)")
    parser.add_argument("--workload", metavar="NAME", default="", help="name to note the calls under (default: the command's)")
    parser.add_argument("command_line", metavar="COMMAND", nargs=argparse.REMAINDER)


def _add_merge(actions: Subparsers) -> None:
    parser = actions.add_parser(
        "merge", help="one profile that allows what any of several allows",
        description="Merges OCI profiles that have the same default action. The result does not depend on their order.",
    )
    parser.add_argument("profiles", metavar="PROFILE", nargs="+")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="where the profile goes (default: standard output)")


def run(args: argparse.Namespace) -> int:
    """Does it. Raises TriagedError."""
    words: list[str] = getattr(args, "command_line", [])
    if words[:1] == ["--"]:  # argparse drops it, or not, depending on its version
        args.command_line = words = words[1:]
    if hasattr(args, "command_line") and not words:
        raise ConfigError(f"seccomp {args.action}", 0, "no command was given", "write it behind --")
    module: Any = importlib.import_module(f"triaged.cli.{_MODULES[args.action]}")
    status: int = getattr(module, f"run_{args.action}")(args)
    return status


def main(words: list[str] | None = None) -> int:
    """The command alone: `python -m triaged.cli.seccomp check ...`."""
    parser = argparse.ArgumentParser(prog="python -m triaged.cli.seccomp")
    add_parser(parser.add_subparsers(dest="command"))
    try:
        return run(parser.parse_args(["seccomp", *(sys.argv[1:] if words is None else words)]))
    except TriagedError as error:
        print(f"triagectl: {error.shown()}", file=sys.stderr)
        return ExitStatus.COULD_NOT_LOOK


if __name__ == "__main__":
    sys.exit(main())
