# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp dump` and `disasm`: the filters of a process, and any filter readably."""
from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triaged.cli import seccomp_data as data
from triaged.cli.exit_status import ExitStatus
from triaged.cli.seccomp_check import setting_of, workloads_of
from triaged.cli.style import safe, wrapped
from triaged.errors import ConfigError, Malformed
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_dump import FilterDump, read_filters
from triaged.seccomp.action import Action
from triaged.seccomp.bpf import Program, SeccompData, is_never_filtered, parse_program, run_stacked
from triaged.seccomp.check import Answer, CheckResult, Outcome, check_workload
from triaged.seccomp.compiler import compiled
from triaged.seccomp.disassembly import disassemble
from triaged.seccomp.outcomes import demands_text, outcomes_of
from triaged.seccomp.syscalls import audit_arch_of, names_on, native_arch, number_of

_WIDTH = 110


@dataclass(frozen=True)
class Installed:
    """The filters of a process, decoded, newest first, and the architecture that they are asked about."""

    dump: FilterDump
    programs: tuple[Program, ...]
    arch: str

    def answers(self, call: str) -> tuple[Answer, ...] | None:
        """All that the filters can answer to a call, strictest first; None where the architecture has no such call."""
        number = number_of(self.arch, call)
        if number is None:
            return None
        audit_arch = audit_arch_of(self.arch)
        found = outcomes_of(self.programs, number, audit_arch)
        conditions: dict[Action, list[str]] = {action: [] for action in found.actions}
        for outcome in found.outcomes:
            conditions[outcome.action].append(demands_text(outcome.demands, audit_arch))
        return tuple(
            (action, "" if len(conditions) == 1 else " or ".join(texts) if len(texts) <= 4 else f"{len(texts)} cases")
            for action, texts in conditions.items()
        )

    def decide(self, call: str, arguments: tuple[int, ...]) -> Action:
        """The answer for certain arguments."""
        return run_stacked(self.programs, SeccompData(number_of(self.arch, call) or 0, audit_arch_of(self.arch), arguments))


def read_installed(pid: int, arch: str) -> Installed:
    """The filters of a process, ready to be asked. Raises: Gone, NotPermitted, InterfaceMissing, KernelError, Malformed."""
    dump = read_filters(KernelPaths(), pid)
    return Installed(dump, tuple(parse_program(one.instructions) for one in dump.filters), arch)


def run_dump(args: argparse.Namespace) -> int:
    """Dumps. The exit status is 1 where a workload that was asked about breaks. Raises TriagedError."""
    needs = data.read_needs() if args.workload else None
    workloads = workloads_of(needs, args.workload) if needs else ()
    found = read_installed(args.pid, native_arch())
    for at, one in enumerate(found.dump.filters if args.output else ()):
        with open(f"{args.output}.{at}", "wb") as file:
            file.write(one.instructions)
    unknown = [name for name in args.call if number_of(found.arch, name) is None]
    if unknown:
        raise ConfigError("--call", 0, f"{found.arch} has no call {unknown[0]!r}")
    results = [check_workload(found.answers, needs, name, decide=found.decide) for name in workloads] if needs else []
    answers = {call: found.answers(call) or () for call in args.call or names_on(found.arch)}
    if args.json:
        print(json.dumps(_document(found, answers, results), indent=2))
    else:
        for line in _report(found, answers, results):
            print(line)
    return ExitStatus.FINE if all(result.works for result in results) else ExitStatus.FOUND


