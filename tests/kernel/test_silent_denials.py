# SPDX-License-Identifier: Apache-2.0
"""Tests that fail under filters that refuse without a record: real processes, both sources, the real reader and rule."""
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from triaged.assembly import _judge_filters
from triaged.errors import BusError, InterfaceMissing, KernelError
from triaged.kernel.connector import ProcessConnector
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.seccomp_load import Command, LoadedFilter
from triaged.model.facts import FilterFacts
from triaged.model.filters import FilterDump
from triaged.model.verdict import Problem, Undecided
from triaged.model.workload import ProcessPattern, WorkloadDefinition
from triaged.rules.seccomp import silent_denials
from triaged.seccomp.action import ALLOW, EPERM, Action, ActionKind
from triaged.seccomp.compiler import compiled
from triaged.seccomp.policy import ArchPolicy, Branch, Policy
from triaged.seccomp.syscalls import native_arch, number_of
from triaged.sources.failures import Failures
from triaged.sources.filter_reader import LocalFilters
from triaged.sources.process_events import ProcessEvents
from triaged.sources.seccomp_filters import SeccompFilters
from triaged.sources.source import SourceState

PATHS = KernelPaths()
ARCH = native_arch()
NAME = f"worker-{os.getpid()}.test"  # of ours alone: other tests may fail on this machine meanwhile
OURS = WorkloadDefinition("go-test", "Go tests", (ProcessPattern("test-binary", (NAME,), arguments=("-test.*",)),))
LOADER = """
import os, sys
from triaged.kernel.seccomp_load import Command, LoadedFilter
filters = [LoadedFilter(bytes.fromhex(word)) for word in sys.argv[1].split(",") if word]
with Command(sys.argv[2:], filters, {number}) as command:
    command.start()
    os._exit(os.waitstatus_to_exitcode(command.wait()) & 0xFF)
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reading filters needs CAP_SYS_ADMIN")


def refusing(**answers: Action) -> LoadedFilter:
    branches = {number_of(ARCH, name) or 0: (Branch(action),) for name, action in answers.items()}
    return LoadedFilter(compiled(Policy((ArchPolicy(ARCH, ALLOW, branches),), ALLOW)).packed())


SILENT = refusing(epoll_create1=EPERM, clone3=Action(ActionKind.ERRNO, 38), unshare=EPERM)


class Reader(LocalFilters):
    """The real reader, with what it was asked."""

    def __init__(self, fails: str = "", delay_s: float = 0.0) -> None:
        super().__init__(PATHS)
        self.asked: list[int] = []
        self.fails = fails
        self.delay_s = delay_s

    async def read(self, pid: int, start_ticks: int) -> FilterDump:
        self.asked.append(pid)
        await asyncio.sleep(self.delay_s)
        if self.fails:
            raise BusError("org.freedesktop.DBus.Error.ServiceUnknown", f"triaged-helper: {self.fails}", "install it")
        return await super().read(pid, start_ticks)


class Watch:
    """Both sources at work; `facts` are those about filters."""

    def __init__(self, reader: Reader) -> None:
        self.failures = Failures()
        self.events = ProcessEvents(PATHS, ProcessTable(PATHS, [OURS]), failures=self.failures)
        self.filters = SeccompFilters(PATHS, self.failures, reader, _judge_filters, pause_s=0.0)
        self.facts: list[FilterFacts] = []

    async def _follow(self) -> None:
        async for fact in self.filters.facts():
            assert isinstance(fact, FilterFacts)
            self.facts.append(fact)

    async def _pump(self) -> None:
        async for _ in self.events.facts():
            pass

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._pump())]
        await self.wait(lambda: self.failures.is_wanted and self.events._connector is not None)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait(self, what: Callable[[], bool], within_s: float = 20.0) -> None:
        for _ in range(int(within_s / 0.02)):
            if what():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"not within {within_s} s: {self.filters.status} {self.events.counters} {self.facts}")


@pytest.fixture
def watch() -> Callable[..., Watch]:
    try:
        ProcessConnector.open().close()
    except (InterfaceMissing, KernelError) as error:
        pytest.skip(str(error))
    return lambda **options: Watch(Reader(**options))


@pytest.fixture
def test_binary(tmp_path: Path) -> str:
    """A program that looks like a Go test binary: it may end with any status."""
    path = tmp_path / NAME
    shutil.copy(shutil.which("bash") or "/bin/bash", path)
    return str(path)


async def run(*argv: str, filters: tuple[LoadedFilter, ...] = (SILENT,), keep_parent_s: float = 0.0) -> int:
    """Runs a command under filters that its parent has as well; the exit status of the parent (that of the command)."""
    words = ",".join(one.instructions.hex() for one in filters)
    script = ["sh", "-c", f'"$@"; status=$?; sleep {keep_parent_s}; exit $status', "sh", *argv] if keep_parent_s else list(argv)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOADER.format(number=number_of(ARCH, "seccomp")), words, *script,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return await process.wait()


async def test_a_failing_test_under_silent_filters_is_a_risk_with_what_they_refuse(
    watch: Callable[..., Watch], test_binary: str
) -> None:
    seen = watch()
    async with seen.running():
        assert seen.filters.status.state is SourceState.ACTIVE
        # bash takes -t... for an option: what stands behind -c is the script, "-test.v" its $0.
        assert await run(test_binary, "-c", "sleep 0.5; exit 2", "-test.v") == 2
        await seen.wait(lambda: bool(seen.facts))
    (fact,) = seen.facts
    assert (fact.ending, fact.filters, fact.filters_then, fact.logged) == ("exit status 2", 1, 1, 0)
    assert fact.process.exe == test_binary
    assert fact.heir.pid == fact.process.pid  # read when it began
    (epoll,) = (one for one in fact.refusals.breaks if one.call == "epoll_create1")
    assert epoll.answer == "ERRNO(EPERM)"
    assert "epollcreate failed" in epoll.shows
    assert "clone3" in [one.call for one in fact.refusals.harmless]
    assert any(text.startswith("unshare(CLONE_NEWUSER) returns EPERM") for text in fact.refusals.features)
    verdict = silent_denials.judge(fact)
    assert isinstance(verdict, Problem)
    assert "epoll_create1 (ERRNO(EPERM))" in verdict.summary


async def test_what_could_not_be_read_in_time_is_read_from_the_parent(watch: Callable[..., Watch], test_binary: str) -> None:
    seen = watch(delay_s=1)
    async with seen.running():
        assert await run(test_binary, "-c", "sleep 0.4; exit 3", "-test.v", keep_parent_s=6) == 3
        await seen.wait(lambda: bool(seen.facts))
    (fact,) = seen.facts
    assert fact.ending == "exit status 3"
    assert fact.heir.pid != fact.process.pid
    assert fact.heir.comm == "sh"


async def test_what_a_run_started_is_judged_by_the_runs_own_filters_though_it_is_over(
    watch: Callable[..., Watch], test_binary: str
) -> None:
    seen = watch()
    async with seen.running():
        inner = f'sleep 0.5; {test_binary} -c "sleep 0.4; exit 4" -test.v; exit 0'
        assert await run(test_binary, "-c", inner, "-test.v") == 0
        await seen.wait(lambda: bool(seen.facts))
    (fact,) = seen.facts
    reader = seen.filters._reader
    assert isinstance(reader, Reader)
    assert (fact.ending, fact.heir.pid, len(reader.asked)) == ("exit status 4", fact.process.ppid, 1)
    assert fact.heir.exe == test_binary


async def test_where_nobody_is_left_nothing_is_claimed(watch: Callable[..., Watch], test_binary: str) -> None:
    seen = watch(delay_s=1)
    async with seen.running():
        await run(test_binary, "-c", "sleep 0.4; exit 3", "-test.v")
        await seen.wait(lambda: seen.filters.counters.get("nobody_left", 0) > 0)
    assert seen.facts == []


async def test_a_test_that_passes_and_one_without_filters_are_no_matter(watch: Callable[..., Watch], test_binary: str) -> None:
    seen = watch()
    async with seen.running():
        assert await run(test_binary, "-c", "sleep 0.3; exit 0", "-test.v") == 0
        assert await run(test_binary, "-c", "exit 2", "-test.v", filters=()) == 2
        assert await run("sh", "-c", "exit 2") == 2  # filters, but no workload
        marker = await asyncio.create_subprocess_exec("true")
        await marker.wait()
        await asyncio.sleep(0.3)
        assert seen.facts == []
        assert seen.filters.counters.get("failures", 0) == 0
        assert seen.events._filtered == {} or await asyncio.sleep(1.2) is None
    assert seen.events.counters.get("failed_under_filters", 0) == 0


async def test_a_run_of_many_failures_is_read_once(watch: Callable[..., Watch], test_binary: str) -> None:
    seen = watch()
    async with seen.running():
        many = f'for i in 1 2 3 4 5 6 7 8 9 10; do {test_binary} -c "sleep 0.4; exit 1" -test.v; done; sleep 1; exit 1'
        await run("sh", "-c", many)
        await seen.wait(lambda: seen.filters.counters.get("failures", 0) == 10)
    reader = seen.filters._reader
    assert isinstance(reader, Reader)
    assert len(seen.facts) == 1
    assert len(reader.asked) <= 2, reader.asked
    assert seen.filters.counters["not_asked_again"] == 9


async def test_filters_that_record_refusals_are_left_to_the_records(watch: Callable[..., Watch], test_binary: str) -> None:
    seen = watch()
    logged = LoadedFilter(SILENT.instructions, True)
    async with seen.running():
        with Command([test_binary, "-c", "sleep 0.5; exit 2", "-test.v"], [logged], number_of(ARCH, "seccomp") or 0) as command:
            command.start()
            await seen.wait(command.poll)
        await seen.wait(lambda: bool(seen.facts))
    (fact,) = seen.facts
    assert (fact.filters, fact.logged) == (1, 1)
    assert isinstance(silent_denials.judge(fact), Undecided)


async def test_without_a_helper_the_source_says_so_and_claims_nothing(watch: Callable[..., Watch], test_binary: str) -> None:
    seen = watch(fails="not installed")
    async with seen.running():
        await run(test_binary, "-c", "sleep 0.2; exit 2", "-test.v", keep_parent_s=1)
        await seen.wait(lambda: seen.filters.status.state is SourceState.UNAVAILABLE)
    status = seen.filters.status
    assert "triaged-helper: not installed" in status.reason
    assert status.remedy == "install it"
    assert seen.facts == []


async def test_without_a_reader_or_events_the_source_says_what_is_missing() -> None:
    source = SeccompFilters(PATHS, Failures(), None, _judge_filters)
    assert [fact async for fact in source.facts()] == []
    assert source.status.state is SourceState.UNAVAILABLE
    assert list(source.snapshot()) == []
    assert source.status.state is SourceState.DEGRADED
    failures = Failures()
    failures.set_blindness("processes that fail are not seen")
    blind = SeccompFilters(PATHS, failures, Reader(), _judge_filters)
    task = asyncio.ensure_future(anext(blind.facts()))
    await asyncio.sleep(0.05)
    assert blind.status.state is SourceState.DEGRADED
    failures.set_blindness("")
    assert blind.status.state is SourceState.ACTIVE
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not failures.is_wanted


def test_a_reader_under_a_filter_says_that_it_can_read_none() -> None:
    program = "from triaged.kernel.paths import KernelPaths\nfrom triaged.sources.filter_reader import LocalFilters\n" \
        "print(LocalFilters(KernelPaths()).obstacle()[0])"
    plain = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert plain.stdout == "\n"
    words = SILENT.instructions.hex()
    argv = [sys.executable, "-c", LOADER.format(number=number_of(ARCH, "seccomp")), words, sys.executable, "-c", program]
    filtered = subprocess.run(argv, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert "this process has a seccomp filter itself" in filtered.stdout
