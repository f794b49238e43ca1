# SPDX-License-Identifier: Apache-2.0
"""Three ways to see every system call of a command and all that it starts: tracefs, a LOG filter with audit, ptrace.

Each yields the same events, from the command's own exec on. tracefs needs root and sees the most (also what a filter refused);
the LOG filter needs CAP_AUDIT_READ and says which call of which program, nothing of arguments; ptrace needs nothing
and slows the command down many times.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from threading import Timer

from triaged.errors import KernelError, NotPermitted
from triaged.kernel import ptrace
from triaged.kernel.audit import AuditSocket, SeccompTally
from triaged.kernel.files import read_text, translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_load import Command, LoadedFilter
from triaged.kernel.tracing import Entered, Event, Executed, Forked, RefusedCalls, TraceInstance

_RETURN_LOG = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFC0000)
_SYSCALL_INFO = struct.Struct("=B3xI")  # struct ptrace_syscall_info: op, arch; at 24: number, arguments
_ENTRY = 1


class Method(str, Enum):
    """How calls are observed."""

    TRACEFS = "tracefs"
    AUDIT = "audit"
    PTRACE = "ptrace"


@dataclass(frozen=True)
class Call:
    """A call that a program made (`value` None), or that a filter refused (`value` is what the program got).

    `program` is the executable's path; `arch` the audit architecture, 0 where the method does not say (the machine's own);
    `arguments` is empty where the method does not give them.
    """

    program: str
    number: int
    arguments: tuple[int, ...] = ()
    value: int | None = None
    arch: int = 0


@dataclass
class Observation:
    """What came of observing. `status` is the command's wait status, `events_lost` what the method is known to have missed."""

    method: Method
    status: int = 0
    events_lost: int = 0
    timed_out: bool = False


Sink = Callable[[Call], None]


def observe(
    method: Method, paths: KernelPaths, argv: Sequence[str], sink: Sink, *,
    filters: Sequence[LoadedFilter] = (), load_number: int = 0, timeout_s: float = 0.0,
) -> Observation:
    """Runs the command, under the filters if there are any, and gives each of its calls to `sink`. `timeout_s` 0: no limit.

    Raises: NotPermitted, InterfaceMissing, KernelError where the method is not to be had here, or the command cannot be started.
    """
    if method is Method.TRACEFS:
        return _observe_with_tracefs(paths, argv, sink, filters, load_number, timeout_s)
    if method is Method.AUDIT:
        return _observe_with_audit(paths, argv, sink, filters, load_number, timeout_s)
    return _observe_with_ptrace(argv, sink, filters, load_number, timeout_s)


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self.at = time.monotonic() + timeout_s if timeout_s else 0.0

    def is_over(self) -> bool:
        return bool(self.at) and time.monotonic() > self.at


class _Programs:
    """Which program each task runs, and since when the command itself does."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.paths: dict[int, str] = {root: ""}

    def follow(self, event: Event) -> str | None:
        """The program that made a call, or None for other events and for what preceded the command's own exec."""
        if isinstance(event, Executed):
            self.paths[event.tid] = event.path
        elif isinstance(event, Forked):
            self.paths[event.child] = self.paths.get(event.tid, "")
        else:
            return self.paths.get(event.tid) or None
        return None