def _report(found: Installed, answers: dict[str, tuple[Answer, ...]], results: Sequence[CheckResult]) -> list[str]:
    dump = found.dump
    if dump.mode != "filter":
        what = {"none": "has no seccomp filter: seccomp refuses it nothing", "strict": "may only read, write and exit (strict)"}
        return [f"process {dump.pid} {what.get(dump.mode, dump.mode)}"]
    out = [f"process {dump.pid}: {len(dump.filters)} filters, newest first; it stood still for {dump.stopped_ns / 1e6:.2f} ms"]
    for at, (one, program) in enumerate(zip(dump.filters, found.programs, strict=True)):
        logged = ", refusals are logged" if one.is_logged else ", refusals are not logged" if at == 0 else ""
        out.append(f"  #{at}: {len(program)} instructions{logged}")
    by_answer: dict[Action, list[str]] = {}
    conditional: list[tuple[str, tuple[Answer, ...]]] = []
    for call, given in answers.items():
        if is_never_filtered(audit_arch_of(found.arch), number_of(found.arch, call) or 0):
            continue
        if len(given) == 1:
            by_answer.setdefault(given[0][0], []).append(call)
        else:
            conditional.append((call, given))
    for action, calls in sorted(by_answer.items(), key=lambda item: item[0].is_allowed):
        out += ["", f"{action} ({action.effect}): {len(calls)} calls"]
        if not action.is_allowed or len(calls) <= 40:
            out += wrapped(", ".join(sorted(calls)), _WIDTH, "  ")
    if conditional:
        out += ["", f"depending on arguments: {len(conditional)} calls"]
        for call, given in sorted(conditional):
            for action, condition in given:
                out += wrapped(f"{action} if {condition}", _WIDTH, f"  {call:<18} ", " " * 22)
    for result in results:
        out += ["", *_verdict(result)]
    return out


def _verdict(result: CheckResult) -> list[str]:
    out = [f"{result.workload}: " + ("works, as far as is known" if result.works else "does not work under these filters")]
    for verdict in (*result.of(Outcome.BREAKS), *result.of(Outcome.DEPENDS)):
        effect = "; ".join(action.effect for action, _ in verdict.answers if not action.is_allowed)
        effect += f"; shows: {safe(verdict.shows)}" if verdict.shows else ""
        out += wrapped(effect, _WIDTH, f"  {verdict.call:<18} ", " " * 21)
    return out


def _document(found: Installed, answers: dict[str, tuple[Answer, ...]], results: Sequence[CheckResult]) -> dict[str, Any]:
    return {
        "pid": found.dump.pid, "mode": found.dump.mode, "arch": found.arch, "no_new_privileges": found.dump.has_no_new_privileges,
        "stopped_usec": found.dump.stopped_ns // 1000,
        "filters": [
            {"instructions": len(program), "logged": one.is_logged}
            for one, program in zip(found.dump.filters, found.programs, strict=True)
        ],
        "calls": {
            call: [{"action": str(action), "condition": condition} for action, condition in given]
            for call, given in answers.items()
        },
        "workloads": [
            {"name": result.workload, "works": result.works,
             "breaks": {verdict.call: verdict.shows for verdict in result.of(Outcome.BREAKS)}}
            for result in results
        ],
    }


def run_disasm(args: argparse.Namespace) -> int:
    """Disassembles. Raises TriagedError."""
    setting = setting_of(args)
    programs = _programs(args.what, args)
    for at, program in enumerate(programs):
        if len(programs) > 1:
            print(f"{'' if at == 0 else chr(10)}# filter {at}{' (the newest)' if at == 0 else ''}: {len(program)} instructions")
        for line in disassemble(program, audit_arch_of(setting.arch)):
            print(line)
    return ExitStatus.FINE


def _programs(what: str, args: argparse.Namespace) -> tuple[Program, ...]:
    if what.isdecimal() and not os.path.exists(what):
        found = read_installed(int(what), native_arch())
        if not found.programs:
            raise ConfigError(f"process {what}", 0, "has no seccomp filter")
        return found.programs
    if os.path.isfile(what):
        with open(what, "rb") as file:
            content = file.read(data.MAX_PROFILE_BYTES)
        if b"\0" in content or not content:  # every instruction has a zero byte, no profile has one
            try:
                return (parse_program(content),)
            except Malformed as error:
                raise ConfigError(what, 0, f"is no seccomp filter: {error}") from error
    return (compiled(data.resolved(data.read_profile(what), setting_of(args))),)
