# SPDX-License-Identifier: Apache-2.0
"""Everything that filters can answer for one system call, and for which arguments: the filter run with unknown arguments.

Each path through the filters is followed with what it demands of the argument words; a path that no argument can take is
dropped (decided exactly, word by word), and each one that is kept has a witness: arguments for which the filters answer so.
Where a filter computes with arguments in a way that is not followed (arithmetic other than masks), `is_exact` is False.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Union

from triaged.seccomp import bpf
from triaged.seccomp.action import Action, ActionKind, strictness
from triaged.seccomp.bpf import Program, SeccompData
from triaged.seccomp.syscalls import audit_arch_of, numbers_on

MAX_PATHS = 2000
# Of the search for arguments that meet all demands, in all for one call: filters of people's take some hundreds. About a second.
MAX_STEPS = 50_000
_WORDS = 16
_FULL = 0xFFFFFFFF
_NEGATED = {"==": "!=", "!=": "==", ">": "<=", ">=": "<", "<": ">=", "<=": ">"}


@dataclass(frozen=True)
class Demand:
    """What a path demands of one word of `struct seccomp_data`: (word & mask) comparison value."""

    word: int
    mask: int
    comparison: str
    value: int


@dataclass(frozen=True)
class Outcome:
    """One answer: the action, what it demands of the arguments, and a call that gets it."""

    action: Action
    demands: tuple[Demand, ...]
    witness: SeccompData


@dataclass(frozen=True)
class Outcomes:
    """All answers for one call. `is_exact` is False where paths were not told apart or there were more than MAX_PATHS; of the
    latter (`is_complete` False) only some answers are here.
    """

    outcomes: tuple[Outcome, ...]
    is_exact: bool = True
    is_complete: bool = True

    @property
    def actions(self) -> tuple[Action, ...]:
        """The different answers, strictest first."""
        unique = {outcome.action for outcome in self.outcomes}
        return tuple(sorted(unique, key=lambda action: (strictness(action.value), action.data)))


@dataclass(frozen=True)
class _Masked:
    """A word of the data, masked: the only unknown that is followed exactly."""

    word: int
    mask: int


class _Opaque:
    """A value that depends on arguments in a way that is not followed."""


_Value = Union[int, _Masked, _Opaque]
_OPAQUE = _Opaque()


@dataclass(frozen=True)
class _State:
    pc: int
    a: _Value
    x: _Value
    scratch: tuple[_Value, ...]
    demands: tuple[Demand, ...]


class _TooMany(Exception):
    pass


def outcomes_of(programs: Sequence[Program], number: int, arch: int) -> Outcomes:
    """Every answer that the filters (newest first) can give to call `number` of audit architecture `arch`."""
    fixed = SeccompData(number, arch).words()[:2]
    explorer = _Explorer(programs, fixed)
    found: list[Outcome] = []
    try:
        for value, demands in explorer.answers():
            words = [explorer.witness(demands, word) or 0 for word in range(_WORDS)]
            pointer, *arguments = (words[low] | words[high] << 32 for low, high in (argument_words(i, arch) for i in range(-1, 6)))
            found.append(Outcome(Action.of(value), demands, SeccompData(number, arch, tuple(arguments), pointer)))
    except _TooMany:
        return Outcomes(tuple(found), is_exact=False, is_complete=False)
    return Outcomes(tuple(found), explorer.is_exact)


def refusable_calls(programs: Sequence[Program], arch: str) -> dict[str, int]:
    """The calls of one of syscalls.ARCHES that the filters (newest first) do not always let pass: number by name."""
    audit_arch = audit_arch_of(arch)
    found = {}
    for name, number in numbers_on(arch).items():
        answers = outcomes_of(programs, number, audit_arch)
        if not answers.is_exact or any(not action.is_allowed for action in answers.actions):
            found[name] = number
    return found


class _Explorer:
    def __init__(self, programs: Sequence[Program], fixed: tuple[int, ...]) -> None:
        self.programs = programs
        self.fixed = fixed
        self.is_exact = True
        self.paths = 0
        self.steps = 0

    def answers(self, index: int = 0, strictest: int = ActionKind.ALLOW, demands: tuple[Demand, ...] = ()
                ) -> Iterator[tuple[int, tuple[Demand, ...]]]:
        if index == len(self.programs):
            self.paths += 1
            if self.paths > MAX_PATHS:
                raise _TooMany
            yield strictest, demands
            return
        for value, more in self.paths_of(self.programs[index], demands):
            stricter = value if strictness(value) < strictness(strictest) else strictest
            yield from self.answers(index + 1, stricter, more)

    def paths_of(self, program: Program, demands: tuple[Demand, ...]) -> Iterator[tuple[int, tuple[Demand, ...]]]:
        pending = [_State(0, 0, 0, (0,) * bpf.SCRATCH_WORDS, demands)]
        while pending:
            if len(pending) > MAX_PATHS:
                raise _TooMany
            yield from self.followed(program, pending.pop(), pending)

    def followed(self, program: Program, state: _State, pending: list[_State]) -> Iterator[tuple[int, tuple[Demand, ...]]]:
        pc, a, x, demands = state.pc, state.a, state.x, state.demands
        scratch = list(state.scratch)
        instructions = program.instructions
        while True:
            i = instructions[pc]
            code = i.code
            pc += 1
            if code == bpf.JA:
                pc += i.k
            elif code in bpf.CONDITIONALS:
                operand = x if code & bpf.BPF_X else i.k
                if isinstance(a, int) and isinstance(operand, int):
                    pc += i.jt if bpf.holds(code, a, operand) else i.jf
                    continue
                for jump, more in self.branches(code, a, operand, demands, (i.jt, i.jf)):
                    pending.append(_State(pc + jump, a, x, tuple(scratch), more))
                return
            elif code == bpf.LD_ABS:
                word = i.k >> 2
                a = self.fixed[word] if word < 2 else _Masked(word, _FULL)
            elif code == bpf.RET_K:
                yield i.k, demands
                return
            elif code == bpf.RET_A:
                if not isinstance(a, int):
                    self.is_exact = False
                    return
                yield a, demands
                return
            elif code in bpf.ALU or code == bpf.NEG:
                operand = x if code & bpf.BPF_X else i.k
                if code in bpf.ALU and bpf.ALU[code][0] == "/" and not isinstance(operand, int):
                    self.is_exact = False
                    yield 0, demands
                if code in bpf.ALU and bpf.ALU[code][0] == "/" and operand == 0:
                    yield 0, demands
                    return
                a = _computed(code, a, operand)
            elif code in (bpf.ST, bpf.STX):
                scratch[i.k] = a if code == bpf.ST else x
            elif code in (bpf.LD_IMM, bpf.LD_LEN, bpf.LD_MEM, bpf.TXA):
                a = x if code == bpf.TXA else scratch[i.k] if code == bpf.LD_MEM else (
                    i.k if code == bpf.LD_IMM else bpf.SECCOMP_DATA_BYTES)
            else:
                x = a if code == bpf.TAX else scratch[i.k] if code == bpf.LDX_MEM else (
                    i.k if code == bpf.LDX_IMM else bpf.SECCOMP_DATA_BYTES)

    def branches(self, code: int, a: _Value, operand: _Value, demands: tuple[Demand, ...], jumps: tuple[int, int]
                 ) -> Iterator[tuple[int, tuple[Demand, ...]]]:
        if jumps[0] == jumps[1]:
            yield jumps[0], demands
            return
        if not isinstance(a, _Masked) or not isinstance(operand, int):
            self.is_exact = False
            yield jumps[0], demands
            yield jumps[1], demands
            return
        comparison = bpf.CONDITIONALS[code]
        demand = Demand(a.word, a.mask & operand, "!=", 0) if comparison == "&" else Demand(a.word, a.mask, comparison, operand)
        opposite = Demand(demand.word, demand.mask, _NEGATED[demand.comparison], demand.value)
        for jump, wanted in ((jumps[1], opposite), (jumps[0], demand)):
            more = demands if wanted in demands else (*demands, wanted)
            if self.witness(more, demand.word) is not None:
                yield jump, more

    def witness(self, demands: tuple[Demand, ...], word: int) -> int | None:
        """A value of the word that meets all demands on it, or None if there is none."""
        relevant = frozenset((d.mask, d.comparison, d.value) for d in demands if d.word == word)
        if not relevant:
            return 0
        value, steps = _solved(relevant)
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise _TooMany
        return value


def _computed(code: int, a: _Value, operand: _Value) -> _Value:
    if code == bpf.NEG:
        return -a & _FULL if isinstance(a, int) else _OPAQUE
    if isinstance(a, int) and isinstance(operand, int):
        return bpf.computed(code, a, operand)
    if bpf.ALU[code][0] == "&":
        if isinstance(a, _Masked) and isinstance(operand, int):
            return _Masked(a.word, a.mask & operand)
        if isinstance(a, int) and isinstance(operand, _Masked):
            return _Masked(operand.word, operand.mask & a)
    return _OPAQUE


@lru_cache(maxsize=4096)
def _solved(demands: frozenset[tuple[int, str, int]]) -> tuple[int | None, int]:
    """A value of a word that meets the demands, or None, and how many steps it took; MAX_STEPS where it was given up."""
    # Bit by bit from the top: how (word & mask) so far compares with the value's same bits settles every comparison.
    wanted = sorted(demands)
    accepted = {"==": {0}, "!=": {-1, 1}, ">": {1}, ">=": {0, 1}, "<": {-1}, "<=": {-1, 0}}
    dead: set[tuple[int, tuple[int, ...]]] = set()
    steps = 0

    def search(bit: int, compared: tuple[int, ...], value: int) -> int | None:
        nonlocal steps
        steps += 1
        if steps > MAX_STEPS:
            return None
        if any(order and comparison == "==" for order, (_, comparison, _) in zip(compared, wanted, strict=True)):
            return None
        if bit < 0:
            met = all(order in accepted[comparison] for order, (_, comparison, _) in zip(compared, wanted, strict=True))
            return value if met else None
        if (bit, compared) in dead:
            return None
        for choice in (0, 1):
            orders = tuple(
                order or (choice & mask >> bit & 1) - (target >> bit & 1)
                for order, (mask, _, target) in zip(compared, wanted, strict=True)
            )
            found = search(bit - 1, orders, value | choice << bit)
            if found is not None:
                return found
        dead.add((bit, compared))
        return None

    return search(31, (0,) * len(wanted), 0), steps


def argument_words(index: int, arch: int) -> tuple[int, int]:
    """The words of `struct seccomp_data` that hold an argument's low and high half; -1 is the instruction pointer."""
    first = 4 + 2 * index
    return (first + 1, first) if bpf.is_big_endian(arch) else (first, first + 1)


def demands_text(demands: Sequence[Demand], arch: int) -> str:
    """What a path demands of the arguments, for a person: "args[0] & 0x7e020000 == 0x0", or "" for nothing."""
    parts = []
    for index in range(-1, 6):
        low, high = argument_words(index, arch)
        name = f"args[{index}]" if index >= 0 else "instruction pointer"
        own = {word: [d for d in demands if d.word == word] for word in (low, high)}
        whole = [d for word in (low, high) for d in own[word]]
        if len(whole) == 2 and all(d.comparison == "==" and d.mask == _FULL for d in whole):
            parts.append(f"{name} == {own[low][0].value | own[high][0].value << 32:#x}")
            continue
        for word, label in ((high, f"{name}.high"), (low, name)):
            for d in own[word]:
                subject = label if d.mask == _FULL else f"{label} & {d.mask:#x}"
                parts.append(f"{subject} {d.comparison} {d.value:#x}")
    return " and ".join(parts)
