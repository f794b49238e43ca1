# SPDX-License-Identifier: Apache-2.0
"""ptrace(2) as far as triaged needs it: look at a process without disturbing it, or watch a command's calls.

Hard facts: the tracer is a thread, not a process: all requests come from the one that attached, and its end detaches. A tracee
that was seized and interrupted stops at its next return to user space; one that sleeps uninterruptibly does not stop at all.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import time

from triaged.errors import Gone, KernelError, NotPermitted
from triaged.kernel.files import translated

CONT, DETACH, SYSCALL = 7, 17, 24
SETOPTIONS, GETEVENTMSG = 0x4200, 0x4201
SEIZE, INTERRUPT, LISTEN = 0x4206, 0x4207, 0x4208
SECCOMP_GET_FILTER, SECCOMP_GET_METADATA, GET_SYSCALL_INFO = 0x420C, 0x420D, 0x420E
O_TRACESYSGOOD, O_TRACEFORK, O_TRACEVFORK, O_TRACECLONE, O_TRACEEXEC, O_TRACEEXIT = 1, 2, 4, 8, 16, 64
O_EXITKILL = 0x100000
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_STOP = 1, 2, 3, 4, 128
WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def request(what: int, pid: int, address: int = 0, data: int | ctypes.Array[ctypes.c_char] = 0) -> int:
    """One ptrace request. Raises OSError with the kernel's errno."""
    ctypes.set_errno(0)
    result: int = _libc.ptrace(what, pid, address, data if isinstance(data, int) else ctypes.addressof(data))
    error = ctypes.get_errno()
    if result == -1 and error:
        raise OSError(error, os.strerror(error))
    return result


class Stopped:
    """A thread of another process, seized and stopped; leaving the context lets it go on as it was. Use in one thread.

    `stopped_ns` is how long it stood still, once left.
    Raises: Gone, NotPermitted, KernelError (did not stop in time: end the calling thread, that detaches).
    """

    def __init__(self, pid: int, timeout_s: float = 1.0) -> None:
        self.pid = pid
        self.timeout_s = timeout_s
        self.stopped_ns = 0
        self._since_ns = 0
        self._signal = 0

    def __enter__(self) -> Stopped:
        path = f"/proc/{self.pid}"
        try:
            request(SEIZE, self.pid)
        except OSError as error:
            translation = translated(error, path)
            if isinstance(translation, NotPermitted):
                raise NotPermitted(path, "may not be traced", _refusal_remedy(self.pid)) from error
            raise translation from error
        self._since_ns = time.monotonic_ns()
        try:
            request(INTERRUPT, self.pid)
        except OSError as error:
            raise translated(error, path) from error
        status = self._wait()
        if not os.WIFSTOPPED(status):
            raise Gone(path)
        if status >> 16 != EVENT_STOP:
            self._signal = os.WSTOPSIG(status)  # a signal came first: it is delivered when the process goes on
        return self

    def _wait(self) -> int:
        deadline = time.monotonic() + self.timeout_s
        pause = 0.00002
        while True:
            try:
                # Only looked at: of a child of ours the end is for whoever waits for it.
                result = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
                if result is not None and result.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                    raise Gone(f"/proc/{self.pid}")
                result = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | WALL)
            except ChildProcessError as error:
                raise Gone(f"/proc/{self.pid}") from error
            if result is not None:
                return result.si_status << 8 | 0x7F  # as waitpid(2) gives it
            if time.monotonic() > deadline:
                text = f"did not stop within {self.timeout_s:g} s (uninterruptible sleep?)"
                raise KernelError(f"/proc/{self.pid}", text, "try again")
            time.sleep(pause)
            pause = min(pause * 2, 0.005)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # killed meanwhile
            request(DETACH, self.pid, 0, self._signal)
        self.stopped_ns = time.monotonic_ns() - self._since_ns


def _refusal_remedy(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            tracer = next((line.split()[1] for line in file if line.startswith("TracerPid:")), "0")
    except OSError:
        tracer = "0"
    if tracer != "0":
        return f"process {tracer} traces it already"
    return "run as root (CAP_SYS_PTRACE); kernel.yama.ptrace_scope must be below 3"
