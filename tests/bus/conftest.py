# SPDX-License-Identifier: Apache-2.0
"""Real buses and the real service on them, for each bus program and each D-Bus library that is here.

Further interpreters with other versions of dbus-fast can be named in TRIAGED_TEST_PYTHONS, separated by colons; each of them then
runs the service too. What is not installed is skipped with the reason.
"""
from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triaged.bus.client import BlockingClient
from triaged.bus.wire import FIXED_BYTES, Header, MessageType, build_message, parse_header, parse_lengths

HERE = Path(__file__).parent
DAEMON = HERE.parent.parent / "daemon"
FINDINGS = 300
BUSES = ("dbus-daemon", "dbus-broker")
_PYTHONS = [path for path in os.environ.get("TRIAGED_TEST_PYTHONS", "").split(":") if path]
LIBRARIES = [("dbus-next", sys.executable), ("dbus-fast", sys.executable), *(("dbus-fast", path) for path in _PYTHONS)]

_CONFIG = """<busconfig><type>session</type><keep_umask/><listen>unix:abstract={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
<!-- the limits of a system bus; those of a session bus are far wider -->
<limit name="max_incoming_bytes">133169152</limit><limit name="max_outgoing_bytes">133169152</limit>
<limit name="max_message_size">33554432</limit><limit name="max_replies_per_connection">128</limit>
<limit name="max_connections_per_user">256</limit><limit name="max_completed_connections">2048</limit>
</busconfig>"""


class Bus:
    """A message bus of our own. Its socket is an abstract one: tests call as users who may not search our directories, too."""

    def __init__(self, program: str, directory: Path) -> None:
        self.program = program
        self._directory = directory
        self._socket = f"triaged-test-{os.getpid()}-{id(self):x}"
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    @property
    def address(self) -> str:
        return f"unix:abstract={self._socket}"

    @property
    def socket_name(self) -> str:
        return "\0" + self._socket

    def start(self) -> None:
        """Starts the program and waits until it takes connections."""
        if self.program == "dbus-broker":
            command = [sys.executable, str(HERE / "broker_process.py"), self._socket]
        else:
            config = self._directory / "bus.conf"
            config.write_text(_CONFIG.format(socket=self._socket))
            command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-pid=1"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._pid = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Ends the bus without notice."""
        os.kill(self._pid, 9)
        self.stop()

    def stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            if self.program != "dbus-broker":
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
            self._process.wait(10)
            self._process.stdout.close()
            self._process = None


