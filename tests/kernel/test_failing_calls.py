# SPDX-License-Identifier: Apache-2.0
"""Lines of the trace, as kernels write them, and the data that says what is traced."""
from __future__ import annotations

import errno

import pytest

from triaged.kernel import traced_calls
from triaged.kernel.failing_calls import (
    CallEnded,
    CallEntered,
    Executed,
    NumberedCallEnded,
    NumberedCallEntered,
    OomVictim,
    SignalSent,
    SignalTaken,
    TaskEnded,
    TaskMade,
    TraceEvent,
    parse_line,
)

HEAD = b"           mkdir-2060    [000] .....  1074.780943: "
AT = 1_074_780_943_000


@pytest.mark.parametrize(
    ("body", "event"),
    [
        (b"sys_mkdir -> 0xfffffffffffffffe", CallEnded(2060, "mkdir", -2, AT)),
        (b"sys_read -> 0x10", CallEnded(2060, "read", 16, AT)),
        (b"sys_mmap -> 0x7f0000000000", CallEnded(2060, "mmap", 0x7F0000000000, AT)),
        (b"sys_newuname -> 0x0", CallEnded(2060, "uname", 0, AT)),
        (b"sys_mkdir(pathname: 0x7ffe89b62871, mode: 0x1ff)", CallEntered(2060, "mkdir", (0x7FFE89B62871, 0x1FF), AT)),
        (b"sys_mkdir(pathname: 7ffe89b62871, mode: 1ff)", CallEntered(2060, "mkdir", (0x7FFE89B62871, 0x1FF), AT)),
        (b'sys_mkdir(pathname: 0x7f "a: b, c: 12 \\" d: 1", mode: 0x1ff)', CallEntered(2060, "mkdir", (0x7F, 0x1FF), AT)),
        (b"sys_getppid()", CallEntered(2060, "getppid", (), AT)),
        (b"sys_exit: NR 5 = -13", NumberedCallEnded(2060, 5, -13, AT)),
        (b"sys_enter: NR 73 (3, 2, 0, 7ffd, 0, 0)", NumberedCallEntered(2060, 73, AT, 3)),
        (b"task_newtask: pid=2061 comm=a pid=7 clone_flags=1200000 oom_score_adj=0", TaskMade(2060, 2061, False, AT)),
        (b"task_newtask: pid=2061 comm=sh clone_flags=3d0f00 oom_score_adj=0", TaskMade(2060, 2061, True, AT)),
        (b"sched_process_exec: filename=/bin/a b pid=1 pid=2060 old_pid=2063", Executed(2060, "/bin/a b pid=1", 2063, AT)),
        (b"sched_process_exit: comm=mkdir pid=2060 prio=120 group_dead=true", TaskEnded(2060, AT)),
        (b"sched_process_exit: comm=mkdir pid=2060 prio=120", TaskEnded(2060, AT)),
        (b"signal_deliver: sig=11 errno=0 code=1 sa_handler=0 sa_flags=0", SignalTaken(2060, 11, 1, AT)),
        (b"signal_generate: sig=9 errno=0 code=-6 comm=x pid=5 grp=1 pid=2061 grp=1 res=0", SignalSent(2060, 2061, 9, -6, 0, AT)),
        (b"signal_generate: sig=9 errno=0 code=0 comm=sh pid=2061 grp=1 res=1", None),  # ignored by its target
        (b"mark_victim: pid=77 comm=x total-vm:1kB", OomVictim(2060, 77, AT)),
        (b"mark_victim: pid=77", OomVictim(2060, 77, AT)),
        (b"something_else: pid=7", None),
    ],
)
def test_a_line_is_read(body: bytes, event: TraceEvent | None) -> None:
    assert parse_line(HEAD + body) == event


def test_any_name_of_a_program_may_stand_before() -> None:
    for name in (b"a-b -c-7", b"<...>", b"] ....  1.2: x", b"-12    [001]"):
        event = parse_line(b" " + name + b"-31 [001] d..1.    5.000001: sys_mkdir -> 0xffffffffffffffff")
        assert event == CallEnded(31, "mkdir", -1, 5_000_001_000)


@pytest.mark.parametrize(
    "line",
    [b"", b"CPU:0 [LOST 123 EVENTS]", b"# tracer: nop", b"\xff\x00", HEAD, HEAD + b"sys_mkdir(", HEAD + b"sys_x -> 0xg"],
)
def test_other_lines_are_passed_over(line: bytes) -> None:
    assert parse_line(line) is None


def test_filters_keep_what_tells_of_a_limit() -> None:
    assert "ret != -11" not in traced_calls.failures_of("clone").split(" && ")
    assert "ret != -11" in traced_calls.failures_of("write").split(" && ")
    telling = {errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ENOMEM, errno.ENOSYS, errno.EDQUOT}
    for call in ("openat", "mkdir", "clone", "execve", "mmap", "socket"):
        assert not traced_calls.harmless_of(call) & telling


def test_the_hidden_are_those_that_the_filters_drop() -> None:
    hidden = traced_calls.hidden()
    assert ("", "ENOENT") in hidden
    assert ("newfstatat", "EACCES") in hidden
    assert ("write", "EAGAIN") in hidden
    assert ("openat", "EACCES") not in hidden
    assert ("clone", "EAGAIN") not in hidden


def test_no_call_is_both_left_out_and_asked_for() -> None:
    left_out = traced_calls.untraced()
    assert not left_out & (traced_calls.DEEDS | traced_calls.FREQUENT | traced_calls.EAGAIN_IS_A_LIMIT)
    assert left_out & traced_calls.ENTERED == {"exit_group"}  # it never ends; its beginning tells that a process left by itself
