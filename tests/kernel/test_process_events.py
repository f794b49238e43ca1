# SPDX-License-Identifier: Apache-2.0
"""The process events source, on a made-up /proc and on this kernel."""
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triaged.errors import InterfaceMissing, KernelError
from triaged.kernel.connector import Exit, ProcessConnector
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.unit_files import BUILT_IN, BY_HAND, IMPLICIT, NO_UNIT_FILE, TRANSIENT, read_slice_origin
from triaged.model.facts import ExitFacts, Fact, PlacementFacts, ResourceLimitFacts, SubjectGone
from triaged.model.requirement import PlacementRequirement, ResourceLimitRequirement
from triaged.model.verdict import Severity
from triaged.model.workload import ProcessPattern, WorkloadDefinition
from triaged.sources import process_events
from triaged.sources.process_events import ProcessEvents
from triaged.sources.source import SourceState

MakeProc = Callable[..., KernelPaths]
Live = tuple[ProcessEvents, asyncio.Queue[Fact], str]
Start = Callable[..., "subprocess.Popen[bytes]"]
GO_TEST = WorkloadDefinition("go-test", "Go tests", (ProcessPattern("test-binary", ("*.test",), arguments=("-test.*",)),))
FORBIDDEN = PlacementRequirement("p", ("go-test",), ("system.slice",))
OTHERS = PlacementRequirement("p", ("something-else",), ("*",))
NOFILE = ResourceLimitRequirement("p", "NOFILE", 1 << 20, Severity.WARNING, "why")
LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n" \
    "Max open files            1024                 4096                 files\n"


@pytest.fixture
def booted(made_up_proc: MakeProc, tmp_path: Path) -> KernelPaths:
    """A machine with systemd, and one test in system.slice."""
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/cgroup").symlink_to("cgroup:[4026531835]")
    (tmp_path / "proc/self/status").write_text("CapEff:\t000001ffffffffff\n")
    return made_up_proc(exe="/tmp/worker.test", argv=b"worker.test\0-test.v\0", limits=LIMITS)


def test_one_look_gives_a_fact_for_each_requirement_that_speaks_of_the_workload(booted: KernelPaths) -> None:
    source = ProcessEvents(booted, ProcessTable(booted, [GO_TEST]), [FORBIDDEN, OTHERS], [NOFILE])
    placement, limit = source.snapshot()
    assert isinstance(placement, PlacementFacts)
    assert placement.requirement is FORBIDDEN
    assert placement.process.cgroup == "/system.slice/ci.service"
    assert placement.slice_origin == BUILT_IN
    assert placement.way is not None
    assert [step.pid for step in placement.way.steps] == [100]
    assert isinstance(limit, ResourceLimitFacts)
    assert (limit.resource, limit.soft, limit.hard) == ("NOFILE", 1024, 4096)
    assert source.status.state is SourceState.ACTIVE
    assert source.status.reason == ""


def test_in_a_container_no_slice_is_claimed(booted: KernelPaths) -> None:
    link = Path(booted.proc) / "self/ns/cgroup"
    link.unlink()
    link.symlink_to("cgroup:[4026532999]")
    source = ProcessEvents(booted, ProcessTable(booted, [GO_TEST]), [FORBIDDEN])
    assert list(source.snapshot()) == []
    assert "slices are not judged" in source.status.reason


def test_without_systemd_no_slice_is_claimed(booted: KernelPaths) -> None:
    os.rmdir(f"{booted.run}/systemd/system")
    source = ProcessEvents(booted, ProcessTable(booted, [GO_TEST]), [FORBIDDEN])
    assert list(source.snapshot()) == []


def test_processes_that_may_not_be_read_are_told(booted: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(booted.proc) / "self/status").write_text("CapEff:\t0000000000000000\n")

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "refused")

    monkeypatch.setattr(os, "readlink", refused)  # root may read every link: no fixture tree can refuse it
    source = ProcessEvents(booted, ProcessTable(booted, [GO_TEST]))
    assert list(source.snapshot()) == []
    assert source.status.state is SourceState.DEGRADED
    assert "1 processes" in source.status.reason
    assert source.status.remedy


def test_without_proc_it_is_unavailable(tmp_path: Path) -> None:
    paths = KernelPaths.below(str(tmp_path))
    source = ProcessEvents(paths, ProcessTable(paths, [GO_TEST]))
    assert list(source.snapshot()) == []
    assert source.status.state is SourceState.UNAVAILABLE