class ServiceProcess:
    """The service under test in a process of its own."""

    def __init__(self, bus: Bus, library: tuple[str, str], directory: Path, findings: int = FINDINGS, stall_s: float = 5.0) -> None:
        self.bus = bus
        self.library = library[0]
        self.log = directory / "service.log"
        self.states: list[list[str]] = []
        environment = {**os.environ, "PYTHONPATH": str(DAEMON), "TRIAGED_DBUS_LIBRARY": library[0]}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [library[1], str(HERE / "service_process.py"), bus.address, str(findings), str(stall_s)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment,
            )
        self.wait_state("serving")

    @property
    def pid(self) -> int:
        return self._process.pid

    def do(self, what: str, **details: Any) -> Any:
        """Has the service process do something and gives its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **details}).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            line = self._line()
            if line.startswith("state"):
                self.states.append(json.loads(line[5:]))
            else:
                return json.loads(line)

    def wait_state(self, state: str) -> None:
        """Waits until the service said this of the bus."""
        while state not in [told[0] for told in self.states]:
            line = self._line()
            assert line.startswith("state"), line
            self.states.append(json.loads(line[5:]))

    def forget_states(self) -> None:
        """So that `wait_state` waits for what comes from now on."""
        self.do("looks")
        self.states.clear()

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.read()
        status = self._process.wait(20)
        self._process.stdout.close()
        assert status == 0, self.log.read_text()[-3000:]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        assert line, self.log.read_text()[-3000:]
        return line


class RawClient:
    """A client that sends what it likes, and reads only when asked."""

    def __init__(self, bus: Bus) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(bus.socket_name)
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\nBEGIN\r\n")
        while self.socket.recv(1) != b"\n":
            pass
        self._input = bytearray()
        self._serial = 1
        driver = "org.freedesktop.DBus"
        self.socket.sendall(self.message("Hello", path="/org/freedesktop/DBus", interface=driver, to=driver))
        self.reply(1)

    def message(
        self, member: str, signature: str = "", body: bytes = b"", *, path: str = "/org/triaged/Triage1",
        interface: str = "org.triaged.Triage1.Manager", to: str = "org.triaged.Triage1",
    ) -> bytes:
        """A message, not yet sent. Its serial is `serial`."""
        self._serial += 1
        self.serial = self._serial - 1
        return build_message(
            MessageType.METHOD_CALL, self.serial, signature, body, path=path, interface=interface, member=member, destination=to
        )

    def read(self) -> tuple[Header, bytes]:
        """The next message that comes."""
        while True:
            if len(self._input) >= FIXED_BYTES and len(self._input) >= (lengths := parse_lengths(self._input)).message:
                frame = bytes(self._input[:lengths.message])
                del self._input[:lengths.message]
                return parse_header(frame), frame[lengths.header:]
            part = self.socket.recv(1 << 20)
            if not part:
                raise EOFError("the bus closed the connection")
            self._input += part

    def reply(self, serial: int) -> Header:
        """The header of the reply to the message with this serial; what comes before it is passed over."""
        while True:
            header, _ = self.read()
            if header.reply_serial == serial:
                return header

    def close(self) -> None:
        self.socket.close()


def _skip_without(program: str, library: tuple[str, str]) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if library[1] == sys.executable and importlib.util.find_spec(library[0].replace("-", "_")) is None:
        pytest.skip(f"{library[0]} is not installed")


def _name(library: tuple[str, str]) -> str:
    return library[0] if library[1] == sys.executable else f"{library[0]}:{Path(library[1]).parent.parent.name}"


@pytest.fixture(scope="session", params=BUSES)
def program(request: pytest.FixtureRequest) -> str:
    """The name of the bus program."""
    return str(request.param)


@pytest.fixture(scope="session", params=LIBRARIES, ids=_name)
def library(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The D-Bus library of the service, and the interpreter that has it."""
    return (request.param[0], request.param[1])


@pytest.fixture(scope="session")
def shared(program: str, library: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A bus with the service on it, with 300 findings; shared by all tests of the same bus program and library."""
    _skip_without(program, library)
    directory = tmp_path_factory.mktemp("bus")
    bus = Bus(program, directory)
    bus.start()
    service = ServiceProcess(bus, library, directory)
    yield service
    service.stop()
    bus.stop()


@pytest.fixture
def service(shared: ServiceProcess) -> Iterator[ServiceProcess]:
    """The shared service; after the test it must still be on its first connection and answer."""
    shared.forget_states()
    yield shared
    with BlockingClient(shared.bus.address) as client:
        assert client.manager_properties()["OpenFindings"] >= FINDINGS
    shared.do("looks")
    assert shared.states == []


@pytest.fixture
def start_service(program: str, library: tuple[str, str], tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts a bus and services of one's own: the first call starts the bus too."""
    _skip_without(program, library)
    bus = Bus(program, tmp_path)
    services: list[ServiceProcess] = []

    def start(**options: Any) -> ServiceProcess:
        if not services:
            bus.start()
        directory = tmp_path / f"service-{len(services)}"
        directory.mkdir()
        services.append(ServiceProcess(bus, library, directory, **options))
        return services[-1]

    yield start
    for each in services:
        if each._process.poll() is None:
            each.stop()
    bus.stop()


@pytest.fixture
def raw_on() -> Iterator[Callable[[Bus], RawClient]]:
    """Makes raw clients on a bus."""
    clients: list[RawClient] = []

    def make(bus: Bus) -> RawClient:
        clients.append(RawClient(bus))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def raw(service: ServiceProcess, raw_on: Callable[[Bus], RawClient]) -> Callable[[], RawClient]:
    """Makes raw clients on the bus of the shared service."""
    return lambda: raw_on(service.bus)


@pytest.fixture
def client(service: ServiceProcess) -> Iterator[BlockingClient]:
    """A client of the service."""
    with BlockingClient(service.bus.address) as blocking:
        yield blocking
