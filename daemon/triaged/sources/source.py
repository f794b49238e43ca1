# SPDX-License-Identifier: Apache-2.0
"""What a source is: one kernel interface, watched, yielding facts."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar

from triaged.model.facts import Fact


class SourceState(str, Enum):
    """active: sees all that it should; degraded: sees less, `reason` says what is lost; unavailable: sees nothing."""

    STARTING = "starting"
    ACTIVE = "active"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


def numberless(reason: str) -> str:
    """The reason without its numbers: the same cause of more processes, or cgroups, than before is no news."""
    return "".join(character for character in reason if not character.isdigit())


@dataclass(frozen=True)
class SourceStatus:
    """How a source stands. `reason` says why it is not active and what that costs, `remedy` how to get it.

    `counters` are what it has seen and lost since it started (events, dropped, rescans, malformed, restarts).
    """

    name: str
    state: SourceState
    reason: str = ""
    remedy: str = ""
    counters: dict[str, int] = field(default_factory=dict)


class Source(ABC):
    """One kernel interface. `facts` watches it until cancelled; `snapshot` says what can be said at once, without waiting.

    A source sets its status with `set_status` as soon as it knows it, and whenever it changes.
    """

    name: ClassVar[str]
    # Whether a whole snapshot() costs next to nothing, so that whoever asks for a fresh look may wait for it.
    is_cheap_to_read: ClassVar[bool] = False

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self._status = SourceStatus(self.name, SourceState.STARTING)
        self.on_status: Callable[[SourceStatus], None] | None = None

    @property
    def status(self) -> SourceStatus:
        """The status with the counters as they are now."""
        return replace(self._status, counters=dict(self.counters))

    def set_status(self, state: SourceState, reason: str = "", remedy: str = "") -> None:
        """Takes the new status and tells whoever listens, if it is another one."""
        new = SourceStatus(self.name, state, reason, remedy)
        changed = new != self._status
        self._status = new
        if changed and self.on_status is not None:
            self.on_status(self.status)

    def count(self, name: str, by: int = 1) -> None:
        """Counts an event of the source."""
        self.counters[name] = self.counters.get(name, 0) + by

    @abstractmethod
    def facts(self) -> AsyncIterator[Fact]:
        """Watches the interface and yields facts until cancelled. Ends at once where the interface is unavailable."""

    @abstractmethod
    def snapshot(self) -> Iterator[Fact]:
        """What the interface says now. Blocking; for `triagectl scan`. Sets the status as `facts` does."""

    def refresh(self) -> None:  # noqa: B027
        """Asks for another look soon (SIGHUP, a D-Bus request, after a related event). Nothing by default."""
