# SPDX-License-Identifier: Apache-2.0
"""Traces of failing calls for users who may not make them: read by root, given line by line over a socket to whom they belong.

What a user gets is what the kernel writes of his own processes. A program that runs with another user's rights (set-user-ID) is
passed over: only that it began and ended is told. A trace ends when its reader goes away, when he says so, or after six hours.

The protocol: the kernel's lines one way; the other way "seccomp NAME=NUMBER,...", "other" and "stop", a line each.
Each is answered by "# done" among the lines; after "stop" what is left follows, then "# lost N", then the end.
"""
from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterator, Mapping

from triaged.errors import Gone, KernelError, NotPermitted
from triaged.kernel.failing_calls import FailingCalls, LineEvents, TraceEvent
from triaged.kernel.files import read_bytes, translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks

log = logging.getLogger(__name__)

AT_ONCE, AT_ONCE_OF_A_USER = 16, 4
ACCEPT_S = 15.0
LONGEST_S = 6 * 3600.0
_SEND_S = 30.0
_PAUSE_S = 0.001
_COMMAND_BYTES = 1 << 16
_CREDENTIALS = struct.Struct("=iII")
_EXEC = re.compile(rb"sched_process_exec: filename=.* pid=(\d+) old_pid=\d+$")
_NEW_TASK = re.compile(rb"-(\d+)\s+\[\d+\].*: task_newtask: pid=(\d+) ")
_EXIT = re.compile(rb": sched_process_exit: comm=.* pid=(\d+) ")
_TID = re.compile(rb"^\s*.{0,16}-(\d+)\s+\[")
_DONE = b"# done"
_LOST = re.compile(rb"^# lost (\d+)$")


def uids_of(paths: KernelPaths, pid: int) -> frozenset[int]:
    """The real, effective, saved and file system user ids of a process. Raises: Gone, KernelError."""
    for line in read_bytes(f"{paths.proc}/{pid}/status", 8192).split(b"\n"):
        if line.startswith(b"Uid:"):
            return frozenset(int(word) for word in line.split()[1:5])
    raise Gone(f"{paths.proc}/{pid}")


class TraceRelay:
    """Makes traces and serves each to its user, in a thread each. `directory`: where their sockets are, open to every user."""

    def __init__(self, paths: KernelPaths, directory: str) -> None:
        self._paths = paths
        self._directory = directory
        self._served: dict[str, int] = {}
        self._lock = threading.Lock()
        self._is_closed = threading.Event()

    def active(self) -> int:
        """How many traces are on."""
        with self._lock:
            return len(self._served)

    def start(self, pid: int, start_ticks: int, uid: int) -> str:
        """Begins a trace of exactly that process for its user; the path of the socket that gives it. Blocking, about 20 ms.

        Raises: Gone if there is no such process; NotPermitted if it is not that user's; KernelError, InterfaceMissing.
        """
        if read_start_ticks(self._paths, pid) != start_ticks:
            raise Gone(f"{self._paths.proc}/{pid}")
        if uids_of(self._paths, pid) != {uid}:
            raise NotPermitted(f"{self._paths.proc}/{pid}", f"is not user {uid}'s alone")
        if not os.path.isdir(self._directory):
            os.mkdir(self._directory)
            os.chmod(self._directory, 0o711)
        path = os.path.join(self._directory, f"trace-{pid}-{secrets.token_hex(8)}")
        with self._lock:
            if len(self._served) >= AT_ONCE or list(self._served.values()).count(uid) >= AT_ONCE_OF_A_USER:
                raise KernelError(self._directory, "too many traces are on", "wait for the end of another run")
            self._served[path] = uid
        try:
            calls = FailingCalls(self._paths, pid, sees_all_senders=False, name=f"relay{pid}")
            try:
                listener = _listen(path)
            except OSError as error:
                calls.close()
                raise translated(error, path) from error
        except BaseException:
            self._forget(path)
            raise
        threading.Thread(target=self._serve, args=(path, listener, calls, uid), name=f"relay-{pid}", daemon=True).start()
        return path

    def close(self) -> None:
        """Ends every trace."""
        self._is_closed.set()
        deadline = time.monotonic() + 2
        while self.active() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _forget(self, path: str) -> None:
        with self._lock:
            self._served.pop(path, None)

    def _serve(self, path: str, listener: socket.socket, calls: FailingCalls, uid: int) -> None:
        try:
            with listener:
                connection = self._accepted(listener, uid)
            os.unlink(path)
            if connection is not None:
                with connection:
                    connection.settimeout(_SEND_S)
                    _Reader(self._paths, calls, connection, uid, self._is_closed).run()
        except OSError as error:  # the reader went away, or took nothing for too long
            log.info("the trace for user %d ended: %s", uid, error.strerror or error)
        except Exception:  # the border of the thread
            log.exception("the trace for user %d failed", uid)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
            with contextlib.suppress(KernelError):
                calls.close()
            self._forget(path)

    def _accepted(self, listener: socket.socket, uid: int) -> socket.socket | None:
        """The connection of the user; None where he does not come. Others are sent away."""
        deadline = time.monotonic() + ACCEPT_S
        while (left := deadline - time.monotonic()) > 0 and not self._is_closed.is_set():
            if not select.select([listener], [], [], min(left, 0.5))[0]:
                continue
            connection, _ = listener.accept()
            peer = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if peer[1] in (uid, 0):
                return connection
            connection.close()
        return None


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(path)
        os.chmod(path, 0o666)  # who connects is looked at
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener


