# SPDX-License-Identifier: Apache-2.0
"""The failing calls of a process tree as they happen, cheaply enough to be always on while a test runs.

Hard facts (measured on 6.18, per call, beside 120 ns for getppid untraced):
- `syscalls:sys_exit_X` with a filter costs 150 ns for call X and 30 ns for others; `raw_syscalls:sys_exit` with any filter
  costs 170 ns for every call. An unfiltered `sys_enter_X` costs 500 ns. So: events of single calls, filtered in the kernel.
- These events do not exist for calls of another architecture (32-bit programs): `watch_other_architecture`. The end of an execve
  that succeeds counts as a call of the new program's, so that its event tells, right behind sched_process_exec, of a native one.
- An instance takes 1.5 ms to make, its 660 settings 8 ms, another buffer size 15 ms, the removal 60 ms.
- signal_deliver tells of SIGKILL also for the threads that exit_group() ends, and instead of SIGTERM and every other deadly signal
  that dumps no core: only signal_generate proves a kill, and only an end without exit_group() a death by another signal. That event
  is seen with set_event_pid only where the sender is traced, so it has an instance of its own, for the whole machine.
- A reader that polls costs the traced task a wake-up per event; one that sleeps a little between reads does not.
"""
from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, Protocol, Union

from triaged.errors import InterfaceMissing, KernelError
from triaged.kernel.files import translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.traced_calls import (
    DEEDS,
    ENTERED,
    ENTERED_FILTERS,
    EVENT_NAMES,
    FREQUENT,
    failures_but,
    failures_of,
    untraced,
)
from triaged.kernel.tracing import Instance, TraceFs, remove_stale_instances

_CLONE_THREAD = 0x10000
# Of these the kernel tells who sent them to whom; SIGCHLD, SIGURG and the like are no news.
_TOLD_SIGNALS = (1, 2, 3, 4, 6, 7, 8, 9, 11, 15, 24, 25, 31)
_SURVIVED_BY_DEFAULT = (17, 18, 19, 20, 21, 22, 23, 28)
_RAW_LEFT_OUT = (2, 4, 9, 17, 20, 21, 110, 115)  # the frequent ones of HARMLESS_ERRNOS
EXECS = ("execve", "execveat")
_NEVER_ENDING = frozenset({"rt_sigreturn", "restart_syscall", "exit", "exit_group"})  # or with what another call gave
_LINE = re.compile(rb"^\s*(?:.{0,16})-(\d+)\s+\[\d+\]\s+\S+\s+(\d+)\.(\d+): (.*)$", re.DOTALL)
_CALL = re.compile(rb"^sys_(\w+)(?: -> 0x([0-9a-f]+)|\((.*)\))$")
_RAW_ENTER = re.compile(rb"^sys_enter: NR (-?\d+) \(([0-9a-f]+)")
_RAW_EXIT = re.compile(rb"^sys_exit: NR (-?\d+) = (-?\d+)$")
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
_ARGUMENT = re.compile(rb"\w+: (?:0x)?([0-9a-f]{1,16})")
_NEW_TASK = re.compile(rb"^task_newtask: pid=(\d+) comm=.* clone_flags=([0-9a-f]+)")
_EXEC = re.compile(rb"^sched_process_exec: filename=(.*) pid=(\d+) old_pid=(\d+)$", re.DOTALL)
_EXIT = re.compile(rb"^sched_process_exit: comm=.* pid=(\d+) ", re.DOTALL)
_DELIVER = re.compile(rb"^signal_deliver: sig=(\d+) errno=-?\d+ code=(-?\d+) sa_handler=([0-9a-f]+)")
_GENERATE = re.compile(
    rb"^signal_generate: sig=(\d+) errno=(-?\d+) code=(-?\d+) comm=(.*) pid=(\d+) grp=(\d+) res=(\d+)$", re.DOTALL
)
_VICTIM = re.compile(rb"^mark_victim: pid=(\d+)")


