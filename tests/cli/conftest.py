# SPDX-License-Identifier: Apache-2.0
"""A real daemon on a real message bus, with a policy that this machine cannot meet and findings from an earlier run."""
from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pathlib
import pty
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from triaged.bus.client import BlockingClient
from triaged.model.cgroup import CgroupId
from triaged.model.fix import SetUnitProperty
from triaged.model.process import ProcessIdentity
from triaged.model.subject import CgroupSubject, ProcessSubject
from triaged.model.verdict import Evidence, Problem
from triaged.rules import RULES
from triaged.sources import SOURCE_NAMES
from triaged.store import Store

ROOT = pathlib.Path(__file__).parents[2]
RUNNER = "actions.runner.service"
PARAMETERS = "kernel-parameters"  # the one source that tells the same on every machine
EVIL = "\x1b]0;owned\x07"
_IMPOSSIBLE = """
[[parameter]]
key = "vm.max_map_count"
operator = "at-least"
value = 2147483647
severity = "{severity}"
why = "It is the most that the kernel takes, and nobody has it. It is here for a test."
"""
_BUS = """<busconfig><type>session</type><keep_umask/><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>"""


@dataclass
class Machine:
    """Where a triagectl under test runs: data directory, environment, and the bus with the daemon if there is one."""

    directory: pathlib.Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> pathlib.Path:
        return self.directory / "data"

    def want_the_impossible(self, severity: str = "warning") -> None:
        """Has the policy ask for what no machine has: a finding of kind risk, wherever the tests run."""
        self.write_policy(_IMPOSSIBLE.format(severity=severity))

    def on_terminal(self, *words: str, columns: int = 80, environment: dict[str, str] | None = None) -> str:
        """What triagectl writes where standard output and standard error are a terminal."""
        main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            self.argv(*words), stdin=side, stdout=side, stderr=side, cwd="/",
            env={**self.environment, "TERM": "xterm", **(environment or {})},
        )
        os.close(side)
        data = b""
        with contextlib.suppress(OSError):  # EIO: the last writer closed it
            while part := os.read(main, 65536):
                data += part
        os.close(main)
        process.wait(60)
        return data.decode().replace("\r\n", "\n")

    def triagectl(
        self, *words: str, uid: int | None = None, environment: dict[str, str] | None = None, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs triagectl to its end, as another user where `uid` is given."""
        argv = self.argv(*words)
        if uid is not None:
            # The interpreter of the tests may lie where other users may not search.
            python = shutil.which("python3", path="/usr/bin")
            if python is None or shutil.which("setpriv") is None:
                pytest.skip("becoming another user needs setpriv and a python3 in /usr/bin")
            argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", python, *argv[1:]]
        whole = {**self.environment, **(environment or {})}
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s, env=whole, cwd="/")

    def argv(self, *words: str) -> list[str]:
        """The command that runs triagectl."""
        return [sys.executable, "-m", "triaged.cli", *words]

    def write_policy(self, text: str = "", sources: tuple[str, ...] = (PARAMETERS,)) -> None:
        """Writes the policy `default`, and a configuration that leaves only the named sources on."""
        off = [name for name in SOURCE_NAMES if name not in sources]
        (self.data / "triaged.toml").write_text(f"disabled-sources = {off}\n".replace("'", '"'))
        (self.data / "policies" / "default.toml").write_text(f'title = "a test"\n{text}')


def _copy_package(name: str, directory: pathlib.Path) -> None:
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        shutil.copytree(spec.submodule_search_locations[0], directory / name, ignore=shutil.ignore_patterns("__pycache__"))


@contextlib.contextmanager
def _machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="triaged-test-") as name:
        directory = pathlib.Path(name)
        directory.chmod(0o755)
        found = Machine(directory)
        # Other users may not be able to search the directories of the tree and of what it needs.
        for package in ("triaged", "dbus_next", "tomli"):
            _copy_package(package, directory / "lib")
        (found.data / "policies").mkdir(parents=True)
        for name in ("workloads.d", "seccomp"):
            shutil.copytree(ROOT / "config" / name, found.data / name)
        shutil.copy(ROOT / "dbus" / "org.triaged.Triage1.xml", found.data)
        found.write_policy()
        found.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(directory / "lib"), "TRIAGED_DATA_DIR": str(found.data),
            "LC_ALL": "C.UTF-8", "HOME": str(directory), "PYTHONDONTWRITEBYTECODE": "1",
        }
        yield found


def remember_findings(state: pathlib.Path) -> None:
    """What an earlier run of the daemon left: forks refused in a unit, and a process with a name that a terminal would obey."""
    store = Store(str(state))
    store.load()
    rules = {rule.identifier: rule for rule in RULES}
    pids = f"/sys/fs/cgroup/system.slice/{RUNNER}/pids"
    store.report(rules["cgroup.pids.limit-hit"], Problem(
        CgroupSubject(CgroupId(f"/system.slice/{RUNNER}")), "13 forks refused at 64 tasks",
        (Evidence("pids.max", 64, f"{pids}.max"), Evidence("pids.events max", 13, f"{pids}.events")),
        (SetUnitProperty(RUNNER, "TasksMax", "128"),), occurrences=13,
    ))
    who = ProcessIdentity(4194000, 1, uid=0, comm=EVIL, exe=f"/tmp/{EVIL}", argv=("x", EVIL), cgroups={"": "/user.slice"})
    denied = next(rule for rule in RULES if rule.identifier.startswith("seccomp."))
    store.report(denied, Problem(ProcessSubject(who), f"{EVIL} was refused something", (Evidence("comm", EVIL, EVIL),)))
    store.flush()


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A place for triagectl without a daemon. Every user may read it."""
    with _machine() as found:
        yield found


@dataclass
class Daemon:
    """A running daemon and its bus."""

    machine: Machine
    address: str
    process: subprocess.Popen[bytes]
    bus: subprocess.Popen[bytes]

    def reload(self) -> None:
        """Has the daemon read its configuration again."""
        self.process.send_signal(signal.SIGHUP)

    def open_findings(self) -> int:
        """How many findings are open."""
        with BlockingClient(self.address) as client:
            return int(client.manager_properties()["OpenFindings"])

    def wait_for_findings(self, number: int) -> None:
        """Waits until so many are open."""
        wait_for(lambda: self.open_findings() == number)


@contextlib.contextmanager
def _daemon() -> Iterator[Daemon]:
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed")
    with _machine() as machine:
        state = machine.directory / "state"
        remember_findings(state)
        config = machine.directory / "bus.conf"
        config.write_text(_BUS.format(socket=machine.directory / "bus"))
        bus = subprocess.Popen(["dbus-daemon", f"--config-file={config}", "--nofork", "--print-pid=1"], stdout=subprocess.PIPE)
        assert bus.stdout is not None
        assert bus.stdout.readline()
        address = f"unix:path={machine.directory}/bus"
        # The daemon is not told that this is the system bus: there it would have the helper make its repairs.
        argv = [sys.executable, "-m", "triaged", "--bus", address, "--state-directory", str(state), "--no-print-findings"]
        process = subprocess.Popen(argv, env={**os.environ, **machine.environment}, cwd="/")
        machine.environment |= {"TRIAGED_BUS": address, "DBUS_SYSTEM_BUS_ADDRESS": address}
        try:
            wait_for(lambda: machine.triagectl("status").returncode == 0)
            yield Daemon(machine, address, process, bus)
        finally:
            for each in (process, bus):
                each.terminate()
                each.wait(20)
            bus.stdout.close()


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[Daemon]:
    """One daemon for all tests of a module."""
    with _daemon() as found:
        yield found


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon that answers, with two open findings and a policy that asks for nothing; triagectl is set to its bus."""
    yield shared_daemon
    shared_daemon.machine.write_policy()
    if shared_daemon.open_findings() != 2:
        shared_daemon.reload()
        shared_daemon.wait_for_findings(2)


@pytest.fixture
def lonely_daemon() -> Iterator[Daemon]:
    """A daemon for one test, which may break it."""
    with _daemon() as found:
        yield found


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Asks until the condition holds; each question takes a process or a message, so that this hardly spins."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come"
