# SPDX-License-Identifier: Apache-2.0
"""The one module that imports a D-Bus library: types, marshalling and authentication; nothing of its transport.

The facts, measured with dbus-next 0.2.3 and dbus-fast 1.84 to 5.2 on the service side:
- Their writers take EAGAIN for the end of the connection: 16 parallel callers of a 100-row method, or 300 signals in one turn
  of the loop, disconnect the service (python-dbus-next #153). Some builds also write out of order.
- An unknown flag bit or header field, which any local client may send, raises in their readers and ends the connection.
- Their signature caches grow without bound; their ObjectManager signals come from the wrong path (invisible to GLib);
  a handler never learns who calls; an exception's text goes to the caller.

So the connection (`connection.py`), the headers (`wire.py`) and the objects (`objects.py`) are ours, and a library is used for
what it is good at: values. It sees only message bodies whose signature the service expects, behind a header that was made here.
`TRIAGED_DBUS_LIBRARY` = dbus-next | dbus-fast chooses; without it dbus-next runs, and dbus-fast where that cannot be imported.
"""
from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from triaged.bus.wire import Flag, MessageType, build_message, is_as_long_as
from triaged.errors import BusError

# One tree costs 1 to 18 kB, and whoever may call a method with an a{sv} chooses the signatures in it.
SIGNATURES_KEPT = 1000
_ADDRESS_VALUE = re.compile(r"(?:[-0-9A-Za-z_/.\\*]|%[0-9A-Fa-f]{2})*", re.ASCII)


def _import_dbus_next() -> str:
    # The package's own __init__ imports its transports, for GLib too, and service classes that Python 3.15 cannot import any more
    # (gh-133601). What is used here needs none of it: 1.3 MB (measured with Python 3.11). So the package is empty meanwhile, and
    # whoever imports it later gets the whole one.
    if "dbus_next" in sys.modules:
        importlib.import_module("dbus_next")
        return "dbus_next"
    found = importlib.util.find_spec("dbus_next")
    if found is None:
        raise ImportError("No module named 'dbus_next'")
    sys.modules["dbus_next"] = importlib.util.module_from_spec(found)
    try:
        for name in ("errors", *_MODULES):  # errors and message import each other, which works in this order
            importlib.import_module(f"dbus_next.{name}")
        with suppress(ImportError):
            importlib.import_module("dbus_next.__version__")  # or asking for it later would import the whole package
    finally:
        del sys.modules["dbus_next"]
    return "dbus_next"


def _import_dbus_fast() -> str:
    importlib.import_module("dbus_fast")
    return "dbus_fast"


_MODULES = ("message", "constants", "signature", "auth", "_private.unmarshaller")
_IMPORTS = {"dbus-next": _import_dbus_next, "dbus-fast": _import_dbus_fast}


def _import_library(wanted: str) -> tuple[str, str]:
    if wanted and wanted not in _IMPORTS:
        raise BusError("", f"TRIAGED_DBUS_LIBRARY={wanted} is not known", "set it to dbus-next or dbus-fast, or not at all")
    failures = []
    for name in (wanted,) if wanted else tuple(_IMPORTS):
        try:
            return name, _IMPORTS[name]()
        except ImportError as error:
            failures.append(f"{name}: {error}")
    why = "; ".join(failures)
    raise BusError("", f"no D-Bus library can be imported ({why})", "install python3-dbus-next, or: pip install dbus-next")


LIBRARY, _package = _import_library(os.environ.get("TRIAGED_DBUS_LIBRARY", ""))
for _name in _MODULES:  # of dbus-fast; those of dbus-next are there
    if f"{_package}.{_name}" not in sys.modules:
        importlib.import_module(f"{_package}.{_name}")
_message, _constants, _signature, _auth, _unmarshaller = (sys.modules[f"{_package}.{_name}"] for _name in _MODULES)

Variant: Any = _signature.Variant
_METHOD_RETURN = _constants.MessageType.METHOD_RETURN


def library_version() -> str:
    """The version of the library in use, or ''."""
    try:
        return str(importlib.import_module(f"{_package}.__version__").__version__)
    except (ImportError, AttributeError):
        return ""


def _frame(signature: str, values: list[Any]) -> bytes:
    message = _message.Message(message_type=_METHOD_RETURN, reply_serial=1, signature=signature, body=values, serial=1)
    return bytes(message._marshall(False))


# dbus-fast 1.84 writes a string's length in characters, not bytes: for the bus that is a broken message, and it disconnects the
# sender. Rightly written, the body of ["é"] is the length 2, two bytes and a NUL.
WRITES_UTF8 = _frame("s", ["é"])[-7:-3] == b"\2\0\0\0"