class CallEntered(NamedTuple):
    """A call began. `at_ns`, here and below: CLOCK_MONOTONIC, with the trace's precision of 1 µs."""

    tid: int
    call: str
    arguments: tuple[int, ...]
    at_ns: int


class CallEnded(NamedTuple):
    """A call ended. `value` as the program gets it, negative for an error; the call's own number where a filter trapped it."""

    tid: int
    call: str
    value: int
    at_ns: int


class NumberedCallEntered(NamedTuple):
    """Any call began, told by its number: every one while every call is watched, else those of another architecture that stand for
    many. `first` is its first argument.
    """

    tid: int
    number: int
    at_ns: int
    first: int | None = None


class NumberedCallEnded(NamedTuple):
    """Any call ended, told by its number: every one while every call is watched, those of another architecture that failed else."""

    tid: int
    number: int
    value: int
    at_ns: int


class TaskMade(NamedTuple):
    """A task made another one; it has not run yet."""

    tid: int
    child: int
    is_thread: bool
    at_ns: int


class Executed(NamedTuple):
    """A process runs another program from now on. `old_tid` is the thread that asked for it."""

    tid: int
    path: str
    old_tid: int
    at_ns: int


class TaskEnded(NamedTuple):
    """A thread or process ended."""

    tid: int
    at_ns: int


class SignalTaken(NamedTuple):
    """A signal without a handler takes effect on a task, and ends its process. (SIGKILL is told by `SignalSent` only.)"""

    tid: int
    signal: int
    code: int
    at_ns: int


class SignalSent(NamedTuple):
    """Somebody, or the kernel on behalf of somebody, sent a signal. `code` is si_code, `error` si_errno."""

    sender_tid: int
    target_tid: int
    signal: int
    code: int
    error: int
    at_ns: int


class OomVictim(NamedTuple):
    """The OOM killer chose a process; `tid` is the task whose allocation it was."""

    tid: int
    victim: int
    at_ns: int


TraceEvent = Union[
    CallEntered, CallEnded, NumberedCallEntered, NumberedCallEnded, TaskMade, Executed, TaskEnded, SignalTaken, SignalSent,
    OomVictim,
]


def parse_line(line: bytes) -> TraceEvent | None:
    """The event of a line of trace_pipe; None for any other line."""
    match = _LINE.match(line)
    if match is None:
        return None
    tid, at_ns, body = int(match[1]), int(match[2]) * 1_000_000_000 + int(match[3]) * 1000, match[4]
    if body.startswith(b"sys_"):
        return _call_event(tid, at_ns, body)
    found = _NEW_TASK.match(body)
    if found:
        return TaskMade(tid, int(found[1]), bool(int(found[2], 16) & _CLONE_THREAD), at_ns)
    found = _EXIT.match(body)
    if found:
        return TaskEnded(int(found[1]), at_ns)
    found = _EXEC.match(body)
    if found:
        return Executed(int(found[2]), os.fsdecode(found[1]), int(found[3]), at_ns)
    found = _DELIVER.match(body)
    if found:
        return SignalTaken(tid, int(found[1]), int(found[2]), at_ns)
    found = _GENERATE.match(body)
    if found:
        return SignalSent(tid, int(found[5]), int(found[1]), int(found[3]), int(found[2]), at_ns) if found[7] == b"0" else None
    found = _VICTIM.match(body)
    return OomVictim(tid, int(found[1]), at_ns) if found else None


