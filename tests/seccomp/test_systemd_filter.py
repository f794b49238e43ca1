# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triaged.errors import ConfigError
from triaged.seccomp.action import ALLOW, ENOSYS, EPERM, KILL_PROCESS, Action, ActionKind
from triaged.seccomp.syscalls import audit_arch_of, number_of
from triaged.seccomp.systemd_filter import expanded, parse_filter, parse_groups, resolved, written

GROUPS = parse_groups((Path(__file__).resolve().parents[2] / "config/seccomp/systemd-252.groups").read_text())


def decide(text: str, name: str, arch: str = "x86_64", native: str = "x86_64") -> Action:
    number = number_of(arch, name)
    assert number is not None
    return resolved(parse_filter(text, "u.service", GROUPS), native).action(audit_arch_of(arch), number)


def test_an_allow_list_kills_what_it_does_not_name_and_always_has_default() -> None:
    assert decide("SystemCallFilter=read", "read") == ALLOW
    assert decide("SystemCallFilter=read", "execve") == ALLOW
    assert decide("SystemCallFilter=read", "mount") == KILL_PROCESS
    assert decide("SystemCallFilter=read\nSystemCallErrorNumber=EPERM", "mount") == EPERM
    assert decide("SystemCallFilter=read\nSystemCallErrorNumber=kill", "mount") == KILL_PROCESS


def test_a_deny_list_allows_the_rest_and_an_entry_has_its_own_errno() -> None:
    assert decide("SystemCallFilter=~@mount", "mount") == KILL_PROCESS
    assert decide("SystemCallFilter=~@mount", "read") == ALLOW
    assert decide("SystemCallFilter=~ptrace:EACCES", "ptrace") == Action(ActionKind.ERRNO, 13)
    assert decide("SystemCallFilter=@system-service clone3:ENOSYS", "clone3") == ENOSYS


def test_later_lists_add_and_remove_and_an_empty_one_resets() -> None:
    assert decide("SystemCallFilter=@system-service\nSystemCallFilter=~@resources", "setrlimit") == KILL_PROCESS
    assert decide("SystemCallFilter=~@mount\nSystemCallFilter=umount2", "umount2") == ALLOW
    assert decide("SystemCallFilter=read\nSystemCallFilter=\nSystemCallFilter=~mount", "ptrace") == ALLOW


def test_architectures_native_kills_32_bit_calls() -> None:
    text = "SystemCallFilter=~@mount\nSystemCallArchitectures=native"
    assert decide(text, "read", "i386") == KILL_PROCESS
    assert decide("SystemCallFilter=~@mount", "read", "i386") == ALLOW
    assert decide("SystemCallFilter=~@mount", "mount", "i386") == KILL_PROCESS
    assert decide("SystemCallFilter=~@mount", "mount", "x32") == KILL_PROCESS


def test_a_bare_list_and_continued_lines_are_read() -> None:
    assert decide("@system-service\n~@mount", "mount") == KILL_PROCESS
    assert decide("[Service]\nSystemCallFilter=read \\\n  write\nExecStart=/bin/x\n", "write") == ALLOW


def test_an_unknown_group_and_call_are_named() -> None:
    assert parse_filter("SystemCallFilter=@sandbox2 raed read", "u", GROUPS).unknown == ("@sandbox2", "raed")


@pytest.mark.parametrize(
    ("text", "line"),
    [("", "u.service: sets no"),
     ("[Service]\nSystemCallErrorNumber=EWHAT", "u.service:2"), ("\nSystemCallFilter=re$ad", "u.service:2"),
     ("SystemCallFilter=~a:9999", "9999"), ("Exec Start=1", "no assignment")],
)
def test_a_wrong_file_is_refused_with_its_line(text: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        parse_filter(text, "u.service", GROUPS)


def test_what_is_written_allows_just_those_calls() -> None:
    text = written(["read", "write", "clone3"], EPERM, {"clone3": "go-cgo"})
    found = parse_filter(text, "drop-in", GROUPS)
    assert set(found.calls) == {"read", "write", "clone3"} | (expanded("@default", GROUPS) or set())
    assert "# go-cgo\nSystemCallFilter=clone3\n" in text
    assert found.denial == EPERM


def test_the_captured_groups_are_those_of_systemd_analyze() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    version = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    if not version.startswith("systemd 252 "):
        pytest.skip("systemd-analyze is not that of systemd 252")
    live = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    assert parse_groups(live) == GROUPS


@given(st.text(alphabet="SystemCallFilter=~@: \\\n#;[]abcmountEPERM", max_size=120))
def test_any_text_gives_a_filter_or_a_clear_error(text: str) -> None:
    try:
        found = parse_filter(text, "u.service", GROUPS)
    except ConfigError:
        return
    resolved(found, "x86_64")
