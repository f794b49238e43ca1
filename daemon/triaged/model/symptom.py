# SPDX-License-Identifier: Apache-2.0
"""What went wrong, as somebody saw it: a system call that failed, a signal that ended a process, a test that ran out of time."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SymptomKind(str, Enum):
    """call: a system call gave an error; killed: a signal ended a process; timed-out: something waited longer than it may;
    silent: the outcome is wrong, and nothing failed."""

    CALL = "call"
    KILLED = "killed"
    TIMED_OUT = "timed-out"
    SILENT = "silent"


class SeenIn(str, Enum):
    """trace: the kernel's own trace of the run; output: what the command printed; exit: how a process ended;
    asked: a person asks about it, nobody saw it."""

    TRACE = "trace"
    OUTPUT = "output"
    EXIT = "exit"
    ASKED = "asked"


@dataclass(frozen=True)
class Symptom:
    """One thing that went wrong, `count` times in the same process and way.

    `syscall` is the call's name ("" where only a text tells of it), `errno` the error's ("EAGAIN"; "" if there was none), `signal`
    the number of the signal that ended the process, else 0. `arguments` are the first six registers, empty where not known.
    `path` is the file, address or program that it was about, where known. `entered`: False if the call ended without having begun,
    which only seccomp does; None where that was not seen. `text` is the line that tells of it. `sender_pid` is who sent the signal
    (0: not seen). Times in ns of CLOCK_MONOTONIC, 0 where not known.
    """

    kind: SymptomKind
    syscall: str = ""
    errno: str = ""
    signal: int = 0
    arguments: tuple[int, ...] = ()
    path: str = ""
    text: str = ""
    count: int = 1
    entered: bool | None = None
    seen_in: SeenIn = SeenIn.ASKED
    sender_pid: int = 0
    first_ns: int = 0
    last_ns: int = 0


@dataclass(frozen=True)
class Deed:
    """A call of the run's own processes that succeeded and changes what is allowed afterwards, or ends somebody.

    Such are setrlimit, prlimit64, unshare, setns, seccomp, prctl, chroot, umask, setresuid, mount, kill.

    `is_test` says whether the program that did it is under test itself (a test binary or what it started), not something that
    prepares its surroundings (a shell's ulimit, setpriv, a runner). `arguments` are the first six registers, `value` is what the
    call gave; of setrlimit and prlimit64 the soft limit afterwards (-1: not known; 2**64 - 1: unlimited). `comm` is the program's
    base name. `at_ns`: ns of CLOCK_MONOTONIC.
    """

    pid: int
    comm: str
    syscall: str
    arguments: tuple[int, ...] = ()
    value: int = 0
    is_test: bool = False
    at_ns: int = 0
