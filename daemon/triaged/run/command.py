# SPDX-License-Identifier: Apache-2.0
"""Starts a command and stands in for it: whoever started triagectl sees what he would see of the command itself.

- Signals that somebody sends to triagectl are sent on. Those that the kernel sends for keys go to the whole process group, in
  which the command stays, and are not sent on.
- A stop of the command stops triagectl; SIGCONT goes on to the command.
- Ended by a signal, the command's status is that signal: triagectl then ends by the same one.
- triagectl killed by SIGKILL takes the command with it (PR_SET_PDEATHSIG), as killing the command would have.
"""
from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from triaged.errors import KernelError
from triaged.kernel.files import read_bytes
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import parse_cgroups, read_cgroup_record

_PR_SET_PDEATHSIG = 1
_SI_KERNEL = 0x80
_TICK_S = 0.5
_SPARED = 500
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_SENT_ON = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH,
)
_HANDLED = frozenset({*_SENT_ON, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD})
# Python ignores these from its start on; no program that it starts should.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


@dataclass(frozen=True)
class Remains:
    """What the kernel still knew of a command that had ended: its security label, and its cgroups ({}: not told)."""

    label: str = ""
    cgroups: Mapping[str, str] = field(default_factory=dict)


def read_remains(paths: KernelPaths, pid: int) -> Remains:
    """What is left of a process that has ended, before anybody waits for it.

    Source: /proc/PID/attr/current and /proc/PID/cgroup, which shows "/" for it on version 1.
    """
    label = ""
    cgroups: Mapping[str, str] = {}
    with contextlib.suppress(KernelError):
        label = read_bytes(f"{paths.proc}/{pid}/attr/current", 4096).decode("utf-8", "replace").rstrip("\0\n")
    with contextlib.suppress(KernelError):
        cgroups = parse_cgroups(read_cgroup_record(paths, pid))
    if len(cgroups) > 1:
        cgroups = {}
    return Remains(label, {name: path.removesuffix(" (deleted)") for name, path in cgroups.items()})


class NotStarted(KernelError):
    """The command could not be executed. `status` is what a shell's exit status would be."""

    def __init__(self, name: str, number: int) -> None:
        is_missing = number == errno.ENOENT
        super().__init__(name, "command not found" if is_missing and "/" not in name else os.strerror(number).lower())
        self.status = _NOT_FOUND if is_missing else _NOT_EXECUTABLE


def find_program(name: str) -> str:
    """The file that a shell would execute. Raises: NotStarted."""
    if "/" in name:
        return name
    refused = False
    for directory in os.get_exec_path():
        path = os.path.join(directory or ".", name)
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            refused = True
    raise NotStarted(name, errno.EACCES if refused else errno.ENOENT)


def hold_signals() -> set[signal.Signals]:
    """From now on signals wait for `RunningCommand.wait`; the mask as it was. Before any thread is made: they all inherit it."""
    return {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)}


