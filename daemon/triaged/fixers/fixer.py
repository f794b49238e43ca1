# SPDX-License-Identifier: Apache-2.0
"""What a fixer is, and what it says: previews before, outcomes after.

`Fixer` is the one protocol that the rest of triaged sees. `local.LocalFixer` works in this process (root);
`bus.helper_client.HelperFixer` asks triaged-helper to do the same.
"""
from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from triaged.fixers.part import Part
from triaged.model.fix import Fix


class RecordState(str, Enum):
    """How far a fix has come. SAVED and UNDOING are seen only while it happens, or after a crash until `recover`.

    applied: it holds, but was not verified; verified: it holds, and the failing thing now works; undone: the original is back;
    failed: nothing is left of it; superseded: somebody else has the value now; ended: the boot or process that it was for is over.
    """

    SAVED = "saved"
    APPLIED = "applied"
    VERIFIED = "verified"
    UNDOING = "undoing"
    UNDONE = "undone"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    ENDED = "ended"

    @property
    def is_open(self) -> bool:
        """Whether something on the host may still be ours to undo."""
        return self in (RecordState.SAVED, RecordState.APPLIED, RecordState.VERIFIED, RecordState.UNDOING)


@dataclass(frozen=True)
class Caller:
    """On whose behalf: the user, and the unique bus name ('' where no bus was involved)."""

    uid: int
    bus_name: str = ""


@dataclass(frozen=True)
class Preview:
    """Exactly what ApplyFix would do. `old` is the present value, `new` the one to be; `files` those that change, `diff` how.

    `obstacle`: why applying would fail now ('' if nothing stands in the way). `verification`: what would be done again, or why
    nothing can be.
    """

    key: str
    type: str
    title: str
    target: str
    old: str
    new: str
    files: tuple[str, ...]
    diff: str
    lasting: bool
    undoable: bool
    risk: str
    commands: tuple[tuple[str, ...], ...]
    verification: str
    notes: tuple[str, ...] = ()
    obstacle: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and D-Bus."""
        out = dict(self.__dict__)
        out["files"], out["notes"] = list(self.files), list(self.notes)
        out["commands"] = [list(argv) for argv in self.commands]
        return out


@dataclass(frozen=True)
class Outcome:
    """What was done. `state` is the record's; `verification` says what was done again and went well, or why nothing was.

    Times are µs since the epoch.
    """

    record: str
    finding: str
    key: str
    title: str
    state: RecordState
    message: str
    old: str
    new: str
    verification: str
    caller: Caller
    time_usec: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and D-Bus."""
        out = dict(self.__dict__)
        out["state"] = self.state.value
        del out["caller"]
        out["caller_uid"] = self.caller.uid
        out["caller_bus_name"] = self.caller.bus_name
        return out


class Fixer(Protocol):
    """Previews, applies and undoes fixes. Every method may raise a FixError; nothing is changed where one is raised,
    but for FixFailed, whose text says what state the host is in."""

    async def preview(self, fix: Fix, uid: int | None = None) -> Preview:
        """What applying would do. `uid`: the user as whom the failing thing would be done again (None: nobody's, 65534)."""

    async def apply(self, finding: str, fix: Fix, caller: Caller, uid: int | None = None) -> Outcome:
        """Applies and verifies. `finding` is only written down."""

    async def undo(self, finding: str, key: str, caller: Caller) -> Outcome:
        """Puts back what the fix `key` (''; the only one) of the finding changed, as far as nobody has changed it since."""

    async def outcomes(self) -> tuple[Outcome, ...]:
        """What is written down: every fix that holds, and the last ones that do not; oldest first."""

    async def close(self) -> None:
        """Waits for what is under way."""


class DeferredFixer:
    """See `Fixer`. One that `make` gives when it is first needed: what makes repairs is a megabyte that most runs never use."""

    def __init__(self, make: Callable[[], Awaitable[Fixer]]) -> None:
        self._make = make
        self._one_at_a_time = asyncio.Lock()
        self._fixer: Fixer | None = None

    async def made(self) -> Fixer:
        """The fixer itself. Raises: what `make` raises; then it is tried again the next time."""
        async with self._one_at_a_time:
            if self._fixer is None:
                self._fixer = await self._make()
            return self._fixer

    async def preview(self, fix: Fix, uid: int | None = None) -> Preview:
        """See `Fixer.preview`."""
        return await (await self.made()).preview(fix, uid)

    async def apply(self, finding: str, fix: Fix, caller: Caller, uid: int | None = None) -> Outcome:
        """See `Fixer.apply`."""
        return await (await self.made()).apply(finding, fix, caller, uid)

    async def undo(self, finding: str, key: str, caller: Caller) -> Outcome:
        """See `Fixer.undo`."""
        return await (await self.made()).undo(finding, key, caller)

    async def outcomes(self) -> tuple[Outcome, ...]:
        """See `Fixer.outcomes`."""
        return await (await self.made()).outcomes()

    async def close(self) -> None:
        """See `Fixer.close`."""
        if self._fixer is not None:
            await self._fixer.close()


@dataclass(frozen=True)
class Probe:
    """The failing thing, to be done again in a process of its own: `name` and `arguments` of `probes.py`.

    `text` says it for people. `compares`: it is done before the change too, because only the difference shows something.
    `closes`: the fix is for the opposite, what works now is to be refused.
    """

    name: str
    text: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    compares: bool = False
    closes: bool = False

    @property
    def plan(self) -> str:
        """What will be done, for people."""
        return f"{self.text}, and see it refused" if self.closes else self.text


@dataclass(frozen=True)
class Unverifiable:
    """Why the failing thing is not done again."""

    why: str


K = TypeVar("K", bound=Any)


class TypeFixer(ABC, Generic[K]):
    """What is special about one type of fix."""

    kind: type[K]
    value_part = 0  # which of `parts` holds the value that a finding sees

    @abstractmethod
    def check(self, fix: K) -> None:
        """Raises FixRefused unless the fix is on the closed list: type, names, ranges. No I/O."""

    @abstractmethod
    def parts(self, fix: K) -> tuple[Part, ...]:
        """The places that it changes, in the order of writing."""

    @abstractmethod
    def seen(self, fix: K) -> str:
        """`fix.seen` as the value part writes it; '' if the finding did not say."""

    @abstractmethod
    def risk(self, fix: K) -> str:
        """What may go wrong, for people."""

    def is_as_seen(self, fix: K, present: str | None) -> bool:
        """Whether the present value is the one that the finding saw (or the finding did not say)."""
        return not self.seen(fix) or present == self.seen(fix)

    async def judge(self, fix: K, presents: tuple[str | None, ...]) -> None:
        """Raises FixRefused where the present values forbid the change (lowering a limit)."""

    async def notes(self, fix: K, present: str | None) -> tuple[str, ...]:
        """What else a person should know before pressing the button."""
        return ()

    async def probe(self, fix: K, present: str | None, uid: int | None) -> Probe | Unverifiable:
        """The failing thing that the fix is for. `present` is the value before the change."""
        return Unverifiable("there is no test for this kind of fix")
