# SPDX-License-Identifier: Apache-2.0
"""Bytes that pass by, cut into lines; and what is kept of the lines of one test: bounded, however much it prints."""
from __future__ import annotations

from collections import deque

from triaged.model.mention import Mention
from triaged.output.error_texts import LONGEST_LINE, may_mention, parse_mention

_FIRST_MENTIONS = 20
_LAST_MENTIONS = 40
_TAIL = 60


class LineCutter:
    """Whole lines out of pieces of a stream. What a line has beyond 4,096 characters is left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_skipping = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now, without their ends."""
        *lines, rest = data.split(b"\n")
        if not lines:
            self._keep(rest)
            return []
        first = b"" if self._is_skipping else lines[0]
        lines[0] = self._rest + first
        self._rest, self._is_skipping = b"", False
        self._keep(rest)
        return [line[:LONGEST_LINE].rstrip(b"\r").decode("utf-8", "replace") for line in lines]

    def _keep(self, rest: bytes) -> None:
        if not self._is_skipping:
            self._rest += rest
        if len(self._rest) > LONGEST_LINE:
            self._rest, self._is_skipping = self._rest[:LONGEST_LINE], True

    def finish(self) -> list[str]:
        """The last line, if the stream ended without a line's end."""
        rest, self._rest = self._rest, b""
        return [rest.rstrip(b"\r").decode("utf-8", "replace")] if rest else []


class Kept:
    """What is kept of the lines of a test or package: those that may name an error (the first 20 and the last 40), and the end."""

    def __init__(self) -> None:
        self._first: list[tuple[int, str]] = []
        self._last: deque[tuple[int, str]] = deque(maxlen=_LAST_MENTIONS)
        self._tail: deque[str] = deque(maxlen=_TAIL)

    def add(self, line: str, at_ns: int) -> None:
        """Takes note of a line."""
        self._tail.append(line)
        if may_mention(line):
            if len(self._first) < _FIRST_MENTIONS:
                self._first.append((at_ns, line))
            else:
                self._last.append((at_ns, line))

    def absorb(self, other: Kept) -> None:
        """Takes over what another one kept."""
        for at_ns, line in (*other._first, *other._last):
            if len(self._first) < _FIRST_MENTIONS:
                self._first.append((at_ns, line))
            else:
                self._last.append((at_ns, line))
        self._tail.extend(other._tail)

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines."""
        return tuple(self._tail)

    @property
    def text(self) -> str:
        """The last lines as one text."""
        return "\n".join(self._tail)

    def mentions(self) -> tuple[Mention, ...]:
        """What the lines name, in their order; the same line only once."""
        found: dict[str, Mention] = {}
        for at_ns, line in (*self._first, *self._last):
            mention = parse_mention(line, at_ns)
            if mention is not None:
                found.setdefault(mention.text.strip(), mention)
        return tuple(found.values())
