# SPDX-License-Identifier: Apache-2.0
"""Traces that root makes for an ordinary user, on this kernel."""
from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest

from triaged.errors import Gone, KernelError, NotPermitted
from triaged.kernel import trace_relay
from triaged.kernel.failing_calls import CallEnded, Executed, TraceEvent
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks
from triaged.kernel.trace_relay import RelayedCalls, TraceRelay
from triaged.seccomp.syscalls import native_arch, numbers_on

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="tracefs needs root")
PATHS = KernelPaths()
USER, OTHER = 65534, 1


@pytest.fixture
def relay() -> Iterator[TraceRelay]:
    directory = tempfile.mkdtemp(prefix="triaged-relay-", dir="/tmp")
    os.chmod(directory, 0o711)
    made = TraceRelay(PATHS, directory)
    yield made
    made.close()
    assert made.active() == 0
    assert os.listdir(directory) == []
    os.rmdir(directory)


class Waiting:
    """A user's process that waits, and then runs a command."""

    def __init__(self, *argv: str, uid: int = USER) -> None:
        script = 'read x; "$@"; exit 0'
        self.process = subprocess.Popen(
            ["sh", "-c", script, "sh", *argv], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, user=uid, group=uid,
            extra_groups=[], cwd="/",
        )
        self.pid = self.process.pid
        self.ticks = read_start_ticks(PATHS, self.pid)

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.close()
        assert self.process.wait(30) == 0

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin
        self.process.stdin.close()


def all_of(calls: RelayedCalls) -> list[TraceEvent]:
    calls.stop()
    return list(calls.events())


def test_a_user_gets_the_failing_calls_of_his_own_process(relay: TraceRelay) -> None:
    # Whose a process is must be read while it lives: what is gone by then is passed over.
    waiting = Waiting("sh", "-c", "true >/sys/not-for-users; sleep 1")
    calls = RelayedCalls(relay.start(waiting.pid, waiting.ticks, USER))
    waiting.go()
    events = all_of(calls)
    assert [event.value for event in events if isinstance(event, CallEnded) and event.call in ("open", "openat")] != []
    assert any(event.path.endswith("/sh") for event in events if isinstance(event, Executed))
    assert calls.events_lost() == 0
    calls.close()


def test_what_is_not_his_is_refused(relay: TraceRelay) -> None:
    waiting = Waiting("true")
    try:
        with pytest.raises(NotPermitted, match="is not user 1's alone"):
            relay.start(waiting.pid, waiting.ticks, OTHER)
        with pytest.raises(Gone):
            relay.start(waiting.pid, waiting.ticks + 1, USER)
        with pytest.raises(NotPermitted):
            relay.start(1, read_start_ticks(PATHS, 1), USER)
    finally:
        waiting.end()
    assert relay.active() == 0


def test_another_user_who_connects_is_sent_away(relay: TraceRelay) -> None:
    waiting = Waiting("true")
    path = relay.start(waiting.pid, waiting.ticks, USER)
    for uid, seconds, told in ((OTHER, 10, "b''"), (USER, 0.5, "timed out")):
        code = (
            f"import os, socket; os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid});"
            f"s = socket.socket(socket.AF_UNIX); s.connect({path!r}); s.settimeout({seconds}); print(s.recv(10))"
        )
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
        assert told in answer.stdout + answer.stderr
    waiting.end()


def test_a_program_with_anothers_rights_is_passed_over(relay: TraceRelay) -> None:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="triaged-suid-", dir="/var/tmp"))
    try:
        directory.chmod(0o755)
        program = directory / "mkdir"
        shutil.copy(shutil.which("mkdir") or "/bin/mkdir", program)
        program.chmod(0o4755)
        if os.statvfs(directory).f_flag & os.ST_NOSUID:
            pytest.skip("/var/tmp is mounted nosuid")
        waiting = Waiting(str(program), "/sys/not-even-for-root")
        calls = RelayedCalls(relay.start(waiting.pid, waiting.ticks, USER))
        waiting.go()
        events = all_of(calls)
        calls.close()
    finally:
        shutil.rmtree(directory)
    assert [event.path for event in events if isinstance(event, Executed)][-1] == str(program)
    assert [event for event in events if isinstance(event, CallEnded) and event.call in ("mkdir", "mkdirat")] == []


def test_filters_can_be_watched_for_while_it_runs(relay: TraceRelay) -> None:
    waiting = Waiting("true")
    calls = RelayedCalls(relay.start(waiting.pid, waiting.ticks, USER))
    calls.watch_seccomp(numbers_on(native_arch()))
    calls.watch_other_architecture({120, 190}, {102})
    assert calls.watches_seccomp
    waiting.go()
    assert all_of(calls)
    calls.close()


def test_it_ends_when_its_reader_goes_away(relay: TraceRelay) -> None:
    waiting = Waiting("true")
    calls = RelayedCalls(relay.start(waiting.pid, waiting.ticks, USER))
    calls.close()
    waited = time.monotonic() + 10
    while relay.active() and time.monotonic() < waited:
        time.sleep(0.02)
    assert relay.active() == 0
    waiting.end()


def test_who_does_not_come_is_not_waited_for(relay: TraceRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_relay, "ACCEPT_S", 0.1)
    waiting = Waiting("true")
    path = relay.start(waiting.pid, waiting.ticks, USER)
    waited = time.monotonic() + 10
    while relay.active() and time.monotonic() < waited:
        time.sleep(0.02)
    with pytest.raises(KernelError):
        RelayedCalls(path)
    waiting.end()


def test_one_user_cannot_have_too_many(relay: TraceRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_relay, "AT_ONCE_OF_A_USER", 1)
    waiting = Waiting("true")
    calls = RelayedCalls(relay.start(waiting.pid, waiting.ticks, USER))
    with pytest.raises(KernelError, match="too many"):
        relay.start(waiting.pid, waiting.ticks, USER)
    calls.close()
    waiting.end()


@pytest.mark.parametrize(
    "words", [b"nonsense\n", b"seccomp \n", b"seccomp a=b,=,x=99999999999,read\n", b"\n\n\xff\n", b"x" * 70000 + b"\n"]
)
def test_what_a_reader_says_wrongly_does_no_harm(relay: TraceRelay, words: bytes) -> None:
    waiting = Waiting("true")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(relay.start(waiting.pid, waiting.ticks, USER))
        connection.settimeout(20)
        connection.sendall(words + b"stop\n")
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(4096):
                said += part
    assert b"# lost 0\n" in said or len(words) > 1 << 16
    waiting.end()
