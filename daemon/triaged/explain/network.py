# SPDX-License-Identifier: Apache-2.0
"""network.*, and the parameters on which connections depend.

Hard facts:
- lo of a new network namespace is down: connecting to 127.0.0.1 gives ENETUNREACH, and binding to it works all the same; ::1 is not
  there, so binding to it gives EADDRNOTAVAIL (measured on 6.18).
- Without ::1 (net.ipv6.conf.lo.disable_ipv6) binding to it gives EADDRNOTAVAIL, without IPv6 at all a socket gives EAFNOSUPPORT.
- A full accept queue drops SYNs: the dialler sees a time-out, never "connection refused"; ListenOverflows counts it. Go
  listens with net.core.somaxconn as its backlog.
- Ephemeral ports run out towards one destination: connect() gives EADDRNOTAVAIL, bind() to port 0 EADDRINUSE.
- "connection refused" is a program that does not listen: never a limit.
"""
from __future__ import annotations

import re

from triaged.explain.calls import calls_of
from triaged.explain.hypothesis import hypothesis
from triaged.explain.situation import Situation
from triaged.explain.view import (
    file_text,
    is_own_network,
    network_facts,
    network_number,
    network_parameter,
    own_deeds,
    parameter_evidence,
    set_parameter,
    state_evidence,
    subject_of,
    tested_ancestors,
)
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.cgroup import container_of, unit_of
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.quoting import shown
from triaged.model.surroundings import NetworkFacts
from triaged.model.symptom import SymptomKind
from triaged.model.verdict import Evidence

_CALLS = frozenset({"connect", "bind", "sendto", "sendmsg", "sendmmsg", "socket", "listen", "accept4", "write"})
_V6 = re.compile(r"\[([0-9a-fA-F:.]*)(?:%\w+)?\]|\b(?:tcp|udp|ip)6\b|(?<![\w.])::1\b")
_V4 = re.compile(r"\b(\d{1,3}(?:\.\d{1,3}){3})\b")
_AF_INET6 = 10
_DEFAULT_SOMAXCONN = 4096
_SMALL_BACKLOG = 128  # what the C world asks for by habit: below it the parameter is the smaller of the two
_FEW_PORTS = 1000
_NEARLY_ALL = 0.9
_LOOKUP = re.compile(r"\blookup (?P<name>[^\s:]+)(?: on (?P<server>\[?[0-9a-fA-F.:]+?\]?):53)?:")
_NO_NAME = re.compile(
    r"no such host|server misbehaving|[Tt]emporary failure in name resolution|[Nn]ame or service not known|getaddrinfo|"
    r"could not resolve host|Could not resolve host|no DNS servers"
)
_UNANSWERED = re.compile(
    r"i/o timeout|connection refused|network is unreachable|[Tt]emporary failure|no route to host|server misbehaving"
)
_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


def _told(situation: Situation) -> str:
    return f"{situation.symptom.path} {situation.symptom.text}"


def _addresses(situation: Situation) -> tuple[set[str], bool]:
    """The IPv4 addresses that path and text name, and whether they speak of IPv6."""
    told = _told(situation)
    return set(_V4.findall(told)), bool(_V6.search(told))


def _is_network(situation: Situation) -> bool:
    meant = calls_of(situation.symptom)
    return bool(meant & _CALLS) or "dial " in situation.symptom.text or "listen " in situation.symptom.text


@hypothesis("network.loopback-down", errnos=("ENETUNREACH", "EADDRNOTAVAIL", "EHOSTUNREACH", "ENETDOWN"))
def loopback_down(situation: Situation) -> Outcome | None:
    """The loopback interface of the network namespace is down: nothing at 127.0.0.1 or ::1 can be reached or bound to.

    So it is in every new network namespace (unshare -n, PrivateNetwork= of some sandboxes) until somebody sets lo up.
    """
    if not _is_network(situation):
        return None
    addresses, is_v6 = _addresses(situation)
    if situation.symptom.errno == "EADDRNOTAVAIL" and addresses and not is_v6:
        return None
    foreign = [each for each in addresses if not each.startswith("127.") and each != "0.0.0.0"]
    facts = network_facts(situation)
    if isinstance(facts, Unknown):
        return NotDecidable("network.loopback-down", facts.why)
    if facts.is_loopback_up:
        return RuledOut("network.loopback-down", "lo is up (127.0.0.1 is there)")
    if foreign and not any(each.startswith("127.") for each in addresses):
        return None
    process = situation.process
    if _made_own_network(situation):
        return SelfInflicted("network.loopback-down", "the program under test made the network namespace itself and left lo down")
    is_local = bool(addresses) or (is_v6 and "::1" in _told(situation)) or "localhost" in _told(situation)
    evidence = (state_evidence(situation, "127.0.0.1 among the local addresses", False, "net/fib_trie"),)
    return Blamed(
        "network.loopback-down", Status.PROVED if is_local else Status.LIKELY, subject_of(process),
        f"lo is down in the network namespace of {subject_of(process)}: 127.0.0.1 and ::1 cannot be reached", evidence,
        _for_loopback(situation), weight=8,
    )  # fmt: skip


