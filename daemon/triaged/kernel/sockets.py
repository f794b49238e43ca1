# SPDX-License-Identifier: Apache-2.0
"""Accept queues of listening sockets, through inet_diag (sock_diag(7)). pyroute2 is imported when it is used.

Hard facts:
- Of a listening socket inet_diag's rqueue is the number of connections that wait for accept(), and wqueue how many may wait:
  the smaller of listen()'s backlog and net.core.somaxconn at that time. Go passes somaxconn itself.
- A queue takes one connection more than its limit says; then SYNs are dropped (TcpExt ListenOverflows) and clients time out.
- inet_diag shows the sockets of the network namespace in which the netlink socket was made.
"""
from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

from triaged.errors import InterfaceMissing
from triaged.kernel.files import translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.usage import shares_network
from triaged.model.limit import Unknown
from triaged.model.usage import Usage

_TCP_LISTEN = 1 << 10  # include/net/tcp_states.h


def read_socket_inodes(paths: KernelPaths, pid: int) -> set[int]:
    """The inode of every socket that the process has open. Source: /proc/PID/fd. Raises: Gone, NotPermitted."""
    directory = f"{paths.proc}/{pid}/fd"
    out = set()
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise translated(error, directory) from error
    for name in names:
        try:
            link = os.readlink(f"{directory}/{name}")
        except OSError:
            continue  # closed meanwhile
        if link.startswith("socket:["):
            out.add(int(link[8:-1]))
    return out


def read_accept_queues(paths: KernelPaths, pid: int) -> Iterator[Usage]:
    """The accept queue of each TCP socket on which the process listens, if it is in our network namespace.

    Raises: InterfaceMissing where pyroute2 or inet_diag is not there, Gone, NotPermitted.
    """
    inodes = read_socket_inodes(paths, pid)
    if not inodes:
        return
    if not shares_network(paths, pid):
        why = Unknown("it is in another network namespace")
        yield Usage("accept queue", "listen() backlog", "network namespace", why, why, "inet_diag", "inet_diag")
        return
    # What starts quickly hides ssl from asyncio with a None here (see __main__); pyroute2 cannot do without.
    if "ssl" in sys.modules and sys.modules["ssl"] is None:
        del sys.modules["ssl"]
    try:
        from pyroute2 import DiagSocket
    except ImportError as error:
        raise InterfaceMissing("inet_diag", f"pyroute2: {error}", "install python3-pyroute2") from error
    try:
        with DiagSocket() as diag:
            diag.bind()
            for family in (socket.AF_INET, socket.AF_INET6):
                for each in diag.get_sock_stats(family=family, states=_TCP_LISTEN):
                    if each["idiag_inode"] in inodes:
                        where = f"{each['idiag_src']}:{each['idiag_sport']}"
                        waiting, most = int(each["idiag_rqueue"]), int(each["idiag_wqueue"])
                        yield Usage("accept queue", "listen() backlog", where, waiting, most, "inet_diag", "inet_diag")
    except OSError as error:
        raise translated(error, "inet_diag") from error
