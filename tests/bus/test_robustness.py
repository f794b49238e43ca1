# SPDX-License-Identifier: Apache-2.0
"""What any local client can do to the service, and a bus to both. The fixture `service` checks that it was never disconnected."""
from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from triaged.bus import seam
from triaged.bus.client import BlockingClient
from triaged.bus.connection import Connection, Message, connect
from triaged.errors import BusError

NO_OPTIONS = b"\0" * 8
MOST_ROWS = seam.marshal("a{sv}", [{"limit": seam.Variant("u", 200)}])
SECRET = "hunter2"
MIB = 1 << 20
# Nothing may hold up the service for longer, in processor time. Its own aim is 0.01 s and one message.
LONGEST_TURN_S = 0.2


def test_16_parallel_callers_of_large_lists_are_all_answered(service: Any, raw: Callable[[], Any]) -> None:
    clients = [raw() for _ in range(16)]
    for client in clients:
        for _ in range(8):
            client.socket.sendall(client.message("ListFindings", "a{sv}", MOST_ROWS))
    for client in clients:
        for serial in range(client.serial - 7, client.serial + 1):
            header = client.reply(serial)
            assert (header.signature, header.body_bytes > 100_000) == ("aa{sv}s", True)


def test_replies_come_in_the_order_of_the_calls(service: Any, raw: Callable[[], Any]) -> None:
    client = raw()
    for _ in range(60):
        client.socket.sendall(client.message("ListFindings", "a{sv}", MOST_ROWS))
    serials = []
    while len(serials) < 60:
        header, _ = client.read()
        serials += [header.reply_serial] if header.reply_serial else []
    assert serials == sorted(serials)


async def test_20000_signals_at_once_all_arrive(service: Any) -> None:
    seen = 0
    all_came = asyncio.Event()

    def count(connection: Connection, message: Message) -> None:
        nonlocal seen
        seen += message.header.member == "FindingOpened"
        if seen == 20_000:
            all_came.set()

    listener = await connect(service.bus.address, on_signal=count)
    await listener.add_match("type='signal',sender='org.triaged.Triage1',member='FindingOpened'")
    before = await asyncio.to_thread(service.do, "status")
    await asyncio.to_thread(service.do, "burst", count=20_000)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(all_came.wait(), 60)
    await listener.close()
    assert seen == 20_000
    assert (await asyncio.to_thread(service.do, "status"))["dropped"] == before["dropped"]


def test_a_client_that_never_reads_is_no_concern_of_the_others(
    service: Any, raw: Callable[[], Any], client: BlockingClient
) -> None:
    before = service.do("status")
    deaf = raw()
    for _ in range(120):
        deaf.socket.sendall(deaf.message("ListFindings", "a{sv}", MOST_ROWS))
    for _ in range(20):
        client.manager_properties()
    after = service.do("status")
    assert after["rss"] - before["rss"] < 48 * MIB
    assert after["longest_callback_s"] < LONGEST_TURN_S


def test_the_service_comes_back_when_the_bus_reads_no_more_from_it(start_service: Any, raw_on: Callable[..., Any]) -> None:
    service = start_service(stall_s=1.0)
    if service.bus.program == "dbus-broker":
        pytest.skip("dbus-broker charges what waits to the receiver and reads on: there is no such stall")
    service.forget_states()
    # dbus-daemon holds 127 MB that wait for any receiver, then it stops reading from the sender.
    for _ in range(4):
        deaf = raw_on(service.bus)
        for _ in range(120):
            deaf.socket.sendall(deaf.message("ListFindings", "a{sv}", MOST_ROWS))
    service.wait_state("lost")
    assert "read nothing for 1 s" in service.states[0][1]
    service.states.clear()
    service.wait_state("serving")
    with BlockingClient(service.bus.address) as client:
        assert len(client.list_findings()) == 300


def test_one_message_of_28_mb_holds_up_nobody_and_costs_no_memory(
    service: Any, raw: Callable[[], Any], client: BlockingClient
) -> None:
    client.manager_properties()
    before = service.do("status")
    sender = raw()
    values = b"\1y\0\0" * (7 * MIB)
    message = sender.message("NoSuchMethod", "av", struct.pack("<I", len(values)) + values)
    thread = threading.Thread(target=sender.socket.sendall, args=(message,))
    thread.start()
    while thread.is_alive():
        client.manager_properties()
    assert sender.reply(sender.serial).error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
    after = service.do("status")
    assert after["rss"] - before["rss"] < 8 * MIB
    # The libraries read such a message for 2 to 35 s, and all that time nothing else happens.
    assert after["longest_callback_s"] < LONGEST_TURN_S
    assert after["cpu_s"] - before["cpu_s"] < 2.0
    assert after["dropped"]["bus-messages-too-large"] >= 1


def with_extras(message: bytes, flags: int, kind: int, fields: bytes) -> bytes:
    """The message with other flags and type, and further header fields (marshalled, 8-aligned)."""
    length = struct.unpack_from("<I", message, 12)[0]
    end = 16 + length + -length % 8
    padded = message[16:end] + fields
    start = message[:1] + bytes((kind, flags)) + message[3:12] + struct.pack("<I", end - 16 + len(fields))
    return start + padded + b"\0" * (-len(padded) % 8) + message[end:]


