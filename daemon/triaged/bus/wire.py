# SPDX-License-Identifier: Apache-2.0
"""Message headers as they stand on the wire (D-Bus specification, "Message Protocol"), and containers joined from ready parts.

Headers are read and written here and not by the D-Bus library, because everything in them is chosen by whoever sends:
what is not known (flag bits, fields, message types) is passed over, as the specification demands, and a message that is too
large can be answered without having been read. Bodies go through `seam.py`.
"""
from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

FIXED_BYTES = 16
# The specification's own maxima; a bus never forwards more.
MESSAGE_BYTES = 128 << 20
HEADER_BYTES = 64 << 20


class MessageType(IntEnum):
    """The types of message that this program knows; others are passed over."""

    METHOD_CALL = 1
    METHOD_RETURN = 2
    ERROR = 3
    SIGNAL = 4


class Flag(IntFlag):
    """The flags that this program knows; other bits are cleared."""

    NONE = 0
    NO_REPLY_EXPECTED = 1
    NO_AUTO_START = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4


# Header fields by their code, and the only type each may have.
_TEXT_FIELDS = {1: "path", 2: "interface", 3: "member", 4: "error_name", 6: "destination", 7: "sender"}
_REPLY_SERIAL = 5
_SIGNATURE = 8
_KNOWN_FLAGS = tuple(Flag(bits) for bits in range(8))
_FIXED_SIZE = {ord(code): size for code, size in zip("ybnqiuhxtd", (1, 4, 2, 2, 4, 4, 4, 8, 8, 8), strict=True)}
_ALIGNMENT = {**_FIXED_SIZE, **{ord(code): size for code, size in zip("sogav({", (4, 4, 1, 4, 1, 8, 8), strict=True)}}


@dataclass(slots=True)
class Header:
    """What the header of a message says. A field that is absent is '' or 0. `message_type` 0: one that is not known."""

    message_type: int
    flags: Flag
    serial: int
    body_bytes: int
    little_endian: bool = True
    path: str = ""
    interface: str = ""
    member: str = ""
    error_name: str = ""
    reply_serial: int = 0
    destination: str = ""
    sender: str = ""
    signature: str = ""


@dataclass(slots=True)
class Lengths:
    """How long a message is: the header with its padding, and all of it. Bytes."""

    header: int
    message: int


def parse_lengths(start: bytes | bytearray) -> Lengths:
    """The lengths that the first 16 bytes of a message announce. Raises ValueError where no message can begin like that."""
    order = _byte_order(start[0])
    body, _, fields = struct.unpack_from(order + "III", start, 4)
    if start[3] != 1 or fields > HEADER_BYTES or FIXED_BYTES + fields + body > MESSAGE_BYTES:
        raise ValueError("not a D-Bus message")
    header = FIXED_BYTES + _aligned(fields, 8)
    return Lengths(header, header + body)


def parse_header(data: bytes | bytearray) -> Header:
    """The header at the beginning of `data`, which holds at least all of it. Raises ValueError if it is malformed."""
    order = _byte_order(data[0])
    try:
        body, serial, length = struct.unpack_from(order + "III", data, 4)
        fields = _parse_fields(data, order, FIXED_BYTES + length)
    except (struct.error, IndexError, RecursionError, KeyError) as error:
        raise ValueError(f"malformed D-Bus header: {error!r}") from error
    message_type = data[1] if data[1] <= MessageType.SIGNAL else 0
    return Header(message_type, _KNOWN_FLAGS[data[2] & 7], serial, body, order == "<", **fields)  # type: ignore[arg-type]


def build_message(
    message_type: MessageType,
    serial: int,
    signature: str = "",
    body: bytes = b"",
    *,
    flags: Flag = Flag.NONE,
    path: str = "",
    interface: str = "",
    member: str = "",
    error_name: str = "",
    reply_serial: int = 0,
    destination: str = "",
    little_endian: bool = True,
) -> bytes:
    """A whole message around a marshalled body; what is '' or 0 is left out."""
    order = "<" if little_endian else ">"
    fields = bytearray()
    for code, kind, text in (
        (1, b"o", path), (2, b"s", interface), (3, b"s", member), (4, b"s", error_name), (6, b"s", destination),
    ):
        if text:
            encoded = text.encode("ascii")
            fields += b"\0" * (-len(fields) % 8)
            fields += struct.pack(order + "BBcBI", code, 1, kind, 0, len(encoded)) + encoded + b"\0"
    if reply_serial:
        fields += b"\0" * (-len(fields) % 8) + struct.pack(order + "BBBBI", _REPLY_SERIAL, 1, ord("u"), 0, reply_serial)
    if signature:
        encoded = signature.encode("ascii")
        fields += b"\0" * (-len(fields) % 8) + bytes((_SIGNATURE, 1, ord("g"), 0, len(encoded))) + encoded + b"\0"
    start = struct.pack(
        order + "BBBBIII", ord("l") if little_endian else ord("B"), message_type, flags, 1, len(body), serial, len(fields)
    )
    return b"".join((start, fields, b"\0" * (-len(fields) % 8), body))


