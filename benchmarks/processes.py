# SPDX-License-Identifier: Apache-2.0
"""Processes that a benchmark starts and measures: what they cost, read from /proc."""
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DAEMON_DIRECTORY = Path(__file__).resolve().parent.parent / "daemon"


class Measured:
    """A running process and what it has used so far."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], start_s: float = 0.0) -> None:
        self.name = name
        self.process = process
        self.start_s = start_s

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_s(self) -> float:
        """CPU time of all threads, user and system, in seconds. Source: /proc/PID/task/TID/schedstat (ns)."""
        total = 0
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            total += int(Path(f"/proc/{self.pid}/task/{thread}/schedstat").read_text().split()[0])
        return total / 1e9

    def wake_ups(self) -> int:
        """How often its threads went to sleep by themselves. Source: voluntary_ctxt_switches."""
        total = 0
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            for line in Path(f"/proc/{self.pid}/task/{thread}/status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    total += int(line.split()[1])
        return total

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def memory_mb(self) -> tuple[float, float]:
        """RSS and PSS in MB (10^6 bytes). Source: /proc/PID/smaps_rollup."""
        values = {}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            words = line.split()
            if words[0] in ("Rss:", "Pss:"):
                values[words[0]] = int(words[1]) * 1024 / 1e6
        return values["Rss:"], values["Pss:"]

    def netlink_drops(self) -> int:
        """Messages that the kernel dropped for its netlink sockets. Source: /proc/net/netlink."""
        inodes = set()
        for descriptor in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                target = os.readlink(f"/proc/{self.pid}/fd/{descriptor}")
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        rows = [line.split() for line in Path("/proc/net/netlink").read_text().splitlines()[1:]]
        return sum(int(row[8]) for row in rows if len(row) > 9 and row[9] in inodes)


@contextmanager
def running(
    name: str, argv: Sequence[str], *, waits_for_ready: bool = False, settle_s: float = 0.3,
    environment: dict[str, str] | None = None,
) -> Iterator[Measured]:
    """Starts a process, waits until it is ready (sd_notify, or `settle_s`), and ends it after the block."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(f"{directory}/notify")
        notify.settimeout(60)
        began = time.monotonic()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, **(environment or {}), "NOTIFY_SOCKET": f"{directory}/notify"},
        )
        try:
            while waits_for_ready:
                if b"READY=1" in notify.recv(4096):
                    break
            start_s = time.monotonic() - began
            notify.close()  # nobody reads on: a full socket would hold the sender up
            time.sleep(settle_s)
            if process.poll() is not None:
                raise SystemExit(f"{name} ended at once with status {process.returncode}: {' '.join(argv)}")
            yield Measured(name, process, start_s)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def daemon_argv(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command and environment that run the daemon from this checkout, without state."""
    path = os.pathsep.join([str(DAEMON_DIRECTORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [sys.executable, "-m", "triaged", "--no-state", "--no-print-findings", *arguments], {"PYTHONPATH": path}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [head, *rows])  # noqa: B905


def ratio(value: float, of: float) -> str:
    """`value` as a multiple of `of`: "x1.03", or "1/6.7" below one."""
    if of <= 0 or value <= 0:
        return "-"
    return f"x{value / of:.2f}" if value >= of else f"1/{of / value:.1f}"


def median(values: Sequence[float]) -> float:
    """The middle value."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