def _made_own_network(situation: Situation) -> bool:
    process = situation.process
    if any(deed.arguments and deed.arguments[0] & 0x40000000 for deed in own_deeds(situation, "unshare", "clone")):
        return True
    own = process.namespaces.get("net") if process is not None else None
    return own is not None and any(each.namespaces.get("net") not in (None, own) for each in tested_ancestors(situation))


def _for_loopback(situation: Situation) -> tuple[Fix, ...]:
    process = situation.process
    if process is None or is_own_network(situation):
        return (ManualStep("loopback-up", "set lo up, before the tests start", (("ip", "link", "set", "lo", "up"),)),)
    target = str(process.stands_for or process.identity.pid)
    steps: list[Fix] = [ManualStep(
        "loopback-up", "set lo up in the network namespace, before the tests start",
        (("nsenter", f"--net=/proc/{target}/ns/net", "ip", "link", "set", "lo", "up"),),
    )]  # fmt: skip
    unit = unit_of(process.identity.cgroup)
    if container_of(process.identity.cgroup):
        title = "start the container with a network that has a loopback (--network=none has one; a namespace made by hand does not)"
        steps.append(ManualStep("container-network", title))
    elif unit.endswith(".service"):
        show = ("systemctl", "show", "--property=PrivateNetwork,NetworkNamespacePath", unit)
        steps.append(ManualStep("unit-network", f"see which network {shown(unit)} is started in", (show,)))
    return tuple(steps)


@hypothesis("network.ipv6-disabled", errnos=("EADDRNOTAVAIL", "EAFNOSUPPORT", "ENETUNREACH", "EPERM", "EACCES", "EHOSTUNREACH"))
def ipv6_disabled(situation: Situation) -> Outcome | None:
    """IPv6 is off (ipv6.disable=1, or disable_ipv6 of the interface): ::1 cannot be bound to (EADDRNOTAVAIL), or no IPv6 socket
    can be made at all (EAFNOSUPPORT).

    httptest falls back to IPv4 by itself; a test that listens on [::1] does not. Docker's default network has no IPv6.
    """
    symptom = situation.symptom
    _, is_v6 = _addresses(situation)
    is_v6_socket = symptom.syscall == "socket" and bool(symptom.arguments) and symptom.arguments[0] == _AF_INET6
    if symptom.errno in ("EPERM", "EACCES"):
        return None
    if not is_v6 and not is_v6_socket and not (symptom.syscall in ("bind", "connect") and not symptom.path and not symptom.text):
        return None
    facts = network_facts(situation)
    if isinstance(facts, Unknown):
        return NotDecidable("network.ipv6-disabled", facts.why)
    is_sure = is_v6 or is_v6_socket
    if isinstance(facts.local6, Unknown):
        evidence = (state_evidence(situation, "if_inet6", "missing", "net/if_inet6"),)
        step = ManualStep("ipv6-boot", "start the machine without ipv6.disable=1, or let the test use tcp4")
        status = Status.PROVED if is_sure else Status.LIKELY
        return Blamed("network.ipv6-disabled", status, "host", "this kernel runs without IPv6", evidence, (step,), weight=7)
    if facts.has_loopback6:
        told = _told(situation)
        if "::1" in told or symptom.errno == "EAFNOSUPPORT":
            return RuledOut("network.ipv6-disabled", "::1 is there")
        if any(interface != "lo" for _, interface in facts.local6):
            return RuledOut("network.ipv6-disabled", "there are IPv6 addresses other than ::1")
        if symptom.errno == "ENETUNREACH" and is_sure:
            summary = "there is no IPv6 address but ::1: nothing outside can be reached by IPv6"
            step = ManualStep("ipv6-address", "give the network an IPv6 address, or let the test use tcp4")
            return Blamed("network.ipv6-disabled", Status.LIKELY, subject_of(situation.process), summary, (), (step,), weight=3)
        return RuledOut("network.ipv6-disabled", "::1 is there")
    if not facts.is_loopback_up:
        return RuledOut("network.ipv6-disabled", "lo is down altogether")
    key = next(
        (each for each in ("net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.lo.disable_ipv6")
         if network_number(situation, each) == 1),
        "net.ipv6.conf.lo.disable_ipv6",
    )  # fmt: skip
    value = network_parameter(situation, key)
    seen = (
        state_evidence(situation, "::1 among the local addresses", False, "net/if_inet6"),
        parameter_evidence(situation, key, value),
    )
    summary = f"IPv6 is off on the loopback interface ({key} is {value}): ::1 is not there"
    return Blamed(
        "network.ipv6-disabled", Status.PROVED if is_sure else Status.LIKELY, _whose(situation), summary, seen,
        set_parameter(situation, key, "0"), weight=8,
    )  # fmt: skip


