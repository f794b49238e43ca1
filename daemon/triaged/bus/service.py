# SPDX-License-Identifier: Apache-2.0
"""org.triaged.Triage1 on the bus: the Manager, an object per finding, and what is announced when something changes.

A finding is shown to its owner, to root and to the members of the administrators' groups; one that is nobody's private matter to
all. What is broadcast says of a private finding only that it is there: who may see more reads the object.
"""
from __future__ import annotations

import asyncio
import grp
import heapq
import inspect
import logging
import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from triaged.bus import address as bus_address
from triaged.bus import codec, contract
from triaged.bus.codec import View
from triaged.bus.connection import BUS_NAME, BUS_PATH, Connection, Limits, Message, connect
from triaged.bus.objects import OBJECT_MANAGER, PROPERTIES, STANDARD, Caller, Dispatcher, Exported, Handler, Result, Tree
from triaged.bus.seam import Variant, marshal, plain, signature_of
from triaged.bus.wire import join_dictionaries, join_interface, join_string
from triaged.errors import BusError
from triaged.model.finding import Finding, State
from triaged.model.verdict import Kind
from triaged.rules.rule import Rule
from triaged.sources.source import SourceStatus

log = logging.getLogger(__name__)

SERVICE_NAME = "org.triaged.Triage1"
MANAGER_PATH = "/org/triaged/Triage1"
MANAGER = "org.triaged.Triage1.Manager"
FINDING = "org.triaged.Triage1.Finding"
_ERROR = "org.triaged.Triage1.Error."
INVALID_ARGS = _ERROR + "InvalidArgs"
NO_SUCH_FINDING = _ERROR + "NoSuchFinding"
TIMED_OUT = _ERROR + "TimedOut"

EXPORTED_FINDINGS = 1000
ROWS_PER_PAGE = 100
MOST_ROWS_PER_PAGE = 200
PAGE_BYTES = 512 << 10
ENCODED_BYTES_KEPT = 4 << 20
ANNOUNCEMENTS_WAITING = 1 << 16
# How long announcements may hold up the rest of the program at a time, and how often a counter that moves is announced.
SLICE_S = 0.010
CHANGES_EVERY_S = 0.25
REFRESH_EVERY_S = 1.0
REFRESH_TIMEOUT_S = 20.0
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0

ALLOW_REPLACEMENT = 1
REPLACE_EXISTING = 2
_NAME_REPLIES = {1: True, 2: False, 4: True}
_INTEGERS = frozenset("ynqiuxt")
# Methods of the Manager that other parts of triaged answer, where they are there.
OTHERS_METHODS = frozenset({
    "PreviewFix", "ApplyFix", "UndoFix", "DismissFinding", "ListFixes", "CheckPolicy", "InspectProcess", "InspectSeccomp",
    "Explain", "StartTrace",
})
# The parts of a finding that a broadcast never shows where they are somebody's private matter.
_MAY_BE_PRIVATE = ("Reason", "Subject", "Summary", "Evidence", "EvidenceSources", "Fixes")


class Change(Enum):
    """What happened to a finding. opened also says that it was opened again; closed that it left the state open."""

    OPENED = "opened"
    CHANGED = "changed"
    CLOSED = "closed"
    REMOVED = "removed"


class BusState(Enum):
    """serving: the name is ours; queued: another process has it; lost: no bus, trying again."""

    SERVING = "serving"
    QUEUED = "queued"
    LOST = "lost"


class FindingsView(Protocol):
    """The findings as they stand."""

    def findings(self) -> Sequence[Finding]:
        """Every finding that is kept, in any order."""

    def find(self, identifier: str) -> Finding | None:
        """The finding with this id."""


class Host(Protocol):
    """What else the Manager shows and does."""

    def sources(self) -> Sequence[SourceStatus]:
        """How each source stands."""

    def rules(self) -> Sequence[Rule]:
        """What can be found."""

    def policies(self) -> Sequence[str]:
        """The names of the policies in force."""

    def dropped(self) -> Mapping[str, int]:
        """What was lost since the start, by name."""

    async def refresh(self) -> None:
        """Looks again at what has no notification, and returns when its findings are in place."""


