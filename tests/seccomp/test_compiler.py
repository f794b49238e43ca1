# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triaged.errors import Malformed
from triaged.seccomp.action import ALLOW, ENOSYS, EPERM, KILL_PROCESS, KILL_THREAD, Action, ActionKind
from triaged.seccomp.bpf import SeccompData
from triaged.seccomp.compiler import compiled
from triaged.seccomp.policy import COMPARISONS, ArchPolicy, Branch, Condition, Policy
from triaged.seccomp.syscalls import X32_SYSCALL_BIT, audit_arch_of

VALUES = st.sampled_from([0, 1, 2, 8, 0x20000, 0x7E020000, 0xFFFFFFFF, 0x100000000, 0x100000001, 0xFFFFFFFFFFFFFFFF])
ACTIONS = st.sampled_from([ALLOW, EPERM, ENOSYS, KILL_PROCESS, KILL_THREAD, Action(ActionKind.TRAP), Action(ActionKind.LOG)])
CONDITIONS = st.builds(Condition, st.integers(0, 5), st.sampled_from(COMPARISONS), VALUES, VALUES)
BRANCHES = st.builds(Branch, ACTIONS, st.lists(CONDITIONS, max_size=3).map(tuple))


@st.composite
def arch_policies(draw: st.DrawFn, arch: str) -> ArchPolicy:
    bit = X32_SYSCALL_BIT if arch == "x32" else 0
    numbers = draw(st.dictionaries(st.integers(0, 30), st.lists(BRANCHES, min_size=1, max_size=3).map(tuple), max_size=12))
    branches = {number | bit: branch for number, branch in numbers.items()}
    beyond = draw(st.sampled_from([None, ENOSYS]))
    return ArchPolicy(arch, draw(ACTIONS), branches, draw(st.integers(0, 30)) | bit, beyond)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    arches = draw(st.lists(st.sampled_from(["x86_64", "x32", "i386", "aarch64", "s390x"]), unique=True, max_size=4))
    return Policy(tuple(draw(arch_policies(arch)) for arch in arches), draw(ACTIONS))


@given(policies(), st.data())
def test_the_filter_answers_as_the_policy_for_every_number_and_architecture(policy: Policy, data: st.DataObject) -> None:
    program = compiled(policy)
    arguments = tuple(data.draw(st.lists(VALUES, min_size=6, max_size=6)))
    for arch in ("x86_64", "i386", "aarch64", "s390x", "riscv64"):
        audit_arch = audit_arch_of(arch)
        given_arguments = tuple(value & 0xFFFFFFFF for value in arguments) if arch == "i386" else arguments
        for number in (*range(33), *(n | X32_SYSCALL_BIT for n in range(33)), 0x3FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF):
            got = program.run(SeccompData(number, audit_arch, given_arguments))
            assert Action.of(got) == policy.action(audit_arch, number, given_arguments), (arch, number)


def test_the_filter_for_hundreds_of_calls_with_conditions_reaches_its_answers() -> None:
    branches = {
        number: (Branch(Action(ActionKind.ERRNO, 1 + number % 100), (Condition(0, "==", number), Condition(1, ">", 7))),)
        for number in range(0, 400, 2)
    }
    policy = Policy((ArchPolicy("x86_64", ALLOW, branches),))
    program = compiled(policy)
    assert len(program) > 2000
    for number in range(401):
        for arguments in ((number, 8, 0, 0, 0, 0), (number, 7, 0, 0, 0, 0), (number, 1 << 40, 0, 0, 0, 0)):
            got = Action.of(program.run(SeccompData(number, audit_arch_of("x86_64"), arguments)))
            assert got == policy.action(audit_arch_of("x86_64"), number, arguments)


def test_a_policy_too_large_for_the_kernel_is_refused() -> None:
    branches = {
        number: (Branch(Action(ActionKind.ERRNO, errno.EPERM), tuple(Condition(i, "==", number) for i in range(6))),)
        for number in range(400)
    }
    with pytest.raises(Malformed, match="4096"):
        compiled(Policy((ArchPolicy("x86_64", ALLOW, branches),)))


def test_calls_of_an_architecture_that_the_policy_lacks_get_the_foreign_action() -> None:
    program = compiled(Policy((ArchPolicy("x86_64", ALLOW),), KILL_PROCESS))
    assert Action.of(program.run(SeccompData(1, audit_arch_of("i386")))) == KILL_PROCESS
    assert Action.of(program.run(SeccompData(1 | X32_SYSCALL_BIT, audit_arch_of("x86_64")))) == KILL_PROCESS
    assert Action.of(program.run(SeccompData(0xFFFFFFFF, audit_arch_of("x86_64")))) == ALLOW
