# SPDX-License-Identifier: Apache-2.0
"""Fixes, and dumps of seccomp filters, through triaged-helper, which the bus starts when it is called."""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from triaged.bus.connection import Connection
from triaged.bus.filter_values import dump_from_bus, kernel_error
from triaged.bus.fix_values import fix_error, fix_to_bus, outcome_from_bus, preview_from_bus
from triaged.bus.helper_service import HELPER, HELPER_NAME, HELPER_PATH
from triaged.bus.seam import Variant, plain
from triaged.bus.traces import error_of_trace
from triaged.errors import BusError, FixFailed, TriagedError
from triaged.fixers.fixer import Caller, Outcome, Preview, RecordState
from triaged.model.filters import FilterDump
from triaged.model.fix import Fix

# Two probes of at most 35 s each, and a systemd that reloads.
APPLY_TIMEOUT_S = 115.0
DUMP_TIMEOUT_S = 40.0  # the helper may have to be started first
REMEDY = "systemctl status triaged-helper"
# What is answered where the other side is gone, or took too long: it may have done what it was asked for.
_LOST = frozenset({"NoReply", "Disconnected"})


class HelperFixer:
    """See `fixers.fixer.Fixer`. `link` gives the connection to the system bus (None: there is none now)."""

    def __init__(self, link: Callable[[], Connection | None]) -> None:
        self._link = link

    async def preview(self, fix: Fix, uid: int | None = None) -> Preview:
        """See `Fixer.preview`. Raises: FixError, BusError."""
        return preview_from_bus((await self._call("Preview", "a{sv}a{sv}", fix_to_bus(fix), _options(uid)))[0])

    async def apply(self, finding: str, fix: Fix, caller: Caller, uid: int | None = None) -> Outcome:
        """See `Fixer.apply`. Raises: FixError, BusError."""
        try:
            return outcome_from_bus((await self._call("Apply", "sa{sv}a{sv}", finding, fix_to_bus(fix), _options(uid, caller)))[0])
        except BusError as error:
            return await self._truth(finding, fix.key, error, (RecordState.APPLIED, RecordState.VERIFIED))

    async def undo(self, finding: str, key: str, caller: Caller) -> Outcome:
        """See `Fixer.undo`. Raises: FixError, BusError."""
        try:
            return outcome_from_bus((await self._call("Undo", "ssa{sv}", finding, key, _options(None, caller)))[0])
        except BusError as error:
            return await self._truth(finding, key, error, (RecordState.UNDONE,))

    async def _truth(self, finding: str, key: str, lost: BusError, done: Collection[RecordState]) -> Outcome:
        """What became of a fix whose answer was lost: the next helper looks at the host before it answers.

        Raises: FixFailed where it was not `done`; `lost` where it is the answer itself, before which nothing was changed.
        """
        if lost.name.rsplit(".", 1)[-1] not in _LOST:
            raise lost
        try:
            found = [each for each in await self.outcomes() if each.finding == finding and key in ("", each.key)]
        except TriagedError as error:
            raise FixFailed(f"{lost}, nor is it known what became of it ({error})", "look at ListFixes later") from error
        if not found:
            raise FixFailed(f"{lost}; nothing was changed: it had not begun") from lost
        outcome = found[-1]
        is_at_rest = bool(outcome.verification) or outcome.state is not RecordState.APPLIED
        if outcome.state in done and is_at_rest:
            return outcome
        state = f"{outcome.state.value}, {outcome.message}" if is_at_rest else "not at its end yet"
        raise FixFailed(f"{outcome.title}: {lost}; it is {state}", REMEDY) from lost

    async def outcomes(self) -> tuple[Outcome, ...]:
        """See `Fixer.outcomes`. Raises: BusError."""
        return tuple(outcome_from_bus(plain(row)) for row in (await self._call("ListOutcomes"))[0])

    async def read_parameters(self, pid: int, start_ticks: int, parameters: Sequence[str]) -> Mapping[str, str]:
        """See `fixers.network_namespace.read_parameters`. Raises: FixError, BusError."""
        return dict((await self._call("ReadParameters", "utas", pid, start_ticks, list(parameters)))[0])

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
            if error.name.rsplit(".", 1)[-1] in _LOST:
                raise BusError(error.name, f"triaged-helper ended or did not answer ({error})", REMEDY) from error
            raise BusError(error.name, f"triaged-helper: {error}", REMEDY) from error


class HelperFilters:
    """Reads the seccomp filters of processes through triaged-helper. `link` as of `HelperFixer`."""

    def __init__(self, link: Callable[[], Connection | None]) -> None:
        self._link = link

    async def read(self, pid: int, start_ticks: int) -> FilterDump:
        """The filters of exactly that process, newest first. Raises: Gone, KernelError, BusError."""
        link = self._link()
        if link is None:
            raise BusError("", "the connection to the system bus is lost", "try again")
        try:
            values = await link.call(
                HELPER_NAME, HELPER_PATH, HELPER, "DumpFilters", "ut", (pid, start_ticks), timeout_s=DUMP_TIMEOUT_S
            )
        except BusError as error:
            known = kernel_error(pid, error)
            raise known if known is not error else BusError(error.name, f"triaged-helper: {error}", REMEDY) from error
        return dump_from_bus(pid, values[0], values[1])

    def obstacle(self) -> tuple[str, str]:
        """Nothing: whether the helper can be had shows when it is asked, not before."""
        return "", ""


class HelperTraces:
    """Starts traces through triaged-helper. `link` as of `HelperFixer`."""

    def __init__(self, link: Callable[[], Connection | None]) -> None:
        self._link = link

    async def start(self, pid: int, start_ticks: int, uid: int) -> str:
        """The socket of a trace of exactly that process for its user. Raises: Gone, KernelError, BusError."""
        link = self._link()
        if link is None:
            raise BusError("", "the connection to the system bus is lost", "try again")
        try:
            values = await link.call(
                HELPER_NAME, HELPER_PATH, HELPER, "StartTrace", "utu", (pid, start_ticks, uid), timeout_s=DUMP_TIMEOUT_S
            )
        except BusError as error:
            known = error_of_trace(pid, error)
            raise known if known is not error else BusError(error.name, f"triaged-helper: {error}", REMEDY) from error
        return str(values[0])


def _options(uid: int | None, caller: Caller | None = None) -> dict[str, Any]:
    out = {} if uid is None else {"uid": Variant("u", uid)}
    if caller is not None:
        out["caller_uid"] = Variant("u", caller.uid if caller.uid >= 0 else 0xFFFFFFFF)
        out["caller_bus_name"] = Variant("s", caller.bus_name)
    return out
