# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from triaged.seccomp import syscalls

HEADERS = {"x86_64": "unistd_64.h", "i386": "unistd_32.h", "x32": "unistd_x32.h"}


@pytest.mark.parametrize(
    ("audit_arch", "number", "name"),
    [
        (0xC000003E, 435, "clone3"), (0xC000003E, 319, "memfd_create"), (0xC000003E, 59, "execve"), (0xC000003E, 336, "uprobe"),
        (0x40000003, 11, "execve"), (0x40000003, 120, "clone"), (0xC00000B7, 221, "execve"), (0xC00000B7, 435, "clone3"),
        (0x40000028, 11, "execve"), (0x40000028, 983045, "set_tls"), (0xC00000F3, 258, "riscv_hwprobe"), (0xC0000015, 11, "execve"),
        (0x80000016, 11, "execve"), (0x80000016, 462, "mseal"),
    ],
)
def test_call_has_its_name_on_each_architecture(audit_arch: int, number: int, name: str) -> None:
    assert syscalls.name_of(audit_arch, number) == name
    assert syscalls.number_of(syscalls.arch_name(audit_arch), name) == number


def test_x32_call_is_told_from_x86_64_by_bit_30() -> None:
    assert syscalls.arch_name(0xC000003E, 0x40000000 | 520) == "x32"
    assert syscalls.name_of(0xC000003E, 0x40000000 | 520) == "execve"
    assert syscalls.number_of("x32", "execve") == 0x40000000 | 520
    assert syscalls.name_of(0xC000003E, 520) == "520"


def test_unknown_number_and_architecture_are_shown_as_they_are() -> None:
    assert syscalls.name_of(0xC000003E, 9999) == "9999"
    assert syscalls.name_of(0xDEADBEEF, 5) == "5"
    assert syscalls.arch_name(0xDEADBEEF) == "0xdeadbeef"
    assert syscalls.arch_name(0xC0000102) == "loongarch64"
    assert syscalls.number_of("aarch64", "fork") is None
    with pytest.raises(KeyError):
        syscalls.number_of("z80", "read")


@pytest.mark.parametrize("arch", syscalls.ARCHES)
def test_no_call_of_an_architecture_has_two_numbers(arch: str) -> None:
    names = syscalls.names_on(arch)
    assert len(names) > 300
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("arch", "header"), HEADERS.items())
def test_table_agrees_with_the_kernel_headers(arch: str, header: str) -> None:
    path = Path("/usr/include/x86_64-linux-gnu/asm") / header
    if not path.exists():
        pytest.skip("no kernel headers of x86 here")
    defined = re.findall(r"^#define __NR_(\w+) (?:\(__X32_SYSCALL_BIT \+ )?(\d+)", path.read_text(), re.MULTILINE)
    assert len(defined) > 300
    bit = syscalls.X32_SYSCALL_BIT if arch == "x32" else 0
    wrong = {name: number for name, number in defined if syscalls.number_of(arch, name) != int(number) | bit}
    assert wrong == {}


def test_import_loads_no_table() -> None:
    code = "import sys, triaged.seccomp.syscalls; print(*[m for m in sys.modules if '.tables' in m])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""
