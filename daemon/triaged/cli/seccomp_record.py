# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp record` and `merge`: the smallest profile under which a command works, proved by running it."""
from __future__ import annotations

import argparse
import difflib
import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from triaged.cli import seccomp_data as data
from triaged.cli.exit_status import ExitStatus
from triaged.cli.style import safe
from triaged.errors import ConfigError, InterfaceMissing, KernelError, NotPermitted
from triaged.kernel.call_observers import Call, Method, Observation, observe
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_load import LoadedFilter
from triaged.seccomp import oci, proposal, recording, systemd_filter
from triaged.seccomp.action import KILL_PROCESS, Action, ActionKind
from triaged.seccomp.bpf import Program, SeccompData
from triaged.seccomp.compiler import compiled
from triaged.seccomp.oci import Profile, Setting
from triaged.seccomp.policy import Policy
from triaged.seccomp.recording import Recording
from triaged.seccomp.syscalls import audit_arch_of, name_of, native_arch, number_of
from triaged.workload_needs import read_runtime_calls


def _say(text: str) -> None:
    print(f"triagectl: {safe(text)}", file=sys.stderr)


def label_of(argv: Sequence[str]) -> str:
    """What to note calls under: the command and, of tools with subcommands, the first word: "go test"."""
    name = os.path.basename(argv[0])
    word = next((word for word in argv[1:] if not word.startswith("-")), "")
    return f"{name} {word}" if name in ("go", "make", "npm", "cargo", "python3") and word.isalpha() else name


def denial_of(word: str) -> Action:
    """The action that `--deny` names. Raises: ConfigError."""
    if word == "kill":
        return KILL_PROCESS
    number = getattr(errno, word.upper(), None)
    if not isinstance(number, int):
        raise ConfigError("--deny", 0, f"unknown errno {word!r}", "give one as EPERM or ENOSYS, or kill")
    return Action(ActionKind.ERRNO, number)


@dataclass
class Recorder:
    """Runs the command, with and without filters, and keeps what it learned."""

    argv: Sequence[str]
    method: Method | None
    timeout_s: float
    found: Recording
    paths: KernelPaths = field(default_factory=KernelPaths)

    def observe(self) -> Observation:
        """One run without filters. Chooses the method if that is still open.

        Raises: NotPermitted, InterfaceMissing, KernelError.
        """
        candidates = [self.method] if self.method else list(Method)
        for candidate in candidates:
            try:
                observation = observe(candidate, self.paths, self.argv, self._note, timeout_s=self.timeout_s,
                                      load_number=self._load_number())
            except (NotPermitted, InterfaceMissing) as error:
                if candidate is candidates[-1]:
                    raise
                _say(f"{candidate.value} is not to be had: {error.shown()}")
            else:
                self.method = candidate
                return observation
        raise KernelError("seccomp", "no method to observe calls")

    def try_under(self, program: Program, arch: str) -> tuple[Observation, dict[str, set[str]]]:
        """One run under a filter: how it went, and the calls that were refused with the programs that made them."""
        assert self.method is not None
        refused: dict[str, set[str]] = {}
        audit_arch = audit_arch_of(arch)

        def sink(call: Call) -> None:
            is_refused = call.value is not None
            if self.method is Method.PTRACE:  # its stops come before the filter: ask the evaluator
                answer = program.run(SeccompData(call.number, call.arch or audit_arch, call.arguments))
                is_refused = not Action.of(answer).is_allowed
            if is_refused:
                refused.setdefault(name_of(audit_arch, call.number), set()).add(call.program)
            else:
                self._note(call)

        filters = [LoadedFilter(program.packed(), is_logged=self.method is Method.AUDIT)]
        observation = observe(self.method, self.paths, self.argv, sink, filters=filters, load_number=self._load_number(),
                              timeout_s=self.timeout_s)
        return observation, refused

    def _note(self, call: Call) -> None:
        self.found.add(os.path.basename(call.program), call.number, call.arguments)

    def _load_number(self) -> int:
        return number_of(self.found.arch, "seccomp") or 0


@dataclass(frozen=True)
class Target:
    """What is written: a profile of a certain form, made from a recording."""

    format: str
    denial: Action
    label: str
    setting: Setting
    base: Profile | None = None
    runtimes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def profile(self, found: Recording) -> Profile:
        """The OCI profile (for systemd the one that is tried has the same calls)."""
        if self.base is None:
            return recording.profile_of(found, self.denial, self.label, self.runtimes)
        missing = recording.missing_from(oci.resolved(self.base, self.setting), found)
        return proposal.extended(self.base, missing, self.setting, f"needed by {self.label}") if missing else self.base

    def text(self, found: Recording) -> str:
        """The file."""
        if self.format == "systemd":
            return recording.drop_in_of(found, self.denial, self.label)
        return oci.written(self.profile(found))

    def policy(self, found: Recording) -> Policy:
        """What the file comes to."""
        if self.format == "systemd":
            return systemd_filter.resolved(systemd_filter.parse_filter(self.text(found), "drop-in", data.read_groups()), found.arch)
        return oci.resolved(self.profile(found), self.setting)

    def refused_on_purpose(self, found: Recording) -> frozenset[str]:
        """Calls whose refusal is the profile's intention."""
        return frozenset() if self.format == "systemd" else recording.expected_refusals(self.profile(found), self.setting)


def run_record(args: argparse.Namespace) -> int:
    """Records. The exit status is 1 where no profile was found under which the command passes. Raises TriagedError."""
    _check_writable(args.output)
    before = signal.signal(signal.SIGTERM, _told_to_end)
    try:
        return _recorded(args)
    finally:
        signal.signal(signal.SIGTERM, before)