class Service(Tree):
    """Serves findings on a bus, and comes back when the bus is lost.

    `address` is a bus address, or "" for the system bus. Members of `administrators` (group names) see all findings.
    `announce` and `announce_manager` take what changes; they may be called at any time and never block.
    Raises: OSError, ValueError for an interface file that cannot be read; TypeError where code and contract differ.
    """

    def __init__(
        self,
        findings: FindingsView,
        host: Host,
        *,
        interface_xml: str,
        version: str,
        address: str = "",
        administrators: Sequence[str] = ("triaged",),
        on_state: Callable[[BusState, str], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._findings = findings
        self._host = host
        self._version = version
        self._address = address
        self._on_state = on_state
        self._limits = limits or Limits()
        self.dropped: Counter[str] = Counter()
        self._contracts = contract.read_interfaces(interface_xml)
        self._signatures = {name: item.signature for name, item in self._contracts[FINDING].properties.items()}
        self._provided: dict[str, Handler] = {}
        self._manager = Exported(self._contracts[MANAGER], self._methods(), self._manager_properties).check()
        self._explanations = {rule.identifier: rule.explanation for rule in host.rules()}
        self._privileged = frozenset((0, os.getuid()))
        self._administrators = frozenset(_group_ids(administrators))
        self._connection: Connection | None = None
        self._encoded: OrderedDict[tuple[str, View], tuple[Finding, bytes]] = OrderedDict()
        self._encoded_bytes = 0
        # The exported findings as they were last announced, oldest first.
        self._exported: OrderedDict[str, Finding] = OrderedDict()
        self._waiting: deque[tuple[Change, Finding]] = deque()
        self._changed: set[str] = set()
        self._changed_manager: set[str] = set()
        self._last_changes_s = 0.0
        self._announce_later: asyncio.Handle | None = None
        self._changes_later: asyncio.Handle | None = None
        self._told: tuple[BusState, str] | None = None
        self._last_look_s = -REFRESH_EVERY_S
        self._look: asyncio.Task[None] | None = None
        self._next_look: asyncio.Task[None] | None = None

    def _methods(self) -> dict[str, Handler]:
        """The Manager's methods. Their signatures stand in the contract; a handler takes the Caller and then their values."""
        return {
            "ListFindings": self._list_findings,
            "GetFinding": self._get_finding,
            "Refresh": self._refresh,
            "ListRules": self._list_rules,
            **{name: _not_provided(name, self._contracts[MANAGER].methods[name].arguments) for name in OTHERS_METHODS},
            **self._provided,
        }

    def provide(self, methods: Mapping[str, Handler]) -> None:
        """Takes over Manager methods that other parts answer (OTHERS_METHODS). Call it before `run`.

        Raises: TypeError where a method is not one of those, or does not take the Caller and what the contract says.
        """
        unknown = set(methods) - OTHERS_METHODS
        if unknown:
            raise TypeError(f"{', '.join(sorted(unknown))}: not for others to provide")
        self._provided.update(methods)
        self._manager = Exported(self._contracts[MANAGER], self._methods(), self._manager_properties).check()

    @property
    def connection(self) -> Connection | None:
        """The connection to the bus, for calls of other parts; None while there is none."""
        return self._connection

    def finding_for(self, caller: Caller, identifier: str) -> Finding:
        """The finding, if the caller may see it. Raises: BusError NoSuchFinding."""
        finding = self._findings.find(identifier)
        if finding is None or self._view(finding, caller) is None:
            raise BusError(NO_SUCH_FINDING, f"there is no finding {identifier[:200]!r} that you may see")
        return finding

    # -- the connection

    async def run(self) -> None:
        """Serves until cancelled. A bus that is lost is tried again after 1, 2, 4 ... 30 s."""
        delay_s = FIRST_DELAY_S
        while True:
            started_s = time.monotonic()
            try:
                await self._serve()
            except BusError as error:
                self._tell(BusState.LOST, f"{error.shown()}; trying again in {delay_s:g} s")
            if time.monotonic() - started_s > LONGEST_DELAY_S:
                delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)

    async def _serve(self) -> None:
        """One connection, from its beginning to its end. Raises BusError if it does not come to the name."""
        dispatcher = Dispatcher(self, _machine_id())
        connection = await connect(
            self._address or bus_address.system_bus(), on_call=dispatcher.call, on_signal=self._bus_signal,
            limits=self._limits, dropped=self.dropped,
        )
        try:
            # Objects first, then the name: whoever sees the name appear finds them there.
            self._exported = OrderedDict((finding.identifier, finding) for finding in self._to_export())
            self._waiting.clear()
            self._changed.clear()
            self._connection = connection
            # Replacing is the only way to the name where an earlier connection of ours hangs on a bus that no longer reads from it;
            # the bus policy says who may own the name at all. Not asking for DO_NOT_QUEUE, we get it back when a replacement goes.
            reply = await connection.call(
                BUS_NAME, BUS_PATH, BUS_NAME, "RequestName", "su", [SERVICE_NAME, ALLOW_REPLACEMENT | REPLACE_EXISTING]
            )
            if _NAME_REPLIES.get(reply[0], False):
                self._tell(BusState.SERVING, f"{SERVICE_NAME} as {connection.unique_name}")
            else:
                self._tell(BusState.QUEUED, f"another process has the name {SERVICE_NAME}")
            reason = await asyncio.shield(connection.closed)
            self._tell(BusState.LOST, reason)
        except BusError as error:
            remedy = ""
            if error.name.endswith(".AccessDenied"):
                remedy = "install dbus/org.triaged.Triage1.conf in /usr/share/dbus-1/system.d, or use a private bus"
            raise BusError(error.name, str(error), remedy) from error
        finally:
            self._connection = None
            for handle in (self._announce_later, self._changes_later):
                if handle is not None:
                    handle.cancel()
            self._announce_later = self._changes_later = None
            await dispatcher.stop()
            await connection.close()

    def _bus_signal(self, connection: Connection, message: Message) -> None:
        header = message.header
        if header.sender != BUS_NAME or header.member not in ("NameLost", "NameAcquired") or message.values() != [SERVICE_NAME]:
            return
        if header.member == "NameLost":
            self._tell(BusState.QUEUED, f"another process took the name {SERVICE_NAME}")
        else:
            self._tell(BusState.SERVING, f"{SERVICE_NAME} as {connection.unique_name}")

    def _tell(self, state: BusState, detail: str) -> None:
        # The bus says that the name is ours twice: with a signal and with the reply.
        if (state, detail) == self._told:
            return
        self._told = (state, detail)
        log.log(logging.INFO if state is BusState.SERVING else logging.WARNING, "bus: %s: %s", state.value, detail)
        if self._on_state is not None:
            self._on_state(state, detail)

    # -- announcements

    def announce(self, change: Change, finding: Finding) -> None:
        """Tells the bus what happened to a finding; `finding` is how it stands after it (for removed: how it stood)."""
        if self._connection is None:
            return
        if change is Change.CHANGED:
            self._changed.add(finding.identifier)
            self._plan_changes()
            return
        if len(self._waiting) >= ANNOUNCEMENTS_WAITING:
            self.dropped["bus-announcements"] += 1
            return
        self._waiting.append((change, finding))
        if self._announce_later is None:
            self._announce_later = asyncio.get_running_loop().call_soon(self._announce_waiting)

    def resync(self) -> None:
        """Tells the bus how everything stands where changes were lost: what is there now, what is gone, what is another."""
        if self._connection is None:
            return
        now = {finding.identifier: finding for finding in self._to_export()}
        for gone in [finding for identifier, finding in self._exported.items() if identifier not in now]:
            self._removed(gone)
        for finding in now.values():
            if finding.identifier not in self._exported:
                self._export(finding)
        self._changed.update(now)
        self.announce_manager("OpenFindings")

    def announce_manager(self, *properties: str) -> None:
        """Tells the bus that properties of the Manager changed ("Sources", "Policies")."""
        self._changed_manager.update(properties)
        self._plan_changes()

    def _announce_waiting(self) -> None:
        self._announce_later = None
        end = time.monotonic() + SLICE_S
        while self._waiting:
            change, finding = self._waiting.popleft()
            {Change.OPENED: self._opened, Change.CLOSED: self._closed, Change.REMOVED: self._removed}[change](finding)
            if time.monotonic() > end:
                break
        self._changed_manager.add("OpenFindings")
        self._plan_changes()
        if self._waiting:
            self._announce_later = asyncio.get_running_loop().call_soon(self._announce_waiting)

    def _opened(self, finding: Finding) -> None:
        if finding.identifier in self._exported:
            self._announce_properties(finding)
        else:
            self._export(finding)
        self._signal(MANAGER_PATH, MANAGER, "FindingOpened", [*_names(finding), codec.text(finding.rule), int(finding.severity)])

    def _closed(self, finding: Finding) -> None:
        self._announce_properties(finding)
        reason = codec.PRIVATE if finding.owner_uid is not None else codec.text(finding.reason)
        self._signal(MANAGER_PATH, MANAGER, "FindingResolved", [*_names(finding), finding.state.value, reason])

    def _removed(self, finding: Finding) -> None:
        for view in View:
            self._forget(finding.identifier, view)
        if self._exported.pop(finding.identifier, None) is not None:
            self._signal(MANAGER_PATH, OBJECT_MANAGER, "InterfacesRemoved", [codec.finding_path(finding.identifier), [FINDING]])

    def _export(self, finding: Finding) -> None:
        while len(self._exported) >= EXPORTED_FINDINGS:
            kept = self._exported.values()
            self._removed(next((item for item in kept if item.state is not State.OPEN), next(iter(kept))))
        self._exported[finding.identifier] = finding
        if self._connection is not None:
            path = marshal("o", [codec.finding_path(finding.identifier)])
            interfaces = join_interface(FINDING, self._entries(finding, View.BROADCAST))
            body = path + b"\0" * (-len(path) % 4) + len(interfaces).to_bytes(4, "little")
            self._connection.signal(
                MANAGER_PATH, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", body + b"\0" * (-len(body) % 8) + interfaces
            )

    def _announce_properties(self, finding: Finding) -> None:
        """PropertiesChanged with what is another value than was announced last; without the value where it is private."""
        before = self._exported.get(finding.identifier)
        if before is None or before == finding:
            return
        self._exported[finding.identifier] = finding
        old, new = self._properties(before, View.FULL), self._properties(finding, View.FULL)
        shown = self._properties(finding, View.BROADCAST)
        changed = [name for name, value in new.items() if value != old[name]]
        hidden = _MAY_BE_PRIVATE if finding.owner_uid is not None else ()
        private = [name for name in changed if name in hidden or shown[name] != new[name]]
        values = {name: Variant(self._signatures[name], shown[name]) for name in changed if name not in private}
        if changed:
            self._signal(codec.finding_path(finding.identifier), PROPERTIES, "PropertiesChanged", [FINDING, values, private])

    def _plan_changes(self) -> None:
        if self._connection is None or self._changes_later is not None:
            return
        loop = asyncio.get_running_loop()
        wait_s = self._last_changes_s + CHANGES_EVERY_S - time.monotonic()
        # The first change is told at once; those of a burst together.
        self._changes_later = loop.call_later(max(wait_s, 0.0), self._announce_changes)

    def _announce_changes(self) -> None:
        self._changes_later = None
        self._last_changes_s = time.monotonic()
        end = self._last_changes_s + SLICE_S
        while self._changed and time.monotonic() < end:
            finding = self._findings.find(self._changed.pop())
            if finding is not None:
                self._announce_properties(finding)
        if self._changed_manager:
            values = self._manager_properties()
            contracts = self._contracts[MANAGER].properties
            changed = {name: Variant(contracts[name].signature, values[name]) for name in sorted(self._changed_manager)}
            self._changed_manager.clear()
            self._signal(MANAGER_PATH, PROPERTIES, "PropertiesChanged", [MANAGER, changed, []])
        if self._changed:
            self._plan_changes()

    def _signal(self, path: str, interface: str, member: str, values: Sequence[Any]) -> None:
        if self._connection is not None:
            signature = (self._contracts.get(interface) or STANDARD[interface]).signals[member]
            self._connection.signal(path, interface, member, signature, marshal(signature, values))

    # -- the tree

    def exported(self, path: str, caller: Caller) -> Sequence[Exported]:
        if path == MANAGER_PATH:
            return (self._manager,)
        finding = self._findings.find(codec.finding_of_path(path)) if path.startswith(codec.FINDINGS_PATH) else None
        view = self._view(finding, caller) if finding is not None else None
        if finding is None or view is None:
            return ()
        shown, seen = finding, view
        return (Exported(
            self._contracts[FINDING], None, lambda: self._properties(shown, seen), lambda: self._entries(shown, seen)
        ),)

    def children(self, path: str, caller: Caller) -> Collection[str]:
        if path == codec.FINDINGS_PATH:
            return [codec.finding_node(finding.identifier) for finding, _ in self._visible(caller)]
        prefix = path.rstrip("/") + "/"
        return [codec.FINDINGS_PATH[len(prefix):].split("/")[0]] if codec.FINDINGS_PATH.startswith(prefix) else []

    def managed(self, path: str, caller: Caller) -> Iterator[tuple[str, bytes]] | None:
        if path != MANAGER_PATH:
            return None
        return (
            (codec.finding_path(finding.identifier), join_interface(FINDING, self._entries(finding, view)))
            for finding, view in self._visible(caller)
        )

    def _visible(self, caller: Caller) -> Iterator[tuple[Finding, View]]:
        """The exported findings that the caller may see, newest first, as they stand now."""
        for identifier in reversed(list(self._exported)):
            finding = self._findings.find(identifier)
            view = self._view(finding, caller) if finding is not None else None
            if finding is not None and view is not None:
                yield finding, view

    def _view(self, finding: Finding, caller: Caller) -> View | None:
        """What the caller may see of the finding; None: not even that it is there."""
        if caller.uid in self._privileged or (caller.uid is not None and caller.uid == finding.owner_uid):
            return View.FULL
        if finding.owner_uid is None or caller.gids & self._administrators:
            return View.PLAIN
        return None

    def _properties(self, finding: Finding, view: View) -> dict[str, Any]:
        return codec.finding_properties(finding, self._explanations.get(finding.rule, ""), view)

    def _entries(self, finding: Finding, view: View) -> bytes:
        """The marshalled properties. Kept while the finding stays as it is: marshalling is what costs (100 to 300 µs each)."""
        key = (finding.identifier, view)
        kept = self._encoded.get(key)
        if kept is not None and kept[0] is finding:
            return kept[1]
        self._forget(*key)
        encoded = codec.entries(self._properties(finding, view), self._signatures)
        self._encoded[key] = (finding, encoded)
        self._encoded_bytes += len(encoded)
        while self._encoded_bytes > ENCODED_BYTES_KEPT:
            self._forget(*next(iter(self._encoded)))
        return encoded

    def _forget(self, identifier: str, view: View) -> None:
        kept = self._encoded.pop((identifier, view), None)
        if kept is not None:
            self._encoded_bytes -= len(kept[1])

    def _to_export(self) -> list[Finding]:
        """The findings that get an object, oldest first: the newest 1000, open ones before all others."""
        chosen = heapq.nlargest(
            EXPORTED_FINDINGS, self._findings.findings(), key=lambda finding: (finding.state is State.OPEN, _age_key(finding))
        )
        return sorted(chosen, key=_age_key)

    # -- the Manager

    def _manager_properties(self) -> dict[str, Any]:
        return {
            "Version": self._version,
            "Sources": [codec.source_row(status) for status in self._host.sources()],
            "Policies": [codec.text(name) for name in self._host.policies()],
            "OpenFindings": sum(1 for finding in self._findings.findings() if finding.state is State.OPEN),
            "Dropped": codec.counts({**self.dropped, **self._host.dropped()}),
        }

    def _list_findings(self, caller: Caller, options: Mapping[str, Any]) -> Result:
        wanted = _parse_options(options)
        matching = (item for item in self._findings.findings() if wanted.matches(item) and self._view(item, caller) is not None)
        page = heapq.nlargest(wanted.limit + 1, matching, key=_age_key)
        rows: list[bytes] = []
        size = 0
        for finding in page[:wanted.limit]:
            encoded = self._entries(finding, self._view(finding, caller) or View.PLAIN)
            if rows and size + len(encoded) > PAGE_BYTES:
                break
            rows.append(encoded)
            size += len(encoded)
        after = f"{page[len(rows) - 1].first_seen_usec}.{page[len(rows) - 1].identifier}" if len(rows) < len(page) else ""
        return join_string(join_dictionaries(rows), after)

    def _get_finding(self, caller: Caller, identifier: str) -> Result:
        return (codec.finding_path(self.finding_for(caller, identifier).identifier),)

    def _list_rules(self, caller: Caller) -> Result:
        return ([codec.rule_row(rule) for rule in self._host.rules()],)

    def _refresh(self, caller: Caller) -> Awaitable[Result]:
        if self._next_look is None:
            self._next_look = asyncio.ensure_future(self._look_again(self._look))
        return self._wait_for_look(self._next_look)

    async def _wait_for_look(self, look: asyncio.Task[None]) -> Result:
        try:
            # Others wait for the same look.
            await asyncio.wait_for(asyncio.shield(look), REFRESH_TIMEOUT_S)
        except asyncio.TimeoutError:
            raise BusError(TIMED_OUT, f"looking again takes longer than {REFRESH_TIMEOUT_S:g} s; it goes on") from None
        return ()

    async def _look_again(self, before: asyncio.Task[None] | None) -> None:
        # A look that is under way may have passed what changed before this request: it is waited for and a new one is made.
        if before is not None:
            await asyncio.wait([before])
        await asyncio.sleep(max(self._last_look_s + REFRESH_EVERY_S - time.monotonic(), 0.0))
        self._look, self._next_look = self._next_look, None
        self._last_look_s = time.monotonic()
        await self._host.refresh()


class _Options:
    """What ListFindings is asked for."""

    def __init__(self) -> None:
        self.state: State | None = State.OPEN
        self.kind: Kind | None = None
        self.rule = ""
        self.unit = ""
        self.severity = 7
        self.limit = ROWS_PER_PAGE
        self.after: tuple[int, str] | None = None

    def matches(self, finding: Finding) -> bool:
        return (
            (self.state is None or finding.state is self.state)
            and (self.kind is None or finding.kind is self.kind)
            and self.rule in ("", finding.rule)
            and self.unit in ("", finding.subject.get("unit"))
            and finding.severity <= self.severity
            and (self.after is None or _age_key(finding) < self.after)
        )


def _parse_options(options: Mapping[str, Any]) -> _Options:
    """The options of ListFindings. Raises BusError (InvalidArgs) that names the option."""
    out = _Options()
    for name, value in options.items():
        text, number = _option(name, value)
        if name == "state":
            out.state = None if text == "all" else _choice(State, name, text)
        elif name == "kind":
            out.kind = _choice(Kind, name, text)
        elif name in ("rule", "unit"):
            setattr(out, name, text)
        elif name == "after":
            seen, _, identifier = text.partition(".")
            if text and not (seen.isdecimal() and identifier and len(seen) <= 20):
                raise BusError(INVALID_ARGS, "option after: pass what the page before gave as `next`")
            out.after = (int(seen), identifier) if text else None
        elif name == "severity":
            out.severity = number
        elif number < 1:
            raise BusError(INVALID_ARGS, "option limit: at least 1")
        else:
            out.limit = min(number, MOST_ROWS_PER_PAGE)
    return out


_TEXT_OPTIONS = ("state", "kind", "rule", "unit", "after")
_NUMBER_OPTIONS = ("severity", "limit")


def _option(name: str, value: Any) -> tuple[str, int]:
    signature = signature_of(value)
    if name in _TEXT_OPTIONS:
        if signature != "s":
            raise BusError(INVALID_ARGS, f"option {name}: a string (s) is wanted, not {signature}")
        return str(plain(value)), 0
    if name in _NUMBER_OPTIONS:
        if signature not in _INTEGERS:
            raise BusError(INVALID_ARGS, f"option {name}: a number (u) is wanted, not {signature}")
        return "", int(plain(value))
    raise BusError(INVALID_ARGS, f"option {name[:100]!r} is not known; known are {', '.join((*_TEXT_OPTIONS, *_NUMBER_OPTIONS))}")


def _choice(kind: type[Any], name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(item.value for item in kind)
        raise BusError(INVALID_ARGS, f"option {name}: {text[:100]!r} is not one of {known}") from None


def _not_provided(name: str, arguments: int) -> Handler:
    """The handler of a method that nobody answers here."""

    def refuse(caller: Caller, *values: Any) -> Result:
        raise BusError("org.freedesktop.DBus.Error.NotSupported", f"{name}: this triaged runs without it")

    parameters = [inspect.Parameter(f"_{index}", inspect.Parameter.POSITIONAL_ONLY) for index in range(arguments + 1)]
    refuse.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return refuse


def _names(finding: Finding) -> list[str]:
    return [codec.finding_path(finding.identifier), codec.text(finding.identifier)]


def _age_key(finding: Finding) -> tuple[int, str]:
    return finding.first_seen_usec, finding.identifier


def _group_ids(names: Sequence[str]) -> Iterator[int]:
    for name in names:
        try:
            yield grp.getgrnam(name).gr_gid
        except KeyError:
            log.info("there is no group %s; only root and the owner see a user's findings", name)


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            with open(path, encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            continue
    return ""
