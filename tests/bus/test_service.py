# SPDX-License-Identifier: Apache-2.0
"""What the service says and to whom, on a real bus."""
from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from triaged.bus import seam
from triaged.bus.client import BlockingClient, Client
from triaged.bus.codec import PRIVATE, finding_path
from triaged.bus.connection import Connection, Message, connect
from triaged.bus.contract import Interface, parse_interfaces, read_interfaces
from triaged.data import find_data
from triaged.errors import BusError

MANAGER_PATH = "/org/triaged/Triage1"
MANAGER = "org.triaged.Triage1.Manager"
FINDING = "org.triaged.Triage1.Finding"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
SECRET = "hunter2"
# dbus-daemon takes only users that the system knows: nobody and daemon are everywhere.
OWNER = 65534
OTHER = 1


class Listener:
    """Everything that is broadcast, as (path, interface, member, values)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.seen: list[tuple[str, str, str, list[Any]]] = []
        self.raw = b""

    @staticmethod
    async def start(address: str) -> Listener:
        listener: list[Listener] = []

        def take(connection: Connection, message: Message) -> None:
            if message.header.sender != "org.freedesktop.DBus":
                listener[0].raw += message.body
                header, values = message.header, [seam.plain(value) for value in message.values()]
                listener[0].seen.append((header.path, header.interface, header.member, values))

        connection = await connect(address, on_signal=take)
        listener.append(Listener(connection))
        await connection.add_match("type='signal',sender='org.triaged.Triage1'")
        return listener[0]

    async def wait(self, member: str, interface: str = "") -> tuple[str, list[Any]]:
        """The path and values of the first signal of this name that was not asked for yet."""
        for _ in range(500):
            for index, (path, sent_by, name, values) in enumerate(self.seen):
                if name == member and interface in ("", sent_by, values[0]):
                    del self.seen[index]
                    return path, values
            await asyncio.sleep(0.01)
        raise AssertionError(f"no {member} came; {[entry[2] for entry in self.seen]} did")

    async def stop(self) -> None:
        await self._connection.close()


def members(interface: Interface) -> tuple[Any, ...]:
    return interface.methods, interface.properties, interface.signals


def as_user(uid: int, address: str, code: str) -> Any:
    """What a client of another user finds out: `code` sets `result` from `client`."""
    program = f"""
import json, os
from triaged.bus.client import BlockingClient
from triaged.errors import BusError
os.setgroups([])
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
with BlockingClient({address!r}) as client:
{textwrap.indent(code, "    ")}
print(json.dumps(result))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to call as another user")


def test_all_pages_give_every_finding_once_and_newest_first(client: BlockingClient) -> None:
    rows = client.list_findings(rule="cgroup.pids.limit-hit")
    assert len(rows) >= 300
    assert len({row["Id"] for row in rows}) == len(rows)
    assert [row["FirstSeen"] for row in rows] == sorted((row["FirstSeen"] for row in rows), reverse=True)


def test_a_page_holds_what_is_asked_for_and_at_most_200_rows(client: BlockingClient) -> None:
    for limit, expected in ((None, 100), (1, 1), (150, 150), (100_000, 200)):
        rows, after = client.call("ListFindings", "a{sv}", {} if limit is None else {"limit": seam.Variant("u", limit)})
        assert (len(rows), bool(after)) == (expected, True)


def test_findings_are_chosen_by_unit_severity_kind_and_state(client: BlockingClient) -> None:
    assert [row["Subject"]["unit"] for row in client.list_findings(unit="unit-7.service")] == ["unit-7.service"]
    assert client.list_findings(severity=2) == []
    assert client.list_findings(kind="risk") == []
    assert client.list_findings(state="expired") == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"colour": ("s", "red")}, "option 'colour' is not known"),
        ({"limit": ("s", "7")}, "option limit: a number"),
        ({"limit": ("u", 0)}, "option limit: at least 1"),
        ({"state": ("u", 7)}, "option state: a string"),
        ({"kind": ("s", "typo")}, "option kind: 'typo' is not one of hit, headroom, risk"),
        ({"after": ("s", "nonsense")}, "option after"),
    ],
)
def test_a_wrong_option_is_named(client: BlockingClient, options: dict[str, tuple[str, Any]], text: str) -> None:
    with pytest.raises(BusError, match=re.escape(text)) as caught:
        client.call("ListFindings", "a{sv}", {name: seam.Variant(*value) for name, value in options.items()})
    assert caught.value.name == "org.triaged.Triage1.Error.InvalidArgs"


def test_a_finding_has_typed_properties_at_its_path(client: BlockingClient) -> None:
    identifier = client.list_findings(unit="unit-3.service")[0]["Id"]
    finding = client.get_finding(identifier)
    assert finding["Count"] == 1
    assert finding["Evidence"]["pids.max"] == 512
    assert finding["EvidenceSources"]["pids.max"] == ["/sys/fs/cgroup/test.slice/pids.max", 1_700_000_000_000_000]
    assert finding["Fixes"][0]["Commands"] == [["systemctl", "set-property", "--runtime", "unit-3.service", "TasksMax=1024"]]
    assert "More" in finding["Explanation"]
    assert client.call("Get", "ss", FINDING, "Severity", path=finding_path(identifier), interface=PROPERTIES) == [3]