def _recorded(args: argparse.Namespace) -> int:
    arch = native_arch()
    if args.base and args.format == "systemd":
        raise ConfigError("--base", 0, "is for OCI profiles")
    base = data.read_profile(args.base) if args.base else None
    if base is not None and not isinstance(base, Profile):
        raise ConfigError("--base", 0, "is for OCI profiles")
    setting = data.setting_for(arch, "default", "", "docker")
    if base is None:  # a profile of our own says all; runc's rule for newer calls would only hide what it leaves out
        setting = replace(setting, low_level="crun")
    runtimes = {} if args.bare else read_runtime_calls(arch)
    target = Target(args.format, denial_of(args.deny), args.workload or label_of(args.command_line), setting, base, runtimes)
    method = None if args.method == "auto" else Method(args.method)
    recorder = Recorder(args.command_line, method, args.timeout, Recording(arch))
    status = 0
    for _ in range(max(args.runs, 1)):
        observation = recorder.observe()
        status = observation.status
        if observation.events_lost:
            _say(f"{observation.events_lost} events were lost; what they held will show when the profile is tried")
    how = recorder.method.value if recorder.method else ""
    _say(f"{len(recorder.found.programs)} calls observed with {how} in {max(args.runs, 1)} runs")
    if observation.timed_out:
        raise KernelError(args.command_line[0], f"was ended after {args.timeout:g} s", "give a longer --timeout")
    if status:
        _say(f"the command fails without any profile: {_ending(status)}; the profile will be for that")
    passes = True
    if not args.no_verify:
        passes = _verify(recorder, target, status, max(args.tries, 1))
    _write(args, target, recorder.found)
    return ExitStatus.FINE if passes else ExitStatus.FOUND


def _told_to_end(number: int, _: object) -> None:
    raise SystemExit(128 + number)  # the trace goes, and the command with it


def _check_writable(path: str) -> None:
    """Raises ConfigError where the profile could not be written: better said before the command has run for an hour."""
    directory = os.path.dirname(path) or "."
    if path == "-":
        return
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else directory, os.W_OK):
        raise ConfigError(path, 0, "cannot be written", "name a file in a directory that is there and may be written to")


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _verify(recorder: Recorder, target: Target, status: int, tries: int) -> bool:
    """Runs the command under the profile until nothing is refused any more, adding what was; whether it passes in the end."""
    found = recorder.found
    ends_alike = False
    for _ in range(tries):
        program = compiled(target.policy(found))
        observation, refused = recorder.try_under(program, found.arch)
        ends_alike = observation.status == status and not observation.timed_out
        on_purpose = target.refused_on_purpose(found) - (set() if ends_alike else {"clone3"})
        added = {name: programs for name, programs in refused.items() if name not in on_purpose}
        if not added:
            if ends_alike:
                _say("verified: the command ran under the profile, and nothing that it did was refused")
                return True
            _say(f"under the profile the command ends differently ({_ending(observation.status)}), though nothing was refused that "
                 "the profile could allow: it sees that it is filtered (no_new_privs), or does not behave the same each time")
            continue
        for name, programs in sorted(added.items()):
            if name == "clone3":
                found.needs_clone3 = True
            elif name == "clone":
                found.makes_namespaces = True
            number = number_of(found.arch, name)
            for each in programs:
                if number is not None:
                    found.add(os.path.basename(each), number)
            who = ", ".join(sorted(os.path.basename(each) for each in programs))
            _say(f"added {name}: refused to {who} when the profile was tried ({_ending(observation.status)})")
    _say(f"after {tries} tries " + ("the command passes, but calls were still refused in the last one; try once more" if ends_alike
                                    else "the command does not pass under the profile"))
    return ends_alike


def _write(args: argparse.Namespace, target: Target, found: Recording) -> None:
    text = target.text(found)
    if found.unknown:
        numbers = ", ".join(str(number) for number in sorted(found.unknown))
        _say(f"calls without a name cannot be in a profile: {numbers}")
    if target.base is not None:
        before = oci.written(target.base)
        missing = recording.missing_from(oci.resolved(target.base, target.setting), found)
        _say(f"{args.base} lacks {', '.join(missing)}" if missing else f"{args.base} allows all that was recorded")
        diff = "".join(difflib.unified_diff(before.splitlines(True), text.splitlines(True), args.base, args.output))
        if args.output == "-":
            print(diff, end="")
            return
    if args.output == "-":
        print(text, end="")
        return
    _save(args.output, text)
    steps = proposal.steps_for(args.output, "docker") if target.format == "oci" else ()
    for step in steps[:1]:
        _say(f"to use it: {' '.join(step.commands[0])}")
    if target.format == "systemd":
        _say(f"to use it: install -D -m 644 {args.output} /etc/systemd/system/UNIT.d/50-seccomp.conf && systemctl daemon-reload")


def _save(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(path, 0, f"cannot be written: {error.strerror}") from error


def run_merge(args: argparse.Namespace) -> int:
    """Merges. Raises: ConfigError."""
    profiles = [data.read_profile(name) for name in args.profiles]
    wrong = next((name for name, profile in zip(args.profiles, profiles, strict=True) if not isinstance(profile, Profile)), None)
    if wrong:
        raise ConfigError(wrong, 0, "is no OCI profile")
    try:
        merged = proposal.merged([profile for profile in profiles if isinstance(profile, Profile)])
    except ValueError as error:
        raise ConfigError(args.profiles[0], 0, str(error)) from error
    text = oci.written(merged)
    if args.output == "-":
        print(text, end="")
    else:
        _save(args.output, text)
    return ExitStatus.FINE
