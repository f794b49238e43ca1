# SPDX-License-Identifier: Apache-2.0
"""The network namespace of a process, as far as /proc/PID/net tells of it.

Hard facts:
- 127.0.0.1 is in fib_trie while lo is up: the kernel adds it with the interface (devinet.c, inetdev_event), also in a new network
  namespace. lo of a new namespace is down (`unshare -n`; measured on 6.18).
- if_inet6 does not exist where IPv6 is off from boot (ipv6.disable=1), and holds no ::1 while lo is down or
  net.ipv6.conf.lo.disable_ipv6 is 1 (measured on 6.18).
- /proc/PID/net is the process's own namespace; /proc/sys/net is that of the thread that reads, so it has to go there.
"""
from __future__ import annotations

import ctypes
import os
import re
import threading

from triaged.errors import Gone, KernelError
from triaged.kernel.files import read_text, translated
from triaged.kernel.parameters import ParameterReader
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import Unknown
from triaged.model.surroundings import NetworkFacts

_TABLE_CAP = 8 << 20
_LISTEN = "0A"  # include/net/tcp_states.h
_CLONE_NEWNET = 0x40000000
_LOCAL = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")


def read_network(paths: KernelPaths, pid: int | str) -> NetworkFacts:
    """The addresses and TCP ports of the network namespace of process `pid` ("self": the caller).

    Source: /proc/PID/net/{fib_trie,if_inet6,tcp,tcp6}. Raises: Gone, NotPermitted, KernelError.
    """
    base = f"{paths.proc}/{pid}/net"
    local = parse_local_addresses(read_text(f"{base}/fib_trie", _TABLE_CAP))
    try:
        local6: tuple[tuple[str, str], ...] | Unknown = parse_if_inet6(read_text(f"{base}/if_inet6", _TABLE_CAP))
    except Gone:
        if not os.path.isdir(base):
            raise
        local6 = Unknown("this kernel runs without IPv6")
    ports: list[tuple[int, str]] = []
    for name in ("tcp", "tcp6"):
        try:
            ports += parse_tcp_ports(read_text(f"{base}/{name}", _TABLE_CAP))
        except KernelError:
            continue  # without IPv6 there is no tcp6
    return NetworkFacts(local, local6, tuple(ports))


def parse_local_addresses(text: str) -> frozenset[str]:
    """The host's own IPv4 addresses, from the text of fib_trie."""
    return frozenset(_LOCAL.findall(text))


def parse_if_inet6(text: str) -> tuple[tuple[str, str], ...]:
    """Each IPv6 address (32 hexadecimal digits) with its interface, from the text of if_inet6."""
    rows = (line.split() for line in text.splitlines())
    return tuple((row[0], row[5]) for row in rows if len(row) == 6)


def parse_tcp_ports(text: str) -> list[tuple[int, str]]:
    """The local port of each TCP socket with the remote end ("" of a listening one), from the text of tcp or tcp6."""
    out = []
    for line in text.splitlines()[1:]:
        fields = line.split(None, 4)
        if len(fields) >= 4 and ":" in fields[1]:
            try:
                out.append((int(fields[1].rsplit(":", 1)[1], 16), "" if fields[3] == _LISTEN else fields[2]))
            except ValueError:
                continue
    return out


def read_network_parameter(paths: KernelPaths, pid: int, key: str) -> str | Unknown:
    """A parameter net.* as it is in the network namespace of a process. Needs CAP_SYS_ADMIN over the namespace.

    Source: /proc/sys/net, read by a thread that went there (setns(2) moves one thread only).
    """
    path = f"{paths.proc}/{pid}/ns/net"
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return Unknown(f"{path}: {(error.strerror or '').lower()}")
    result: list[str | Unknown] = []

    def work() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace, _CLONE_NEWNET) != 0:
                raise translated(OSError(ctypes.get_errno(), ""), path)
            result.append(ParameterReader(paths).read(key))
        except KernelError as error:
            result.append(Unknown(str(error)))

    try:
        thread = threading.Thread(target=work, name=f"netns-of-{pid}")
        thread.start()
        thread.join()
    finally:
        os.close(namespace)
    return result[0] if result else Unknown(f"{path}: nothing could be read there")
