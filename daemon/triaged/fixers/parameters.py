# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters: the closed list of those that triaged may set, their ranges, and how it sets them.

Not on the list, and never to be: what names a program of the caller's choice that root will run (a kernel.core_pattern that
begins with |, kernel.modprobe, kernel.hotplug) and what cannot be taken back before a reboot (kernel.yama.ptrace_scope = 3,
kernel.unprivileged_bpf_disabled = 1, kernel.modules_disabled, kernel.kexec_load_disabled).
"""
from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from triaged.errors import FixRefused, KernelError
from triaged.fixers.fixer import Probe, TypeFixer, Unverifiable
from triaged.fixers.network_namespace import in_network_namespace
from triaged.fixers.parameter_probes import parameter_probe
from triaged.fixers.part import Original, Part
from triaged.fixers.sysctl_drop_in import SysctlDropIn
from triaged.kernel.files import read_text, translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.sysctl_order import read_assignments
from triaged.model.fix import SetParameter

_Work = Callable[[], "str | None"]
INT_MAX = (1 << 31) - 1
LONG_MAX = (1 << 63) - 1


@dataclass(frozen=True)
class Range:
    """What a parameter may be set to: `numbers` integers from `minimum` to `maximum`, in rising order, or one of `words`.

    `risk` is what may go wrong.
    """

    minimum: int
    maximum: int
    numbers: int = 1
    risk: str = ""
    words: tuple[str, ...] = ()


_SWITCH = Range(0, 1)
_SANDBOX = "user namespaces open kernel code to unprivileged users that only root could reach before"
_MEMORY = "kernel memory that unprivileged users can tie up grows with it"

# Bounds are the kernel's own where it has some (kernel/pid.c, kernel/fork.c, fs/file.c, Documentation/admin-guide/sysctl).
PARAMETERS: Mapping[str, Range] = {
    "fs.aio-max-nr": Range(1024, LONG_MAX, risk=_MEMORY),
    "fs.epoll.max_user_watches": Range(1, LONG_MAX, risk=_MEMORY),
    "fs.fanotify.max_user_groups": Range(1, INT_MAX, risk=_MEMORY),
    "fs.fanotify.max_user_marks": Range(1, INT_MAX, risk=_MEMORY),
    "fs.file-max": Range(1024, LONG_MAX, risk=_MEMORY),
    "fs.inotify.max_queued_events": Range(1, INT_MAX, risk=_MEMORY),
    "fs.inotify.max_user_instances": Range(1, INT_MAX, risk=_MEMORY),
    "fs.inotify.max_user_watches": Range(1, INT_MAX, risk=_MEMORY),
    "fs.mount-max": Range(1024, INT_MAX, risk=_MEMORY),
    "fs.mqueue.msg_max": Range(1, 65536, risk=_MEMORY),
    "fs.mqueue.msgsize_max": Range(128, 16777216, risk=_MEMORY),
    "fs.mqueue.queues_max": Range(0, INT_MAX, risk=_MEMORY),
    "fs.nr_open": Range(1024, 2147483584, risk="a process may then ask for a descriptor table of that size"),
    "fs.pipe-max-size": Range(4096, INT_MAX, risk=_MEMORY),
    "fs.pipe-user-pages-hard": Range(0, INT_MAX, risk=_MEMORY),
    "fs.pipe-user-pages-soft": Range(0, INT_MAX, risk=_MEMORY),
    "fs.protected_fifos": Range(0, 2, risk="0 lets others place a FIFO where a program expects its own file in /tmp"),
    "fs.protected_hardlinks": Range(0, 1, risk="0 lets users link to files that they can neither read nor write"),
    "fs.protected_regular": Range(0, 2, risk="0 lets others place a file where a program expects its own in /tmp"),
    "fs.protected_symlinks": Range(0, 1, risk="0 lets links in /tmp lead privileged programs astray"),
    "kernel.apparmor_restrict_unprivileged_userns": Range(0, 1, risk=_SANDBOX),
    # Words only: what begins with | names a program that the kernel runs as root.
    "kernel.core_pattern": Range(
        1, 0, risk="whoever collects core dumps gets none any more", words=("core", "core.%p", "core.%e.%p", "|/bin/false")
    ),
    "kernel.dmesg_restrict": Range(0, 1, risk="0 shows kernel messages, with addresses, to every user"),
    "kernel.io_uring_disabled": Range(0, 2, risk="0 opens io_uring to every process; it has had many holes"),
    "kernel.keys.maxbytes": Range(1, INT_MAX, risk=_MEMORY),
    "kernel.keys.maxkeys": Range(1, INT_MAX, risk=_MEMORY),
    "kernel.keys.root_maxbytes": Range(1, INT_MAX),
    "kernel.keys.root_maxkeys": Range(1, INT_MAX),
    "kernel.kptr_restrict": Range(0, 2, risk="0 shows addresses of the kernel to every user"),
    "kernel.msgmax": Range(1, INT_MAX, risk=_MEMORY),
    "kernel.msgmni": Range(1, 8388608, risk=_MEMORY),
    "kernel.perf_event_paranoid": Range(-1, 4, risk="a low value lets users observe the kernel and other processes"),
    "kernel.pid_max": Range(301, 4194304, risk="programs that print process ids in five columns look odd"),
    "kernel.pty.max": Range(1, INT_MAX, risk=_MEMORY),
    "kernel.shmall": Range(1, LONG_MAX, risk=_MEMORY),
    "kernel.shmmax": Range(1, LONG_MAX, risk=_MEMORY),
    "kernel.shmmni": Range(1, 32768, risk=_MEMORY),
    "kernel.threads-max": Range(20, 1073741823, risk=_MEMORY),
    "kernel.unprivileged_bpf_disabled": Range(0, 2, risk="0 opens bpf() to every process; 1 cannot be taken back and is not set"),
    "kernel.unprivileged_userns_clone": Range(0, 1, risk=_SANDBOX),
    "kernel.yama.ptrace_scope": Range(0, 2, risk="0 lets a process trace every other one of its user"),
    "net.core.rmem_max": Range(4096, INT_MAX, risk=_MEMORY),
    "net.core.somaxconn": Range(1, INT_MAX, risk=_MEMORY),
    "net.core.wmem_max": Range(4096, INT_MAX, risk=_MEMORY),
    "net.ipv4.ip_local_port_range": Range(1, 65535, numbers=2, risk="ports in the range are no longer free for services to choose"),
    "net.ipv4.ip_unprivileged_port_start": Range(0, 65535, risk="users may then listen where well-known services are expected"),
    "net.ipv4.ping_group_range": Range(0, INT_MAX, numbers=2, words=("1 0",)),  # no group at all
    "net.ipv4.tcp_max_syn_backlog": Range(1, INT_MAX, risk=_MEMORY),
    "net.ipv4.tcp_tw_reuse": Range(0, 2),
    "net.ipv6.conf.all.disable_ipv6": _SWITCH,
    "net.ipv6.conf.default.disable_ipv6": _SWITCH,
    "net.ipv6.conf.lo.disable_ipv6": _SWITCH,
    "net.netfilter.nf_conntrack_max": Range(1, INT_MAX, risk=_MEMORY),
    "user.max_cgroup_namespaces": Range(0, INT_MAX),
    "user.max_inotify_instances": Range(0, INT_MAX, risk=_MEMORY),
    "user.max_inotify_watches": Range(0, INT_MAX, risk=_MEMORY),
    "user.max_ipc_namespaces": Range(0, INT_MAX),
    "user.max_mnt_namespaces": Range(0, INT_MAX),
    "user.max_net_namespaces": Range(0, INT_MAX),
    "user.max_pid_namespaces": Range(0, INT_MAX),
    "user.max_time_namespaces": Range(0, INT_MAX),
    "user.max_user_namespaces": Range(0, INT_MAX, risk=_SANDBOX),
    "user.max_uts_namespaces": Range(0, INT_MAX),
    "vm.max_map_count": Range(1024, INT_MAX, risk=_MEMORY),
    "vm.nr_hugepages": Range(0, INT_MAX, risk="memory in the pool of huge pages is lost for everything else"),
    "vm.overcommit_memory": Range(0, 2, risk="2 refuses memory that may never be touched; 1 leaves it to the OOM killer"),
    "vm.overcommit_ratio": Range(0, 1000),
    "vm.unprivileged_userfaultfd": Range(0, 1, risk="1 makes races in the kernel easier to exploit"),
}
_REFUSED_VALUES = {("kernel.unprivileged_bpf_disabled", "1"): "it cannot be taken back before a reboot"}
_NUMBER = re.compile(r"-?[0-9]{1,19}")


def parse_value(parameter: str, value: str) -> str:
    """The value as the kernel will show it (words separated by one space).

    Raises: FixRefused if the parameter is not on the list or the value is out of its range.
    """
    known = PARAMETERS.get(parameter)
    if known is None:
        raise FixRefused(f"{parameter[:80]!r} is not a parameter that triaged sets", "set it by hand")
    if value in known.words:
        return value
    if known.minimum > known.maximum:
        raise FixRefused(f"{parameter} = {value[:80]!r}: triaged sets {', '.join(known.words)}")
    words = value.split(" ") if len(value) <= 100 else []
    if len(words) != known.numbers or not all(_NUMBER.fullmatch(word) for word in words):
        what = "a number" if known.numbers == 1 else f"{known.numbers} numbers"
        raise FixRefused(f"{parameter} takes {what}, not {value[:80]!r}")
    numbers = [int(word) for word in words]
    if numbers != sorted(numbers) or numbers[0] < known.minimum or numbers[-1] > known.maximum:
        raise FixRefused(f"{parameter} = {value}: triaged sets {known.minimum} to {known.maximum}")
    why = _REFUSED_VALUES.get((parameter, value))
    if why:
        raise FixRefused(f"{parameter} = {value}: {why}")
    return " ".join(str(number) for number in numbers)


class KernelParameter(Part):
    """The running value of a parameter, of the host or of one process's network namespace."""

    def __init__(self, paths: KernelPaths, parameter: str, value: str, netns_pid: int = 0, netns_start_ticks: int = 0) -> None:
        self._paths = paths
        self._parameter = parameter
        self._path = f"{paths.proc}/sys/{parameter.replace('.', '/')}"  # no name on the list has a dot within a component
        self._netns_pid = netns_pid
        self._netns_start_ticks = netns_start_ticks
        self.name = f"{parameter} of the network namespace of process {netns_pid}" if netns_pid else parameter
        self.wanted = value

    async def read(self) -> str | None:
        return await asyncio.to_thread(self._there, self._read_now)

    async def write(self) -> None:
        await asyncio.to_thread(self._there, lambda: self._write_now(self.wanted))

    async def restore(self, original: Original) -> None:
        value = original.value
        if value is None:
            raise KernelError(self._path, "had no value before")
        await asyncio.to_thread(self._there, lambda: self._write_now(value))

    async def holder(self) -> str:
        if self._netns_pid:
            return "somebody set it at run time"
        value = await self.read()
        settings = await asyncio.to_thread(read_assignments, self._paths, self._parameter)
        if settings and settings[-1].value == value:
            return f"{settings[-1]} sets that"
        return "no sysctl.d file sets that: somebody set it at run time"

    def _there(self, work: _Work) -> str | None:
        if self._netns_pid:
            return in_network_namespace(self._paths, self._netns_pid, self._netns_start_ticks, work)
        return work()

    def _read_now(self) -> str | None:
        return " ".join(read_text(self._path, 4096).split())

    def _write_now(self, value: str) -> None:
        try:
            # O_TRUNC means nothing to procfs; on a fixture it makes a shorter value replace a longer one.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise translated(error, self._path) from error
        try:
            os.write(descriptor, f"{value}\n".encode())
        except OSError as error:
            raise KernelError(self._path, f"the kernel refused {value}: {os.strerror(error.errno or 0).lower()}") from error
        finally:
            os.close(descriptor)


