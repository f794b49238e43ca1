# SPDX-License-Identifier: Apache-2.0
"""One place on the host that a fix changes: a kernel file, a line of a drop-in, a property of a unit, a limit of a process.

A fix is a sequence of parts. Saving, applying, reading back, undoing and finding the truth after a crash
are the same for all of them and stand in `local.py`; a part only reads, writes and puts back its one value.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Original:
    """What a part held before the change: `value` (None: nothing), and what else the part needs to put it back (JSON values)."""

    value: str | None
    more: Mapping[str, Any] = field(default_factory=dict)


class Part(ABC):
    """A place that holds one value. `name` is its path or title and does not change; `wanted` is what the fix puts there.

    All methods may raise KernelError, BusError or FixError; none blocks the event loop.
    """

    name: str
    wanted: str
    file: str = ""  # the file that the change ends up in, for the preview; "" if there is none

    @abstractmethod
    async def read(self) -> str | None:
        """The present value, written as `wanted` is; None where there is none. Raises Gone if the place itself went away."""

    @abstractmethod
    async def write(self) -> None:
        """Puts `wanted` there."""

    async def save(self) -> Original:
        """The present value with all that `restore` will need."""
        return Original(await self.read())

    @abstractmethod
    async def restore(self, original: Original) -> None:
        """Puts the original back. Called only while the place still holds something of ours."""

    def holds(self, present: str | None) -> bool:
        """Whether the place, as it was read, still holds something that we wrote."""
        return present == self.wanted

    async def leaves(self, original: Original) -> bool:
        """Whether something of ours lies about although the value is the original one: a drop-in that another one beats."""
        return False

    async def holder(self) -> str:
        """Who the present value comes from, as far as it can be told; a clause, or ''."""
        return ""

    async def tidy(self) -> None:  # noqa: B027
        """Removes what a killed process may have left beside the place."""

    async def diff(self) -> str:
        """A unified diff of `file` as the change would make it; '' where no file changes."""
        return ""
