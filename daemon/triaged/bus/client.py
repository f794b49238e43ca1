# SPDX-License-Identifier: Apache-2.0
"""A client of org.triaged.Triage1, for triagectl and for tests: asynchronous, and a wrapper that blocks."""
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from triaged.bus import address as bus_address
from triaged.bus.connection import BUS_NAME, BUS_PATH, CALL_TIMEOUT_S, Connection, Limits, Message, connect
from triaged.bus.seam import Variant, plain
from triaged.bus.wire import Flag
from triaged.errors import BusError

SERVICE_NAME = "org.triaged.Triage1"
MANAGER_PATH = "/org/triaged/Triage1"
MANAGER = "org.triaged.Triage1.Manager"
FINDING = "org.triaged.Triage1.Finding"
PROPERTIES = "org.freedesktop.DBus.Properties"
REMEDY = "is triaged running? systemctl start triaged"
# What the service sends is bounded by itself; this bounds what a client holds of a service that is not ours.
LIMITS = Limits(request_bytes=2 << 20, reply_bytes=16 << 20)
SIGNALS_WAITING = 10_000

T = TypeVar("T")


@dataclass(frozen=True)
class FindingOpened:
    """A finding that was opened. `path` is its object, `severity` a syslog priority."""

    path: str
    identifier: str
    rule: str
    severity: int


class Client:
    """A connection to triaged. Every method raises BusError, with a remedy where there is one."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._opened: asyncio.Queue[FindingOpened | None] = asyncio.Queue(SIGNALS_WAITING)
        self._owner = ""

    @staticmethod
    async def connect(where: str = "") -> Client:
        """A client on the bus `where`: "system", "session", an address, or "" ($TRIAGED_BUS_ADDRESS, else the system bus)."""
        client = Client()
        try:
            client._connection = await connect(bus_address.resolve(where), on_signal=client._signal, limits=LIMITS)
        except BusError as error:
            raise BusError(error.name, str(error), error.remedy or REMEDY) from error
        return client

    async def call(
        self,
        member: str,
        signature: str = "",
        *values: Any,
        path: str = MANAGER_PATH,
        interface: str = MANAGER,
        timeout_s: float = CALL_TIMEOUT_S,
        may_interact: bool = False,
    ) -> list[Any]:
        """The values that a method gives, as plain Python values. `may_interact`: a person may be asked for authorisation."""
        flags = Flag.ALLOW_INTERACTIVE_AUTHORIZATION if may_interact else Flag.NONE
        try:
            return [plain(value) for value in await self._link.call(
                SERVICE_NAME, path, interface, member, signature, values, timeout_s=timeout_s, flags=flags
            )]
        except BusError as error:
            unreachable = error.name.rsplit(".", 1)[-1] in ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected")
            raise BusError(error.name, str(error), REMEDY if unreachable else error.remedy) from error

    async def list_findings(self, **options: str | int) -> list[dict[str, Any]]:
        """Every finding that matches, newest first, all pages. Options as for ListFindings: state, kind, rule, unit, severity."""
        wanted = {name: Variant("s" if isinstance(value, str) else "u", value) for name, value in options.items()}
        out: list[dict[str, Any]] = []
        while True:
            rows, after = await self.call("ListFindings", "a{sv}", wanted)
            out.extend(rows)
            if not after:
                return out
            wanted["after"] = Variant("s", after)

    async def get_finding(self, identifier: str) -> dict[str, Any]:
        """The properties of one finding."""
        (path,) = await self.call("GetFinding", "s", identifier)
        (properties,) = await self.call("GetAll", "s", FINDING, path=path, interface=PROPERTIES)
        return dict(properties)

    async def manager_properties(self) -> dict[str, Any]:
        """The properties of the Manager: Version, Sources, Policies, OpenFindings, Dropped."""
        (properties,) = await self.call("GetAll", "s", MANAGER, interface=PROPERTIES)
        return dict(properties)

    async def list_rules(self) -> list[dict[str, Any]]:
        """What triaged can find."""
        (rules,) = await self.call("ListRules")
        return list(rules)

    async def refresh(self) -> None:
        """Has the daemon look again, and returns when it has."""
        await self.call("Refresh", timeout_s=60.0)

    async def subscribe(self) -> None:
        """Asks the bus for FindingOpened; what comes from then on is kept for `opened`."""
        await self._link.add_match(
            f"type='signal',sender='{SERVICE_NAME}',interface='{MANAGER}',member='FindingOpened',path='{MANAGER_PATH}'"
        )

    async def opened(self) -> AsyncIterator[FindingOpened]:
        """Findings as they are opened, after `subscribe`. Ends when the connection is lost."""
        closed = asyncio.ensure_future(self._end_of_signals())
        try:
            while (item := await self._opened.get()) is not None:
                yield item
        finally:
            closed.cancel()

    async def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            await self._connection.close()

    @property
    def _link(self) -> Connection:
        if self._connection is None:
            raise BusError("", "not connected")
        return self._connection

    def _signal(self, connection: Connection, message: Message) -> None:
        header = message.header
        # Signals that are sent to us directly need no match, so anybody can send one: what matters is who.
        if header.member == "FindingOpened" and header.interface == MANAGER and not header.destination and not self._opened.full():
            path, identifier, rule, severity = message.values()
            self._opened.put_nowait(FindingOpened(path, identifier, rule, severity))

    async def _end_of_signals(self) -> None:
        await asyncio.shield(self._link.closed)
        await self._opened.put(None)


class BlockingClient:
    """The same for a program without a loop: a context manager whose methods return when they are done."""

    def __init__(self, where: str = "") -> None:
        self._loop = asyncio.new_event_loop()
        try:
            self._client = self.run(Client.connect(where))
        except BaseException:
            self._loop.close()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine gives."""
        return self._loop.run_until_complete(work)

    def call(self, member: str, signature: str = "", *values: Any, **keywords: Any) -> list[Any]:
        """As Client.call."""
        return self.run(self._client.call(member, signature, *values, **keywords))

    def list_findings(self, **options: str | int) -> list[dict[str, Any]]:
        """As Client.list_findings."""
        return self.run(self._client.list_findings(**options))

    def get_finding(self, identifier: str) -> dict[str, Any]:
        """As Client.get_finding."""
        return self.run(self._client.get_finding(identifier))

    def manager_properties(self) -> dict[str, Any]:
        """As Client.manager_properties."""
        return self.run(self._client.manager_properties())

    def list_rules(self) -> list[dict[str, Any]]:
        """As Client.list_rules."""
        return self.run(self._client.list_rules())

    def refresh(self) -> None:
        """As Client.refresh."""
        self.run(self._client.refresh())

    def close(self) -> None:
        """Closes the connection and the loop."""
        if not self._loop.is_closed():
            self.run(self._client.close())
            self._loop.close()

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def can_own_name(address: str) -> bool:
    """Whether this user may own triaged's name on the bus at `address`. False too where there is no bus."""
    try:
        connection = await connect(address)
    except BusError:
        return False
    try:
        # 4: DO_NOT_QUEUE. A running daemon is left alone; that it may not be replaced says nothing about the policy.
        await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "RequestName", "su", [SERVICE_NAME, 4])
        return True
    except BusError:
        return False
    finally:
        await connection.close()
