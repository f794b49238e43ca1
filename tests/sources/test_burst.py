# SPDX-License-Identifier: Apache-2.0
"""When a descriptor is read, on a clock of the test's own."""
from __future__ import annotations

import asyncio
from collections.abc import Callable

from triaged.sources.burst import BurstReader


class Timer:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """As much of an event loop as a BurstReader uses."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reader: Callable[[], None] | None = None
        self.timers: list[tuple[float, Callable[[], None], Timer]] = []

    def time(self) -> float:
        return self.now

    def add_reader(self, descriptor: int, call: Callable[[], None]) -> None:
        assert self.reader is None
        self.reader = call

    def remove_reader(self, descriptor: int) -> None:
        self.reader = None

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append((self.now + delay, call, Timer()))
        return self.timers[-1][2]

    def readable(self) -> None:
        if self.reader is not None:
            self.reader()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now + 1e-9]
        self.timers = [timer for timer in self.timers if timer not in due]
        for _, call, timer in due:
            if not timer.is_cancelled:
                call()


class Watched:
    def __init__(self) -> None:
        self.loop = Loop()
        self.waiting = 0
        self.batches: list[tuple[float, int]] = []
        self.reader = BurstReader(self.loop, 3, self.drain)  # type: ignore[arg-type]

    def drain(self) -> bool:
        taken, self.waiting = self.waiting, 0
        self.batches.append((round(self.loop.now - 100, 3), taken))
        return taken > 0

    def event(self) -> None:
        self.waiting += 1
        self.loop.readable()


def test_the_first_event_after_a_calm_is_read_at_once() -> None:
    watched = Watched()
    watched.event()
    watched.loop.advance(1)
    watched.event()
    assert watched.batches == [(0.0, 1), (1.0, 1)]
    assert watched.loop.timers == []


def test_events_of_a_burst_are_read_in_batches() -> None:
    watched = Watched()
    for _ in range(50):
        watched.event()
        watched.loop.advance(0.002)
    assert watched.batches[0] == (0.0, 1)
    assert [at for at, _ in watched.batches[1:5]] == [0.02, 0.04, 0.06, 0.08]
    assert sum(taken for _, taken in watched.batches) + watched.waiting == 50


def test_after_a_burst_nothing_is_left_running() -> None:
    watched = Watched()
    watched.event()
    watched.event()
    for _ in range(5):
        watched.loop.advance(0.02)
    assert watched.loop.timers == []
    assert watched.loop.reader is not None
    assert watched.batches == [(0.0, 1), (0.02, 1), (0.04, 0)]


def test_closing_ends_both_ways_of_waiting() -> None:
    calm, burst = Watched(), Watched()
    calm.reader.close()
    burst.event()
    burst.event()
    burst.reader.close()
    for watched in (calm, burst):
        before = list(watched.batches)
        watched.event()
        watched.loop.advance(1)
        assert watched.batches == before


async def test_it_runs_on_a_real_loop() -> None:
    import os

    reading, writing = os.pipe2(os.O_NONBLOCK)
    seen = asyncio.Event()

    def drain() -> bool:
        try:
            os.read(reading, 100)
        except BlockingIOError:
            return False
        seen.set()
        return True

    reader = BurstReader(asyncio.get_running_loop(), reading, drain)
    os.write(writing, b"x")
    await asyncio.wait_for(seen.wait(), 5)
    reader.close()
    os.close(reading)
    os.close(writing)
