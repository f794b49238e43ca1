# SPDX-License-Identifier: Apache-2.0
"""The Manager's methods that look on request: CheckPolicy, InspectProcess and InspectSeccomp.

One look at a time, in a thread: a caller who asks for many waits for many.
"""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, Union

from triaged.bus.authority import Action
from triaged.bus.codec import text, variant
from triaged.bus.objects import Caller, Handler, Result
from triaged.bus.seam import Variant, plain, signature_of
from triaged.errors import BusError, ConfigError, Gone, KernelError

ERROR = "org.triaged.Triage1.Error"
INVALID_ARGS = f"{ERROR}.InvalidArgs"
NO_SUCH_PROCESS = f"{ERROR}.NoSuchProcess"
NOT_READABLE = f"{ERROR}.FiltersNotReadable"
MOST_POLICIES = 16
_WAITING_AT_MOST = 64
WORKLOAD_CHARACTERS = 1000
Row = Mapping[str, "str | int | float | bool | bytes | list[str]"]
FilterAnswer = tuple[Row, Sequence[Row], Sequence[Row], Sequence[str]]  # process, filters, calls, consequences
# What net.* is in another network namespace; why that could not be read; None: it is not another one.
Network = Union[Mapping[str, str], str, None]


class Demands(Protocol):
    """polkit (`authority.Authority`)."""

    async def demand(self, action: Action, caller: Caller) -> None:
        """Returns if the caller may. Raises: BusError."""


class Inspections:
    """Answers CheckPolicy, InspectProcess and InspectSeccomp (`methods`, for `Service.provide`).

    `check` gives a row for each item of the named policies (of those in force for no name), as it is for a process (0: none) in a
    `Network`; `inspect` the rows of a process: what it is, and one for each limit. Both block. `network` reads what `check`
    needs of the process's network. `inspect_filters` gives what the seccomp filters of a process do to the named workloads ("": its
    own), with the filters' instructions if asked for. `owner` gives the user of a process or None.
    """

    def __init__(
        self,
        check: Callable[[Sequence[str], int, Network], Sequence[Row]],
        network: Callable[[Sequence[str], int], Awaitable[Network]],
        inspect: Callable[[int], tuple[Row, Sequence[Row]]],
        inspect_filters: Callable[[int, str, bool], Awaitable[FilterAnswer]],
        owner: Callable[[int], int | None],
        authority: Demands,
    ) -> None:
        self._check = check
        self._network = network
        self._inspect = inspect
        self._inspect_filters = inspect_filters
        self._owner = owner
        self._authority = authority
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    def methods(self) -> Mapping[str, Handler]:
        """The handlers by the names of the methods."""
        return {
            "CheckPolicy": self._check_policy, "InspectProcess": self._inspect_process, "InspectSeccomp": self._inspect_seccomp,
        }

    async def _check_policy(self, caller: Caller, policies: Sequence[str], options: Mapping[str, Any]) -> Result:
        pid = _pid_option(options)
        if len(policies) > MOST_POLICIES:
            raise BusError(INVALID_ARGS, f"{len(policies)} policies; at most {MOST_POLICIES} at a time")
        if pid:
            await self._may_see(caller, pid)
        try:
            network = await self._network(policies, pid) if pid else None
            rows: Sequence[Row] = await self._in_thread(lambda names: self._check(names, pid, network), list(policies))
        except ConfigError as error:
            raise BusError(INVALID_ARGS, error.shown()) from error
        return ([_row(row) for row in rows],)

    async def _inspect_process(self, caller: Caller, pid: int, options: Mapping[str, Any]) -> Result:
        _no_options(options)
        await self._may_see(caller, pid)
        try:
            process, usages = await self._in_thread(self._inspect, pid)
        except KernelError as error:
            raise BusError(NO_SUCH_PROCESS, error.shown()) from error
        return (_row(process), [_row(usage) for usage in usages])

    async def _inspect_seccomp(self, caller: Caller, pid: int, options: Mapping[str, Any]) -> Result:
        workloads, with_programs = _filter_options(options)
        owner = self._owner(pid)
        if owner is None:
            raise BusError(NO_SUCH_PROCESS, f"there is no process {pid}")
        # The kernel itself gives a filter's instructions to root only; what it answers everybody could try out for themselves.
        if caller.uid is None or caller.uid not in (0, owner) or (with_programs and caller.uid != 0):
            await self._authority.demand(Action.INSPECT_PROCESS, caller)
        try:
            process, filters, calls, consequences = await self._alone(lambda: self._inspect_filters(pid, workloads, with_programs))
        except Gone as error:
            raise BusError(NO_SUCH_PROCESS, f"there is no process {pid} (any more)") from error
        except ConfigError as error:
            raise BusError(INVALID_ARGS, error.shown()) from error
        except BusError as error:
            raise BusError(NOT_READABLE, error.shown()) from error
        except KernelError as error:
            raise BusError(NOT_READABLE, error.shown()) from error
        return (
            _row(process), [_row(one) for one in filters], [_row(call) for call in calls],
            [text(sentence) for sentence in consequences],
        )

    async def _may_see(self, caller: Caller, pid: int) -> None:
        owner = self._owner(pid)
        if owner is None:
            raise BusError(NO_SUCH_PROCESS, f"there is no process {pid}")
        if caller.uid is None or caller.uid not in (0, owner):
            await self._authority.demand(Action.INSPECT_PROCESS, caller)

    async def _in_thread(self, work: Callable[[Any], Any], argument: Any) -> Any:
        return await self._alone(lambda: asyncio.get_running_loop().run_in_executor(None, work, argument))

    async def _alone(self, work: Callable[[], Awaitable[Any]]) -> Any:
        if self._waiting >= _WAITING_AT_MOST:
            raise BusError(f"{ERROR}.LimitsExceeded", "too many wait for such an answer; ask again later")
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                return await work()
        finally:
            self._waiting -= 1


def _row(row: Row) -> dict[str, Variant]:
    return {name: _value(value) for name, value in row.items()}


def _value(value: str | int | float | bool | bytes | list[str]) -> Variant:
    if isinstance(value, bytes):
        return Variant("ay", value)
    if isinstance(value, list):
        return Variant("as", [text(word) for word in value])
    return variant(value)


def _filter_options(options: Mapping[str, Any]) -> tuple[str, bool]:
    given = {"workload": "", "programs": False}
    for name, value in options.items():
        if name not in given:
            raise BusError(INVALID_ARGS, f"option {name[:100]!r} is not known; there are workload and programs")
        wanted = "s" if name == "workload" else "b"
        if signature_of(value) != wanted:
            raise BusError(INVALID_ARGS, f"option {name}: {wanted} is wanted, not {signature_of(value)[:20]}")
        given[name] = plain(value)
    workloads = str(given["workload"])
    if len(workloads) > WORKLOAD_CHARACTERS:
        raise BusError(INVALID_ARGS, f"option workload: at most {WORKLOAD_CHARACTERS} characters")
    return workloads, bool(given["programs"])


def _pid_option(options: Mapping[str, Any]) -> int:
    """The process as which is looked, 0 for none. Raises: BusError InvalidArgs."""
    for name, value in options.items():
        if name != "pid":
            raise BusError(INVALID_ARGS, f"option {name[:100]!r} is not known; known is pid")
        if signature_of(value) != "u" or plain(value) == 0:
            raise BusError(INVALID_ARGS, "option pid: the number of a process (u) is wanted")
        return int(plain(value))
    return 0


def _no_options(options: Mapping[str, Any]) -> None:
    if options:
        raise BusError(INVALID_ARGS, f"option {next(iter(options))[:100]!r} is not known; there are none")
