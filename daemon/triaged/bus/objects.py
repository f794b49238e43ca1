# SPDX-License-Identifier: Apache-2.0
"""Objects on the bus: who calls, which object and method is meant, and the interfaces that every object has.

A call is answered in the turn of the loop in which it came, unless its caller is new or its method has to wait.
"""
from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Union

from triaged.bus.codec import entries
from triaged.bus.connection import BUS_NAME, BUS_PATH, LIMITS_EXCEEDED, Connection, Message
from triaged.bus.contract import Interface, Method, introspection, parse_interfaces
from triaged.bus.seam import Variant, marshal
from triaged.bus.wire import join_dictionary, join_objects
from triaged.errors import BusError

log = logging.getLogger(__name__)

PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
ACCESS_DENIED = "org.freedesktop.DBus.Error.AccessDenied"
INVALID_ARGS = "org.freedesktop.DBus.Error.InvalidArgs"

STANDARD = parse_interfaces("""<node>
<interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId"><arg type="s" name="machine_uuid" direction="out"/></method>
</interface>
<interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect"><arg name="data" type="s" direction="out"/></method>
</interface>
<interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
    <arg name="interface" direction="in" type="s"/>
    <arg name="property" direction="in" type="s"/>
    <arg name="value" direction="out" type="v"/>
  </method>
  <method name="GetAll">
    <arg name="interface" direction="in" type="s"/>
    <arg name="properties" direction="out" type="a{sv}"/>
  </method>
  <method name="Set">
    <arg name="interface" direction="in" type="s"/>
    <arg name="property" direction="in" type="s"/>
    <arg name="value" direction="in" type="v"/>
  </method>
  <signal name="PropertiesChanged">
    <arg type="s" name="interface"/>
    <arg type="a{sv}" name="changed_properties"/>
    <arg type="as" name="invalidated_properties"/>
  </signal>
</interface>
<interface name="org.freedesktop.DBus.ObjectManager">
  <method name="GetManagedObjects"><arg type="a{oa{sa{sv}}}" name="objects" direction="out"/></method>
  <signal name="InterfacesAdded">
    <arg type="o" name="object"/>
    <arg type="a{sa{sv}}" name="interfaces"/>
  </signal>
  <signal name="InterfacesRemoved">
    <arg type="o" name="object"/>
    <arg type="as" name="interfaces"/>
  </signal>
</interface>
</node>""")

CALLERS_KEPT = 512
WAITING_CALLS = 256
# dbus-daemon lets a client have as many calls outstanding. Of methods that take their time (a person is asked) fewer do.
WAITING_CALLS_OF_ONE = 128
UNFINISHED_METHODS_OF_ONE = 16
METHOD_TIMEOUT_S = 120.0
CREDENTIALS_TIMEOUT_S = 10.0
# GetManagedObjects gives the newest objects up to here, so that no reply is larger than 1 MiB; paging is the Manager's.
MANAGED_BYTES = 960 << 10


@dataclass(frozen=True)
class Caller:
    """Who calls: the unique bus name, the user (None: the bus does not know), the groups that the bus knows of.

    `may_interact`: the call allows that a person is asked for authorisation.
    """

    name: str
    uid: int | None
    gids: frozenset[int] = frozenset()
    may_interact: bool = False


Result = Union[bytes, Sequence[Any]]
Handler = Callable[..., Union[Result, Awaitable[Result]]]


class Exported:
    """One interface of one object: its contract, a handler per method, and its properties.

    A handler takes the Caller and the values that the contract says, and gives the values that the contract says
    (or their marshalled bytes), at once or awaited. `entries` are the marshalled entries of all properties, where they are ready.
    Raises: TypeError where handlers and contract do not agree.
    """

    def __init__(
        self,
        contract: Interface,
        methods: Mapping[str, Handler] | None = None,
        properties: Callable[[], Mapping[str, Any]] = dict,
        entries: Callable[[], bytes] | None = None,
    ) -> None:
        self.contract = contract
        self.methods = methods or {}
        self.properties = properties
        self._entries = entries

    def check(self) -> Exported:
        """Holds the handlers against the contract; done once, at the start."""
        if set(self.methods) != set(self.contract.methods):
            differ = ", ".join(sorted(set(self.methods) ^ set(self.contract.methods)))
            raise TypeError(f"{self.contract.name}: {differ} not in both code and contract")
        for name, method in self.contract.methods.items():
            parameters = len(inspect.signature(self.methods[name]).parameters)
            if parameters != method.arguments + 1:
                raise TypeError(f"{self.contract.name}.{name} takes {method.arguments} values, its handler {parameters - 1}")
        if set(self.properties()) != set(self.contract.properties):
            raise TypeError(f"{self.contract.name}: properties are not the same in code and contract")
        return self

    def entries(self) -> bytes:
        """All properties as the marshalled entries of an a{sv}."""
        if self._entries is not None:
            return self._entries()
        return entries(self.properties(), {name: item.signature for name, item in self.contract.properties.items()})


