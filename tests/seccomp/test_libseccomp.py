# SPDX-License-Identifier: Apache-2.0
"""Our reading of profiles next to the filter that libseccomp makes of the same rules, added as runc adds them."""
from __future__ import annotations

import ctypes
import ctypes.util
import os
from pathlib import Path

import pytest

from triaged.seccomp import oci
from triaged.seccomp.action import Action, ActionKind
from triaged.seccomp.bpf import Program, SeccompData, parse_program
from triaged.seccomp.oci import Profile, Rule, Setting
from triaged.seccomp.policy import Condition
from triaged.seccomp.syscalls import X32_SYSCALL_BIT, audit_arch_of

DEFAULTS = sorted((Path(__file__).resolve().parents[2] / "config/seccomp/defaults").glob("*.json"))
TOKENS = {"x86_64": 0xC000003E, "i386": 0x40000003, "x32": 0x4000003E}
COMPARISONS = {"!=": 1, "<": 2, "<=": 3, "==": 4, ">=": 5, ">": 6, "&==": 7}
NAME = ctypes.util.find_library("seccomp")
EVERYTHING = frozenset({"CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_AUDIT_WRITE", "CAP_SYS_CHROOT"})

pytestmark = pytest.mark.skipif(NAME is None, reason="libseccomp is not installed")


class Comparison(ctypes.Structure):
    _fields_ = (("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("first", ctypes.c_uint64), ("second", ctypes.c_uint64))


def compared(condition: Condition) -> Comparison:
    is_masked = condition.comparison == "&=="
    first, second = (condition.mask, condition.value) if is_masked else (condition.value, 0)
    return Comparison(condition.argument, COMPARISONS[condition.comparison], first, second)


def made_by_libseccomp(profile: Profile, setting: Setting) -> tuple[Program, set[str]]:
    """The filter, and the names that this libseccomp does not know (runc passes over them)."""
    library = ctypes.CDLL(NAME)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    for name, arguments in {
        "seccomp_arch_add": [ctypes.c_void_p, ctypes.c_uint32], "seccomp_release": [ctypes.c_void_p],
        "seccomp_export_bpf": [ctypes.c_void_p, ctypes.c_int], "seccomp_syscall_resolve_name": [ctypes.c_char_p],
        "seccomp_rule_add_array": [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison)],
    }.items():
        getattr(library, name).argtypes = arguments
    context = library.seccomp_init(profile.default.value)
    unknown = set()
    for arch in profile.arch_map[setting.arch]:
        assert library.seccomp_arch_add(context, TOKENS[arch]) == 0
    for rule in (rule for rule in profile.rules if oci.is_active(rule, setting) and rule.action != profile.default):
        for name in rule.names:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1:
                unknown.add(name)
                continue
            for conditions in groups(rule):
                array = (Comparison * max(len(conditions), 1))(*map(compared, conditions))
                result = library.seccomp_rule_add_array(context, rule.action.value, number, len(conditions), array)
                assert result in (0, -17), (name, result)  # EEXIST: said already
    read, write = os.pipe()
    os.set_blocking(write, False)
    import fcntl

    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 18)
    assert library.seccomp_export_bpf(context, write) == 0
    os.close(write)
    with os.fdopen(read, "rb") as file:
        raw = file.read()
    library.seccomp_release(context)
    return parse_program(raw), unknown


def groups(rule: Rule) -> list[tuple[Condition, ...]]:
    indexes = [condition.argument for condition in rule.conditions]
    return [(condition,) for condition in rule.conditions] if len(set(indexes)) < len(indexes) else [rule.conditions]


@pytest.mark.parametrize("capabilities", [oci.DEFAULT_CAPABILITIES, EVERYTHING], ids=["default", "admin"])
@pytest.mark.parametrize("path", DEFAULTS, ids=lambda path: path.stem)
def test_a_profile_means_what_libseccomp_makes_of_it(path: Path, capabilities: frozenset[str]) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("compares the x86 architectures")
    profile = oci.parse_profile(path.read_text(), str(path))
    setting = Setting("x86_64", capabilities, low_level="crun")
    program, unknown = made_by_libseccomp(profile, setting)
    policy = oci.resolved(profile, setting)
    wrong, compared_calls = [], 0
    for arch, bit in (("x86_64", 0), ("x32", X32_SYSCALL_BIT), ("i386", 0)):
        one = policy.arch(arch)
        assert one is not None
        from triaged.seccomp.syscalls import name_of

        for number in (number | bit for number in range(600)):
            audit_arch = audit_arch_of(arch)
            if name_of(audit_arch, number) in unknown:
                continue
            values = {(0,) * 6, (0xFFFFFFFF,) * 6, (16, 0, 9, 0, 0, 0), (40, 0, 0, 0, 0, 0), (16, 0, 0, 0, 0, 0)}
            values |= {tuple((c.value if i == c.argument else 0) for i in range(6))
                       for branch in one.branches.get(number, ()) for c in branch.conditions}
            for arguments in values:
                mine = policy.action(audit_arch, number, arguments)
                theirs = Action.of(program.run(SeccompData(number, audit_arch, arguments)))
                compared_calls += 1
                if mine != theirs:
                    wrong.append((arch, name_of(audit_arch, number), arguments, str(mine), str(theirs)))
    assert wrong == []
    assert compared_calls > 8000
    assert Action.of(program.run(SeccompData(0, audit_arch_of("aarch64")))).kind is ActionKind.KILL_THREAD
