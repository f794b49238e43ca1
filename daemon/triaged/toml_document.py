# SPDX-License-Identifier: Apache-2.0
"""TOML files that people write, read so that every complaint names the file, the line and the nearest valid name.

The decoder gives values without positions, so `lines_of` scans the text a second time. It runs only on text that the
decoder has accepted, and may therefore take its grammar for granted.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, Union

from triaged.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1 << 20
_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")

KeyPath = tuple[Union[str, int], ...]
E_ = TypeVar("E_", bound=Enum)


class _Scanner:
    """One pass over the text; `lines` maps each key's path (an index for each element of an array) to its line."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while True:
            self._skip(" \t\r\n", comments=True)
            if self.at >= len(self.text):
                return self.lines
            if self.text.startswith("[[", self.at):
                table = self._header(2)
            elif self.text[self.at] == "[":
                table = self._header(1)
            else:
                self._pair(table)

    def _advance(self, count: int = 1) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def _skip(self, characters: str, comments: bool = False) -> None:
        while self.at < len(self.text):
            if self.text[self.at] in characters:
                self._advance()
            elif comments and self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self._advance((end if end >= 0 else len(self.text)) - self.at)
            else:
                return

    def _record(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.line)

    def _header(self, brackets: int) -> KeyPath:
        self._advance(brackets)
        words = self._key()
        path: KeyPath = ()
        for word in words[:-1]:
            path = (*path, word)
            self._record(path)
            if path in self._elements:  # the table lies in the newest element of that array
                path = (*path, self._elements[path])
        path = (*path, words[-1])
        self._record(path)
        if brackets == 2:
            self._elements[path] = self._elements.get(path, -1) + 1
            path = (*path, self._elements[path])
            self._record(path)
        self._advance(brackets)
        return path

    def _key(self) -> list[str]:
        """The words of a dotted key, up to the "=" or "]" behind it."""
        words: list[str] = []
        while True:
            self._skip(" \t")
            character = self.text[self.at]
            if character in "\"'":
                words.append(self._string())
            else:
                end = self.at
                while self.text[end] not in " \t.=]":
                    end += 1
                words.append(self.text[self.at : end])
                self._advance(end - self.at)
            self._skip(" \t")
            if self.text[self.at] != ".":
                return words
            self._advance()

    def _pair(self, table: KeyPath) -> None:
        line = self.line
        path = table
        for word in self._key():
            path = (*path, word)
            self.lines.setdefault(path, line)
        self._advance()  # the "="
        self._skip(" \t")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        character = self.text[self.at]
        if character in "\"'":
            self._string()
        elif character == "[":
            self._advance()
            index = 0
            while True:
                self._skip(" \t\r\n,", comments=True)
                if self.text[self.at] == "]":
                    break
                self._record((*path, index))
                self._value((*path, index))
                index += 1
            self._advance()
        elif character == "{":
            self._advance()
            while True:
                self._skip(" \t\r\n,", comments=True)
                if self.text[self.at] == "}":
                    break
                self._pair(path)
            self._advance()
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}\r\n#":
                self._advance()

    def _string(self) -> str:
        """Steps over a string of any of the four forms; gives its value if it may be a key (one line)."""
        quote = self.text[self.at]
        many = self.text.startswith(quote * 3, self.at)
        fence = quote * 3 if many else quote
        start = self.at
        self._advance(len(fence))
        while not self.text.startswith(fence, self.at):
            self._advance(2 if quote == '"' and self.text[self.at] == "\\" else 1)
        self._advance(len(fence))
        while many and self.at < len(self.text) and self.text[self.at] == quote:  # up to two quotes may precede the fence
            self._advance()
        token = self.text[start : self.at]
        if many:
            return ""
        return token[1:-1] if quote == "'" else str(tomllib.loads(f"k = {token}")["k"])


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key, table and array element of a valid TOML text."""
    return _Scanner(text.replace("\r\n", "\n")).scan()


@dataclass(frozen=True)
class Document:
    """One TOML file: its values and where each stands."""

    path: str
    data: Mapping[str, Any]
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line of a key, or of the nearest thing around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def parse_document(text: str, path: str) -> Document:
    """The document. Raises: ConfigError with the line of the first syntax error."""
    try:
        data = tomllib.loads(text)
        lines = lines_of(text)
    except tomllib.TOMLDecodeError as error:
        # Newer decoders have the line as an attribute, too; all of them have it in the text.
        match = _POSITION.search(str(error))
        line = int(match.group(1)) if match and match.group(1) else len(text.splitlines()) or 1
        message = _POSITION.sub("", str(error))
        raise ConfigError(path, line, f"not valid TOML: {message}") from error
    except RecursionError as error:
        raise ConfigError(path, 0, "nested too deeply") from error
    return Document(path, data, lines)


def read_document(path: str) -> Document:
    """The file as a document. Raises: ConfigError (cannot be read, too big, not UTF-8, not TOML)."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, 0, f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(path, 0, f"is larger than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(path, content.count(b"\n", 0, error.start) + 1, "is not UTF-8") from error
    return parse_document(text, path)


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: the nearest valid one, or all of them."""
    import difflib  # imported only where something is wrong: the daemon keeps what it imports

    names = sorted(known)
    close = difflib.get_close_matches(word.lower(), names, 1, 0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}" if names else ""


@dataclass(frozen=True)
class Layer:
    """A table in a document, by the path of its key."""

    document: Document
    path: KeyPath
    values: Mapping[str, Any]

    def error(self, message: str, key: str = "", index: int = -1, remedy: str = "") -> ConfigError:
        """The error to raise about a key of the table (or about the table itself)."""
        path = (*self.path, key) if key else self.path
        if index >= 0:
            path = (*path, index)
        return ConfigError(self.document.path, self.document.line(path), message, remedy)


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string", list: "an array", dict: "a table"}
    return names.get(type(value), "a date or time")


@dataclass
class Table:
    """A table with typed access. Later layers win, key by key; each complaint points into the layer that is to blame.

    `expect` comes first, so that a misspelt required key is told as what it is and not as missing.
    """

    layers: tuple[Layer, ...]
    _known: frozenset[str] = frozenset()

    def expect(self, *keys: str) -> Table:
        """This table, of which no other keys will be asked. Raises: ConfigError for a key that is none of these."""
        self._known = frozenset(keys)
        for layer in self.layers:
            for key in layer.values:
                if key not in self._known:
                    raise layer.error(f"unknown key {key!r}", key, remedy=nearest(key, self._known))
        return self

    def __contains__(self, key: str) -> bool:
        return self.layer(key) is not None

    def layer(self, key: str) -> Layer | None:
        """The layer whose value of the key counts."""
        assert not self._known or key in self._known, key
        return next((layer for layer in reversed(self.layers) if key in layer.values), None)

    def error(self, message: str, key: str = "", index: int = -1, remedy: str = "") -> ConfigError:
        """The error to raise about a key, or about the table where the key is in none of its layers."""
        layer = self.layer(key) if key else None
        return (layer or self.layers[0]).error(message, key if layer else "", index, remedy)

    def _get(self, key: str, kind: type, default: object, what: str) -> Any:
        layer = self.layer(key)
        if layer is None:
            if default is None:
                raise self.layers[0].error(f"{key!r} is missing")
            return default
        value = layer.values[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise layer.error(f"{key!r} must be {what}, not {_kind(value)}", key)
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """A string. Raises: ConfigError, also where it is missing and has no default."""
        return str(self._get(key, str, default, "a string"))

    def integer(self, key: str, default: int | None = None, at_least: int | None = None, at_most: int | None = None) -> int:
        """An integer within the bounds. Raises: as `string`."""
        value = int(self._get(key, int, default, "an integer"))
        if at_least is not None and value < at_least:
            raise self.error(f"{key!r} is {value}, at least {at_least} is needed", key)
        if at_most is not None and value > at_most:
            raise self.error(f"{key!r} is {value}, at most {at_most} is allowed", key)
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """A boolean. Raises: as `string`."""
        return bool(self._get(key, bool, default, "a boolean"))

    def strings(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """An array of strings. Raises: as `string`."""
        values = self._get(key, list, list(default) if default is not None else None, "an array of strings")
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"{key!r} must hold strings, not {_kind(value)}", key, index)
        return tuple(values)

    def choice(self, key: str, kind: type[E_], default: E_ | None = None) -> E_:
        """A member of an enumeration of strings, by its value. Raises: as `string`."""
        word = self.string(key, None if default is None else str(default.value))
        for member in kind:
            if member.value == word:
                return member
        raise self.error(f"{key!r} has no value {word!r}", key, remedy=nearest(word, (str(member.value) for member in kind)))

    def scalar_or_list(self, key: str) -> int | str | tuple[int | str, ...]:
        """An integer, a string, or an array of them. Raises: as `string`."""
        value = self._get(key, object, None, "a value")
        values = value if isinstance(value, list) else [value]
        for index, item in enumerate(values):
            if isinstance(item, bool) or not isinstance(item, (int, str)):
                at = index if isinstance(value, list) else -1
                raise self.error(f"{key!r} must be an integer or a string, not {_kind(item)}", key, at)
        return tuple(values) if isinstance(value, list) else values[0]

    def table(self, key: str) -> Table:
        """The sub-table of every layer that has it; an empty one where none has. Raises: ConfigError if it is no table."""
        out = []
        for layer in self.layers:
            if key in layer.values:
                value = layer.values[key]
                if not isinstance(value, dict):
                    raise layer.error(f"{key!r} must be a table, not {_kind(value)}", key)
                out.append(Layer(layer.document, (*layer.path, key), value))
        return Table(tuple(out) or (Layer(self.layers[0].document, self.layers[0].path, {}),))

    def tables(self, key: str) -> tuple[Layer, ...]:
        """The elements of an array of tables, all layers' one after the other. Raises: ConfigError if it is none."""
        out = []
        for layer in self.layers:
            values = layer.values.get(key, [])
            if not isinstance(values, list):
                raise layer.error(f"{key!r} must be an array of tables ([[{key}]]), not {_kind(values)}", key)
            for index, value in enumerate(values):
                if not isinstance(value, dict):
                    raise layer.error(f"{key!r} must hold tables, not {_kind(value)}", key, index)
                out.append(Layer(layer.document, (*layer.path, key, index), value))
        return tuple(out)
