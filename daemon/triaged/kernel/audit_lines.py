# SPDX-License-Identifier: Apache-2.0
"""The audit records of security modules and seccomp, as the lines that the kernel log has of them.

Hard facts (kernel/audit.c):
- Where auditd runs, the kernel log has none of them; without it, at most ten lines in five seconds, shared with all of the kernel.
  The multicast group (see `audit`) has every one in both cases, in the first network namespace.
- A thread of the kernel sends them, some time after the call that was refused has returned.
- `pid=` in a record of AppArmor or SELinux is the process, not the thread.
"""
from __future__ import annotations

import errno
import socket
import struct

from triaged.kernel.files import translated
from triaged.kernel.netlink import HEADER, filter_program, open_netlink

_INTERFACE = "audit multicast"
_NETLINK_AUDIT, _NLGRP_READLOG = 9, 1
_SECCOMP, _AVC, _SELINUX_ERROR = 1326, 1400, 1401
_BUFFER_BYTES = 1 << 20
_LINES_AT_ONCE = 4096


def _filter() -> bytes:
    wanted = [struct.unpack("=H", struct.pack(">H", number))[0] for number in (_SECCOMP, _AVC, _SELINUX_ERROR)]
    return filter_program((
        (0x28, 0, 0, 4),  # ldh nlmsg_type
        *((0x15, len(wanted) - at, 0, number) for at, number in enumerate(wanted)),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 0x40000),
    ))


class AuditLines:
    """An open subscription. Never blocks. Close it."""

    def __init__(self) -> None:
        """Raises: NotPermitted without CAP_AUDIT_READ; InterfaceMissing where the kernel has no audit."""
        self._socket: socket.socket = open_netlink(_NETLINK_AUDIT, _NLGRP_READLOG, _INTERFACE, _BUFFER_BYTES, _filter())

    def read(self) -> list[str]:
        """The records that are waiting, each as the kernel log writes it. Raises: KernelError."""
        lines = []
        for _ in range(_LINES_AT_ONCE):
            try:
                data = self._socket.recv(16384)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:  # some were lost in a storm of them
                    continue
                raise translated(error, _INTERFACE) from error
            if len(data) > HEADER.size:
                number = struct.unpack_from("=H", data, 4)[0]
                text = data[HEADER.size :].rstrip(b"\0\n").decode("utf-8", "backslashreplace")
                lines.append(f"audit: type={number} {text}")
        return lines

    def close(self) -> None:
        """Unsubscribes."""
        self._socket.close()
