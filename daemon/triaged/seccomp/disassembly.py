# SPDX-License-Identifier: Apache-2.0
"""A filter as text: what each instruction does, with the names of calls, architectures, arguments and actions.

What the accumulator holds is followed along the jumps, so that `A == 435` is shown as `nr == clone3` where, and only
where, it is the call's number of a known architecture on every path to that line.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from triaged.seccomp import bpf
from triaged.seccomp.action import Action
from triaged.seccomp.bpf import Instruction, Program
from triaged.seccomp.syscalls import arch_name, name_of

NUMBER, ARCH = "nr", "arch"


@dataclass(frozen=True)
class _Known:
    """What is known before an instruction: what A and X hold ("" if unsure) and the audit architecture (None if unsure)."""

    a: str = "0"
    x: str = "0"
    arch: int | None = None


def disassemble(program: Program, default_arch: int | None = None) -> Iterator[str]:
    """One line for each instruction. `default_arch` names the calls of filters that never look at the architecture."""
    known: list[_Known | None] = [None] * (len(program) + 1)
    known[0] = _Known(arch=default_arch)
    for at, instruction in enumerate(program.instructions):
        state = known[at]
        if state is None:
            yield f"{at:04}: {_text(at, instruction, _Known())}    # never reached"
            continue
        yield f"{at:04}: {_text(at, instruction, state)}"
        for target, after in _successors(at, instruction, state):
            known[target] = after if known[target] is None else _joined(known[target], after)


def word_name(word: int, is_big: bool = False) -> str:
    """The word of `struct seccomp_data` as people call it: nr, arch, args[0] (low half), args[0].high."""
    if word < 2:
        return (NUMBER, ARCH)[word]
    is_high = bool(word % 2) != is_big
    name = "instruction_pointer" if word < 4 else f"args[{(word - 4) // 2}]"
    return name + (".high" if is_high else "")


def _joined(one: _Known | None, other: _Known) -> _Known:
    if one is None:
        return other
    return _Known(
        one.a if one.a == other.a else "",
        one.x if one.x == other.x else "",
        one.arch if one.arch == other.arch else None,
    )


def _successors(at: int, i: Instruction, state: _Known) -> Iterator[tuple[int, _Known]]:
    if i.code in (bpf.RET_K, bpf.RET_A):
        return
    if i.code == bpf.JA:
        yield at + 1 + i.k, state
    elif i.code in bpf.CONDITIONALS:
        is_arch = i.code == bpf.JEQ_K and state.a == ARCH
        yield at + 1 + i.jt, _Known(state.a, state.x, i.k) if is_arch else state
        yield at + 1 + i.jf, state
    else:
        yield at + 1, _after(i, state)


def _after(i: Instruction, state: _Known) -> _Known:
    is_big = state.arch is not None and bpf.is_big_endian(state.arch)
    if i.code == bpf.LD_ABS:
        return _Known(word_name(i.k >> 2, is_big), state.x, state.arch)
    if i.code in bpf.ALU:
        operator, with_x = bpf.ALU[i.code]
        operand = state.x if with_x else f"{i.k:#x}"
        text = f"({state.a} {operator} {operand})" if state.a and operand else ""
        return _Known(text if len(text) <= 60 else "", state.x, state.arch)
    if i.code in (bpf.LD_IMM, bpf.LD_LEN):
        return _Known(f"{i.k:#x}" if i.code == bpf.LD_IMM else "64", state.x, state.arch)
    if i.code == bpf.TXA:
        return _Known(state.x, state.x, state.arch)
    if i.code == bpf.TAX:
        return _Known(state.a, state.a, state.arch)
    if i.code in (bpf.LD_MEM, bpf.NEG):
        return _Known("", state.x, state.arch)
    if i.code in (bpf.LDX_MEM, bpf.LDX_IMM, bpf.LDX_LEN):
        return _Known(state.a, f"{i.k:#x}" if i.code == bpf.LDX_IMM else "64" if i.code == bpf.LDX_LEN else "", state.arch)
    return state


def _text(at: int, i: Instruction, state: _Known) -> str:
    if i.code == bpf.RET_K:
        return f"return {Action.of(i.k)}"
    if i.code == bpf.JA:
        return f"goto {at + 1 + i.k:04}"
    if i.code in bpf.CONDITIONALS:
        return _condition(at, i, state)
    if i.code in bpf.ALU:
        operator, with_x = bpf.ALU[i.code]
        return f"A {operator}= {'X' if with_x else f'{i.k:#x}'}"
    texts = {
        bpf.LD_ABS: f"A = {word_name(i.k >> 2, state.arch is not None and bpf.is_big_endian(state.arch))}",
        bpf.LD_IMM: f"A = {i.k:#x}", bpf.LD_MEM: f"A = M[{i.k}]", bpf.LD_LEN: "A = 64", bpf.LDX_IMM: f"X = {i.k:#x}",
        bpf.LDX_MEM: f"X = M[{i.k}]", bpf.LDX_LEN: "X = 64", bpf.ST: f"M[{i.k}] = A", bpf.STX: f"M[{i.k}] = X",
        bpf.TAX: "X = A", bpf.TXA: "A = X", bpf.NEG: "A = -A", bpf.RET_A: "return A",
    }
    return texts[i.code]


def _condition(at: int, i: Instruction, state: _Known) -> str:
    comparison = bpf.CONDITIONALS[i.code]
    subject = state.a or "A"
    if i.code & bpf.BPF_X:
        operand = state.x or "X"
    elif state.a == ARCH:
        operand = arch_name(i.k)
    elif state.a == NUMBER and state.arch is not None:
        operand = _call(state.arch, i.k)
    else:
        operand = f"{i.k:#x}"
    yes, no = at + 1 + i.jt, at + 1 + i.jf
    test = f"{subject} {comparison} {operand}"
    if i.jf == 0:
        return f"if {test} goto {yes:04}"
    if i.jt == 0:
        return f"if not {test} goto {no:04}"
    return f"if {test} goto {yes:04} else {no:04}"


def _call(arch: int, number: int) -> str:
    name = name_of(arch, number)
    return f"{name}({number})" if name != str(number) else f"{number:#x}"
