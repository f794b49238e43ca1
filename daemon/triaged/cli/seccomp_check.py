# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp check`: a profile held against what workloads need."""
from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from triaged.cli import seccomp_data as data
from triaged.cli.exit_status import ExitStatus
from triaged.cli.style import safe, wrapped
from triaged.errors import ConfigError
from triaged.seccomp import oci, proposal
from triaged.seccomp.action import Action
from triaged.seccomp.assessment import DeniedFeature, denied_features
from triaged.seccomp.check import CallVerdict, CheckResult, Outcome, check_workload, policy_answers
from triaged.seccomp.needs import Needs
from triaged.seccomp.oci import Profile, Setting
from triaged.seccomp.policy import Policy
from triaged.seccomp.syscalls import ARCHES, audit_arch_of, native_arch, number_of
from triaged.seccomp.systemd_filter import SystemdFilter
from triaged.workload_needs import read_needs, workloads_of

_WIDTH = 110
_DIFFERENCES_SHOWN = 40
GatedFeature = tuple[DeniedFeature, tuple[str, ...]]  # and what would let it through
_HEADINGS = {
    Outcome.BREAKS: "denied, and the workload does not work without",
    Outcome.DEPENDS: "depends on arguments, a supervisor, or what was not measured",
    Outcome.HARMLESS: "denied, and the program does without",
    Outcome.ALLOWED: "allowed",
}


def setting_of(args: argparse.Namespace) -> Setting:
    """The setting that the options of `_profile_setting` give. Raises: ConfigError."""
    arch = args.arch or native_arch()
    if arch not in ARCHES:
        raise ConfigError("--arch", 0, f"unknown architecture {arch!r}", f"known are {', '.join(ARCHES)}")
    return data.setting_for(arch, args.caps, args.kernel, args.runtime)


def checked(policy: Policy, needs: Needs, workload: str, setting: Setting,
            gates_of: Callable[[str], tuple[str, ...]] = lambda call: ()) -> CheckResult:
    """A resolved profile held against one workload."""
    arch_policy = policy.arch(setting.arch)

    def decide(call: str, arguments: tuple[int, ...]) -> Action:
        return policy.action(audit_arch_of(setting.arch), number_of(setting.arch, call) or 0, arguments)

    return check_workload(
        lambda call: policy_answers(arch_policy, policy.foreign, setting.arch, call), needs, workload, gates_of, decide)


def refused_features(policy: Policy, needs: Needs, setting: Setting) -> tuple[DeniedFeature, ...]:
    """What some packages do besides, and a resolved profile refuses."""
    def decide(call: str, arguments: tuple[int, ...]) -> Action:
        return policy.action(audit_arch_of(setting.arch), number_of(setting.arch, call) or 0, arguments)

    return denied_features(needs, setting.arch, decide)


def gates_in(profile: Profile | SystemdFilter, setting: Setting) -> Callable[[str], tuple[str, ...]]:
    """What makes a profile's rules for a call not count in this setting."""
    if isinstance(profile, SystemdFilter):
        return lambda call: ()
    inactive: dict[str, list[str]] = {}
    # What a person can change: capabilities and kernel. A rule for another architecture helps nobody here.
    others = [replace(setting, capabilities=held, kernel=(99, 0)) for held in (frozenset[str](), data.every_capability())]
    for rule in profile.rules:
        could_be = any(oci.is_active(rule, other) for other in others)
        if rule.action.is_allowed and could_be and not oci.is_active(rule, setting):
            for name in rule.names:
                inactive.setdefault(name, []).append("allowed " + oci.gate_text(rule))
    return lambda call: tuple(dict.fromkeys(inactive.get(call, ())))


def run_check(args: argparse.Namespace) -> int:
    """Checks. The exit status is 1 where a workload breaks. Raises: ConfigError."""
    setting = setting_of(args)
    needs = read_needs(args.toolchain)
    names = workloads_of(needs, args.workload)
    profile = data.read_profile(args.profile)
    policy = data.resolved(profile, setting)
    results = [checked(policy, needs, name, setting, gates_in(profile, setting)) for name in names]
    recognised = data.recognise(profile) if isinstance(profile, Profile) else None
    features = [(denied, gates_in(profile, setting)(denied.feature.call)) for denied in refused_features(policy, needs, setting)]
    fix = _proposed(profile, results, needs, setting, args.fix or "triaged-seccomp.json")
    if args.fix and not fix:
        print(f"triagectl: nothing to fix: {safe(args.fix)} was not written", file=sys.stderr)
    if args.fix and fix:
        with open(args.fix, "w", encoding="utf-8") as file:
            file.write(fix.text)
    if args.json:
        print(json.dumps(_document(args, setting, needs, recognised, results, fix, features), indent=2))
    else:
        for line in _report(args, setting, needs, recognised, results, fix, features, isinstance(profile, Profile)):
            print(line)
    return ExitStatus.FINE if all(result.works for result in results) else ExitStatus.FOUND


def _proposed(
    profile: Profile | SystemdFilter, results: Sequence[CheckResult], needs: Needs, setting: Setting, path: str
) -> proposal.Proposal | None:
    """The change that lets the workloads work, or None where they do."""
    names = [result.workload for result in results]
    missing: set[str] = set()
    while True:
        broken = {verdict.call for result in results for verdict in result.of(Outcome.BREAKS)}
        if broken <= missing:
            break
        missing |= broken
        if isinstance(profile, SystemdFilter):
            break
        # Again, with the change: under runc a call that returned ENOSYS as newer than the profile returns EPERM in a longer one.
        changed = proposal.extended(profile, missing, setting, "")
        results = [checked(oci.resolved(changed, setting), needs, name, setting) for name in names]
    return proposal.propose(profile, sorted(missing), setting, path, names) if missing else None


