# SPDX-License-Identifier: Apache-2.0
"""Processes of workloads that failed under a seccomp filter: from the source that sees them end to the one that asks why."""
from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from triaged.model.process import ProcessIdentity

_CAP = 64


@dataclass(frozen=True)
class Began:
    """A process of a workload that was executed under seccomp filters. `filters` is their number (-1: not known, below 5.9)."""

    process: ProcessIdentity
    filters: int


@dataclass(frozen=True)
class Failure:
    """Such a process that ended with another status than 0 (as wait(2) gives it).

    `parent` is its parent's pid at its end, `starter_ticks` the start time of the parent that it had when it was executed
    (`process.ppid`; 0: not known).
    """

    process: ProcessIdentity
    status: int
    parent: int
    filters: int
    starter_ticks: int = 0

    @property
    def ending(self) -> str:
        """The status in words."""
        number = self.status & 0x7F
        return f"signal {number}" if number else f"exit status {self.status >> 8}"


class Failures:
    """What nobody has taken yet, the last 64 of it. `is_wanted` tells the seeing side whether to look at all; `blindness` is
    why it does not see them, and `on_blindness` is called when that changes.
    """

    def __init__(self) -> None:
        self._waiting: deque[Began | Failure] = deque(maxlen=_CAP)
        self._there = asyncio.Event()
        self.is_wanted = False
        self.dropped = 0
        self.blindness = ""
        self.on_blindness: Callable[[], None] = lambda: None

    def put(self, event: Began | Failure) -> None:
        """Takes an event; the oldest makes room."""
        self.dropped += len(self._waiting) == _CAP
        self._waiting.append(event)
        self._there.set()

    async def take(self) -> Began | Failure:
        """The next event, the oldest first."""
        while not self._waiting:
            self._there.clear()
            await self._there.wait()
        return self._waiting.popleft()

    def set_blindness(self, why: str) -> None:
        """Says why failures are not seen; "" that they are."""
        if why != self.blindness:
            self.blindness = why
            self.on_blindness()
