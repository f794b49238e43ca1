# SPDX-License-Identifier: Apache-2.0
"""The kernel log: who was killed for want of memory, and in which cgroup a fork was first refused."""
from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import ClassVar

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.kernel_log import ForkRejected, KernelLogReader, LogEvent, LogParser, OomKill, Suppressed
from triaged.kernel.paths import KernelPaths
from triaged.model.facts import Fact
from triaged.model.process import ProcessIdentity
from triaged.sources.burst import BurstReader
from triaged.sources.cgroup_facts import FactMaker, Identifies, victim_of
from triaged.sources.ledger import Ledger, Vanished
from triaged.sources.memory_history import MemoryHistory
from triaged.sources.source import Source, SourceState

_PENDING_CAP = 4096
_CANDIDATES_SHOWN = 16


class KernelLog(Source):
    """/dev/kmsg from now on. Kills become facts here; refused forks are told to the counters' source, which knows how many.

    Counters: `oom kills`, `forks rejected`, `suppressed` (lines that the kernel's rate limit held back), `overruns` (the log was
    overwritten before it was read), `malformed`, `dropped`.
    """

    name: ClassVar[str] = "kernel-log"

    def __init__(self, paths: KernelPaths, table: Identifies, ledger: Ledger, history: MemoryHistory | None = None) -> None:
        super().__init__()
        self._paths = paths
        self._table = table
        self._ledger = ledger
        self._pending: deque[Fact] = deque()
        self._wake = asyncio.Event()
        self._layout = CgroupLayout(())
        self._history = history or MemoryHistory()
        self._parser = LogParser()
        self._failure: KernelError | None = None

    async def facts(self) -> AsyncIterator[Fact]:
        reader = self._open(from_start=False)
        if reader is None:
            return
        self._wake = asyncio.Event()
        self._failure = None
        self._parser = LogParser()
        burst = BurstReader(asyncio.get_running_loop(), reader.fileno(), lambda: self._drain(reader))
        self._ledger.log_is_read = True
        try:
            while True:
                await self._wait()
                for kill, vanished in self._ledger.release():
                    self._place(kill, vanished)
                while self._pending:
                    yield self._pending.popleft()
                if self._failure is not None:
                    raise self._failure
        finally:
            self._ledger.log_is_read = False
            burst.close()
            reader.close()

    async def _wait(self) -> None:
        until = self._ledger.next_release()
        timer: asyncio.TimerHandle | None = None
        if until is not None:
            timer = asyncio.get_running_loop().call_later(max(0.0, until - time.monotonic()), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._wake.clear()

    def snapshot(self) -> Iterator[Fact]:
        """What the log still holds. Ask this source before the counters', which then adds what no line stands for."""
        reader = self._open(from_start=True)
        if reader is None:
            return
        self._parser = LogParser()
        try:
            while records := reader.read():
                for record in records:
                    event = self._parser.feed(record)
                    if event is not None:
                        yield from self._facts_of(event, before_start=True)
        finally:
            self._note_losses(reader)
            reader.close()

    def _open(self, from_start: bool) -> KernelLogReader | None:
        try:
            reader = KernelLogReader(self._paths, from_start)
        except KernelError as error:
            reason = (
                f"{error}: OOM kills are seen without their victims, "
                "and forks refused in a cgroup that is removed at once may be missed"
            )
            self.set_status(SourceState.UNAVAILABLE, reason, error.remedy)
            return None
        try:
            self._layout = read_layout(self._paths)
        except KernelError:
            self._layout = CgroupLayout(())  # no cgroups: kills are still told
        self.set_status(SourceState.ACTIVE)
        return reader

    def _drain(self, reader: KernelLogReader) -> bool:
        try:
            records = reader.read()
        except KernelError as error:
            self._failure = error
            self._wake.set()
            return False
        self._note_losses(reader)
        for record in records:
            event = self._parser.feed(record)
            if event is None:
                continue
            for fact in self._facts_of(event):
                self._put(fact)
        return bool(records)

    def _put(self, fact: Fact) -> None:
        if len(self._pending) >= _PENDING_CAP:
            self.count("dropped")
            return
        self._pending.append(fact)
        self._wake.set()

    def _note_losses(self, reader: KernelLogReader) -> None:
        for name, value in (("overruns", reader.lost), ("malformed", reader.malformed), ("lines dropped", self._ledger.dropped)):
            if value:
                self.counters[name] = value

    def _facts_of(self, event: LogEvent, before_start: bool = False) -> Iterator[Fact]:
        if isinstance(event, Suppressed):
            self.count("suppressed", event.records)
        elif isinstance(event, ForkRejected):
            self.count("forks rejected")
            if before_start:
                if self._is_gone(event):
                    yield self._make.refusal(event, before_start)
            elif self._ledger.on_refusal is not None:
                self._ledger.on_refusal(event)
            else:
                yield self._make.refusal(event)
        else:
            yield from self._kill(event, before_start)

    def _kill(self, kill: OomKill, before_start: bool) -> Iterator[Fact]:
        self.count("oom kills")
        victim = victim_of(kill, self._table)
        path = kill.cgroup_path or self._seen_in(kill, victim) or ("" if before_start else self._ledger.cgroup_of(kill.pid))
        if self._ledger.on_kill is not None and not before_start and not kill.is_host_wide:
            self._ledger.on_kill(path)
            if not path:
                self._ledger.hold(kill)
                self._wake.set()  # a time is to be waited for
                return
        path = path or victim.cgroup_for("memory")
        if self._ledger.take_kill(kill, path):
            yield self._make.kill(kill, path, victim, before_start)
        else:
            self.count("told by counters already")

    def _place(self, kill: OomKill, vanished: Vanished) -> None:
        """Tells a kill whose cgroup no counter told; perhaps somebody saw its process meanwhile, or only one place is left."""
        victim = victim_of(kill, self._table)
        seen_in = self._seen_in(kill, victim) or self._ledger.cgroup_of(kill.pid)
        path = seen_in or vanished.if_possible(victim.cgroup_for("memory"))
        if path and self._ledger.take_kill(kill, path):
            self._put(self._make.kill(kill, path, victim))
        elif path or self._ledger.pay_debt():
            self.count("told by counters already")
        elif self._ledger.take_kill(kill, vanished.only):
            fact = self._make.kill(kill, vanished.only, victim)
            self._put(replace(fact, candidates=vanished.paths[:_CANDIDATES_SHOWN]))

    def _seen_in(self, kill: OomKill, victim: ProcessIdentity) -> str:
        """The cgroup in which the victim itself was seen, or ''."""
        return "" if self._table.is_inherited(kill.pid) else victim.cgroup_for("memory")

    @property
    def _make(self) -> FactMaker:
        return FactMaker(self._paths, self._layout, self._table, self._history)

    def _is_gone(self, record: ForkRejected) -> bool:
        """Whether the record's cgroup is gone: while it is there, its counters say more."""
        hierarchy = self._layout.holding("pids")
        try:
            return hierarchy is None or not os.path.isdir(hierarchy.directory(record.path))
        except KernelError:
            return True
