# SPDX-License-Identifier: Apache-2.0
"""A network namespace, told by /proc/PID/net."""
from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable

import pytest

from triaged.errors import Gone
from triaged.kernel.network_state import (
    parse_if_inet6,
    parse_local_addresses,
    parse_tcp_ports,
    read_network,
    read_network_parameter,
)
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import Unknown

PATHS = KernelPaths()
Started = Callable[[list[str]], "subprocess.Popen[str]"]
TRIE = """Local:
  +-- 127.0.0.0/8 2 0 2
     +-- 127.0.0.0/31 1 0 0
        |-- 127.0.0.0
           /8 host LOCAL
        |-- 127.0.0.1
           /32 host LOCAL
     |-- 127.255.255.255
        /32 link BROADCAST
"""
TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: broken
"""


def test_the_texts_of_the_kernel() -> None:
    assert parse_local_addresses(TRIE) == {"127.0.0.1"}
    assert parse_local_addresses("") == frozenset()
    line = "00000000000000000000000000000001 01 80 10 80       lo\nhalf a line\n"
    assert parse_if_inet6(line) == (("0" * 31 + "1", "lo"),)
    assert parse_tcp_ports(TCP) == [(8080, ""), (40000, "0100007F:1F90")]


def test_our_own_namespace() -> None:
    found = read_network(PATHS, "self")
    assert found.is_loopback_up == ("127.0.0.1" in found.local)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert (server.getsockname()[1], "") in read_network(PATHS, os.getpid()).tcp_ports


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace")
def test_a_new_namespace_has_its_loopback_down_until_somebody_sets_it_up(started: Started) -> None:
    down = started(["unshare", "--net", "sh", "-c", "echo ready; exec sleep 60"])
    found = read_network(PATHS, down.pid)
    assert not found.is_loopback_up
    assert not found.has_loopback6
    up = started(["unshare", "--net", "sh", "-c", "ip link set lo up; echo ready; exec sleep 60"])
    found = read_network(PATHS, up.pid)
    assert found.is_loopback_up
    assert found.has_loopback6 == os.path.exists("/proc/net/if_inet6")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace")
def test_parameters_of_another_namespace(started: Started) -> None:
    script = "echo 77 > /proc/sys/net/core/somaxconn; echo ready; exec sleep 60"
    child = started(["unshare", "--net", "sh", "-c", script])
    assert read_network_parameter(PATHS, child.pid, "net.core.somaxconn") == "77"
    assert read_network_parameter(PATHS, os.getpid(), "net.core.somaxconn") != "77"
    assert isinstance(read_network_parameter(PATHS, child.pid, "net.core.no-such"), Unknown)


def test_a_process_that_is_gone_has_no_network() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(Gone):
        read_network(PATHS, child.pid)
    assert isinstance(read_network_parameter(PATHS, child.pid, "net.core.somaxconn"), Unknown)
