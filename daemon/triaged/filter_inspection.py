# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters of one live process, and what they do to its workload: D-Bus InspectSeccomp, and the daemon's own look."""
from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from triaged.errors import Gone
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import Refusals, RefusedCall
from triaged.model.filters import FilterDump
from triaged.model.process import ProcessIdentity
from triaged.seccomp.assessment import Assessment, assess
from triaged.seccomp.check import CallVerdict, Outcome
from triaged.seccomp.installed import installed
from triaged.seccomp.needs import Needs
from triaged.seccomp.syscalls import native_arch
from triaged.sources.filter_reader import FilterReader
from triaged.workload_needs import nearest_toolchain, read_needs, workloads_of

Row = Mapping[str, "str | int | bool | bytes | list[str]"]


@dataclass(frozen=True)
class FilterInspection:
    """A process, its filters, and what they do. `assessment` has no results where the process is of no known workload."""

    process: ProcessIdentity
    dump: FilterDump
    arch: str
    assessment: Assessment

    def process_row(self) -> Row:
        """The process and how it stands."""
        who, needs = self.process, self.assessment.needs
        row: dict[str, str | int | bool | bytes | list[str]] = {
            "Pid": who.pid, "Comm": who.comm, "Exe": who.exe, "Cgroup": who.cgroup, "Uid": who.uid,
            "Workload": ",".join(result.workload for result in self.assessment.results), "Mode": self.dump.mode,
            "NoNewPrivileges": self.dump.has_no_new_privileges, "Arch": self.arch, "StoppedUsec": self.dump.stopped_ns // 1000,
            "Toolchain": needs.toolchain, "Measured": needs.source,
        }
        if self.assessment.results:
            row["Works"] = self.assessment.works
        return row

    def filter_rows(self, with_programs: bool) -> list[Row]:
        """Each filter, newest first."""
        rows: list[Row] = []
        for one in self.dump.filters:
            row: dict[str, str | int | bool | bytes | list[str]] = {
                "Instructions": len(one.instructions) // 8, "Logged": one.is_logged,
            }
            if with_programs:
                row["Program"] = one.instructions
            rows.append(row)
        return rows

    def call_rows(self) -> list[Row]:
        """Each call of each workload, the worst first."""
        return [_call_row(result.workload, verdict) for result in self.assessment.results for verdict in result.verdicts]


def _call_row(workload: str, verdict: CallVerdict) -> Row:
    answers = [f"{action} if {condition}" if condition else str(action) for action, condition in verdict.answers]
    return {
        "Workload": workload, "Call": verdict.call, "Outcome": verdict.outcome.value, "Answers": answers,
        "Required": verdict.is_required, "Programs": list(verdict.programs), "Shows": verdict.shows,
    }


class FilterInspector:
    """Inspects processes of `table`, with filters from `reader`."""

    def __init__(self, paths: KernelPaths, table: ProcessTable, reader: FilterReader) -> None:
        self._paths = paths
        self._table = table
        self._reader = reader

    async def inspect(self, pid: int, workloads: str = "") -> FilterInspection:
        """Looks. `workloads` "": what the process is.

        Raises: Gone, KernelError, BusError; ConfigError for workloads that are not known.
        """
        process = await asyncio.to_thread(self._table.identify, pid)
        if process is None or not process.start_ticks:
            raise Gone(f"{self._paths.proc}/{pid}")
        match = process.workload
        needs = await asyncio.to_thread(lambda: read_needs(nearest_toolchain(match.toolchain if match else "")))
        names = workloads_of(needs, workloads) if workloads else own_workloads(needs, process)
        dump = await self._reader.read(pid, process.start_ticks)
        arch = native_arch()
        assessment = await asyncio.to_thread(lambda: assess(installed(dump, arch), needs, names))
        return FilterInspection(process, dump, arch, assessment)


def own_workloads(needs: Needs, process: ProcessIdentity) -> tuple[str, ...]:
    """The measured workload that a process is: NAME for what starts the tests, NAME-binary for the test binary itself."""
    match = process.workload
    if match is None:
        return ()
    binary = f"{match.workload}-binary"
    name = binary if match.role != "command" and binary in needs.workloads else match.workload
    return (name,) if name in needs.workloads else ()


def refusals_of(dump: FilterDump, process: ProcessIdentity) -> Refusals:
    """What filters refuse of all that the kinds of test runs need, as measured with the process's own toolchain or the next.

    Raises: ConfigError where the data is missing, Malformed for a filter that the kernel would not have taken.
    """
    match = process.workload
    needs = read_needs(nearest_toolchain(match.toolchain if match else ""))
    names = [name for name in needs.workloads if match and name.startswith(match.workload.split("-")[0])]
    found = assess(installed(dump, native_arch()), needs, names)
    breaks: dict[str, RefusedCall] = {}
    harmless: dict[str, RefusedCall] = {}
    for result in found.results:
        for outcome, calls in ((Outcome.BREAKS, breaks), (Outcome.HARMLESS, harmless)):
            for verdict in result.of(outcome):
                answer = ", ".join(str(action) for action, _ in verdict.answers if not action.is_allowed)
                known = calls.get(verdict.call, RefusedCall(verdict.call, answer))
                workloads = (*known.workloads, *((result.workload,) if outcome is Outcome.BREAKS else ()))
                calls[verdict.call] = replace(known, shows=known.shows or verdict.shows, workloads=workloads)
    return Refusals(
        tuple(breaks.values()), tuple(one for call, one in harmless.items() if call not in breaks),
        tuple(denied.sentence for denied in found.features), needs.toolchain, needs.source,
    )