def test_unknown_flags_and_header_fields_are_passed_over(service: Any, raw: Callable[[], Any]) -> None:
    values = [
        seam.Variant("s", "x"), seam.Variant("a(sv)", [["k", seam.Variant("ay", b"123")]]), seam.Variant("(yx)", [1, 2]),
        seam.Variant("g", "a{sv}"), seam.Variant("v", seam.Variant("d", 1.0)), seam.Variant("ax", []), seam.Variant("a{sv}", {}),
    ]
    client = raw()
    for code, value in enumerate(values, 42):
        fields = seam.marshal("a(yv)", [[[code, value], [200, seam.Variant("u", 7)]]])[8:]
        for flags in (0xF8, 0xFC, 0x80):
            client.socket.sendall(with_extras(client.message("ListRules"), flags, 1, fields))
            assert client.reply(client.serial).signature == "aa{sv}"


def test_unknown_types_and_stray_messages_are_passed_over(service: Any, raw: Callable[[], Any]) -> None:
    reply_serial = seam.marshal("a(yv)", [[[5, seam.Variant("u", 1)]]])[8:]
    for kind in (2, 3, 4, 5, 77, 255):
        client = raw()
        error_name = seam.marshal("a(yv)", [[[4, seam.Variant("s", "a.b")]]])[8:]
        fields = {2: reply_serial, 3: reply_serial + error_name}.get(kind, b"")
        # The bus may refuse it and drop the sender; what matters is what it forwards.
        message = client.message("NameLost", "s", seam.marshal("s", ["org.triaged.Triage1"]))
        client.socket.sendall(with_extras(message, 0, kind, fields))


def distinct_signatures(count: int) -> Iterator[str]:
    letters = "ybnqiuxtd"
    for number in range(count):
        yield "a(" + "".join(letters[number // 9**place % 9] for place in range(6)) + ")"


def empty_array_in_variant(key: bytes, signature: str) -> bytes:
    """A dictionary entry {sv} whose value is an empty array of structures; a multiple of 8 bytes long."""
    out = struct.pack("<I", len(key)) + key + b"\0" + bytes((len(signature),)) + signature.encode() + b"\0"
    out += b"\0" * (-len(out) % 4) + b"\0\0\0\0"
    return out + b"\0" * (-len(out) % 8)


def test_20000_distinct_signatures_leave_memory_bounded(service: Any, raw: Callable[[], Any]) -> None:
    client = raw()
    before = service.do("status")["rss"]
    signatures = list(distinct_signatures(20_000))
    for start in range(0, len(signatures), 50):
        body = b"".join(empty_array_in_variant(b"limit", each) for each in signatures[start:start + 50])
        client.socket.sendall(client.message("ListFindings", "a{sv}", struct.pack("<II", len(body), 0) + body))
        assert client.reply(client.serial).error_name == "org.triaged.Triage1.Error.InvalidArgs"
    assert service.do("status")["rss"] - before < 32 * MIB


def test_distinct_signatures_of_arguments_are_refused_unread(service: Any, raw: Callable[[], Any]) -> None:
    client = raw()
    before = service.do("status")["rss"]
    signatures = list(distinct_signatures(4000))
    for start in range(0, len(signatures), 100):
        for signature in signatures[start:start + 100]:
            client.socket.sendall(client.message("ListFindings", signature, NO_OPTIONS))
        assert client.reply(client.serial).error_name == "org.freedesktop.DBus.Error.InvalidArgs"
    assert service.do("status")["rss"] - before < 8 * MIB


def test_a_body_that_is_not_what_its_options_say_is_refused(service: Any, client: BlockingClient) -> None:
    nested: Any = seam.Variant("u", 1)
    for _ in range(30):
        nested = seam.Variant("v", nested)
    with pytest.raises(BusError, match="a number"):
        client.call("ListFindings", "a{sv}", {"limit": nested})


def test_300_clients_that_vanish_in_the_middle_of_a_call_leave_nothing_behind(service: Any, raw: Callable[[], Any]) -> None:
    before = service.do("status")
    for _ in range(300):
        client = raw()
        client.socket.sendall(client.message("ListFindings", "a{sv}", NO_OPTIONS))
        client.close()
    after = service.do("status")
    assert after["fds"] == before["fds"]
    assert after["rss"] - before["rss"] < 16 * MIB


def test_the_text_of_an_exception_stays_in_the_log(start_service: Any) -> None:
    service = start_service(findings=1)
    service.do("fail")
    with BlockingClient(service.bus.address) as client, pytest.raises(BusError) as caught:
        client.refresh()
    assert caught.value.name == "org.freedesktop.DBus.Error.Failed"
    assert str(caught.value) == "internal error; the log of triaged has it"
    log = service.log.read_text()
    assert "Traceback" in log
    assert SECRET in log


def test_a_bus_that_dies_is_found_again(start_service: Any) -> None:
    service = start_service(findings=5)
    fds = service.do("status")["fds"]
    for _ in range(2):
        service.forget_states()
        service.bus.kill()
        service.wait_state("lost")
        service.states.clear()
        service.bus.start()
        service.wait_state("serving")
        with BlockingClient(service.bus.address) as client:
            assert len(client.list_findings()) == 5
            (objects,) = client.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
            assert len(objects) == 5
    assert service.do("status")["fds"] == fds


def test_a_second_service_takes_the_name_and_gives_it_back(start_service: Any) -> None:
    first = start_service(findings=1)
    first.forget_states()
    second = start_service(findings=2)
    first.wait_state("queued")
    with BlockingClient(first.bus.address) as client:
        assert client.manager_properties()["OpenFindings"] == 2
        first.states.clear()
        second.stop()
        first.wait_state("serving")
        assert client.manager_properties()["OpenFindings"] == 1
