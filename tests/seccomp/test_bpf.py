# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triaged.errors import Malformed
from triaged.seccomp import bpf
from triaged.seccomp.action import Action, ActionKind, strictness
from triaged.seccomp.bpf import Instruction, Program, SeccompData, parse_program, run_stacked

X86_64 = 0xC000003E
S390X = 0x80000016
ALLOW = 0x7FFF0000


def program(*instructions: tuple[int, ...]) -> Program:
    """Instructions given as (code, k) or (code, k, jt, jf)."""
    return Program([Instruction(i[0], *(i[2:] or (0, 0)), i[1]) for i in instructions])


def answer(*instructions: tuple[int, ...], number: int = 1, arch: int = X86_64, arguments: tuple[int, ...] = (0,) * 6) -> int:
    return program(*instructions).run(SeccompData(number, arch, arguments, 0x1122334455667788))


@pytest.mark.parametrize(
    ("operator", "a", "operand", "result"),
    [
        ("+", 0xFFFFFFFF, 2, 1), ("-", 1, 2, 0xFFFFFFFF), ("*", 0x10000, 0x10001, 0x10000), ("/", 7, 2, 3),
        ("&", 0xF0F0, 0xFF, 0xF0),
        ("|", 0xF0, 0x0F, 0xFF), ("^", 0xFF, 0x0F, 0xF0), ("<<", 1, 31, 0x80000000), ("<<", 3, 31, 0x80000000),
        (">>", 0x80000000, 31, 1),
    ],
)
@pytest.mark.parametrize("with_x", [False, True])
def test_arithmetic_is_32_bits_wide(operator: str, a: int, operand: int, result: int, with_x: bool) -> None:
    setup = ((bpf.LDX_IMM, operand),) if with_x else ()
    got = answer((bpf.LD_IMM, a), *setup, (bpf.ALU_CODE[operator, with_x], 0 if with_x else operand), (bpf.RET_A, 0))
    assert got == result


def test_division_by_an_x_of_zero_ends_the_filter_with_kill_thread() -> None:
    got = answer((bpf.LD_IMM, 5), (bpf.ALU_CODE["/", True], 0), (bpf.RET_K, ALLOW))
    assert Action.of(got).kind is ActionKind.KILL_THREAD


def test_shift_by_x_uses_its_low_five_bits() -> None:
    assert answer((bpf.LD_IMM, 1), (bpf.LDX_IMM, 33), (bpf.ALU_CODE["<<", True], 0), (bpf.RET_A, 0)) == 2


def test_negation_and_registers_and_scratch_words() -> None:
    got = answer(
        (bpf.LD_IMM, 5), (bpf.NEG, 0), (bpf.ST, 3), (bpf.LD_IMM, 0), (bpf.LDX_MEM, 3), (bpf.STX, 15), (bpf.LD_MEM, 15),
        (bpf.TAX, 0), (bpf.LD_IMM, 0), (bpf.TXA, 0), (bpf.RET_A, 0),
    )
    assert got == 0xFFFFFFFB
    assert answer((bpf.LD_LEN, 0), (bpf.RET_A, 0)) == 64
    assert answer((bpf.LDX_LEN, 0), (bpf.TXA, 0), (bpf.RET_A, 0)) == 64


@pytest.mark.parametrize(
    ("code", "a", "operand", "taken"),
    [
        (bpf.JEQ_K, 5, 5, True), (bpf.JEQ_K, 5, 6, False), (bpf.JGT_K, 6, 5, True), (bpf.JGT_K, 5, 5, False),
        (bpf.JGE_K, 5, 5, True),
        (bpf.JGE_K, 4, 5, False), (bpf.JSET_K, 6, 2, True), (bpf.JSET_K, 4, 2, False), (bpf.JGT_K, 0xFFFFFFFF, 1, True),
    ],
)
@pytest.mark.parametrize("with_x", [False, True])
def test_conditional_jumps_compare_unsigned(code: int, a: int, operand: int, taken: bool, with_x: bool) -> None:
    setup = ((bpf.LDX_IMM, operand),) if with_x else ()
    jump = (code | bpf.BPF_X, 0, 1, 0) if with_x else (code, operand, 1, 0)
    assert answer((bpf.LD_IMM, a), *setup, jump, (bpf.RET_K, 1), (bpf.RET_K, 2)) == (2 if taken else 1)