class Tree:
    """What there is on the bus, for a caller. The service fills it in."""

    def exported(self, path: str, caller: Caller) -> Sequence[Exported]:
        """The interfaces of the object at the path; empty where there is none that the caller may see."""
        raise NotImplementedError

    def children(self, path: str, caller: Caller) -> Collection[str]:
        """The names of the nodes below the path that the caller may see."""
        raise NotImplementedError

    def managed(self, path: str, caller: Caller) -> Iterable[tuple[str, bytes]] | None:
        """The objects below an object manager, newest first, each with the entries of its a{sa{sv}}; None where none is."""
        raise NotImplementedError


class Dispatcher:
    """Answers the calls of one connection from a tree. `call` is what a Connection wants as `on_call`."""

    def __init__(self, tree: Tree, machine_id: str = "") -> None:
        self._tree = tree
        self._machine_id = machine_id
        self._callers: OrderedDict[str, Caller] = OrderedDict()
        self._arriving: dict[str, list[Message]] = {}
        self._unfinished: Counter[str] = Counter()
        # A task that nobody holds may be collected while it waits.
        self._tasks: set[asyncio.Task[None]] = set()

    def call(self, connection: Connection, message: Message) -> None:
        """Answers the call, now or in a task."""
        sender = message.header.sender
        caller = self._callers.get(sender)
        if caller is not None:
            self._dispatch(connection, message, caller)
        elif sender not in self._arriving:
            if self._start(connection, message, self._introduce(connection, sender)):
                self._arriving[sender] = [message]
        elif len(self._arriving[sender]) < WAITING_CALLS_OF_ONE:
            self._arriving[sender].append(message)
        else:
            connection.dropped["bus-calls-refused"] += 1
            connection.reply_error(message, LIMITS_EXCEEDED, f"{WAITING_CALLS_OF_ONE} of your calls are waiting already")

    async def stop(self) -> None:
        """Ends what still waits."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, connection: Connection, message: Message, work: Coroutine[Any, Any, None]) -> bool:
        if len(self._tasks) >= WAITING_CALLS:
            work.close()
            connection.dropped["bus-calls-refused"] += 1
            connection.reply_error(message, LIMITS_EXCEEDED, f"{WAITING_CALLS} calls are waiting already; try again later")
            return False
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _introduce(self, connection: Connection, sender: str) -> None:
        """Finds out who calls, then answers. A unique name is never given twice on one bus, so what was learnt stays true."""
        try:
            reply = await connection.call(
                BUS_NAME, BUS_PATH, BUS_NAME, "GetConnectionCredentials", "s", [sender], timeout_s=CREDENTIALS_TIMEOUT_S
            )
        except BusError as error:
            for message in self._arriving.pop(sender):
                connection.reply_error(message, ACCESS_DENIED, f"the bus does not say who you are: {error}")
            return
        credentials = {name: value.value for name, value in reply[0].items()}
        caller = Caller(sender, credentials.get("UnixUserID"), frozenset(credentials.get("UnixGroupIDs", ())))
        self._callers[sender] = caller
        if len(self._callers) > CALLERS_KEPT:
            self._callers.popitem(last=False)
        # Not here and now: a hundred large lists in one turn would hold up everything else.
        connection.answer_later(self._arriving.pop(sender))

    def _dispatch(self, connection: Connection, message: Message, caller: Caller) -> None:
        try:
            found = self._find(message, caller)
            if found is None:
                return
            method, handler = found
            if message.header.signature != method.takes:
                raise BusError(INVALID_ARGS, f"{message.header.member} takes ({method.takes}), not ({message.header.signature})")
            if message.may_interact:
                caller = replace(caller, may_interact=True)
            result = handler(caller, *message.values())
            if not inspect.isawaitable(result):
                self._reply(connection, message, method, result)
            elif self._unfinished[caller.name] < UNFINISHED_METHODS_OF_ONE:
                if not self._start(connection, message, self._finish(connection, message, method, result)):
                    _abandon(result)
            else:
                _abandon(result)
                raise BusError(LIMITS_EXCEEDED, f"{UNFINISHED_METHODS_OF_ONE} of your calls are not done yet; wait for them")
        except BusError as error:
            self._refuse(connection, message, error)
        except Exception:
            self._failed(connection, message)

    async def _finish(self, connection: Connection, message: Message, method: Method, result: Awaitable[Result]) -> None:
        self._unfinished[message.header.sender] += 1
        try:
            self._reply(connection, message, method, await asyncio.wait_for(result, METHOD_TIMEOUT_S))
        except asyncio.TimeoutError:
            connection.reply_error(message, "org.freedesktop.DBus.Error.Timeout", f"not done within {METHOD_TIMEOUT_S:g} s")
        except BusError as error:
            self._refuse(connection, message, error)
        except Exception:
            self._failed(connection, message)
        finally:
            self._unfinished[message.header.sender] -= 1
            # A counter that is left at 0 would stay for every client that ever waited.
            self._unfinished += Counter()

    def _reply(self, connection: Connection, message: Message, method: Method, result: Result) -> None:
        connection.reply(message, method.gives, result if isinstance(result, bytes) else marshal(method.gives, result))

    def _refuse(self, connection: Connection, message: Message, error: BusError) -> None:
        if not error.name:
            self._failed(connection, message)
            return
        connection.reply_error(message, error.name, str(error))

    def _failed(self, connection: Connection, message: Message) -> None:
        # The border of every handler. Its text may quote anything, so the caller gets none of it.
        log.exception("%s.%s failed", message.header.interface, message.header.member)
        connection.dropped["bus-calls-failed"] += 1
        connection.reply_error(message, "org.freedesktop.DBus.Error.Failed", "internal error; the log of triaged has it")

    def _find(self, message: Message, caller: Caller) -> tuple[Method, Handler] | None:
        """The method that is meant. A call that names no interface means the first that has the member."""
        header = message.header
        path = header.path
        standard: dict[str, dict[str, Handler]] = {PEER: {"Ping": lambda _: (), "GetMachineId": lambda _: (self._machine_id,)}}
        exported = self._tree.exported(path, caller)
        is_node = bool(exported) or bool(self._tree.children(path, caller))
        if is_node:
            standard[INTROSPECTABLE] = {"Introspect": lambda caller: (self._introspect(path, caller),)}
        if exported:
            by_name = {item.contract.name: item for item in exported}
            standard[PROPERTIES] = {
                "Get": lambda _, interface, name: _get(by_name, interface, name),
                "GetAll": lambda _, interface: _get_all(by_name, interface),
                "Set": lambda _, interface, name, value: _set(by_name, interface, name),
            }
        managed = self._tree.managed(path, caller)
        if managed is not None:
            standard[OBJECT_MANAGER] = {"GetManagedObjects": lambda _: _managed_objects(managed)}
        offered = [(item.contract, item.methods) for item in exported]
        offered += [(STANDARD[name], methods) for name, methods in standard.items()]
        for contract, methods in offered:
            if header.interface in ("", contract.name) and header.member in methods:
                return contract.methods[header.member], methods[header.member]
        if not is_node:
            raise BusError("org.freedesktop.DBus.Error.UnknownObject", f"there is no object {path}")
        if header.interface and header.interface not in (contract.name for contract, _ in offered):
            raise BusError("org.freedesktop.DBus.Error.UnknownInterface", f"{path} has no interface {header.interface}")
        raise BusError("org.freedesktop.DBus.Error.UnknownMethod", f"{path} has no method {header.member}")

    def _introspect(self, path: str, caller: Caller) -> str:
        exported = self._tree.exported(path, caller)
        names = [INTROSPECTABLE, PEER]
        if exported:
            names.append(PROPERTIES)
        if self._tree.managed(path, caller) is not None:
            names.append(OBJECT_MANAGER)
        contracts = [item.contract for item in exported] + [STANDARD[name] for name in names]
        return introspection(contracts, self._tree.children(path, caller))


def _abandon(result: Any) -> None:
    if inspect.iscoroutine(result):
        result.close()  # otherwise Python warns that it was never awaited


def _interface(by_name: Mapping[str, Exported], interface: str) -> Exported:
    if interface not in by_name:
        raise BusError("org.freedesktop.DBus.Error.UnknownInterface", f"this object has no interface {interface} with properties")
    return by_name[interface]


def _get(by_name: Mapping[str, Exported], interface: str, name: str) -> Result:
    for item in by_name.values() if not interface else (_interface(by_name, interface),):
        if name in item.contract.properties:
            return (Variant(item.contract.properties[name].signature, item.properties()[name]),)
    raise BusError("org.freedesktop.DBus.Error.UnknownProperty", f"there is no property {name}")


def _get_all(by_name: Mapping[str, Exported], interface: str) -> Result:
    if not interface:
        return join_dictionary([item.entries() for item in by_name.values()])
    if interface in STANDARD:
        return join_dictionary([])
    return join_dictionary([_interface(by_name, interface).entries()])


def _set(by_name: Mapping[str, Exported], interface: str, name: str) -> Result:
    if name not in _interface(by_name, interface).contract.properties:
        raise BusError("org.freedesktop.DBus.Error.UnknownProperty", f"there is no property {name}")
    raise BusError("org.freedesktop.DBus.Error.PropertyReadOnly", f"{name} cannot be set")


def _managed_objects(managed: Iterable[tuple[str, bytes]]) -> bytes:
    chosen = []
    size = 0
    for path, interfaces in managed:
        size += len(path) + len(interfaces) + 24
        if size > MANAGED_BYTES:
            break
        chosen.append((path, interfaces))
    return join_objects(chosen)
