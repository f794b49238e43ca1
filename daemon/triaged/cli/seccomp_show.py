# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp dump` and `disasm`: the filters of a process, and any filter readably."""
from __future__ import annotations

import argparse
import json
import os
from typing import Any

from triaged.cli import seccomp_data as data
from triaged.cli.exit_status import ExitStatus
from triaged.cli.seccomp_check import setting_of
from triaged.cli.style import safe, wrapped
from triaged.errors import ConfigError, Gone, Malformed, NotPermitted
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_dump import read_filters
from triaged.seccomp.action import Action
from triaged.seccomp.assessment import Assessment, assess
from triaged.seccomp.bpf import Program, is_never_filtered, parse_program
from triaged.seccomp.check import Answer, CheckResult, Outcome
from triaged.seccomp.compiler import compiled
from triaged.seccomp.disassembly import disassemble
from triaged.seccomp.installed import Installed, installed
from triaged.seccomp.syscalls import audit_arch_of, names_on, native_arch, number_of
from triaged.workload_needs import read_needs, workloads_of

_WIDTH = 110


def read_installed(pid: int, arch: str) -> Installed:
    """The filters of a process, ready to be asked. Raises: ConfigError, NotPermitted, InterfaceMissing, KernelError, Malformed."""
    try:
        return installed(read_filters(KernelPaths(), pid), arch)
    except Gone as error:
        raise ConfigError(f"process {pid}", 0, "there is none (any more)") from error


def run_dump(args: argparse.Namespace) -> int:
    """Dumps. The exit status is 1 where a workload that was asked about breaks. Raises TriagedError."""
    needs = read_needs(args.toolchain) if args.workload or args.toolchain else None
    workloads = workloads_of(needs, args.workload or "go-test") if needs else ()
    try:
        found = read_installed(args.pid, native_arch())
    except NotPermitted as error:
        from triaged.cli.seccomp_asked import asked_dump

        return asked_dump(args, error)
    for at, one in enumerate(found.dump.filters if args.output else ()):
        with open(f"{args.output}.{at}", "wb") as file:
            file.write(one.instructions)
    unknown = [name for name in args.call if number_of(found.arch, name) is None]
    if unknown:
        raise ConfigError("--call", 0, f"{found.arch} has no call {unknown[0]!r}")
    assessment = assess(found, needs, workloads) if needs else None
    results = assessment.results if assessment else ()
    answers = {call: found.answers(call) or () for call in args.call or names_on(found.arch)}
    if args.json:
        print(json.dumps(_document(found, answers, assessment), indent=2))
    else:
        for line in _report(found, answers, assessment):
            print(line)
    return ExitStatus.FINE if all(result.works for result in results) else ExitStatus.FOUND


def _report(found: Installed, answers: dict[str, tuple[Answer, ...]], assessment: Assessment | None) -> list[str]:
    dump = found.dump
    if dump.mode != "filter":
        what = {"none": "has no seccomp filter: seccomp refuses it nothing", "strict": "may only read, write and exit (strict)"}
        return [f"process {dump.pid} {what.get(dump.mode, dump.mode)}"]
    filters = "1 filter" if len(dump.filters) == 1 else f"{len(dump.filters)} filters, newest first"
    out = [f"process {dump.pid}: {filters}; it stood still for {dump.stopped_ns / 1e6:.2f} ms"]
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
    for result in assessment.results if assessment else ():
        out += ["", *_verdict(result)]
    if assessment and assessment.features:
        out += ["", "what some packages do besides, and these filters refuse:"]
        for denied in assessment.features:
            out += wrapped(safe(denied.sentence), _WIDTH, "  ", "    ")
    return out


def _verdict(result: CheckResult) -> list[str]:
    out = [f"{result.workload}: " + ("works, as far as is known" if result.works else "does not work under these filters")]
    for verdict in (*result.of(Outcome.BREAKS), *result.of(Outcome.DEPENDS)):
        effect = "; ".join(action.effect for action, _ in verdict.answers if not action.is_allowed)
        effect += f"; shows: {safe(verdict.shows)}" if verdict.shows else ""
        out += wrapped(effect, _WIDTH, f"  {verdict.call:<18} ", " " * 21)
    return out


def _document(found: Installed, answers: dict[str, tuple[Answer, ...]], assessment: Assessment | None) -> dict[str, Any]:
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
            for result in (assessment.results if assessment else ())
        ],
        "features": [
            {"name": denied.feature.name, "call": denied.feature.written, "action": str(denied.action), "sentence": denied.sentence}
            for denied in (assessment.features if assessment else ())
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
