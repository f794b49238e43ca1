# SPDX-License-Identifier: Apache-2.0
"""The store: identity, counting, ending, the cap, and what survives whatever happens to the files."""
from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triaged.changes import Change, Subscription, What
from triaged.finding_files import MAX_FILE_BYTES, finding_as_dict, finding_from_dict
from triaged.model.cgroup import CgroupId
from triaged.model.finding import Finding, State
from triaged.model.fix import (
    FIX_TYPES,
    Fix,
    ManualStep,
    MoveProcesses,
    SetParameter,
    SetResourceLimit,
    SetUnitProperty,
    SetUnitSetting,
)
from triaged.model.process import ProcessIdentity
from triaged.model.subject import CgroupSubject, HostSubject, ProcessSubject
from triaged.model.verdict import Evidence, Kind, Problem, Severity
from triaged.store import Store, StoreStatus

DAY = 86400 * 1_000_000
DAEMON = Path(__file__).resolve().parents[1] / "daemon"


@dataclass(frozen=True)
class SomeRule:
    identifier: str = "test.hit"
    kind: Kind = Kind.HIT
    severity: Severity = Severity.ERROR
    references: tuple[str, ...] = ("man:x(5)",)
    expires_after_s: int = 86400


HIT = SomeRule()
RISK = SomeRule("test.risk", Kind.RISK, Severity.WARNING, expires_after_s=0)


@dataclass
class Clock:
    usec: int = 1_700_000_000_000_000

    def __call__(self) -> int:
        return self.usec


@pytest.fixture
def clock() -> Clock:
    return Clock()


def problem(name: str = "a", **values: object) -> Problem:
    return replace(Problem(HostSubject(name), f"{name} is wrong"), **values)  # type: ignore[arg-type]


def heard(subscription: Subscription) -> list[tuple[str, str]]:
    """What a subscription holds now: what happened, to whom."""
    out = []
    while subscription._queue:
        change = subscription._queue.popleft()
        out.append((change.what.value, change.finding.subject_key if change.finding else ""))
    return out


# Identity and counting


def test_the_same_cause_again_counts_and_is_no_second_finding(clock: Clock) -> None:
    store = Store(clock=clock)
    first = store.report(HIT, problem(occurrences=2))
    clock.usec += 5
    assert store.report(HIT, problem(occurrences=3)) == first
    store.flush()
    (finding,) = store.findings()
    assert finding.count == 5
    assert (finding.first_seen_usec, finding.last_seen_usec) == (clock.usec - 5, clock.usec)


def test_another_rule_or_subject_is_another_finding() -> None:
    store = Store()
    assert len({store.report(HIT, problem("a")), store.report(HIT, problem("b")), store.report(RISK, problem("a"))}) == 3


def test_a_risk_that_goes_on_is_not_an_event(clock: Clock) -> None:
    store = Store(clock=clock)
    changes = store.subscribe("test")
    for _ in range(5):
        store.report(RISK, problem())
        store.flush()
        clock.usec += 60_000_000
    assert heard(changes) == [("opened", "parameter:a")]
    assert store.findings()[0].count == 1


def test_a_risk_that_goes_on_is_seen_again_once_an_hour(clock: Clock) -> None:
    store = Store(clock=clock)
    store.report(RISK, problem())
    store.flush()
    clock.usec += 3_700_000_000
    store.report(RISK, problem())
    store.flush()
    assert store.findings()[0].last_seen_usec == clock.usec


def test_a_risk_with_another_value_is_a_change() -> None:
    store = Store()
    changes = store.subscribe("test")
    for value in (1, 1, 2):
        store.report(RISK, problem(evidence=(Evidence("a", value, "f", time_usec=value),)))
        store.flush()
    assert [what for what, _ in heard(changes)] == ["opened", "changed"]


