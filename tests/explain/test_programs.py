# SPDX-License-Identifier: Apache-2.0
"""Foreign programs, no_new_privs, the umask, core files."""
from __future__ import annotations

import struct

import pytest
from situations import blamed, call, outcomes, own_fault, ruled_out
from surroundings import ROOT_MOUNTS, deed, directory, facts, regular, seeing, someone, told

from triaged.explain.programs import (
    core_pattern,
    foreign_program,
    machine_of,
    masked_pair,
    no_core_limit,
    no_new_privileges,
    told_modes,
    umask,
)
from triaged.model.cause import Status
from triaged.model.limit import UNLIMITED
from triaged.model.symptom import SymptomKind
from triaged.seccomp.syscalls import native_arch

ELF = b"\x7fELF\x02\x01" + b"\0" * 10
NATIVE = {"x86_64": 62, "aarch64": 183}
FOREIGN = 243  # riscv64


def program(machine: int) -> bytes:
    return ELF + struct.pack("<HH", 2, machine) + b"\0" * 40


def executed(head: bytes | None) -> object:
    node = regular("/x", 0o755) if head is not None else None
    return seeing(call("execve", "ENOEXEC", path="/x"), someone(), files=[facts("/x", node, head=head or b"")])


def test_a_program_for_another_machine_is_proved() -> None:
    found = blamed(foreign_program, executed(program(FOREIGN)))
    assert (found.cause, found.status) == ("binfmt.missing", Status.PROVED)
    assert "riscv64" in found.summary


def test_a_broken_program_or_a_text_is_the_codes_matter() -> None:
    if native_arch() in NATIVE:
        assert "broken" in own_fault(foreign_program, executed(program(NATIVE[native_arch()])))
    assert "no program" in own_fault(foreign_program, executed(b"echo hello\n"))
    assert outcomes(foreign_program, executed(None)) == []
    assert machine_of(b"\x7fELF") is None
    assert machine_of(b"\x7fELF\x02\x02" + b"\0" * 10 + struct.pack(">HH", 2, 22)) == "s390x"


SUDO = facts("/usr/bin/sudo", regular("/usr/bin/sudo", 0o4755))
SAYS = 'sudo: The "no new privileges" flag is set, which prevents sudo from running as root.'


def test_no_new_privileges_keeps_sudo_from_root() -> None:
    who = someone(no_new_privileges=True, cgroup="/system.slice/ci.service")
    found = blamed(no_new_privileges, seeing(told(SAYS, kind=SymptomKind.SILENT), who, files=[SUDO]))
    assert (found.cause, found.status, found.subject) == ("process.no-new-privileges", Status.PROVED, "ci.service")
    assert "NoNewPrivileges=no" in found.fixes[0].title
    assert ruled_out(no_new_privileges, seeing(told(SAYS, kind=SymptomKind.SILENT), someone(), files=[SUDO]))
    own = seeing(told(SAYS, kind=SymptomKind.SILENT), who, files=[SUDO], deeds=(deed("prctl", 38, 1, 0, 0, 0),))
    assert own_fault(no_new_privileges, own)


def test_an_assertion_speaks_of_no_privileges() -> None:
    assertion = told("got 1, want 2", kind=SymptomKind.SILENT)
    assert outcomes(no_new_privileges, seeing(assertion, someone(no_new_privileges=True))) == []


@pytest.mark.parametrize(("text", "modes"), [
    ("mode is -rw-------, want -rw-r--r--", [0o600, 0o644]), ("perm = 0600, want 0644", [0o600, 0o644]),
    ("drwxr-x---", [0o750]), ("0o755", [0o755]), ("took 12.0644 s, id 10644", []),
])
def test_modes_in_a_line(text: str, modes: list[int]) -> None:
    assert told_modes(text) == modes


def test_a_pair_of_modes_that_the_umask_explains() -> None:
    assert masked_pair([0o600, 0o644], 0o077) == (0o644, 0o600)
    assert masked_pair([0o600, 0o644], 0o027) is None
    assert masked_pair([0o600, 0o664], 0o077) == (0o664, 0o600)
    assert masked_pair([0o644, 0o666], 0o022) is None  # no usual umask leaves it so: the test is wrong


def test_a_strict_umask_that_made_the_other_mode_is_likely() -> None:
    text = told("x_test.go:9: mode is -rw-------, want -rw-r--r--", kind=SymptomKind.SILENT)
    found = blamed(umask, seeing(text, someone(umask=0o077)))
    assert (found.cause, found.status) == ("process.umask", Status.LIKELY)
    assert ruled_out(umask, seeing(text, someone(umask=0o022)))
    assert outcomes(umask, seeing(told("got 1, want 2", kind=SymptomKind.SILENT), someone(umask=0o077))) == []
    assert own_fault(umask, seeing(text, someone(umask=0o077), deeds=(deed("umask", 0o077),)))


def test_a_umask_that_shuts_out_the_owner_is_likely() -> None:
    shut = directory("/tmp/d", 0o000, 1000)
    inside = facts("/tmp/d/x", None, directory("/"), directory("/tmp", 0o1777), shut)
    symptom = call("openat", "EACCES", path="/tmp/d/x")
    assert blamed(umask, seeing(symptom, someone(umask=0o777, mounts=ROOT_MOUNTS), files=[inside])).status is Status.LIKELY
    assert outcomes(umask, seeing(symptom, someone(umask=0o077, mounts=ROOT_MOUNTS), files=[inside])) == []


NO_CORE = told("core_test.go:20: no core file", kind=SymptomKind.SILENT)


def test_a_core_limit_of_0_and_a_pattern_that_goes_elsewhere() -> None:
    none = someone(limits={"CORE": (0, UNLIMITED)})
    some = someone(limits={"CORE": (UNLIMITED, UNLIMITED)})
    plain, pipe = {"kernel.core_pattern": "core"}, {"kernel.core_pattern": "|/usr/lib/systemd/systemd-coredump %P"}
    assert blamed(no_core_limit, seeing(NO_CORE, none, parameters=plain)).status is Status.PROVED
    assert ruled_out(no_core_limit, seeing(NO_CORE, some, parameters=plain))
    assert ruled_out(no_core_limit, seeing(NO_CORE, none, parameters=pipe))
    assert ruled_out(core_pattern, seeing(NO_CORE, some, parameters=plain))
    assert blamed(core_pattern, seeing(NO_CORE, some, parameters=pipe)).status is Status.LIKELY
    line = "coredump: 812(sh): |/bin/nonexistent pipe failed"
    assert blamed(core_pattern, seeing(NO_CORE, some, parameters=pipe, log=[line])).status is Status.PROVED
    nowhere = seeing(NO_CORE, some, parameters={"kernel.core_pattern": "/no/core"}, files=[facts("/no", None)])
    assert blamed(core_pattern, nowhere).status is Status.PROVED
    assert outcomes(core_pattern, seeing(told("got 1, want 2", kind=SymptomKind.SILENT), none, parameters=pipe)) == []
