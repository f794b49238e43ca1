# SPDX-License-Identifier: Apache-2.0
"""Process events of the whole machine, from the netlink process connector.

Hard facts (drivers/connector/cn_proc.c; checked on 6.18):
- Only executions and killed processes are let through (failed ones while somebody wants to know of them). Since Linux 6.6 the
  request to listen may carry a mask; it keeps the kernel from queueing the rest, but it cannot tell threads apart. The classic
  BPF filter can (pid == tgid).
- The answer to a request is an event of its own (PROC_EVENT_NONE), there when send() returns; a mask hides it. A kernel
  before 6.6 does not answer a request with a mask at all, and no kernel answers from another pid or user namespace.
  From another network namespace send() fails with ECONNREFUSED.
- At an exit event /proc/PID is gone already if the parent reaps at once.
"""
from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

from triaged.errors import InterfaceMissing, KernelError, NotPermitted
from triaged.kernel.files import translated
from triaged.kernel.netlink import HEADER, attach_filter, filter_program, open_netlink, read_drops
from triaged.kernel.paths import KernelPaths

INTERFACE = "process connector"
BUFFER_BYTES = 8 << 20
_NETLINK_CONNECTOR = 11
_CN_IDX_PROC = 1
_NLMSG_DONE = 3
_MESSAGE = struct.Struct("=IIIIHH")  # struct cn_msg: index, value, sequence number, acknowledgement, length, flags
_LISTEN, _IGNORE = 1, 2
_NONE, _EXEC, _EXIT = 0, 0x2, 0x80000000
_NONZERO_EXIT = 0x20000000
_ALL = 0xFFFFFFFF
# What happened; pid, tgid; for an exit also its status as wait(2) gives it, the signal to the parent, the parent's pid, tgid.
_EVENT = struct.Struct("=36xI12xIIIIII")
_WHAT_AT, _PID_AT, _TGID_AT, _STATUS_AT = 36, 52, 56, 60
_REMEDY = "run triaged as a service on the host itself, with CAP_NET_ADMIN"


class Exit(NamedTuple):
    """A process that a signal ended. `parent` is the parent's pid at that time."""

    pid: int
    signal: int
    dumped_core: bool
    parent: int


class Failed(NamedTuple):
    """A process that ended by itself, with another status than 0. `parent` is the parent's pid at that time."""

    pid: int
    status: int
    parent: int


class ProcessEventBatch(NamedTuple):
    """What was waiting. `executed` are pids, in order; `lost`: events were dropped before; `malformed` messages.

    `failed` is empty unless `let_failures_through` was asked for.
    """

    executed: list[int]
    killed: list[Exit]
    lost: bool
    malformed: int
    failed: list[Failed]


def leader_filter(with_failures: bool = False) -> bytes:
    """The filter: executions, processes (not threads) that a signal ended, and answers to requests.

    `with_failures`: processes that ended with another status than 0, too.
    """

    def word(value: int) -> int:  # a filter reads big-endian, the message is in the machine's order
        return int(struct.unpack("=I", struct.pack(">I", value))[0])

    status_byte = _STATUS_AT if word(1) != 1 else _STATUS_AT + 3
    load_word, load_byte, equal, equal_x, any_bit, give, to_x = 0x20, 0x30, 0x15, 0x1D, 0x45, 0x06, 0x07
    return filter_program((
        (load_word, 0, 0, _WHAT_AT),
        (equal, 9, 0, word(_EXEC)),
        (equal, 8, 0, word(_NONE)),
        (equal, 0, 6, word(_EXIT)),
        (load_word, 0, 0, _TGID_AT),
        (to_x, 0, 0, 0),
        (load_word, 0, 0, _PID_AT),
        (equal_x, 0, 2, 0),
        *(((load_word, 0, 0, _STATUS_AT), (equal, 0, 1, 0)) if with_failures else
          ((load_byte, 0, 0, status_byte), (any_bit, 1, 0, 0x7F))),
        (give, 0, 0, 0),
        (give, 0, 0, 0x40000),
    ))


