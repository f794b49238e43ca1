# SPDX-License-Identifier: Apache-2.0
"""An own tracefs instance that follows the system calls of a process tree.

Hard facts (measured on 6.1, 6.12 and 6.18; Documentation/trace/ftrace.rst):
- `options/event-fork` adds the children and threads of a traced task before they run; `set_event_pid` takes thread ids.
- A call that seccomp refuses emits raw_syscalls:sys_exit and no sys_enter; every other refusal emits both. TRAP and the KILLs
  show the call's number as the return value. A call that was asleep when the trace began has an exit only, too: here the
  tasks are traced from their first instruction on, so there is none. One exception (measured on 6.18): KILL_THREAD ends one thread
  of several without either; only the audit record tells.
- rt_sigreturn "returns" what the interrupted call had in its register.
- While an instance is on, every call of the whole machine costs about 0.16 µs more: only on request, and removed afterwards.
- Instances are global: they outlive their maker unless it removes them.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass

from triaged.errors import InterfaceMissing, KernelError, NotPermitted
from triaged.kernel.files import read_text, translated
from triaged.kernel.paths import KernelPaths

PREFIX = "triaged-"
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture
_FSCONFIG_CMD_CREATE, _CLOEXEC = 6, 1
_ENTER = re.compile(rb"^\s*(.{1,16})-(\d+)\s+\[\d+\].*: sys_enter: NR (-?\d+) \(((?:[0-9a-f]{1,16}(?:, [0-9a-f]{1,16}){0,5})?)\)")
_EXIT = re.compile(rb"^\s*(.{1,16})-(\d+)\s+\[\d+\].*: sys_exit: NR (-?\d+) = (-?\d+)")
_EXEC = re.compile(rb"^\s*.{1,16}-(\d+)\s+\[\d+\].*: sched_process_exec: filename=(.*) pid=(\d+) old_pid=\d+$")
_LOST = re.compile(r"^(?:(?:commit )?overrun|dropped events): (\d+)$", re.MULTILINE)
_FORK = re.compile(rb": sched_process_fork: comm=.* pid=(\d+) child_comm=.* child_pid=(\d+)$")


@dataclass(frozen=True)
class Entered:
    """A task made a call, and no filter refused it. `number` as in its register; `arguments` the first six registers."""

    tid: int
    number: int
    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Exited:
    """A call ended, with the value that the task gets (or the number itself where a signal ends it)."""

    tid: int
    number: int
    value: int


@dataclass(frozen=True)
class Executed:
    """A task runs another program from now on."""

    tid: int
    path: str


@dataclass(frozen=True)
class Forked:
    """A task made another one (a process or a thread)."""

    tid: int
    child: int


Event = Entered | Exited | Executed | Forked


def parse_event(line: bytes) -> Event | None:
    """The event of a line of trace_pipe; None for any other line."""
    match = _ENTER.match(line)
    if match:
        registers = tuple(int(word, 16) for word in match[4].split(b", ")) if match[4] else ()
        return Entered(int(match[2]), int(match[3]), registers)
    match = _EXIT.match(line)
    if match:
        return Exited(int(match[2]), int(match[3]), int(match[4]))
    match = _EXEC.match(line)
    if match:
        return Executed(int(match[1]), os.fsdecode(match[2]))
    match = _FORK.search(line)
    if match:
        return Forked(int(match[1]), int(match[2]))
    return None


class RefusedCalls:
    """Tells the calls that a seccomp filter refused: they end without having begun.

    Give it every event of a trace that follows its tasks from their first instruction on. Where events were lost, what it
    says is no proof.
    """

    def __init__(self, root_tid: int) -> None:
        self._begun: dict[int, int] = {}
        self._fresh = {root_tid}  # tasks whose next exit is that of the call that made them, or that they slept in

    def add(self, event: Event) -> Exited | None:
        """The event, if it is the end of a refused call."""
        if isinstance(event, Forked):
            self._fresh.add(event.child)
        elif isinstance(event, Entered):
            self._fresh.discard(event.tid)
            self._begun[event.tid] = event.number
        elif isinstance(event, Exited):
            begun = self._begun.pop(event.tid, None)
            if event.tid in self._fresh:
                self._fresh.discard(event.tid)
            elif begun is None and event.number >= 0:  # -1: the end of rt_sigreturn
                return event
        return None


class TraceFs:
    """The tracefs: the mounted one, else a mount of its own that no other process sees. Close it.

    Raises: NotPermitted (not root; lockdown), InterfaceMissing (no tracefs in this kernel).
    """

    def __init__(self, paths: KernelPaths) -> None:
        self._mount = -1
        self.path = paths.tracing
        if os.path.isdir(f"{self.path}/instances"):
            return
        if os.geteuid() != 0:
            raise NotPermitted(self.path, "tracefs is not mounted or may not be read", "run as root")
        self._mount = _mounted_tracefs(self.path)
        self.path = f"/proc/self/fd/{self._mount}"

    def close(self) -> None:
        """Gives the own mount back."""
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1


def _mounted_tracefs(path: str) -> int:
    # A detached mount (fsmount) hangs in no mount namespace: nothing to clean up, it ends with the descriptor.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def call(number: int, *arguments: object) -> int:
        result: int = libc.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            error = OSError(ctypes.get_errno(), "")
            translation = translated(error, path)
            if isinstance(translation, NotPermitted):
                raise NotPermitted(path, "tracefs may not be mounted", "run as root in the initial user namespace") from error
            raise InterfaceMissing(path, "no tracefs in this kernel (CONFIG_TRACING)") from error
        return result

    context = call(_FSOPEN, b"tracefs", ctypes.c_uint(_CLOEXEC))
    try:
        call(_FSCONFIG, ctypes.c_int(context), ctypes.c_uint(_FSCONFIG_CMD_CREATE), None, None, ctypes.c_int(0))
        return call(_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
    finally:
        os.close(context)


class Instance:
    """An own instance of the tracefs: buffers, filters and switches that nobody else has. Close it.

    Raises: NotPermitted, InterfaceMissing, KernelError.
    """

    def __init__(self, tracefs: TraceFs, name: str) -> None:
        self.directory = f"{tracefs.path}/instances/{PREFIX}{os.getpid()}-{name}"
        try:
            os.mkdir(self.directory)
        except OSError as error:
            translation = translated(error, f"{tracefs.path}/instances")
            if isinstance(translation, NotPermitted):
                translation.remedy = "run as root; kernel lockdown must not be confidentiality"
            raise translation from error

    def write(self, name: str, value: str) -> None:
        """Sets a file of the instance. Raises: InterfaceMissing where this kernel has no such event, NotPermitted, KernelError."""
        path = f"{self.directory}/{name}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, value.encode())
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            raise InterfaceMissing(path, "this kernel has no such trace event (CONFIG_FTRACE_SYSCALLS)") from error
        except OSError as error:
            raise translated(error, path) from error

    def open_pipe(self) -> int:
        """The events as text, non-blocking. Raises: KernelError."""
        path = f"{self.directory}/trace_pipe"
        try:
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise translated(error, path) from error

    def events_lost(self) -> int:
        """How many events found the buffer full since the trace began.

        Source: per_cpu/cpu*/stats, "overrun", "commit overrun" and "dropped events".
        """
        lost = 0
        for name in os.listdir(f"{self.directory}/per_cpu"):
            text = read_text(f"{self.directory}/per_cpu/{name}/stats")
            lost += sum(int(number) for number in _LOST.findall(text))
        return lost

    def stop(self) -> None:
        """No more events; those that are there can still be read."""
        for name in ("events/enable", "tracing_on"):
            with contextlib.suppress(OSError), open(f"{self.directory}/{name}", "w") as file:
                file.write("0")

    def close(self) -> None:
        """Removes the instance (60 ms: the kernel waits for all its processors). A reader that is still there keeps it longer."""
        _remove(self.directory)


class TraceInstance:
    """A trace of the calls of one task and all that it starts. A context; leaving it removes the instance.

    `with_exits` adds the ends of calls, `exit_filter` (the kernel's filter language) chooses among them.
    Raises: NotPermitted, InterfaceMissing, KernelError.
    """

    def __init__(
        self, paths: KernelPaths, tid: int, *, with_exits: bool = False, exit_filter: str = "", buffer_kb: int = 8192
    ) -> None:
        self.tid = tid
        self.with_exits = with_exits
        self.exit_filter = exit_filter
        self.buffer_kb = buffer_kb
        self._tracefs = TraceFs(paths)
        self._instance: Instance | None = None
        self._pipe = -1
        self._rest = b""

    def __enter__(self) -> TraceInstance:
        try:
            remove_stale_instances(self._tracefs)
            self._instance = Instance(self._tracefs, str(self.tid))
            self._start(self._instance)
        except BaseException:
            self.close()
            raise
        return self

    def _start(self, instance: Instance) -> None:
        instance.write("buffer_size_kb", str(self.buffer_kb))
        instance.write("options/event-fork", "1")
        instance.write("set_event_pid", str(self.tid))
        instance.write("events/raw_syscalls/sys_enter/enable", "1")
        if self.with_exits:
            if self.exit_filter:
                instance.write("events/raw_syscalls/sys_exit/filter", self.exit_filter)
            instance.write("events/raw_syscalls/sys_exit/enable", "1")
        instance.write("events/sched/sched_process_exec/enable", "1")
        instance.write("events/sched/sched_process_fork/enable", "1")
        self._pipe = instance.open_pipe()

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """For select and epoll: readable when there are events."""
        return self._pipe

    def events(self, timeout_s: float = 0.0) -> Iterator[Event]:
        """The events that are there, waiting at most so long for the first one. An iteration reads until nothing is left."""
        if timeout_s and not select.select([self._pipe], [], [], timeout_s)[0]:
            return
        while True:
            try:
                part = os.read(self._pipe, 1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                raise translated(error, "trace_pipe") from error
            if not part:
                return
            *lines, self._rest = (self._rest + part).split(b"\n")
            for line in lines:
                event = parse_event(line)
                if event is not None:
                    yield event

    def events_lost(self) -> int:
        """How many events found the buffer full since the trace began."""
        return self._instance.events_lost() if self._instance else 0

    def close(self) -> None:
        """Ends the trace and removes the instance. A reader of it that is still there keeps it a moment longer."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        if self._instance is not None:
            self._instance.close()
            self._instance = None
        self._tracefs.close()


def _remove(directory: str) -> None:
    for name in ("events/enable", "tracing_on"):
        with contextlib.suppress(OSError), open(f"{directory}/{name}", "w") as file:
            file.write("0")
    for attempt in range(20):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.005 * (attempt + 1))  # EBUSY while a just closed file of it is still being released
        else:
            return
    raise KernelError(directory, "could not be removed", f"rmdir {directory}")


def remove_stale_instances(tracefs: TraceFs) -> list[str]:
    """Removes the instances that a triaged process which is gone has left; their names."""
    gone = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"{tracefs.path}/instances"):
            match = re.fullmatch(rf"{PREFIX}(\d+)-\w+", name)
            if match and not os.path.isdir(f"/proc/{match[1]}"):
                with contextlib.suppress(KernelError):
                    _remove(f"{tracefs.path}/instances/{name}")
                    gone.append(name)
    return gone