def test_another_subject_with_the_same_hash_gets_a_longer_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(rule: str, subject_key: str, digits: int = 8) -> str:
        return f"{rule}-{'0' * 8}" if digits == 8 else f"{rule}-{'0' * 8}{subject_key[-1]}{digits}"

    monkeypatch.setattr("triaged.store.finding_id", hashed)
    store = Store()
    first, second = store.report(HIT, problem("a")), store.report(HIT, problem("b"))
    assert (first, second) == ("test.hit-00000000", "test.hit-00000000b12")
    assert store.report(HIT, problem("b")) == second
    store.flush()
    assert {finding.identifier: finding.count for finding in store.findings()} == {first: 1, second: 2}


def test_a_finding_that_was_forgotten_gets_its_name_again() -> None:
    store = Store(closed_kept_s=0)
    rule = replace(HIT, expires_after_s=0)
    name = store.report(rule, problem())
    store.flush()
    store.resolve("test.hit", HostSubject("a"), "well")
    store.expire()
    assert store.report(rule, problem()) == name  # although its file is not yet removed
    store.flush()
    assert [(finding.identifier, finding.count) for finding in store.findings()] == [(name, 1)]


def test_evidence_and_fixes_are_bounded() -> None:
    store = Store()
    evidence = tuple(Evidence(str(number), number) for number in range(1000))
    fixes = tuple(ManualStep(str(number), "t") for number in range(1000))
    store.report(HIT, problem(evidence=evidence, fixes=fixes))
    store.flush()
    assert (len(store.findings()[0].evidence), len(store.findings()[0].fixes)) == (64, 16)


# Ending


def test_resolved_keeps_the_reason_and_opens_again_with_its_count() -> None:
    store = Store()
    changes = store.subscribe("test")
    store.report(HIT, problem())
    store.flush()
    store.resolve("test.hit", HostSubject("a"), "looked again")
    store.flush()
    assert [(finding.state, finding.reason) for finding in store.findings()] == [(State.RESOLVED, "looked again")]
    store.report(HIT, problem())
    store.flush()
    assert [(finding.state, finding.reason, finding.count) for finding in store.findings()] == [(State.OPEN, "", 2)]
    assert [what for what, _ in heard(changes)] == ["opened", "closed", "opened"]


def test_resolving_what_is_not_there_or_closed_changes_nothing() -> None:
    store = Store()
    changes = store.subscribe("test")
    store.resolve("test.hit", HostSubject("a"), "x")
    store.report(HIT, problem())
    store.resolve("test.hit", HostSubject("a"), "first")
    store.resolve("test.hit", HostSubject("a"), "second")
    store.flush()
    assert [finding.reason for finding in store.findings()] == ["first"]
    assert [what for what, _ in heard(changes)] == ["opened", "closed"]  # it came and went between two looks


def test_a_dismissed_finding_stays_closed_when_it_comes_again(clock: Clock) -> None:
    store = Store(clock=clock)
    name = store.report(HIT, problem())
    store.flush()
    assert store.dismiss(name, "known")
    changes = store.subscribe("test")
    store.flush()
    store.report(HIT, problem())
    store.flush()
    assert [(finding.state, finding.reason, finding.count) for finding in store.findings()] == [(State.DISMISSED, "known", 2)]
    assert [what for what, _ in heard(changes)] == ["closed", "changed"]
    clock.usec += 1000 * DAY
    assert store.expire() == 0  # forgetting it would bring the alert back
    assert store.reopen(name)
    store.flush()
    assert store.open_count == 1


def test_a_dismissed_risk_that_goes_on_is_quiet() -> None:
    store = Store()
    store.dismiss(store.report(RISK, problem()), "known")
    store.flush()
    changes = store.subscribe("test")
    for _ in range(3):
        store.report(RISK, problem())
        store.flush()
    assert heard(changes) == []
    assert [(finding.state, finding.count) for finding in store.findings()] == [(State.DISMISSED, 1)]


def test_what_is_not_there_cannot_be_closed_or_opened() -> None:
    store = Store()
    assert not store.close("test.hit-0", State.FIXED, "x")
    assert not store.dismiss("test.hit-0", "x")
    assert not store.reopen("test.hit-0")


