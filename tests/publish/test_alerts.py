# SPDX-License-Identifier: Apache-2.0
"""What reaches the journal, with a store in memory and a journal that keeps what it is given."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import pytest

from triaged.model.cgroup import CgroupId
from triaged.model.facts import CgroupLimit, PidsFacts
from triaged.model.fix import SetUnitProperty
from triaged.model.subject import CgroupSubject
from triaged.model.verdict import Problem
from triaged.publish.alerts import Event, JournalPublisher
from triaged.publish.journal import Journal, encode_entry
from triaged.rules.pids import pids_limit_hit
from triaged.store import Store


class KeptJournal(Journal):
    """Keeps entries instead of sending them."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[dict[str, str]] = []
        self.changed = asyncio.Event()

    async def send(self, fields: Mapping[str, str]) -> None:
        self.entries.append(dict(fields))
        self.changed.set()

    async def has_said(self, entries: int) -> None:
        """Waits until there are so many entries."""
        while len(self.entries) < entries:
            self.changed.clear()
            await self.changed.wait()

    def said(self) -> list[tuple[str, str]]:
        return [(Event(entry["MESSAGE_ID"]).name, entry.get("TRIAGED_SUBJECT", "")) for entry in self.entries]


class Rig:
    """A store, a publisher, and a clock that stands still unless told otherwise."""

    def __init__(self, store: Store | None = None) -> None:
        self.now = 0.0
        self.store = store or Store()
        self.journal = KeptJournal()
        self.publisher = JournalPublisher(self.store, self.journal, lambda: self.now)

    def report(self, path: str, occurrences: int = 1) -> str:
        cgroup = CgroupId(path)
        fix = SetUnitProperty("ci.service", "TasksMax", "40")
        return self.store.report(pids_limit_hit, Problem(CgroupSubject(cgroup), "full", (), (fix,), occurrences, pid=7))

    async def settle(self) -> None:
        self.store.flush()
        for _ in range(4000):
            await asyncio.sleep(0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    task = asyncio.create_task(rig.publisher.run())
    yield rig
    task.cancel()


async def test_a_finding_is_an_entry_with_all_fields(rig: Rig) -> None:
    identifier = rig.report("/system.slice/ci.service")
    await rig.settle()
    (entry,) = rig.journal.entries
    assert entry == {
        "MESSAGE": "full",
        "MESSAGE_ID": "1c45fc3fcada48d89ba08440a4c8edc9",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "triaged",
        "TRIAGED_RULE": "cgroup.pids.limit-hit",
        "TRIAGED_FINDING": identifier,
        "TRIAGED_SUBJECT": "/system.slice/ci.service",
        "TRIAGED_SUBJECT_TYPE": "cgroup",
        "TRIAGED_KIND": "hit",
        "TRIAGED_STATE": "open",
        "TRIAGED_COUNT": "1",
        "TRIAGED_FIX": "systemctl set-property --runtime ci.service TasksMax=40",
        "OBJECT_SYSTEMD_UNIT": "ci.service",
        "OBJECT_PID": "7",
    }


async def test_a_unit_of_a_user_manager_is_a_user_unit(rig: Rig) -> None:
    rig.report("/user.slice/user-1000.slice/user@1000.service/app.slice/ci.service")
    await rig.settle()
    (entry,) = rig.journal.entries
    assert entry["OBJECT_SYSTEMD_USER_UNIT"] == "ci.service"
    assert "OBJECT_SYSTEMD_UNIT" not in entry


async def test_repetitions_raise_no_second_alert(rig: Rig) -> None:
    for _ in range(5):
        rig.report("/a")
        await rig.settle()
    assert rig.journal.said() == [("FINDING_OPENED", "/a")]


async def test_an_end_is_told_and_a_finding_that_opens_again_is_an_alert_again(rig: Rig) -> None:
    rig.report("/a")
    await rig.settle()
    rig.store.resolve("cgroup.pids.limit-hit", CgroupSubject(CgroupId("/a")), "looked again")
    await rig.settle()
    rig.report("/a")
    await rig.settle()
    assert [name for name, _ in rig.journal.said()] == ["FINDING_OPENED", "FINDING_CLOSED", "FINDING_OPENED"]
    assert rig.journal.entries[1]["MESSAGE"] == "cgroup.pids.limit-hit of /a is resolved: looked again"


async def test_what_was_open_before_a_restart_is_not_told_again() -> None:
    store = Store()
    Rig(store).report("/a")
    store.flush()
    again = Rig(store)
    task = asyncio.create_task(again.publisher.run())
    again.report("/a", 5)
    again.report("/b")
    await again.settle()
    task.cancel()
    assert again.journal.said() == [("FINDING_OPENED", "/b")]


async def test_an_entry_that_cannot_be_made_is_counted_and_the_next_one_is(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = rig.journal.send

    async def send(fields: Mapping[str, str]) -> None:
        encode_entry(fields)
        await real(fields)

    monkeypatch.setattr(rig.journal, "send", send)
    rig.report("/a")
    # Half a surrogate pair: no name of the kernel's has it, but a state file may.
    rig.store._current = {key: replace(value, summary="\ud800") for key, value in rig.store._current.items()}
    rig.report("/b")
    await rig.settle()
    assert rig.journal.said() == [("FINDING_OPENED", "/b")]
    assert rig.publisher.failures == 1
    assert "a journal entry could not be made" in caplog.text


async def test_a_storm_is_bounded_and_its_size_is_told(rig: Rig) -> None:
    for number in range(300):
        rig.report(f"/{number}")
    await rig.settle()
    assert len(rig.journal.entries) == 50
    assert rig.publisher.suppressed == 250
    rig.now += 10
    rig.report("/later")
    await rig.settle()
    assert rig.journal.said()[50:] == [("ALERTS_SUPPRESSED", ""), ("FINDING_OPENED", "/later")]
    assert rig.journal.entries[50]["TRIAGED_COUNT"] == "250"


async def test_the_size_of_a_storm_is_told_when_nothing_follows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triaged.publish.alerts._QUIET_S", 0.01)
    for number in range(60):
        rig.report(f"/{number}")
    await rig.settle()
    rig.now += 10
    await asyncio.wait_for(rig.journal.has_said(51), 5)
    assert rig.journal.entries[50]["MESSAGE"] == "10 entries about findings were left out of the journal, too many at once"


async def test_lost_changes_are_made_up_for() -> None:
    rig = Rig()
    rig.report("/ended")
    rig.store.flush()
    for number in range(3000):  # nobody reads: the queue overflows
        rig.report("/busy", number + 1)
        rig.store.flush()
    rig.store.resolve("cgroup.pids.limit-hit", CgroupSubject(CgroupId("/ended")), "well")
    rig.store.flush()
    task = asyncio.create_task(rig.publisher.run())
    await rig.settle()
    task.cancel()
    assert rig.journal.said() == [("FINDING_OPENED", "/busy")]  # the other one came and went unseen


async def test_a_source_that_sees_less_is_a_warning_and_recovery_is_not(rig: Rig) -> None:
    await rig.publisher.source_changed("audit", "unavailable", "CAP_AUDIT_READ is missing", "grant it", True)
    await rig.publisher.source_changed("audit", "active", "", "", False)
    worse, better = rig.journal.entries
    assert worse["MESSAGE"] == "source audit is unavailable: CAP_AUDIT_READ is missing; grant it"
    assert (worse["PRIORITY"], better["PRIORITY"]) == ("4", "6")


async def test_a_fix_names_the_caller(rig: Rig) -> None:
    identifier = rig.report("/a")
    await rig.settle()
    finding = rig.store.find(identifier)
    assert finding is not None
    await rig.publisher.fix_changed(Event.FIX_APPLIED, finding, finding.fixes[0].key, "ann", "TasksMax of ci.service is 40 now")
    entry = rig.journal.entries[-1]
    assert entry["TRIAGED_CALLER"] == "ann"
    assert entry["TRIAGED_FIX"] == "set-unit-property:ci.service:TasksMax"


def test_the_fields_of_a_limit_hit_come_from_its_facts() -> None:
    cgroup = CgroupId("/system.slice/ci.service")
    full = CgroupLimit(cgroup, "/sys/fs/cgroup/system.slice/ci.service/pids.max", 20, 20, "ci.service")
    verdict = pids_limit_hit.judge(PidsFacts(full.cgroup, 1, 1, full))
    assert isinstance(verdict, Problem)
    assert verdict.subject.as_dict()["unit"] == "ci.service"