def test_a_slice_is_traced_to_its_unit_file(tmp_path: Path) -> None:
    paths = KernelPaths.below(str(tmp_path))
    assert read_slice_origin(paths, "/ci.slice/x.scope") == NO_UNIT_FILE
    for directory in ("usr/lib", "etc"):
        (tmp_path / directory / "systemd/system").mkdir(parents=True)
        (tmp_path / directory / "systemd/system/ci.slice").touch()
        assert read_slice_origin(paths, "/ci.slice/x.scope") == f"unit file {tmp_path}/{directory}/systemd/system/ci.slice"
    in_user_manager = "/user.slice/user-1000.slice/user@1000.service/ci.slice/x.scope"
    assert read_slice_origin(paths, in_user_manager) == NO_UNIT_FILE


def test_a_slice_without_a_file_is_told_by_its_mark(tmp_path: Path) -> None:
    paths = KernelPaths.below(str(tmp_path))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    for name in ("hand.slice", "implied.slice"):
        (tmp_path / "sys/fs/cgroup" / name).mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    try:
        os.setxattr(tmp_path / "sys/fs/cgroup/implied.slice", "user.invocation_id", b"0" * 32)
    except OSError as error:
        pytest.skip(f"no extended attributes of users here: {error}")
    assert read_slice_origin(paths, "/hand.slice/x.scope") == BY_HAND
    assert read_slice_origin(paths, "/implied.slice/x.scope") == IMPLICIT
    assert read_slice_origin(paths, "/gone.slice/x.scope") == NO_UNIT_FILE
    (tmp_path / "run/systemd/transient").mkdir(parents=True)
    (tmp_path / "run/systemd/transient/made.slice").touch()
    assert read_slice_origin(paths, "/made.slice/x.scope") == TRANSIENT


class Fed:
    """A source whose connector reads what the test sends, and the facts that came out of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, paths: KernelPaths, **requirements: Any) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        monkeypatch.setattr(ProcessConnector, "open", staticmethod(lambda: ProcessConnector(theirs)))
        self.table = ProcessTable(paths, [GO_TEST])
        self.source = ProcessEvents(paths, self.table, **requirements)
        self.facts = self.source.facts()
        self.told: list[Fact] = []

    async def next(self) -> Fact:
        return await asyncio.wait_for(anext(self.facts), 10)

    async def close(self) -> None:
        await self.facts.aclose()  # type: ignore[attr-defined]
        self.ours.close()


async def test_a_truncated_message_is_counted_and_the_source_goes_on(
    booted: KernelPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fed = Fed(monkeypatch, booted, limits=[NOFILE])
    assert isinstance(await fed.next(), ResourceLimitFacts)  # found by the first look through /proc
    if not isinstance(await fed.next(), SubjectGone):  # pid 100 of the made-up /proc is not a pid of this kernel
        pytest.fail("the process is not there to be watched")
    fed.ours.send(b"\x10\0\0\0 cut")
    fed.source.refresh()
    assert isinstance(await fed.next(), ResourceLimitFacts)
    assert fed.source.status.counters["malformed"] == 1
    assert "cannot be parsed" in caplog.text
    await fed.close()


def executed(pid: int) -> bytes:
    """The connector's message about an execution: netlink and connector headers, then struct proc_event."""
    return struct.pack("=36xI12xIIIIII", 0x2, pid, pid, 0, 0, 0, 0)


