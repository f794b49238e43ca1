# SPDX-License-Identifier: Apache-2.0
"""Seccomp records: what a filter refused or recorded, by program, call and cgroup."""
from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from triaged.errors import Gone, KernelError
from triaged.kernel.audit import AuditSocket, SeccompGroup, SeccompRecord, SeccompTally, read_unlogged_actions
from triaged.kernel.namespaces import is_initial_namespace, shares_network_with_init
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import Fact, SeccompFacts
from triaged.model.process import ProcessIdentity
from triaged.seccomp.syscalls import arch_name, name_of
from triaged.sources.burst import BurstReader
from triaged.sources.source import Source, SourceState

log = logging.getLogger(__name__)

_RECORDS_EACH_BATCH = 1200  # every 20 ms: 60,000 a second; what is beyond, the kernel drops and counts at no cost to us
_LOOK_UPS_EACH_BATCH = 128  # in /proc, about 60 µs each
_EXIT_EVENT_WITHIN_S = 0.03  # the record is sent before the kill, the connector's event after it and maybe in a batch
_STREAM_WITHIN_S = 1.0
_KILLS = ("KILL_PROCESS", "KILL_THREAD")


@dataclass
class _Row:
    record: SeccompRecord
    process: ProcessIdentity
    records: int


class SeccompAudit(Source):
    """The audit multicast group: records of type SECCOMP, added up by (exe, syscall, action, cgroup).

    The first record after a calm becomes a fact at once; in a storm there is one fact of each kind every `interval_s`.
    """

    name: ClassVar[str] = "seccomp-audit"

    def __init__(self, paths: KernelPaths, table: ProcessTable, interval_s: float = 0.1) -> None:
        super().__init__()
        self._paths = paths
        self._table = table
        self._interval_s = interval_s
        self._tally = SeccompTally()
        self._socket: AuditSocket | None = None
        self._wake = asyncio.Event()
        self._failure: KernelError | None = None
        self._pids_match = True
        self._truncated = 0

    async def facts(self) -> AsyncIterator[Fact]:
        self._failure = None
        self._wake = asyncio.Event()
        self._socket = self._opened()
        if self._socket is None:
            return
        reader = BurstReader(asyncio.get_running_loop(), self._socket.fileno(), self._drain)
        taken_s = float("-inf")
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                groups, now_s = self._tally.take(), time.monotonic()
                # What comes right after the look before it is a stream, and has a rate; a first record has none.
                interval_s = now_s - taken_s if now_s - taken_s < _STREAM_WITHIN_S else 0.0
                taken_s = now_s
                if any(self._is_stranger(group) for group in groups):
                    await asyncio.sleep(_EXIT_EVENT_WITHIN_S)
                for fact in self._facts_of(groups):
                    yield replace(fact, interval_usec=int(interval_s * 1e6))
                if self._failure is not None:
                    raise self._failure
                if groups:
                    await asyncio.sleep(self._interval_s)
        finally:
            reader.close()
            self._socket.close()
            self._socket = None

    def snapshot(self) -> Iterator[Fact]:
        opened = self._opened()
        if opened is not None:
            opened.close()
            if self._status.state is SourceState.ACTIVE:
                self.set_status(
                    SourceState.DEGRADED, "records are seen only as they come; one look shows none", "run triaged as a service"
                )
        yield from ()

    def refresh(self) -> None:
        """Looks again at what the kernel is told to record."""
        if self._socket is not None:
            self._tell_status()

    def _opened(self) -> AuditSocket | None:
        if shares_network_with_init(self._paths) is False and is_initial_namespace(self._paths, "pid"):
            self.set_status(
                SourceState.UNAVAILABLE,
                "audit records come only into the host's network namespace",
                "run triaged in the host's network namespace",
            )
            return None
        try:
            opened = AuditSocket.open()
        except KernelError as error:
            self.set_status(SourceState.UNAVAILABLE, f"{error}; what seccomp filters kill or record is not seen", error.remedy)
            return None
        self._pids_match = is_initial_namespace(self._paths, "pid")
        self._tell_status()
        return opened

    def _tell_status(self) -> None:
        if not self._pids_match:
            self.set_status(
                SourceState.DEGRADED,
                "in a pid namespace: records name processes by the host's pids, so their cgroups are not known"
                " (and none come if the network namespace is not the host's)",
                "run triaged on the host itself",
            )
            return
        try:
            unlogged = read_unlogged_actions(self._paths)
        except Gone:
            unlogged = ()  # before Linux 4.14: everything that can be is recorded
        except KernelError as error:
            self.set_status(SourceState.DEGRADED, f"not known which actions are recorded: {error}", error.remedy)
            return
        if unlogged:
            self.set_status(
                SourceState.DEGRADED,
                f"kernel.seccomp.actions_logged keeps these actions from being recorded: {' '.join(unlogged)}",
                "add them to kernel.seccomp.actions_logged",
            )
        else:
            self.set_status(SourceState.ACTIVE)

    def _drain(self) -> bool:
        assert self._socket is not None
        try:
            batch = self._socket.drain(self._tally, _RECORDS_EACH_BATCH)
        except KernelError as error:
            self._failure = error
            self._wake.set()
            return False
        self.counters["records"] = self._tally.records
        if self._tally.left_out:
            self.counters["left_out"] = self._tally.left_out
        self._truncated += batch.truncated
        malformed = self._tally.malformed + self._truncated
        if malformed and not self.counters.get("malformed"):  # the first is shown, all are counted
            log.warning("%s, ignoring", self._tally.first_malformed or "audit multicast: message cut short")
        if malformed:
            self.counters["malformed"] = malformed
        if batch.lost:
            self.count("overruns")
            try:
                self.counters["dropped"] = self._socket.read_drops(self._paths)
            except KernelError:
                self.count("drops_unread")
        if batch.messages:
            self._look_at(self._tally.take_fresh_pids())
            self._wake.set()
        return bool(batch.messages or batch.lost)

    def _look_at(self, pids: set[int]) -> None:
        # At once: a process that was refused a call often ends at it.
        if not self._pids_match:
            return
        for look_ups, pid in enumerate(pids):
            if look_ups >= _LOOK_UPS_EACH_BATCH:
                self.count("not_looked_up", len(pids) - look_ups)
                return
            if pid > 0:
                self._table.look_again(pid)

    def _is_stranger(self, group: SeccompGroup) -> bool:
        """Whether a process was killed of which nothing is known and nothing can be read: its exit event may tell more."""
        if group.first.action not in _KILLS or not self._pids_match:
            return False
        known = self._known(group.first, group.first.pid)
        return known is None or not known.cgroups

    def _facts_of(self, groups: list[SeccompGroup]) -> Iterator[SeccompFacts]:
        rows: dict[tuple[str, int, int, int, str], _Row] = {}
        for group in groups:
            first = group.first
            unplaced = group.others
            stranger: ProcessIdentity | None = None
            mine: list[_Row] = []
            for pid, records in group.pids.items():
                known = self._known(first, pid)
                if known is None or not known.cgroup:
                    unplaced += records
                    stranger = stranger or known or _as_recorded(first, pid)
                    continue
                key = (first.exe or first.comm, first.syscall, first.audit_arch, first.code, known.cgroup)
                row = rows.get(key)
                if row is None:
                    row = rows[key] = _Row(first, known, 0)
                row.records += records
                if row not in mine:
                    mine.append(row)
            if not unplaced:
                continue
            if len(mine) == 1:
                # The same program, refused the same call in the same moment; all that could be looked at is in one cgroup.
                mine[0].records += unplaced
                continue
            key = (first.exe or first.comm, first.syscall, first.audit_arch, first.code, "")
            row = rows.setdefault(key, _Row(first, stranger or _as_recorded(first, first.pid), 0))
            row.records += unplaced
        for row in rows.values():
            yield _fact(row)

    def _known(self, record: SeccompRecord, pid: int) -> ProcessIdentity | None:
        """Who the record is about; None if the pid is unknown, or was another program's when it was last looked at."""
        if not self._pids_match or pid <= 0:
            return None
        identity = self._table.last_known(pid)
        if identity is None:
            return None
        if not identity.exe:  # a process of which only its parent's cgroup is known
            return replace(identity, exe=record.exe, comm=identity.comm or record.comm, uid=record.uid)
        return identity if not record.exe or identity.exe == record.exe else None


def _as_recorded(record: SeccompRecord, pid: int) -> ProcessIdentity:
    return ProcessIdentity(pid=max(pid, 0), uid=record.uid, comm=record.comm, exe=record.exe)


def _fact(row: _Row) -> SeccompFacts:
    record = row.record
    known_arch = record.audit_arch >= 0
    return SeccompFacts(
        process=row.process,
        syscall=name_of(record.audit_arch, record.syscall) if known_arch else str(record.syscall),
        syscall_number=record.syscall,
        arch=arch_name(record.audit_arch, record.syscall) if known_arch else "",
        action=record.action,
        records=row.records,
        signal=max(record.signal, 0),
        errno=record.errno,
        record=record.text,
        time_usec=record.time_usec or time.time_ns() // 1000,
    )
