# SPDX-License-Identifier: Apache-2.0
"""org.triaged.Helper1 on the bus: fixes, dumps of seccomp filters, and traces, for root and for the user triaged, nobody else.

Gone when nobody has asked for a while.
"""
from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from triaged.bus import contract
from triaged.bus.connection import BUS_NAME, BUS_PATH, Connection, Message, connect
from triaged.bus.filter_values import dump_error, dump_to_bus
from triaged.bus.fix_values import bus_error, fix_from_bus, outcome_to_bus, preview_to_bus
from triaged.bus.objects import Caller, Dispatcher, Exported, Handler, Result, Tree
from triaged.bus.seam import plain, signature_of
from triaged.bus.traces import trace_error
from triaged.errors import BusError, FixRefused, KernelError, TriagedError
from triaged.fixers import fixer
from triaged.fixers.fixer import Fixer
from triaged.model.filters import FilterDump

log = logging.getLogger(__name__)

HELPER_NAME = "org.triaged.Helper1"
HELPER_PATH = "/org/triaged/Helper1"
HELPER = "org.triaged.Helper1"
ERROR = "org.triaged.Helper1.Error"
IDLE_S = 30.0
MOST_OUTCOMES = 200
MOST_PARAMETERS = 200
_OF_A_NETWORK = re.compile(r"net(\.[A-Za-z0-9_/:@-]{1,64}){1,8}")
FINDING_CHARACTERS = 300
DO_NOT_QUEUE = 4
_OWNER = (1, 4)  # PRIMARY_OWNER, ALREADY_OWNER


class Relay(Protocol):
    """What makes traces for users (`kernel.trace_relay.TraceRelay`)."""

    def start(self, pid: int, start_ticks: int, uid: int) -> str:
        """Begins a trace; the path of its socket. Blocks. Raises: KernelError."""

    def active(self) -> int:
        """How many traces are on."""

    def close(self) -> None:
        """Ends them. Blocks."""