def _report(args: argparse.Namespace, setting: Setting, needs: Needs, recognised: data.Recognised | None,
            results: Sequence[CheckResult], fix: proposal.Proposal | None, features: Sequence[GatedFeature],
            is_oci: bool) -> list[str]:
    kernel = ".".join(str(part) for part in setting.kernel)
    where = f"kernel {kernel}, {len(setting.capabilities)} capabilities, {setting.runtime}" if is_oci else "systemd"
    out = [f"{safe(args.profile)} on {setting.arch}, {where}"]
    if setting.arch != needs.arch:
        out.append(f"what the workloads need was measured on {needs.arch}; calls that {setting.arch} does not have are left out")
    if recognised:
        out += _difference(recognised)
    for result in results:
        out += ["", f"{result.workload}: {needs.workloads[result.workload].title} ({needs.toolchain})"]
        for outcome in Outcome:
            verdicts = result.of(outcome)
            if verdicts and (outcome is not Outcome.ALLOWED or args.verbose):
                out.append(f"  {_HEADINGS[outcome]}:")
                if outcome is Outcome.ALLOWED:
                    out += wrapped(", ".join(verdict.call for verdict in verdicts), _WIDTH, "    ")
                else:
                    out += [line for verdict in verdicts for line in _lines(verdict)]
        counts = {outcome: len(result.of(outcome)) for outcome in Outcome}
        end = "works, as far as is known" if result.works else "does not work"
        if result.works and counts[Outcome.DEPENDS]:
            end = "works, if what it depends on is so"
        out.append(
            f"  => {result.workload} {end}: of {len(result.verdicts)} calls {counts[Outcome.ALLOWED]} are allowed, "
            f"{counts[Outcome.BREAKS]} denied and needed, {counts[Outcome.HARMLESS]} denied and only probed, "
            f"{counts[Outcome.DEPENDS]} depend"
        )
    if features:
        out += ["", "what some packages do besides, and this profile refuses:"]
    for denied, gates in features:
        out += wrapped(safe("; ".join((denied.sentence, *gates))), _WIDTH, "  ", "    ")
    out += ["", f"what the workloads need was measured: {needs.source}"]
    if fix:
        out += ["", "To make it work:"]
        out += [line.rstrip() for line in fix.diff.splitlines()] if args.fix else []
        for step in fix.steps:
            out += wrapped(safe(step.title), _WIDTH, "  - ")
            out += ["      " + shlex.join(argv) for argv in step.commands]
        if not args.fix:
            out.append("  (--fix FILE writes the profile and shows the difference)")
    return out


def _difference(recognised: data.Recognised) -> list[str]:
    runtime, _, version = recognised.name.partition("-")
    if not recognised.added and not recognised.removed:
        return [f"this is the default profile of {runtime} {version}"]
    out = [f"this is the default profile of {runtime} {version} with differences:"]
    for sign, call, text in recognised.rules[:_DIFFERENCES_SHOWN]:
        out += wrapped(safe(text), _WIDTH, f"  {sign} {safe(call)}: ", "      ")
    more = len(recognised.rules) - _DIFFERENCES_SHOWN
    return [*out, f"  and {more} more (--json has all)"] if more > 0 else out


def _lines(verdict: CallVerdict) -> list[str]:
    answers = "; ".join(action.effect + (f" if {condition}" if condition not in ("", "otherwise") else f" {condition}".rstrip())
                        for action, condition in verdict.answers)
    need = "probed" if verdict.outcome is Outcome.HARMLESS or not verdict.is_required else "required"
    out = wrapped(f"{answers} ({need}; {', '.join(verdict.programs)})", _WIDTH, f"    {verdict.call:<18} ", " " * 23)
    if verdict.shows:
        out += wrapped(safe(verdict.shows), _WIDTH, " " * 23 + "shows: ", " " * 30)
    for gate in verdict.gates:
        out += wrapped(gate, _WIDTH, " " * 23)
    return out


def _document(args: argparse.Namespace, setting: Setting, needs: Needs, recognised: data.Recognised | None,
              results: Sequence[CheckResult], fix: proposal.Proposal | None, features: Sequence[GatedFeature]) -> dict[str, Any]:
    return {
        "profile": args.profile,
        "arch": setting.arch,
        "kernel": ".".join(str(part) for part in setting.kernel),
        "capabilities": sorted(setting.capabilities),
        "runtime": setting.runtime,
        "default_profile": None if recognised is None else {
            "name": recognised.name, "added": list(recognised.added), "removed": list(recognised.removed),
            "rules": [{"sign": sign, "call": call, "rule": text} for sign, call, text in recognised.rules]},
        "needs": {"toolchain": needs.toolchain, "source": needs.source},
        "workloads": [
            {
                "name": result.workload,
                "works": result.works,
                "calls": [
                    {
                        "call": verdict.call, "outcome": verdict.outcome.value, "required": verdict.is_required,
                        "answers": [{"action": str(action), "condition": condition} for action, condition in verdict.answers],
                        "programs": list(verdict.programs), "shows": verdict.shows, "gates": list(verdict.gates),
                    }
                    for verdict in result.verdicts
                ],
            }
            for result in results
        ],
        "features": [
            {"name": denied.feature.name, "call": denied.feature.written, "action": str(denied.action), "sentence": denied.sentence,
             "gates": list(gates)}
            for denied, gates in features
        ],
        "fix": None if fix is None else {
            "calls": list(fix.calls), "profile": fix.text, "diff": fix.diff,
            "steps": [{"title": step.title, "commands": [list(argv) for argv in step.commands]} for step in fix.steps],
        },
    }
