# SPDX-License-Identifier: Apache-2.0
"""Journal entries by journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram, or a sealed memfd for a big one.

A datagram that finds journald's queue full is given up after some tries: nothing in triaged waits for a log. Where there is no
journald, entries go to standard error as lines.
"""
from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from typing import TextIO

SOCKET = "/run/systemd/journal/socket"
_NAME = re.compile(r"^[A-Z0-9][A-Z0-9_]{0,63}$")
_MAX_VALUE = 64 * 1024
_FIRST_WAIT_S = 0.02
_TRIES = 8
_NO_JOURNALD = {errno.ENOENT, errno.ECONNREFUSED, errno.EACCES, errno.ENOTDIR, errno.EPERM}
_FULL = {errno.EAGAIN, errno.ENOBUFS}


def encode_entry(fields: Mapping[str, str]) -> bytes:
    """The fields as journald reads them: NAME=value, or NAME and a length for a value of several lines.

    Raises: ValueError for a name that journald would not take. Values are cut at 64 KiB.
    """
    out = bytearray()
    for name, value in fields.items():
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is not the name of a journal field")
        content = value.encode("utf-8", "surrogateescape")[:_MAX_VALUE]
        if b"\n" in content:
            out += name.encode() + b"\n" + struct.pack("<Q", len(content)) + content + b"\n"
        else:
            out += name.encode() + b"=" + content + b"\n"
    return bytes(out)


class Journal:
    """The way to journald. `counters`: sent, fallback (to standard error), lost (journald too busy, or an error)."""

    def __init__(self, path: str = SOCKET, fallback: TextIO | None = None) -> None:
        self.counters: dict[str, int] = {"sent": 0, "fallback": 0, "lost": 0}
        self._path = path
        self._fallback = fallback
        self._socket: socket.socket | None = None

    def close(self) -> None:
        """Closes the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def send(self, fields: Mapping[str, str]) -> None:
        """Sends an entry. MESSAGE and PRIORITY are what the fallback shows. Never fails: what could not be sent is counted."""
        entry = encode_entry(fields)
        wait = _FIRST_WAIT_S
        for _ in range(_TRIES):
            try:
                self._transmit(entry)
                self.counters["sent"] += 1
                return
            except OSError as error:
                if error.errno in _NO_JOURNALD:
                    self._write_line(fields)
                    return
                if error.errno not in _FULL:
                    break
            await asyncio.sleep(wait)
            wait *= 2
        self.counters["lost"] += 1

    def _transmit(self, entry: bytes) -> None:
        """One try. Raises: OSError."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # Not connected: journald may be restarted, the path stays.
            self._socket.sendto(entry, self._path)
            return
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
        descriptor = os.memfd_create("triaged-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(entry)
            # journald reads only what nobody can change any more.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
            self._socket.sendmsg([], rights, 0, self._path)
        finally:
            os.close(descriptor)

    def _write_line(self, fields: Mapping[str, str]) -> None:
        self.counters["fallback"] += 1
        about = f" [{fields['TRIAGED_FINDING']}]" if fields.get("TRIAGED_FINDING") else ""
        words = {"2": "critical", "3": "error", "4": "warning", "5": "notice"}
        word = words.get(fields.get("PRIORITY", ""), "info")
        message = " ".join(fields.get("MESSAGE", "").split("\n")).encode("utf-8", "backslashreplace").decode()
        try:
            print(f"{word}: {message}{about}", file=self._fallback or sys.stderr, flush=True)
        except (OSError, ValueError):  # standard error may be closed
            self.counters["lost"] += 1