class ParameterFixer(TypeFixer[SetParameter]):
    """Sets kernel parameters: the running value, and for a lasting fix a line in our own drop-in."""

    kind = SetParameter

    def __init__(self, paths: KernelPaths) -> None:
        self._paths = paths

    def check(self, fix: SetParameter) -> None:
        parse_value(fix.parameter, fix.value)
        if fix.netns_pid and not fix.parameter.startswith("net."):
            raise FixRefused(f"{fix.parameter} does not belong to a network namespace")
        if fix.netns_pid and fix.lasting:
            raise FixRefused("a network namespace ends with its processes; nothing in it lasts")
        if fix.netns_pid < 0 or (fix.netns_pid and fix.netns_start_ticks <= 0):
            raise FixRefused("a network namespace is named by a pid with its start time")

    def parts(self, fix: SetParameter) -> tuple[Part, ...]:
        value = parse_value(fix.parameter, fix.value)
        running = KernelParameter(self._paths, fix.parameter, value, fix.netns_pid, fix.netns_start_ticks)
        if not fix.lasting:
            return (running,)
        # The running value first: what the kernel refuses must not wait in a file for the next boot.
        return (running, SysctlDropIn(self._paths, fix.parameter, value))

    def seen(self, fix: SetParameter) -> str:
        return " ".join(fix.seen.split())

    def risk(self, fix: SetParameter) -> str:
        return fix.risk or PARAMETERS[fix.parameter].risk

    async def notes(self, fix: SetParameter, present: str | None) -> tuple[str, ...]:
        if not fix.lasting:
            where = "as long as the network namespace exists" if fix.netns_pid else "until the next boot"
            return (f"holds {where}",)
        drop_in = self.parts(fix)[1]
        assert isinstance(drop_in, SysctlDropIn)
        notes = []
        rival = await asyncio.to_thread(drop_in.beaten_by)
        if rival is not None:
            notes.append(f"at boot {rival} wins over {drop_in.file} and sets {rival.value}")
        if await asyncio.to_thread(drop_in.also_set_by_procps):
            notes.append(f"`sysctl --system` (not systemd) reads {self._paths.etc}/sysctl.conf last, which sets it too")
        return tuple(notes)

    async def probe(self, fix: SetParameter, present: str | None, uid: int | None) -> Probe | Unverifiable:
        return parameter_probe(fix, present or "", uid)
