# SPDX-License-Identifier: Apache-2.0
"""The one group of tasks that the daemon is made of, and a source kept alive inside it.

asyncio.TaskGroup came with Python 3.11; triaged runs on 3.10, so the few rules that it needs stand here:
the first task that fails ends the group, and every other task is cancelled and awaited.
"""
from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from triaged.errors import TriagedError
from triaged.model.facts import Fact
from triaged.sources.source import Source, SourceState

log = logging.getLogger(__name__)

T = TypeVar("T")
FIRST_RETRY_S = 1.0
_CANCEL_AGAIN_S = 0.5
LAST_RETRY_S = 60.0


class FleetingThreads(ThreadPoolExecutor):
    """For `loop.set_default_executor`: a thread for each piece of work, which ends with it; an idle daemon has one thread.

    The usual executor keeps up to CPUs + 4 for good. Starting one costs about 0.1 ms, and no work is done in threads
    more than a few times a second.
    """

    def __init__(self) -> None:
        super().__init__(1)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        executor = ThreadPoolExecutor(1, "triaged-look")
        try:
            return executor.submit(fn, *args, **kwargs)
        finally:
            executor.shutdown(wait=False)


async def wait_ended(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Waits until the tasks, which were cancelled, have ended; cancels again those that took no notice.

    Before Python 3.12 asyncio.wait_for() loses a cancellation that comes in the very turn in which what it waits for is done
    (CPython gh-86296): a task that went on because of that would be waited for for ever.
    """
    left = set(tasks)
    while left:
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)
        for task in left:
            task.cancel()


class TaskGroup:
    """Tasks that live and end together. Leaving the block waits for all; an error in one cancels the rest and is raised."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None
        self._parent: asyncio.Task[Any] | None = None
        self._leaving = False
        self._is_cancelled = False

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Starts a task of the group."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Cancels every task of the group."""
        self._is_cancelled = True
        for task in self._tasks:
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        if self._error is None:
            self._error = task.exception()
        self.cancel()
        if self._parent is not None and not self._leaving:
            self._parent.cancel()

    async def __aenter__(self) -> TaskGroup:
        self._parent = asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        if error is not None:
            self.cancel()
        cancelled: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                if self._is_cancelled:
                    await wait_ended(tuple(self._tasks))
                else:
                    await asyncio.wait(tuple(self._tasks), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as again:
                cancelled = again
                self.cancel()
        if self._error is not None:
            uncancel = getattr(self._parent, "uncancel", None)  # Python >= 3.11 counts the requests
            if uncancel is not None and isinstance(error, asyncio.CancelledError):
                uncancel()
            raise self._error
        if cancelled is not None and error is None:
            raise cancelled


async def keep_watching(
    source: Source,
    take: Callable[[Fact], None],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Feeds the source's facts to `take` until the source says that it is unavailable; one that dies is restarted with back-off.

    The pause doubles from 1 s to 60 s and begins anew after a source has yielded again.
    """
    pause = FIRST_RETRY_S
    while True:
        facts: AsyncIterator[Fact] = source.facts()
        try:
            async for fact in facts:
                pause = FIRST_RETRY_S
                take(fact)
            if source.status.state is SourceState.UNAVAILABLE:
                return
            why = "ended without an error"
            log.warning("source %s %s, restarting in %.0f s", source.name, why, pause)
        except asyncio.CancelledError:
            raise
        except TriagedError as error:
            why = error.shown()
            log.warning("source %s: %s, restarting in %.0f s", source.name, why, pause)
        except Exception as error:  # the border of a source: whatever it does, the others go on
            why = f"{type(error).__name__}: {error}"
            log.exception("source %s died, restarting in %.0f s", source.name, pause)
        finally:
            close = getattr(facts, "aclose", None)
            if close is not None:
                await close()
        source.count("restarts")
        remedy = f"restarts by itself in {pause:.0f} s"
        source.set_status(SourceState.DEGRADED, f"{why}; sees nothing until it is restarted", remedy)
        await sleep(pause)
        pause = min(pause * 2, LAST_RETRY_S)
