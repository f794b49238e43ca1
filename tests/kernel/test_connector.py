# SPDX-License-Identifier: Apache-2.0
"""The process connector: messages made here, and this kernel's own."""
from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from triaged.errors import InterfaceMissing, KernelError, NotPermitted
from triaged.kernel.connector import Exit, Failed, ProcessConnector
from triaged.kernel.paths import KernelPaths

EXEC, EXIT, NONE = 0x2, 0x80000000, 0


def message(what: int, *fields: int) -> bytes:
    event = struct.pack("=IIQ", what, 0, 123) + struct.pack(f"={len(fields)}I", *fields)
    event = event.ljust(40, b"\0")
    return struct.pack("=IHHIIIIIIHH", 76, 3, 0, 0, 0, 1, 1, 0, 0, len(event), 0) + event


@pytest.fixture
def fed() -> Iterator[tuple[socket.socket, ProcessConnector]]:
    """A connector that reads what the test sends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    connector = ProcessConnector(theirs)
    yield ours, connector
    ours.close()
    connector.close()


@pytest.fixture
def live() -> Iterator[ProcessConnector]:
    try:
        connector = ProcessConnector.open()
    except KernelError as error:
        pytest.skip(f"no process connector here: {error.shown()}")
    yield connector
    connector.close()


def gathered(connector: ProcessConnector, done: Callable[[list[int], list[Exit]], bool]) -> tuple[list[int], list[Exit]]:
    """Events until `done`; fails after 10 s."""
    executed: list[int] = []
    killed: list[Exit] = []
    until = time.monotonic() + 10
    while not done(executed, killed):
        assert time.monotonic() < until, f"executed {executed}, killed {killed}"
        batch = connector.drain()
        executed += batch.executed
        killed += batch.killed
        if not batch.executed and not batch.killed:
            time.sleep(0.005)  # the kernel's queue has no other sign that nothing more is coming
    return executed, killed


def test_executions_and_kills_are_read_in_order(fed: tuple[socket.socket, ProcessConnector]) -> None:
    ours, connector = fed
    ours.send(message(EXEC, 10, 10))
    ours.send(message(EXIT, 11, 11, 0x8B, 17, 9, 9))
    ours.send(message(NONE, 0))
    ours.send(message(EXEC, 12, 12))
    batch = connector.drain()
    assert batch.executed == [10, 12]
    assert batch.killed == [Exit(pid=11, signal=11, dumped_core=True, parent=9)]
    assert (batch.lost, batch.malformed) == (False, 0)


def test_a_truncated_message_is_counted_and_the_next_is_read(fed: tuple[socket.socket, ProcessConnector]) -> None:
    ours, connector = fed
    whole = message(EXEC, 10, 10)
    for size in (1, 15, 16, 36, 52, 75):
        ours.send(whole[:size])
    ours.send(message(0xDEAD, 1, 1))
    ours.send(whole)
    batch = connector.drain()
    assert batch.malformed == 7
    assert batch.executed == [10]


def test_a_batch_is_bounded(fed: tuple[socket.socket, ProcessConnector]) -> None:
    ours, connector = fed
    for pid in range(8):
        ours.send(message(EXEC, pid, pid))
    assert connector.drain(limit=5).executed == [0, 1, 2, 3, 4]
    assert connector.drain(limit=5).executed == [5, 6, 7]


def test_an_execution_and_a_kill_of_this_kernel_are_seen(live: ProcessConnector) -> None:
    # Killed before it says something it may be in the midst of execve() still, which is then none.
    with subprocess.Popen(["/bin/sh", "-c", "echo up; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.kill()
    executed, killed = gathered(live, lambda executed, killed: any(event.pid == child.pid for event in killed))
    assert child.pid in executed
    event = next(event for event in killed if event.pid == child.pid)
    assert (event.signal, event.dumped_core, event.parent) == (signal.SIGKILL, False, os.getpid())


def test_threads_and_ordinary_exits_do_not_wake_anybody(live: ProcessConnector) -> None:
    # Nothing but the marker after it may be reported: not 50 threads, a failing exit, nor an ordinary one.
    code = "import threading\nfor _ in range(50):\n t = threading.Thread(target=int)\n t.start()\n t.join()\nraise SystemExit(3)"
    noisy = subprocess.Popen([sys.executable, "-c", code])
    assert noisy.wait() == 3
    marker = subprocess.Popen(["/bin/true"])
    marker.wait()
    executed, killed = gathered(live, lambda executed, killed: marker.pid in executed)
    assert executed.count(noisy.pid) == 1
    assert noisy.pid not in [event.pid for event in killed]


def test_failures_are_told_while_somebody_wants_to_know(live: ProcessConnector) -> None:
    def run(code: int) -> int:
        child = subprocess.Popen(["sh", "-c", f"exit {code}"])
        child.wait()
        marker = subprocess.Popen(["/bin/true"])
        marker.wait()
        failed: list[Failed] = []
        executed: list[int] = []
        deadline = time.monotonic() + 10
        while marker.pid not in executed and time.monotonic() < deadline:
            batch = live.drain()
            executed += batch.executed
            failed += batch.failed
            time.sleep(0.01)
        assert marker.pid in executed
        return sum(event == Failed(child.pid, code << 8, os.getpid()) for event in failed)

    live.let_failures_through(True)
    assert (run(3), run(0)) == (1, 0)
    live.let_failures_through(False)
    assert run(3) == 0


def test_a_killed_process_of_many_threads_is_one_event(live: ProcessConnector) -> None:
    code = "import threading, time\nfor _ in range(20):\n threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n" \
        "print('up', flush=True)\ntime.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    child.kill()
    child.wait()
    child.stdout.close()
    marker = subprocess.Popen(["/bin/true"])
    marker.wait()
    _, killed = gathered(live, lambda executed, killed: marker.pid in executed)
    assert [event.signal for event in killed if event.pid == child.pid] == [signal.SIGKILL]


def test_the_event_mask_is_used_where_the_kernel_has_it(live: ProcessConnector) -> None:
    # Feature test against the kernel's own release: Linux 6.6 brought the mask.
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    assert live.has_event_mask == (release >= (6, 6))


def test_a_storm_that_overruns_the_buffer_is_told_and_counted(live: ProcessConnector) -> None:
    live._socket.setsockopt(socket.SOL_SOCKET, 33, 4096)  # room for about ten messages
    drops_before = live.read_drops(KernelPaths())
    for _ in range(60):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    batch = live.drain()
    assert batch.lost
    seen = len(batch.executed)
    dropped = live.read_drops(KernelPaths()) - drops_before
    assert dropped > 0
    assert seen + dropped >= 60  # nothing is lost unreported; other processes of the machine count besides


def test_a_storm_is_read_whole_with_the_real_buffer(live: ProcessConnector) -> None:
    mine: list[int] = []

    def storm() -> None:
        for _ in range(300):
            pid = os.posix_spawn("/bin/true", ["true"], {})
            os.waitpid(pid, 0)
            mine.append(pid)

    loops = [threading.Thread(target=storm) for _ in range(2)]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join()
    executed, _ = gathered(live, lambda executed, killed: set(mine) <= set(executed) and len(mine) == 600)
    assert live.read_drops(KernelPaths()) == 0
    assert set(mine) <= set(executed)


@pytest.mark.parametrize("flags", [["--net"], ["--pid", "--fork"], ["--user", "--map-root-user", "--pid", "--fork"]])
def test_in_another_namespace_it_is_missing_and_says_what_to_do(flags: list[str]) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    probe = """
from triaged.kernel.connector import ProcessConnector
from triaged.errors import KernelError
try:
    ProcessConnector.open()
except KernelError as error:
    print(type(error).__name__, error.shown())
else:
    print("open")
"""
    done = subprocess.run(
        ["unshare", *flags, sys.executable, "-c", probe], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if done.returncode:
        pytest.skip(f"may not unshare here: {done.stderr.strip()}")
    assert done.stdout.split()[0] in (InterfaceMissing.__name__, NotPermitted.__name__), done.stdout
    assert "run triaged as a service" in done.stdout
