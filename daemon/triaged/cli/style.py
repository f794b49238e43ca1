# SPDX-License-Identifier: Apache-2.0
"""How triagectl writes: colours or none, how many columns fit, and nothing that a terminal would obey.

Names of processes, cgroups and tests are chosen by users. Whatever is shown goes through `safe`.
"""
from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

_ESCAPE = re.compile("\x1b\\[[0-9;]*m")
_BOLD, _DIM, _RED, _YELLOW, _GREEN, _CYAN = "1", "2", "31", "33", "32", "36"
_SEVERITY_COLOURS = {"critical": "1;31", "error": _RED, "warning": _YELLOW, "notice": _CYAN}
_STATE_COLOURS = {"active": _GREEN, "degraded": _YELLOW, "unavailable": _RED}
NO_TERMINAL_WIDTH = 100


def safe(text: object) -> str:
    """The text with everything escaped that is not printable. Applying it twice changes nothing.

    `model.quoting.shown` also doubles backslashes and caps the length; it is for the text's first border, this for the last.
    """
    return "".join(character if character.isprintable() else _escaped(ord(character), 0x100) for character in str(text))


def _escaped(code: int, bytes_below: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode gives it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < bytes_below else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def columns(text: str) -> int:
    """How many columns of a terminal the text takes; colours take none, wide characters two, combining ones none."""
    text = _ESCAPE.sub("", text)
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def fitted(text: str, width: int) -> str:
    """The text, cut to `width` columns with an ellipsis where it is longer. Without colours."""
    if columns(text) <= width:
        return text
    out, used = [], 0
    for character in text:
        used += columns(character)
        if used > width - 1:
            break
        out.append(character)
    return "".join(out) + "…"


def padded(text: str, width: int) -> str:
    """The text, filled up with spaces to `width` columns."""
    return text + " " * (width - columns(text))


def wrapped(text: str, width: int, first: str = "", rest: str | None = None) -> list[str]:
    """The text in lines of at most `width` columns: `first` before the first one, `rest` (default: blanks) before the others.

    Words are broken only after a comma, and only where they are longer than a line (the kernel's oom-kill record is): a path
    or a command stays in one piece.
    """
    rest = " " * columns(first) if rest is None else rest
    lines, line, is_empty = [], first, True
    for word in text.split():
        pieces = re.split("(?<=,)(?=.)", word) if columns(rest) + columns(word) > width else [word]
        for index, piece in enumerate(pieces):
            gap = "" if index or is_empty else " "
            if not is_empty and columns(line) + len(gap) + columns(piece) > width:
                lines.append(line)
                line, gap = rest, ""
            line += gap + piece
            is_empty = False
    lines.append(line.rstrip())
    return lines


def command_line(argv: list[str]) -> str:
    """The command as a person would type it in a shell, in printable characters only."""
    return " ".join(_quoted(word) for word in argv)


def _quoted(word: str) -> str:
    if safe(word) != word:
        # $'...' is the one notation that bash, zsh and ksh have for what cannot be printed. There \\x is a byte, \\u a character.
        escaped = word.replace("\\", "\\\\").replace("'", "\\'")
        return "$'" + "".join(each if each.isprintable() else _escaped(ord(each), 0x80) for each in escaped) + "'"
    if word and re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII):
        return word
    if "'" in word and not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return "'" + word.replace("'", "'\"'\"'") + "'"


@dataclass(frozen=True)
class Style:
    """The look of one output. `width` is in columns; `is_terminal` says whether a person is likely to read it at once."""

    colours: bool = False
    width: int = NO_TERMINAL_WIDTH
    is_terminal: bool = False

    def _coloured(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and text else text

    def strong(self, text: str) -> str:
        """For headings."""
        return self._coloured(_BOLD, text)

    def faint(self, text: str) -> str:
        """For what matters less."""
        return self._coloured(_DIM, text)

    def severity(self, word: str, text: str) -> str:
        """The text in the colour of a severity."""
        return self._coloured(_SEVERITY_COLOURS.get(word, ""), text) if word in _SEVERITY_COLOURS else text

    def source_state(self, word: str, text: str) -> str:
        """The text in the colour of a source's state."""
        return self._coloured(_STATE_COLOURS.get(word, ""), text) if word in _STATE_COLOURS else text


def style_for(stream: TextIO, when: str = "auto", environment: Mapping[str, str] | None = None) -> Style:
    """The style for an output. `when` is auto, always or never; NO_COLOR (no-color.org) and TERM=dumb only bear on auto."""
    environment = os.environ if environment is None else environment
    is_terminal = stream.isatty()
    wants = is_terminal and not environment.get("NO_COLOR") and environment.get("TERM", "") != "dumb"
    width = NO_TERMINAL_WIDTH
    if is_terminal or environment.get("COLUMNS", "").isdigit():
        width = shutil.get_terminal_size((NO_TERMINAL_WIDTH, 24)).columns
    return Style(when == "always" or (when == "auto" and wants), max(40, width), is_terminal)