class ProcessConnector:
    """An open connector. `has_event_mask`: the kernel drops unwanted events before they are queued."""

    def __init__(self, opened: socket.socket, has_event_mask: bool = False) -> None:
        self._socket = opened
        self._buffer = bytearray(4096)
        self.has_event_mask = has_event_mask

    @staticmethod
    def open() -> ProcessConnector:
        """Subscribes to executions and killed processes.

        Raises: NotPermitted without CAP_NET_ADMIN (Linux < 6.6); InterfaceMissing where the kernel has no connector or does
        not answer (another namespace).
        """
        try:
            opened = open_netlink(_NETLINK_CONNECTOR, _CN_IDX_PROC, INTERFACE, BUFFER_BYTES, leader_filter())
        except NotPermitted as error:
            raise NotPermitted(INTERFACE, "not allowed to listen", _REMEDY) from error
        try:
            # A mask of everything first: it is answered where masks are known.
            if _request(opened, struct.pack("=II", _LISTEN, _ALL)):
                _request(opened, struct.pack("=II", _LISTEN, _EXEC | _NONZERO_EXIT))
                return ProcessConnector(opened, has_event_mask=True)
            if _request(opened, struct.pack("=I", _LISTEN)):
                return ProcessConnector(opened)
        except OSError as error:
            opened.close()
            if error.errno == errno.ECONNREFUSED:
                raise InterfaceMissing(INTERFACE, "only the host's network namespace has it", _REMEDY) from error
            raise translated(error, INTERFACE) from error
        except KernelError:
            opened.close()
            raise
        opened.close()
        raise InterfaceMissing(INTERFACE, "the kernel does not answer (not in the host's pid and user namespace?)", _REMEDY)

    def let_failures_through(self, is_wanted: bool) -> None:
        """Whether processes that ended by themselves with another status than 0 are told, too. Raises: KernelError."""
        try:
            attach_filter(self._socket, leader_filter(is_wanted))
        except OSError as error:
            raise translated(error, INTERFACE) from error

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Unsubscribes."""
        with suppress(OSError):  # it is closed right after, which ends the subscription as well
            self._socket.send(_message(struct.pack("=I", _IGNORE)))
        self._socket.close()

    def drain(self, limit: int = 8192) -> ProcessEventBatch:
        """The waiting events, at most `limit` messages. Never blocks.

        Raises: KernelError if the socket broke.
        """
        executed: list[int] = []
        killed: list[Exit] = []
        failed: list[Failed] = []
        lost = False
        malformed = 0
        buffer = self._buffer
        receive = self._socket.recv_into
        unpack = _EVENT.unpack_from
        for _ in range(limit):
            try:
                size = receive(buffer)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise translated(error, INTERFACE) from error
                lost = True
                continue
            if size < _EVENT.size:
                if size == 0:
                    break  # a stream's end; a netlink socket has none
                malformed += 1
                continue
            what, pid, _tgid, status, _signal, _parent, parent_tgid = unpack(buffer)
            if what == _EXEC:
                executed.append(pid)
            elif what == _EXIT and not status & 0x7F:
                failed.append(Failed(pid, status, parent_tgid))
            elif what == _EXIT:
                killed.append(Exit(pid, status & 0x7F, bool(status & 0x80), parent_tgid))
            elif what != _NONE:
                malformed += 1
        return ProcessEventBatch(executed, killed, lost, malformed, failed)

    def read_drops(self, paths: KernelPaths) -> int:
        """How many events the kernel dropped so far. Raises: KernelError."""
        return read_drops(paths, self._socket)


def _message(payload: bytes) -> bytes:
    body = _MESSAGE.pack(_CN_IDX_PROC, 1, 0, 0, len(payload), 0) + payload
    return HEADER.pack(HEADER.size + len(body), _NLMSG_DONE, 0, 0, os.getpid()) + body


def _request(opened: socket.socket, payload: bytes) -> bool:
    """Sends a request; whether the kernel answered it. Raises: OSError, NotPermitted."""
    opened.send(_message(payload))
    answered = False
    while True:
        try:
            data = opened.recv(4096)
        except BlockingIOError:
            return answered
        if len(data) < _EVENT.size or _EVENT.unpack_from(data)[0] != _NONE:
            continue  # an event that came in between: the caller looks through /proc afterwards
        error = _EVENT.unpack_from(data)[1]
        if error:
            raise NotPermitted(INTERFACE, os.strerror(error).lower(), _REMEDY)
        answered = True
