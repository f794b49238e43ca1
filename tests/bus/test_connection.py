# SPDX-License-Identifier: Apache-2.0
"""The connection against a bus that does what the test says: what real ones do only under load, or never."""
from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from triaged.bus import seam
from triaged.bus.connection import LIMITS_EXCEEDED, REPLY_BYTES, REQUEST_BYTES, Connection, Limits, Message, connect
from triaged.bus.wire import Flag, Header, MessageType, build_message, parse_header, parse_lengths
from triaged.errors import BusError


class ScriptedBus:
    """The other end of a connection: welcomes it, then sends what it is told and gives what came."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "bus"
        self._connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._welcome, self.path, limit=16 << 20)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        assert (await reader.readline()).startswith(b"\0AUTH EXTERNAL")
        writer.write(b"OK 0123\r\n")
        assert await reader.readline() == b"BEGIN\r\n"
        header, _ = await self.read()
        self.send(MessageType.METHOD_RETURN, "s", seam.marshal("s", [":1.7"]), reply_serial=header.serial)
        self._connected.set_result(None)

    def send(self, kind: MessageType, signature: str = "", body: bytes = b"", sender: str = ":1.1", **fields: Any) -> None:
        """Sends a message as from `sender`."""
        frame = build_message(kind, fields.pop("serial", 9), signature, body, **fields)
        extra = seam.marshal("a(yv)", [[[7, seam.Variant("s", sender)]]])[8:]
        length = struct.unpack_from("<I", frame, 12)[0]
        end = 16 + length + -length % 8
        parts = frame[:12], struct.pack("<I", end - 16 + len(extra)), frame[16:end], extra, b"\0" * (-len(extra) % 8), frame[end:]
        self.writer.write(b"".join(parts))

    def call(self, serial: int, sender: str, body: bytes = b"", flags: Flag = Flag.NONE) -> None:
        """Sends a method call as from `sender`."""
        signature = "ay" if body else ""
        self.send(MessageType.METHOD_CALL, signature, body, sender, serial=serial, path="/x", member="Do", flags=flags)

    async def read(self) -> tuple[Header, bytes]:
        """The next message from the connection."""
        start = await self.reader.readexactly(16)
        lengths = parse_lengths(start)
        frame = start + await self.reader.readexactly(lengths.message - 16)
        return parse_header(frame), frame[lengths.header:]

    async def stop(self) -> None:
        assert self.server is not None
        self.writer.close()
        self.server.close()
        await self.server.wait_closed()


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[ScriptedBus]:
    scripted = ScriptedBus(tmp_path)
    await scripted.start()
    yield scripted
    await scripted.stop()


async def join(bus: ScriptedBus, on_call: Callable[[Connection, Message], None] | None = None, **options: Any) -> Connection:
    connection = await connect(f"unix:path={bus.path}", on_call=on_call, limits=Limits(**options))
    assert connection.unique_name == ":1.7"
    return connection


def reply_with(size: int) -> Callable[[Connection, Message], None]:
    body = seam.marshal("ay", [b"x" * size])
    return lambda connection, message: connection.reply(message, "ay", body)


async def test_a_caller_of_much_does_not_keep_others_waiting(bus: ScriptedBus) -> None:
    connection = await join(bus, reply_with(300_000))
    for serial in range(1, 101):
        bus.call(serial, ":1.1")
    bus.call(1000, ":1.2")
    await asyncio.sleep(0.2)  # the output is full by now, and the calls wait
    order = [(await bus.read())[0] for _ in range(101)]
    place = [header.destination for header in order].index(":1.2")
    assert place < 30
    assert [header.reply_serial for header in order if header.destination == ":1.1"] == list(range(1, 101))
    await connection.close()


async def test_calls_that_are_answered_later_keep_their_place(bus: ScriptedBus) -> None:
    put_off: list[Message] = []

    def at_first_not(connection: Connection, message: Message) -> None:
        if message.header.serial <= 3 and message not in put_off:
            put_off.append(message)
            if len(put_off) == 3:
                connection.answer_later(put_off)
        else:
            connection.reply(message, "ay", body)

    body = seam.marshal("ay", [b"x" * 600_000])
    connection = await join(bus, at_first_not)
    for serial in range(10, 15):
        bus.call(serial, ":1.1")
    for serial in range(1, 9):
        bus.call(serial, ":1.2")
    order = [(await bus.read())[0] for _ in range(13)]
    assert [header.reply_serial for header in order if header.destination == ":1.2"] == list(range(1, 9))
    await connection.close()


async def test_a_bus_that_does_not_read_is_left(bus: ScriptedBus) -> None:
    connection = await join(bus, reply_with(300_000), stall_s=0.2)
    bus.writer.transport.pause_reading()  # type: ignore[attr-defined]
    for serial in range(1, 101):
        bus.call(serial, ":1.1")
    reason = await asyncio.wait_for(asyncio.shield(connection.closed), 10)
    assert "has read nothing for 0.2 s" in reason


async def test_signals_to_a_bus_that_does_not_read_are_counted_and_dropped(bus: ScriptedBus) -> None:
    connection = await join(bus)
    body = seam.marshal("ay", [b"x" * 500_000])
    for _ in range(100):
        connection.signal("/x", "a.b", "C", "ay", body)
    assert connection.dropped["bus-signals"] == 100 - (32 << 20) // 500_000 - 1
    connection._abort("done")


async def test_a_request_that_is_too_large_is_refused_and_the_next_one_served(bus: ScriptedBus) -> None:
    connection = await join(bus, reply_with(1))
    bus.call(1, ":1.1", seam.marshal("ay", [b"x" * (2 << 20)]))
    bus.call(2, ":1.1", seam.marshal("ay", [b"x" * (REQUEST_BYTES - 100)]))
    refused, answered = await bus.read(), await bus.read()
    assert (refused[0].reply_serial, refused[0].error_name) == (1, LIMITS_EXCEEDED)
    assert (answered[0].reply_serial, answered[0].error_name) == (2, "")
    await connection.close()


async def test_a_reply_that_is_too_large_becomes_an_error(bus: ScriptedBus) -> None:
    connection = await join(bus, reply_with(REPLY_BYTES))
    bus.call(1, ":1.1")
    assert (await bus.read())[0].error_name == LIMITS_EXCEEDED
    await connection.close()


async def test_a_caller_that_wants_no_reply_gets_none(bus: ScriptedBus) -> None:
    connection = await join(bus, reply_with(1))
    bus.call(1, ":1.1", flags=Flag.NO_REPLY_EXPECTED)
    bus.call(2, ":1.1")
    assert (await bus.read())[0].reply_serial == 2
    await connection.close()


async def test_a_handler_that_raises_answers_with_a_generic_text(bus: ScriptedBus, caplog: pytest.LogCaptureFixture) -> None:
    def fail(connection: Connection, message: Message) -> None:
        raise RuntimeError("hunter2")

    connection = await join(bus, fail)
    bus.call(1, ":1.1")
    header, body = await bus.read()
    assert header.error_name == "org.freedesktop.DBus.Error.Failed"
    assert b"hunter2" not in body
    assert "hunter2" in caplog.text
    await connection.close()


async def test_a_call_gives_up_after_its_time(bus: ScriptedBus) -> None:
    connection = await join(bus)
    with pytest.raises(BusError, match="did not answer") as caught:
        await connection.call("org.example", "/x", "a.b", "C", timeout_s=0.05)
    assert caught.value.name == "org.freedesktop.DBus.Error.NoReply"
    await connection.close()


async def test_calls_end_with_an_error_when_the_bus_goes(bus: ScriptedBus) -> None:
    connection = await join(bus)
    waiting = asyncio.ensure_future(connection.call("org.example", "/x", "a.b", "C"))
    await bus.read()
    bus.writer.close()
    with pytest.raises(BusError) as caught:
        await waiting
    assert caught.value.name == "org.freedesktop.DBus.Error.Disconnected"
    with pytest.raises(BusError):
        await connection.call("org.example", "/x", "a.b", "C")


async def test_an_answer_that_is_too_large_or_malformed_ends_only_its_call(bus: ScriptedBus) -> None:
    connection = await join(bus, reply_bytes=1000)
    large = seam.marshal("ay", [b"x" * 20_000])
    for signature, body, text in (("ay", large, "larger than 1000 bytes"), ("s", b"\xff" * 9, "not s")):
        waiting = asyncio.ensure_future(connection.call("org.example", "/x", "a.b", "C"))
        header, _ = await bus.read()
        bus.send(MessageType.METHOD_RETURN, signature, body, reply_serial=header.serial)
        with pytest.raises(BusError, match=text):
            await waiting
    await connection.close()


async def test_a_refused_authentication_is_told(tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"REJECTED EXTERNAL\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(refuse, tmp_path / "bus"):
        with pytest.raises(BusError, match="refused the authentication"):
            await connect(f"unix:path={tmp_path}/bus")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("unix:path=/nonexistent/bus", "No such file or directory"),
        ("tcp:host=localhost,port=1", "tcp: not supported"),
        ("nonsense", "is no D-Bus address"),
    ],
)
async def test_an_address_without_a_bus_is_named(address: str, text: str) -> None:
    with pytest.raises(BusError, match=text):
        await connect(address)
