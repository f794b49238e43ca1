# SPDX-License-Identifier: Apache-2.0
"""The seccomp audit source, fed by hand and by this kernel."""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from triaged.errors import KernelError, NotPermitted
from triaged.kernel.audit import AuditSocket
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import Fact, SeccompFacts
from triaged.model.process import ProcessIdentity
from triaged.sources.process_events import ProcessEvents
from triaged.sources.seccomp_audit import SeccompAudit
from triaged.sources.source import SourceState

KILL_PROCESS, LOG = 0x80000000, 0x7FFC0000
EXE = "/tmp/worker.test"
ALL_ACTIONS = "kill_process kill_thread trap errno user_notif trace log"


def record(
    pid: int = 100, exe: str = EXE, syscall: int = 272, code: int = LOG, arch: int = 0xC000003E, comm: str = "worker.test"
) -> bytes:
    text = f'audit(1795363623.829:2): auid=4294967295 uid=1000 gid=1000 ses=4294967295 pid={pid} comm="{comm}" exe="{exe}" ' \
        f"sig=0 arch={arch:x} syscall={syscall} compat=0 ip=0x7f8c21b1f829 code=0x{code:x}"
    return struct.pack("=IHHII", 16, 1326, 0, 0, 0) + text.encode()


class Fed:
    """A source that reads what the test sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, paths: KernelPaths, interval_s: float = 0.02) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.theirs.setblocking(False)
        monkeypatch.setattr(AuditSocket, "open", staticmethod(lambda: AuditSocket(self.theirs)))
        self.table = ProcessTable(paths, [])
        self.source = SeccompAudit(paths, self.table, interval_s)
        self.facts = self.source.facts()

    async def next(self) -> SeccompFacts:
        fact = await asyncio.wait_for(anext(self.facts), 10)
        assert isinstance(fact, SeccompFacts)
        return fact

    async def close(self) -> None:
        await self.facts.aclose()  # type: ignore[attr-defined]
        self.ours.close()
        self.theirs.close()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Lets the source run until something holds of it."""
        end = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < end
            await asyncio.sleep(0)


@pytest.fixture
def host(made_up_proc: Callable[..., KernelPaths], tmp_path: Path) -> KernelPaths:
    """The host itself, with everything recorded and one test in ci.service."""
    for pid in ("self", "1"):
        (tmp_path / "proc" / pid / "ns").mkdir(parents=True)
        (tmp_path / "proc" / pid / "ns/net").symlink_to("net:[4026531840]")
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    directory = tmp_path / "proc/sys/kernel/seccomp"
    directory.mkdir(parents=True)
    for name in ("actions_logged", "actions_avail"):
        (directory / name).write_text(ALL_ACTIONS + "\n")
    return made_up_proc(exe=EXE, argv=b"worker.test\0")


