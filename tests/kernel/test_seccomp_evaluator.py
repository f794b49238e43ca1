# SPDX-License-Identifier: Apache-2.0
"""The evaluator's answers next to this kernel's own, for every call number under real profiles; no call is executed.

How the kernel is asked stands in seccomp_probe.c.
"""
from __future__ import annotations

import platform
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from triaged.seccomp import bpf, oci, systemd_filter
from triaged.seccomp.action import ALLOW, Action, ActionKind
from triaged.seccomp.bpf import Instruction, Program, SeccompData, run_stacked
from triaged.seccomp.compiler import compiled
from triaged.seccomp.policy import COMPARISONS, Policy
from triaged.seccomp.syscalls import AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, X32_SYSCALL_BIT

MARKER = 4001
SYSCALL, INT80 = 0, 1
NOT_ASKED, RETURNED, TRAPPED, KILLED_THREAD, KILLED_PROCESS, ILLEGAL = range(6)
CONFIG = Path(__file__).resolve().parents[2] / "config/seccomp"
KINDS = {TRAPPED: ActionKind.TRAP, KILLED_THREAD: ActionKind.KILL_THREAD, KILLED_PROCESS: ActionKind.KILL_PROCESS}
Entry = tuple[int, int, tuple[int, ...]]

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe is written for x86_64")

# SystemCallFilter= settings of units as they ship (systemd 252 and what their documentation recommends), by name.
SYSTEMD = {
    "journald": "SystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\nSystemCallArchitectures=native",
    "timesyncd": "SystemCallFilter=@system-service @clock\nSystemCallErrorNumber=EPERM\nSystemCallArchitectures=native",
    "hostnamed": "SystemCallFilter=@system-service sethostname\nSystemCallErrorNumber=EPERM\nSystemCallArchitectures=native",
    "pstore": "SystemCallFilter=@default @file-system @basic-io @system-service\nSystemCallArchitectures=native",
    "hardened": "SystemCallFilter=@system-service\nSystemCallFilter=~@privileged @resources\nSystemCallArchitectures=native",
    "deny list": "SystemCallFilter=~@clock @debug @module @mount @raw-io @reboot @swap\nSystemCallErrorNumber=EPERM",
    "deny list that kills": "SystemCallFilter=~@cpu-emulation @obsolete @keyring @privileged",
    "own errno": "SystemCallFilter=@system-service ptrace:ENOSYS clone3:EACCES",
}


def policies() -> dict[str, Policy]:
    """Real profiles, each as it is used on this machine."""
    out: dict[str, Policy] = {}
    everything = frozenset({"CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_AUDIT_WRITE", "CAP_SYS_CHROOT"})
    for path in sorted((CONFIG / "defaults").glob("*.json")):
        profile = oci.parse_profile(path.read_text(), str(path))
        for name, setting in {
            "": oci.Setting(capabilities=oci.DEFAULT_CAPABILITIES),
            " with CAP_SYS_ADMIN": oci.Setting(capabilities=everything, low_level="crun"),
        }.items():
            out[path.stem + name] = oci.resolved(profile, setting)
    groups = systemd_filter.parse_groups((CONFIG / "systemd-252.groups").read_text())
    for name, text in SYSTEMD.items():
        out[f"systemd {name}"] = systemd_filter.resolved(systemd_filter.parse_filter(text, name, groups), "x86_64")
    return out


POLICIES = policies()


class Kernel:
    """This kernel, asked through the probe. `unfiltered` has what it does with calls that it never filters."""

    def __init__(self, probe: Path, directory: Path) -> None:
        self.probe = probe
        self.directory = directory
        self.unfiltered: dict[int, Action | None] = {}

    def asked(self, programs: Sequence[Program], entries: Sequence[Entry]) -> list[Action | None]:
        """The answers under the filters (in the order of loading); None where the call would have been let through."""
        return asked(self.probe, self.directory, programs, entries)

    def predicted(self, programs: Sequence[Program], entry: Entry) -> Action | None:
        """The evaluator's answer, as far as the probe can tell answers apart."""
        way, number, arguments = entry
        if way == SYSCALL and number in self.unfiltered:
            return self.unfiltered[number]
        return predicted(programs, way, number, arguments)


