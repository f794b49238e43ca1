# SPDX-License-Identifier: Apache-2.0
"""inotify(7) on cgroup file systems, through libc.

Hard facts (measured on 6.18, 6.12 and 6.1):
- A watch on a cgroup directory tells of children made and removed, always. It tells of a change that the kernel makes
  to a file in it (`memory.events`) only while that file's inode is in the inode cache: kernfs_notify() looks it up there and
  says nothing if it is not. A file that nobody opened, and one that memory pressure evicted, is silent. Only
  a watch on the file itself pins its inode (1.6 kB of kernel memory; 71 bytes for a directory).
- A removed cgroup gives IN_DELETE at its parent and nothing at itself: its watch must be removed by hand.
- The kernel tells of a file at most once in 10 ms (about 62 times a second at HZ=250); the last change is told late, not lost.
"""
from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from triaged.errors import Exhausted, KernelError, Malformed
from triaged.kernel.files import read_text, translated
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import Unknown

IN_MODIFY = 0x00000002
IN_CREATE = 0x00000100
IN_DELETE = 0x00000200
IN_Q_OVERFLOW = 0x00004000
IN_IGNORED = 0x00008000
IN_ONLYDIR = 0x01000000
IN_ISDIR = 0x40000000

_HEADER = struct.Struct("iIII")
_READ_SIZE = 1 << 16


class InotifyEvent(NamedTuple):
    """One event: the watch that it is for, its mask, and the name in the watched directory ('' for the watched object itself)."""

    watch: int
    mask: int
    name: str


def read_watch_limit(paths: KernelPaths) -> int | Unknown:
    """How many watches the reader's user may have altogether. Source: /proc/sys/fs/inotify/max_user_watches."""
    path = f"{paths.proc}/sys/fs/inotify/max_user_watches"
    try:
        return int(read_text(path, 64))
    except (KernelError, ValueError) as error:
        return Unknown(str(error))


class Inotify:
    """One inotify instance. Watches end with `close`.

    `most` bounds the number of its watches: the limit is one for all of a user's programs, and others need some too.
    """

    def __init__(self, most: int | None = None) -> None:
        """Raises: Exhausted where the user has no instance left (fs.inotify.max_user_instances); InterfaceMissing, KernelError."""
        self._most = most
        self._watches: set[int] = set()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            if number in (errno.EMFILE, errno.ENFILE):
                raise Exhausted("inotify", "no instance left for this user", "raise fs.inotify.max_user_instances")
            raise translated(OSError(number, os.strerror(number)), "inotify")

    def fileno(self) -> int:
        return int(self._descriptor)

    def watch(self, path: str, mask: int) -> int:
        """Watches a file or directory; the number of the watch.

        Raises: Exhausted where the user has no watch left (fs.inotify.max_user_watches), or this instance its share of them;
        Gone, NotPermitted, KernelError.
        """
        if self._most is not None and len(self._watches) >= self._most:
            raise Exhausted("inotify", f"the {self._most} watches that may be taken are", "raise fs.inotify.max_user_watches")
        watch = self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask)
        if watch < 0:
            number = ctypes.get_errno()
            if number == errno.ENOSPC:
                raise Exhausted("inotify", "no watch left for this user", "raise fs.inotify.max_user_watches")
            raise translated(OSError(number, os.strerror(number)), path)
        self._watches.add(watch)
        return int(watch)

    def unwatch(self, watch: int) -> None:
        """Ends a watch; one that the kernel ended meanwhile is no error."""
        self._watches.discard(watch)
        self._libc.inotify_rm_watch(self._descriptor, watch)

    def __len__(self) -> int:
        """How many watches there are."""
        return len(self._watches)

    def __bool__(self) -> bool:
        """An instance without watches is one all the same."""
        return True

    def read(self) -> list[InotifyEvent]:
        """What is waiting, at most 64 kB of it; empty if nothing is. Never blocks.

        Raises: Malformed.
        """
        try:
            data = os.read(self._descriptor, _READ_SIZE)
        except BlockingIOError:
            return []
        return parse_events(data)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def parse_events(data: bytes) -> list[InotifyEvent]:
    """The events in what a read of an inotify descriptor gave.

    Raises: Malformed.
    """
    events = []
    at = 0
    while at < len(data):
        try:
            watch, mask, _, length = _HEADER.unpack_from(data, at)
        except struct.error as error:
            raise Malformed("inotify", data[at:].hex(), "truncated event") from error
        at += _HEADER.size
        name = data[at : at + length]
        if len(name) < length:
            raise Malformed("inotify", name.hex(), "truncated name")
        at += length
        events.append(InotifyEvent(watch, mask, os.fsdecode(name.rstrip(b"\0"))))
    return events
