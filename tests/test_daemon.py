# SPDX-License-Identifier: Apache-2.0
"""The whole daemon as a process of its own, on a private bus."""
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MANAGER = ("org.triaged.Triage1", "/org/triaged/Triage1", "org.triaged.Triage1.Manager")
MAPS = int(Path("/proc/sys/vm/max_map_count").read_text())
START_S = 60.0


class Running:
    """A daemon; `notify` is where it thinks systemd listens."""

    def __init__(self, directory: Path, *options: str, watchdog_usec: int = 0) -> None:
        self.data = directory / "data"
        if not self.data.exists():
            shutil.copytree(ROOT / "config", self.data)
            shutil.copy(ROOT / "dbus" / "org.triaged.Triage1.xml", self.data)
        self.state = directory / "state"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.settimeout(START_S)
        path = directory / f"notify-{time.monotonic_ns()}"
        self.notify.bind(str(path))
        self.output = (directory / "output").open("a+")
        environment = {**os.environ, "TRIAGED_DATA_DIR": str(self.data), "NOTIFY_SOCKET": str(path), "PYTHONUNBUFFERED": "1"}
        if watchdog_usec:
            environment["WATCHDOG_USEC"] = str(watchdog_usec)
        words = ["--bus", "private", "--state-directory", str(self.state), "--print-findings", *options]
        command = [sys.executable, "-m", "triaged", *words]
        self.process = subprocess.Popen(command, env=environment, stdout=self.output, stderr=subprocess.STDOUT)

    def wait_for(self, assignment: str) -> str:
        """Reads notifications until one has the assignment; gives the whole notification."""
        while True:
            text = self.notify.recv(65536).decode()
            if assignment in text.split("\n") or any(line.startswith(assignment) for line in text.split("\n")):
                return text

    def text(self) -> str:
        self.output.flush()
        return Path(self.output.name).read_text()

    def address(self) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            found = re.findall(r"--address=(unix:path=\S+)", self.text())
            if found and "watching; Ctrl-C" in self.text():
                return str(found[-1])
            assert self.process.poll() is None, self.text()
            time.sleep(0.05)
        raise AssertionError(self.text())

    def call(self, method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["busctl", f"--address={self.address()}", "--json=short", "call", *MANAGER, method, *arguments],
            capture_output=True, text=True, timeout=30, check=False,
        )

    def findings(self) -> dict[str, str]:
        """The ids of the open findings, with their summaries."""
        rows = json.loads(self.call("ListFindings", "a{sv}", "0").stdout)["data"][0]
        return {row["Id"]["data"]: row["Summary"]["data"] for row in rows}

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self.output.close()
        self.notify.close()
        return code


@pytest.fixture
def directory() -> Iterator[Path]:
    # Short: a socket's path has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="triaged-test-") as name:
        yield Path(name)


def want_maps(data: Path, at_least: int) -> None:
    (data / "policies" / "default.toml").write_text(
        f'title = "test"\n[[parameter]]\nkey = "vm.max_map_count"\noperator = "at-least"\nvalue = {at_least}\nwhy = "the test"\n'
    )


def test_it_is_ready_only_when_the_bus_answers_and_every_source_has_spoken(directory: Path) -> None:
    daemon = Running(directory)
    try:
        ready = daemon.wait_for("READY=1")
        assert "sources active" in ready
        done = daemon.call("ListFindings", "a{sv}", "0")
        assert done.returncode == 0, done.stderr
    finally:
        assert daemon.stop() == 0


def test_ctrl_c_leaves_nothing_behind(directory: Path) -> None:
    daemon = Running(directory)
    bus = Path(daemon.address().removeprefix("unix:path="))
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    assert bus.exists()
    assert daemon.stop(signal.SIGINT) == 0
    assert not bus.parent.exists()
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def test_the_watchdog_is_told_that_the_loop_turns(directory: Path) -> None:
    daemon = Running(directory, watchdog_usec=400_000)
    try:
        for _ in range(3):
            daemon.wait_for("WATCHDOG=1")
    finally:
        daemon.stop()


def test_a_reload_takes_the_new_policy_and_a_wrong_one_changes_nothing(directory: Path) -> None:
    daemon = Running(directory)
    try:
        daemon.wait_for("READY=1")
        mine = "sysctl.below-policy"
        want_maps(daemon.data, MAPS + 1)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("RELOADING=1")
        daemon.wait_for("READY=1")
        daemon.call("Refresh")
        assert [name for name in daemon.findings() if name.startswith(mine)]

        (daemon.data / "policies" / "default.toml").write_text('title = "test"\nnonsense = 1\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("RELOADING=1")
        status = daemon.wait_for("READY=1")
        assert "policies/default.toml:2" in status
        assert [name for name in daemon.findings() if name.startswith(mine)]

        want_maps(daemon.data, MAPS)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("RELOADING=1")
        daemon.wait_for("READY=1")
        daemon.call("Refresh")
        assert not [name for name in daemon.findings() if name.startswith(mine)]
    finally:
        assert daemon.stop() == 0


def test_kill_9_loses_no_finding_that_was_published(directory: Path) -> None:
    first = Running(directory)
    want_maps(first.data, MAPS + 1)
    first.stop()
    first = Running(directory)
    first.wait_for("READY=1")
    first.call("Refresh")
    before = {name for name in first.findings() if name.startswith("sysctl.")}
    assert before
    first.stop(signal.SIGKILL)
    second = Running(directory)
    try:
        second.wait_for("READY=1")
        assert before <= set(second.findings())
    finally:
        second.stop()


def test_a_wrong_configuration_ends_it_with_the_file_and_line(directory: Path) -> None:
    daemon = Running(directory)
    daemon.address()
    daemon.stop()
    (daemon.data / "triaged.toml").write_text("polices = []\n")
    again = Running(directory)
    assert again.process.wait(30) == 78
    text = again.text()
    again.stop()
    assert "triaged.toml:1" in text
    assert "policies" in text
    assert "Traceback" not in text


def test_the_always_on_process_loads_neither_pyroute2_nor_psutil_nor_openssl(directory: Path) -> None:
    daemon = Running(directory)
    try:
        daemon.wait_for("READY=1")
        maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
        for name in ("psutil", "libssl", "libcrypto"):
            assert name not in maps
    finally:
        daemon.stop()
    names = "[name for name in sys.modules if name in ('pyroute2', 'psutil')]"
    code = f"import sys; sys.modules['ssl'] = None; import triaged.daemon; print({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_private_bus_ends_with_a_daemon_that_is_killed(directory: Path) -> None:
    daemon = Running(directory)
    daemon.address()
    children = [int(pid) for pid in Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()]
    assert children
    daemon.stop(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_reader_of_notifications_that_sleeps_holds_nobody_up(directory: Path) -> None:
    daemon = Running(directory, watchdog_usec=2000)  # 1,000 notifications a second: the queue is full at once
    try:
        daemon.address()
        time.sleep(1)
        for _ in range(3):
            done = daemon.call("Refresh")
            assert done.returncode == 0, done.stderr
    finally:
        assert daemon.stop() == 0
