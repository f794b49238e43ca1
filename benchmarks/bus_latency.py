# SPDX-License-Identifier: Apache-2.0
"""What a call to triaged costs over D-Bus, next to the bus's own GetId in the same run: ratios, so that the machine cancels out.

A private dbus-daemon, the real service over 300 made-up findings (tests/bus/service_process.py), and a client that only counts
messages and leaves their bodies unread. Calls of all kinds take turns. Run as:

    PYTHONPATH=daemon python benchmarks/bus_latency.py [--calls 400] [--signals 20000] [--library dbus-next]
"""
from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triaged.bus import seam
from triaged.bus.address import PrivateBus
from triaged.bus.wire import FIXED_BYTES, Header, MessageType, build_message, parse_header, parse_lengths

ROOT = Path(__file__).resolve().parent.parent
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
MANAGER = ("org.triaged.Triage1", "/org/triaged/Triage1", "org.triaged.Triage1.Manager")
OBJECTS = (*MANAGER[:2], "org.freedesktop.DBus.ObjectManager")
PROPERTIES = (*MANAGER[:2], "org.freedesktop.DBus.Properties")


class Caller:
    """A blocking client."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\nBEGIN\r\n")
        while self._socket.recv(1) != b"\n":
            pass
        self._input = bytearray()
        self._serial = 0
        self.call(BUS, "Hello")

    def send(self, to: tuple[str, str, str], member: str, signature: str = "", body: bytes = b"") -> int:
        self._serial += 1
        self._socket.sendall(build_message(
            MessageType.METHOD_CALL, self._serial, signature, body, path=to[1], interface=to[2], member=member, destination=to[0]
        ))
        return self._serial

    def read(self) -> Header:
        while True:
            if len(self._input) >= FIXED_BYTES and len(self._input) >= (length := parse_lengths(self._input).message):
                header = parse_header(self._input)
                del self._input[:length]
                return header
            self._input += self._socket.recv(1 << 20)

    def call(self, to: tuple[str, str, str], member: str, signature: str = "", body: bytes = b"") -> Header:
        serial = self.send(to, member, signature, body)
        while (header := self.read()).reply_serial != serial:
            pass
        if header.error_name:
            raise SystemExit(f"{member}: {header.error_name}")
        return header


class Service:
    """The service process, by its commands."""

    def __init__(self, address: str, library: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "daemon"), "TRIAGED_DBUS_LIBRARY": library}
        program = [sys.executable, str(ROOT / "tests" / "bus" / "service_process.py"), address, "300", "5"]
        self.process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self.process.stdout is not None
        assert b"serving" in self.process.stdout.readline()

    def do(self, what: str, **details: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": what, **details}).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


def options(**values: int) -> bytes:
    return seam.marshal("a{sv}", [{name: seam.Variant("u", value) for name, value in values.items()}])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--signals", type=int, default=20_000)
    parser.add_argument("--library", default="dbus-next")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        loop = asyncio.new_event_loop()
        bus = PrivateBus(directory)
        loop.run_until_complete(bus.start())
        service = Service(bus.address, arguments.library)
        try:
            measure(Caller(f"{directory}/bus"), service, arguments.calls, arguments.signals)
        finally:
            service.stop()
            loop.run_until_complete(bus.stop())
            loop.close()


def measure(caller: Caller, service: Service, calls: int, signals: int) -> None:
    version = seam.marshal("ss", [MANAGER[2], "Version"])
    kinds: dict[str, Callable[[], Header]] = {
        "bus: GetId": lambda: caller.call(BUS, "GetId"),
        "Get Version": lambda: caller.call(PROPERTIES, "Get", "ss", version),
        "ListFindings, 1 row": lambda: caller.call(MANAGER, "ListFindings", "a{sv}", options(limit=1)),
        "ListFindings, 100 rows": lambda: caller.call(MANAGER, "ListFindings", "a{sv}", options(limit=100)),
        "GetManagedObjects, 300": lambda: caller.call(OBJECTS, "GetManagedObjects"),
    }
    for ask in kinds.values():
        ask()
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(calls):
        for name, ask in kinds.items():
            start = time.perf_counter()
            ask()
            took[name].append(time.perf_counter() - start)
    floor = statistics.median(took["bus: GetId"])
    floor99 = statistics.quantiles(took["bus: GetId"], n=100)[98]
    status = service.do("status")
    print(f"{status['library']}, {calls} calls each; GetId: p50 {floor * 1e6:.0f} µs, p99 {floor99 * 1e6:.0f} µs\n")
    print(f"{'call':26}{'p50 µs':>9}{'p50 / GetId':>13}{'p99 / GetId':>13}{'service CPU µs':>16}")
    for name, ask in kinds.items():
        before = service.do("status")["cpu_s"]
        for _ in range(calls // 4):
            ask()
        cpu = (service.do("status")["cpu_s"] - before) / (calls // 4)
        p50, p99 = statistics.median(took[name]), statistics.quantiles(took[name], n=100)[98]
        print(f"{name:26}{p50 * 1e6:9.0f}{p50 / floor:13.1f}{p99 / floor99:13.1f}{cpu * 1e6:16.0f}")
    burst(caller, service, signals)


def burst(caller: Caller, service: Service, signals: int) -> None:
    """How fast FindingOpened comes in a burst, next to replies to GetId that are asked for a hundred at a time."""
    start = time.perf_counter()
    for _ in range(0, signals, 100):
        for _ in range(100):
            caller.send(BUS, "GetId")
        for _ in range(100):
            caller.read()
    replies_per_s = signals / (time.perf_counter() - start)
    caller.call(BUS, "AddMatch", "s", seam.marshal("s", ["type='signal',member='FindingOpened'"]))
    before = service.do("status")["cpu_s"]
    start = time.perf_counter()
    service.do("burst", count=signals)
    seen = 0
    while seen < signals:
        seen += caller.read().member == "FindingOpened"
    signals_per_s = signals / (time.perf_counter() - start)
    after = service.do("status")
    cpu = (after["cpu_s"] - before) / signals
    print(
        f"\n{signals} signals at once: {signals_per_s:.0f}/s, {signals_per_s / replies_per_s:.2f} times GetId's replies; "
        f"service CPU {cpu * 1e6:.0f} µs each, RSS {after['rss'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
