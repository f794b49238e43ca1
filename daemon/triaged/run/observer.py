# SPDX-License-Identifier: Apache-2.0
"""Turns the trace of a run into incidents and deeds, while the run goes on.

At the first of each kind (process, call, error) the process is read at once and every hypothesis that concerns the error is held
against it: what limits and use are then is fixed in the incident's situation. Later ones only count.
A storm costs a bounded share of a core: after each look the reader sleeps for a time in proportion to the events that there were.
"""
from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from triaged.errors import KernelError
from triaged.explain.replay import is_old
from triaged.explain.situation import Situation
from triaged.kernel import failing_calls as trace
from triaged.kernel.build_info import BuildInfoCache
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_state import read_process_state
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.traced_calls import DEEDS, harmless_errnos, harmless_of, untraced
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.symptom import Deed, SeenIn, Symptom, SymptomKind
from triaged.run.arguments import subject_of
from triaged.run.command import Remains
from triaged.run.filters import Filters
from triaged.run.foreign import ForeignCalls
from triaged.run.process_tree import TEST_ROLE, Process, ProcessTree
from triaged.run.record import Incident
from triaged.seccomp.syscalls import audit_arch_of, name_of, native_arch, number_of

if TYPE_CHECKING:
    from triaged.explain.hypothesis import Hypothesis
    from triaged.model.workload import WorkloadDefinition

log = logging.getLogger(__name__)

_INCIDENTS = 1000
_INCIDENTS_OF_A_KIND = 8  # of one package, call and error; further processes are counted with the last of them
_DEEDS = 4000
_TESTS = 4096
_SENT = 1024
_PAUSE_PER_EVENT_S = 0.00005  # an event takes 6 µs
_SHORTEST_S, _LONGEST_S = 0.0002, 0.01
_PRIORITY = -10  # what it reads is gone a moment later
_SECCOMP_SIGNAL, _KILL = 31, 9
_DEADLY_WITHOUT_CORE = (1, 2, 15)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PRCTL_DEEDS = frozenset({22, 38, 24, 47, 28, 8, 4, 1})
_MOUNTS = frozenset({"mount", "umount2", "pivot_root"})
_MOST_MOUNT_LOOKS = 100
# call -> the first arguments with which it installs a filter: SECCOMP_SET_MODE_STRICT and _FILTER, PR_SET_SECCOMP.
_SECCOMP_CALLS = {"seccomp": (0, 1), "prctl": (22,)}
_RELABELLED = Unknown("it had gone before its security label could be read, and a program that started it may have changed that")
_NONE = -1
_AFTER_ERRNOS = 134  # beyond are the kernel's own restarts
_UNTRACED = untraced()
_HARMLESS = harmless_errnos()


@dataclass(eq=False)
class _Seen:
    """An incident in the making: what was seen of it so far."""

    process: Process
    symptom: Symptom
    situation: Situation
    count: int = 1
    last_ns: int = 0


@dataclass
class _Equipment:
    """What judges, and what knows tests."""

    hypotheses: tuple[Hypothesis, ...]
    table: ProcessTable
    build_infos: BuildInfoCache = field(default_factory=BuildInfoCache)

    def package_of(self, path: str) -> str:
        """The package that a test binary tests, from its file; ""."""
        try:
            info = self.build_infos.read(path)
        except KernelError:
            return ""
        return info.tested_package if info is not None else ""


@dataclass(frozen=True)
class Surroundings:
    """What every situation of a run has in common. `standstill` is held while a process is stopped to read its filters."""

    paths: KernelPaths
    root: ProcessState | None
    baseline: Mapping[tuple[str, str], int]
    read_counters_now: Callable[[], Mapping[tuple[str, str], int]]
    read_log: Callable[[], tuple[str, ...]]
    note_cgroups: Callable[[ProcessState], None] = lambda state: None
    limits_then: Callable[[Mapping[str, str]], Mapping[str, object]] = lambda cgroups: {}
    standstill: threading.Lock = field(default_factory=threading.Lock)


