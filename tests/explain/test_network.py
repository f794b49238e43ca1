# SPDX-License-Identifier: Apache-2.0
"""Loopback, IPv6, names, queues, ports, tracked connections."""
from __future__ import annotations

from situations import blamed, call, host, outcomes, own_fault, roomy, ruled_out, undecided
from surroundings import LOOPBACK, NO_LOOPBACK, deed, facts, regular, seeing, someone, told

from triaged.explain.network import (
    conntrack,
    ipv6_disabled,
    local_port_range,
    loopback_down,
    ports_in_use,
    resolver,
    somaxconn,
    taken_or_refused,
)
from triaged.model.cause import Status
from triaged.model.limit import Unknown
from triaged.model.surroundings import NetworkFacts
from triaged.model.symptom import SymptomKind

DIAL = told("dial tcp 127.0.0.1:4000: connect: network is unreachable", "ENETUNREACH", "connect", "127.0.0.1:4000")
LISTEN6 = told("listen tcp6 [::1]:0: bind: cannot assign requested address", "EADDRNOTAVAIL", "bind", "[::1]:0")
ONLY_V4 = NetworkFacts(frozenset({"127.0.0.1"}), ())


def test_a_loopback_that_is_down_is_proved() -> None:
    found = blamed(loopback_down, seeing(DIAL, someone(), network=NO_LOOPBACK))
    assert (found.cause, found.status) == ("network.loopback-down", Status.PROVED)
    assert found.fixes[0].commands[0][-2:] == ("lo", "up")
    assert ruled_out(loopback_down, seeing(DIAL, someone(), network=LOOPBACK))
    assert undecided(loopback_down, seeing(DIAL, someone(), network=Unknown("gone")))


def test_a_traced_call_without_an_address_is_likely() -> None:
    assert blamed(loopback_down, seeing(call("connect", "ENETUNREACH"), someone(), network=NO_LOOPBACK)).status is Status.LIKELY


def test_another_host_that_is_out_of_reach_is_not_the_loopback() -> None:
    away = told("dial tcp 10.1.2.3:80: connect: network is unreachable", "ENETUNREACH", "connect", "10.1.2.3:80")
    assert outcomes(loopback_down, seeing(away, someone(), network=NO_LOOPBACK)) == []


def test_a_network_namespace_of_the_test_is_its_own_matter() -> None:
    assert own_fault(loopback_down, seeing(DIAL, someone(), network=NO_LOOPBACK, deeds=(deed("unshare", 0x40000000),)))


def test_no_ipv6_on_the_loopback_is_proved() -> None:
    off = {"net.ipv6.conf.all.disable_ipv6": "0", "net.ipv6.conf.lo.disable_ipv6": "1"}
    found = blamed(ipv6_disabled, seeing(LISTEN6, someone(), network=ONLY_V4, parameters=off))
    assert (found.cause, found.status) == ("network.ipv6-disabled", Status.PROVED)
    assert "net.ipv6.conf.lo.disable_ipv6" in found.fixes[0].key
    assert ruled_out(ipv6_disabled, seeing(LISTEN6, someone(), network=LOOPBACK))
    assert "lo is down" in ruled_out(ipv6_disabled, seeing(LISTEN6, someone(), network=NO_LOOPBACK))


def test_a_kernel_without_ipv6_is_proved_by_the_socket_and_by_the_text() -> None:
    without = NetworkFacts(frozenset({"127.0.0.1"}), Unknown("this kernel runs without IPv6"))
    socket = call("socket", "EAFNOSUPPORT", arguments=(10, 1, 0, 0, 0, 0))
    assert blamed(ipv6_disabled, seeing(socket, someone(), network=without)).status is Status.PROVED
    text = told("listen tcp6 [::1]:0: socket: address family not supported by protocol", "EAFNOSUPPORT", "socket", "[::1]:0")
    assert blamed(ipv6_disabled, seeing(text, someone(), network=without)).status is Status.PROVED
    packet = call("socket", "EAFNOSUPPORT", arguments=(17, 3, 0, 0, 0, 0))
    assert outcomes(ipv6_disabled, seeing(packet, someone(), network=without)) == []


def test_an_ipv4_address_is_no_matter_of_ipv6() -> None:
    text = told("dial tcp 127.0.0.1:9: connect: cannot assign requested address", "EADDRNOTAVAIL", "connect", "127.0.0.1:9")
    assert outcomes(ipv6_disabled, seeing(text, someone(), network=ONLY_V4)) == []


def looked_up(text: str, hosts: str | None = "127.0.0.1 localhost\n", servers: str | None = "nameserver 10.0.0.1\n") -> object:
    return seeing(told(text), someone(), texts={"/etc/hosts": hosts, "/etc/resolv.conf": servers})


def test_names() -> None:
    lookup = "dial tcp: lookup example.org on 10.0.0.1:53: read udp 10.0.0.2:5->10.0.0.1:53: i/o timeout"
    assert blamed(resolver, looked_up(lookup)).status is Status.LIKELY
    assert blamed(resolver, looked_up("lookup example.org: no such host", servers=None)).status is Status.PROVED
    assert blamed(resolver, looked_up("lookup example.org: no such host", servers="# nothing\n")).status is Status.PROVED
    assert blamed(resolver, looked_up("lookup localhost: no such host", hosts="::1 ip6-localhost\n")).status is Status.PROVED
    assert blamed(resolver, looked_up("curl: (6) Temporary failure in name resolution")).status is Status.LIKELY
    assert "does not know" in own_fault(resolver, looked_up("lookup nosuch.invalid on 10.0.0.1:53: no such host"))
    assert outcomes(resolver, looked_up("got 1, want 2")) == []


