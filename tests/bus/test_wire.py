# SPDX-License-Identifier: Apache-2.0
"""Headers against those that a D-Bus library writes, and against anything at all."""
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triaged.bus import seam
from triaged.bus.wire import (
    Flag,
    MessageType,
    build_message,
    join_dictionaries,
    join_dictionary,
    join_interface,
    join_objects,
    join_string,
    parse_header,
    parse_lengths,
)

PATHS = st.from_regex(r"(/[A-Za-z0-9_]{1,12}){1,4}", fullmatch=True)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
INTERFACES = st.from_regex(r"[A-Za-z_]{1,9}(\.[A-Za-z_]{1,9}){1,3}", fullmatch=True)
ROWS = st.lists(st.dictionaries(st.text("abc", max_size=9), st.text("xyz", max_size=20), max_size=4), max_size=6)

# A deadline would fail on a machine that is busy.
QUICKLY = settings(deadline=None, max_examples=60)


def variants(row: dict[str, str]) -> dict[str, Any]:
    return {key: seam.Variant("s", value) for key, value in row.items()}


def entries(row: dict[str, str]) -> bytes:
    return seam.marshal("a{sv}", [variants(row)])[8:]


@QUICKLY
@given(
    PATHS, INTERFACES, NAMES, st.integers(1, 2**32 - 1), st.booleans(), st.sampled_from(["", "s", "a{sv}as"]),
    st.binary(max_size=64),
)
def test_what_is_built_is_what_is_parsed(
    path: str, interface: str, member: str, serial: int, little_endian: bool, signature: str, body: bytes
) -> None:
    frame = build_message(
        MessageType.METHOD_CALL, serial, signature, body, flags=Flag.ALLOW_INTERACTIVE_AUTHORIZATION, path=path,
        interface=interface, member=member, destination="org.example.Name", reply_serial=serial, error_name="a.b",
        little_endian=little_endian,
    )
    header = parse_header(frame)
    assert (header.path, header.interface, header.member, header.serial) == (path, interface, member, serial)
    assert (header.signature, header.reply_serial, header.error_name) == (signature, serial, "a.b")
    assert (header.destination, header.flags) == ("org.example.Name", Flag.ALLOW_INTERACTIVE_AUTHORIZATION)
    lengths = parse_lengths(frame)
    assert (lengths.message, frame[lengths.header:], header.little_endian) == (len(frame), body, little_endian)


@QUICKLY
@given(PATHS, INTERFACES, NAMES, st.text(max_size=40).filter(lambda text: "\0" not in text))
def test_what_the_library_writes_is_what_is_parsed(path: str, interface: str, member: str, text: str) -> None:
    message = seam._message.Message(
        destination=":1.5", path=path, interface=interface, member=member, signature="su", body=[text, 7], serial=3
    )
    frame = bytes(message._marshall(False))
    header, lengths = parse_header(frame), parse_lengths(frame)
    assert (header.path, header.interface, header.member, header.destination) == (path, interface, member, ":1.5")
    assert seam.unmarshal(header.signature, frame[lengths.header:]) == [text, 7]


@QUICKLY
@given(ROWS)
def test_joined_rows_are_what_the_library_marshals(rows: list[dict[str, str]]) -> None:
    expected = seam.marshal("aa{sv}s", [[variants(row) for row in rows], "next"])
    assert join_string(join_dictionaries([entries(row) for row in rows]), "next") == expected


@QUICKLY
@given(ROWS)
def test_joined_objects_are_what_the_library_marshals(rows: list[dict[str, str]]) -> None:
    paths = [f"/finding/{'x' * (index + 1)}" for index in range(len(rows))]
    expected = seam.marshal("a{oa{sa{sv}}}", [{path: {"a.b": variants(row)} for path, row in zip(paths, rows, strict=True)}])
    joined = join_objects((path, join_interface("a.b", entries(row))) for path, row in zip(paths, rows, strict=True))
    assert joined == expected


@QUICKLY
@given(st.dictionaries(st.text("abc", max_size=9), st.text("xyz", max_size=20), max_size=4))
def test_a_joined_dictionary_is_what_the_library_marshals(row: dict[str, str]) -> None:
    assert join_dictionary([entries(row)]) == seam.marshal("a{sv}", [variants(row)])


@QUICKLY
@given(st.binary(min_size=16, max_size=200))
def test_no_header_raises_anything_but_value_error(data: bytes) -> None:
    for start in (b"l\1\0\1", b"B\1\0\1", data[:4]):
        whole = start + data[4:]
        try:
            parse_lengths(whole)
            parse_header(whole)
        except ValueError:
            pass


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("a{s(ix)}", {"a": [1, 2]}), ("a(yay)", [[1, b"12"], [2, b""]]), ("aaax", [[[1], []], []]), ("ax", []), ("g", "a{sv}"),
        ("v", seam.Variant("a{sv}", {"k": seam.Variant("as", ["x"])})),
        ("(ybnqiuxtdsog)", [1, True, -1, 2, -3, 4, -5, 6, 7.5, "s", "/o", "g"]),
    ],
)
def test_an_unknown_header_field_of_any_type_is_passed_over(signature: str, value: Any) -> None:
    fields = seam.marshal("a(yv)", [[[99, seam.Variant(signature, value)], [3, seam.Variant("s", "Member")]]])
    length = int.from_bytes(fields[:4], "little")
    frame = b"l\1\xff\1" + b"\0\0\0\0" + b"\1\0\0\0" + length.to_bytes(4, "little") + fields[8:] + b"\0" * (-length % 8)
    header = parse_header(frame)
    assert (header.member, header.flags) == ("Member", Flag(7))


@pytest.mark.parametrize("start", [b"x\1\0\1", b"l\1\0\2"])
def test_what_is_no_message_is_refused(start: bytes) -> None:
    with pytest.raises(ValueError, match="D-Bus"):
        parse_lengths(start + b"\0" * 12)


def test_a_message_longer_than_the_specification_allows_is_refused() -> None:
    with pytest.raises(ValueError, match="D-Bus"):
        parse_lengths(b"l\1\0\1" + b"\xff" * 4 + b"\1\0\0\0" + b"\0" * 4)