class HelperService(Tree):
    """Serves the fixer. `make_fixer` gets a way to the connection (for systemd) and gives the fixer, ready to work.

    `read_network` reads parameters in the network namespace of a process (pid, start time), `read_filters` gives the filters of a
    process (pid, start ticks); both block. `relay` makes traces. `uids`: the users that may call.
    Raises: OSError, ValueError for an interface file that cannot be read.
    """

    def __init__(
        self,
        make_fixer: Callable[[Callable[[], Connection | None]], Awaitable[Fixer]],
        read_network: Callable[[int, int, Sequence[str]], Mapping[str, str]],
        *,
        read_filters: Callable[[int, int], FilterDump],
        relay: Relay,
        interface_xml: str,
        uids: Collection[int],
    ) -> None:
        self._read_network = read_network
        self._make_fixer = make_fixer
        self._read_filters = read_filters
        self._relay = relay
        self._one_dump_at_a_time = asyncio.Lock()
        self._uids = frozenset(uids)
        self._contract = contract.read_interfaces(interface_xml)[HELPER]
        self._fixer: Fixer | None = None
        self._exported: list[Exported] = []
        self._under_way = 0
        self._last_s = time.monotonic()
        self._connection: Connection | None = None

    async def serve(self, address: str, idle_s: float = IDLE_S) -> None:
        """Serves until nobody has called for `idle_s` seconds, or the bus is lost.

        Raises: BusError if the bus or the name cannot be had; what `make_fixer` raises.
        """
        dispatcher = Dispatcher(self)

        def on_call(connection: Connection, message: Message) -> None:
            self._last_s = time.monotonic()
            dispatcher.call(connection, message)

        connection = await connect(address, on_call=on_call)
        self._connection = connection
        try:
            self._fixer = await self._make_fixer(lambda: self._connection)
            self._exported = [Exported(self._contract, self._methods()).check()]
            (reply,) = await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "RequestName", "su", [HELPER_NAME, DO_NOT_QUEUE])
            if reply not in _OWNER:
                raise BusError("", f"another process has the name {HELPER_NAME}")
            self._last_s = time.monotonic()
            while not connection.closed.done():
                left_s = self._last_s + idle_s - time.monotonic()
                if left_s <= 0 and not self._under_way and not self._relay.active():
                    # The name first: a call that comes from now on starts another helper. One that came before is still answered.
                    await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "ReleaseName", "s", [HELPER_NAME])
                    if self._last_s + idle_s <= time.monotonic():
                        return
                await asyncio.wait([connection.closed], timeout=max(left_s, 0.2))
        finally:
            # What is under way goes on to its end; only the answer may be lost with the bus.
            if self._fixer is not None:
                await self._fixer.close()
            await asyncio.to_thread(self._relay.close)
            await dispatcher.stop()
            self._connection = None
            await connection.close()

    def exported(self, path: str, caller: Caller) -> Sequence[Exported]:
        return self._exported if path == HELPER_PATH else ()

    def children(self, path: str, caller: Caller) -> Collection[str]:
        parts = [part for part in HELPER_PATH.split("/") if part]
        given = [part for part in path.split("/") if part]
        return (parts[len(given)],) if len(given) < len(parts) and parts[: len(given)] == given else ()

    def managed(self, path: str, caller: Caller) -> Iterable[tuple[str, bytes]] | None:
        return None

    def _methods(self) -> dict[str, Handler]:
        return {
            "Preview": self._preview, "Apply": self._apply, "Undo": self._undo, "ListOutcomes": self._list_outcomes,
            "DumpFilters": self._dump_filters, "ReadParameters": self._read_parameters, "StartTrace": self._start_trace,
        }

    def _preview(self, caller: Caller, fix: Mapping[str, Any], options: Mapping[str, Any]) -> Awaitable[Result]:
        async def work(fixer: Fixer) -> Result:
            return (preview_to_bus(await fixer.preview(fix_from_bus(fix), _options(options).uid)),)

        return self._do(caller, work)

    def _apply(self, caller: Caller, finding: str, fix: Mapping[str, Any], options: Mapping[str, Any]) -> Awaitable[Result]:
        async def work(fixer: Fixer) -> Result:
            wanted = _options(options)
            outcome = await fixer.apply(_checked(finding), fix_from_bus(fix), wanted.caller(caller), wanted.uid)
            log.info("fix %s of %s applied for user %d: %s", outcome.key, finding, outcome.caller.uid, outcome.message)
            return (outcome_to_bus(outcome),)

        return self._do(caller, work)

    def _undo(self, caller: Caller, finding: str, key: str, options: Mapping[str, Any]) -> Awaitable[Result]:
        async def work(fixer: Fixer) -> Result:
            outcome = await fixer.undo(_checked(finding), _checked(key), _options(options).caller(caller))
            log.info("fix %s of %s undone for user %d: %s", outcome.key, finding, outcome.caller.uid, outcome.message)
            return (outcome_to_bus(outcome),)

        return self._do(caller, work)

    def _list_outcomes(self, caller: Caller) -> Awaitable[Result]:
        async def work(fixer: Fixer) -> Result:
            return ([outcome_to_bus(outcome) for outcome in (await fixer.outcomes())[-MOST_OUTCOMES:]],)

        return self._do(caller, work)

    def _dump_filters(self, caller: Caller, pid: int, start_ticks: int) -> Awaitable[Result]:
        async def work(fixer: Fixer) -> Result:
            if not pid or not start_ticks:
                raise FixRefused("DumpFilters wants the process's pid and start ticks")
            try:
                async with self._one_dump_at_a_time:
                    return dump_to_bus(await asyncio.to_thread(self._read_filters, pid, start_ticks))
            except KernelError as error:
                raise dump_error(ERROR, error) from error

        return self._do(caller, work)

    def _start_trace(self, caller: Caller, pid: int, start_ticks: int, uid: int) -> Awaitable[Result]:
        async def work(fixer: Fixer) -> Result:
            if not pid or not start_ticks:
                raise FixRefused("StartTrace wants the process's pid and start ticks")
            try:
                return (await asyncio.to_thread(self._relay.start, pid, start_ticks, uid),)
            except KernelError as error:
                raise trace_error(ERROR, error) from error

        return self._do(caller, work)

    def _read_parameters(self, caller: Caller, pid: int, start_ticks: int, parameters: Sequence[str]) -> Awaitable[Result]:
        async def work(fixer: Fixer) -> Result:
            if len(parameters) > MOST_PARAMETERS or not all(_OF_A_NETWORK.fullmatch(name) for name in parameters):
                raise FixRefused(f"at most {MOST_PARAMETERS} parameters net.* are read")
            return (await asyncio.to_thread(self._read_network, pid, start_ticks, parameters),)

        return self._do(caller, work)

    async def _do(self, caller: Caller, work: Callable[[Fixer], Awaitable[Result]]) -> Result:
        # The bus policy keeps others out; a bus without that policy must not be a way in.
        if caller.uid not in self._uids:
            raise BusError("org.freedesktop.DBus.Error.AccessDenied", "triaged-helper serves triaged and root only")
        if self._fixer is None:
            raise BusError(f"{ERROR}.FixBusy", "triaged-helper is still starting")
        self._under_way += 1
        try:
            return await work(self._fixer)
        except TriagedError as error:
            log.info("refused: %s", error.shown())
            raise error if isinstance(error, BusError) and error.name.startswith(ERROR) else bus_error(ERROR, error) from error
        finally:
            self._under_way -= 1
            self._last_s = time.monotonic()


class _Options:
    """Who the helper acts for."""

    def __init__(self) -> None:
        self.uid: int | None = None
        self.caller_uid: int | None = None
        self.caller_bus_name = ""

    def caller(self, direct: Caller) -> fixer.Caller:
        uid = direct.uid if self.caller_uid is None else self.caller_uid
        return fixer.Caller(-1 if uid is None else uid, self.caller_bus_name or direct.name)


def _options(options: Mapping[str, Any]) -> _Options:
    out = _Options()
    for name, value in options.items():
        if name not in ("uid", "caller_uid", "caller_bus_name"):
            raise FixRefused(f"option {name[:100]!r} is not known")
        signature = "s" if name == "caller_bus_name" else "u"
        if signature_of(value) != signature:
            raise FixRefused(f"option {name}: {signature} is wanted, not {signature_of(value)[:20]}")
        setattr(out, name, plain(value))
    return out


def _checked(text: str) -> str:
    if len(text) > FINDING_CHARACTERS or not text.isprintable():
        raise FixRefused("the name of a finding or fix is at most 300 printable characters long")
    return text
