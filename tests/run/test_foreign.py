# SPDX-License-Identifier: Apache-2.0
"""The calls of 32-bit programs, which the trace tells by the numbers of their own table."""
from __future__ import annotations

import errno
import os
import subprocess

import pytest

from triaged.kernel.failing_calls import NumberedCallEnded, NumberedCallEntered, parse_line
from triaged.kernel.paths import KernelPaths
from triaged.run.foreign import ForeignCalls

# Numbers of i386: arch/x86/entry/syscalls/syscall_32.tbl
CLONE, MMAP2, FCNTL64, SOCKETCALL, IPC, SETUID32, CLOCK_NANOSLEEP_TIME64 = 120, 192, 221, 102, 117, 213, 407


class Asked:
    """Takes what a trace is asked for."""

    again: frozenset[int]
    multiplexed: frozenset[int]

    def watch_other_architecture(self, again: frozenset[int], multiplexed: frozenset[int]) -> None:
        self.again, self.multiplexed = again, multiplexed


def failed(calls: ForeignCalls, number: int, error: int) -> str:
    return calls.failed(NumberedCallEnded(7, number, -error, 10))


@pytest.mark.parametrize(("number", "error", "wanted"), [
    (CLONE, errno.EAGAIN, "clone"), (CLONE, errno.ENOENT, ""), (MMAP2, errno.EAGAIN, "mmap"), (MMAP2, errno.ENOMEM, "mmap"),
    (FCNTL64, errno.EMFILE, "fcntl"), (FCNTL64, errno.EAGAIN, ""), (SETUID32, errno.EPERM, "setuid"),
    (CLOCK_NANOSLEEP_TIME64, errno.EINVAL, ""), (CLONE, 512, ""),
])  # fmt: skip
def test_a_failure_has_the_native_name_where_it_may_tell_of_a_limit(number: int, error: int, wanted: str) -> None:
    assert failed(ForeignCalls("x86_64"), number, error) == wanted


@pytest.mark.parametrize(("number", "first", "wanted"), [
    (SOCKETCALL, 2, "bind"), (SOCKETCALL, 8, "socketpair"), (IPC, 23, "shmget"),
])  # fmt: skip
def test_of_a_call_that_stands_for_many_the_first_argument_tells_which(number: int, first: int, wanted: str) -> None:
    calls = ForeignCalls("x86_64")
    line = f"            t-7       [000] .....  1.000001: sys_enter: NR {number} ({first:x}, ffdd, 0, 0, 0, 0)"
    event = parse_line(line.encode())
    assert isinstance(event, NumberedCallEntered)
    calls.begun(event)
    calls.begun(NumberedCallEntered(8, number, 10, 1))
    assert failed(calls, number, errno.EACCES) == wanted
    assert failed(calls, number, errno.EACCES) in ("socketcall", "ipc"), "each beginning has one end"
    calls.begun(NumberedCallEntered(7, number, 10, first))
    calls.ended(7)
    assert failed(calls, number, errno.EACCES) in ("socketcall", "ipc")


def test_the_trace_is_asked_for_what_the_other_table_says() -> None:
    asked = Asked()
    ForeignCalls("x86_64").watch(asked)  # type: ignore[arg-type]
    assert {CLONE, MMAP2} <= asked.again
    assert asked.multiplexed == {SOCKETCALL, IPC}
    ForeignCalls("aarch64").watch(asked)  # type: ignore[arg-type]
    assert CLONE in asked.again
    assert asked.multiplexed == set(), "arm has a call of its own for each"


@pytest.mark.parametrize(("value", "wanted"), [("386", True), ("amd64", False), ("", False)])
def test_go_says_in_its_environment_for_what_it_builds(value: str, wanted: bool) -> None:
    environment = {key: word for key, word in os.environ.items() if key != "GOARCH"} | ({"GOARCH": value} if value else {})
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        assert process.stdout.read(1) == b"x"  # it is executed, and not only about to be
        assert ForeignCalls("x86_64").is_to_come(KernelPaths(), process.pid) is wanted
        assert not ForeignCalls("riscv64").is_to_come(KernelPaths(), process.pid)
        process.stdin.close()
    assert not ForeignCalls("x86_64").is_to_come(KernelPaths(), process.pid), "gone"


def test_a_native_program_is_none_of_the_other_architecture() -> None:
    assert ForeignCalls("x86_64").is_one(KernelPaths(), os.getpid()) is False
    assert ForeignCalls("x86_64").is_one(KernelPaths(), 1 << 22) is None  # gone, or never there