@hypothesis("network.resolver", kinds=(SymptomKind.CALL, SymptomKind.TIMED_OUT, SymptomKind.SILENT))
def resolver(situation: Situation) -> Outcome | None:
    """Names are not resolved: /etc/resolv.conf is missing, empty, or names a server that does not answer; or "localhost" is in no
    /etc/hosts.

    A name that a working server does not know is not the machine's matter.
    """
    symptom = situation.symptom
    lookup = _LOOKUP.search(symptom.text)
    if lookup is None and not _NO_NAME.search(symptom.text):
        return None
    process = situation.process
    name, server = (lookup.group("name"), lookup.group("server") or "") if lookup else ("", "")
    hosts, servers = file_text(situation, "/etc/hosts"), file_text(situation, "/etc/resolv.conf")
    if name.rstrip(".") in _LOCAL_NAMES and not isinstance(hosts, Unknown) and not _has_host(hosts or "", name.rstrip(".")):
        step = ManualStep("hosts", f"add 127.0.0.1 {name} to /etc/hosts")
        evidence = (Evidence(f"{name} in /etc/hosts", False, "/etc/hosts"),)
        return Blamed("network.resolver", Status.PROVED, "host", f"/etc/hosts does not have {name}", evidence, (step,), weight=7)
    if isinstance(servers, Unknown):
        return NotDecidable("network.resolver", servers.why)
    if servers is None:
        step = ManualStep("resolv-conf", "give it an /etc/resolv.conf with a nameserver")
        evidence = (Evidence("/etc/resolv.conf", "missing", "/etc/resolv.conf"),)
        return Blamed("network.resolver", Status.PROVED, "host", "there is no /etc/resolv.conf", evidence, (step,), weight=7)
    named = [line.split()[1] for line in servers.splitlines() if line.startswith("nameserver") and len(line.split()) > 1]
    if not named:
        step = ManualStep("resolv-conf", "add a nameserver to /etc/resolv.conf")
        evidence = (Evidence("nameservers", 0, "/etc/resolv.conf"),)
        return Blamed("network.resolver", Status.PROVED, "host", "/etc/resolv.conf names no server", evidence, (step,), weight=7)
    unanswered = _UNANSWERED.search(symptom.text)
    if unanswered and (server or "emporary failure" in symptom.text):
        whom = server or ", ".join(named)
        evidence = (Evidence("nameservers", ", ".join(named), "/etc/resolv.conf"),)
        title = f"name a server in /etc/resolv.conf that answers from where the tests run ({whom} does not)"
        step = ManualStep("nameserver", title, (("resolvectl", "status"),))
        summary = f"the name server {whom} does not answer: {unanswered.group(0)}"
        return Blamed("network.resolver", Status.LIKELY, subject_of(process), summary, evidence, (step,), weight=6)
    if "no such host" in symptom.text or "not known" in symptom.text:
        because = f"a name server is set up ({', '.join(named)}) and does not know {name or 'the name'}"
        return SelfInflicted("network.resolver", because)
    return NotDecidable("network.resolver", f"/etc/resolv.conf names {', '.join(named)}; whether it answers was not seen")


