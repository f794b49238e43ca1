# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from triaged.errors import Malformed
from triaged.seccomp import bpf
from triaged.seccomp.action import ALLOW, EPERM, Action
from triaged.seccomp.bpf import Instruction, Program, SeccompData, run_stacked
from triaged.seccomp.outcomes import Demand, outcomes_of

X86_64 = 0xC000003E
WORDS = st.sampled_from([0, 1, 2, 3, 0x7E020000, 0x10000000, 0x80000000, 0xFFFFFFFF])
# Loads, masks, tests and answers: what compilers of filters emit.
STEPS = st.one_of(
    st.builds(lambda word: (bpf.LD_ABS, 0, 0, 4 * word), st.integers(0, 15)),
    st.builds(lambda mask: (bpf.ALU_CODE["&", False], 0, 0, mask), WORDS),
    st.builds(lambda code, jt, jf, k: (code, jt, jf, k), st.sampled_from([bpf.JEQ_K, bpf.JGT_K, bpf.JGE_K, bpf.JSET_K]),
              st.integers(0, 3), st.integers(0, 3), WORDS),
    st.builds(lambda value: (bpf.RET_K, 0, 0, value), st.sampled_from([0x7FFF0000, 0x50001, 0x50026, 0x80000000, 0x30000])),
)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    steps = draw(st.lists(STEPS, max_size=14))
    tail = [(bpf.RET_K, 0, 0, value) for value in (0x50001, 0x7FFF0000, 0, 0x50026)]
    return Program([Instruction(*step) for step in [*steps, *tail]])


@given(st.lists(programs(), min_size=1, max_size=3), WORDS)
def test_every_outcome_has_a_witness_that_the_filters_answer_so(stack: list[Program], number: int) -> None:
    result = outcomes_of(stack, number, X86_64)
    assert result.outcomes
    assert result.is_exact
    for outcome in result.outcomes:
        assert run_stacked(stack, outcome.witness) == outcome.action


@given(st.lists(programs(), min_size=1, max_size=3), WORDS,
       st.lists(st.one_of(WORDS, st.integers(0, 2**64 - 1)), min_size=7, max_size=7))
def test_no_answer_of_the_filters_is_missing(stack: list[Program], number: int, values: list[int]) -> None:
    data = SeccompData(number, X86_64, tuple(values[:6]), values[6])
    assert run_stacked(stack, data) in outcomes_of(stack, number, X86_64).actions


@given(st.lists(st.builds(Instruction, st.sampled_from(sorted(bpf._ALLOWED)), st.integers(0, 4), st.integers(0, 4),
                          st.one_of(WORDS, st.integers(0, 15))), max_size=12), WORDS)
def test_where_arithmetic_hides_an_argument_the_result_says_so(instructions: list[Instruction], number: int) -> None:
    try:
        program = Program([*instructions, Instruction(bpf.RET_K, 0, 0, 0x7FFF0000)])
    except Malformed:
        return
    result = outcomes_of([program], number, X86_64)
    for values in ((0,) * 6, (0xFFFFFFFFFFFFFFFF,) * 6, (1, 2, 3, 4, 5, 6)):
        if result.is_exact:
            assert run_stacked([program], SeccompData(number, X86_64, values)) in result.actions


def test_clone_with_namespace_flags_is_told_from_clone_without() -> None:
    program = Program([Instruction(*fields) for fields in (
        (bpf.LD_ABS, 0, 0, 16), (bpf.ALU_CODE["&", False], 0, 0, 0x7E020000), (bpf.JEQ_K, 0, 1, 0),
        (bpf.RET_K, 0, 0, 0x7FFF0000), (bpf.RET_K, 0, 0, 0x50001),
    )])
    result = outcomes_of([program], 56, X86_64)
    assert {outcome.action: outcome.demands for outcome in result.outcomes} == {
        ALLOW: (Demand(4, 0x7E020000, "==", 0),),
        EPERM: (Demand(4, 0x7E020000, "!=", 0),),
    }
    assert result.actions == (EPERM, ALLOW)


def test_a_path_that_no_argument_can_take_is_no_outcome() -> None:
    program = Program([Instruction(*fields) for fields in (
        (bpf.LD_ABS, 0, 0, 16), (bpf.JGT_K, 0, 1, 5), (bpf.JEQ_K, 1, 0, 3), (bpf.RET_K, 0, 0, 0x7FFF0000), (bpf.RET_K, 0, 0, 0),
    )])
    # args[0] > 5 and args[0] == 3 contradict; args[0] <= 5 reaches only ALLOW.
    assert outcomes_of([program], 1, X86_64).actions == (ALLOW,)


def test_stacked_filters_combine_their_demands() -> None:
    def only(argument: int) -> Program:
        return Program([Instruction(*fields) for fields in (
            (bpf.LD_ABS, 0, 0, 16), (bpf.JEQ_K, 0, 1, argument), (bpf.RET_K, 0, 0, 0x7FFF0000), (bpf.RET_K, 0, 0, 0x50001),
        )])
    assert outcomes_of([only(1), only(2)], 1, X86_64).actions == (Action.of(0x50001),)
    assert set(outcomes_of([only(1), only(1)], 1, X86_64).actions) == {EPERM, ALLOW}
