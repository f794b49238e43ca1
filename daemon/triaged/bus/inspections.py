# SPDX-License-Identifier: Apache-2.0
"""The Manager's methods that look on request: CheckPolicy and InspectProcess.

One look at a time, in a thread: a caller who asks for many waits for many.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from triaged.bus.authority import Action
from triaged.bus.codec import variant
from triaged.bus.objects import Caller, Handler, Result
from triaged.bus.seam import Variant
from triaged.errors import BusError, ConfigError, KernelError

ERROR = "org.triaged.Triage1.Error"
INVALID_ARGS = f"{ERROR}.InvalidArgs"
NO_SUCH_PROCESS = f"{ERROR}.NoSuchProcess"
MOST_POLICIES = 16
_WAITING_AT_MOST = 64
Row = Mapping[str, "str | int | float | bool"]


class Demands(Protocol):
    """polkit (`authority.Authority`)."""

    async def demand(self, action: Action, caller: Caller) -> None:
        """Returns if the caller may. Raises: BusError."""


class Inspections:
    """Answers CheckPolicy and InspectProcess (`methods`, for `Service.provide`).

    `check` gives a row for each item of the named policies (of those in force for no name); `inspect` the rows of a process:
    what it is, and one for each limit. Both block. `owner` gives the user of a process or None.
    """

    def __init__(
        self,
        check: Callable[[Sequence[str]], Sequence[Row]],
        inspect: Callable[[int], tuple[Row, Sequence[Row]]],
        owner: Callable[[int], int | None],
        authority: Demands,
    ) -> None:
        self._check = check
        self._inspect = inspect
        self._owner = owner
        self._authority = authority
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    def methods(self) -> Mapping[str, Handler]:
        """The handlers by the names of the methods."""
        return {"CheckPolicy": self._check_policy, "InspectProcess": self._inspect_process}

    async def _check_policy(self, caller: Caller, policies: Sequence[str], options: Mapping[str, Any]) -> Result:
        _no_options(options)
        if len(policies) > MOST_POLICIES:
            raise BusError(INVALID_ARGS, f"{len(policies)} policies; at most {MOST_POLICIES} at a time")
        try:
            rows: Sequence[Row] = await self._in_thread(self._check, list(policies))
        except ConfigError as error:
            raise BusError(INVALID_ARGS, error.shown()) from error
        return ([_row(row) for row in rows],)

    async def _inspect_process(self, caller: Caller, pid: int, options: Mapping[str, Any]) -> Result:
        _no_options(options)
        owner = self._owner(pid)
        if owner is None:
            raise BusError(NO_SUCH_PROCESS, f"there is no process {pid}")
        if caller.uid is None or caller.uid not in (0, owner):
            await self._authority.demand(Action.INSPECT_PROCESS, caller)
        try:
            process, usages = await self._in_thread(self._inspect, pid)
        except KernelError as error:
            raise BusError(NO_SUCH_PROCESS, error.shown()) from error
        return (_row(process), [_row(usage) for usage in usages])

    async def _in_thread(self, work: Callable[[Any], Any], argument: Any) -> Any:
        if self._waiting >= _WAITING_AT_MOST:
            raise BusError(f"{ERROR}.LimitsExceeded", "too many wait for such an answer; ask again later")
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                return await asyncio.get_running_loop().run_in_executor(None, work, argument)
        finally:
            self._waiting -= 1


def _row(row: Row) -> dict[str, Variant]:
    return {name: variant(value) for name, value in row.items()}


def _no_options(options: Mapping[str, Any]) -> None:
    if options:
        raise BusError(INVALID_ARGS, f"option {next(iter(options))[:100]!r} is not known; there are none")