def test_expiry_ends_a_finding_and_later_forgets_it(clock: Clock) -> None:
    store = Store(clock=clock, closed_kept_s=3 * 86400)
    changes = store.subscribe("test")
    start = clock.usec
    store.report(HIT, problem())
    store.report(RISK, problem())
    clock.usec += DAY // 2
    store.report(HIT, problem())
    assert store.next_expiry() == start + DAY // 2 + DAY
    clock.usec = start + DAY // 2 + DAY
    assert store.expire() == 1
    store.flush()
    assert {finding.rule: finding.state for finding in store.findings()} == {"test.hit": State.EXPIRED, "test.risk": State.OPEN}
    assert store.next_expiry() == start + DAY // 2 + 4 * DAY
    clock.usec = start + DAY // 2 + 4 * DAY
    assert store.expire() == 1
    store.flush()
    assert [finding.rule for finding in store.findings()] == ["test.risk"]
    assert store.next_expiry() is None
    assert [each for each in heard(changes) if each[0] in ("removed",)] == [("removed", "parameter:a")]


def test_the_cgroup_or_process_that_is_gone_ends_what_is_about_it() -> None:
    store = Store()
    process = ProcessIdentity(5, 50, comm="x", cgroups={"": "/a"})
    store.report(RISK, replace(problem(), subject=CgroupSubject(CgroupId("/a"))))
    store.report(RISK, replace(problem(), subject=ProcessSubject(process)))
    store.report(RISK, replace(problem(), subject=ProcessSubject(replace(process, pid=6), scope="NOFILE")))
    store.report(HIT, replace(problem(), subject=CgroupSubject(CgroupId("/a"))))
    assert store.resolve_about("process:6.50", "ended") == 1
    assert store.resolve_about("process:6.50", "ended") == 0
    assert store.resolve_about("cgroup:/a", "removed") == 2
    assert store.resolve_about("cgroup:/ab", "removed") == 0
    store.flush()
    assert {finding.rule for finding in store.findings() if finding.is_open} == {"test.hit"}


# The cap


def test_at_the_cap_closed_ones_go_first_then_the_least_severe_oldest_open_ones() -> None:
    store = Store(cap=3)
    names = [store.report(replace(HIT, severity=severity), problem(name)) for name, severity in
             (("e", Severity.ERROR), ("w1", Severity.WARNING), ("w2", Severity.WARNING))]
    store.dismiss(names[0], "x")
    store.report(HIT, problem("n1"))
    store.report(HIT, problem("n2"))
    store.flush()
    assert {str(finding.subject["name"]) for finding in store.findings()} == {"w2", "n1", "n2"}
    assert store.dropped == 2


def test_at_the_cap_the_new_one_is_dropped_if_all_others_are_worse() -> None:
    store = Store(cap=2)
    store.report(HIT, problem("a"))
    store.report(HIT, problem("b"))
    assert store.report(RISK, problem("c")) == ""
    store.flush()
    assert {str(finding.subject["name"]) for finding in store.findings()} == {"a", "b"}
    assert store.dropped == 1


def test_a_storm_of_findings_stays_at_the_cap(tmp_path: Path) -> None:
    store = Store(str(tmp_path), cap=50)
    store.load()
    for number in range(5000):
        store.report(HIT, problem(str(number)))
    store.flush()
    assert len(store.findings()) == 50
    assert store.dropped == 4950
    assert len(list((tmp_path / "findings").iterdir())) == 50
    assert (len(store._by_key), len(store._saved_at), len(store._dirty)) == (50, 50, 0)


# Subscribers


def test_a_slow_subscriber_is_told_to_look_again_and_its_loss_is_counted() -> None:
    store = Store()
    changes = store.subscribe("slow", bound=3)
    for number in range(10):
        store.report(HIT, problem(str(number)))
        store.flush()
    told = heard(changes)
    assert changes.lost > 0
    assert told[0] == ("resync", "")
    assert len(told) <= 4
    assert told[-1] == ("opened", "parameter:9")


