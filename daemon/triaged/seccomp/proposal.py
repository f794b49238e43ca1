# SPDX-License-Identifier: Apache-2.0
"""The smallest change of a profile that lets a workload work, and the steps that put it to use.

A call that a profile allows with conditions or capabilities on purpose (clone and namespaces) is never opened wider than the
calls that are missing; `unconfined` is no proposal.
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from triaged.model.fix import ManualStep
from triaged.seccomp import oci
from triaged.seccomp.action import ALLOW, ENOSYS
from triaged.seccomp.oci import Profile, Rule, Setting
from triaged.seccomp.policy import Condition
from triaged.seccomp.systemd_filter import SystemdFilter

NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
NO_NAMESPACES = Condition(0, "&==", 0, NAMESPACE_FLAGS)


@dataclass(frozen=True)
class Proposal:
    """A changed profile: `text` is the whole file (for systemd a drop-in), `diff` the change, `steps` how to use it."""

    calls: tuple[str, ...]
    text: str
    diff: str
    steps: tuple[ManualStep, ...]


def propose(
    profile: Profile | SystemdFilter, calls: Sequence[str], setting: Setting, path: str, workloads: Iterable[str],
    unit: str = "UNIT",
) -> Proposal:
    """The profile with the calls allowed, to be written to `path`."""
    comment = "needed by " + ", ".join(workloads)
    if isinstance(profile, SystemdFilter):
        return _for_systemd(calls, unit)
    changed = extended(profile, calls, setting, comment)
    before, after = oci.written(profile), oci.written(changed)
    name = profile.origin or "profile"
    diff = "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, path))
    return Proposal(tuple(calls), after, diff, steps_for(path, setting.runtime))


def extended(profile: Profile, calls: Iterable[str], setting: Setting, comment: str) -> Profile:
    """The profile with the calls allowed. clone gets the condition that no namespace is made, where the profile is a denying one.

    clone3 cannot be filtered by its flags (they are in memory): it is made to return ENOSYS, after which the C library takes clone.
    """
    missing = set(calls)
    rules = [_without(rule, missing, setting) for rule in profile.rules]
    added: list[Rule] = []
    if "clone3" in missing:
        missing.discard("clone3")
        added.append(Rule(("clone3",), ENOSYS, comment=f"{comment}; the C library then uses clone"))
        if not _allows_clone(profile, setting):
            missing.add("clone")
    if "clone" in missing:
        missing.discard("clone")
        added.append(Rule(("clone",), ALLOW, (_no_namespaces(setting),), comment=comment))
    if missing:
        added.append(Rule(tuple(sorted(missing)), ALLOW, comment=comment))
    return replace(profile, rules=(*(rule for rule in rules if rule.names), *added))


def _no_namespaces(setting: Setting) -> Condition:
    # s390 has the flags of clone in its second argument (CONFIG_CLONE_BACKWARDS2).
    return replace(NO_NAMESPACES, argument=1) if setting.arch == "s390x" else NO_NAMESPACES


def _allows_clone(profile: Profile, setting: Setting) -> bool:
    return profile.default.is_allowed or any(
        "clone" in rule.names and rule.action.is_allowed and oci.is_active(rule, setting) for rule in profile.rules
    )


def _without(rule: Rule, calls: set[str], setting: Setting) -> Rule:
    """The rule less the calls that it denies here: a second rule for them would be refused or never reached."""
    if rule.action.is_allowed or not oci.is_active(rule, setting):
        return rule
    return replace(rule, names=tuple(name for name in rule.names if name not in calls))


def steps_for(path: str, runtime: str) -> tuple[ManualStep, ...]:
    """How to use an OCI profile: the runtime that was asked for first."""
    name = path.rsplit("/", 1)[-1]
    steps = {
        "docker": ManualStep("docker", "start the container with the profile (Docker)",
                             (("docker", "run", "--security-opt", f"seccomp={path}", "IMAGE"),)),
        "podman": ManualStep("podman", "start the container with the profile (Podman)",
                             (("podman", "run", "--security-opt", f"seccomp={path}", "IMAGE"),)),
        "kubernetes": ManualStep(
            "kubernetes",
            f"on every node copy the profile below the kubelet's directory, then set securityContext.seccompProfile of the "
            f"container to type: Localhost, localhostProfile: profiles/{name}",
            (("install", "-D", "-m", "644", path, f"/var/lib/kubelet/seccomp/profiles/{name}"),
             ("kubectl", "patch", "deployment", "NAME", "--patch",
              '{"spec":{"template":{"spec":{"securityContext":{"seccompProfile":{"type":"Localhost",'
              f'"localhostProfile":"profiles/{name}"' + "}}}}}}"))),
    }
    first = "kubernetes" if runtime in ("containerd", "cri-o") else runtime
    return (steps[first], *(step for key, step in steps.items() if key != first))


def _for_systemd(calls: Sequence[str], unit: str) -> Proposal:
    # One form for both kinds: without a "~" a later line adds to an allow-list and takes off a deny-list.
    text = f"[Service]\nSystemCallFilter={' '.join(sorted(calls))}\n"
    drop_in = f"/etc/systemd/system/{unit}.d/50-seccomp.conf"
    diff = "".join(difflib.unified_diff([], text.splitlines(True), "/dev/null", drop_in))
    steps = (
        ManualStep("systemd-drop-in", f"add the drop-in {drop_in} with the lines below, and restart the unit",
                   (("systemctl", "edit", "--drop-in=50-seccomp", unit), ("systemctl", "restart", unit))),
    )
    return Proposal(tuple(calls), text, diff, steps)


def merged(profiles: Sequence[Profile]) -> Profile:
    """A profile that allows what any of them allows; all must have the same default and architectures (ValueError).

    Where one allows a call and another one denies it by a rule of its own (clone3 with ENOSYS), it is allowed; a call that one
    allows always and another one under conditions is allowed always.
    """
    first = profiles[0]
    heads = [(profile.default, profile.arches, profile.arch_map) for profile in profiles]
    if any(head != heads[0] for head in heads):
        raise ValueError("the profiles differ in their default action or architectures")
    rules = dict.fromkeys(rule for profile in profiles for rule in profile.rules)
    always = {name for rule in rules if rule.action.is_allowed and not rule.conditions and not oci.gate_text(rule)
              for name in rule.names}
    kept = []
    for rule in sorted(rules, key=str):
        if rule.conditions or not rule.action.is_allowed:
            rule = replace(rule, names=tuple(name for name in rule.names if name not in always))
        if rule.names:
            kept.append(rule)
    return replace(first, rules=oci.merged_rules(_noted_once(kept)), origin="")


def _noted_once(rules: Iterable[Rule]) -> Iterable[Rule]:
    """Each call of alike rules once, with the comments of all that had it."""
    comments: dict[tuple[Rule, str], list[str]] = {}
    for rule in rules:
        for name in rule.names:
            comments.setdefault((replace(rule, names=(), comment=""), name), []).append(rule.comment)
    for (rule, name), found in comments.items():
        words = sorted({word for comment in found for word in comment.split(", ") if word})
        yield replace(rule, names=(name,), comment=", ".join(words))
