# SPDX-License-Identifier: Apache-2.0
"""When to read a descriptor: at once after a calm, in batches while a burst lasts."""
from __future__ import annotations

import asyncio
from collections.abc import Callable


class BurstReader:
    """Calls `drain` at once when the descriptor becomes readable after a calm, and every `interval_s` inside a burst.

    Batches cost a third to a fifth of single events; but most of what is to be read of a process is gone 20 ms after its
    exec, so the first event of a burst must not wait (measured on 6.18). While nothing comes there is no timer at all.
    `drain` says whether there was anything. It must not raise.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, descriptor: int, drain: Callable[[], bool], interval_s: float = 0.02
    ) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._drain = drain
        self._interval_s = interval_s
        self._drained_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(descriptor, self._on_readable)

    def close(self) -> None:
        """Ends the watch. The descriptor stays open."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        else:
            self._loop.remove_reader(self._descriptor)

    def _on_readable(self) -> None:
        wait_s = self._drained_at + self._interval_s - self._loop.time()
        if wait_s <= 0:
            self._drain()
            self._drained_at = self._loop.time()
        else:
            self._loop.remove_reader(self._descriptor)
            self._timer = self._loop.call_later(wait_s, self._in_burst)

    def _in_burst(self) -> None:
        self._timer = None
        if self._drain():
            self._timer = self._loop.call_later(self._interval_s, self._in_burst)
        else:
            self._loop.add_reader(self._descriptor, self._on_readable)
        self._drained_at = self._loop.time()