def _call_event(tid: int, at_ns: int, body: bytes) -> TraceEvent | None:
    match = _CALL.match(body)
    if match is None:
        raw = _RAW_EXIT.match(body)
        if raw is not None:
            return NumberedCallEnded(tid, int(raw[1]), int(raw[2]), at_ns)
        raw = _RAW_ENTER.match(body)
        return NumberedCallEntered(tid, int(raw[1]), at_ns, int(raw[2], 16)) if raw is not None else None
    name = match[1].decode("ascii", "replace")
    call = EVENT_NAMES.get(name, name)
    if match[2] is None:
        registers = _ARGUMENT.findall(_QUOTED.sub(b"", match[3]))
        return CallEntered(tid, call, tuple(int(word, 16) for word in registers), at_ns)
    value = int(match[2], 16)
    return CallEnded(tid, call, value - (1 << 64) if value >> 63 else value, at_ns)


class LineEvents:
    """Puts pieces of a trace's text together to lines, and gives their events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, part: bytes) -> Iterator[TraceEvent]:
        """The events of the lines that this piece completes."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            event = parse_line(line)
            if event is not None:
                yield event


class _Pipe:
    """Reads one instance's events, whole lines only."""

    def __init__(self, instance: Instance) -> None:
        self.descriptor = instance.open_pipe()
        self._path = f"{instance.directory}/trace_pipe"
        self._lines = LineEvents()

    def read(self) -> bytes:
        """A piece of the text that is there now; b"" for none. Raises: KernelError."""
        try:
            return os.read(self.descriptor, 1 << 16)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            raise translated(error, self._path) from error

    def events(self, cap: int) -> Iterator[TraceEvent]:
        """What is there now, at most about `cap` bytes."""
        while cap > 0 and (part := self.read()):
            cap -= len(part)
            yield from self._lines.feed(part)

    def close(self) -> None:
        os.close(self.descriptor)


class CallTrace(Protocol):
    """A trace of failing calls that is on: this process's own, or one that another process reads for it."""

    watches_seccomp: bool
    refusable: frozenset[str]
    watches_other_architecture: bool
    sees_senders: bool

    def watch_seccomp(self, number_of: Mapping[str, int]) -> None:
        """See `FailingCalls.watch_seccomp`."""

    def watch_refusable(self, number_of: Mapping[str, int]) -> bool:
        """See `FailingCalls.watch_refusable`. False where this trace cannot do that."""

    def watch_every_call(self, is_on: bool) -> bool:
        """See `FailingCalls.watch_every_call`. False where this trace cannot do that."""

    def watch_other_architecture(self, again: Collection[int], multiplexed: Collection[int]) -> None:
        """See `FailingCalls.watch_other_architecture`."""

    def descriptors(self) -> tuple[int, ...]:
        """For poll: readable when there are events."""

    def events(self, cap: int = 1 << 20) -> Iterator[TraceEvent]:
        """The events that are there. Raises: KernelError."""

    def events_lost(self) -> int:
        """How many events found a buffer full since the beginning."""

    def stop(self) -> None:
        """No more events; those that are there can still be read."""

    def close_pipes(self) -> None:
        """Reads no more."""

    def close(self) -> None:
        """Ends the trace. Raises: KernelError."""


def tells_beginning_of(trace: CallTrace, call: str) -> bool:
    """Whether the trace has the beginning of every such call."""
    if call in trace.refusable:
        return True
    if call in ENTERED_FILTERS:
        return False
    return call in ENTERED or (trace.watches_seccomp and call not in untraced() and call not in FREQUENT)


