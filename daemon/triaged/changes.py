# SPDX-License-Identifier: Apache-2.0
"""How publishers hear of findings: one bounded queue for each, which says so when it had to drop."""
from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import Enum

from triaged.model.finding import Finding


class What(str, Enum):
    """opened: new or open again; changed: still open, or closed, with other details; closed: left open; removed: forgotten."""

    OPENED = "opened"
    CHANGED = "changed"
    CLOSED = "closed"
    REMOVED = "removed"
    RESYNC = "resync"


@dataclass(frozen=True)
class Change:
    """What happened to a finding, after it was saved. RESYNC (no finding): changes were lost, look at all findings again."""

    what: What
    finding: Finding | None = None


class Subscription:
    """The changes for one subscriber, as an asynchronous iterator. `lost` counts what it was too slow for."""

    def __init__(self, name: str, bound: int) -> None:
        self.name = name
        self.lost = 0
        self._bound = bound
        self._queue: deque[Change] = deque()
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, change: Change) -> None:
        """Queues a change; a full queue is emptied and RESYNC takes its place."""
        if len(self._queue) >= self._bound:
            self.lost += len(self._queue)
            self._queue.clear()
            self._queue.append(Change(What.RESYNC))
        self._queue.append(change)
        self._ready.set()

    def close(self) -> None:
        """Ends the iteration once the queue is empty."""
        self._closed = True
        self._ready.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Change:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return self._queue.popleft()
