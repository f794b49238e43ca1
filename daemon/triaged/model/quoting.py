# SPDX-License-Identifier: Apache-2.0
"""Names that users choose (comm, cgroup names, command lines), made safe to show."""
from __future__ import annotations


def shown(text: str | bytes, cap: int = 256) -> str:
    """The text with control characters, bidirectional overrides and undecodable bytes escaped, at most `cap` characters long.

    Bytes are read as UTF-8; what is not UTF-8 (also what `os.fsdecode` left as surrogates) becomes `\\xNN`.
    """
    if isinstance(text, bytes):
        text = text[: cap * 4 + 4].decode("utf-8", "surrogateescape")
    if len(text) <= cap and text.isprintable() and "\\" not in text:  # nearly always
        return text
    out: list[str] = []
    length = 0
    for character in text:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            character = f"\\x{code - 0xDC00:02x}"
        elif character == "\\":
            character = "\\\\"
        elif not character.isprintable():
            character = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        length += len(character)
        if length > cap:
            out.append("…")
            break
        out.append(character)
    return "".join(out)