def is_as_long_as(signature: str, body: bytes, little_endian: bool = True) -> bool:
    """Whether the values of the signature take up exactly this body. What is inside arrays is not looked at."""
    try:
        return _skip(body, "<" if little_endian else ">", signature.encode("ascii"), 0) == len(body)
    except (struct.error, IndexError, KeyError, RecursionError, UnicodeEncodeError):
        return False


def join_dictionaries(entries: Sequence[bytes]) -> bytes:
    """A marshalled aa{sv} of dictionaries whose marshalled entries (what follows the length and its padding) are ready."""
    out = bytearray(4)
    for part in entries:
        out += b"\0" * (-len(out) % 4)
        out += struct.pack("<I", len(part))
        out += b"\0" * (-len(out) % 8)
        out += part
    out[0:4] = struct.pack("<I", len(out) - 4)
    return bytes(out)


def join_dictionary(parts: Sequence[bytes]) -> bytes:
    """A marshalled a{sv} or a{sa{sv}} of ready entries."""
    out = bytearray(8)
    for part in parts:
        out += b"\0" * (-len(out) % 8)
        out += part
    out[0:4] = struct.pack("<I", len(out) - 8)
    return bytes(out)


def join_interface(name: str, properties: bytes) -> bytes:
    """The entry of an a{sa{sv}} for one interface whose properties are ready entries."""
    encoded = name.encode("ascii")
    out = struct.pack("<I", len(encoded)) + encoded + b"\0"
    out += b"\0" * (-len(out) % 4)
    out += struct.pack("<I", len(properties))
    return out + b"\0" * (-len(out) % 8) + properties


def join_string(body: bytes, text: str) -> bytes:
    """The marshalled body with one string after it."""
    encoded = text.encode("utf-8")
    return body + b"\0" * (-len(body) % 4) + struct.pack("<I", len(encoded)) + encoded + b"\0"


def join_objects(objects: Iterable[tuple[str, bytes]]) -> bytes:
    """A marshalled a{oa{sa{sv}}} of paths with the ready entries of their a{sa{sv}}."""
    out = bytearray(8)
    for path, interfaces in objects:
        encoded = path.encode("ascii")
        out += b"\0" * (-len(out) % 8)
        out += struct.pack("<I", len(encoded)) + encoded + b"\0"
        out += b"\0" * (-len(out) % 4)
        out += struct.pack("<I", len(interfaces))
        out += b"\0" * (-len(out) % 8)
        out += interfaces
    out[0:4] = struct.pack("<I", len(out) - 8)
    return bytes(out)


def _byte_order(mark: int) -> str:
    if mark == ord("l"):
        return "<"
    if mark == ord("B"):
        return ">"
    raise ValueError("neither a little-endian nor a big-endian D-Bus message")


def _aligned(offset: int, alignment: int) -> int:
    return offset + -offset % alignment


def _parse_fields(data: bytes | bytearray, order: str, end: int) -> dict[str, str | int]:
    out: dict[str, str | int] = {}
    unsigned = struct.Struct(order + "I").unpack_from
    offset = FIXED_BYTES
    while offset < end:
        offset = _aligned(offset, 8)
        code, length, kind = data[offset], data[offset + 1], data[offset + 2]
        value = offset + 3 + length
        if length == 1 and kind in b"so":
            start = _aligned(value, 4) + 4
            offset = start + unsigned(data, start - 4)[0] + 1
            if code in _TEXT_FIELDS:
                out[_TEXT_FIELDS[code]] = data[start:offset - 1].decode("utf-8")
        else:
            offset = _skip(data, order, bytes(data[offset + 2:value - 1]), value)
            if code == _SIGNATURE and kind == ord("g"):
                out["signature"] = data[value + 1:offset - 1].decode("ascii")
            elif code == _REPLY_SERIAL and kind == ord("u"):
                out["reply_serial"] = unsigned(data, _aligned(value, 4))[0]
        if offset > end:
            raise ValueError("a field of the D-Bus header is longer than the header")
    return out


def _skip(data: bytes | bytearray, order: str, signature: bytes, offset: int) -> int:
    """Where the values of `signature` that begin at `offset` end."""
    at = 0
    while at < len(signature):
        code = signature[at]
        if code in b")}":
            at += 1
            continue
        offset = _aligned(offset, _ALIGNMENT[code])
        if code in _FIXED_SIZE:
            offset += _FIXED_SIZE[code]
        elif code in b"so":
            offset += 5 + struct.unpack_from(order + "I", data, offset)[0]
        elif code == ord("g"):
            offset += 2 + data[offset]
        elif code == ord("v"):
            inner = bytes(data[offset + 1:offset + 1 + data[offset]])
            offset = _skip(data, order, inner, offset + 2 + data[offset])
        elif code == ord("a"):
            length = struct.unpack_from(order + "I", data, offset)[0]
            # The padding before the first element is not counted in the length.
            offset = _aligned(offset + 4, _ALIGNMENT[signature[at + 1]]) + length
            at = _element_end(signature, at + 1)
            continue
        at += 1
    return offset


def _element_end(signature: bytes, at: int) -> int:
    """Where the single complete type that begins at `at` ends."""
    while signature[at] == ord("a"):
        at += 1
    depth = 0
    while True:
        depth += (signature[at] in b"({") - (signature[at] in b")}")
        at += 1
        if depth == 0:
            return at