@pytest.fixture(scope="session")
def kernel(probe: Path, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    found = Kernel(probe, tmp_path_factory.mktemp("asked"))
    entries = list(every_call())
    refuse_all = Program([Instruction(bpf.RET_K, 0, 0, 0x50000 | 7)])
    for (way, number, _), answer in zip(entries, found.asked([refuse_all], entries), strict=True):
        if answer != Action(ActionKind.ERRNO, 7):
            assert way == SYSCALL
            assert bpf.is_never_filtered(AUDIT_ARCH_X86_64, number), f"call {number} passes a filter that refuses everything"
            found.unfiltered[number] = answer
    return found


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed to ask the kernel"
    path = tmp_path_factory.mktemp("probe") / "seccomp_probe"
    source = Path(__file__).with_name("seccomp_probe.c")
    subprocess.run([compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", path, source], check=True)
    return path


def asked(probe: Path, directory: Path, programs: Sequence[Program], entries: Sequence[Entry]) -> list[Action | None]:
    """The kernel's answers under the filters (in the order of loading); None where the call would have been let through."""
    (directory / "filters").write_bytes(b"".join(struct.pack("=II", 0, len(program)) + program.packed() for program in programs))
    (directory / "table").write_bytes(b"".join(struct.pack("=II6Q", way, number, *arguments) for way, number, arguments in entries))
    (directory / "results").write_bytes(bytes(8 * len(entries)))
    done = subprocess.run([probe, *(directory / name for name in ("filters", "table", "results"))], capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answers: list[Action | None] = []
    for outcome, value in struct.iter_unpack("=II", (directory / "results").read_bytes()):
        assert outcome != NOT_ASKED
        if outcome in (RETURNED, ILLEGAL):
            answers.append(None if value == MARKER or outcome == ILLEGAL else Action(ActionKind.ERRNO, value))
        else:
            answers.append(Action(KINDS[outcome], value))
    return answers


def predicted(programs: Sequence[Program], way: int, number: int, arguments: tuple[int, ...]) -> Action | None:
    if way == INT80:
        arguments = tuple(value & 0xFFFFFFFF for value in arguments)
    data = SeccompData(number, AUDIT_ARCH_I386 if way == INT80 else AUDIT_ARCH_X86_64, arguments)
    action = run_stacked(list(reversed(programs)), data)
    if action.kind in (ActionKind.KILL_PROCESS, ActionKind.KILL_THREAD):
        return Action(action.kind)
    return action if action.kind in (ActionKind.TRAP, ActionKind.ERRNO) else None


def interesting(policy: Policy) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """For each call with conditions on x86_64 and i386: arguments on both sides of each condition."""
    for arch in policy.arches:
        way = INT80 if arch.arch == "i386" else SYSCALL
        for number, branches in arch.branches.items():
            for condition in (condition for branch in branches for condition in branch.conditions):
                for value in (condition.value, condition.value + 1, condition.mask & -condition.mask, 0xFFFFFFFFFFFFFFFF, 1 << 32):
                    if condition.argument == 5 and way == INT80:
                        continue  # the probe cannot set the sixth argument of a 32-bit call
                    arguments = [0] * 6
                    arguments[condition.argument] = value & 0xFFFFFFFFFFFFFFFF
                    yield way, number, tuple(arguments)


def every_call() -> Iterator[Entry]:
    zeros = (0,) * 6
    x32 = (number | X32_SYSCALL_BIT for number in range(600))
    for number in (*range(600), *x32, 0x3FFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        yield SYSCALL, number, zeros
    for number in (*range(600), 0x40000000, 0xFFFFFFFF):
        yield INT80, number, zeros


def test_there_are_at_least_twenty_real_profiles() -> None:
    assert len(POLICIES) >= 20
    assert len({compiled(policy).packed() for policy in POLICIES.values()}) >= 20


@pytest.mark.parametrize("name", POLICIES)
def test_the_evaluator_answers_every_call_as_this_kernel(name: str, kernel: Kernel) -> None:
    policy = POLICIES[name]
    program = compiled(policy)
    entries = [*every_call(), *interesting(policy)]
    answers = kernel.asked([program], entries)
    assert len(answers) == len(entries) > 1800
    wrong = [(entry, answer, kernel.predicted([program], entry)) for entry, answer in zip(entries, answers, strict=True)
             if answer != kernel.predicted([program], entry)]
    assert wrong == []
    for way, number, arguments in entries:
        audit_arch = AUDIT_ARCH_I386 if way == INT80 else AUDIT_ARCH_X86_64
        narrowed = tuple(value & 0xFFFFFFFF for value in arguments) if way == INT80 else arguments
        assert policy.action(audit_arch, number, narrowed) == Action.of(program.run(SeccompData(number, audit_arch, narrowed)))


def test_of_three_stacked_profiles_the_kernel_takes_the_strictest_answer(kernel: Kernel) -> None:
    names = ["podman-0.62 with CAP_SYS_ADMIN", "docker-26.1", "systemd own errno"]  # the last one refuses seccomp()
    programs = [compiled(POLICIES[name]) for name in names]
    entries = list(every_call())
    answers = kernel.asked(programs, entries)
    assert answers == [kernel.predicted(programs, entry) for entry in entries]
    assert len({answer for answer in answers}) >= 4


def mapped(program: Program, kinds: set[ActionKind]) -> Program:
    """The filter with answers of those kinds replaced by errnos of their own, so that the probe can tell them apart."""
    values = {i.k for i in program.instructions if i.code == bpf.RET_K and Action.of(i.k).kind in kinds}
    number = {value: 3000 + at for at, value in enumerate(sorted(values))}
    return Program([
        Instruction(i.code, i.jt, i.jf, 0x50000 | number[i.k]) if i.code == bpf.RET_K and i.k in number else i
        for i in program.instructions
    ])


def test_filters_that_use_every_instruction_run_as_in_this_kernel(kernel: Kernel) -> None:
    random_numbers = random.Random(20261122)
    entries = [(SYSCALL, number, tuple(random_numbers.choice([0, 1, 2, 7, 1 << 31, 1 << 32, 2**64 - 1, 0xDEADBEEFCAFE])
                                       for _ in range(6))) for number in range(40)]
    codes = [*sorted(bpf._ALLOWED - {bpf.RET_A, bpf.RET_K}), *[bpf.LD_ABS] * 6]
    seen: set[int] = set()
    compared = 0
    for _ in range(40):
        program = arbitrary(random_numbers, codes)
        seen.update(i.code for i in program.instructions)
        answers = kernel.asked([program], entries)
        assert answers == [kernel.predicted([program], entry) for entry in entries], program.instructions
        compared += len({answer for answer in answers})
    assert seen >= set(codes)
    assert compared > 200  # the answers differ: it is no comparison of constants


def arbitrary(random_numbers: random.Random, codes: Sequence[int]) -> Program:
    """A valid filter of random instructions whose result becomes an errno."""
    stores = [Instruction(bpf.ST, 0, 0, cell) for cell in range(bpf.SCRATCH_WORDS)]
    body = []
    for left in range(40, 0, -1):
        code = random_numbers.choice(codes)
        k = random_numbers.choice([0, 1, 2, 3, 31, 0x55555555, 0x80000000, 0xFFFFFFFF])
        if code == bpf.LD_ABS:
            k = 4 * random_numbers.randrange(16)
            k = 0 if k in (8, 12) else k  # the instruction pointer is the probe's own
        elif code in (bpf.LD_MEM, bpf.LDX_MEM, bpf.ST, bpf.STX):
            k %= bpf.SCRATCH_WORDS
        elif code == bpf.JA:
            k = random_numbers.randrange(min(left, 4))
        elif code in (bpf.ALU_CODE["/", False], bpf.ALU_CODE["<<", False], bpf.ALU_CODE[">>", False]):
            k = k % 32 or 1
        body.append(Instruction(code, random_numbers.randrange(min(left, 4)), random_numbers.randrange(min(left, 4)), k))
    # The result: A, X and the stored words together.
    fold = [(bpf.ALU_CODE["^", True], 0), *((code, k) for cell in range(16) for code, k in (
        (bpf.LDX_MEM, cell), (bpf.ALU_CODE["^", True], 0)))]
    tail = [*fold, (bpf.ALU_CODE["&", False], 0x3FF),
            (bpf.ALU_CODE["+", False], 1), (bpf.ALU_CODE["|", False], 0x50000), (bpf.RET_A, 0)]
    return Program([*stores, *body, *(Instruction(code, 0, 0, k) for code, k in tail)])


def test_a_filter_of_4096_instructions_is_loaded_and_answers(kernel: Kernel) -> None:
    chain = [Instruction(bpf.LD_ABS, 0, 0, 0)]
    for number in range(2047):
        chain += [Instruction(bpf.JEQ_K, 0, 1, number), Instruction(bpf.RET_K, 0, 0, 0x50000 | 1 + number % 3000)]
    program = Program([*chain, Instruction(bpf.RET_K, 0, 0, 0x50000 | 3500)])
    assert len(program) == 4096
    entries = [(SYSCALL, number, (0,) * 6) for number in range(0, 2100, 7)]
    assert kernel.asked([program], entries) == [kernel.predicted([program], entry) for entry in entries]


@pytest.mark.parametrize("kind", [kind for kind in ActionKind])
def test_each_action_is_told_apart(kind: ActionKind, kernel: Kernel) -> None:
    program = Program([Instruction(bpf.RET_K, 0, 0, kind | 7)])
    answer, = kernel.asked([program], [(SYSCALL, 39, (0,) * 6)])
    lets_through = kind in (ActionKind.ALLOW, ActionKind.LOG, ActionKind.TRACE, ActionKind.USER_NOTIF)
    assert answer == (None if lets_through else Action(kind, 0 if kind.name.startswith("KILL") else 7))
    answer, = kernel.asked([mapped(program, {kind})], [(SYSCALL, 39, (0,) * 6)])
    assert answer == Action(ActionKind.ERRNO, 3000)


def test_the_profiles_use_conditions_of_several_kinds() -> None:
    used = {condition.comparison for policy in POLICIES.values() for arch in policy.arches
            for branches in arch.branches.values() for branch in branches for condition in branch.conditions}
    assert used >= {"==", "!=", "&=="}
    assert used <= set(COMPARISONS)
    assert any(arch.action(59) == ALLOW for policy in POLICIES.values() for arch in policy.arches)
