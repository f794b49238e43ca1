# SPDX-License-Identifier: Apache-2.0
"""What is asked of systemd about facts. Against a real one: tests/vm."""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from triaged.bus.unit_witness import UnitWitness
from triaged.errors import BusError
from triaged.model.cgroup import CgroupId
from triaged.model.facts import Fact, OomFacts, PlacementFacts, SubjectGone
from triaged.model.process import ProcessIdentity
from triaged.model.requirement import PlacementRequirement
from triaged.model.way import Step, Way

WANTED = PlacementRequirement("p", ("go-test",), ("default.slice",), why="w")
LOST = OomFacts(
    CgroupId("/system.slice"), 1, None, is_place_known=False,
    candidates=("/system.slice/a.scope", "/system.slice/b.scope", "/system.slice/made-by-hand"),
)


class Systemd:
    """Answers GetUnit and GetAll from a table of units; a unit that is not in it is not loaded."""

    def __init__(self, units: Mapping[str, Mapping[str, object]]) -> None:
        self._units = units
        self.asked: list[str] = []
        self.is_silent = False

    async def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", values: Sequence[Any] = (), *,
        timeout_s: float = 25.0,
    ) -> list[Any]:
        if self.is_silent:
            raise BusError("org.freedesktop.DBus.Error.NoReply", "no answer")
        if member == "GetUnit":
            self.asked.append(values[0])
            if values[0] not in self._units:
                raise BusError("org.freedesktop.systemd1.NoSuchUnit", f"Unit {values[0]} not loaded.")
            return [f"/unit/{values[0]}"]
        return [self._units[path.rsplit("/", 1)[-1]]]


@contextlib.asynccontextmanager
async def witness(systemd: Systemd | None) -> AsyncIterator[tuple[UnitWitness, list[Fact]]]:
    taken: list[Fact] = []
    one = UnitWitness(lambda: systemd, taken.append)  # type: ignore[arg-type, return-value]
    task = asyncio.create_task(one.run())
    yield one, taken
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def placement(cgroup: str = "/default.slice/x") -> PlacementFacts:
    step = Step(7, "go", "/usr/bin/go", cgroup)
    return PlacementFacts(ProcessIdentity(7, cgroups={"": cgroup}), WANTED, way=Way((step,)))


@pytest.mark.parametrize(("unit", "words"), [
    (None, "default.slice is no loaded unit: its cgroup was made by hand or by a runner, or is a leftover"),
    (
        {"LoadState": "loaded", "ActiveState": "active", "FragmentPath": "/etc/systemd/system/default.slice", "DropInPaths": []},
        "default.slice is loaded and active, by /etc/systemd/system/default.slice",
    ),
    (
        {"LoadState": "loaded", "ActiveState": "active", "FragmentPath": "", "DropInPaths": ["/run/x.conf"]},
        "default.slice is loaded and active, by /run/x.conf",
    ),
    (
        {"LoadState": "loaded", "ActiveState": "active", "FragmentPath": "", "SliceOf": ["run-1.scope"]},
        "default.slice is loaded and active, without a file: only because of run-1.scope, which names it",
    ),
    (
        {"LoadState": "loaded", "ActiveState": "inactive", "FragmentPath": "", "SliceOf": []},
        "default.slice is loaded and inactive, without a file: nothing names it any more",
    ),
    (
        {"LoadState": "loaded", "ActiveState": "active", "FragmentPath": "/run/systemd/transient/default.slice", "Transient": True},
        "default.slice is loaded and active, transient: made over D-Bus (/run/systemd/transient/default.slice)",
    ),
])  # fmt: skip
async def test_a_slice_is_told_as_systemd_has_it(unit: Mapping[str, object] | None, words: str) -> None:
    async with witness(Systemd({"default.slice": unit} if unit is not None else {})) as (one, taken):
        one.take(placement())
        assert len(taken) == 1, "told at once"
        await settle()
    assert [fact.slice_unit for fact in taken if isinstance(fact, PlacementFacts)] == ["", words]


async def test_a_user_s_own_slice_is_not_asked_for_on_the_system_bus() -> None:
    systemd = Systemd({})
    async with witness(systemd) as (one, taken):
        one.take(placement("/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope"))
        await settle()
    assert systemd.asked == []
    assert len(taken) == 1


async def test_a_kill_is_placed_in_the_unit_that_systemd_says_was_ended_by_one() -> None:
    systemd = Systemd({"a.scope": {"Result": "success"}, "b.scope": {"Result": "oom-kill", "MemoryMax": 8 << 20}})
    async with witness(systemd) as (one, taken):
        one.take(LOST)
        assert taken == []
        await settle()
    (fact,) = taken
    assert isinstance(fact, OomFacts)
    assert (fact.cgroup.path, fact.kills, fact.is_place_known) == ("/system.slice/b.scope", 1, True)
    assert fact.unit_result == "Result=oom-kill of b.scope, MemoryMax=8388608"
    assert systemd.asked == ["a.scope", "b.scope"]


async def test_as_many_units_as_kills_are_one_each_and_other_numbers_decide_nothing() -> None:
    systemd = Systemd({"a.scope": {"Result": "oom-kill"}, "b.scope": {"Result": "oom-kill"}})
    two = OomFacts(LOST.cgroup, 2, None, is_place_known=False, candidates=LOST.candidates)
    async with witness(systemd) as (one, taken):
        one.take(two)
        one.take(LOST)
        await settle()
    assert [(fact.cgroup.path, fact.kills) for fact in taken if isinstance(fact, OomFacts)] == [
        ("/system.slice/a.scope", 1), ("/system.slice/b.scope", 1), ("/system.slice", 1)
    ]


async def test_where_systemd_does_not_answer_the_kill_is_told_as_it_was() -> None:
    systemd = Systemd({})
    systemd.is_silent = True
    async with witness(systemd) as (one, taken):
        one.take(LOST)
        one.take(placement())
        await settle()
    assert taken[0] == placement()
    assert taken[1:] == [LOST]


async def test_without_a_system_bus_everything_passes_at_once() -> None:
    async with witness(None) as (one, taken):
        for fact in (LOST, placement(), SubjectGone()):
            one.take(fact)
        assert len(taken) == 3


async def test_a_storm_is_passed_on_unasked_and_counted() -> None:
    taken: list[Fact] = []
    one = UnitWitness(lambda: Systemd({}), taken.append)  # type: ignore[arg-type, return-value]
    for _ in range(300):
        one.take(LOST)
    assert (len(taken), one.dropped) == (44, 44)


async def test_an_answer_that_makes_no_sense_loses_no_kill(caplog: pytest.LogCaptureFixture) -> None:
    systemd = Systemd({"a.scope": "no properties"})  # type: ignore[dict-item]

    async def nonsense(*words: object, **more: object) -> list[Any]:
        return []

    systemd.call = nonsense  # type: ignore[assignment, method-assign]
    async with witness(systemd) as (one, taken):
        one.take(LOST)
        one.take(placement())
        await settle()
    assert taken == [placement(), LOST]
    assert "going on without it" in caplog.text
