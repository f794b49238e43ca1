# SPDX-License-Identifier: Apache-2.0
"""What a profile comes to on one machine: for each architecture, which call gets which action, for which arguments.

Profiles (`oci`, `systemd_filter`) resolve to a Policy; a Policy is evaluated directly, or compiled (`compiler`).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triaged.seccomp.action import KILL_THREAD, Action
from triaged.seccomp.syscalls import X32_SYSCALL_BIT, audit_arch_of

_32_BIT = frozenset({"i386", "arm"})
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=", "&==")


@dataclass(frozen=True)
class Condition:
    """A test of one argument (0 to 5), as libseccomp has them: unsigned, 64 bits wide; "&==" is (argument & mask) == value."""

    argument: int
    comparison: str
    value: int
    mask: int = 0xFFFFFFFFFFFFFFFF

    def holds(self, value: int) -> bool:
        """Whether an argument's value passes."""
        return {
            "==": value == self.value, "!=": value != self.value, "<": value < self.value, "<=": value <= self.value,
            ">": value > self.value, ">=": value >= self.value, "&==": value & self.mask == self.value,
        }[self.comparison]

    def narrowed(self) -> Condition:
        """The same test where arguments are 32 bits wide; libseccomp compares their low halves only."""
        return Condition(self.argument, self.comparison, self.value & 0xFFFFFFFF, self.mask & 0xFFFFFFFF)

    def __str__(self) -> str:
        name = f"args[{self.argument}]"
        if self.comparison == "&==":
            return f"{name} & {self.mask:#x} == {self.value:#x}"
        return f"{name} {self.comparison} {self.value:#x}"


@dataclass(frozen=True)
class Branch:
    """One rule for one call: the action if all conditions hold (none: always). `why` is where it stands and what gates it."""

    action: Action
    conditions: tuple[Condition, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class ArchPolicy:
    """The rules of one architecture. Of a call's branches the first that holds decides; without one, `default`.

    `beyond` is the answer for calls newer than `beyond_number` (runc's and crun's ENOSYS for what the profile's author could not
    know); None: no such rule.
    """

    arch: str
    default: Action
    branches: Mapping[int, tuple[Branch, ...]] = field(default_factory=dict)
    beyond_number: int = 0
    beyond: Action | None = None

    def action(self, number: int, arguments: tuple[int, ...] = (0,) * 6) -> Action:
        """The answer for one call."""
        for branch in self.branches.get(number, ()):
            if all(condition.holds(arguments[condition.argument]) for condition in self.conditions(branch)):
                return branch.action
        return self.fallback(number)

    def fallback(self, number: int) -> Action:
        """The answer for a call whose branches do not hold, or that has none."""
        if self.beyond is not None and number > self.beyond_number and number not in self.branches:
            return self.beyond
        return self.default

    def conditions(self, branch: Branch) -> tuple[Condition, ...]:
        """A branch's conditions, as wide as this architecture's arguments."""
        return tuple(c.narrowed() for c in branch.conditions) if self.arch in _32_BIT else branch.conditions


@dataclass(frozen=True)
class Policy:
    """The architectures of a profile, and what calls of any other one get."""

    arches: tuple[ArchPolicy, ...]
    foreign: Action = KILL_THREAD

    def arch(self, name: str) -> ArchPolicy | None:
        """The rules of one architecture, or None if the profile does not have it."""
        return next((policy for policy in self.arches if policy.arch == name), None)

    def action(self, audit_arch: int, number: int, arguments: tuple[int, ...] = (0,) * 6) -> Action:
        """The answer for one call as the kernel numbers it. As libseccomp: -1, a call that a tracer cancelled, is no x32 call."""
        is_x32 = audit_arch == audit_arch_of("x32") and X32_SYSCALL_BIT <= number < 0xFFFFFFFF
        for policy in self.arches:
            if audit_arch_of(policy.arch) == audit_arch and is_x32 == (policy.arch == "x32"):
                return policy.action(number, arguments)
        return self.foreign
