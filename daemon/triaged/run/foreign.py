# SPDX-License-Identifier: Apache-2.0
"""The calls of 32-bit programs on a 64-bit kernel: the trace tells them by the numbers of their own table, without arguments."""
from __future__ import annotations

import os

from triaged.errors import KernelError
from triaged.kernel.failing_calls import CallTrace, NumberedCallEnded, NumberedCallEntered
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_variable
from triaged.kernel.traced_calls import EAGAIN_IS_A_LIMIT, tells_of_limit, untraced
from triaged.seccomp.syscalls import audit_arch_of, name_of, number_of

# Native -> the one whose programs the kernel runs as well, and what Go calls that.
_OTHER = {"x86_64": ("i386", "386"), "aarch64": ("arm", "arm")}
# Other names of the same, where the number alone is not at the end of it.
_SAME = {"mmap2": "mmap", "ugetrlimit": "getrlimit", "fstatat64": "newfstatat", "waitpid": "wait4", "_newselect": "select"}
# One call for many: its first argument says which. Source: linux/net.h, linux/ipc.h.
_SOCKET_CALLS = dict(enumerate(
    ("socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "sendto", "recvfrom", "sendto",
     "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg"), 1,
))
_IPC_CALLS = {
    1: "semop", 2: "semget", 3: "semctl", 4: "semtimedop", 11: "msgsnd", 12: "msgrcv", 13: "msgget", 14: "msgctl", 21: "shmat",
    22: "shmdt", 23: "shmget", 24: "shmctl",
}
_MULTIPLEXED = {"socketcall": _SOCKET_CALLS, "ipc": _IPC_CALLS}
_ELF32 = b"\x7fELF\x01"


class ForeignCalls:
    """What is known of the other architecture of a machine of architecture `native`."""

    def __init__(self, native: str) -> None:
        self._native = native
        self._arch, self._go_arch = _OTHER.get(native, ("", ""))
        self._begun: dict[int, str] = {}

    @property
    def can_be(self) -> bool:
        """Whether this machine may run programs of another architecture at all."""
        return bool(self._arch)

    def is_one(self, paths: KernelPaths, pid: int) -> bool | None:
        """Whether a process runs such a program; None if it is gone. Source: the ELF header's class."""
        if not self._arch:
            return False
        try:
            descriptor = os.open(f"{paths.proc}/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return os.read(descriptor, len(_ELF32)) == _ELF32
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def is_to_come(self, paths: KernelPaths, pid: int) -> bool:
        """Whether a process is told to build, and then to test, such programs: GOARCH in its environment."""
        try:
            return bool(self._arch) and read_variable(paths, pid, "GOARCH") == self._go_arch
        except KernelError:
            return False

    def watch(self, calls: CallTrace) -> None:
        """Has the trace tell of them from now on. Raises: KernelError."""
        again = {number_of(self._arch, name) for name in (*EAGAIN_IS_A_LIMIT, "mmap2")} - {None}
        multiplexed = {number_of(self._arch, name) for name in _MULTIPLEXED} - {None}
        calls.watch_other_architecture(frozenset(filter(None, again)), frozenset(filter(None, multiplexed)))

    def begun(self, event: NumberedCallEntered) -> None:
        """Takes note of the beginning of a call that stands for many."""
        name = name_of(audit_arch_of(self._arch), event.number) if self._arch else None
        if name in _MULTIPLEXED and event.first is not None:
            self._begun[event.tid] = _MULTIPLEXED[name].get(event.first, name)

    def ended(self, tid: int) -> None:
        """Forgets a task."""
        self._begun.pop(tid, None)

    def failed(self, event: NumberedCallEnded) -> str:
        """The name, as native programs call it, of a call that failed in a way that may tell of a limit; ""."""
        name = name_of(audit_arch_of(self._arch), event.number) or ""
        if name in _MULTIPLEXED:
            name = self._begun.pop(event.tid, name)
        call = self._native_name(name)
        return call if call not in untraced() and tells_of_limit(call, -event.value) else ""

    def _native_name(self, name: str) -> str:
        shorter = (name.removesuffix(end) for end in ("_time64", "64", "32"))
        for candidate in (name, _SAME.get(name, ""), *shorter):
            if candidate and number_of(self._native, candidate) is not None:
                return candidate
        return name