@pytest.mark.parametrize(
    ("member", "signature", "values", "path", "interface", "name"),
    [
        ("GetFinding", "s", ["nonsense"], MANAGER_PATH, MANAGER, "org.triaged.Triage1.Error.NoSuchFinding"),
        ("ListFindings", "s", ["x"], MANAGER_PATH, MANAGER, "org.freedesktop.DBus.Error.InvalidArgs"),
        ("Frobnicate", "", [], MANAGER_PATH, MANAGER, "org.freedesktop.DBus.Error.UnknownMethod"),
        ("ListRules", "", [], MANAGER_PATH, "org.example.Other", "org.freedesktop.DBus.Error.UnknownInterface"),
        ("ListRules", "", [], "/org/other", MANAGER, "org.freedesktop.DBus.Error.UnknownObject"),
        ("Introspect", "", [], MANAGER_PATH + "/finding/no", INTROSPECTABLE, "org.freedesktop.DBus.Error.UnknownObject"),
        ("GetManagedObjects", "", [], MANAGER_PATH + "/finding", OBJECT_MANAGER, "org.freedesktop.DBus.Error.UnknownInterface"),
        ("Get", "ss", [MANAGER, "Colour"], MANAGER_PATH, PROPERTIES, "org.freedesktop.DBus.Error.UnknownProperty"),
        ("GetAll", "s", ["org.example.Other"], MANAGER_PATH, PROPERTIES, "org.freedesktop.DBus.Error.UnknownInterface"),
        (
            "Set", "ssv", [MANAGER, "Version", seam.Variant("s", "9")], MANAGER_PATH, PROPERTIES,
            "org.freedesktop.DBus.Error.PropertyReadOnly",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    client: BlockingClient, member: str, signature: str, values: list[Any], path: str, interface: str, name: str
) -> None:
    with pytest.raises(BusError) as caught:
        client.call(member, signature, *values, path=path, interface=interface)
    assert caught.value.name == name


def test_a_call_without_an_interface_is_answered(client: BlockingClient) -> None:
    assert len(client.call("ListRules", interface="")[0]) == 1


def test_introspection_is_the_contract(client: BlockingClient) -> None:
    contract = read_interfaces(find_data().interface_xml)
    path = client.call("GetFinding", "s", client.list_findings(unit="unit-3.service")[0]["Id"])[0]
    for where, name in ((MANAGER_PATH, MANAGER), (path, FINDING)):
        (text,) = client.call("Introspect", path=where, interface=INTROSPECTABLE)
        live = parse_interfaces(text)
        assert members(live[name]) == members(contract[name])
        assert {each for each in live if each.startswith("org.triaged")} == {name}
    annotations = {item.attrib["name"] for item in ElementTree.fromstring(text).iter("property") if list(item.iter("annotation"))}
    assert {"Id", "Rule"} <= annotations


def test_every_object_is_reached_from_the_root_by_introspection(client: BlockingClient) -> None:
    path, found = "", [""]
    while len(found) == 1:
        path = path + "/" + found[0] if found[0] else "/"
        (text,) = client.call("Introspect", path=path, interface=INTROSPECTABLE)
        found = [node.attrib["name"] for node in ElementTree.fromstring(text).findall("node")]
        path = "" if path == "/" else path
    assert path == MANAGER_PATH + "/finding"
    assert len(found) >= 300


def test_managed_objects_are_the_findings_with_all_their_properties(client: BlockingClient) -> None:
    (objects,) = client.call("GetManagedObjects", path=MANAGER_PATH, interface=OBJECT_MANAGER)
    identifier = client.list_findings(unit="unit-5.service")[0]["Id"]
    assert objects[finding_path(identifier)] == {FINDING: client.get_finding(identifier)}


def test_manager_properties_say_what_is_watched_and_what_was_lost(client: BlockingClient) -> None:
    properties = client.manager_properties()
    assert properties["Version"] == "0.0.test"
    assert properties["Policies"] == ["ci-runner"]
    assert properties["Dropped"]["facts"] == 3
    (source,) = properties["Sources"]
    assert source == {
        "Name": "process-events", "State": "degraded", "Reason": "no CAP_NET_ADMIN", "Remedy": "run as root",
        "Counters": {"events": 7},
    }


async def test_the_life_of_a_finding_is_announced(service: Any) -> None:
    listener = await Listener.start(service.bus.address)
    identifier = await asyncio.to_thread(service.do, "open")
    path = finding_path(identifier)
    assert (await listener.wait("InterfacesAdded"))[0] == MANAGER_PATH
    assert (await listener.wait("FindingOpened")) == (MANAGER_PATH, [path, identifier, "cgroup.pids.limit-hit", 3])
    where, (_, changed, _) = await listener.wait("PropertiesChanged", MANAGER)
    assert (where, set(changed)) == (MANAGER_PATH, {"OpenFindings"})
    await asyncio.to_thread(service.do, "change", id=identifier)
    where, (interface, changed, invalidated) = await listener.wait("PropertiesChanged", FINDING)
    assert (where, interface, changed, invalidated) == (path, FINDING, {"Count": 2, "LastSeen": changed["LastSeen"]}, [])
    await asyncio.to_thread(service.do, "close", id=identifier)
    resolved = [path, identifier, "resolved", "no fork refused for an hour"]
    assert (await listener.wait("FindingResolved")) == (MANAGER_PATH, resolved)
    await asyncio.to_thread(service.do, "remove", id=identifier)
    assert (await listener.wait("InterfacesRemoved")) == (MANAGER_PATH, [path, [FINDING]])
    await asyncio.to_thread(service.do, "sources")
    where, (_, changed, _) = await listener.wait("PropertiesChanged", "")
    await listener.stop()


async def test_a_burst_of_changes_is_announced_in_few_signals_and_ends_with_the_last_value(service: Any) -> None:
    listener = await Listener.start(service.bus.address)
    identifier = await asyncio.to_thread(service.do, "open")
    for _ in range(200):
        await asyncio.to_thread(service.do, "change", id=identifier)
    count, signals = 1, 0
    while count < 201:
        _, (_, changed, _) = await listener.wait("PropertiesChanged", FINDING)
        count, signals = changed["Count"], signals + 1
    assert signals < 50
    await asyncio.to_thread(service.do, "remove", id=identifier)
    await listener.stop()


async def test_broadcasts_of_a_users_finding_say_only_that_it_is_there(service: Any) -> None:
    listener = await Listener.start(service.bus.address)
    identifier = await asyncio.to_thread(service.do, "open", owner_uid=OWNER)
    _, (_, interfaces) = await listener.wait("InterfacesAdded")
    shown = interfaces[FINDING]
    assert shown["Subject"] == {"type": "process", "uid": OWNER}
    assert (shown["Summary"], shown["Evidence"], shown["EvidenceSources"], shown["Fixes"]) == (PRIVATE, {}, {}, [])
    await asyncio.to_thread(service.do, "close", id=identifier)
    _, (_, changed, invalidated) = await listener.wait("PropertiesChanged", FINDING)
    assert (changed, invalidated) == ({"State": "resolved"}, ["Reason"])
    assert (await listener.wait("FindingResolved"))[1][3] == PRIVATE
    await asyncio.to_thread(service.do, "remove", id=identifier)
    await listener.wait("InterfacesRemoved")
    assert identifier.encode() in listener.raw
    assert SECRET.encode() not in listener.raw
    await listener.stop()


@needs_root
def test_a_users_finding_is_shown_to_its_owner_and_root_only(service: Any, client: BlockingClient) -> None:
    identifier = service.do("open", owner_uid=OWNER)
    path = finding_path(identifier)
    look = f"""
result = [[row["Summary"] for row in client.list_findings() if row["Id"] == {identifier!r}], "", "", 0]
objects, = client.call("GetManagedObjects", interface="{OBJECT_MANAGER}")
result[3] = int({path!r} in objects)
asked = ("GetFinding", "{MANAGER_PATH}", "{MANAGER}", {identifier!r}), ("GetAll", {path!r}, "{PROPERTIES}", "{FINDING}")
for index, (member, path, interface, value) in enumerate(asked, 1):
    try:
        client.call(member, "s", value, path=path, interface=interface)
    except BusError as error:
        result[index] = error.name.rsplit(".", 1)[-1]
"""
    summary = [f"pkg.test --token={SECRET} was refused a fork"]
    assert as_user(OWNER, service.bus.address, look) == [summary, "", "", 1]
    assert as_user(OTHER, service.bus.address, look) == [[], "NoSuchFinding", "UnknownObject", 0]
    assert client.get_finding(identifier)["Summary"] == summary[0]
    service.do("remove", id=identifier)


@needs_root
def test_private_evidence_is_not_shown_to_other_users(service: Any, client: BlockingClient) -> None:
    identifier = client.list_findings(unit="unit-9.service")[0]["Id"]
    assert SECRET in json.dumps(client.get_finding(identifier))
    seen = as_user(OTHER, service.bus.address, f"result = [client.get_finding({identifier!r}), client.list_findings(limit=200)]")
    assert seen[0]["Evidence"]["pids.max"] == 512
    assert SECRET not in json.dumps(seen)


async def test_parallel_requests_share_a_look(service: Any) -> None:
    before = await asyncio.to_thread(service.do, "looks")
    clients = [await Client.connect(service.bus.address) for _ in range(8)]
    await asyncio.gather(*(client.refresh() for client in clients))
    await asyncio.gather(*(client.close() for client in clients))
    assert 1 <= await asyncio.to_thread(service.do, "looks") - before <= 2


def test_the_service_runs_on_the_library_that_was_asked_for(service: Any) -> None:
    assert service.do("status")["library"] == service.library


def test_a_client_without_a_service_says_what_to_do(start_service: Any) -> None:
    service = start_service(findings=0)
    service.stop()
    with BlockingClient(service.bus.address) as client, pytest.raises(BusError) as caught:
        client.list_rules()
    assert "systemctl start triaged" in caught.value.shown()