async def test_a_record_becomes_a_fact_with_the_process_and_its_cgroup(host: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(monkeypatch, host)
    fed.ours.send(record(code=0x00030000))
    fact = await fed.next()
    assert (fact.syscall, fact.syscall_number, fact.arch, fact.action) == ("unshare", 272, "x86_64", "TRAP")
    assert (fact.process.pid, fact.process.start_ticks, fact.process.cgroup) == (100, 5000, "/system.slice/ci.service")
    assert fact.records == 1
    assert fact.record.startswith("audit(1795363623.829:2)")
    assert fact.time_usec == 1795363623_829000
    assert fed.source.status.state is SourceState.ACTIVE
    await fed.close()


async def test_names_of_calls_follow_the_architecture(host: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(monkeypatch, host)
    for number, arch in ((39, 0xC000003E), (20, 0x40000003), (172, 0xC00000B7), (99999, 0xC000003E), (1, 0x12345678)):
        fed.ours.send(record(syscall=number, arch=arch))
    seen = {(fact.syscall, fact.arch) for fact in [await fed.next() for _ in range(5)]}
    assert seen == {
        ("getpid", "x86_64"), ("getpid", "i386"), ("getpid", "aarch64"), ("99999", "x86_64"), ("1", "0x12345678"),
    }
    await fed.close()


async def test_a_storm_is_few_facts_and_every_record_is_counted(host: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(monkeypatch, host)
    sent = counted = facts = 0
    fed.ours.setblocking(False)
    while counted < 3000:
        while sent < 3000:
            try:
                fed.ours.send(record())
            except BlockingIOError:
                break
            sent += 1
        fact = await fed.next()
        counted += fact.records
        facts += 1
        assert bool(fact.interval_usec) is (facts > 1)  # a stream has a rate, its beginning none
        assert fact.interval_usec < 1_000_000
    assert counted == sent == fed.source.status.counters["records"] == 3000
    assert facts < 500
    await fed.close()


async def test_records_of_a_pid_that_is_another_program_by_now_are_not_laid_at_its_door(
    host: KernelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(monkeypatch, host)
    fed.ours.send(record(exe="/usr/bin/gone", comm="gone"))
    fact = await fed.next()
    assert (fact.process.exe, fact.process.comm, fact.process.uid) == ("/usr/bin/gone", "gone", 1000)
    assert (fact.process.cgroup, fact.process.start_ticks) == ("", 0)
    await fed.close()


async def test_a_process_that_is_gone_is_known_from_its_execution(host: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(monkeypatch, host)
    fed.table.remember(ProcessIdentity(pid=555, start_ticks=9, exe=EXE, comm="x", cgroups={"": "/a.slice/b.service"}))
    fed.ours.send(record(pid=555))
    fact = await fed.next()
    assert (fact.process.start_ticks, fact.process.cgroup) == (9, "/a.slice/b.service")
    await fed.close()


async def test_a_kill_waits_for_the_exit_event_that_tells_the_parent(host: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(monkeypatch, host)
    coming = asyncio.ensure_future(fed.next())
    fed.ours.send(record(pid=556, code=KILL_PROCESS))
    await fed.until(lambda: fed.source._tally.records > 0)
    fed.table.remember_killed(556, parent=100)
    fact = await coming
    assert (fact.process.pid, fact.process.exe, fact.process.uid) == (556, EXE, 1000)
    assert fact.process.cgroup == "/system.slice/ci.service"
    await fed.close()


async def test_those_of_a_storm_that_could_not_be_looked_at_go_with_the_only_cgroup_seen(
    host: KernelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(monkeypatch, host)
    for pid in (100, 901, 902):
        fed.ours.send(record(pid=pid))
    fact = await fed.next()
    assert (fact.records, fact.process.pid) == (3, 100)
    await fed.close()


async def test_two_cgroups_are_two_facts_and_what_fits_neither_is_a_third(
    host: KernelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(monkeypatch, host)
    fed.table.remember(ProcessIdentity(pid=555, start_ticks=9, exe=EXE, cgroups={"": "/other.service"}))
    for pid in (100, 555, 555, 901):
        fed.ours.send(record(pid=pid))
    facts = [await fed.next() for _ in range(3)]
    assert {(fact.process.cgroup, fact.records) for fact in facts} == {
        ("/system.slice/ci.service", 1), ("/other.service", 2), ("", 1),
    }
    await fed.close()


async def test_a_malformed_record_is_shown_once_and_the_next_is_read(
    host: KernelPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fed = Fed(monkeypatch, host)
    header = record()[:16]
    for data in (header + b"audit(1.1:1): syscall=what\x1b[2J code=0x0", header + b"more nonsense", header, b"\0", record()):
        fed.ours.send(data)
    assert (await fed.next()).syscall == "unshare"
    assert fed.source.status.counters == {"records": 1, "malformed": 4}
    warnings = [entry.getMessage() for entry in caplog.records]
    assert len(warnings) == 1
    assert "syscall=what" in warnings[0]
    assert "\x1b" not in warnings[0]
    await fed.close()


@pytest.mark.parametrize(("break_it", "state", "words"), [
    ("actions", SourceState.DEGRADED, "kill_process"),
    ("pid namespace", SourceState.DEGRADED, "pid namespace"),
    ("network namespace", SourceState.UNAVAILABLE, "network namespace"),
    ("no such parameter", SourceState.ACTIVE, ""),
])
async def test_what_it_does_not_see_it_says(
    host: KernelPaths, monkeypatch: pytest.MonkeyPatch, break_it: str, state: SourceState, words: str
) -> None:
    proc = Path(host.proc)
    if break_it == "actions":
        (proc / "sys/kernel/seccomp/actions_logged").write_text("trap errno user_notif trace log\n")
    elif break_it == "no such parameter":
        (proc / "sys/kernel/seccomp/actions_logged").unlink()
    else:
        link = proc / "self/ns" / ("pid" if break_it == "pid namespace" else "net")
        link.unlink()
        link.symlink_to(f"{link.name}:[4026532999]")
    fed = Fed(monkeypatch, host)
    waiting = asyncio.ensure_future(anext(fed.facts, None))
    await fed.until(lambda: fed.source.status.state is not SourceState.STARTING)
    assert fed.source.status.state is state
    assert words in fed.source.status.reason
    assert fed.source.status.remedy or state is SourceState.ACTIVE
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await fed.close()


async def test_in_a_pid_namespace_no_local_process_is_taken_for_the_host_one(
    host: KernelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Path(host.proc) / "self/ns/pid"
    link.unlink()
    link.symlink_to("pid:[4026532999]")
    fed = Fed(monkeypatch, host)
    fed.ours.send(record())
    assert (await fed.next()).process.cgroup == ""
    await fed.close()


async def test_what_is_recorded_is_looked_at_again_on_request(host: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(monkeypatch, host)
    fed.ours.send(record())
    await fed.next()
    (Path(host.proc) / "sys/kernel/seccomp/actions_logged").write_text("kill_process\n")
    fed.source.refresh()
    assert fed.source.status.state is SourceState.DEGRADED
    await fed.close()


async def test_without_the_capability_it_is_unavailable_and_says_what_that_costs(
    host: KernelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> AuditSocket:
        raise NotPermitted("audit multicast", "not allowed", "run triaged as a service")

    monkeypatch.setattr(AuditSocket, "open", staticmethod(refused))
    source = SeccompAudit(host, ProcessTable(host, []))
    assert [fact async for fact in source.facts()] == []
    assert source.status.state is SourceState.UNAVAILABLE
    assert "is not seen" in source.status.reason
    assert source.status.remedy == "run triaged as a service"


def test_one_look_shows_no_records_and_says_so(host: KernelPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = Fed(monkeypatch, host)
    assert list(fed.source.snapshot()) == []
    assert fed.source.status.state is SourceState.DEGRADED
    fed.ours.close()
    fed.theirs.close()


@pytest.fixture
async def live() -> AsyncIterator[asyncio.Queue[SeccompFacts]]:
    """The facts of this kernel, with the process events beside, as in the daemon."""
    try:
        AuditSocket.open().close()
    except KernelError as error:
        pytest.skip(f"no audit records here: {error.shown()}")
    paths = KernelPaths()
    table = ProcessTable(paths, [])
    facts: asyncio.Queue[SeccompFacts] = asyncio.Queue()
    sources = [ProcessEvents(paths, table), SeccompAudit(paths, table)]
    ready = [asyncio.Event() for _ in sources]

    async def watch(source: Any) -> None:
        fact: Fact
        async for fact in source.facts():
            if isinstance(fact, SeccompFacts):
                facts.put_nowait(fact)

    for source, event in zip(sources, ready, strict=True):
        source.on_status = lambda status, event=event: event.set()
    tasks = [asyncio.create_task(watch(source)) for source in sources]
    for event in ready:
        await asyncio.wait_for(event.wait(), 20)
    yield facts
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def about(facts: asyncio.Queue[SeccompFacts], pid: int) -> SeccompFacts:
    while True:
        fact = await asyncio.wait_for(facts.get(), 10)
        if fact.process.pid == pid:
            return fact


async def test_a_real_kill_is_a_fact_with_the_cgroup(live: asyncio.Queue[SeccompFacts], filtered: Callable[..., Any]) -> None:
    child = filtered(KILL_PROCESS)
    await asyncio.to_thread(child.go)
    fact = await about(live, child.pid)
    assert (fact.syscall, fact.action, fact.signal) == ("getpid", "KILL_PROCESS", 31)
    assert fact.process.exe == os.readlink("/proc/self/exe")
    assert fact.process.cgroups == ProcessTable(KernelPaths(), []).read(os.getpid()).cgroups


async def test_ten_thousand_real_records_are_all_counted(
    live: asyncio.Queue[SeccompFacts], filtered: Callable[..., Any]
) -> None:
    child = filtered(LOG, times=10_000, comm="\\x1b[2J \\xff")
    await asyncio.to_thread(child.go)
    counted = facts = 0
    while counted < 10_000:
        counted += (await about(live, child.pid)).records
        facts += 1
    assert counted == 10_000
    assert facts <= 200
