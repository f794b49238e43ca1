# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from triaged.model.facts import Fact, SubjectGone
from triaged.sources.source import Source, SourceState
from triaged.tasks import LAST_RETRY_S, FleetingThreads, TaskGroup, keep_watching


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_thread_ends_with_its_work() -> None:
    asyncio.get_running_loop().set_default_executor(FleetingThreads())
    before = set(threading.enumerate())
    assert await asyncio.gather(*(asyncio.to_thread(threading.get_ident) for _ in range(8)))
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 // 0)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before


async def test_an_error_in_one_task_cancels_the_others_and_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    other: asyncio.Task[None] | None = None
    with pytest.raises(ValueError, match="broken"):
        async with TaskGroup() as group:
            other = group.start(forever(), "forever")
            group.start(fail(), "fail")
            await forever()
    assert other is not None
    assert other.cancelled()


async def test_leaving_waits_for_every_task() -> None:
    done = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    async with TaskGroup() as group:
        for number in range(3):
            group.start(work(number), str(number))
    assert sorted(done) == [0, 1, 2]


async def test_cancelling_the_parent_ends_the_group() -> None:
    inner: list[asyncio.Task[None]] = []

    async def parent() -> None:
        async with TaskGroup() as group:
            inner.append(group.start(forever(), "forever"))

    task = asyncio.create_task(parent())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inner[0].cancelled()


async def test_a_task_that_lost_its_cancellation_is_cancelled_again() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await forever()

    async with TaskGroup() as group:
        group.start(stubborn(), "stubborn")
        await asyncio.sleep(0)
        group.cancel()
    assert swallowed == 2


class Scripted(Source):
    """A source whose every start does the next step of a script: an exception, a number of facts, or the end."""

    name = "scripted"

    def __init__(self, *script: Exception | int | None) -> None:
        super().__init__()
        self.script = list(script)

    async def facts(self) -> AsyncIterator[Fact]:
        step = self.script.pop(0)
        if step is None:
            self.set_status(SourceState.UNAVAILABLE, "the script is at its end")
            return
        self.set_status(SourceState.ACTIVE)
        if isinstance(step, Exception):
            raise step
        for _ in range(step):
            yield SubjectGone()

    def snapshot(self) -> Iterator[Fact]:
        return iter(())


async def watch(source: Source) -> tuple[list[Fact], list[float], list[SourceState]]:
    facts: list[Fact] = []
    pauses: list[float] = []
    states: list[SourceState] = []
    source.on_status = lambda status: states.append(status.state)

    async def note(pause: float) -> None:
        pauses.append(pause)

    await keep_watching(source, facts.append, sleep=note)
    return facts, pauses, states


async def test_a_source_that_dies_is_restarted_with_growing_pauses_and_says_so() -> None:
    source = Scripted(*[OSError("gone")] * 8, None)
    facts, pauses, states = await watch(source)
    assert facts == []
    assert pauses == [1, 2, 4, 8, 16, 32, LAST_RETRY_S, LAST_RETRY_S]
    assert states[1] is SourceState.DEGRADED
    assert states[-1] is SourceState.UNAVAILABLE
    assert source.status.counters["restarts"] == 8


async def test_a_source_that_yielded_again_starts_with_the_short_pause() -> None:
    facts, pauses, _ = await watch(Scripted(OSError("a"), OSError("b"), 3, OSError("c"), None))
    assert len(facts) == 3
    assert pauses == [1, 2, 1, 2]


async def test_an_unavailable_source_is_not_restarted() -> None:
    _, pauses, states = await watch(Scripted(None))
    assert pauses == []
    assert states == [SourceState.UNAVAILABLE]