def _observe_with_tracefs(
    paths: KernelPaths, argv: Sequence[str], sink: Sink, filters: Sequence[LoadedFilter], load_number: int, timeout_s: float
) -> Observation:
    observation = Observation(Method.TRACEFS)
    with Command(argv, filters, load_number) as command, TraceInstance(
        paths, command.pid, with_exits=bool(filters), buffer_kb=16384
    ) as trace, _KilledThreads(bool(filters)) as killed:
        programs, refused = _Programs(command.pid), RefusedCalls(command.pid)

        def take(events: Iterator[Event]) -> None:
            for event in events:
                program = programs.follow(event)
                end = refused.add(event)
                if program and isinstance(event, Entered):
                    sink(Call(program, event.number, event.arguments))
                elif program and end is not None:
                    killed.known.add(end.number)
                    sink(Call(program, end.number, (), end.value))

        command.start()
        deadline = _Deadline(timeout_s)
        while not command.poll():
            take(trace.events(0.1))
            killed.drain()
            if deadline.is_over():
                observation.timed_out = True
                command.end()
        take(trace.events())
        for pid, number, arch in killed.unknown():
            program = programs.paths.get(pid)
            if program:
                sink(Call(program, number, (), number, arch))
        observation.events_lost = trace.events_lost()
    observation.status = command.wait()
    return observation


class _KilledThreads:
    """Calls for which a filter killed one thread of several: the kernel ends it on the spot, without an event in the trace
    (measured on 6.18). An audit record it always writes. `known` are the calls that the trace proved itself. A context.
    """

    def __init__(self, is_wanted: bool) -> None:
        self.known: set[int] = set()
        self._seen: dict[tuple[int, int], int] = {}
        self._tally = SeccompTally()
        self._socket: AuditSocket | None = None
        if is_wanted:
            with contextlib.suppress(KernelError):  # without audit such a thread ends unexplained
                self._socket = AuditSocket.open()

    def __enter__(self) -> _KilledThreads:
        return self

    def drain(self) -> None:
        """Reads what waits."""
        while self._socket is not None and self._socket.drain(self._tally).messages:
            for group in self._tally.take():
                if group.first.action == "KILL_THREAD":
                    self._seen.update({(pid, group.first.syscall): group.first.audit_arch for pid in group.pids})

    def unknown(self) -> Iterator[tuple[int, int, int]]:
        """Process, number and architecture of each such call that the trace does not have."""
        self.drain()
        for (pid, number), arch in self._seen.items():
            if number not in self.known:
                yield pid, number, arch

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()


def _observe_with_audit(
    paths: KernelPaths, argv: Sequence[str], sink: Sink, filters: Sequence[LoadedFilter], load_number: int, timeout_s: float
) -> Observation:
    observation = Observation(Method.AUDIT)
    try:
        opened = AuditSocket.open()
    except NotPermitted as error:
        raise NotPermitted(error.path, "audit records may not be read", "run as root (CAP_AUDIT_READ)") from error
    try:
        # The LOG filter is loaded first: it is the laxest of all but ALLOW, so every stricter answer still counts.
        with Command(argv, [LoadedFilter(_RETURN_LOG), *filters], load_number) as command:
            tally = SeccompTally()
            command.start()
            deadline = _Deadline(timeout_s)
            is_over = False
            while True:
                batch = opened.drain(tally)
                observation.events_lost += batch.lost
                for group in tally.take():
                    record = group.first
                    if record.exe and not _is_elsewhere(paths, record.pid, command.pid):
                        refused = None if record.action == "LOG" else -1  # the errno is not in the record
                        sink(Call(record.exe, record.syscall, (), refused, record.audit_arch))
                if is_over and not batch.messages:
                    break
                is_over = command.poll()
                if deadline.is_over() and not is_over:
                    observation.timed_out = True
                    command.end()
                time.sleep(0.01)
            observation.status = command.wait()
    finally:
        opened.close()
    return observation


def _is_elsewhere(paths: KernelPaths, pid: int, root: int) -> bool:
    """Whether a process lives and is seen to be no descendant of `root` (some other program's LOG record)."""
    while pid > 1:
        if pid == root:
            return False
        try:
            pid = int(read_text(f"{paths.proc}/{pid}/stat").rsplit(")", 1)[1].split()[1])
        except KernelError:
            return False
    return pid == 1


