# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters of a run's processes: read once where one is installed, known of all that inherit them.

Of calls that the trace leaves out nothing but the filter itself tells what became of them; and a process that has inherited its
filters may live too short for anybody to read them.
"""
from __future__ import annotations

import contextlib
import threading
from dataclasses import replace

from triaged.errors import Gone, KernelError
from triaged.kernel.failing_calls import CallTrace
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_dump import read_filters, read_seccomp_status
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.run.process_tree import Process
from triaged.seccomp.bpf import parse_program
from triaged.seccomp.outcomes import refusable_calls
from triaged.seccomp.syscalls import numbers_on

_MOST_WATCHED = 16  # so many installed filters are looked at for what they may refuse
_GONE = Unknown("the process was gone before its filters could be read")


class Filters:
    """Knows the filters of the processes of one run. `standstill` is held while a process is stopped to read them."""

    def __init__(self, paths: KernelPaths, calls: CallTrace | None, standstill: threading.Lock, arch: str) -> None:
        self._paths = paths
        self._calls = calls
        self._standstill = standstill
        self._arch = arch
        self._watched = 0

    def installed(self, process: Process) -> bool:
        """A process has just installed a filter, for itself and all that it starts: from now on refusals are watched for.

        Gives whether other calls are watched from now on than were before.
        """
        process.is_filtered = True
        found: tuple[bytes, ...] | None = None
        with contextlib.suppress(KernelError):
            found = process.filters = self._read(process.pid)
        calls = self._calls
        if calls is None or self._watched >= _MOST_WATCHED:
            return False
        self._watched += 1
        with contextlib.suppress(KernelError):
            if found is None:
                self._watch_all(calls)
                return True
            may_refuse = refusable_calls([parse_program(each) for each in found], self._arch)
            new = {name: number for name, number in may_refuse.items() if name not in calls.refusable}
            if new and not calls.watch_refusable(new):
                self._watch_all(calls)
            return bool(new)
        return True

    def _watch_all(self, calls: CallTrace) -> None:
        if not calls.watches_seccomp:
            calls.watch_seccomp(numbers_on(self._arch))

    def _read(self, pid: int) -> tuple[bytes, ...]:
        """The instructions of each filter. Raises: Gone, NotPermitted, KernelError."""
        with self._standstill:
            dump = read_filters(self._paths, pid)
        if dump.mode != "filter":
            raise Gone(f"{self._paths.proc}/{pid}")  # another process that has the number by now
        return tuple(each.instructions for each in dump.filters)

    def of_live(self, process: Process, state: ProcessState) -> ProcessState:
        """What was just read of a process, with its filters.

        They are inherited: who has as many as an ancestor has the same, and need not be stopped to read them.
        """
        if state.seccomp_mode != "filter":
            return self.of_past(process, state)
        try:
            _, count, _ = read_seccomp_status(self._paths, process.pid)
            known = next((each.filters for each in (process, *process.ancestors()) if len(each.filters) == count), ())
            process.filters = known or self._read(process.pid)
        except KernelError as error:
            return self.of_past(process, replace(state, filters=Unknown(error.shown())))
        return replace(state, filters=process.filters)

    def of_past(self, process: Process, state: ProcessState) -> ProcessState:
        """What was read of a process or one before it some time ago, with the filters that it got since then."""
        if isinstance(state.filters, tuple):
            return state
        inherited = next((each.filters for each in (process, *process.ancestors()) if each.filters), ())
        if inherited:
            return replace(state, seccomp_mode="filter", filters=inherited)
        if process.is_filtered and state.seccomp_mode == "none":
            return replace(state, seccomp_mode="filter", filters=_GONE)
        return state
