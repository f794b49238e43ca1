# SPDX-License-Identifier: Apache-2.0
"""fix, undo and dismiss against a real daemon, in a network namespace of its own whose net.core.somaxconn may be changed."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from triaged.cli.fix import chosen

ROOT = Path(__file__).parents[2]
KEY = "net.core.somaxconn"
SMALL, WANTED = "100", "4096"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making a network namespace and setting its parameters needs root")


class Namespace:
    """A network namespace with a daemon whose policy wants more than there is."""

    def __init__(self, directory: Path) -> None:
        data = directory / "data"
        shutil.copytree(ROOT / "config", data)
        shutil.copy(ROOT / "dbus" / "org.triaged.Triage1.xml", data)
        (data / "policies" / "default.toml").write_text(
            f'title = "test"\n[[parameter]]\nkey = "{KEY}"\noperator = "at-least"\nvalue = {WANTED}\nwhy = "the test wants it"\n'
        )
        self.environment = {**os.environ, "TRIAGED_DATA_DIR": str(data), "PYTHONUNBUFFERED": "1"}
        self.output = directory / "output"
        start = f"echo {SMALL} > /proc/sys/net/core/somaxconn; exec {sys.executable} -m triaged --bus private"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", f"{start} --state-directory {directory}/state --print-findings"],
                env=self.environment, stdout=file, stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 60
        while "watching; Ctrl-C" not in (text := self.output.read_text()):
            assert self.process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        found = re.search(r"--bus (unix:path=\S+)", text)
        assert found is not None
        self.bus = found.group(1)
        self.finding = next(row["id"] for row in self.json("list") if row["subject"].get("name") == KEY)

    def triagectl(self, *words: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "triaged.cli", "--bus", self.bus, *words]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=120, input=answer
        )

    def json(self, *words: str) -> list[dict[str, dict[str, str]]]:
        done = self.triagectl(*words, "--json")
        assert done.returncode in (0, 1), done.stderr
        found: list[dict[str, dict[str, str]]] = json.loads(done.stdout)["findings"]
        return found

    def value(self) -> str:
        """The parameter as the daemon's namespace has it."""
        command = ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "cat", "/proc/sys/net/core/somaxconn"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def set_value(self, value: str) -> None:
        command = ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "sh", "-c", f"echo {value} > /proc/sys/net/core/somaxconn"]
        subprocess.run(command, check=True)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with tempfile.TemporaryDirectory(prefix="triaged-test-") as name:
        found = Namespace(Path(name))
        yield found
        found.process.terminate()
        found.process.wait(30)


def test_a_preview_shows_old_and_new_and_changes_nothing(namespace: Namespace) -> None:
    done = namespace.triagectl("fix", namespace.finding, "--preview")
    assert done.returncode == 0, done.stderr
    assert f"{SMALL} -> {WANTED}" in done.stdout
    assert f"sysctl -w {KEY}={WANTED}" in done.stdout
    assert namespace.value() == SMALL


def test_a_fix_is_applied_verified_and_undone(namespace: Namespace) -> None:
    done = namespace.triagectl("fix", namespace.finding, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verified" in done.stdout
    assert namespace.value() == WANTED
    assert json.loads(namespace.triagectl("show", namespace.finding, "--json").stdout)["state"] == "fixed"

    listed = namespace.triagectl("undo")
    assert namespace.finding in listed.stdout
    undone = namespace.triagectl("undo", namespace.finding)
    assert undone.returncode == 0, undone.stderr
    assert namespace.value() == SMALL
    assert json.loads(namespace.triagectl("show", namespace.finding, "--json").stdout)["state"] == "open"


def test_without_a_terminal_and_without_yes_nothing_is_changed(namespace: Namespace) -> None:
    done = namespace.triagectl("fix", namespace.finding, answer="y\n")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert namespace.value() == SMALL


def test_a_value_that_somebody_else_changed_is_left_alone(namespace: Namespace) -> None:
    namespace.set_value("200")
    done = namespace.triagectl("fix", namespace.finding, "--yes")
    assert done.returncode == 1
    assert "200" in done.stderr
    asked = namespace.triagectl("fix", namespace.finding)
    assert (asked.returncode, "it cannot be applied now" in asked.stderr, "apply it?" in asked.stderr) == (1, True, False)
    assert "has no such fix" in namespace.triagectl("fix", namespace.finding, "other").stderr
    assert namespace.value() == "200"


def test_undo_leaves_a_value_that_somebody_else_set_meanwhile(namespace: Namespace) -> None:
    assert namespace.triagectl("fix", namespace.finding, "--yes").returncode == 0
    namespace.set_value("5000")
    done = namespace.triagectl("undo", namespace.finding)
    assert done.returncode == 1
    assert "5000" in done.stdout + done.stderr
    assert namespace.value() == "5000"


def test_a_dismissed_finding_keeps_its_reason(namespace: Namespace) -> None:
    done = namespace.triagectl("dismiss", namespace.finding, "--why", "a small server")
    assert done.returncode == 0, done.stderr
    document = json.loads(namespace.triagectl("show", namespace.finding, "--json").stdout)
    assert document["state"] == "dismissed"
    assert "a small server" in document["reason"]


def test_a_finding_that_is_not_there_is_said_with_what_to_do(namespace: Namespace) -> None:
    for words in (("fix", "no-such"), ("undo", "no-such"), ("dismiss", "no-such", "--why", "x")):
        done = namespace.triagectl(*words)
        assert done.returncode == 1
        assert "no-such" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_fix_that_triaged_can_make_is_taken_before_a_manual_one() -> None:
    manual = {"Key": "manual:x", "Type": "manual"}
    now = {"Key": "set-parameter:k", "Type": "set-parameter"}
    lasting = {"Key": "set-parameter:k:lasting", "Type": "set-parameter"}
    assert chosen([manual, now, lasting], "", lasting=False) is now
    assert chosen([manual, now, lasting], "", lasting=True) is lasting
    assert chosen([manual], "", lasting=False) is manual
    assert chosen([manual], "other", lasting=False) is None
