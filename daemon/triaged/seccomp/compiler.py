# SPDX-License-Identifier: Apache-2.0
"""A Policy as a filter: the architecture first, then a search tree over the numbers, then the arguments.

Jumps only go forward, so the program is written from its end: every target is known before the jump to it, and a target out
of a conditional jump's reach (255) gets an unconditional one right behind the test.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from triaged.seccomp import bpf
from triaged.seccomp.action import Action
from triaged.seccomp.bpf import Instruction, Program
from triaged.seccomp.outcomes import argument_words
from triaged.seccomp.policy import ArchPolicy, Branch, Condition, Policy
from triaged.seccomp.syscalls import X32_SYSCALL_BIT, audit_arch_of

_NEAR = 255
_32_BIT = frozenset({"i386", "arm"})


def compiled(policy: Policy) -> Program:
    """The filter that answers as the policy does. Raises Malformed where it would be longer than the kernel takes."""
    writer = _Writer()
    entry = writer.answer(policy.foreign)
    audit_arches = dict.fromkeys(audit_arch_of(arch.arch) for arch in policy.arches)
    for audit_arch in reversed(audit_arches):
        numbers = _numbers_tree(writer, policy, audit_arch)
        entry = writer.test(bpf.JEQ_K, audit_arch, numbers, entry)
    writer.load(1)
    return Program(writer.instructions())


@dataclass
class _Writer:
    """Instructions, last one first. A position counts the instructions from its own to the end."""

    backwards: list[Instruction] = field(default_factory=list)
    answers: dict[Action, int] = field(default_factory=dict)

    def instructions(self) -> list[Instruction]:
        return self.backwards[::-1]

    def put(self, code: int, k: int = 0, jt: int = 0, jf: int = 0) -> int:
        self.backwards.append(Instruction(code, jt, jf, k))
        return len(self.backwards)

    def load(self, word: int) -> int:
        return self.put(bpf.LD_ABS, 4 * word)

    def answer(self, action: Action) -> int:
        if action not in self.answers:
            self.answers[action] = self.put(bpf.RET_K, action.value)
        return self.answers[action]

    def follow(self, position: int) -> int:
        """Makes the position the next instruction."""
        return position if position == len(self.backwards) else self.put(bpf.JA, len(self.backwards) - position)

    def test(self, code: int, k: int, yes: int, no: int) -> int:
        # Each trampoline moves the other target one further away, hence the margin.
        if len(self.backwards) - yes > _NEAR - 1:
            yes = self.put(bpf.JA, len(self.backwards) - yes)
        if len(self.backwards) - no > _NEAR:
            no = self.put(bpf.JA, len(self.backwards) - no)
        return self.put(code, k, len(self.backwards) - yes, len(self.backwards) - no)


@dataclass(frozen=True)
class _Range:
    """Numbers from `first` on that are treated alike."""

    first: int
    branches: tuple[Branch, ...]
    fallback: Action
    arch: str


def _numbers_tree(writer: _Writer, policy: Policy, audit_arch: int) -> int:
    ranges: list[_Range] = []
    arches = {arch.arch: arch for arch in policy.arches if audit_arch_of(arch.arch) == audit_arch}
    own = next((arch for name, arch in arches.items() if name != "x32"), None)
    ranges += _ranges(own, 0) if own else [_Range(0, (), policy.foreign, "")]
    if audit_arch == audit_arch_of("x32"):
        x32 = arches.get("x32")
        ranges += _ranges(x32, X32_SYSCALL_BIT) if x32 else [_Range(X32_SYSCALL_BIT, (), policy.foreign, "")]
        ranges.append(_Range(0xFFFFFFFF, (), own.fallback(0xFFFFFFFF) if own else policy.foreign, ""))
    unique = [one for at, one in enumerate(ranges) if at == 0 or not _alike(one, ranges[at - 1])]
    tree = _searched(writer, unique, {})
    writer.follow(tree)
    return writer.load(0)


def _alike(one: _Range, other: _Range) -> bool:
    return not one.branches and not other.branches and one.fallback == other.fallback


def _ranges(arch: ArchPolicy, start: int) -> list[_Range]:
    out: list[_Range] = []
    after = start
    for number in sorted(arch.branches):
        if arch.beyond is not None and after <= arch.beyond_number < number - 1:
            out += _gap(arch, after, arch.beyond_number + 1)
            after = arch.beyond_number + 1
        out += _gap(arch, after, number)
        out.append(_simplified(number, arch))
        after = number + 1
    if arch.beyond is not None and after <= arch.beyond_number:
        out += _gap(arch, after, arch.beyond_number + 1)
        after = arch.beyond_number + 1
    return [*out, _Range(after, (), arch.fallback(after), arch.arch)]


def _gap(arch: ArchPolicy, after: int, before: int) -> list[_Range]:
    return [_Range(after, (), arch.fallback(after), arch.arch)] if after < before else []


def _simplified(number: int, arch: ArchPolicy) -> _Range:
    """The call's branches up to the first that always holds, less those that change nothing."""
    kept: list[Branch] = []
    fallback = arch.fallback(number)
    for branch in arch.branches[number]:
        if not branch.conditions:
            fallback = branch.action
            break
        kept.append(branch)
    while kept and kept[-1].action == fallback:
        kept.pop()
    return _Range(number, tuple(kept), fallback, arch.arch)


