# SPDX-License-Identifier: Apache-2.0
"""What was observed of a command's calls, and the profile that follows from it. The same calls give the same profile."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from triaged.seccomp import oci, systemd_filter
from triaged.seccomp.action import ALLOW, ENOSYS, Action, ActionKind
from triaged.seccomp.check import policy_answers
from triaged.seccomp.oci import Profile, Rule, Setting
from triaged.seccomp.policy import Condition, Policy
from triaged.seccomp.proposal import NAMESPACE_FLAGS, NO_NAMESPACES
from triaged.seccomp.syscalls import audit_arch_of, name_of

# What ends a program, returns from a signal, or goes on after a stop; none of it happens in every run.
START_AND_EXIT = ("execve", "exit", "exit_group", "restart_syscall", "rt_sigreturn")
START_COMMENT = "start, end and signals of any program"
# Whoever makes all of the first is a Go program (1.21 and later), and its runtime makes the second in some runs only: waiting on
# the network poller, pre-empting a goroutine, giving memory back. Seen missing after one recording on 6.18, go1.27.3: epoll_pwait.
GO_RUNTIME_MARK = frozenset({"epoll_create1", "eventfd2", "rt_sigprocmask", "sigaltstack"})
GO_RUNTIME = ("epoll_ctl", "epoll_pwait", "futex", "getpid", "madvise", "munmap", "nanosleep", "sched_yield", "tgkill")
GO_COMMENT = "Go's scheduler, memory and network poller: not in every run"


@dataclass
class Recording:
    """Calls by name, with the programs that made them. `makes_namespaces`: a clone had CLONE_NEW* flags, or was refused as if.

    `unknown` are numbers that the table has no name for; they cannot be in a profile.
    """

    arch: str
    programs: dict[str, set[str]] = field(default_factory=dict)
    makes_namespaces: bool = False
    needs_clone3: bool = False
    unknown: set[int] = field(default_factory=set)

    def add(self, program: str, number: int, arguments: tuple[int, ...] = ()) -> str:
        """Notes a call; its name."""
        name = name_of(audit_arch_of(self.arch), number)
        if name == str(number):
            self.unknown.add(number)
            return name
        self.programs.setdefault(name, set()).add(program)
        if name == "clone" and arguments:
            self.makes_namespaces |= bool(arguments[1 if self.arch == "s390x" else 0] & NAMESPACE_FLAGS)
        return name

    @property
    def names(self) -> frozenset[str]:
        """Every call that the profile has to speak of."""
        return frozenset({*self.programs, *START_AND_EXIT, *self.of_a_runtime})

    @property
    def of_a_runtime(self) -> frozenset[str]:
        """Calls that a runtime which was seen makes in some runs: the same whether it made them in this one or not."""
        return frozenset(GO_RUNTIME) if self.programs.keys() >= GO_RUNTIME_MARK else frozenset()


def profile_of(
    recording: Recording, denial: Action, label: str, runtimes: Mapping[str, frozenset[str]] = MappingProxyType({})
) -> Profile:
    """The smallest profile that allows what was recorded, each rule noted as `label`'s, and what container `runtimes` call before.

    clone is allowed without namespaces unless some were made. clone3, whose flags a filter cannot see, returns ENOSYS
    and the C library falls back to clone, unless that was seen not to work (`needs_clone3`).
    """
    seen = set(recording.programs)
    rules = [Rule(START_AND_EXIT, ALLOW, comment=START_COMMENT)]
    if "clone3" in seen and not recording.needs_clone3 and not recording.makes_namespaces:
        rules.append(Rule(("clone3",), ENOSYS, comment=f"{label}: its flags cannot be filtered; the C library then uses clone"))
        seen.discard("clone3")
        seen.add("clone")
    if "clone" in seen and not recording.makes_namespaces:
        rules.append(Rule(("clone",), ALLOW, (_no_namespaces(recording.arch),), comment=f"{label}: without new namespaces"))
        seen.discard("clone")
    if recording.of_a_runtime:
        rules.append(Rule(tuple(sorted(recording.of_a_runtime)), ALLOW, comment=GO_COMMENT))
    rest = seen - set(START_AND_EXIT) - recording.of_a_runtime
    if rest:
        rules.append(Rule(tuple(sorted(rest)), ALLOW, comment=label))
    before = frozenset().union(*runtimes.values()) - recording.names
    if before:
        comment = f"what a container runtime calls before it starts the command ({', '.join(sorted(runtimes))})"
        rules.append(Rule(tuple(sorted(before)), ALLOW, comment=comment))
    return Profile(denial, oci.merged_rules(rules), (recording.arch,))


def drop_in_of(recording: Recording, denial: Action, label: str) -> str:
    """The same as SystemCallFilter= lines; these cannot test arguments."""
    comments = {name: START_COMMENT if name in START_AND_EXIT else label for name in recording.names}
    comments.update(dict.fromkeys(recording.of_a_runtime, GO_COMMENT))
    return systemd_filter.written(recording.names, denial, comments)


def _no_namespaces(arch: str) -> Condition:
    return replace(NO_NAMESPACES, argument=1) if arch == "s390x" else NO_NAMESPACES


def missing_from(policy: Policy, recording: Recording) -> tuple[str, ...]:
    """The recorded calls that a resolved profile allows for no arguments; clone: not for all of them if namespaces were made."""
    arch_policy = policy.arch(recording.arch)
    out = []
    for name in sorted(recording.names):
        answers = policy_answers(arch_policy, policy.foreign, recording.arch, name)
        if answers is None:
            continue
        if name == "clone3" and not recording.needs_clone3 and all(action == ENOSYS for action, _ in answers):
            continue
        allowed = [action.is_allowed for action, _ in answers]
        is_allowed = all(allowed) if name == "clone" and recording.makes_namespaces else any(allowed)
        if not is_allowed:
            out.append(name)
    return tuple(out)


def expected_refusals(profile: Profile, setting: Setting) -> frozenset[str]:
    """The calls that the profile's own rules refuse on purpose (clone3): seeing them refused asks for no change."""
    refusing = [rule for rule in profile.rules if rule.action.kind is ActionKind.ERRNO and oci.is_active(rule, setting)]
    return frozenset(name for rule in refusing for name in rule.names)
