# SPDX-License-Identifier: Apache-2.0
"""How long from the kernel's event to a D-Bus signal that a client has received: a seccomp kill, and a fork that pids.max refused.

    python benchmarks/event_latency.py [--events N]

The clock starts in the victim, just before the fatal call, and stops in the client, when FindingOpened is there. Each event is made
a finding of its own (another system call, another cgroup), one at a time, and the finding must name the victim. Waiting for the
victim's death (waitpid) by its parent stands beside the kills as what the kernel itself takes. Needs root and dbus-daemon.
"""
from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from processes import DAEMON_DIRECTORY, daemon_argv, median, ratio, running, table

sys.path.insert(0, str(DAEMON_DIRECTORY))
from triaged.bus.address import PrivateBus
from triaged.bus.client import Client, FindingOpened
from triaged.seccomp.syscalls import number_of

_WAIT_S = 5.0
# Calls that neither Python nor the C library needs once it has started.
_CALLS = """
acct adjtimex bpf capget capset chroot clock_adjtime clock_settime delete_module epoll_ctl_old fanotify_init finit_module
fsconfig fsmount fsopen fspick get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages
name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open personality pidfd_getfd pivot_root process_madvise
process_vm_readv process_vm_writev ptrace query_module quotactl reboot request_key set_mempolicy setdomainname sethostname
setns settimeofday swapoff swapon syslog sysfs umount2 unshare uselib userfaultfd ustat vhangup vm86 vmsplice
"""
_KILLED = """
import ctypes, os, struct, sys, time
number = int(sys.argv[1])
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
os.write(1, b"ready\\n")
os.read(0, 1)
libc.prctl(38, 1, 0, 0, 0)
libc.prctl(22, 2, program, 0, 0)
os.write(1, b"%d\\n" % time.monotonic_ns())
libc.syscall(number)
"""
_REFUSED = """
import os, sys, time
os.write(1, b"ready\\n")
os.read(0, 1)
os.write(1, b"%d\\n" % time.monotonic_ns())
try:
    os.fork()
except BlockingIOError:
    os.write(1, b"refused\\n")
os.read(0, 1)
"""


class Victim:
    """A process that waits to be told to do the fatal thing."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        if self.line() != b"ready\n":
            raise SystemExit("a victim did not start")

    def line(self) -> bytes:
        assert self.process.stdout
        return self.process.stdout.readline()

    def go(self) -> int:
        """Lets it; the time just before the fatal call, in ns of the monotonic clock."""
        assert self.process.stdin
        self.process.stdin.write(b"x")
        return int(self.line())

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()


@contextmanager
def pids_cgroup() -> Iterator[tuple[Path, str]]:
    """A cgroup of ours below which pids.max can be set, and the version of its hierarchy."""
    version_1 = Path("/sys/fs/cgroup/pids")
    root = version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")
    version = "1" if version_1.is_dir() else "2"
    if version == "2" and "pids" not in (root / "cgroup.subtree_control").read_text().split():
        raise SystemExit("the pids controller is not on below the root cgroup")
    own = root / f"triaged-latency-{os.getpid()}"
    own.mkdir()
    try:
        if version == "2":
            (own / "cgroup.subtree_control").write_text("+pids")
        yield own, version
    finally:
        for directory in [*own.iterdir(), own]:
            if directory.is_dir():
                with suppress(OSError):
                    directory.rmdir()


class Signals:
    """FindingOpened as it comes, each with the time when it was there (ns of the monotonic clock)."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._waiting: asyncio.Queue[tuple[int, FindingOpened]] = asyncio.Queue()
        self._pump = asyncio.ensure_future(self._take())

    async def _take(self) -> None:
        async for signal in self.client.opened():
            self._waiting.put_nowait((time.monotonic_ns(), signal))

    async def about(self, rule: str, holds: Callable[[dict[str, Any]], bool]) -> int:
        """When the first finding of a rule about a certain subject was there. Raises asyncio.TimeoutError."""
        end = time.monotonic() + _WAIT_S
        while True:
            at, signal = await asyncio.wait_for(self._waiting.get(), end - time.monotonic())
            if signal.rule == rule and holds((await self.client.get_finding(signal.identifier))["Subject"]):
                return at


async def measure(
    signals: Signals, rule: str, start: Callable[[int], Victim], events: int, waits: list[float] | None
) -> list[float]:
    """Milliseconds from the victim's clock to the signal, for each event that became a finding in time."""
    found: list[float] = []
    for number in range(events):
        victim = await asyncio.to_thread(start, number)
        await asyncio.sleep(0.15)  # let the start of the victim be over: what is measured begins with a calm
        began = await asyncio.to_thread(victim.go)
        if waits is not None:
            waiting = asyncio.get_running_loop().run_in_executor(None, victim.process.wait)
            waiting.add_done_callback(lambda _, began=began: waits.append((time.monotonic_ns() - began) / 1e6))
        try:
            at = await signals.about(rule, lambda subject, victim=victim, number=number: (
                subject.get("pid") == victim.process.pid or str(subject.get("cgroup", "")).endswith(f"/event-{number}")
            ))
            found.append((at - began) / 1e6)
        except asyncio.TimeoutError:
            print(f"{rule}: no finding within {_WAIT_S:.0f} s for event {number}", file=sys.stderr)
        victim.end()
    return found


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(name: str, values: list[float], of: float, wanted: int) -> list[str]:
    if not values:
        return [name, "-", "-", "-", "-", f"0/{wanted}"]
    return [
        name, f"{median(values):.2f}", ratio(median(values), of), f"{percentile(values, 0.99):.2f}", f"{max(values):.2f}",
        f"{len(values)}/{wanted}",
    ]


async def run(events: int) -> None:
    kernel: list[float] = []
    numbers = [number for number in (number_of("x86_64", name) for name in _CALLS.split()) if number is not None][:events]
    with tempfile.TemporaryDirectory() as directory:
        async with PrivateBus(directory) as bus:
            argv, environment = daemon_argv("--bus", bus.address)
            with running("triaged", argv, waits_for_ready=True, environment=environment):
                client = await Client.connect(bus.address)
                await client.subscribe()
                signals = Signals(client)
                kills = await measure(signals, "seccomp.denied", lambda at: Victim(_KILLED, str(numbers[at])), len(numbers), kernel)
                with pids_cgroup() as (own, version):

                    def confined(number: int) -> Victim:
                        directory = own / f"event-{number}"
                        directory.mkdir()
                        victim = Victim(_REFUSED)
                        (directory / "pids.max").write_text("1")
                        (directory / "cgroup.procs").write_text(str(victim.process.pid))
                        return victim

                    refusals = await measure(signals, "cgroup.pids.limit-hit", confined, events, None)
                await client.close()
    of = median(kernel)
    print(table(["event", "p50 ms", "of waitpid", "p99 ms", "max ms", "seen"], [
        row("seccomp kill: waitpid in the parent", kernel, of, len(numbers)),
        row("seccomp kill: D-Bus signal at a client", kills, of, len(numbers)),
        row(f"pids.max hit (cgroup version {version}): D-Bus signal", refusals, of, events),
    ]))


def main() -> None:
    parser = argparse.ArgumentParser(description="How long from the kernel's event to a D-Bus signal at a client.")
    parser.add_argument("--events", type=int, default=60, help=f"of each kind (default 60; at most {len(_CALLS.split())} kills)")
    if os.uname().machine != "x86_64" or os.geteuid() != 0:
        raise SystemExit("needs root on x86_64")
    asyncio.run(run(parser.parse_args().events))


if __name__ == "__main__":
    main()
