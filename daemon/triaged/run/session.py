# SPDX-License-Identifier: Apache-2.0
"""One run from its start to its record: the command, its output, the trace, the counters before and after."""
from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from triaged.errors import BusError, ConfigError, KernelError, NotPermitted
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.files import read_bytes
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import parse_cgroups, read_cgroup_record
from triaged.run.cgroup_watch import CgroupWatch
from triaged.run.command import Remains, RunningCommand, find_program, give_back_signals, hold_signals, read_remains
from triaged.run.streams import Streams, Take

if TYPE_CHECKING:
    from triaged.kernel.audit_lines import AuditLines
    from triaged.kernel.failing_calls import CallTrace
    from triaged.kernel.kernel_log import KernelLogReader
    from triaged.model.process_state import ProcessState
    from triaged.model.workload import WorkloadDefinition
    from triaged.run.observer import Observer
    from triaged.run.record import Incident, RunRecord
    from triaged.run.scope import Scope

_SWITCH_INTERVAL_S = 0.0005
_ANSWERED_S, _ASKED_S = 25.0, 100.0  # triaged-helper may have to be started first
_REFUSALS = frozenset({"EACCES", "EPERM"})
_RECORDS_S = 0.3
_LOG_SLACK_USEC = 20_000  # the log has a clock of its own


@dataclass
class Options:
    """How to run.

    `is_traced`: failing calls are to be watched for. `slice_name`: the slice in which the command is to have a scope of its own.
    `warn` is told what could not be done as asked, before the command runs.
    `bus`: where triaged is, which traces for users who may not; `may_ask`: it may ask for a password. `is_judged`: the record of a
    run that passed is to be complete, too; else its end does not wait for what would have judged a failure.
    """

    is_traced: bool = True
    bus: str = "system"
    may_ask: bool = False
    slice_name: str = ""
    warn: Callable[[str], None] = lambda text: None
    is_judged: bool = True


def _is_filtered(paths: KernelPaths) -> bool:
    """Whether this process, and so the command from its first call on, is under a seccomp filter."""
    try:
        return b"\nSeccomp:\t2\n" in read_bytes(f"{paths.proc}/self/status", 16384)
    except KernelError:
        return False


def watch_seccomp(calls: CallTrace) -> None:
    """Has the trace tell of calls that a filter refuses. Raises: KernelError."""
    from triaged.seccomp.syscalls import native_arch, numbers_on

    calls.watch_seccomp(numbers_on(native_arch()))


