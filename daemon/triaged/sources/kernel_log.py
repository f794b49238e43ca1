# SPDX-License-Identifier: Apache-2.0
"""The kernel log: who was killed for want of memory, and in which cgroup a fork was first refused."""
from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.kernel_log import ForkRejected, KernelLogReader, LogEvent, LogParser, OomKill, Suppressed
from triaged.kernel.paths import KernelPaths
from triaged.model.facts import Fact
from triaged.sources.burst import BurstReader
from triaged.sources.cgroup_facts import Identifies, kill_facts, refusal_facts, victim_of
from triaged.sources.ledger import Ledger
from triaged.sources.source import Source, SourceState

_PENDING_CAP = 4096


class KernelLog(Source):
    """/dev/kmsg from now on. Kills become facts here; refused forks are told to the counters' source, which knows how many.

    Counters: `oom kills`, `forks rejected`, `suppressed` (lines that the kernel's rate limit held back), `overruns` (the log was
    overwritten before it was read), `malformed`, `dropped`.
    """

    name: ClassVar[str] = "kernel-log"

    def __init__(self, paths: KernelPaths, table: Identifies, ledger: Ledger) -> None:
        super().__init__()
        self._paths = paths
        self._table = table
        self._ledger = ledger
        self._pending: deque[Fact] = deque()
        self._wake = asyncio.Event()
        self._layout = CgroupLayout(())
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
                await self._wake.wait()
                self._wake.clear()
                while self._pending:
                    yield self._pending.popleft()
                if self._failure is not None:
                    raise self._failure
        finally:
            self._ledger.log_is_read = False
            burst.close()
            reader.close()

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
                if len(self._pending) >= _PENDING_CAP:
                    self.count("dropped")
                    continue
                self._pending.append(fact)
                self._wake.set()
        return bool(records)

    def _note_losses(self, reader: KernelLogReader) -> None:
        for name, value in (("overruns", reader.lost), ("malformed", reader.malformed)):
            if value:
                self.counters[name] = value

    def _facts_of(self, event: LogEvent, before_start: bool = False) -> Iterator[Fact]:
        if isinstance(event, Suppressed):
            self.count("suppressed", event.records)
        elif isinstance(event, ForkRejected):
            self.count("forks rejected")
            if before_start:
                if self._is_gone(event):
                    yield refusal_facts(self._layout, event, self._table, before_start)
            elif self._ledger.on_refusal is not None:
                self._ledger.on_refusal(event)
            else:
                yield refusal_facts(self._layout, event, self._table)
        else:
            yield from self._kill(event, before_start)

    def _kill(self, kill: OomKill, before_start: bool) -> Iterator[Fact]:
        self.count("oom kills")
        victim = victim_of(kill, self._table)
        path = kill.cgroup_path or victim.cgroup_for("memory")
        is_news = self._ledger.take_kill(kill, path)
        if self._ledger.on_kill is not None and path and not before_start:
            self._ledger.on_kill(path)
        if is_news:
            yield kill_facts(self._layout, kill, path, victim, before_start)
        else:
            self.count("told by counters already")

    def _is_gone(self, record: ForkRejected) -> bool:
        """Whether the record's cgroup is gone: while it is there, its counters say more."""
        hierarchy = self._layout.holding("pids")
        try:
            return hierarchy is None or not os.path.isdir(hierarchy.directory(record.path))
        except KernelError:
            return True