class _Reader:
    """Gives one trace to one connection."""

    def __init__(
        self, paths: KernelPaths, calls: FailingCalls, connection: socket.socket, uid: int, is_closed: threading.Event
    ) -> None:
        self._paths = paths
        self._calls = calls
        self._connection = connection
        self._uid = uid
        self._is_closed = is_closed
        self._rest = b""
        self._commands = b""
        self._hidden: set[bytes] = set()

    def run(self) -> None:
        """Until the end. Raises: OSError where the reader is gone."""
        deadline = time.monotonic() + LONGEST_S
        descriptors = [*self._calls.descriptors(), self._connection.fileno()]
        while time.monotonic() < deadline and not self._is_closed.is_set():
            ready = select.select(descriptors, [], [], 1.0)[0]
            if self._connection.fileno() in ready and not self._obey():
                return
            self._pass_on()
            time.sleep(_PAUSE_S)

    def _pass_on(self) -> None:
        while part := self._calls.read():
            *lines, self._rest = (self._rest + part).split(b"\n")
            shown = [line for line in lines if self._may_see(line)]
            if shown:
                self._connection.sendall(b"\n".join(shown) + b"\n")

    def _may_see(self, line: bytes) -> bool:
        match = _EXEC.search(line)
        if match:
            try:
                is_own = uids_of(self._paths, int(match[1])) == {self._uid}
            except KernelError:
                is_own = False  # gone, and what it did is still to come
            (self._hidden.discard if is_own else self._hidden.add)(match[1])
            return True
        made = _NEW_TASK.search(line)
        if made:
            if made[1] in self._hidden:
                self._hidden.add(made[2])
            return True
        ended = _EXIT.search(line)
        if ended:
            self._hidden.discard(ended[1])
            return True
        task = _TID.match(line)
        return task is not None and task[1] not in self._hidden

    def _obey(self) -> bool:
        """Does what the reader asks for. False once that was the end."""
        part = self._connection.recv(4096)
        if not part or len(self._commands) > _COMMAND_BYTES:
            return False
        *lines, self._commands = (self._commands + part).split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"stop":
                self._calls.stop()
                self._pass_on()
                self._connection.sendall(b"# lost %d\n" % self._calls.events_lost())
                return False
            if word == b"other":
                again, _, multiplexed = rest.partition(b" ")
                self._calls.watch_other_architecture(_listed(again), _listed(multiplexed))
            elif word == b"seccomp":
                self._calls.watch_seccomp(_numbers(rest))
            self._connection.sendall(_DONE + b"\n")
        return True