class Session:
    """One run, a context: leaving it removes the trace.

    `take` gets every piece of output: "stdout" or "stderr", the bytes, ns of CLOCK_MONOTONIC.
    `preload` is called while the command runs: to load what is needed afterwards.
    """

    def __init__(
        self, argv: Sequence[str], take: Take, options: Options | None = None, paths: KernelPaths | None = None,
        preload: Callable[[], object] = lambda: None,
    ) -> None:
        self.argv = tuple(argv)
        self._take = take
        self._preload = preload
        self._options = options or Options()
        self._paths = paths or KernelPaths()
        self._blind: list[str] = []
        self._layout = CgroupLayout(())
        self._watch = CgroupWatch(self._paths, self._layout, {})
        self._calls: CallTrace | None = None
        self._observer: Observer | None = None
        self._log: KernelLogReader | None = None
        self._records: AuditLines | None = None
        self._streams: Streams | None = None
        self._root: ProcessState | None = None
        self._log_lines: list[str] = []
        self._record_lines: list[str] = []
        self._started_ns = time.monotonic_ns()
        self._started_usec = time.time_ns() // 1000
        self._failure: Exception | None = None
        self._needs_no_judge = False
        self._remover = 0
        self._scope: Scope | None = None
        self._cgroups: Mapping[str, str] = {}
        self._remains = Remains()

    def run(self) -> RunRecord:
        """Runs the command to its end. Raises: NotStarted and other KernelErrors where it could not be started."""
        self._started_usec = time.time_ns() // 1000
        interval = sys.getswitchinterval()
        # A piece of output must not wait for 5 ms because something else here is busy.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            return self._run()
        finally:
            sys.setswitchinterval(interval)

    def _run(self) -> RunRecord:
        program = find_program(self.argv[0])
        mask = hold_signals()
        streams = self._streams = Streams(self._take)
        command = RunningCommand(program, self.argv, streams.for_command, mask)
        try:
            self._find_place(command.pid)
            self._start_trace(command.pid)
            self._open_records()
            self._watch.start()
            streams.start()
            command.release()
        except BaseException:
            command.abandon()
            streams.finish()
            give_back_signals(mask)
            raise
        # Everything that takes time to load is loaded while the command works already.
        preparation = threading.Thread(target=self._observe, args=(command,), name="preparation", daemon=True)
        is_prepared = True
        try:
            preparation.start()
        except RuntimeError:  # no room for a thread: the limit that the command runs into is this process's as well
            is_prepared = False
        status = command.wait(
            streams.resize, streams.catch_up, self._was_sent, lambda: self._read_remains(command.pid),
            lambda: self._look_at_place(command.pid),
        )
        ended_usec = time.time_ns() // 1000
        self._needs_no_judge = status == 0 and not self._options.is_judged
        self._watch.finish()
        streams.finish()
        if is_prepared:
            preparation.join()
        else:
            self._observe(command)
        if self._failure is not None:
            raise self._failure
        give_back_signals(mask)
        used = command.cpu_s * 1e6 / max(ended_usec - self._started_usec, 1)
        return self._record(status, self._started_usec, ended_usec, used)

    def _find_place(self, pid: int) -> None:
        """Puts the command into its scope, where it is to have one, and finds out which counters are above it."""
        try:
            self._layout = read_layout(self._paths)
            if self._options.slice_name:
                self._enter_scope(pid)
            self._cgroups = parse_cgroups(read_cgroup_record(self._paths, pid))
            self._watch = CgroupWatch(self._paths, self._layout, self._cgroups)
        except KernelError as error:
            self._blind.append(f"counters of cgroups: {error.shown()}")

    def _enter_scope(self, pid: int) -> None:
        from triaged.run.scope import enter_scope

        try:
            self._scope = enter_scope(self._paths, self._layout, pid, self._options.slice_name, self._options.may_ask)
            if self._scope.note:
                self._options.warn(self._scope.note)
        except (BusError, KernelError) as error:
            text = f"no scope of its own in {self._options.slice_name}: {error.shown()}"
            self._blind.append(text)
            self._options.warn(f"{text}; going on where triagectl is")

    def _read_root(self, pid: int) -> ProcessState | None:
        """The command as it was when it began: it has everything from this process."""
        from triaged.kernel.process_state import read_process_state

        try:
            state = read_process_state(self._paths, os.getpid(), with_mappings=False)
        except KernelError as error:
            self._blind.append(f"the limits that the command began with: {error.shown()}")
            return None
        identity = replace(
            state.identity, pid=pid, start_ticks=0, ppid=os.getpid(), comm="", exe="", argv=self.argv,
            cgroups=self._cgroups or state.identity.cgroups,
        )
        # Read while the command works already: what it does to itself meanwhile comes after this.
        return replace(state, identity=identity, time_usec=self._started_usec)

    def _start_trace(self, pid: int) -> None:
        if not self._options.is_traced:
            self._blind.append("failing system calls: not traced (--no-trace)")
            return
        from triaged.kernel.failing_calls import FailingCalls
        from triaged.kernel.namespaces import is_initial_namespace

        if not is_initial_namespace(self._paths, "pid"):
            self._blind.append(
                "failing system calls: this is a container with process numbers of its own, which the kernel's trace does not "
                "know; run triagectl outside of it, or the container with --pid=host"
            )
            return
        try:
            self._calls = FailingCalls(self._paths, pid)
        except NotPermitted as error:
            why = self._ask_for_trace(pid) if os.geteuid() else error.shown()
            if why:
                self._blind.append(f"failing system calls: {why}")
        except KernelError as error:
            self._blind.append(f"failing system calls: {error.shown()}")
        if self._calls is not None and _is_filtered(self._paths):
            with contextlib.suppress(KernelError):
                watch_seccomp(self._calls)

    def _ask_for_trace(self, pid: int) -> str:
        """Asks triaged for a trace, as an ordinary user. Why there is none; ""."""
        from triaged.kernel.process import read_start_ticks
        from triaged.kernel.trace_relay import RelayedCalls

        options = self._options
        try:
            from triaged.bus.client import BlockingClient  # raises BusError where there is no D-Bus library

            with BlockingClient(options.bus) as client:
                (path,) = client.call(
                    "StartTrace", "ut", pid, read_start_ticks(self._paths, pid), may_interact=options.may_ask,
                    timeout_s=_ASKED_S if options.may_ask else _ANSWERED_S,
                )
            self._calls = RelayedCalls(path)
        except (BusError, KernelError) as error:
            return f"not root, and triaged gave no trace: {error.shown()}; or sudo triagectl run -- sudo -u \"$USER\" COMMAND"
        return ""

    def _observe(self, command: RunningCommand) -> None:
        """Loads what judges, and begins to follow the trace. In a thread."""
        try:
            from triaged.run.observer import Observer, Surroundings

            self._root = self._read_root(command.pid)
            around = Surroundings(
                self._paths, self._root, self._watch.baseline, self._watch.counters_now, self._read_log,
                lambda state: self._watch.note(state.identity.cgroups), self._watch.limits_of, command.standstill,
            )
            self._observer = Observer(around, command.pid, self._calls)
            if self._calls is not None:
                self._observer.start()
            if self._needs_no_judge:
                return
            from triaged.explain.hypotheses import HYPOTHESES

            self._observer.equip(HYPOTHESES, self._definitions())
            self._open_log()
            self._preload()
        except Exception as error:  # the border of the thread: it is raised when the command has ended
            self._failure = error

    def _definitions(self) -> tuple[WorkloadDefinition, ...]:
        from triaged.config import config_paths, load_workloads

        try:
            return load_workloads(config_paths())
        except ConfigError as error:  # the command's status is not to suffer from it
            self._blind.append(f"which processes are tests: {error.shown()}")
            return ()

    def _open_log(self) -> None:
        from triaged.kernel.kernel_log import KernelLogReader

        try:
            self._log = KernelLogReader(self._paths, from_start=True)
        except KernelError as error:
            self._blind.append(f"the kernel log: {error.shown()}")

    def _open_records(self) -> None:
        """Subscribes to audit records, where that is allowed: the kernel log lacks some of them, or all."""
        if os.geteuid():
            return
        from triaged.kernel.audit_lines import AuditLines

        with contextlib.suppress(KernelError):
            self._records = AuditLines()

    def _wait_for_records(self, incidents: Sequence[Incident]) -> None:
        """Waits a moment for what a security module has to say of the refusals: the kernel writes it later."""
        from triaged.explain.security_log import is_about_refusal
        from triaged.explain.view import is_labelled

        asked = [each.situation for each in incidents if each.symptom.errno in _REFUSALS and is_labelled(each.process)]
        deadline = time.monotonic() + _RECORDS_S
        while asked and time.monotonic() < deadline and not any(is_about_refusal(each, self._read_log()) for each in asked):
            time.sleep(0.01)

    def _read_log(self) -> tuple[str, ...]:
        if self._records is not None:
            with contextlib.suppress(KernelError):
                self._record_lines += self._records.read()
        if self._log is not None:
            with contextlib.suppress(KernelError):
                while records := self._log.read(4096):
                    since = self._started_ns // 1000 - _LOG_SLACK_USEC
                    self._log_lines += [record.text for record in records if record.stamp_usec >= since]
        known = set(self._log_lines)
        return (*self._log_lines, *(line for line in self._record_lines if line not in known))

    def _read_remains(self, pid: int) -> None:
        """It may have got its label and its cgroup, and failed, before anything was ready to read them."""
        self._remains = read_remains(self._paths, pid)

    def _look_at_place(self, pid: int) -> None:
        with contextlib.suppress(KernelError):
            self._watch.moved(parse_cgroups(read_cgroup_record(self._paths, pid)))

    def _was_sent(self, signal: int, sender: int) -> bool:
        observer = self._observer
        return observer is not None and observer.was_sent(signal, sender, 0.05)

    def _record(self, status: int, started_usec: int, ended_usec: int, cpus_used: float) -> RunRecord:
        from triaged.kernel.traced_calls import hidden
        from triaged.run.record import RunRecord

        observer, streams = self._observer, self._streams
        assert observer is not None
        assert streams is not None
        observer.finish(self._remains)
        incidents = observer.incidents()
        if status:
            self._wait_for_records(incidents)
        if observer.failed:
            self._blind.append(f"failing system calls from some moment on: {observer.failed}")
        if observer.events_lost:
            self._blind.append(f"failing system calls: {observer.events_lost} events were lost in a storm of them")
        if observer.left_out:
            self._blind.append(f"{observer.left_out} kinds of failing calls: there were too many to keep")
        if streams.unread_bytes:
            self._blind.append(f"{streams.unread_bytes} bytes of output: they came faster than they can be read")
        if streams.unwritten:
            self._blind.append(f"the rest of the output, which could not be written: {streams.unwritten}")
        if streams.failure is not None:
            self._blind.append(f"the rest of the output: {type(streams.failure).__name__}: {streams.failure}")
        # Where some were lost, that none was seen says nothing.
        is_whole = not (observer.failed or observer.events_lost or observer.left_out)
        record = RunRecord(
            self.argv, status, started_usec, ended_usec, observer.situation_of, self._root, incidents, observer.deeds(),
            is_traced=self._calls is not None and is_whole, hidden=hidden(), followed=observer.followed(),
            was_deaf=observer.was_deaf, blind=tuple(self._blind), cpus_used=cpus_used, unwritten=streams.unwritten,
        )
        self._leave_trace()
        return record

    def _leave_trace(self) -> None:
        """Removes the trace, in a process of its own: the kernel takes a tenth of a second for it, and nobody has to wait."""
        calls, self._calls = self._calls, None
        if calls is None:
            return
        from triaged.kernel.failing_calls import FailingCalls

        calls.close_pipes()
        if not isinstance(calls, FailingCalls):
            calls.close()
            return
        try:
            self._remover = os.fork()
        except OSError:
            with contextlib.suppress(KernelError):
                calls.close()
            return
        if self._remover == 0:
            try:
                for descriptor in (0, 1, 2):
                    os.close(descriptor)  # whoever waits for the end of our output must not wait for this
                calls.close()
            finally:
                os._exit(0)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        """Gives back what the run needed; the trace may be there for a moment longer (`wait_for_removal`)."""
        self._leave_trace()
        if self._scope is not None:
            left = self._scope.close()
            self._scope = None
            if left:
                self._options.warn(left)
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._records is not None:
            self._records.close()
            self._records = None

    def wait_for_removal(self) -> None:
        """Waits until nothing of the trace is left."""
        if self._remover:
            os.waitpid(self._remover, 0)
            self._remover = 0
