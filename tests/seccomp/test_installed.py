# SPDX-License-Identifier: Apache-2.0
"""Filters of a process, asked about workloads and features."""
from __future__ import annotations

import time

from triaged.model.filters import FilterDump, InstalledFilter
from triaged.seccomp import bpf
from triaged.seccomp.action import ALLOW, ENOSYS, EPERM, Action
from triaged.seccomp.assessment import assess
from triaged.seccomp.bpf import Instruction, Program
from triaged.seccomp.check import Outcome
from triaged.seccomp.compiler import compiled
from triaged.seccomp.installed import Installed, installed
from triaged.seccomp.policy import ArchPolicy, Branch, Condition, Policy
from triaged.seccomp.syscalls import number_of
from triaged.workload_needs import read_needs

NEEDS = read_needs()


def found(*filters: dict[str, Branch], mode: str = "filter") -> Installed:
    made = []
    for rules in filters:
        branches = {number_of("x86_64", name) or 0: (branch,) for name, branch in rules.items()}
        made.append(InstalledFilter(compiled(Policy((ArchPolicy("x86_64", ALLOW, branches),), ALLOW)).packed(), False))
    return installed(FilterDump(1, mode, tuple(made)), "x86_64")


def refused(one: Installed) -> dict[str, Action]:
    return {denied.feature.name: denied.action for denied in assess(one, NEEDS, ()).features}


def test_without_filters_everything_is_allowed_and_in_strict_mode_next_to_nothing() -> None:
    free = assess(found(mode="none"), NEEDS, ["go-test-binary"])
    assert (free.works, free.features, free.sentences()) == (True, (), ())
    strict = assess(found(mode="strict"), NEEDS, ["go-test-binary"])
    assert not strict.works
    (result,) = strict.results
    assert {verdict.call for verdict in result.of(Outcome.ALLOWED)} <= {"read", "write", "rt_sigreturn", "exit"}
    assert len(strict.features) == len(NEEDS.features)
    assert "ends with SIGSYS" in strict.features[0].sentence


def test_of_stacked_filters_the_strictest_answer_is_told() -> None:
    one = found({"unshare": Branch(EPERM)}, {"unshare": Branch(ENOSYS), "bpf": Branch(EPERM)})
    assert refused(one) == {"unshare": EPERM, "bpf": EPERM}  # of two errnos the newer filter's
    assert refused(found({"unshare": Branch(ENOSYS)}, {"unshare": Branch(EPERM)})) == {"unshare": ENOSYS}


def test_only_the_flags_that_make_a_user_namespace_are_refused() -> None:
    namespaces = Condition(0, "&==", 0x10000000, 0x10000000)
    one = found({"clone": Branch(EPERM, (namespaces,))})
    assert refused(one) == {"user-namespace": EPERM}
    assessment = assess(one, NEEDS, ["go-exec-binary"])
    assert assessment.works
    assert assessment.sentences() == (
        'clone(CLONE_NEWUSER) returns EPERM: a package that uses SysProcAttr.Cloneflags with CLONE_NEWUSER fails with '
        '"fork/exec PATH: operation not permitted"',
    )


def test_what_breaks_stands_first_with_the_workloads_that_it_breaks() -> None:
    one = found({"epoll_create1": Branch(EPERM), "clone3": Branch(ENOSYS), "bpf": Branch(EPERM)})
    sentences = assess(one, NEEDS, ["go-test-binary", "go-cgo-binary"]).sentences()
    assert sentences[0].startswith("epoll_create1 returns EPERM")
    assert "go-test-binary" in sentences[0]
    assert "does not work" in sentences[0]
    assert "clone3 returns ENOSYS: go-cgo-binary does without" in sentences
    assert sentences[-1].startswith("bpf returns EPERM: a package that loads eBPF programs fails")


def test_where_a_filter_has_too_many_cases_nothing_is_called_allowed() -> None:
    # Each bit of an argument is a fork of ways: 2 to the 16th of them.
    steps = [Instruction(bpf.LDX_IMM, 0, 0, 0)]
    for bit in range(16):
        steps += [Instruction(bpf.LD_ABS, 0, 0, 16), Instruction(bpf.JSET_K, 0, 1, 1 << bit), Instruction(bpf.LDX_IMM, 0, 0, bit)]
    steps += [Instruction(bpf.TXA, 0, 0, 0), Instruction(bpf.JEQ_K, 0, 1, 15), Instruction(bpf.RET_K, 0, 0, EPERM.value),
              Instruction(bpf.RET_K, 0, 0, ALLOW.value)]
    one = installed(FilterDump(1, "filter", (InstalledFilter(Program(steps).packed(), False),)), "x86_64")
    assert one.answers("mmap") == ((EPERM, "too many cases to tell"), (ALLOW, "too many cases to tell"))
    began = time.process_time()
    (result,) = assess(one, NEEDS, ["go-test-binary"]).results
    assert time.process_time() - began < 10  # whoever wrote it does not keep us busy
    assert {verdict.call for verdict in result.of(Outcome.ALLOWED)} <= {"clone"}  # whose arguments are known
    assert {verdict.call for verdict in result.of(Outcome.DEPENDS)} >= {"futex", "mmap"}