def _listed(text: bytes) -> frozenset[int]:
    return frozenset(int(number) for number in text.split(b",") if number.isdigit() and len(number) < 10)


def _numbers(text: bytes) -> dict[str, int]:
    pairs = (pair.partition(b"=") for pair in text.split(b","))
    return {name.decode("ascii", "replace"): int(number) for name, _, number in pairs if number.isdigit() and len(number) < 10}


class RelayedCalls:
    """The reader's side: see `failing_calls.CallTrace`. Raises: KernelError where the socket does not answer."""

    sees_senders = False
    refusable: frozenset[str] = frozenset()

    def __init__(self, path: str) -> None:
        self.watches_seccomp = False
        self.watches_other_architecture = False
        self._path = path
        self._lines = LineEvents()
        self._rest: list[TraceEvent] = []
        self._lost = 0
        self._tail = b""
        self._is_over = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise translated(error, path) from error

    def watch_seccomp(self, number_of: Mapping[str, int]) -> None:
        self.watches_seccomp = True
        self._have_done(b"seccomp " + b",".join(b"%s=%d" % (name.encode(), number) for name, number in number_of.items()))

    def watch_refusable(self, number_of: Mapping[str, int]) -> bool:
        return False

    def watch_every_call(self, is_on: bool) -> bool:
        return False  # the way there and back takes longer than what it is for

    def watch_other_architecture(self, again: Collection[int], multiplexed: Collection[int]) -> None:
        self.watches_other_architecture = True
        self._have_done(b" ".join((b"other", *(b",".join(b"%d" % each for each in listed) for listed in (again, multiplexed)))))

    def descriptors(self) -> tuple[int, ...]:
        return (self._socket.fileno(),)

    def events(self, cap: int = 1 << 20) -> Iterator[TraceEvent]:
        """The events that are there. Raises: KernelError where the trace ended by itself."""
        rest, self._rest = self._rest, []
        yield from rest
        while cap > 0 and not self._is_over and select.select([self._socket], [], [], 0)[0]:
            part = self._receive()
            cap -= len(part)
            yield from self._lines.feed(part)

    def stop(self) -> None:
        """Waits for the rest."""
        self._say(b"stop")
        deadline = time.monotonic() + _SEND_S
        while not self._is_over and time.monotonic() < deadline:
            if select.select([self._socket], [], [], 1.0)[0]:
                self._rest += self._lines.feed(self._receive(may_end=True))

    def events_lost(self) -> int:
        return self._lost

    def close_pipes(self) -> None:
        self._socket.close()

    def close(self) -> None:
        self._socket.close()

    def _receive(self, may_end: bool = False) -> bytes:
        try:
            part = self._socket.recv(1 << 16)
        except OSError as error:
            raise translated(error, self._path) from error
        if not part:
            self._is_over = True
            if not may_end:
                raise KernelError(self._path, "the trace was ended by triaged-helper")
        self._tail = self._tail[-64:] + part
        match = _LOST.match(self._tail.rstrip(b"\n").rsplit(b"\n", 1)[-1])
        if match:
            self._lost = int(match[1])
        return part

    def _say(self, command: bytes) -> None:
        try:
            self._socket.sendall(command + b"\n")
        except OSError as error:
            raise translated(error, self._path) from error

    def _have_done(self, command: bytes) -> None:
        """Says it, and waits until it is so; what comes meanwhile is kept."""
        self._say(command)
        deadline = time.monotonic() + _SEND_S
        while time.monotonic() < deadline:
            if select.select([self._socket], [], [], 1.0)[0]:
                part = self._receive()
                self._rest += self._lines.feed(part)
                if _DONE in self._tail:
                    self._tail = b""
                    return
        raise KernelError(self._path, "triaged-helper does not answer")
