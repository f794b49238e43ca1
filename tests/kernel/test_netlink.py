# SPDX-License-Identifier: Apache-2.0
"""Netlink sockets: the buffer, the drops."""
from __future__ import annotations

import errno
import os
import socket

import pytest

from triaged.errors import InterfaceMissing
from triaged.kernel.netlink import open_netlink, read_drops
from triaged.kernel.paths import KernelPaths

UEVENT = 15  # NETLINK_KOBJECT_UEVENT: any user may listen to it


def test_a_protocol_that_the_kernel_lacks_is_missing() -> None:
    with pytest.raises(InterfaceMissing, match="nothing"):
        open_netlink(31, 1, "nothing", 4096)


def test_drops_are_read_for_exactly_this_socket() -> None:
    with open_netlink(UEVENT, 1, "uevents", 1 << 16) as opened:
        assert read_drops(KernelPaths(), opened) == 0
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 1 << 17  # the kernel doubles it


def test_a_socket_that_the_file_does_not_list_has_no_drops(tmp_path: object) -> None:
    os.makedirs(f"{tmp_path}/proc/self/net")
    with open(f"{tmp_path}/proc/self/net/netlink", "w", encoding="ascii") as made_up:
        made_up.write("sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n0 11 0 0 0 0 0 2 77 1\nshort\n")
    with open_netlink(UEVENT, 1, "uevents", 1 << 16) as opened:
        assert read_drops(KernelPaths.below(str(tmp_path)), opened) == 0


def test_a_dropped_message_is_one_enobufs_and_is_counted() -> None:
    # A socket that overflows on its own: replies to a dump that nobody reads.
    with open_netlink(UEVENT, 1, "uevents", 1 << 12) as opened:
        try:
            for _ in range(200):
                with open("/sys/devices/virtual/net/lo/uevent", "w", encoding="ascii") as ask:
                    ask.write("change")
        except OSError as error:
            pytest.skip(f"may not ask for uevents here: {error}")
        dropped = read_drops(KernelPaths(), opened)
        assert dropped > 0
        with pytest.raises(OSError, match="buffer space") as caught:
            while True:
                opened.recv(8192)
        assert caught.value.errno == errno.ENOBUFS
