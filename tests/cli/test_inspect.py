# SPDX-License-Identifier: Apache-2.0
"""`triagectl inspect` on real processes of our own."""
from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from triaged.cli.inspect import amount, bar
from triaged.cli.style import Style
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.usage import Usage

HOLD = "import sys; kept = [open('/dev/null') for _ in range({files})]; print(1, flush=True); sys.stdin.read()"


def triagectl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "triaged.cli", *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def holder() -> Iterator[int]:
    """A process with 60 of 64 files open."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD.format(files=57)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.communicate()


def test_a_process_near_its_limit_is_shown_with_exit_status_1(holder: int) -> None:
    done = triagectl("inspect", str(holder))
    assert done.returncode == 1, done.stderr
    assert "60 of 64" in done.stdout
    assert f"nearly used up: RLIMIT_NOFILE of process {holder} (94%)" in done.stdout


def test_json_names_what_binds_first(holder: int) -> None:
    document = json.loads(triagectl("inspect", "--json", str(holder)).stdout)
    assert document["process"]["pid"] == holder
    files = next(usage for usage in document["usages"] if usage["limit"] == "RLIMIT_NOFILE")
    assert (files["used"], files["of"]) == (60, 64)
    assert {"resource": "files", "limit": "RLIMIT_NOFILE", "where": f"process {holder}"} in document["binding"]


def test_the_accept_queue_of_a_listening_socket_is_shown() -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(3)
    waiting = [socket.create_connection(listener.getsockname()) for _ in range(2)]
    try:
        document = json.loads(triagectl("inspect", "--json", str(os.getpid())).stdout)
    finally:
        for each in (*waiting, listener):
            each.close()
    queues = [usage for usage in document["usages"] if usage["resource"] == "accept queue"]
    assert (2, 3) in [(usage["used"], usage["of"]) for usage in queues]


def test_a_process_that_is_not_there_is_said_with_what_to_do() -> None:
    done = triagectl("inspect", "4194304")
    assert done.returncode == 2
    assert "no process 4194304" in done.stderr
    assert "ps" in done.stderr


def test_a_unit_without_a_cgroup_is_said() -> None:
    done = triagectl("inspect", "no-such.service")
    assert done.returncode == 2
    assert "no-such.service" in done.stderr


@pytest.mark.parametrize(
    ("value", "text"), [(UNLIMITED, "unlimited"), (Unknown("x"), "unknown"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (12, "12 B")]
)
def test_amounts_are_written_for_people(value: object, text: str) -> None:
    assert amount(Usage("memory", "memory.max", "/", 1, 2), value) == text


def test_a_bar_is_never_empty_for_something_and_never_longer_than_full() -> None:
    style = Style()
    assert bar(0.001, style).count("#") == 1
    assert bar(0.0, style).count("#") == 0
    assert bar(1.7, style).count("#") == 20
    assert "#" not in bar(None, style)
