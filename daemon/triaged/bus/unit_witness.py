# SPDX-License-Identifier: Apache-2.0
"""What systemd says of the units that facts are about: whether a slice is one of its units, and which scopes an OOM kill ended.

Facts that shape this module (systemd 252 and 257):
- GetUnit answers NoSuchUnit for a cgroup that was made by hand, and for a leftover whose unit was unloaded; LoadUnit would load a
  unit of any name and so make the answer.
- A unit that only others name is loaded, with neither FragmentPath nor Transient; SliceOf says which units lie in it.
- On version 2 a scope or service with a killed process has the Result "oom-kill" by the time its cgroup is removed, and stays
  loaded as failed, unless it is collected (systemd-run --collect).
"""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from triaged.bus.connection import Connection
from triaged.bus.seam import plain
from triaged.bus.systemd1 import MANAGER, PROPERTIES, SYSTEMD, SYSTEMD_PATH, UNIT
from triaged.errors import BusError
from triaged.model.cgroup import CgroupId, is_user_manager, own_unit_of, slice_of
from triaged.model.facts import Fact, OomFacts, PlacementFacts

log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 2.0
_QUEUE_CAP = 256
_UNITS_ASKED = 64
_NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"
_NAMED_BY_SHOWN = 4
_INFINITY = (1 << 64) - 1
OOM_RESULT = "oom-kill"


class UnitWitness:
    """Passes facts on, some of them with what systemd said. `link` gives the connection to the system bus, None without one.

    Kills whose place is not known wait for the answer, two seconds at the most; everything else is passed on at once, a
    misplaced process once more when the answer is there. `dropped` counts facts that nobody was asked about.
    """

    def __init__(self, link: Callable[[], Connection | None], take: Callable[[Fact], None]) -> None:
        self._link = link
        self._take = take
        self._queue: asyncio.Queue[Fact] = asyncio.Queue(_QUEUE_CAP)
        self.dropped = 0

    def take(self, fact: Fact) -> None:
        """Takes one fact. Raises nothing."""
        waits = isinstance(fact, OomFacts) and not fact.is_place_known and bool(fact.candidates) and self._link() is not None
        if not waits:
            self._take(fact)
        if waits or (isinstance(fact, PlacementFacts) and fact.way is not None and self._link() is not None):
            try:
                self._queue.put_nowait(fact)
            except asyncio.QueueFull:
                self.dropped += 1
                if waits:
                    self._take(fact)

    async def run(self) -> None:
        """Asks about what was taken, one after the other, until cancelled."""
        while True:
            fact = await self._queue.get()
            try:
                answers = await self._asked(fact)
            except Exception:  # the border of a task: whatever comes back, the facts go on
                log.exception("what systemd says of a unit could not be used, going on without it")
                answers = [fact] if isinstance(fact, OomFacts) else []
            for answer in answers:
                self._take(answer)

    async def _asked(self, fact: Fact) -> Sequence[Fact]:
        """What is to be told now that systemd was asked."""
        if isinstance(fact, OomFacts):
            return await self._placed(fact)
        if isinstance(fact, PlacementFacts):
            words = await self._slice(fact.process.cgroup)
            return [replace(fact, slice_unit=words)] if words else []
        return []

    async def _placed(self, fact: OomFacts) -> list[OomFacts]:
        """The fact, or one for each unit that systemd says was ended by as many kills."""
        ended: list[tuple[str, str]] = []
        for path in fact.candidates[:_UNITS_ASKED]:
            unit = own_unit_of(path)
            if not unit or is_user_manager(path):
                continue
            try:
                properties = await self._properties(unit, f"{SYSTEMD}.{unit.rsplit('.', 1)[1].capitalize()}")
            except BusError:
                continue  # collected meanwhile, or systemd does not answer
            if properties.get("Result") == OOM_RESULT:
                limit = properties.get("MemoryMax")
                own = "" if limit in (None, _INFINITY) else f", MemoryMax={limit}"
                ended.append((path, f"Result={OOM_RESULT} of {unit}{own}"))
        if len(ended) != 1 and len(ended) != fact.kills:
            return [fact]
        kills = fact.kills if len(ended) == 1 else 1
        return [
            replace(
                fact, cgroup=CgroupId(path, 0, fact.cgroup.hierarchy), kills=kills, is_place_known=True, candidates=(),
                unit_result=words,
            )
            for path, words in ended
        ]

    async def _slice(self, cgroup: str) -> str:
        name = slice_of(cgroup)
        if is_user_manager(cgroup):
            return ""  # its own systemd knows, which is on another bus
        try:
            unit = await self._properties(name, UNIT)
        except BusError as error:
            if error.name != _NO_SUCH_UNIT:
                return ""
            return f"{name} is no loaded unit: its cgroup was made by hand or by a runner, or is a leftover"
        return f"{name} is {unit.get('LoadState')} and {unit.get('ActiveState')}, {_made_by(unit)}"

    async def _properties(self, unit: str, interface: str) -> Mapping[str, object]:
        """The properties of a loaded unit. Raises: BusError (NoSuchUnit where it is not loaded)."""
        link = self._link()
        if link is None:
            raise BusError("", "the connection to the system bus is lost", "try again")
        (path,) = await link.call(SYSTEMD, SYSTEMD_PATH, MANAGER, "GetUnit", "s", [unit], timeout_s=_CALL_TIMEOUT_S)
        (values,) = await link.call(SYSTEMD, str(path), PROPERTIES, "GetAll", "s", [interface], timeout_s=_CALL_TIMEOUT_S)
        found = plain(values)
        return found if isinstance(found, dict) else {}


def _made_by(unit: Mapping[str, object]) -> str:
    files = [path for path in (unit.get("FragmentPath"), *_strings(unit.get("DropInPaths"))) if path]
    if unit.get("Transient"):
        return "transient: made over D-Bus" + (f" ({files[0]})" if files else "")
    if files:
        return "by " + ", ".join(map(str, files))
    names = list(_strings(unit.get("SliceOf")))
    more = f" and {len(names) - _NAMED_BY_SHOWN} more" if len(names) > _NAMED_BY_SHOWN else ""
    if names:
        return f"without a file: only because of {', '.join(names[:_NAMED_BY_SHOWN])}{more}, which names it"
    return "without a file: nothing names it any more"


def _strings(value: object) -> Iterator[str]:
    yield from (each for each in value if isinstance(each, str)) if isinstance(value, list) else ()
