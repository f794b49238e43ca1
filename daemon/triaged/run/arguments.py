# SPDX-License-Identifier: Apache-2.0
"""What a failing call was about, as far as the memory and the descriptors of its process still say so a moment later."""
from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

from triaged.kernel.paths import KernelPaths
from triaged.model.symptom import Symptom

_MEMORY_HOLDS_NS = 5_000_000
_STRING_CAP = 4096
_PAGE = 4096
# call -> which argument points at a path, at an address, or is a descriptor.
_PATHS = {
    "execve": 0, "mkdir": 0, "mkdirat": 1, "mknod": 0, "mknodat": 1, "chroot": 0, "execveat": 1, "mount": 1, "umount2": 0,
    "link": 1, "linkat": 3, "symlink": 1, "symlinkat": 2, "truncate": 0, "inotify_add_watch": 1, "pivot_root": 0, "mq_open": 0,
    "open_tree": 1, "fsopen": 0, "swapon": 0,
}
_ADDRESSES = {"connect": 1, "bind": 1}
_DESCRIPTORS = {"fallocate": 0, "ftruncate": 0, "setns": 0}


def subject_of(paths: KernelPaths, tid: int, symptom: Symptom) -> str:
    """The path, address or program that a call of a task was about; "" where that is not known."""
    call, arguments = symptom.syscall, symptom.arguments
    index = _PATHS.get(call)
    if index is not None and len(arguments) > index:
        return _string(paths, tid, arguments[index], symptom.first_ns)
    index = _ADDRESSES.get(call)
    if index is not None and len(arguments) > index + 1:
        return shown_address(_memory(paths, tid, arguments[index], min(arguments[index + 1], 128)))
    index = _DESCRIPTORS.get(call)
    if index is not None and len(arguments) > index:
        with contextlib.suppress(OSError):
            return os.readlink(f"{paths.proc}/{tid}/fd/{arguments[index]}")
    return ""


def _string(paths: KernelPaths, tid: int, pointer: int, ended_ns: int) -> str:
    """A path in the process's memory; "" if what lies there now cannot be one, or has had time to become another."""
    if time.monotonic_ns() - ended_ns > _MEMORY_HOLDS_NS:
        return ""
    text, end, _ = _memory(paths, tid, pointer, _STRING_CAP).partition(b"\0")
    if not end or not text or any(byte < 32 or byte == 127 for byte in text):
        return ""
    return text.decode("utf-8", "surrogateescape")


def _memory(paths: KernelPaths, tid: int, pointer: int, length: int) -> bytes:
    try:
        descriptor = os.open(f"{paths.proc}/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        try:
            return os.pread(descriptor, length, pointer)
        except (OSError, OverflowError):
            # The page may be the last one that is mapped: up to its end.
            return os.pread(descriptor, min(length, _PAGE - pointer % _PAGE), pointer)
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(descriptor)


def shown_address(data: bytes) -> str:
    """A socket's address as programs print it: "127.0.0.1:80", "[::1]:80", a path, "@name"; "" for other families."""
    if len(data) < 4:
        return ""
    family = struct.unpack_from("=H", data)[0]
    if family == socket.AF_INET and len(data) >= 8:
        return f"{socket.inet_ntop(socket.AF_INET, data[4:8])}:{struct.unpack_from('!H', data, 2)[0]}"
    if family == socket.AF_INET6 and len(data) >= 24:
        return f"[{socket.inet_ntop(socket.AF_INET6, data[8:24])}]:{struct.unpack_from('!H', data, 2)[0]}"
    if family == socket.AF_UNIX:
        name = data[2:].split(b"\0", 1)[0] if data[2] else b"@" + data[3:].rstrip(b"\0")
        return name.decode("utf-8", "surrogateescape")
    return ""