def give_back_signals(mask: Iterable[int]) -> None:
    """Signals have their usual effect again. Those that came while the command ended were for the command."""
    while signal.sigtimedwait(_HANDLED, 0) is not None:
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class RunningCommand:
    """A command that is forked and waits for `release`.

    `descriptors`: its standard output and error, -1 for one that is closed. `mask`: the signals that it is to have blocked.

    Raises: KernelError where there is no process to be had.
    """

    def __init__(self, path: str, argv: Sequence[str], descriptors: tuple[int, int], mask: Iterable[int]) -> None:
        self.argv = tuple(argv)
        self._mask = mask
        go_read, self._go = os.pipe()
        self._told, told_write = os.pipe()
        # Whoever traces the command with ptrace(2) holds it: such a stop is none of the command's own, and not for `wait` to take.
        self.standstill = threading.Lock()
        self._on_stop: Callable[[], None] = lambda: None
        self._on_end: Callable[[], None] = lambda: None
        self.status: int | None = None
        self.cpu_s = 0.0  # of it, and of all that it waited for
        parent = os.getpid()
        try:
            self.pid = os.fork()
        except OSError as error:
            raise KernelError(argv[0], f"no process to be had for it: {os.strerror(error.errno or 0).lower()}") from error
        if self.pid == 0:
            self._become(path, descriptors, go_read, told_write, parent)
        os.close(go_read)
        os.close(told_write)
        _be_spared()

    def _become(self, path: str, descriptors: tuple[int, int], go: int, told: int, parent: int) -> None:
        try:
            os.close(self._go)
            if os.read(go, 1) != b"g":
                os._exit(0)
            for number, target in zip(descriptors, (1, 2), strict=True):
                if number >= 0:
                    os.dup2(number, target)
            for number in _IGNORED_BY_PYTHON:
                signal.signal(number, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(0)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            try:
                os.execv(path, self.argv)
            except OSError as error:
                if error.errno == errno.ENOEXEC:  # a script without a first line: as shells and execvp(3) do
                    os.execv("/bin/sh", ["/bin/sh", path, *self.argv[1:]])
                raise
        except OSError as error:
            os.write(told, str(error.errno).encode())
        finally:
            os._exit(_NOT_FOUND)

    def release(self) -> None:
        """Lets it execute its program, and waits until it did. Raises: NotStarted."""
        os.write(self._go, b"g")
        os.close(self._go)
        self._go = -1
        with os.fdopen(self._told, "rb") as file:
            told = file.read()
        if told:
            self.status = os.waitpid(self.pid, 0)[1]
            raise NotStarted(self.argv[0], int(told))

    def abandon(self) -> None:
        """Ends it before it has executed anything."""
        if self._go >= 0:
            os.close(self._go)
            os.close(self._told)
            self._go = -1
            self.status = os.waitpid(self.pid, 0)[1]

    def wait(
        self, on_resize: Callable[[], None], on_stop: Callable[[], None], was_sent: Callable[[int, int], bool],
        on_end: Callable[[], None] = lambda: None, on_tick: Callable[[], None] = lambda: None,
    ) -> int:
        """Stands in for it until it ends; its wait status.

        `on_resize` is called for SIGWINCH, `on_stop` before this process stops, `on_end` when the command has ended and what the
        kernel still knows of it can be read, `on_tick` twice a second. `was_sent` says of a signal and its sender that the command
        got it itself.
        """
        self._on_stop, self._on_end = on_stop, on_end
        while not self._has_ended():
            info = signal.sigtimedwait(_HANDLED, _TICK_S)
            if info is None:
                on_tick()
                continue
            number, is_kernels = info.si_signo, info.si_code == _SI_KERNEL
            if number == signal.SIGWINCH:
                on_resize()
                self._send(number)  # again, now that the size of its own terminal is right
            elif number == signal.SIGTSTP:
                if not is_kernels:
                    self._send(number)
                self._stop_with_it(number)
            elif number == signal.SIGCONT or (number != signal.SIGCHLD and not is_kernels and not was_sent(number, info.si_pid)):
                self._send(number)
        assert self.status is not None
        return self.status

    def _has_ended(self) -> bool:
        if os.getpid() == 1:
            self._bury_others()
        with self.standstill:
            return self._look()

    def _look(self) -> bool:
        while self.status is None:
            result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WCONTINUED | os.WNOHANG | os.WNOWAIT)
            if result is None:
                return False
            if result.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
                self._on_end()
            pid, status, usage = os.wait4(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if pid and os.WIFSTOPPED(status):
                self._stop_with_it(os.WSTOPSIG(status))
            elif pid and not os.WIFCONTINUED(status):
                self.status = status
                self.cpu_s = usage.ru_utime + usage.ru_stime
        return True

    def _bury_others(self) -> None:
        """As process 1 of a container, takes the orphans."""
        with contextlib.suppress(ChildProcessError):
            while (result := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if result.si_pid == self.pid:
                    return
                os.waitpid(result.si_pid, 0)

    def _stop_with_it(self, number: int) -> None:
        """Stops as the command does, by the same signal: a shell tells which, and an orphaned group ignores all but SIGSTOP."""
        self._on_stop()
        # Sent while it is blocked: the terminal's own, which may be here already or come just now, and this one are one.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask - {number})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._send(signal.SIGCONT)  # going on again

    def _send(self, number: int) -> None:
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)


def _be_spared() -> None:
    """Has the OOM killer choose the command rather than this process, which is to tell of it. Needs CAP_SYS_RESOURCE.

    Source: /proc/PID/oom_score_adj, from -1000 to 1000.
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        now = int(file.read())
        file.seek(0)
        file.write(str(max(now - _SPARED, -999)))


def end_as(wait_status: int) -> int:
    """Ends this process as the command ended where that was a signal; else gives its exit status.

    Where the signal does not end this process (it is process 1, or ignores it), the status is 128 and the signal's number.
    """
    if not os.WIFSIGNALED(wait_status):
        return os.waitstatus_to_exitcode(wait_status)
    number = os.WTERMSIG(wait_status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # the command's own core is the one
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    return 128 + number