def _searched(writer: _Writer, ranges: Sequence[_Range], leaves: dict[tuple[tuple[Branch, ...], Action, str], int]) -> int:
    if len(ranges) == 1:
        key = (ranges[0].branches, ranges[0].fallback, ranges[0].arch if ranges[0].branches else "")
        if key not in leaves:
            leaves[key] = _leaf(writer, ranges[0])
        return leaves[key]
    middle = len(ranges) // 2
    right = _searched(writer, ranges[middle:], leaves)
    left = _searched(writer, ranges[:middle], leaves)
    return writer.test(bpf.JGE_K, ranges[middle].first, right, left)


def _leaf(writer: _Writer, numbers: _Range) -> int:
    entry = writer.answer(numbers.fallback)
    for branch in reversed(numbers.branches):
        yes = writer.answer(branch.action)
        otherwise = entry
        for condition in reversed(branch.conditions):
            yes = _condition(writer, condition, numbers.arch, yes, otherwise)
        entry = yes
    return entry


def _condition(writer: _Writer, condition: Condition, arch: str, yes: int, no: int) -> int:
    low_word, high_word = argument_words(condition.argument, audit_arch_of(arch))
    is_narrow = arch in _32_BIT
    if is_narrow:
        condition = condition.narrowed()
    comparison = condition.comparison
    if comparison in ("!=", "<", "<="):
        comparison = {"!=": "==", "<": ">=", "<=": ">"}[comparison]
        yes, no = no, yes
    low, high = condition.value & 0xFFFFFFFF, condition.value >> 32
    low_mask, high_mask = condition.mask & 0xFFFFFFFF, condition.mask >> 32
    code = {"==": bpf.JEQ_K, "&==": bpf.JEQ_K, ">": bpf.JGT_K, ">=": bpf.JGE_K}[comparison]
    entry = writer.test(code, low, yes, no)
    if comparison == "&==" and low_mask != 0xFFFFFFFF:
        entry = writer.put(bpf.ALU_CODE["&", False], low_mask)
    entry = writer.load(low_word)
    if is_narrow or (comparison == "&==" and not high_mask and not high):
        return entry
    equal = writer.test(bpf.JEQ_K, high, entry, no)
    if comparison == "&==" and high_mask != 0xFFFFFFFF:
        writer.put(bpf.ALU_CODE["&", False], high_mask)
    if comparison in (">", ">="):
        writer.test(bpf.JGT_K, high, yes, equal)
    return writer.load(high_word)
