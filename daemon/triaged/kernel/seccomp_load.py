# SPDX-License-Identifier: Apache-2.0
"""Starting a command under seccomp filters: fork, load, exec.

Hard facts: a filter counts from the next call on, so nothing may come between the load and execve but execve; what the profile
does to execve itself is therefore part of it, as in a container. Without CAP_SYS_ADMIN no_new_privs must be set first, and then
set-user-ID programs lose their power.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from triaged.errors import KernelError, NotPermitted

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _FLAG_LOG = 1, 2
_FAILED_LOAD, _FAILED_EXEC = b"l", b"e"


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


@dataclass(frozen=True)
class LoadedFilter:
    """A filter to load: `struct sock_filter` packed, and whether refusals are to be logged (SECCOMP_FILTER_FLAG_LOG)."""

    instructions: bytes
    is_logged: bool = False


class Command:
    """A command that is forked and waits; `start` lets it load its filters and exec. A context: what never started ends with it.

    `load_number` is the number of seccomp() on this machine (no libc has a function for it); 0 will do without filters.
    Raises: KernelError if there is no such command, NotPermitted or KernelError if the filters were refused.
    """

    def __init__(self, argv: Sequence[str], filters: Sequence[LoadedFilter] = (), load_number: int = 0) -> None:
        path = shutil.which(argv[0])
        if path is None:
            raise KernelError(argv[0], "command not found")
        self.argv = tuple(argv)
        self._go_read, self._go_write = os.pipe()
        self._told_read, self._told_write = os.pipe()
        self._is_started = False
        self.status: int | None = None
        plan = _Plan(path, argv, filters, load_number)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go_write)  # else the end of the pipe would never be seen
            os.close(self._told_read)
            plan.carry_out(self._go_read, self._told_write)
        os.close(self._go_read)
        os.close(self._told_write)

    def __enter__(self) -> Command:
        return self

    def release(self) -> None:
        """Lets the command go, without waiting for its exec."""
        self._is_started = True
        os.write(self._go_write, b"g")
        os.close(self._go_write)

    def start(self) -> None:
        """Lets the command go and waits for its exec. Raises: NotPermitted, KernelError."""
        self.release()
        self.check_started()

    def check_started(self) -> None:
        """Waits until a released command has made its exec. Raises: NotPermitted, KernelError if it could not."""
        with os.fdopen(self._told_read, "rb") as file:
            told = file.read()  # ends when exec closes the pipe, or the child is gone
        if not told:
            return
        self.wait()
        number = int(told[1:])
        text = os.strerror(number).lower()
        if told[:1] == _FAILED_EXEC:
            raise KernelError(self.argv[0], f"could not be executed: {text}")
        if number in (errno.EPERM, errno.EACCES):
            raise NotPermitted("seccomp", f"the filter was not loaded: {text}", "no_new_privs or CAP_SYS_ADMIN is needed")
        raise KernelError("seccomp", f"the filter was not loaded: {text}")

    def poll(self) -> bool:
        """Whether it has ended; `status` then is its wait status."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def wait(self) -> int:
        """Its wait status, once it has ended."""
        if self.status is None:
            self.status = os.waitpid(self.pid, 0)[1]
        return self.status

    def end(self) -> None:
        """Ends the command with all that descends from it, as far as that is still there."""
        for pid in (*_descendants(self.pid), self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._is_started:
            os.close(self._go_write)  # the child sees the end of the pipe and leaves
            os.close(self._told_read)
            self.wait()
        elif kind is not None and self.status is None:
            self.end()  # whoever watched it is interrupted: nothing of it stays behind
            with contextlib.suppress(ChildProcessError):
                self.wait()


def _descendants(root: int) -> list[int]:
    """Every process below one, the nearest first. Source: the parent in /proc/PID/stat."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    pending = [root]
    while pending:
        below = children.pop(pending.pop(0), [])
        found += below
        pending += below
    return found


class _Plan:
    """Everything that the child needs, made before the fork: after the load it can allocate nothing."""

    def __init__(self, path: str, argv: Sequence[str], filters: Sequence[LoadedFilter], load_number: int) -> None:
        self.libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL keeps the interpreter's lock: no futex between load and exec
        self.number = ctypes.c_long(load_number)
        self.path = os.fsencode(path)
        self.argv = _strings([os.fsencode(word) for word in argv])
        self.environment = _strings([key + b"=" + value for key, value in os.environb.items()])
        self.buffers = [ctypes.create_string_buffer(f.instructions, len(f.instructions)) for f in filters]
        self.programs = [_FilterProgram(len(b) // 8, ctypes.addressof(b)) for b in self.buffers]
        self.calls = [
            (ctypes.c_uint(_SET_MODE_FILTER), ctypes.c_uint(_FLAG_LOG if f.is_logged else 0), ctypes.byref(program))
            for f, program in zip(filters, self.programs, strict=True)
        ]

    def carry_out(self, go: int, told: int) -> None:
        """The child's part; does not return."""
        try:
            if os.read(go, 1) != b"g":
                os._exit(0)
            os.close(go)
            libc, number = self.libc, self.number
            syscall, execve, get_errno = libc.syscall, libc.execve, ctypes.get_errno
            path, argv, environment = self.path, self.argv, self.environment
            if self.calls:
                libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            for operation, flags, program in self.calls:
                if syscall(number, operation, flags, program) != 0:
                    os.write(told, _FAILED_LOAD + str(get_errno()).encode())
                    os._exit(127)
            execve(path, argv, environment)
            os.write(told, _FAILED_EXEC + str(get_errno()).encode())
        finally:
            os._exit(127)


def _strings(words: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(words) + 1))(*words, None)
