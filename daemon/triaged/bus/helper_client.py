# SPDX-License-Identifier: Apache-2.0
"""Fixes through triaged-helper, which the bus starts when it is called."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triaged.bus.connection import Connection
from triaged.bus.fix_values import fix_error, fix_to_bus, outcome_from_bus, preview_from_bus
from triaged.bus.helper_service import HELPER, HELPER_NAME, HELPER_PATH
from triaged.bus.seam import Variant, plain
from triaged.errors import BusError
from triaged.fixers.fixer import Caller, Outcome, Preview
from triaged.model.fix import Fix

# Two probes of at most 35 s each, and a systemd that reloads.
APPLY_TIMEOUT_S = 115.0
REMEDY = "systemctl status triaged-helper"


class HelperFixer:
    """See `fixers.fixer.Fixer`. `link` gives the connection to the system bus (None: there is none now)."""

    def __init__(self, link: Callable[[], Connection | None]) -> None:
        self._link = link

    async def preview(self, fix: Fix, uid: int | None = None) -> Preview:
        """See `Fixer.preview`. Raises: FixError, BusError."""
        return preview_from_bus((await self._call("Preview", "a{sv}a{sv}", fix_to_bus(fix), _options(uid)))[0])

    async def apply(self, finding: str, fix: Fix, caller: Caller, uid: int | None = None) -> Outcome:
        """See `Fixer.apply`. Raises: FixError, BusError."""
        return outcome_from_bus((await self._call("Apply", "sa{sv}a{sv}", finding, fix_to_bus(fix), _options(uid, caller)))[0])

    async def undo(self, finding: str, key: str, caller: Caller) -> Outcome:
        """See `Fixer.undo`. Raises: FixError, BusError."""
        return outcome_from_bus((await self._call("Undo", "ssa{sv}", finding, key, _options(None, caller)))[0])

    async def outcomes(self) -> tuple[Outcome, ...]:
        """See `Fixer.outcomes`. Raises: BusError."""
        return tuple(outcome_from_bus(plain(row)) for row in (await self._call("ListOutcomes"))[0])

    async def close(self) -> None:
        """Nothing: what is under way goes on in triaged-helper."""

    async def _call(self, member: str, signature: str = "", *values: Any) -> list[Any]:
        link = self._link()
        if link is None:
            raise BusError("", "the connection to the system bus is lost", "try again")
        try:
            return await link.call(HELPER_NAME, HELPER_PATH, HELPER, member, signature, values, timeout_s=APPLY_TIMEOUT_S)
        except BusError as error:
            if error.name.startswith(HELPER + "."):
                raise fix_error(error) from error
            if error.name.rsplit(".", 1)[-1] in ("NoReply", "Disconnected"):
                text = f"triaged-helper ended or did not answer ({error}); how far it came is told by the next look"
                raise BusError(error.name, text, REMEDY) from error
            raise BusError(error.name, f"triaged-helper: {error}", REMEDY) from error


def _options(uid: int | None, caller: Caller | None = None) -> dict[str, Any]:
    out = {} if uid is None else {"uid": Variant("u", uid)}
    if caller is not None:
        out["caller_uid"] = Variant("u", caller.uid if caller.uid >= 0 else 0xFFFFFFFF)
        out["caller_bus_name"] = Variant("s", caller.bus_name)
    return out