def marshal(signature: str, values: Sequence[Any]) -> bytes:
    """The values as the body of a message, little-endian.

    Raises: BusError for values that do not fit the signature (a mistake of the caller in this program).
    """
    if not signature:
        return b""
    body = list(values) if WRITES_UTF8 else _as_ascii(list(values))
    try:
        frame = _frame(signature, body)
    except Exception as error:  # the libraries raise whatever the mismatch leads to: TypeError, struct.error, IndexError ...
        raise BusError("", f"values do not fit the D-Bus signature {signature}: {error!r}") from error
    length = int.from_bytes(frame[4:8], "little")
    return frame[len(frame) - length:] if length else b""


def unmarshal(signature: str, body: bytes, little_endian: bool = True) -> list[Any]:
    """The values of a message body. Variants stay `Variant`; `plain` unwraps them.

    Raises: BusError where the body is not what the signature says.
    """
    if not signature:
        return []
    # dbus-fast 1.84 reads beyond the end of a body that is shorter than its signature says, and crashes.
    if not is_as_long_as(signature, body, little_endian):
        raise BusError("org.freedesktop.DBus.Error.InvalidArgs", f"the message's body is not {signature}")
    # The library never sees the header that came: nothing in it can then offend its reader.
    frame = build_message(
        MessageType.METHOD_RETURN, 1, signature, body, flags=Flag.NO_REPLY_EXPECTED, reply_serial=1, little_endian=little_endian
    )
    try:
        values = _unmarshaller.Unmarshaller(io.BytesIO(frame)).unmarshall()
    except Exception as error:  # as above: EOFError, struct.error, UnicodeDecodeError, KeyError ...
        raise BusError("org.freedesktop.DBus.Error.InvalidArgs", f"the message's body is not {signature}") from error
    finally:
        _bound_signatures()
    if values is None:
        raise BusError("org.freedesktop.DBus.Error.InvalidArgs", f"the message's body is shorter than {signature}")
    return list(values.body)


def plain(value: Any) -> Any:
    """The value with every Variant in it replaced by what it holds."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def signature_of(value: Any) -> str:
    """The signature of a Variant's content; '' for anything else."""
    return str(value.signature) if isinstance(value, Variant) else ""


def clean(text: str) -> str:
    """The text as D-Bus can carry it: without NUL and lone surrogates, for which the bus would disconnect the sender."""
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def parse_address(address: str) -> list[tuple[str, dict[str, str]]]:
    """The transports of a bus address with their options (D-Bus specification, "Server Addresses").

    Raises: BusError if it is none.
    """
    transports = []
    for part in filter(None, address.split(";")):
        transport, colon, rest = part.partition(":")
        options = {}
        for option in filter(None, rest.split(",")):
            name, equals, value = option.partition("=")
            if not equals:
                raise _not_an_address(address, f"{option!r} has no value")
            if not _ADDRESS_VALUE.fullmatch(value):
                raise _not_an_address(address, f"{value!r} has characters that are to be written as %xx")
            options[name] = os.fsdecode(re.sub(rb"%(..)", lambda match: bytes((int(match[1], 16),)), value.encode("ascii")))
        if not colon:
            raise _not_an_address(address, f"{part!r} names no transport")
        transports.append((transport, options))
    if not transports:
        raise _not_an_address(address, "it is empty")
    return transports


def _not_an_address(address: str, why: str) -> BusError:
    return BusError("", f"{address!r} is no D-Bus address: {why}", "one looks like unix:path=/run/dbus/system_bus_socket")


class Authentication:
    """The client's side of EXTERNAL authentication (D-Bus specification, "Authentication Protocol"): lines in, lines out."""

    def __init__(self) -> None:
        self._external = _auth.AuthExternal()
        self.done = False

    def start(self) -> bytes:
        """The first bytes to send."""
        return b"\0" + str(self._external._authentication_start()).encode("ascii") + b"\r\n"

    def answer(self, line: bytes) -> bytes:
        """What to send after a line of the bus; `done` afterwards says whether messages follow. Raises BusError if refused."""
        try:
            reply = str(self._external._receive_line(line.decode("ascii").rstrip("\r\n")))
        except Exception as error:
            text = f"the bus refused the authentication: {line[:100]!r}"
            raise BusError("org.freedesktop.DBus.Error.AuthFailed", text) from error
        self.done = reply == "BEGIN"
        return reply.encode("ascii") + b"\r\n"


def _as_ascii(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("ascii", "backslashreplace").decode("ascii")
    if isinstance(value, Variant):
        return Variant(value.signature, _as_ascii(value.value))
    if isinstance(value, dict):
        return {_as_ascii(key): _as_ascii(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_ascii(item) for item in value]
    return value


def _bound_signatures() -> None:
    cache = getattr(_signature.SignatureTree, "_cache", None)
    if isinstance(cache, dict):
        if len(cache) > SIGNATURES_KEPT:
            cache.clear()
        return
    cached = _signature.get_signature_tree
    if cached.cache_info().currsize > SIGNATURES_KEPT:
        cached.cache_clear()
