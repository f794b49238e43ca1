# SPDX-License-Identifier: Apache-2.0
"""A connection to a message bus on asyncio: framing, calls with time limits, replies, signals, and no way for a peer to end it.

What the bus does that shapes this (measured, dbus-daemon 1.14 and dbus-broker 33):
- The socket refuses with EAGAIN as soon as the bus is busy; asyncio's transport queues then, in order. Beyond a mark no more calls
  are answered until the bus has read; those that wait are taken in turn from each caller, so that one who asks for much does not
  make all others wait. Beyond another mark signals are dropped and counted.
- dbus-daemon stops reading from a sender of which 127 MB wait for some receiver. The socket then stays full for as long as that
  receiver lives, for all other callers too; only a new connection gets out of it. Hence the watch on the progress of writing.
- A message that is too large is never held: its header is read, the caller is told, the rest is passed over as it comes.
"""
from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from triaged.bus import seam
from triaged.bus.wire import FIXED_BYTES, Flag, Header, MessageType, build_message, parse_header, parse_lengths
from triaged.errors import BusError

log = logging.getLogger(__name__)

BUS_NAME = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"

CONNECT_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 25.0
# Requests are ids and options. 16 kB of variants cost the slowest library 40 ms, which is all that one message may hold up.
REQUEST_BYTES = 16 << 10
REPLY_BYTES = 1 << 20
HEADER_BYTES = 8 << 10
STALL_S = 5.0
# How long received messages are handled before the rest of the program gets its turn, and the pause after that: in a storm of
# messages no more than half a core goes into them.
SLICE_S = 0.010
OUTPUT_HIGH_BYTES = 1 << 20
OUTPUT_LOW_BYTES = 256 << 10
HELD_BYTES = 4 << 20
SIGNAL_QUEUE_BYTES = 32 << 20
ERROR_TEXT_CHARACTERS = 1000

DISCONNECTED = "org.freedesktop.DBus.Error.Disconnected"
TIMED_OUT = "org.freedesktop.DBus.Error.NoReply"
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"


@dataclass(slots=True)
class Limits:
    """The largest messages that are taken: requests and signals, and replies to own calls. How long a stall takes to be one."""

    request_bytes: int = REQUEST_BYTES
    reply_bytes: int = REPLY_BYTES
    stall_s: float = STALL_S


class Message:
    """A message that came: its header, and its body until somebody wants the values."""

    __slots__ = ("body", "header")

    def __init__(self, header: Header, body: bytes) -> None:
        self.header = header
        self.body = body

    def values(self) -> list[Any]:
        """The values of the body. Raises BusError if it is malformed."""
        return seam.unmarshal(self.header.signature, self.body, self.header.little_endian)

    @property
    def wants_reply(self) -> bool:
        """Whether the sender waits for an answer."""
        return self.header.message_type == MessageType.METHOD_CALL and not self.header.flags & Flag.NO_REPLY_EXPECTED

    @property
    def may_interact(self) -> bool:
        """Whether the sender allows that a person is asked for authorisation."""
        return bool(self.header.flags & Flag.ALLOW_INTERACTIVE_AUTHORIZATION)


