# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters that decide who may make a call. Each has its own error and its own exemptions; none leaves a trace.

Hard facts (measured on 6.18 and 6.12, Debian's kernels where said):
- kernel.perf_event_paranoid gives EACCES (a seccomp filter gives EPERM). 3 is Debian's and Ubuntu's own: nothing for anybody
  without CAP_PERFMON.
- kernel.yama.ptrace_scope 3 binds root too, and is not taken back before the next boot.
- kernel.io_uring_disabled 1 binds users outside of kernel.io_uring_group, 2 everybody.
- net.ipv4.ip_unprivileged_port_start and ping_group_range are the network namespace's own.
"""
from __future__ import annotations

from dataclasses import dataclass

from triaged.explain import calls
from triaged.explain.calls import calls_of
from triaged.explain.capabilities import given_up_by_test, port_of
from triaged.explain.hypothesis import hypothesis
from triaged.explain.seccomp_answer import passed_by_seccomp
from triaged.explain.security_log import yama_denials
from triaged.explain.situation import Situation
from triaged.explain.view import (
    credentials_of,
    file_facts,
    network_number,
    network_parameter,
    parameter_evidence,
    set_parameter,
    state_evidence,
    subject_path,
)
from triaged.model.capability import capability_number
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.process_state import Credentials
from triaged.model.quoting import shown
from triaged.model.surroundings import FileFacts
from triaged.model.verdict import Evidence

_SECCOMP_FIRST = "a seccomp filter refused the call before"
_AF_INET, _AF_INET6, _SOCK_DGRAM, _ICMP, _ICMP6 = 2, 10, 2, 1, 58
_TRACEME, _ATTACH, _SEIZE = 0, 16, 0x4206
_UFFD_USER_MODE_ONLY = 1
_O_CREAT = 0o100
_UNKNOWN_VALUE = "its value could not be read: {why}"


@dataclass(frozen=True)
class _Gate:
    """What is common to all: the parameter's cause, the capabilities that it does not bind, how sure it is, and by what."""

    situation: Situation
    key: str
    exempt: tuple[str, ...] = ()

    @property
    def cause(self) -> str:
        return f"sysctl.{self.key}"

    def unreadable(self, value: Unknown) -> Outcome:
        return NotDecidable(self.cause, _UNKNOWN_VALUE.format(why=value.why))

    def absent(self) -> Outcome:
        return RuledOut(self.cause, "this kernel does not have the parameter")

    def open(self, why: str) -> Outcome:
        return RuledOut(self.cause, why)

    def open_by_capability(self) -> Outcome | None:
        """That the process is exempt; None where it is not."""
        held = _has_any(credentials_of(self.situation), *self.exempt)
        return self.open(f"the process has CAP_{held}, which it does not bind") if held else None

    def closed(
        self, value: object, summary: str, is_sure: bool | None, wanted: str, risk: str, fixes: tuple[Fix, ...] = (),
    ) -> Outcome:
        """The gate is closed to this process. `is_sure`: the call surely came up to it."""
        situation = self.situation
        passed = passed_by_seccomp(situation, sorted(calls_of(situation.symptom)))
        if passed is False:
            return RuledOut(self.cause, _SECCOMP_FIRST)
        given_up = given_up_by_test(situation, *self.exempt)
        if given_up:
            return SelfInflicted(self.cause, given_up)
        status = Status.PROVED if is_sure and passed else Status.LIKELY
        evidence = [parameter_evidence(situation, self.key, value)]
        who = credentials_of(situation)
        if who is not None:
            evidence.append(state_evidence(situation, "CapEff", f"{who.effective:016x}", "status"))
        own = fixes or set_parameter(situation, self.key, wanted, risk)
        weight = 1 if self.exempt and _is_stripped(who, *self.exempt) else 5
        return Blamed(self.cause, status, "host", summary, tuple(evidence), own, weight=weight)


def _has_any(who: Credentials | None, *names: str) -> str:
    """The first of the capabilities that the process has, or ""."""
    if who is None:
        return ""
    return next((name for name in names if who.has(capability_number(name))), "")


def _is_stripped(who: Credentials | None, *names: str) -> bool:
    """Whether it is root, or was started without these capabilities: then that is the first thing to change."""
    if who is None:
        return False
    return who.uids[1] == 0 or all(not who.bounding >> capability_number(name) & 1 for name in names)


@hypothesis("sysctl.kernel.perf_event_paranoid", syscalls=("perf_event_open",), errnos=("EACCES",))
def perf_event_paranoid(situation: Situation) -> Outcome | None:
    """kernel.perf_event_paranoid keeps users without CAP_PERFMON from performance counters: perf_event_open() gives EACCES.

    2 forbids measuring the kernel, 1 also whole CPUs, 3 (Debian, Ubuntu, Android) everything.
    """
    gate = _Gate(situation, "kernel.perf_event_paranoid", ("PERFMON", "SYS_ADMIN"))
    if calls_of(situation.symptom) != {"perf_event_open"}:
        return None
    value, who = situation.number(gate.key), credentials_of(situation)
    if isinstance(value, Unknown):
        return gate.unreadable(value)
    exempt = gate.open_by_capability()
    if exempt is not None:
        return exempt
    if value < 0:
        return gate.open(f"{gate.key} is {value}: everything is allowed to everybody")
    summary = f"{gate.key} is {value}: without CAP_PERFMON perf_event_open() is " + (
        "refused altogether" if value > 2 else "refused for what concerns the kernel" if value == 2 else "refused for whole CPUs"
    )
    wanted = "1" if value > 1 else "-1"
    return gate.closed(value, summary, value > 1 and who is not None, wanted, "users may then measure the kernel too")


@hypothesis("sysctl.kernel.unprivileged_bpf_disabled", syscalls=("bpf",), errnos=("EPERM",))
def unprivileged_bpf_disabled(situation: Situation) -> Outcome | None:
    """kernel.unprivileged_bpf_disabled keeps users without CAP_BPF from bpf(): EPERM. 1 holds until the next boot, 2 does not.

    A program that prints "MEMLOCK may be too low" for it is mistaken: that is another error.
    """
    gate = _Gate(situation, "kernel.unprivileged_bpf_disabled", ("BPF", "SYS_ADMIN"))
    if calls_of(situation.symptom) != {"bpf"}:
        return None
    value, who = situation.number(gate.key), credentials_of(situation)
    if isinstance(value, Unknown):
        return gate.unreadable(value)
    exempt = gate.open_by_capability()
    if exempt is not None:
        return exempt
    if value == 0:
        return gate.open(f"{gate.key} is 0")
    fixes: tuple[Fix, ...] = ()
    if value == 1:
        title = f"set {gate.key} = 0 in a file of /etc/sysctl.d and restart the machine, or give the program CAP_BPF"
        fixes = (ManualStep(f"at-boot:{gate.key}", title, risk="every user may then load BPF programs"),)
    summary = f"{gate.key} is {value}: bpf() is refused without CAP_BPF"
    return gate.closed(value, summary, who is not None, "0", "every user may then load BPF programs", fixes)


@hypothesis("sysctl.kernel.io_uring_disabled", syscalls=("io_uring_setup",), errnos=("EPERM",))
def io_uring_disabled(situation: Situation) -> Outcome | None:
    """kernel.io_uring_disabled forbids io_uring: 1 to users outside of kernel.io_uring_group, 2 to everybody (EPERM). Since 6.6."""
    gate = _Gate(situation, "kernel.io_uring_disabled")
    if calls_of(situation.symptom) != {"io_uring_setup"}:
        return None
    value, who = situation.number(gate.key), credentials_of(situation)
    if isinstance(value, Unknown):
        return gate.absent()
    if value == 0:
        return gate.open(f"{gate.key} is 0")
    group = situation.number("kernel.io_uring_group")
    if value == 1 and who is not None:
        if _has_any(who, "SYS_ADMIN"):
            return gate.open(f"{gate.key} is 1, and the process has CAP_SYS_ADMIN")
        if isinstance(group, int) and group >= 0 and group in (who.gids[1], *who.groups):
            return gate.open(f"{gate.key} is 1, and the process is in kernel.io_uring_group")
    whom = "everybody" if value == 2 else "users without CAP_SYS_ADMIN"
    summary = f"{gate.key} is {value}: io_uring is closed to {whom}"
    return gate.closed(value, summary, value == 2 or who is not None, "0", "io_uring is then open to every user")


@hypothesis("sysctl.vm.unprivileged_userfaultfd", syscalls=("userfaultfd",), errnos=("EPERM",))
def unprivileged_userfaultfd(situation: Situation) -> Outcome | None:
    """vm.unprivileged_userfaultfd is 0: userfaultfd() without UFFD_USER_MODE_ONLY needs CAP_SYS_PTRACE, else EPERM."""
    gate = _Gate(situation, "vm.unprivileged_userfaultfd", ("SYS_PTRACE",))
    if calls_of(situation.symptom) != {"userfaultfd"}:
        return None
    value, who = situation.number(gate.key), credentials_of(situation)
    if isinstance(value, Unknown):
        return gate.absent()
    if value != 0:
        return gate.open(f"{gate.key} is {value}")
    exempt = gate.open_by_capability()
    if exempt is not None:
        return exempt
    flags = situation.symptom.arguments[0] if situation.symptom.arguments else None
    if flags is not None and flags & _UFFD_USER_MODE_ONLY:
        return gate.open("the call had UFFD_USER_MODE_ONLY, which everybody may have")
    summary = f"{gate.key} is 0: userfaultfd() needs CAP_SYS_PTRACE unless it is for user mode only (UFFD_USER_MODE_ONLY)"
    return gate.closed(value, summary, who is not None, "1", "makes some kernel bugs easier to exploit")


@hypothesis("sysctl.kernel.dmesg_restrict", syscalls=calls.OPENS | {"syslog", "read"}, errnos=("EPERM",))
def dmesg_restrict(situation: Situation) -> Outcome | None:
    """kernel.dmesg_restrict is 1: the kernel's log (syslog(2), /dev/kmsg) needs CAP_SYSLOG, else EPERM."""
    gate, symptom = _Gate(situation, "kernel.dmesg_restrict", ("SYSLOG", "SYS_ADMIN")), situation.symptom
    is_log = symptom.path == "/dev/kmsg" or calls_of(symptom) == {"syslog"} or "/dev/kmsg" in symptom.text
    if not is_log:
        return None
    value, who = situation.number(gate.key), credentials_of(situation)
    if isinstance(value, Unknown):
        return gate.absent()
    if value == 0:
        return gate.open(f"{gate.key} is 0")
    exempt = gate.open_by_capability()
    if exempt is not None:
        return exempt
    summary = f"{gate.key} is {value}: the kernel's log needs CAP_SYSLOG"
    return gate.closed(value, summary, who is not None, "0", "every user may then read the kernel's log")


@hypothesis("sysctl.net.ipv4.ip_unprivileged_port_start", syscalls=("bind",), errnos=("EACCES",))
def unprivileged_port_start(situation: Situation) -> Outcome | None:
    """Ports below net.ipv4.ip_unprivileged_port_start (1024) need CAP_NET_BIND_SERVICE: bind() gives EACCES.

    It is the network namespace's own; Docker sets it to 0 in its containers.
    """
    gate = _Gate(situation, "net.ipv4.ip_unprivileged_port_start", ("NET_BIND_SERVICE",))
    symptom = situation.symptom
    if calls_of(symptom) != {"bind"} or symptom.path.startswith(("/", "@")):
        return None
    value, who, port = network_number(situation, gate.key), credentials_of(situation), port_of(situation)
    if isinstance(value, Unknown):
        return gate.unreadable(value)
    exempt = gate.open_by_capability()
    if exempt is not None and (situation.process is None or situation.process.has_initial_user_namespace):
        return exempt
    if port is not None and not 0 < port < value:
        return gate.open(f"port {port} is not below {value}")
    if value == 0:
        return gate.open("every port is open to everybody")
    what = f"port {port}" if port is not None else "the port"
    summary = f"{gate.key} is {value}: {what} needs CAP_NET_BIND_SERVICE"
    wanted = str(port) if port is not None else "0"
    return gate.closed(value, summary, port is not None and who is not None, wanted, "users may then take such ports")


@hypothesis("sysctl.net.ipv4.ping_group_range", syscalls=("socket",), errnos=("EACCES",))
def ping_group_range(situation: Situation) -> Outcome | None:
    """net.ipv4.ping_group_range does not hold a group of the process: sockets for ping without privilege give EACCES.

    The kernel's default, "1 0", holds nobody, not even root; systemd and Debian 13 open it to all.
    """
    gate, symptom = _Gate(situation, "net.ipv4.ping_group_range"), situation.symptom
    if len(symptom.arguments) > 2:
        family, kind, protocol = symptom.arguments[:3]
        is_ping = family in (_AF_INET, _AF_INET6) and kind & 0xF == _SOCK_DGRAM and protocol in (_ICMP, _ICMP6)
    else:
        is_ping = calls_of(symptom) == {"socket"} and bool({"icmp", "ping"} & set(symptom.text.lower().replace(":", " ").split()))
    if not is_ping:
        return None
    value, who = network_parameter(situation, gate.key), credentials_of(situation)
    if isinstance(value, Unknown):
        return gate.unreadable(value)
    low, high = (int(word) for word in value.split()[:2])
    if who is not None and any(low <= group <= high for group in (who.gids[1], *who.groups)):
        return gate.open(f"{gate.key} is {low} {high}, which holds a group of the process")
    summary = f"{gate.key} is {low} {high}: no group of the process is in it"
    return gate.closed(f"{low} {high}", summary, who is not None, "0 2147483647", "every user may then send echo requests")


@hypothesis("lsm.yama", syscalls=("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "open", "openat"),
            errnos=("EPERM", "EACCES"))
def yama(situation: Situation) -> Outcome | None:
    """kernel.yama.ptrace_scope forbids looking into other processes: 1 any but descendants, 2 all without CAP_SYS_PTRACE, 3 all.

    Root is bound by 3 only. A process may open itself to another one (prctl PR_SET_PTRACER). The kernel logs what it refuses.
    """
    symptom, key = situation.symptom, "kernel.yama.ptrace_scope"
    meant = calls_of(symptom)
    is_memory = symptom.path.startswith("/proc/") and symptom.path.endswith("/mem")
    if not is_memory and (not meant or meant & calls.OPENS or not meant <= {"ptrace", *_LOOKERS}):
        return None
    value, who = situation.number(key), credentials_of(situation)
    if isinstance(value, Unknown):
        return RuledOut("lsm.yama", "this kernel runs without Yama (there is no kernel.yama.ptrace_scope)")
    if value == 0:
        return RuledOut("lsm.yama", f"{key} is 0")
    if value < 3 and _has_any(who, "SYS_PTRACE"):
        return RuledOut("lsm.yama", f"{key} is {value}, and the process has CAP_SYS_PTRACE")
    request = symptom.arguments[0] if symptom.syscall == "ptrace" and symptom.arguments else None
    if request == _TRACEME and value < 2:
        return RuledOut("lsm.yama", f"{key} is {value}, which does not bind PTRACE_TRACEME")
    if request is not None and request not in (_TRACEME, _ATTACH, _SEIZE):
        return None
    if passed_by_seccomp(situation, sorted(meant)) is False:
        return RuledOut("lsm.yama", _SECCOMP_FIRST)
    logged = yama_denials(situation)
    is_sure = bool(logged) or value == 3 or (who is not None and request is not None)
    status = Status.PROVED if is_sure and (logged or passed_by_seccomp(situation, sorted(meant))) else Status.LIKELY
    lines = tuple(Evidence("kernel log", shown(line, 400), "kmsg") for line in logged[:1])
    evidence = (parameter_evidence(situation, key, value), *lines)
    summary = {
        1: f"{key} is 1: only descendants may be traced", 2: f"{key} is 2: tracing needs CAP_SYS_PTRACE",
        3: f"{key} is 3: nobody may trace, also not root",
    }.get(value, f"{key} is {value}")
    if value == 3:
        title = f"set {key} = 1 in a file of /etc/sysctl.d and restart the machine: the kernel does not take 3 back while it runs"
        fixes: tuple[Fix, ...] = (ManualStep(f"at-boot:{key}", title),)
    else:
        risk = "a user's processes may then read each other's memory"
        fixes = set_parameter(situation, key, "1" if value == 2 and request == _TRACEME else "0", risk)
    return Blamed("lsm.yama", status, "host", summary, evidence, fixes, weight=6)


_LOOKERS = frozenset({"process_vm_readv", "process_vm_writev", "pidfd_getfd"})


def _protected(situation: Situation, gate: _Gate) -> tuple[int, FileFacts] | Outcome | None:
    """The gate's value and the file, where the gate is closed and the file is known."""
    value, path = situation.number(gate.key), subject_path(situation)
    if isinstance(value, Unknown):
        return gate.absent()
    if value == 0:
        return gate.open(f"{gate.key} is 0")
    if not path:
        return None
    facts = file_facts(situation, path)
    return (value, facts) if not isinstance(facts, Unknown) else NotDecidable(gate.cause, facts.why)


@hypothesis("sysctl.fs.protected_hardlinks", syscalls=calls.LINKS, errnos=("EPERM",))
def protected_hardlinks(situation: Situation) -> Outcome | None:
    """fs.protected_hardlinks is 1: a hard link to somebody else's file that one may not read and write gives EPERM."""
    gate = _Gate(situation, "fs.protected_hardlinks")
    if not calls_of(situation.symptom) or not calls_of(situation.symptom) <= calls.LINKS:
        return None
    found, who = _protected(situation, gate), credentials_of(situation)
    if _has_any(who, "FOWNER"):
        return gate.open("the process has CAP_FOWNER, which it does not bind")
    summary = f"{gate.key} is 1: no hard link may be made to a file of somebody else"
    if found is None:
        return gate.closed(1, summary, False, "0", "users may then link to files of others in shared directories")
    if not isinstance(found, tuple):
        return found
    value, facts = found
    node = facts.node
    if who is not None and node is not None:
        if node.is_directory:
            return None
        if node.uid == who.uids[3]:
            return gate.open("the file belongs to the process's user")
        if node.is_regular and not node.is_setid and node.permits(who, 6):
            return gate.open("the process may read and write the file")
    is_sure = node is not None and who is not None
    return gate.closed(value, summary, is_sure, "0", "users may then link to files of others in shared directories")


@hypothesis("sysctl.fs.protected_symlinks", errnos=("EACCES",), syscalls=calls.ON_PATHS)
def protected_symlinks(situation: Situation) -> Outcome | None:
    """fs.protected_symlinks is 1: in a sticky directory that all may write (/tmp) nobody follows a symbolic link of somebody else,
    not even root, unless it belongs to the directory's owner (EACCES)."""
    gate = _Gate(situation, "fs.protected_symlinks")
    found, who = _protected(situation, gate), credentials_of(situation)
    if not isinstance(found, tuple) or who is None:
        return None
    value, facts = found
    for link, directory in facts.links:
        everybody = directory.mode & 0o1002 == 0o1002
        if everybody and link.uid not in (who.uids[3], directory.uid):
            summary = f"{gate.key} is 1: {shown(link.path)} belongs to user {link.uid} and lies in a shared directory"
            return gate.closed(value, summary, True, "0", "links of others in shared directories are then followed")
    return None


def _protected_file(situation: Situation, key: str, is_fifo: bool) -> Outcome | None:
    gate = _Gate(situation, key)
    found, who = _protected(situation, gate), credentials_of(situation)
    if not isinstance(found, tuple) or who is None:
        return None
    value, facts = found
    node, directory = facts.node, facts.directory
    if node is None or directory is None or not (node.is_fifo if is_fifo else node.is_regular):
        return None
    everybody, group = directory.mode & 0o1002 == 0o1002, directory.mode & 0o1020 == 0o1020
    if not everybody and not (value >= 2 and group):
        return None
    if node.uid in (who.uids[3], directory.uid):
        return None
    flags = _open_flags(situation)
    if flags is not None and not flags & _O_CREAT:
        return gate.open("the file was not opened with O_CREAT")
    kind = "FIFO" if is_fifo else "file"
    summary = f"{key} is {value}: a {kind} of user {node.uid} in a shared directory may not be opened with O_CREAT"
    return gate.closed(value, summary, flags is not None, "0", "files that others laid out in /tmp may then be opened for writing")


def _open_flags(situation: Situation) -> int | None:
    symptom = situation.symptom
    at = {"open": 1, "openat": 2}.get(symptom.syscall)
    return symptom.arguments[at] if at is not None and len(symptom.arguments) > at else None


@hypothesis("sysctl.fs.protected_regular", errnos=("EACCES",), syscalls=calls.OPENS)
def protected_regular(situation: Situation) -> Outcome | None:
    """fs.protected_regular: in a sticky directory that all may write (2: that a group may write) nobody opens somebody else's file
    with O_CREAT, not even root (EACCES)."""
    return _protected_file(situation, "fs.protected_regular", is_fifo=False)


@hypothesis("sysctl.fs.protected_fifos", errnos=("EACCES",), syscalls=calls.OPENS)
def protected_fifos(situation: Situation) -> Outcome | None:
    """fs.protected_fifos: as fs.protected_regular, for FIFOs."""
    return _protected_file(situation, "fs.protected_fifos", is_fifo=True)


GATES = (
    perf_event_paranoid, unprivileged_bpf_disabled, io_uring_disabled, unprivileged_userfaultfd, dmesg_restrict,
    unprivileged_port_start, ping_group_range, yama, protected_hardlinks, protected_symlinks, protected_regular, protected_fifos,
)  # fmt: skip