def _has_host(text: str, name: str) -> bool:
    return any(name in line.split("#")[0].split()[1:] for line in text.splitlines())


@hypothesis("sysctl.net.core.somaxconn", kinds=(SymptomKind.CALL, SymptomKind.TIMED_OUT), syscalls=("connect", "listen", "accept4"))
def somaxconn(situation: Situation) -> Outcome | None:
    """The accept queue of a listening socket overflowed (ListenOverflows): its length is net.core.somaxconn at most, which Go
    asks for. Those who connect see a time-out ("i/o timeout"), never "connection refused".
    """
    symptom, key = situation.symptom, "net.core.somaxconn"
    is_timeout = "timeout" in symptom.text or "timed out" in symptom.text or symptom.errno == "ETIMEDOUT"
    is_dial = symptom.syscall == "connect" or any(word in symptom.text for word in ("dial", "connect", "Client.Timeout"))
    if symptom.errno not in ("", "ETIMEDOUT") or not is_timeout or not is_dial:
        return None
    value = network_number(situation, key)
    if isinstance(value, Unknown):
        return NotDecidable(f"sysctl.{key}", value.why)
    rises = [change for change in situation.changes().values() if change.name in ("ListenOverflows", "ListenDrops")]
    rise = max((change.rise for change in rises), default=0)
    if rises and rise <= 0:
        return RuledOut(f"sysctl.{key}", "no accept queue overflowed (ListenOverflows +0)")
    if value >= _DEFAULT_SOMAXCONN:
        if rise > 0:
            why = f"an accept queue overflowed {rise} times, and {key} is {value}: the program's own backlog may be smaller"
            return NotDecidable(f"sysctl.{key}", why)
        return RuledOut(f"sysctl.{key}", f"{key} is {value:,}")
    if not rises:
        return NotDecidable(f"sysctl.{key}", f"{key} is {value}; whether a queue overflowed (ListenOverflows) was not counted")
    evidence = (
        parameter_evidence(situation, key, value),
        *(Evidence(change.name, f"+{change.rise}", change.file) for change in rises if change.rise > 0),
    )
    summary = f"an accept queue overflowed {rise} times, and {key} is {value}: a queue holds no more"
    fixes = set_parameter(situation, key, str(_DEFAULT_SOMAXCONN))
    status = Status.PROVED if value < _SMALL_BACKLOG else Status.LIKELY
    return Blamed(f"sysctl.{key}", status, _whose(situation), summary, evidence, fixes, weight=7)


def _whose(situation: Situation) -> str:
    """Whose network it is: the host's, or that of the process alone."""
    return "host" if is_own_network(situation) else subject_of(situation.process)


@hypothesis("sysctl.net.ipv4.ip_local_port_range", errnos=("EADDRNOTAVAIL", "EADDRINUSE", "EAGAIN"), syscalls=("connect", "bind"))
def local_port_range(situation: Situation) -> Outcome | None:
    """No ephemeral port is free (net.ipv4.ip_local_port_range): connect() gives EADDRNOTAVAIL, bind() to port 0 EADDRINUSE.

    A port may be used towards another destination again, so it is the busiest destination that counts.
    """
    symptom, key = situation.symptom, "net.ipv4.ip_local_port_range"
    meant = calls_of(symptom)
    if not meant or not meant <= {"connect", "bind", "listen", "sendto"}:
        return None
    asks_for_any = meant <= {"connect"} or re.search(r":0\b", _told(situation)) is not None
    if symptom.errno == "EADDRINUSE" and not asks_for_any:
        return None
    value, facts = network_parameter(situation, key), network_facts(situation)
    if isinstance(value, Unknown):
        return NotDecidable(f"sysctl.{key}", value.why)
    if isinstance(facts, Unknown):
        return NotDecidable(f"sysctl.{key}", facts.why)
    low, high = (int(word) for word in value.split()[:2])
    size = high - low + 1
    used = ports_in_use(facts, low, high)
    if used < size * _NEARLY_ALL:
        # For port 0 the kernel gives EADDRINUSE for nothing else.
        is_told = symptom.errno == "EADDRINUSE" or (size < _FEW_PORTS and meant <= {"connect"} and symptom.errno == "EADDRNOTAVAIL")
        if is_told and not _is_local_trouble(situation, facts):
            summary = f"{key} is {low} {high}: {size} ports; {used} are in use now"
            return Blamed(f"sysctl.{key}", Status.LIKELY, "host", summary, (parameter_evidence(situation, key, value),),
                          set_parameter(situation, key, "32768 60999"), weight=4)
        return RuledOut(f"sysctl.{key}", f"{used:,} of {size:,} ports in use towards the busiest destination")
    summary = f"{used} of the {size} ports of {key} ({low} {high}) are in use"
    evidence = (parameter_evidence(situation, key, value), state_evidence(situation, "ports in use", used, "net/tcp"))
    wanted = "1024 65535" if size > 20000 else "32768 60999"
    fixes = set_parameter(situation, key, wanted)
    return Blamed(f"sysctl.{key}", Status.PROVED, _whose(situation), summary, evidence, fixes, weight=8)