def _observe_with_ptrace(
    argv: Sequence[str], sink: Sink, filters: Sequence[LoadedFilter], load_number: int, timeout_s: float
) -> Observation:
    observation = Observation(Method.PTRACE)
    with Command(argv, filters, load_number) as command:
        tracer = _Tracer(command.pid, sink)
        try:
            ptrace.request(ptrace.SEIZE, command.pid, 0, _Tracer.OPTIONS)
        except OSError as error:
            raise translated(error, f"/proc/{command.pid}") from error
        command.release()

        def give_up() -> None:
            observation.timed_out = True
            tracer.kill()

        timer = Timer(timeout_s, give_up) if timeout_s else None
        if timer:
            timer.start()
        try:
            while tracer.step():
                pass
        finally:
            if timer:
                timer.cancel()
        command.status = tracer.root_status
        command.check_started()
    observation.status = tracer.root_status
    return observation


class _Tracer:
    """Every task of a command, stopped at each of its calls."""

    OPTIONS = (ptrace.O_TRACESYSGOOD | ptrace.O_TRACEFORK | ptrace.O_TRACEVFORK | ptrace.O_TRACECLONE | ptrace.O_TRACEEXEC
               | ptrace.O_EXITKILL)

    def __init__(self, root: int, sink: Sink) -> None:
        self.root = root
        self.sink = sink
        self.root_status = 0
        self.programs: dict[int, str] = {root: ""}
        self._buffer = ctypes.create_string_buffer(96)

    def step(self) -> bool:
        """Handles one stop or end; False once no task is left."""
        try:
            tid, status = os.waitpid(-1, ptrace.WALL)
        except ChildProcessError:
            return False
        if not os.WIFSTOPPED(status):
            self.programs.pop(tid, None)
            if tid == self.root:
                self.root_status = status
            return True
        how, data = ptrace.SYSCALL, 0
        event, number = status >> 16, os.WSTOPSIG(status)
        with contextlib.suppress(ProcessLookupError):  # any stopped task may be killed at any time
            if number == signal.SIGTRAP | 0x80:
                self._call(tid)
            elif event == ptrace.EVENT_EXEC:
                self._executed(tid)
            elif event in (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE):
                ptrace.request(ptrace.GETEVENTMSG, tid, 0, self._buffer)
                child = struct.unpack_from("=Q", self._buffer.raw)[0]
                self.programs[child] = self.programs.get(tid, "")
            elif event == ptrace.EVENT_STOP:
                how = ptrace.LISTEN if number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU) else how
            else:
                data = number
            if how == ptrace.SYSCALL and tid == self.root and not self.programs.get(tid):
                how = ptrace.CONT
            ptrace.request(how, tid, 0, data)
        return True

    def kill(self) -> None:
        """Ends every task of the command."""
        for tid in list(self.programs):
            with contextlib.suppress(ProcessLookupError):
                os.kill(tid, signal.SIGKILL)

    def _executed(self, tid: int) -> None:
        is_first = not self.programs.get(self.root)
        try:
            self.programs[tid] = os.readlink(f"/proc/{tid}/exe")
        except OSError:
            self.programs.setdefault(tid, "?")
        if is_first:
            self.sink(Call(self.programs[tid], self._execve_number()))

    def _execve_number(self) -> int:
        # The stop after an exec lies inside the call: what GET_SYSCALL_INFO then says is "none", so ask the kernel's file.
        with open(f"/proc/{self.root}/syscall") as file:
            word = file.read().split()[0]
        return int(word) if word.isdecimal() else -1

    def _call(self, tid: int) -> None:
        ptrace.request(ptrace.GET_SYSCALL_INFO, tid, len(self._buffer), self._buffer)
        kind, arch = _SYSCALL_INFO.unpack_from(self._buffer.raw)
        if kind == _ENTRY:
            number, *arguments = struct.unpack_from("=7Q", self._buffer.raw, 24)
            self.sink(Call(self.programs.get(tid, "?"), number & 0xFFFFFFFF, tuple(arguments), None, arch))