class FailingCalls:
    """Traces the failing calls, programs, threads and deaths of one process and all that it starts. Close it.

    `sees_all_senders`: also who sends signals from outside of the tree. Raises: NotPermitted, InterfaceMissing, KernelError.
    """

    def __init__(self, paths: KernelPaths, pid: int, *, sees_all_senders: bool = True, name: str = "calls") -> None:
        self._instances: list[Instance] = []
        self._pipes: list[_Pipe] = []
        self._tracefs = TraceFs(paths)
        self.watches_seccomp = False
        self.refusable: frozenset[str] = frozenset()
        self.watches_other_architecture = False
        self.sees_senders = False
        try:
            remove_stale_instances(self._tracefs)
            self._calls = self._instance(name)
            self._start_calls(pid)
            self._pipes.append(_Pipe(self._calls))
            if sees_all_senders:
                self._start_signals(self._instance("signals"))
                self.sees_senders = True
            else:
                self._start_signals(self._calls)
        except BaseException:
            self.close()
            raise

    def _instance(self, name: str) -> Instance:
        instance = Instance(self._tracefs, name)
        self._instances.append(instance)
        instance.write("trace_clock", "mono")
        return instance

    def _start_calls(self, pid: int) -> None:
        trace = self._calls
        trace.write("options/event-fork", "1")
        trace.write("set_event_pid", str(pid))
        try:
            events = os.listdir(f"{trace.directory}/events/syscalls")
        except OSError as error:
            path = f"{trace.directory}/events/syscalls"
            raise InterfaceMissing(path, "this kernel has no events of single calls (CONFIG_FTRACE_SYSCALLS)") from error
        left_out = untraced()
        default = failures_of("")
        with contextlib.suppress(KernelError):  # it says EINVAL, because the sys_enter events have no `ret`; the others take it
            trace.write("events/syscalls/filter", default)
        for event in events:
            kind, call = _of_event(event)
            if kind == "exit" and call not in left_out:
                wanted = "" if call in DEEDS else failures_of(call)
                if call in EXECS:
                    wanted = f"({wanted}) || ret == 0"
                if wanted != default:
                    trace.write(f"events/syscalls/{event}/filter", wanted or "0")
                trace.write(f"events/syscalls/{event}/enable", "1")
            elif kind == "enter" and call in ENTERED:
                if call in ENTERED_FILTERS:
                    trace.write(f"events/syscalls/{event}/filter", ENTERED_FILTERS[call])
                trace.write(f"events/syscalls/{event}/enable", "1")
        for name in ("sched/sched_process_exec", "sched/sched_process_exit", "task/task_newtask"):
            trace.write(f"events/{name}/enable", "1")
        survived = " && ".join(f"sig != {number}" for number in (9, *_SURVIVED_BY_DEFAULT))
        trace.write("events/signal/signal_deliver/filter", f"sa_handler == 0 && {survived}")
        trace.write("events/signal/signal_deliver/enable", "1")

    def _start_signals(self, trace: Instance) -> None:
        trace.write("events/signal/signal_generate/filter", " || ".join(f"sig == {number}" for number in _TOLD_SIGNALS))
        trace.write("events/signal/signal_generate/enable", "1")
        with contextlib.suppress(InterfaceMissing):
            trace.write("events/oom/mark_victim/enable", "1")
        if trace is not self._calls:
            self._pipes.append(_Pipe(trace))

    def watch_seccomp(self, number_of: Mapping[str, int]) -> None:
        """From now on the beginning of all but the most frequent calls is recorded: who ends without it was refused by a filter.

        Calls that are else not recorded are recorded where they give an errno that filters give. `number_of`: the numbers of
        calls, which trapped calls "return". Raises: KernelError.
        """
        trace, left_out = self._calls, untraced()
        self.watches_seccomp = True
        for event in os.listdir(f"{trace.directory}/events/syscalls"):
            kind, call = _of_event(event)
            number = number_of.get(call)
            trapped = f" || ret == {number}" if number is not None and number > 2 else ""  # 0 to 2: read, write, open give that
            if kind == "enter" and call not in left_out | FREQUENT | ENTERED_FILTERS.keys():
                trace.write(f"events/syscalls/{event}/enable", "1")
            elif kind == "exit" and call in left_out:
                if call not in _NEVER_ENDING:
                    trace.write(f"events/syscalls/{event}/filter", f"ret == -1 || ret == -38{trapped}")
                    trace.write(f"events/syscalls/{event}/enable", "1")
            elif kind == "exit" and call in FREQUENT | (ENTERED_FILTERS.keys() - DEEDS):
                trace.write(f"events/syscalls/{event}/filter", f"({failures_of(call)}) || ret == -38{trapped}")
            elif kind == "exit" and call not in DEEDS:
                # Every end of what is told to begin: else a beginning whose end was left out would stand for the next call.
                trace.write(f"events/syscalls/{event}/filter", "0")

    def watch_refusable(self, number_of: Mapping[str, int]) -> bool:
        """From now on every beginning and end of those calls is recorded that a filter may refuse, also of frequent ones.

        `number_of`: their numbers. Raises: KernelError.
        """
        trace = self._calls
        self.refusable |= frozenset(number_of)
        for event in os.listdir(f"{trace.directory}/events/syscalls"):
            kind, call = _of_event(event)
            if call not in number_of or call in _NEVER_ENDING:
                continue
            if kind:
                # Every end, too, for the same reason as above.
                trace.write(f"events/syscalls/{event}/filter", "0")
                trace.write(f"events/syscalls/{event}/enable", "1")
        return True

    def watch_every_call(self, is_on: bool) -> bool:
        """Records the beginning and the end of every call by number, or no longer.

        For the moment until it is known what a new filter may refuse. Raises: KernelError.
        """
        if self.watches_other_architecture:  # its filters leave out most; it may have been asked for in that moment
            return False
        self._calls.write("events/raw_syscalls/enable", str(int(is_on)))
        return True

    def watch_other_architecture(self, again: Collection[int], multiplexed: Collection[int]) -> None:
        """From now on failing calls are also recorded by number, whatever their architecture.

        `again` are the numbers of calls of which EAGAIN may tell of a limit, `multiplexed` of those that stand for many, whose
        beginnings are recorded too. Raises: KernelError.
        """
        self.watches_other_architecture = True
        raw = "events/raw_syscalls"
        is_limit = " || ".join((f"ret != -{errno.EAGAIN}", *(f"id == {number}" for number in sorted(again))))
        self._calls.write(f"{raw}/sys_exit/filter", f"{failures_but(_RAW_LEFT_OUT)} && ({is_limit})")
        self._calls.write(f"{raw}/sys_exit/enable", "1")
        if multiplexed:
            self._calls.write(f"{raw}/sys_enter/filter", " || ".join(f"id == {number}" for number in sorted(multiplexed)))
        self._calls.write(f"{raw}/sys_enter/enable", str(int(bool(multiplexed))))

    def descriptors(self) -> tuple[int, ...]:
        """For poll: readable when there are events."""
        return tuple(pipe.descriptor for pipe in self._pipes)

    def events(self, cap: int = 1 << 20) -> Iterator[TraceEvent]:
        """The events that are there, senders of signals first. Raises: KernelError."""
        for pipe in reversed(self._pipes):
            yield from pipe.events(cap)

    def read(self) -> bytes:
        """A piece of the trace's text, for somebody else to parse; b"" for none. Raises: KernelError."""
        return self._pipes[0].read()

    def events_lost(self) -> int:
        """How many events found a buffer full since the beginning."""
        return sum(instance.events_lost() for instance in self._instances)

    def stop(self) -> None:
        """No more events; those that are there can still be read."""
        for instance in self._instances:
            instance.stop()

    def close_pipes(self) -> None:
        """Reads no more: an instance that is still read cannot be removed."""
        for pipe in self._pipes:
            pipe.close()
        self._pipes = []

    def close(self) -> None:
        """Removes the instances. Raises: KernelError."""
        self.close_pipes()
        try:
            for instance in self._instances:
                instance.close()
        finally:
            self._instances = []
            self._tracefs.close()


def _of_event(event: str) -> tuple[str, str]:
    """("enter" or "exit", the call's name) of an event such as sys_enter_openat; ("", "") for the files beside them."""
    parts = event.split("_", 2)
    if len(parts) < 3 or parts[0] != "sys":
        return "", ""
    return parts[1], EVENT_NAMES.get(parts[2], parts[2])