async def test_a_subscription_ends() -> None:
    store = Store()
    changes = store.subscribe("test")
    store.report(HIT, problem())
    store.flush()
    store.unsubscribe(changes)
    store.report(HIT, problem("b"))
    store.flush()
    assert [change.what async for change in changes] == [What.OPENED]


# Saving


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[None]:
    task = asyncio.create_task(store.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def files(directory: Path) -> dict[str, dict[str, object]]:
    return {path.stem: json.loads(path.read_text()) for path in (directory / "findings").glob("*.json")}


async def test_who_hears_of_a_finding_can_read_its_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.load()
    changes = store.subscribe("test")
    async with running(store):
        name = store.report(HIT, problem())
        assert store.find(name) is None  # not before it is saved
        change = await asyncio.wait_for(anext(changes), 5)
        assert change == Change(What.OPENED, store.find(name))
        assert files(tmp_path)[name]["version"] == 1
        assert (tmp_path / "findings" / f"{name}.json").stat().st_mode & 0o777 == 0o600


async def test_repetitions_are_saved_at_most_once_a_second_and_the_last_count_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.load()
    writes = 0
    write = store._files.write  # type: ignore[union-attr]

    def counted(finding: Finding) -> None:
        nonlocal writes
        writes += 1
        write(finding)

    monkeypatch.setattr(store._files, "write", counted)
    changes = store.subscribe("test")
    async with running(store):
        for _ in range(300):
            name = store.report(HIT, problem())
            await asyncio.sleep(0.004)
        during = writes
    assert 2 <= during <= 4
    assert [what for what, _ in heard(changes)][:2] == ["opened", "changed"]
    assert files(tmp_path)[name]["count"] == 300


async def test_who_asks_to_look_again_finds_what_was_seen(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.load()
    async with running(store):
        await asyncio.sleep(0)  # it runs
        for number in range(5):  # all within the second for which repetitions wait
            name = store.report(RISK, problem(summary=f"it is {number}"))
            await store.catch_up()
            found = store.find(name)
            assert found is not None
            assert found.summary == f"it is {number}"
        assert files(tmp_path)[name]["summary"] == "it is 4"


async def test_a_disk_that_takes_nothing_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(finding: Finding) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("triaged.store._CATCH_UP_S", 0.1)
    store = Store(str(tmp_path))
    store.load()
    monkeypatch.setattr(store._files, "write", full)
    async with running(store):
        await asyncio.sleep(0)
        name = store.report(RISK, problem())
        await asyncio.wait_for(store.catch_up(), 5)
        assert store.find(name) is not None  # in memory, and said to be there only


async def test_an_idle_store_does_not_wake_and_has_no_thread(tmp_path: Path) -> None:
    import threading

    store = Store(str(tmp_path))
    store.load()
    async with running(store):
        store.report(HIT, problem())
        await asyncio.wait_for(anext(store.subscribe("test")), 5)
        await asyncio.sleep(0.2)
        loop = asyncio.get_running_loop()
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []  # type: ignore[attr-defined]
        assert [thread.name for thread in threading.enumerate() if "store" in thread.name] == []


def test_a_restart_takes_over_what_was_saved(tmp_path: Path, clock: Clock) -> None:
    store = Store(str(tmp_path), clock=clock)
    store.load()
    fixes: tuple[Fix, ...] = (
        SetParameter("a.b", "1", True, "r", "0"), SetUnitProperty("u.service", "TasksMax", "5"),
        SetResourceLimit(1, 2, "NOFILE", 3, 4), ManualStep("m", "t", (("docker", "update", "x y"),)),
    )
    evidence = (Evidence("a", 1, "/proc/x", 5), Evidence("b", "x\udcff", private=True), Evidence("c", 1.5), Evidence("d", True))
    store.report(HIT, problem(evidence=evidence, fixes=fixes, pid=7))
    store.report(HIT, problem("name \udcff \n", occurrences=4))
    store.resolve("test.hit", HostSubject("name \udcff \n"), "well")
    store.flush()
    again = Store(str(tmp_path), clock=clock)
    changes = again.subscribe("test")
    assert again.load() == []
    assert again.findings() == store.findings()
    again.report(HIT, problem())
    again.flush()
    assert heard(changes) == [("changed", "parameter:a")]
    assert again.findings()[0].count == 2


_KILLED = """
import asyncio, os, sys
from triaged.model.subject import HostSubject
from triaged.model.verdict import Problem
from triaged.rules import RULES
from triaged.store import Store

async def main():
    store = Store(sys.argv[1])
    store.load()
    changes = store.subscribe("test")
    task = asyncio.create_task(store.run())
    number = 0
    async def tell():
        async for change in changes:
            print(change.what.value, change.finding.identifier, change.finding.count, flush=True)
    telling = asyncio.create_task(tell())
    while True:
        number += 1
        store.report(RULES[3], Problem(HostSubject(str(number % 200)), "x"))
        await asyncio.sleep(0.0005)

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 50, 333])
def test_kill_9_loses_no_finding_that_was_published(tmp_path: Path, lines: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(DAEMON)},
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    store = Store(str(tmp_path))
    assert store.load() == []
    counts: dict[str, int] = {}
    for line in said:
        if line.endswith("\n"):
            _, name, count = line.split()
            counts[name] = int(count)
    assert len(counts) >= min(lines, 200) // 2
    kept = {finding.identifier: finding.count for finding in store.findings()}
    assert {name: count for name, count in counts.items() if kept.get(name, 0) < count} == {}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"{\"version\":1,\"id\":", "Expecting value"),
        (b"[]", "not an object"),
        (b"{}", "unknown format None"),
        (b"{\"version\":1}", "'id' is missing"),
        (b"\xff\xfe\x00", "decode"),
        (b"{\"version\":1" + b" " * (1 << 20) + b"}", "larger than"),
        (b"[" * 100_000, "nested too deeply|maximum recursion"),
        (b"{\"version\":\"1\"}", "unknown format '1'"),
    ],
)
def test_a_broken_file_is_put_aside_by_name_and_the_others_load(tmp_path: Path, content: bytes, why: str) -> None:
    store = Store(str(tmp_path))
    store.load()
    name, good = store.report(HIT, problem("bad")), store.report(HIT, problem("good"))
    store.flush()
    path = tmp_path / "findings" / f"{name}.json"
    path.write_bytes(content)
    again = Store(str(tmp_path))
    (complaint,) = again.load()
    assert str(complaint).startswith(f"{path}: broken (")
    assert complaint.remedy == f"it was moved to {path}.broken"
    assert [finding.identifier for finding in again.findings()] == [good]
    assert Path(f"{path}.broken").read_bytes() == content
    assert again.report(HIT, problem("bad")) == name
    again.flush()
    assert files(tmp_path)[name]["count"] == 1


def _whole(tmp_path: Path) -> tuple[Path, dict[str, object]]:
    store = Store(str(tmp_path))
    store.load()
    name = store.report(HIT, problem(evidence=(Evidence("a", 1),), fixes=(ManualStep("m", "t"),)))
    store.flush()
    path = tmp_path / "findings" / f"{name}.json"
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "x"), ("severity", 9), ("severity", "3"), ("severity", True), ("state", None), ("subject", []), ("count", "1"),
        ("evidence", {}), ("evidence", [1]), ("evidence", [{"name": "x", "value": []}]), ("fixes", [1]), ("fixes", [{"type": "x"}]),
        ("fixes", [{"type": "set-parameter"}]), ("fixes", [{"type": "set-parameter", "parameter": 5, "value": "1"}]),
        ("fixes", [{"type": "manual", "name": "x", "title": "t", "commands": [1]}]),
        ("owner_uid", "0"), ("id", "other"), ("first_seen_usec", 1.5), ("extra", []),
    ],
)
def test_a_field_of_the_wrong_type_is_a_broken_file(tmp_path: Path, field: str, value: object) -> None:
    path, data = _whole(tmp_path)
    path.write_text(json.dumps({**data, field: value}))
    store = Store(str(tmp_path))
    assert len(store.load()) == 1
    assert store.findings() == ()


def test_every_truncation_of_a_file_is_put_aside(tmp_path: Path) -> None:
    path, data = _whole(tmp_path)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        store = Store(str(tmp_path))
        assert len(store.load()) == 1
        assert store.findings() == ()
    assert data["version"] == 1


def test_a_newer_version_s_file_is_left_alone_and_never_overwritten(tmp_path: Path) -> None:
    path, data = _whole(tmp_path)
    path.write_text(json.dumps({**data, "version": 2, "new": True}))
    before = path.read_bytes()
    store = Store(str(tmp_path))
    (complaint,) = store.load()
    assert "newer version" in str(complaint)
    assert str(path) in str(complaint)
    assert store.report(HIT, problem()) != path.stem
    store.flush()
    assert path.read_bytes() == before


def test_what_a_killed_writer_left_is_cleaned_up(tmp_path: Path) -> None:
    path, _ = _whole(tmp_path)
    (tmp_path / "findings" / "x.json.new").write_text("{")
    store = Store(str(tmp_path))
    assert store.load() == []
    assert os.listdir(tmp_path / "findings") == [path.name]


def test_more_files_than_the_cap_are_cut_to_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path), cap=20)
    store.load()
    for number in range(20):
        store.report(HIT, problem(str(number)))
    store.flush()
    again = Store(str(tmp_path), cap=5)
    again.load()
    again.flush()
    assert len(again.findings()) == 5
    assert len(files(tmp_path)) == 5


# A directory that fails


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A state directory on a file system that can be filled."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=40", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_once_and_everything_goes_on_in_memory(full: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(full))
    told: list[StoreStatus] = []
    store.on_status = told.append
    store.load()
    changes = store.subscribe("test")
    with caplog.at_level(logging.INFO):
        for number in range(100):
            store.report(HIT, problem(str(number)))
            store.flush()
    assert len(store.findings()) == 100
    assert len(heard(changes)) == 100
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert "No space left on device" in caplog.text
    assert not store.status.is_saving
    assert len(told) == 1
    subprocess.run(["mount", "-o", "remount,size=4m,nr_inodes=1000", str(full)], check=True)
    store.report(HIT, problem("one more"))
    store.flush()
    assert len(files(full)) == 101  # what was only in memory was written after all
    assert store.status.is_saving
    assert [status.is_saving for status in told] == [False, True]


def test_a_read_only_directory_is_no_reason_to_stop(full: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(full))
    store.load()
    subprocess.run(["mount", "-o", "remount,ro", str(full)], check=True)
    store.report(HIT, problem())
    store.set_counter("k", 1)
    store.flush()
    assert store.open_count == 1
    assert "Read-only file system" in store.status.reason
    assert "going on in memory" in caplog.text


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = Store(str(tmp_path / "file" / "state"))
    assert store.load() == []
    assert not store.status.is_saving
    store.report(HIT, problem())
    store.flush()
    assert store.open_count == 1
    assert len(caplog.records) == 1


def test_one_bad_file_does_not_make_the_status_flap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(str(tmp_path))
    store.load()
    name = store.report(HIT, problem("bad"))
    (tmp_path / "findings" / f"{name}.json.new").mkdir()
    store.flush()
    for number in range(10):
        store.report(HIT, problem(str(number)))
        store.flush()
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert len(files(tmp_path)) == 10


# Counters


def test_counters_survive_a_restart_but_not_a_boot(tmp_path: Path) -> None:
    store = Store(str(tmp_path), boot="one")
    store.load()
    store.set_counter("pids:/a:17", 5)
    store.set_counter("pids:/b:18", 6)
    store.forget_counter("pids:/b:18")
    store.flush()
    again = Store(str(tmp_path), boot="one")
    again.load()
    assert (again.counter("pids:/a:17"), again.counter("pids:/b:18")) == (5, None)
    other = Store(str(tmp_path), boot="two")
    assert other.load() == []
    assert other.counter("pids:/a:17") is None


def test_counters_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triaged.store._MAX_COUNTERS", 3)
    store = Store()
    for number in range(5):
        store.set_counter(str(number), number)
    store.set_counter("2", 9)
    store.set_counter("5", 5)
    assert [store.counter(str(number)) for number in range(6)] == [None, None, 9, None, 4, 5]


def test_a_broken_counter_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "counters.json").write_text('{"version":1,"counters":{"a":"x"}}')
    store = Store(str(tmp_path))
    (complaint,) = store.load()
    assert "counters.json: broken" in str(complaint)
    assert (tmp_path / "counters.json.broken").exists()


@pytest.mark.parametrize("path", ["/x" * 2000, "/\udcff\n" + "é" * 1500, '/"\\' * 1000], ids=["long", "not ASCII", "escaped"])
def test_the_counters_file_never_gets_too_large_to_be_read(tmp_path: Path, path: str) -> None:
    store = Store(str(tmp_path), boot="b")
    store.load()
    for number in range(1000):
        store.set_counter(f"{path}{number}", 1 << 60)
    store.flush()
    assert (tmp_path / "counters.json").stat().st_size <= MAX_FILE_BYTES
    again = Store(str(tmp_path), boot="b")
    assert again.load() == []
    assert again.counter(f"{path}999") == 1 << 60
    for number in range(1000):
        again.forget_counter(f"{path}{number}")
    assert (again.counters(), again._counters_bytes) == ({}, 0)


async def test_counters_are_saved_after_the_findings_that_they_led_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triaged.store._COUNTERS_EVERY_S", 0.05)
    store = Store(str(tmp_path))
    store.load()
    async with running(store):
        for number in range(40):
            name = store.report(HIT, problem())
            store.set_counter("k", number + 1)
            await asyncio.sleep(0.01)
            saved = tmp_path / "counters.json"
            if saved.exists():
                counted = json.loads(saved.read_text())["counters"]["k"]
                assert json.loads((tmp_path / "findings" / f"{name}.json").read_text())["count"] >= counted
        assert saved.exists()


# Round trip

_text = st.text(st.characters(), max_size=20)
_evidence = st.builds(
    Evidence, _text,
    st.one_of(_text, st.integers(-(2**63), 2**64), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
    _text, st.integers(0, 2**63), st.booleans(),
)
_FIXES = {
    SetParameter: st.builds(SetParameter, _text, _text, st.booleans(), _text, _text),
    SetUnitProperty: st.builds(SetUnitProperty, _text, _text, _text, st.booleans(), _text),
    MoveProcesses: st.builds(MoveProcesses, st.integers(), st.integers(), _text, _text, _text),
    SetUnitSetting: st.builds(SetUnitSetting, _text, _text, _text, _text),
    SetResourceLimit: st.builds(SetResourceLimit, st.integers(), st.integers(), _text, st.integers(), st.integers(), _text),
    ManualStep: st.builds(ManualStep, _text, _text, st.lists(st.lists(_text, max_size=2).map(tuple), max_size=2).map(tuple), _text),
}
_fix = st.one_of(*_FIXES.values())


@settings(deadline=None)
@given(
    st.builds(
        Finding, _text, _text, st.sampled_from(Kind), st.sampled_from(Severity), st.sampled_from(State), _text,
        st.dictionaries(_text, st.one_of(_text, st.integers(0, 2**32)), max_size=3), _text, st.integers(0, 2**63),
        st.integers(0, 2**63), st.integers(1, 2**64), st.none() | st.integers(0, 2**32), st.lists(_evidence, max_size=3).map(tuple),
        st.lists(_fix, max_size=3).map(tuple), st.lists(_text, max_size=2).map(tuple), _text, st.integers(0, 2**22),
        st.integers(0, 2**31), st.dictionaries(_text, _text, max_size=2),
    )
)
def test_a_finding_comes_back_from_its_file_as_it_was(finding: Finding) -> None:
    assert finding_from_dict(json.loads(json.dumps(finding_as_dict(finding), ensure_ascii=True))) == finding


def test_the_round_trip_covers_every_type_of_fix() -> None:
    assert set(_FIXES) == set(FIX_TYPES.values())