class Connection(asyncio.Protocol):
    """One connection. Made by `connect`; `closed` is done, with the reason, when it is lost.

    `on_call` and `on_signal` are called for each message of their kind; they must not block, and what they raise is logged.
    `dropped` counts what was not sent or not taken, by name.
    """

    def __init__(
        self,
        limits: Limits,
        on_call: Callable[[Connection, Message], None] | None = None,
        on_signal: Callable[[Connection, Message], None] | None = None,
        dropped: Counter[str] | None = None,
    ) -> None:
        self.unique_name = ""
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.dropped: Counter[str] = Counter() if dropped is None else dropped
        self._limits = limits
        self._on_call = on_call
        self._on_signal = on_signal
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._skip_bytes = 0
        self._pump_later: asyncio.Handle | None = None
        self._output = bytearray()
        self._flush_later: asyncio.Handle | None = None
        self._output_full = False
        # Calls that wait for room in the output, by caller.
        self._held: OrderedDict[str, deque[Message]] = OrderedDict()
        self._held_bytes = 0
        self._unsent_bytes = 0
        self._flushed_bytes = 0
        self._watch: asyncio.Handle | None = None
        self._serial = 0
        self._pending: dict[int, asyncio.Future[Message]] = {}

    # -- calls, replies, signals

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        values: Sequence[Any] = (),
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        flags: Flag = Flag.NONE,
    ) -> list[Any]:
        """The values that the method returns.

        Raises: BusError with the name of the D-Bus error; NoReply after `timeout_s`, Disconnected if the connection is lost.
        """
        body = seam.marshal(signature, values)
        self._serial = self._serial % 0xFFFFFFFF + 1
        serial = self._serial
        frame = build_message(
            MessageType.METHOD_CALL, serial, signature, body, flags=flags,
            path=path, interface=interface, member=member, destination=destination,
        )
        reply: asyncio.Future[Message] = self._loop.create_future()
        self._pending[serial] = reply
        try:
            self._send(frame)
            message = await asyncio.wait_for(reply, timeout_s)
        except asyncio.TimeoutError:
            raise BusError(TIMED_OUT, f"{destination} did not answer {interface}.{member} within {timeout_s:g} s") from None
        finally:
            self._pending.pop(serial, None)
        values = message.values()
        if message.header.message_type == MessageType.ERROR:
            text = values[0] if values and isinstance(values[0], str) else message.header.error_name
            raise BusError(message.header.error_name, text)
        return values

    def answer_later(self, messages: Sequence[Message]) -> None:
        """Has calls of one caller that could not be answered when they came handled again, before what it called since."""
        for message in reversed(messages):
            self._held.setdefault(message.header.sender, deque()).appendleft(message)
            self._held_bytes += _held_size(message)
        if self._pump_later is None:
            self._pump_later = self._loop.call_soon(self._pump)

    def reply(self, call: Message, signature: str, body: bytes) -> None:
        """Answers a call with a marshalled body; with LimitsExceeded where that is too large."""
        if not call.wants_reply:
            return
        if len(body) > REPLY_BYTES:
            self.dropped["bus-replies-too-large"] += 1
            self.reply_error(call, LIMITS_EXCEEDED, f"the reply would be larger than {REPLY_BYTES} bytes; ask for less at a time")
            return
        self._serial = self._serial % 0xFFFFFFFF + 1
        self._send_or_drop(build_message(
            MessageType.METHOD_RETURN, self._serial, signature, body, flags=Flag.NO_REPLY_EXPECTED,
            reply_serial=call.header.serial, destination=call.header.sender,
        ))

    def reply_error(self, call: Message, name: str, text: str) -> None:
        """Answers a call with an error."""
        if not call.wants_reply:
            return
        self._serial = self._serial % 0xFFFFFFFF + 1
        self._send_or_drop(build_message(
            MessageType.ERROR, self._serial, "s", seam.marshal("s", [seam.clean(text[:ERROR_TEXT_CHARACTERS])]),
            flags=Flag.NO_REPLY_EXPECTED, error_name=name, reply_serial=call.header.serial, destination=call.header.sender,
        ))

    def signal(self, path: str, interface: str, member: str, signature: str = "", body: bytes = b"") -> None:
        """Broadcasts a signal; drops and counts it where the bus has not taken the last 32 MB."""
        if len(self._output) + self._unsent_bytes > SIGNAL_QUEUE_BYTES or len(body) > REPLY_BYTES:
            self.dropped["bus-signals"] += 1
            return
        self._serial = self._serial % 0xFFFFFFFF + 1
        self._send_or_drop(build_message(
            MessageType.SIGNAL, self._serial, signature, body,
            flags=Flag.NO_REPLY_EXPECTED, path=path, interface=interface, member=member,
        ))

    async def add_match(self, rule: str) -> None:
        """Asks the bus for the broadcasts that match. Raises BusError."""
        await self.call(BUS_NAME, BUS_PATH, BUS_NAME, "AddMatch", "s", [rule])

    async def close(self) -> None:
        """Sends what is queued, at most for a second, and closes."""
        if self._transport is not None and not self.closed.done():
            self._flush()
            self._transport.close()
            await asyncio.wait([self.closed], timeout=1.0)
            self._transport.abort()
        await self.closed

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(OUTPUT_HIGH_BYTES, OUTPUT_LOW_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        for handle in (self._pump_later, self._flush_later, self._watch):
            if handle is not None:
                handle.cancel()
        self._lose(str(exc) if exc is not None else "the bus closed the connection")
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(BusError(DISCONNECTED, "the connection to the bus was lost"))

    def data_received(self, data: bytes) -> None:
        self._input += data
        if self._pump_later is None:
            self._pump()

    def pause_writing(self) -> None:
        self._output_full = True

    def resume_writing(self) -> None:
        self._output_full = False
        if self._pump_later is None:
            self._pump_later = self._loop.call_soon(self._pump)

    # -- input

    def _pump(self) -> None:
        self._pump_later = None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        end = time.monotonic() + SLICE_S
        try:
            while self._answer_held() or (self._held_bytes < HELD_BYTES and self._take_message()):
                if time.monotonic() > end:
                    transport.pause_reading()
                    self._pump_later = self._loop.call_later(SLICE_S, self._pump)
                    return
        except ValueError as error:
            self._abort(f"the bus sent what is no D-Bus message: {error}")
            return
        if self._held_bytes < HELD_BYTES:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _hold(self, message: Message) -> None:
        self._held.setdefault(message.header.sender, deque()).append(message)
        self._held_bytes += _held_size(message)

    def _is_output_full(self) -> bool:
        return self._output_full or len(self._output) > OUTPUT_HIGH_BYTES

    def _answer_held(self) -> bool:
        """Has one held call answered, the next caller's; False if there is none or no room."""
        if not self._held or self._is_output_full():
            return False
        sender, waiting = self._held.popitem(last=False)
        message = waiting.popleft()
        if waiting:
            self._held[sender] = waiting
        self._held_bytes -= _held_size(message)
        self._call_handler(message)
        return True

    def _take_message(self) -> bool:
        """Handles the first message of the input; False if it is not there yet."""
        data = self._input
        if self._skip_bytes:
            passed = min(self._skip_bytes, len(data))
            del data[:passed]
            self._skip_bytes -= passed
        if len(data) < FIXED_BYTES:
            return False
        lengths = parse_lengths(data)
        is_reply = data[1] in (MessageType.METHOD_RETURN, MessageType.ERROR)
        if lengths.message > (self._limits.reply_bytes + HEADER_BYTES if is_reply else self._limits.request_bytes + HEADER_BYTES):
            # A header may be as long as 64 MB. One that is longer than any honest one is passed over without an answer.
            if len(data) < lengths.header <= HEADER_BYTES:
                return False
            self._refuse_large(parse_header(data) if lengths.header <= HEADER_BYTES else None)
            self._skip_bytes = lengths.message
            return True
        if len(data) < lengths.message:
            return False
        frame = bytes(data[:lengths.message])
        del data[:lengths.message]
        self._handle(Message(parse_header(frame), frame[lengths.header:]))
        return True

    def _refuse_large(self, header: Header | None) -> None:
        self.dropped["bus-messages-too-large"] += 1
        if header is None:
            return
        text = f"the message is larger than {self._limits.request_bytes} bytes"
        if header.message_type == MessageType.METHOD_CALL:
            self.reply_error(Message(header, b""), LIMITS_EXCEEDED, text)
        elif header.reply_serial in self._pending and not self._pending[header.reply_serial].done():
            text = f"the reply is larger than {self._limits.reply_bytes} bytes"
            self._pending[header.reply_serial].set_exception(BusError(LIMITS_EXCEEDED, text))

    def _handle(self, message: Message) -> None:
        kind = message.header.message_type
        if kind in (MessageType.METHOD_RETURN, MessageType.ERROR):
            reply = self._pending.get(message.header.reply_serial)
            if reply is not None and not reply.done():
                reply.set_result(message)
            return
        if kind == MessageType.METHOD_CALL and (self._held or self._is_output_full()):
            self._hold(message)
        elif kind in (MessageType.METHOD_CALL, MessageType.SIGNAL):
            self._call_handler(message)

    def _call_handler(self, message: Message) -> None:
        is_call = message.header.message_type == MessageType.METHOD_CALL
        handler = self._on_call if is_call else self._on_signal
        try:
            if handler is not None:
                handler(self, message)
            elif is_call:
                self.reply_error(message, "org.freedesktop.DBus.Error.UnknownObject", "this client has no objects")
        except Exception:
            # The border of every handler: whatever one message brings about must not end the connection of all.
            log.exception("a D-Bus message could not be handled, ignoring it")
            self.dropped["bus-messages-failed"] += 1
            self.reply_error(message, "org.freedesktop.DBus.Error.Failed", "internal error; the log of triaged has it")

    # -- output

    def _send(self, frame: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise BusError(DISCONNECTED, "the connection to the bus is lost")
        self._output += frame
        # One write for all that a turn of the loop produces: a burst of signals is a handful of system calls.
        if self._flush_later is None:
            self._flush_later = self._loop.call_soon(self._flush)

    def _send_or_drop(self, frame: bytes) -> None:
        try:
            self._send(frame)
        except BusError:
            self.dropped["bus-messages-unsent"] += 1

    def _flush(self) -> None:
        self._flush_later = None
        if self._transport is None or self._transport.is_closing() or not self._output:
            return
        data = bytes(self._output)
        self._output.clear()
        self._transport.write(data)
        self._flushed_bytes += len(data)
        self._unsent_bytes = self._transport.get_write_buffer_size()
        if self._unsent_bytes and self._watch is None:
            sent = self._flushed_bytes - self._unsent_bytes
            self._watch = self._loop.call_later(self._limits.stall_s, self._look_for_stall, sent)
        if self._held and not self._output_full and self._pump_later is None:
            self._pump_later = self._loop.call_soon(self._pump)

    def _look_for_stall(self, sent_then: int) -> None:
        self._watch = None
        if self._transport is None or self._transport.is_closing():
            return
        self._unsent_bytes = self._transport.get_write_buffer_size()
        sent = self._flushed_bytes - self._unsent_bytes
        if not self._unsent_bytes:
            return
        if sent == sent_then:
            self._abort(f"the bus has read nothing for {self._limits.stall_s:g} s with {self._unsent_bytes} bytes waiting")
            return
        self._watch = self._loop.call_later(self._limits.stall_s, self._look_for_stall, sent)

    def _abort(self, reason: str) -> None:
        self._lose(reason)
        if self._transport is not None:
            self._transport.abort()

    def _lose(self, reason: str) -> None:
        if not self.closed.done():
            self.closed.set_result(reason)


def _held_size(message: Message) -> int:
    return len(message.body) + 1000  # a header and the objects around it


async def connect(
    address: str,
    *,
    on_call: Callable[[Connection, Message], None] | None = None,
    on_signal: Callable[[Connection, Message], None] | None = None,
    limits: Limits | None = None,
    dropped: Counter[str] | None = None,
) -> Connection:
    """A connection to the bus at `address` that has its unique name.

    Raises: BusError if no transport of the address answers, or the bus refuses.
    """

    def make() -> Connection:
        return Connection(limits or Limits(), on_call, on_signal, dropped)

    failures = []
    for transport, options in seam.parse_address(address):
        if transport != "unix" or not ("path" in options or "abstract" in options):
            failures.append(f"{transport}: not supported")
            continue
        path = options["path"] if "path" in options else "\0" + options["abstract"]
        try:
            return await asyncio.wait_for(_connect_unix(path, make), CONNECT_TIMEOUT_S)
        except asyncio.TimeoutError:
            failures.append(f"{path}: no answer within {CONNECT_TIMEOUT_S:g} s")
        except OSError as error:
            failures.append(f"{path}: {error.strerror or error}")
    raise BusError("org.freedesktop.DBus.Error.NoServer", f"cannot connect to the bus at {address} ({'; '.join(failures)})")


async def _connect_unix(path: str, make: Callable[[], Connection]) -> Connection:
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, path)
        await _authenticate(loop, sock)
        _, connection = await loop.create_unix_connection(make, sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        connection.unique_name = str((await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "Hello"))[0])
    except BaseException:
        connection._abort("the bus did not welcome this client")
        raise
    return connection


async def _authenticate(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    authentication = seam.Authentication()
    await loop.sock_sendall(sock, authentication.start())
    line = b""
    while not authentication.done:
        part = await loop.sock_recv(sock, 1)
        if not part or len(line) > 4096:
            raise BusError("org.freedesktop.DBus.Error.AuthFailed", "the bus closed the connection during authentication")
        line += part
        if line.endswith(b"\n"):
            await loop.sock_sendall(sock, authentication.answer(line))
            line = b""