@pytest.mark.parametrize(("arch", "low", "high"), [(X86_64, 24, 28), (S390X, 28, 24)])
def test_halves_of_an_argument_lie_in_the_byte_order_of_the_architecture(arch: int, low: int, high: int) -> None:
    arguments = (0, 0x0123456789ABCDEF, 0, 0, 0, 0)
    assert answer((bpf.LD_ABS, low), (bpf.RET_A, 0), arch=arch, arguments=arguments) == 0x89ABCDEF
    assert answer((bpf.LD_ABS, high), (bpf.RET_A, 0), arch=arch, arguments=arguments) == 0x01234567


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        ([], "1 to 4096"),
        ([(bpf.RET_K, 0)] * 4097, "1 to 4096"),
        ([(bpf.LD_IMM, 1)], "no RET"),
        ([(0x94, 3), (bpf.RET_K, 0)], "not allowed in seccomp"),  # MOD
        ([(0x30, 0), (bpf.RET_K, 0)], "not allowed in seccomp"),  # a load of one byte
        ([(bpf.LD_ABS, 64), (bpf.RET_K, 0)], "outside"),
        ([(bpf.LD_ABS, 2), (bpf.RET_K, 0)], "unaligned"),
        ([(bpf.ALU_CODE["/", False], 0), (bpf.RET_K, 0)], "division"),
        ([(bpf.ALU_CODE["<<", False], 32), (bpf.RET_K, 0)], "shift"),
        ([(bpf.ST, 16), (bpf.RET_K, 0)], "16 scratch"),
        ([(bpf.LD_MEM, 0), (bpf.RET_K, 0)], "not stored"),
        ([(bpf.JA, 1), (bpf.RET_K, 0)], "beyond"),
        ([(bpf.JEQ_K, 0, 0, 1), (bpf.RET_K, 0)], "beyond"),
        ([(bpf.JEQ_K, 0, 1, 0), (bpf.ST, 0), (bpf.LD_MEM, 0), (bpf.RET_A, 0)], "not stored"),
    ],
)
def test_a_filter_that_the_kernel_refuses_is_refused_with_the_reason(instructions: list[tuple[int, ...]], reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        program(*instructions)


def test_a_filter_of_4096_instructions_runs_to_its_end() -> None:
    longest = program(*[(bpf.ALU_CODE["+", False], 1)] * 4095, (bpf.RET_A, 0))
    assert longest.run(SeccompData(0, X86_64)) == 4095


@pytest.mark.parametrize("raw", [b"\x06\0\0\0\0\0\0", b"", b"\x06" * 8 * 5000])
def test_bytes_that_are_no_filter_are_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_program(raw)


def test_a_filter_survives_packing() -> None:
    original = program((bpf.LD_ABS, 4), (bpf.JEQ_K, X86_64, 0, 1), (bpf.RET_K, ALLOW), (bpf.RET_K, 0x80000000))
    assert parse_program(original.packed()) == original


def test_the_strictest_of_stacked_filters_wins_and_of_equal_ones_the_newest() -> None:
    kill, thread, trap, eperm, enosys, notify, trace, log, allow = (
        program((bpf.RET_K, value))
        for value in (0x80000000, 0, 0x30000, 0x50001, 0x50026, 0x7FC00000, 0x7FF00000, 0x7FFC0000, ALLOW)
    )
    data = SeccompData(1, X86_64)
    order = [kill, thread, trap, eperm, notify, trace, log, allow]
    for at, stricter in enumerate(order):
        for laxer in order[at + 1:]:
            assert run_stacked([stricter, laxer], data) == run_stacked([laxer, stricter], data) == Action.of(stricter.run(data))
    assert run_stacked([eperm, enosys], data) == Action.of(0x50001)
    assert run_stacked([enosys, eperm], data) == Action.of(0x50026)
    assert run_stacked([], data) == Action.of(ALLOW)


def test_an_unknown_action_kills_and_an_errno_is_capped() -> None:
    assert Action.of(0x12340000).kind is ActionKind.KILL_PROCESS
    assert Action.of(0x0005FFFF) == Action(ActionKind.ERRNO, 4095)
    assert str(Action.of(0x50001)) == "ERRNO(EPERM)"
    assert strictness(0x80000000) < strictness(0) < strictness(0x7FFF0000)


@given(st.binary(max_size=400))
def test_any_bytes_give_a_filter_or_a_clear_error(raw: bytes) -> None:
    try:
        parsed = parse_program(raw)
    except Malformed:
        return
    assert 0 <= parsed.run(SeccompData(1, X86_64)) <= 0xFFFFFFFF
    assert parsed.packed() == raw