class Observer:
    """Follows one run. `finish` first, then read `incidents`, `deeds` and `situation_of`.

    It begins with what is there at once; `equip` gives it what takes time to load.
    """

    def __init__(self, surroundings: Surroundings, root_pid: int, calls: trace.CallTrace | None) -> None:
        self._around = surroundings
        self._paths = surroundings.paths
        self._calls = calls
        self._equipment: _Equipment | None = None
        self._unexplained: list[Situation] = []
        self._unrecognised: list[tuple[Process, str]] = []
        self.tree = ProcessTree(Process(root_pid, None, time.monotonic_ns(), state=surroundings.root))
        self._seen: dict[tuple[Process, str, str], _Seen] = {}
        self._kinds: dict[tuple[str, str, str, str], list[_Seen]] = {}
        self._entered: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._is_every_call_watched = False
        self._begun: dict[int, int] = {}  # tasks that were seen since every call is watched: the call that they are in, or _NONE
        self._awake: set[int] = {root_pid}  # tasks that are known not to sleep in a call that began before it was watched for
        self._trapped: dict[int, int] = {}
        self._trap_told: set[Process] = set()
        self._kills: list[trace.SignalSent] = []
        self._ends: list[tuple[Process, int]] = []
        self._tests: dict[str, Process] = {}
        self._deeds: list[tuple[Process, Deed]] = []
        self._sent: dict[tuple[int, int], trace.SignalSent] = {}
        self._clock_offset_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        self._stop_read, self._stop_write = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        self._thread: threading.Thread | None = None
        self.events = 0
        self.left_out = 0
        self._mount_looks = 0
        self.events_lost = 0
        self.failed = ""
        self._arch = native_arch()
        self._foreign = ForeignCalls(self._arch)
        self._executing: dict[int, Process] = {}  # tasks of which the end of their execve is still to be told
        self.was_deaf = False
        self._filters = Filters(self._paths, calls, surroundings.standstill, self._arch)
        self._remains = Remains()

    def equip(self, hypotheses: Iterable[Hypothesis], definitions: Iterable[WorkloadDefinition]) -> None:
        """From now on hypotheses are held against each new incident at once, and workloads are recognised. From any thread."""
        self._equipment = _Equipment(tuple(hypotheses), ProcessTable(self._paths, tuple(definitions), cap=_TESTS))
        os.write(self._wake_write, b"x")

    # The thread

    def start(self) -> None:
        """Begins to follow, in a thread. Where the command has left no room for one, `finish` takes everything at the end."""
        thread = threading.Thread(target=self._follow, name="observer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # "can't start new thread": the limit that the command runs into is this process's as well
            return
        self._thread = thread

    def _follow(self) -> None:
        assert self._calls is not None
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
        poller = select.poll()
        for descriptor in (*self._calls.descriptors(), self._stop_read, self._wake_read):
            poller.register(descriptor, select.POLLIN)
        stop = select.poll()
        stop.register(self._stop_read, select.POLLIN)
        try:
            while True:
                ready = dict(poller.poll())
                before = self.events
                if self._wake_read in ready:
                    os.read(self._wake_read, 1)
                    self._catch_up()
                self._take(self._calls.events())
                pause = min(max((self.events - before) * _PAUSE_PER_EVENT_S, _SHORTEST_S), _LONGEST_S)
                if stop.poll(pause * 1000):
                    return
        except Exception as error:  # the border of the thread: the run goes on, and the report says that it saw no more
            log.debug("the observer failed", exc_info=True)
            self.failed = f"{type(error).__name__}: {error}"

    def finish(self, remains: Remains | None = None) -> None:
        """Takes what is still there, and stops. `remains`: what was left of the command when it had ended.

        Raises: KernelError.
        """
        self._remains = remains or Remains()
        os.write(self._stop_write, b"x")
        if self._thread is not None:
            self._thread.join()
        if self._calls is not None and not self.failed:
            self._calls.stop()
            self._take(self._calls.events(1 << 26))
            self._take(())
            self.events_lost = self._calls.events_lost()
        self._catch_up()
        for descriptor in (self._stop_read, self._stop_write, self._wake_read, self._wake_write):
            os.close(descriptor)

    def _catch_up(self) -> None:
        """Does what had to wait for the equipment."""
        programs, self._unrecognised = self._unrecognised, []
        for process, path in programs:
            self._recognise(process, path)
        situations, self._unexplained = self._unexplained, []
        for situation in situations:
            self._explain(situation)

    # What came of it

    def incidents(self) -> list[Incident]:
        """Every incident, in the order of their first signs."""
        out = []
        for seen in self._all_seen():
            entered = None if self.events_lost and seen.symptom.entered is False else seen.symptom.entered
            seen.situation.symptom = replace(seen.symptom, count=seen.count, last_ns=seen.last_ns, entered=entered)
            process = seen.process
            seen.situation.process = self._with_remains(process, seen.situation.process, seen.symptom.first_ns)
            out.append(Incident(
                seen.situation.symptom, seen.situation.process, self.tree.role_of(process), seen.situation,
                process.tested_package(), process.exe,
            ))
        return sorted(out, key=lambda incident: incident.symptom.first_ns)

    def _with_remains(self, process: Process, state: ProcessState | None, at_ns: int) -> ProcessState | None:
        """The state with the label and cgroup that the command ended with, where what is known of it is from before that."""
        root, remains = self.tree.root, self._remains
        if state is None or not is_old(state) or (at_ns and at_ns < root.executed_ns):
            return state
        if process is root and remains.cgroups:
            state = replace(state, identity=replace(state.identity, cgroups=remains.cgroups))
        is_same = process is root or (isinstance(state.lsm_label, Unknown) and self.tree.label_is_of_root(process))
        return replace(state, lsm_label=remains.label) if remains.label and is_same else state

    def _all_seen(self) -> Iterable[_Seen]:
        return dict.fromkeys(self._seen.values())

    def followed(self) -> frozenset[str]:
        """The packages whose test binary was seen to be executed, and all of whose calls the trace tells."""
        return frozenset(package for package, process in self._tests.items() if not process.is_unheard)

    def deeds(self) -> list[Deed]:
        """What the run's own processes did, in order."""
        return [replace(deed, is_test=self.tree.is_of_test(process, deed.comm)) for process, deed in self._deeds]

    def situation_of(self, symptom: Symptom, package: str) -> Situation:
        """A situation for what only the output tells, in the test of a package, or in the command itself where there is none."""
        process = self._tests.get(package) or self.tree.root
        state = process.state or self._around.root
        if state is not None and process.is_state_old:
            state = _standing_for(process, process, state)
        if state is not None:
            state = self._filters.of_past(process, state)
        return self._situation(process, symptom, self._with_remains(process, state, 0))

    def was_sent(self, signal: int, sender: int, wait_s: float) -> bool:
        """Whether the command itself was sent a signal by the same sender a moment ago (a signal to the whole process group)."""
        deadline = time.monotonic() + wait_s
        while True:
            sent = self._sent.get((self.tree.root.pid, signal))
            if sent is not None and sent.sender_tid == sender and time.monotonic_ns() - sent.at_ns < 500_000_000:
                return True
            if self._calls is None or not self._calls.sees_senders or time.monotonic() > deadline:
                return False
            time.sleep(0.005)

    # Events

    def _take(self, events: Iterable[trace.TraceEvent]) -> None:
        # What one instance tells may be read a look later than what the other tells of the same moment.
        ends, self._ends = self._ends, []
        self._take_each(events)
        self._settle_who_lives()
        kills, self._kills = self._kills, []
        for kill in kills:
            self._killed(kill.target_tid, kill.signal, kill.code, kill.at_ns)
        for process, at_ns in ends:
            self._ended_unasked(process, at_ns)

    def _take_each(self, events: Iterable[trace.TraceEvent]) -> None:
        for event in events:
            self.events += 1
            if isinstance(event, trace.CallEntered):
                if event.call == "exit_group":
                    self._left(event.tid)
                    continue
                self._entered[event.tid] = (event.call, event.arguments)
                self._awake.add(event.tid)
                if _installs_filter(event.call, event.arguments):
                    self._watch_every_call(True)
            elif isinstance(event, trace.CallEnded):
                if event.call in trace.EXECS and event.value == 0:
                    self._entered.pop(event.tid, None)
                    self._take_as_native(event.tid)
                    continue
                self._call_ended(event)
                if self._is_every_call_watched and event.call in _SECCOMP_CALLS:
                    self._watch_every_call(False)
            elif isinstance(event, trace.TaskMade):
                self.tree.made(event.tid, event.child, event.is_thread, event.at_ns)
                # The end of a clone that succeeds is not traced: the next one, if a filter refuses it, would seem to have begun.
                self._entered.pop(event.tid, None)
                self._awake.add(event.child)
            elif isinstance(event, trace.Executed):
                self._executed(event)
            elif isinstance(event, trace.TaskEnded):
                self._take_as_foreign(event.tid)
                self._ended(event)
                self._entered.pop(event.tid, None)
                self._begun.pop(event.tid, None)
                self._foreign.ended(event.tid)
                self._awake.discard(event.tid)
            elif isinstance(event, trace.SignalSent):
                self._signal_sent(event)
            elif isinstance(event, trace.SignalTaken):
                self._killed(event.tid, event.signal, event.code, event.at_ns)
            elif isinstance(event, trace.NumberedCallEntered):
                self._begun[event.tid] = event.number
                self._foreign.begun(event)
            elif isinstance(event, trace.NumberedCallEnded):
                self._numbered_call_ended(event)

    def _left(self, tid: int) -> None:
        process = self.tree.of(tid)
        if process is not None:
            process.has_left = True

    def _ended(self, event: trace.TaskEnded) -> None:
        process = self.tree.ended(event.tid)
        if process is not None and not process.has_left and len(self._ends) < _SENT:
            self._ends.append((process, event.at_ns))

    def _ended_unasked(self, process: Process, at_ns: int) -> None:
        """A process that ends without having asked for it was ended by a signal: the last deadly one that it was sent."""
        sent = [self._sent[key] for signal in _DEADLY_WITHOUT_CORE if (key := (process.pid, signal)) in self._sent]
        last = max(sent, key=lambda each: each.at_ns, default=None)
        if last is not None and 0 <= at_ns - last.at_ns < 1_000_000_000:
            self._killed(process.pid, last.signal, last.code, last.at_ns)

    def _executed(self, event: trace.Executed) -> None:
        process = self.tree.executed(event.tid, event.path, event.at_ns)
        process.is_state_old = process.state is not None
        self._entered.pop(event.old_tid, None)
        self._take_as_foreign(event.tid)
        if not any(each.workload_role for each in process.ancestors()):
            # What prepares a run (setpriv, prlimit, unshare) changes its own process, and then executes the next: what was kept of
            # it before is no longer true. Below a workload a thousand compilers come and go, and change nothing.
            self._keep_state(process)
            if self._foreign.is_to_come(self._paths, process.pid):
                self._watch_foreign()
        self._recognise(process, event.path)
        # The next that is told of a native program is the end of this very call; of another architecture's it never is.
        process.is_foreign = self._foreign.can_be and self._calls is not None
        process.is_unheard = process.is_foreign and self._calls is not None and not self._calls.watches_other_architecture
        if process.is_foreign:
            self._executing[event.tid] = process

    def _take_as_native(self, tid: int) -> None:
        """Takes back what was taken for granted of a program when it was executed."""
        process = self._executing.pop(tid, None)
        if process is not None:
            process.is_foreign = process.is_unheard = False

    def _take_as_foreign(self, tid: int) -> None:
        """Without the end of its execve being told a task goes on, or ends: its program was one of another architecture."""
        process = self._executing.pop(tid, None)
        if process is not None:
            self.was_deaf |= process.is_unheard
            self._watch_foreign()

    def _settle_who_lives(self) -> None:
        """Looks at programs of which no more is told yet: of those of another architecture the trace has to be told at once."""
        for tid in tuple(self._executing):
            is_foreign = self._foreign.is_one(self._paths, tid)
            if is_foreign:
                self._take_as_foreign(tid)
            elif is_foreign is False:
                self._take_as_native(tid)

    def _watch_foreign(self) -> None:
        if self._calls is not None and not self._calls.watches_other_architecture:
            self._begun.clear()
            self._foreign.watch(self._calls)

    def _recognise(self, process: Process, path: str) -> None:
        """Whether a process is one of a workload, and of which package."""
        equipment = self._equipment
        if equipment is None:
            self._unrecognised.append((process, path))
            return
        if process.exe != path or not equipment.table.may_be_workload(path):
            return
        identity = None
        with contextlib.suppress(KernelError):
            identity = equipment.table.read(process.pid)
        if identity is None or not identity.exe:  # gone, or a zombie; a test binary is there until `go test` ends
            role = equipment.table.role_by_exe(path)
            self.tree.recognise(process, role, equipment.package_of(path) if role == TEST_ROLE else "")
        elif identity.workload is not None:
            self.tree.recognise(process, identity.workload.role, identity.workload.package)
        if process.workload_role:
            self._keep_state(process)
            if process.package and len(self._tests) < _TESTS:
                self._tests[process.package] = process

    def _call_ended(self, event: trace.CallEnded) -> None:
        begun, arguments = self._entered.pop(event.tid, ("", ()))
        process = self.tree.of(event.tid)
        if process is None or (process is self.tree.root and not process.has_executed):
            return  # not the run's, or the child of triagectl that has yet to become the command
        was_begun = begun == event.call
        if not was_begun:
            arguments = ()
        if event.value >= 0:
            self._call_succeeded(process, event, arguments, was_begun)
            return
        if (was_begun or event.call in DEEDS) and (event.call in _UNTRACED or -event.value in harmless_of(event.call)):
            return  # of some the kernel does not filter the ends, because a filter may refuse them
        entered = self._was_entered(event.tid, event.call, was_begun)
        self._failed(process, event.tid, event.call, event.value, event.at_ns, entered, arguments)

    def _failed(
        self, process: Process, tid: int, call: str, value: int, at_ns: int, entered: bool | None, arguments: tuple[int, ...] = (),
    ) -> None:
        name = errno.errorcode.get(-value, str(-value))
        key = (process, call, name)
        seen = self._seen.get(key)
        if seen is not None:
            seen.count += 1
            seen.last_ns = at_ns
            return
        symptom = Symptom(
            SymptomKind.CALL, call, name, arguments=arguments, entered=entered, seen_in=SeenIn.TRACE, first_ns=at_ns, last_ns=at_ns,
        )
        self._note(key, process, symptom, tid)

    def _call_succeeded(
        self, process: Process, event: trace.CallEnded, arguments: tuple[int, ...], was_begun: bool
    ) -> None:
        if not was_begun and (event.tid in self._trapped or self._is_trapped(event)):
            at_ns = self._trapped.pop(event.tid, event.at_ns)
            self._note_trapped(process, event.tid, event.call, at_ns)
        if event.call not in DEEDS or not was_begun:
            return
        if event.call in ("setrlimit", "prlimit64") and len(arguments) > 2 and not arguments[2 if event.call == "prlimit64" else 1]:
            return  # asks only
        if event.call == "prctl" and (not arguments or arguments[0] not in _PRCTL_DEEDS):
            return
        if event.call in ("kill", "tkill", "pidfd_send_signal", "rt_sigqueueinfo") and len(arguments) > 1 and not arguments[1]:
            return  # asks whether the process lives
        if len(self._deeds) < _DEEDS:
            value = self._new_limit(process, event, arguments)
            self._deeds.append((process, Deed(process.pid, process.name, event.call, arguments, value, at_ns=event.at_ns)))
        else:
            self.left_out += 1
        if event.call in _MOUNTS and self._mount_looks < _MOST_MOUNT_LOOKS:
            # Whoever waits for it goes on with other mounts, and may be gone when that matters.
            self._mount_looks += 1
            for each in (process, *process.ancestors()):
                if not each.has_ended:
                    self._keep_state(each)
        if _installs_filter(event.call, arguments) and self._filters.installed(process):
            # Of every other task it is not known whether it is in the midst of a call that began before.
            self._awake = {event.tid}

    def _is_trapped(self, event: trace.CallEnded) -> bool:
        """Whether a call that never began gives its own number: what the kernel leaves where a filter sends SIGSYS."""
        calls = self._calls
        if calls is None or event.tid not in self._awake:
            return False
        if not calls.watches_seccomp and event.call not in calls.refusable:
            return False
        return trace.tells_beginning_of(calls, event.call) and event.value == number_of(self._arch, event.call)

    def _new_limit(self, process: Process, event: trace.CallEnded, arguments: tuple[int, ...]) -> int:
        """The soft limit after setrlimit and prlimit64, of others what the call gave."""
        if event.call == "setrlimit" and arguments:
            target, limit = process.pid, arguments[0]
        elif event.call == "prlimit64" and len(arguments) > 1:
            target, limit = arguments[0] or process.pid, arguments[1]
        else:
            return event.value
        try:
            # Not from the memory that the call was given: that is used for other things by now.
            return resource.prlimit(target, limit)[0] % (1 << 64)
        except (OSError, ValueError):
            return -1  # gone

    def _was_entered(self, tid: int, call: str, was_begun: bool) -> bool | None:
        """Whether the call had begun, as far as the trace can tell."""
        if was_begun:
            return True
        if self._calls is None or self._around.root is None:
            return None
        if not self._calls.watches_seccomp and call not in self._calls.refusable:
            return True  # nothing ends that has not begun where no filter may refuse it
        return False if trace.tells_beginning_of(self._calls, call) and tid in self._awake else None

    def _watch_every_call(self, is_on: bool) -> None:
        """A filter is being installed: until it is known what it may refuse, any call may be refused by it."""
        if is_on:
            self._begun.clear()
        if self._calls is not None:
            with contextlib.suppress(KernelError):
                self._is_every_call_watched = self._calls.watch_every_call(is_on) and is_on

    def _numbered_call_ended(self, event: trace.NumberedCallEnded) -> None:
        begun = self._begun.get(event.tid)
        self._begun[event.tid] = _NONE
        process = self.tree.of(event.tid)
        if process is None or self._calls is None:
            return
        if process.is_foreign:
            self._foreign_call_ended(process, event)
        elif self._calls.watches_other_architecture:
            pass  # then beginnings are not told
        elif begun == _NONE and 0 < -event.value < _AFTER_ERRNOS and event.number >= 0:
            call = name_of(audit_arch_of(self._arch), event.number)
            if call in _UNTRACED:  # of others the event of the call itself tells
                self._failed(process, event.tid, call, event.value, event.at_ns, False)

    def _foreign_call_ended(self, process: Process, event: trace.NumberedCallEnded) -> None:
        call = self._foreign.failed(event) if event.value < 0 else ""
        if call:
            may_be_refused = self._calls is not None and (self._calls.watches_seccomp or self._calls.refusable)
            self._failed(process, event.tid, call, event.value, event.at_ns, None if may_be_refused else True)

    def _signal_sent(self, event: trace.SignalSent) -> None:
        if len(self._sent) >= _SENT:
            del self._sent[next(iter(self._sent))]
        self._sent[(event.target_tid, event.signal)] = event
        process = self.tree.of_lately(event.target_tid)
        known = self._seen.get((process, "", f"signal {event.signal}")) if process is not None else None
        if known is not None and not known.symptom.sender_pid:
            known.symptom = replace(known.symptom, sender_pid=self._sender(event, event.code))
        if event.signal == _SECCOMP_SIGNAL and event.code == 1 and event.sender_tid == event.target_tid:
            self._trapped[event.target_tid] = event.at_ns
        elif event.signal == _KILL and len(self._kills) < _SENT:
            self._kills.append(event)

    def _sender(self, sent: trace.SignalSent, code: int) -> int:
        """The pid of who sent it; 0 where it is the kernel's own: then who happened to run is not who sent it."""
        if code > 0:
            return 0
        by = self.tree.of_lately(sent.sender_tid)
        return by.pid if by is not None else sent.sender_tid

    def _note_trapped(self, process: Process, tid: int, call: str, at_ns: int) -> None:
        symptom = Symptom(
            SymptomKind.KILLED, call, signal=_SECCOMP_SIGNAL, entered=False, seen_in=SeenIn.TRACE, first_ns=at_ns, last_ns=at_ns,
        )
        self._trap_told.add(process)
        self._note((process, call, f"signal {_SECCOMP_SIGNAL}"), process, symptom, tid)

    def _killed(self, tid: int, signal: int, code: int, at_ns: int) -> None:
        process = self.tree.of_lately(tid)
        if process is None or (process is self.tree.root and not process.has_executed):
            return
        if signal == _SECCOMP_SIGNAL and process in self._trap_told:
            return
        key = (process, "", f"signal {signal}")
        if key in self._seen:
            return
        sent = self._sent.get((tid, signal)) or self._sent.get((process.pid, signal))
        sender = self._sender(sent, code) if sent is not None and at_ns - sent.at_ns < 1_000_000_000 else 0
        symptom = Symptom(
            SymptomKind.KILLED, signal=signal, seen_in=SeenIn.TRACE, sender_pid=sender, first_ns=at_ns, last_ns=at_ns,
        )
        self._note(key, process, symptom, tid)

    # Incidents

    def _note(self, key: tuple[Process, str, str], process: Process, symptom: Symptom, tid: int) -> None:
        kind = (process.tested_package(), process.name, symptom.syscall, symptom.errno or str(symptom.signal))
        same = self._kinds.setdefault(kind, [])
        if len(same) >= _INCIDENTS_OF_A_KIND:
            same[-1].count += 1
            same[-1].last_ns = symptom.last_ns
            self._seen[key] = same[-1]
            if len(self._seen) > 8 * _INCIDENTS:
                del self._seen[key]
            return
        if len(self._seen) >= _INCIDENTS:
            self.left_out += 1
            return
        symptom = replace(symptom, path=subject_of(self._paths, tid, symptom))
        state = self._read_state(process, symptom)
        situation = self._situation(process, symptom, state)
        seen = _Seen(process, symptom, situation, 1, symptom.last_ns)
        self._seen[key] = seen
        same.append(seen)
        self._explain(situation)

    def _explain(self, situation: Situation) -> None:
        if self._equipment is None:
            self._unexplained.append(situation)
            return
        from triaged.explain.hypothesis import explain

        try:
            explain(situation, self._equipment.hypotheses)
        except Exception:  # the border of a hypothesis: what it says at the end of the run counts
            log.debug("a hypothesis failed", exc_info=True)

    def _situation(self, process: Process, symptom: Symptom, state: ProcessState | None) -> Situation:
        around = self._around
        states = tuple(each.state for each in process.ancestors() if each.state is not None)
        return Situation(
            symptom, state, paths=self._paths, at_start=around.root, ancestors=states, baseline=around.baseline,
            read_counters_now=around.read_counters_now, read_log=around.read_log, limits_then=around.limits_then,
        )

    def _read_state(self, process: Process, symptom: Symptom) -> ProcessState | None:
        """The process now; where it is gone, the nearest of those that it inherited from."""
        chain = (process, *process.ancestors())
        for each in chain[1:]:
            if (each.state is None or each.is_state_old) and not each.has_ended:
                self._keep_state(each)
        with contextlib.suppress(KernelError):
            state = read_process_state(self._paths, process.pid, with_mappings=symptom.errno in ("ENOMEM", "EAGAIN"))
            if self._is_it(state, symptom.first_ns) and state.identity.exe:
                state = self._filters.of_live(process, state)
                process.know(state)
                self._around.note_cgroups(state)
                return state
        for each in chain:
            if each is not process and not each.has_ended:
                self._keep_state(each)  # as it is now: it may have changed its limits since it was read
            if each.state is not None:
                return self._filters.of_past(process, _standing_for(process, each, each.state))
        root = self._around.root
        return self._filters.of_past(process, root) if root is not None else None

    def _keep_state(self, process: Process) -> None:
        """Reads a process that lives, and keeps what was known of it where that is not to be had."""
        with contextlib.suppress(KernelError):
            state = read_process_state(self._paths, process.pid, with_mappings=False)
            if state.identity.exe and self._is_it(state, process.made_ns):
                self._around.note_cgroups(state)
                process.know(self._filters.of_live(process, state))

    def _is_it(self, state: ProcessState, at_ns: int) -> bool:
        """Whether the process began before that moment: a number may be in use again."""
        began_ns = state.identity.start_ticks * (1_000_000_000 // _TICKS_PER_S) - self._clock_offset_ns
        return began_ns <= at_ns + 1_000_000_000 // _TICKS_PER_S


def _standing_for(process: Process, known: Process, state: ProcessState) -> ProcessState:
    """The state of a process's ancestor, or of itself before it executed its program, as what is known of it."""
    for each in (process, *process.ancestors()):
        if each.may_be_relabelled and state.lsm_label:
            state = replace(state, lsm_label=_RELABELLED)
        if each is known:
            break
    return replace(state, stands_for=process.pid)


def _installs_filter(call: str, arguments: tuple[int, ...]) -> bool:
    return bool(arguments) and arguments[0] in _SECCOMP_CALLS.get(call, ())