async def test_a_process_may_end_at_any_moment_between_its_event_and_the_last_read(
    booted: KernelPaths, made_up_proc: MakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each look at its files in turn: it is counted, and the next event is read as ever."""
    monkeypatch.setattr(os, "pidfd_open", lambda pid, flags=0: os.open(booted.proc, os.O_RDONLY))
    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", _unless_directory(asyncio.get_running_loop().add_reader))
    monkeypatch.setattr(asyncio.get_running_loop(), "remove_reader", _unless_directory(asyncio.get_running_loop().remove_reader))
    moments, readlink = 0, os.readlink
    for moment in range(200):
        made_up_proc(pid=200, exe="/tmp/short.test", argv=b"short.test\0-test.v\0", limits=LIMITS, start_ticks=7000 + moment)
        made_up_proc(pid=300, exe="/tmp/next.test", argv=b"next.test\0-test.v\0", limits=LIMITS, start_ticks=9000 + moment)
        fed = Fed(monkeypatch, booted, placements=[FORBIDDEN], limits=[NOFILE])
        await until_told(fed, 100)
        looks = 0

        def look(real: Callable[..., Any], moment: int = moment) -> Callable[..., Any]:
            def wrapped(path: Any, *arguments: Any, **more: Any) -> Any:
                nonlocal looks
                directory = readlink(f"/proc/self/fd/{more['dir_fd']}") if more.get("dir_fd") is not None else ""
                if f"{booted.proc}/200" in f"{directory}/{path}" and looks <= moment:
                    looks += 1
                    if looks == moment + 1:
                        shutil.rmtree(f"{booted.proc}/200")
                return real(path, *arguments, **more)

            return wrapped

        with monkeypatch.context() as patched:
            for name in ("open", "readlink", "stat", "listdir"):
                patched.setattr(os, name, look(getattr(os, name)))
            fed.ours.send(executed(200))
            fed.ours.send(executed(300))
            await until_told(fed, 300)
        counters = fed.source.status.counters
        assert counters["executions"] == 2
        if looks <= moment:  # it lived to the end
            break
        moments += 1
        told = [fact for fact in fed.told if getattr(fact, "process", None) is not None and fact.process.pid == 200]
        assert counters.get("gone_before_read", 0) or told, f"lost without a word at look {moment}"
        await fed.close()
    assert moments >= 6
    await fed.close()


def _unless_directory(real: Callable[..., Any]) -> Callable[..., Any]:
    """epoll takes no directory, which stands here for a pidfd that never becomes readable."""

    def wrapped(descriptor: int, *arguments: Any) -> Any:
        return None if os.path.isdir(f"/proc/self/fd/{descriptor}") else real(descriptor, *arguments)

    return wrapped


async def until_told(fed: Fed, pid: int) -> None:
    """Takes facts until one is about the resource limits of that process, which are told last."""
    while True:
        fact = await fed.next()
        fed.told.append(fact)
        if isinstance(fact, ResourceLimitFacts) and fact.process.pid == pid:
            return


async def test_of_those_that_cannot_be_watched_is_asked_now_and_then(
    booted: KernelPaths, made_up_proc: MakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More processes of workloads than are watched: the rest must not be taken for alive for ever."""
    monkeypatch.setattr(process_events, "_WATCHED_CAP", 0)
    monkeypatch.setattr(process_events, "_UNWATCHED_EVERY_S", 0.05)
    fed = Fed(monkeypatch, booted, limits=[NOFILE])
    await until_told(fed, 100)
    made_up_proc(pid=200, exe="/tmp/other.test", argv=b"other.test\0-test.v\0", limits=LIMITS)
    fed.ours.send(executed(200))
    await until_told(fed, 200)
    assert fed.source.status.counters["unwatched"] >= 2
    shutil.rmtree(f"{booted.proc}/200")
    gone = await fed.next()
    assert isinstance(gone, SubjectGone)
    assert gone.process is not None
    assert gone.process.pid == 200
    assert [process.pid for process in fed.table.workload_processes()] == [100]
    monkeypatch.setattr(process_events, "_WATCHED_CAP", 256)
    gone = await fed.next()  # it is watched now: that of this pid there is no process on this kernel is seen at once
    assert isinstance(gone, SubjectGone)
    assert gone.process is not None
    assert gone.process.pid == 100
    assert fed.source.status.counters["unwatched"] == 0
    await fed.close()


async def test_a_broken_socket_ends_the_facts_with_the_error(booted: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(monkeypatch, booted)

    def broken(self: ProcessConnector, limit: int = 0) -> None:
        raise KernelError("process connector", "bad file descriptor")

    monkeypatch.setattr(ProcessConnector, "drain", broken)
    fed.ours.send(b"x")
    with pytest.raises(KernelError, match="bad file descriptor"):
        while True:
            await fed.next()
    await fed.close()


async def test_without_a_connector_it_is_degraded_and_still_looks_when_asked(
    booted: KernelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> ProcessConnector:
        raise InterfaceMissing("process connector", "not here", "run triaged as a service")

    monkeypatch.setattr(ProcessConnector, "open", staticmethod(missing))
    source = ProcessEvents(booted, ProcessTable(booted, [GO_TEST]), limits=[NOFILE])
    facts = source.facts()
    first = await asyncio.wait_for(anext(facts), 10)
    assert isinstance(first, ResourceLimitFacts)
    assert source.status.state is SourceState.DEGRADED
    assert "not here" in source.status.reason
    assert source.status.remedy == "run triaged as a service"
    source.refresh()
    found = [await asyncio.wait_for(anext(facts), 10) for _ in range(2)]
    assert any(isinstance(fact, ResourceLimitFacts) for fact in found)
    await facts.aclose()  # type: ignore[attr-defined]


def test_a_death_long_after_a_process_ended_is_not_laid_at_its_door(booted: KernelPaths) -> None:
    table = ProcessTable(booted, [GO_TEST])
    source = ProcessEvents(booted, table)
    identity = table.identify(100)
    assert identity is not None
    source._killed(Exit(100, 9, False, 1), may_look=False)  # not watched, not ended a moment ago: a later process of that pid
    assert not source._pending
    source._process_ended(identity)
    source._killed(Exit(100, 9, False, 1), may_look=False)
    gone, killed = source._pending
    assert isinstance(gone, SubjectGone)
    assert killed == ExitFacts(identity, 9, False, killed.time_usec)


def test_facts_that_nobody_takes_are_bounded_and_counted(booted: KernelPaths) -> None:
    source = ProcessEvents(booted, ProcessTable(booted, [GO_TEST]))
    for _ in range(9000):
        source._put(SubjectGone())
    assert len(source._pending) == 8192
    assert source.status.counters["facts_dropped"] == 9000 - 8192


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []

    def start(program: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen([program, *arguments], env=environment))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


def run_often(program: str, *arguments: str, times: int) -> None:
    for _ in range(times):
        os.waitpid(os.posix_spawn(program, [program, *arguments], {}), 0)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    """A source on this kernel, its facts, and the path of a program that counts as a test."""
    try:
        ProcessConnector.open().close()
    except KernelError as error:
        pytest.skip(f"no process connector here: {error.shown()}")
    program = str(tmp_path / "worker.test")
    shutil.copy("/bin/sleep", program)
    # Any argument but a number would be refused by sleep: so this workload's tests are told by their name alone.
    workload = WorkloadDefinition("go-test", "Go tests", (ProcessPattern("test-binary", ("worker.test",)),))
    paths = KernelPaths()
    source = ProcessEvents(paths, ProcessTable(paths, [workload]), limits=[NOFILE])
    facts: asyncio.Queue[Fact] = asyncio.Queue()
    ready = asyncio.Event()
    source.on_status = lambda status: ready.set()

    async def watch() -> None:
        async for fact in source.facts():
            facts.put_nowait(fact)

    task = asyncio.create_task(watch())
    await asyncio.wait_for(ready.wait(), 20)
    yield source, facts, program
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_real_test_is_seen_and_so_is_its_end(live: Live, started: Start) -> None:
    source, facts, program = live
    child = started(program, "60", GITHUB_RUN_ID="7")
    seen = await asyncio.wait_for(facts.get(), 10)
    assert isinstance(seen, ResourceLimitFacts)
    assert (seen.process.pid, seen.process.exe, seen.process.ci_job) == (child.pid, program, "github run=7")
    child.kill()
    child.wait()
    ends = [await asyncio.wait_for(facts.get(), 10) for _ in range(2)]
    assert {type(fact) for fact in ends} == {SubjectGone, ExitFacts}
    for fact in ends:
        assert isinstance(fact, (SubjectGone, ExitFacts))
        assert fact.process == seen.process
        if isinstance(fact, ExitFacts):
            assert fact.signal == signal.SIGKILL
    assert source.status.state is SourceState.ACTIVE


async def test_a_test_that_ends_by_itself_is_gone_and_was_not_killed(live: Live, started: Start) -> None:
    source, facts, program = live
    child = started(program, "0.2")
    assert isinstance(await asyncio.wait_for(facts.get(), 10), ResourceLimitFacts)
    assert isinstance(await asyncio.wait_for(facts.get(), 10), SubjectGone)
    assert child.wait() == 0
    assert source._watched == {}


async def test_a_process_that_ends_between_event_and_read_harms_nothing(live: Live, started: Start) -> None:
    source, facts, program = live
    run_often(program, "0", times=200)
    child = started(program, "60")
    while True:
        fact = await asyncio.wait_for(facts.get(), 10)
        if isinstance(fact, ResourceLimitFacts) and fact.process.pid == child.pid:
            break
    child.kill()
    child.wait()
    assert source.status.state is SourceState.ACTIVE
    assert source.status.counters["executions"] >= 201
    assert source.status.counters.get("malformed", 0) == 0


async def test_an_overrun_is_told_and_the_processes_are_found_again(live: Live, started: Start) -> None:
    source, facts, program = live
    assert source._connector is not None
    source._connector._socket.setsockopt(socket.SOL_SOCKET, 33, 4096)  # room for about ten messages
    run_often("/bin/true", times=40)  # the loop does not run meanwhile: the socket overflows
    child = started(program, "60")
    run_often("/bin/true", times=5)  # the child's event comes a moment after its exec is seen to have worked: wait for it
    fact = await asyncio.wait_for(facts.get(), 20)
    assert isinstance(fact, ResourceLimitFacts)
    assert fact.process.pid == child.pid
    counters = source.status.counters
    assert counters["overruns"] >= 1
    assert counters["dropped"] >= 20
    assert counters["rescans"] >= 2
    child.kill()
    child.wait()


async def test_while_nothing_happens_no_timer_runs(live: Live) -> None:
    source, _, _ = live
    assert source._connector is not None
    scheduled = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    # Other processes of the machine may keep a burst going; that is the one timer that there may be.
    assert [timer for timer in scheduled if not timer.cancelled() and "_in_burst" not in repr(timer)] == []


async def test_closing_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    paths = KernelPaths()
    source = ProcessEvents(paths, ProcessTable(paths, [GO_TEST]))
    ready = asyncio.Event()
    source.on_status = lambda status: ready.set()
    facts = source.facts()
    waiting = asyncio.ensure_future(anext(facts))
    await asyncio.wait_for(ready.wait(), 20)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await facts.aclose()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == len(before)
