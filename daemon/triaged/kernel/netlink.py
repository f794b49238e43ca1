# SPDX-License-Identifier: Apache-2.0
"""Plain netlink sockets that listen to multicast groups.

Hard facts (measured on 6.18): every message costs 832 bytes of the receive buffer, so the default buffer holds 256 of
them; after an overflow the kernel drops everything until the queue is empty and then one read fails with ENOBUFS; how
much was lost is in the Drops column of /proc/net/netlink. One datagram holds one message.
"""
from __future__ import annotations

import os
import socket
import struct
from array import array
from collections.abc import Sequence

from triaged.kernel.files import read_bytes, translated
from triaged.kernel.paths import KernelPaths

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; the socket module does not name them
_SO_RCVBUFFORCE = 33
_FILTER_STEP = struct.Struct("=HBBI")  # struct sock_filter


def open_netlink(protocol: int, group: int, what: str, buffer_bytes: int, program: bytes = b"") -> socket.socket:
    """A non-blocking socket that is bound to one multicast group, with a classic BPF filter if one is given.

    The buffer is forced to the size (CAP_NET_ADMIN), or as large as net.core.rmem_max allows.
    Raises: NotPermitted, InterfaceMissing, KernelError; `what` names the interface in them.
    """
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise translated(error, what) from error
    try:
        try:
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        if program:  # before bind: nothing unwanted gets in between
            attach_filter(opened, program)
        opened.bind((0, 1 << (group - 1)))
    except OSError as error:
        opened.close()
        raise translated(error, what) from error
    return opened


def filter_program(steps: Sequence[tuple[int, int, int, int]]) -> bytes:
    """A classic BPF program from (code, jump if true, jump if false, k)."""
    return b"".join(_FILTER_STEP.pack(*step) for step in steps)


def attach_filter(opened: socket.socket, program: bytes) -> None:
    """Attaches a classic BPF program to a socket (socket(7), SO_ATTACH_FILTER). Raises OSError."""
    # struct sock_fprog wants a pointer; an array tells its address without the price of ctypes (0.9 MB).
    code = array("B", program)
    address, _ = code.buffer_info()
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program) // _FILTER_STEP.size, address))


def read_drops(paths: KernelPaths, opened: socket.socket) -> int:
    """How many messages the kernel has dropped for want of room in the socket's buffer.

    Source: /proc/net/netlink, the line with the socket's inode. 0 where the file has no such line.
    Raises: KernelError.
    """
    inode = str(os.fstat(opened.fileno()).st_ino).encode()
    for line in read_bytes(f"{paths.proc}/self/net/netlink").splitlines()[1:]:
        words = line.split()
        if len(words) >= 10 and words[9] == inode:
            return int(words[8])
    return 0

