# SPDX-License-Identifier: Apache-2.0
"""The names of system calls and architectures, as seccomp and audit number them.

Hard facts: audit's `arch=` is an ELF machine number with two flag bits (linux/audit.h). x32 has no value of its own: it
reports AUDIT_ARCH_X86_64 and sets bit 30 of the call's number (asm/unistd.h, __X32_SYSCALL_BIT).
"""
from __future__ import annotations

from functools import cache
from importlib import import_module

from triaged.errors import InterfaceMissing

X32_SYSCALL_BIT = 0x40000000
AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_I386 = 0x40000003

_AUDIT_ARCHES = {
    "x86_64": AUDIT_ARCH_X86_64,
    "x32": AUDIT_ARCH_X86_64,
    "i386": AUDIT_ARCH_I386,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
    "riscv64": 0xC00000F3,
    "ppc64le": 0xC0000015,
    "s390x": 0x80000016,
}
ARCHES = tuple(_AUDIT_ARCHES)
_MACHINES = {"i686": "i386", "i586": "i386", "armv6l": "arm", "armv7l": "arm", "armv8l": "arm"}
_ARCH_NAMES = {
    **{value: name for name, value in _AUDIT_ARCHES.items() if name != "x32"},
    # Without a table here: named, so that a record says more than a number.
    0xC0000102: "loongarch64", 0x80000015: "ppc64", 0x00000014: "ppc", 0x00000016: "s390", 0x400000F3: "riscv32",
    0xC0000008: "mipsel64", 0x80000008: "mips64", 0xE0000008: "mipsel64n32", 0xA0000008: "mips64n32",
    0x40000008: "mipsel", 0x00000008: "mips", 0x0000000F: "parisc", 0x8000000F: "parisc64", 0x00000028: "armeb",
}


@cache
def _names(arch: str) -> dict[int, str]:
    runs: str = import_module(f"triaged.seccomp.tables.{arch}").RUNS
    bit = X32_SYSCALL_BIT if arch == "x32" else 0
    table: dict[int, str] = {}
    for line in runs.splitlines():
        first, *names = line.split()
        table.update((number | bit, name) for number, name in enumerate(names, int(first)))
    return table


@cache
def _numbers(arch: str) -> dict[str, int]:
    return {name: number for number, name in _names(arch).items()}


def native_arch() -> str:
    """This machine's architecture, one of ARCHES. Raises: InterfaceMissing for one without a table."""
    import platform

    machine = platform.machine()
    arch = _MACHINES.get(machine, machine)
    if arch not in _AUDIT_ARCHES:
        raise InterfaceMissing("seccomp", f"triaged has no table of the system calls of {machine}")
    return arch


def arch_name(audit_arch: int, number: int = 0) -> str:
    """The architecture that audit's `arch=` and the call's number mean ("x86_64", "x32"); the value as text where it is unknown."""
    if audit_arch == AUDIT_ARCH_X86_64 and number & X32_SYSCALL_BIT:
        return "x32"
    return _ARCH_NAMES.get(audit_arch, f"0x{audit_arch:08x}")


def audit_arch_of(arch: str) -> int:
    """The value of linux/audit.h for one of ARCHES. Raises KeyError for another name."""
    return _AUDIT_ARCHES[arch]


def name_of(audit_arch: int, number: int) -> str:
    """The call's name; its number as text where the table has none."""
    arch = arch_name(audit_arch, number)
    if arch not in _AUDIT_ARCHES:
        return str(number)
    return _names(arch).get(number, str(number))


def number_of(arch: str, name: str) -> int | None:
    """The number of a call on one of ARCHES (with bit 30 on x32); None where that architecture has no such call.

    Raises KeyError for an architecture without a table.
    """
    _AUDIT_ARCHES[arch]
    return _numbers(arch).get(name)


def numbers_on(arch: str) -> dict[str, int]:
    """The number of every call of one of ARCHES, by name. Raises KeyError for an architecture without a table."""
    _AUDIT_ARCHES[arch]
    return dict(_numbers(arch))


def names_on(arch: str) -> tuple[str, ...]:
    """Every call of one of ARCHES, by number. Raises KeyError for an architecture without a table."""
    _AUDIT_ARCHES[arch]
    return tuple(_names(arch).values())