def ports_in_use(facts: NetworkFacts, low: int, high: int) -> int:
    """The most ports of the range that are in use towards one destination, or by listening sockets."""
    towards: dict[str, set[int]] = {}
    for port, remote in facts.tcp_ports:
        if low <= port <= high:
            towards.setdefault(remote, set()).add(port)
    listening = towards.pop("", set())
    return max((len(ports | listening) for ports in towards.values()), default=len(listening))


def _is_local_trouble(situation: Situation, facts: NetworkFacts) -> bool:
    addresses, is_v6 = _addresses(situation)
    if is_v6:
        return not facts.has_loopback6
    return bool(addresses) and not facts.is_loopback_up


@hypothesis("sysctl.net.netfilter.nf_conntrack_max", kinds=(SymptomKind.CALL, SymptomKind.TIMED_OUT))
def conntrack(situation: Situation) -> Outcome | None:
    """The table of tracked connections is full: packets are dropped (time-outs), sending them gives EPERM.

    The kernel says so in its log: "nf_conntrack: table full, dropping packet".
    """
    symptom, key = situation.symptom, "net.netfilter.nf_conntrack_max"
    is_sending = symptom.errno == "EPERM" and bool(calls_of(symptom) & {"sendto", "sendmsg", "sendmmsg", "connect"})
    is_timeout = symptom.errno == "" and "dial" in symptom.text and re.search("timeout|timed out", symptom.text) is not None
    if not is_sending and not is_timeout and symptom.errno != "ETIMEDOUT":
        return None
    lines = [line for line in situation.log() if "nf_conntrack" in line and "table full" in line]
    usage = next((each for each in situation.host_usage() if each.limit_name == key), None)
    evidence = tuple(Evidence("kernel log", shown(line, 300), "kmsg") for line in lines[:1])
    if usage is not None:
        evidence = (*evidence, Evidence("tracked connections", str(usage.used), usage.used_from))
    value = network_number(situation, key)
    wanted = str(value * 2) if isinstance(value, int) else "262144"
    if lines:
        summary = f"the table of tracked connections was full ({key} is {value}), packets were dropped"
        return Blamed(f"sysctl.{key}", Status.PROVED, "host", summary, evidence, set_parameter(situation, key, wanted), weight=8)
    if usage is None:
        return None
    if usage.free == 0:
        summary = f"the table of tracked connections is full ({usage.used} of {usage.limit})"
        return Blamed(f"sysctl.{key}", Status.LIKELY, "host", summary, evidence, set_parameter(situation, key, wanted), weight=6)
    return RuledOut(f"sysctl.{key}", f"{usage.used} of {usage.limit} connections are tracked")


@hypothesis("network", errnos=("EADDRINUSE", "ECONNREFUSED"))
def taken_or_refused(situation: Situation) -> Outcome | None:
    """The address is in use by another socket, or nobody listens where something was to connect: never a limit of the machine."""
    symptom = situation.symptom
    if symptom.errno == "ECONNREFUSED":
        if _LOOKUP.search(symptom.text):
            return None  # it is a name server that does not answer
        return SelfInflicted("connection refused", "nobody listens there; a full accept queue would be a time-out")
    if re.search(r":0\b", _told(situation)):
        return None
    return SelfInflicted("address in use", "another socket has the address")


NETWORK = (loopback_down, ipv6_disabled, resolver, somaxconn, local_port_range, conntrack, taken_or_refused)