TIMEOUT = told("dial 17: dial tcp 127.0.0.1:5: i/o timeout", kind=SymptomKind.TIMED_OUT)
KEY = ("/proc/1/net/netstat", "ListenOverflows")


def overflowed(value: str, rise: int | None, symptom: object = TIMEOUT) -> object:
    counts = {} if rise is None else {KEY: 5}
    later = {} if rise is None else {KEY: 5 + rise}
    return seeing(symptom, someone(), parameters={"net.core.somaxconn": value}, before=counts, after=later)


def test_a_queue_that_overflowed_with_a_low_somaxconn() -> None:
    found = blamed(somaxconn, overflowed("16", 3))
    assert (found.cause, found.status) == ("sysctl.net.core.somaxconn", Status.PROVED)
    assert "+0" in ruled_out(somaxconn, overflowed("16", 0))
    assert ruled_out(somaxconn, overflowed("4096", None))
    assert undecided(somaxconn, overflowed("16", None))
    assert undecided(somaxconn, overflowed("4096", 3))
    assert outcomes(somaxconn, overflowed("16", 3, told("panic: test timed out after 10s", kind=SymptomKind.TIMED_OUT))) == []


def ports(count: int, remote: str = "0100007F:1F90") -> NetworkFacts:
    return NetworkFacts(frozenset({"127.0.0.1"}), (), tuple((40000 + n, remote) for n in range(count)))


EXHAUSTED = told("dial tcp 127.0.0.1:8080: connect: cannot assign requested address", "EADDRNOTAVAIL", "connect", "127.0.0.1:8080")
RANGE = {"net.ipv4.ip_local_port_range": "40000\t40009"}


def test_ports_that_are_all_in_use() -> None:
    found = blamed(local_port_range, seeing(EXHAUSTED, someone(), network=ports(10), parameters=RANGE))
    assert (found.cause, found.status) == ("sysctl.net.ipv4.ip_local_port_range", Status.PROVED)
    assert blamed(local_port_range, seeing(EXHAUSTED, someone(), network=ports(2), parameters=RANGE)).status is Status.LIKELY
    wide = {"net.ipv4.ip_local_port_range": "32768 60999"}
    assert ruled_out(local_port_range, seeing(EXHAUSTED, someone(), network=ports(10), parameters=wide))
    assert undecided(local_port_range, seeing(EXHAUSTED, someone(), network=Unknown("gone"), parameters=RANGE))


def test_ports_towards_different_destinations_do_not_add_up() -> None:
    mixed = NetworkFacts(frozenset(), (), tuple((40000 + n, f"0100007F:{n}") for n in range(10)))
    assert ports_in_use(mixed, 40000, 40009) == 1
    assert ports_in_use(NetworkFacts(frozenset(), (), ((40000, ""), (40001, "x"))), 40000, 40009) == 2


def test_an_address_that_is_taken_and_one_where_nobody_listens_are_no_limits() -> None:
    taken = told("listen tcp 127.0.0.1:8080: bind: address already in use", "EADDRINUSE", "bind", "127.0.0.1:8080")
    assert own_fault(taken_or_refused, seeing(taken, someone()))
    assert outcomes(local_port_range, seeing(taken, someone(), network=ports(10), parameters=RANGE)) == []
    refused = told("dial tcp 127.0.0.1:1: connect: connection refused", "ECONNREFUSED", "connect", "127.0.0.1:1")
    assert own_fault(taken_or_refused, seeing(refused, someone()))
    none_left = told("listen tcp 127.0.0.1:0: bind: address already in use", "EADDRINUSE", "bind", "127.0.0.1:0")
    assert outcomes(taken_or_refused, seeing(none_left, someone())) == []
    assert blamed(local_port_range, seeing(none_left, someone(), network=ports(10, ""), parameters=RANGE)).status is Status.PROVED


def test_a_full_table_of_tracked_connections() -> None:
    key = "net.netfilter.nf_conntrack_max"
    symptom = call("sendto", "EPERM")
    line = "nf_conntrack: nf_conntrack: table full, dropping packet"
    assert blamed(conntrack, seeing(symptom, someone(), log=[line], parameters={key: "100"})).status is Status.PROVED
    full = roomy(conntrack=host(key, 100, 100))
    assert blamed(conntrack, seeing(symptom, someone(), parameters={key: "100"}, kept={"usage:host": full})).status is Status.LIKELY
    free = roomy(conntrack=host(key, 5, 100))
    assert ruled_out(conntrack, seeing(symptom, someone(), parameters={key: "100"}, kept={"usage:host": free}))
    assert outcomes(conntrack, seeing(call("mount", "EPERM"), someone(), log=[line])) == []


def test_hosts_that_are_there_are_not_read_again() -> None:
    met = facts("/etc/hosts", regular("/etc/hosts"))
    texts = {"/etc/hosts": "", "/etc/resolv.conf": None}
    situation = seeing(told("lookup localhost: no such host"), someone(), files=[met], texts=texts)
    assert blamed(resolver, situation).summary == "/etc/hosts does not have localhost"
