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


def data_in(directory: Path) -> dict[str, str]:
    """An environment with a copy of the installed configuration."""
    data = directory / "data"
    if not data.exists():
        shutil.copytree(ROOT / "config", data)
        shutil.copy(ROOT / "dbus" / "org.triaged.Triage1.xml", data)
    return {**os.environ, "TRIAGED_DATA_DIR": str(data)}


class Running:
    """A daemon; `notify` is where it thinks systemd listens."""

    def __init__(self, directory: Path, *options: str, watchdog_usec: int = 0) -> None:
        self.data = directory / "data"
        self.state = directory / "state"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.settimeout(START_S)
        path = directory / f"notify-{time.monotonic_ns()}"
        self.notify.bind(str(path))
        self.output = (directory / "output").open("a+")
        environment = {**data_in(directory), "NOTIFY_SOCKET": str(path), "PYTHONUNBUFFERED": "1"}
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


def test_it_ends_quietly_when_nobody_reads_what_it_prints(directory: Path) -> None:
    command = [sys.executable, "-m", "triaged", "--bus", "none", "--no-state", "--print-findings"]
    with subprocess.Popen(
        command, env=data_in(directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("source ")
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0, errors
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_it_runs_with_its_standard_streams_closed(directory: Path) -> None:
    command = f'exec "{sys.executable}" -m triaged --bus none --state-directory "{directory}/state" <&- >&- 2>&-'
    process = subprocess.Popen(["sh", "-c", command], env=data_in(directory))
    try:
        deadline = time.monotonic() + START_S
        while not catches(process.pid, signal.SIGTERM):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (directory / "state" / "findings").exists()
    finally:
        process.terminate()
        assert process.wait(30) == 0


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.findall(r"^SigCgt:\s*(\w+)", status, re.M)[0], 16) & 1 << number - 1)


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
    heavy = ("pyroute2", "psutil", "dbus_next.service", "xml.etree", "urllib.parse", "shutil", "tempfile", "triaged.fixers.local")
    code = (
        "import sys; from triaged.__main__ import build_parser, leave_out_openssl; build_parser().parse_args([])\n"
        f"leave_out_openssl(); import triaged.daemon; print([name for name in {heavy!r} if name in sys.modules])"
    )
    environment = {**os.environ, "TRIAGED_DBUS_LIBRARY": "dbus-next"}
    done = subprocess.run([sys.executable, "-Sc", code], capture_output=True, text=True, timeout=60, check=True, env={
        **environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
    })
    assert done.stdout.strip() == "[]"


def test_an_idle_daemon_keeps_no_threads(directory: Path) -> None:
    daemon = Running(directory)
    try:
        daemon.address()
        assert daemon.call("Refresh").returncode == 0
        until = time.monotonic() + 20  # looks are still being taken
        # One more is asyncio's, which waits for the end of the private bus (before Python 3.12).
        while len(os.listdir(f"/proc/{daemon.process.pid}/task")) > 2:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        daemon.stop()


def test_what_an_earlier_run_left_of_its_fixes_is_looked_at_when_it_starts(directory: Path) -> None:
    (directory / "state" / "originals").mkdir(parents=True, mode=0o700)
    (directory / "state" / "originals" / "a.json").write_text("{")
    daemon = Running(directory)
    try:
        daemon.address()
        assert "originals/a.json" in daemon.text()
        assert daemon.call("ListFixes").returncode == 0
    finally:
        assert daemon.stop() == 0


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


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    """What CheckPolicy answered."""
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["data"][0]
    return [{name: value["data"] for name, value in item.items()} for item in items]


def test_a_policy_is_checked_over_the_bus_and_for_a_process_in_its_own_network(directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a network namespace needs root")
    daemon = Running(directory)
    (daemon.data / "policies" / "mine.toml").write_text("".join(['title = "mine"\n', *(
        f'[[parameter]]\nkey = "{key}"\noperator = "at-least"\nvalue = {value}\nwhy = "the test"\n'
        for key, value in (("vm.max_map_count", MAPS + 1), ("net.core.somaxconn", 100))
    ), '[[limit]]\nresource = "NOFILE"\nat-least = 1\nworkloads = ["go-test"]\nwhy = "the test"\n']))
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo 77 >/proc/sys/net/core/somaxconn; echo ready; exec sleep 60"], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        here = rows(daemon.call("CheckPolicy", "asa{sv}", "1", "mine", "0"))
        assert [(row["Subject"], row["Outcome"]) for row in here] == [
            ("vm.max_map_count", "fail"), ("net.core.somaxconn", "pass"), ("RLIMIT_NOFILE", "unknown"),
        ]  # fmt: skip
        assert (here[0]["Value"], here[0]["Wish"], here[0]["WantedBy"]) == (str(MAPS), f"at least {MAPS + 1}", "mine")
        assert here[0]["Origin"]
        there = rows(daemon.call("CheckPolicy", "asa{sv}", "1", "mine", "1", "pid", "u", str(holder.pid)))
        assert [row["Outcome"] for row in there] == ["fail", "fail", "pass"]
        assert there[1]["Value"] == "77"
        assert there[1]["Origin"] == f"the network namespace of process {holder.pid}, which files of sysctl.d do not reach"
        for arguments, why in (
            (["1", "nothing", "0"], "there is no policy 'nothing'"),
            (["1", "../mine", "0"], "there is no policy '../mine'"),
            (["17", *(["mine"] * 17), "0"], "at most 16"),
            (["1", "mine", "1", "pid", "s", "1"], "option pid: the number of a process (u) is wanted"),
            (["1", "mine", "1", "pid", "u", "0"], "option pid: the number of a process (u) is wanted"),
            (["1", "mine", "1", "pid", "u", "4194000"], "there is no process 4194000"),
            (["1", "mine", "1", "color", "s", "red"], "option 'color' is not known"),
        ):
            done = daemon.call("CheckPolicy", "asa{sv}", *arguments)
            assert (done.returncode, why in done.stderr) == (1, True), done.stderr
    finally:
        holder.kill()
        holder.communicate()
        assert daemon.stop() == 0


def test_a_process_is_inspected_over_the_bus(directory: Path) -> None:
    daemon = Running(directory)
    try:
        done = daemon.call("InspectProcess", "ua{sv}", str(os.getpid()), "0")
        assert done.returncode == 0, done.stderr
        process, usages = json.loads(done.stdout)["data"]
        assert (process["Pid"]["data"], process["Uid"]["data"]) == (os.getpid(), os.getuid())
        files = next(usage for usage in usages if usage["Limit"]["data"] == "RLIMIT_NOFILE")
        assert files["Of"]["data"] > files["Used"]["data"] > 2
        for arguments, why in ((["4194000", "0"], "there is no process"), ([str(os.getpid()), "1", "x", "s", "y"], "is not known")):
            refused = daemon.call("InspectProcess", "ua{sv}", *arguments)
            assert (refused.returncode, why in refused.stderr) == (1, True), refused.stderr
    finally:
        assert daemon.stop() == 0
