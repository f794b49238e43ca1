# SPDX-License-Identifier: Apache-2.0
"""What a command prints, passed on as it comes and read on the way.

What is a pipe or file for triagectl is a pipe for the command, what is a terminal is a terminal (`terminal`), and where standard
output and standard error are the same for triagectl they are for the command, so that their order is kept. Every byte is
written on before anybody looks at it. Whoever reads it here may be slow: what no longer fits is passed on unread, and counted.
"""
from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable

from triaged.run.terminal import Terminal

Take = Callable[[str, bytes, int], None]
_PIECE = 1 << 16
_UNREAD_BYTES = 64 << 20
_DRAIN_BYTES = 4 << 20
_CATCH_UP_S = 0.5


class Feed:
    """Hands pieces of output to their reader in a thread of its own. `unread_bytes` did not fit."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._pieces: deque[tuple[str, bytes, int]] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._is_over = False
        self.unread_bytes = 0
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def put(self, stream: str, data: bytes, at_ns: int) -> None:
        """Takes a piece; never waits."""
        with self._changed:
            if self._waiting_bytes + len(data) > _UNREAD_BYTES or self.failure is not None:
                self.unread_bytes += len(data)
                return
            if self.unread_bytes and not self._pieces:
                data = b"\n" + data  # what came before is no beginning of this line
            self._waiting_bytes += len(data)
            self._pieces.append((stream, data, at_ns))
            self._changed.notify()

    def finish(self) -> None:
        """Waits until all is read."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._pieces and not self._is_over:
                    self._changed.wait()
                if not self._pieces:
                    return
                stream, data, at_ns = self._pieces.popleft()
                self._waiting_bytes -= len(data)
            try:
                self._take(stream, data, at_ns)
            except Exception as error:  # the border of the reader: the output passes on all the same
                self.failure = error
                return


class Copier:
    """Copies one stream until its end, or until `stop` and nothing is left."""

    def __init__(self, stream: str, source: int, target: int, feed: Feed, on_piece: Callable[[], None] = lambda: None) -> None:
        self.stream = stream
        self._on_piece = on_piece
        self.source = source
        self.target = target
        self.is_at_end = False
        self.error = 0
        self._is_idle = False
        self._feed = feed
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name=f"copy-{stream}", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends when what is there now is passed on. `is_at_end` says whether anybody else still has the other end."""
        os.write(self._stop_write, b"x")
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._stop_write)
        os.close(self._stop_read)

    def is_behind(self) -> bool:
        """Whether something is there that is not passed on yet."""
        if self.is_at_end:
            return False
        return bool(select.select([self.source], [], [], 0)[0]) or not self._is_idle

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self.source, select.POLLIN)
        poller.register(self._stop_read, select.POLLIN)
        left = _DRAIN_BYTES
        while left > 0:
            self._is_idle = True
            ready = dict(poller.poll())
            self._is_idle = False
            if self.source not in ready:
                return
            if self._stop_read in ready:
                left -= _PIECE
            data = read_piece(self.source)
            self.error = write_all(self.target, data) if data else 0
            if not data or self.error:
                # Nobody reads any more: the command's next write then fails, as it would have without us.
                self.is_at_end = True
                os.close(self.source)
                return
            self._on_piece()
            self._feed.put(self.stream, data, time.monotonic_ns())

    def pass_on(self) -> None:
        """Copies to the end, for a process that is there for nothing else."""
        while data := read_piece(self.source):
            if write_all(self.target, data):
                return


def is_open(descriptor: int) -> bool:
    """Whether the descriptor is open."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def read_piece(source: int) -> bytes:
    """The next piece; b"" at the end."""
    try:
        return os.read(source, _PIECE)
    except OSError:
        return b""  # EIO: nobody has the terminal open any more


def write_all(target: int, data: bytes) -> int:
    """Writes everything. The error's number where that cannot be (EPIPE: nobody reads it any more), else 0."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            select.select([], [target], [])  # somebody who shares it made it non-blocking
        except OSError as error:
            if error.errno == errno.EINTR:
                continue
            return error.errno or errno.EIO
    return 0


class Streams:
    """Standard output and standard error of a command. `for_command` are its descriptors, -1 for one that is closed."""

    def __init__(self, take: Take) -> None:
        self._feed = Feed(take)
        self._copiers: list[Copier] = []
        self._ends: list[int] = []
        self._is_started = False
        self.terminals: list[Terminal] = []
        # A closed one is filled, so that no pipe of ours takes its place; closed again where the command executes its program.
        self._closed = [number for number in (0, 1, 2) if not is_open(number)]
        for _ in self._closed:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        first = self._open("stdout", 1)
        are_one = first >= 0 and 2 not in self._closed and is_same_file(1, 2)
        self.for_command = (first, first if are_one else self._open("stderr", 2))

    def _open(self, stream: str, target: int) -> int:
        if target in self._closed:
            return -1
        if os.isatty(target):
            terminal = Terminal(target)
            self.terminals.append(terminal)
            end = terminal.slave
            copier = Copier(stream, terminal.master, target, self._feed, terminal.follow)
        else:
            source, end = os.pipe()
            copier = Copier(stream, source, target, self._feed)
        self._copiers.append(copier)
        self._ends.append(end)
        return end

    def start(self) -> None:
        """Begins to copy. The command must have its ends by now: they are closed here."""
        self._is_started = True
        for end in self._ends:
            os.close(end)
        self._feed.start()
        for copier in self._copiers:
            copier.start()

    def finish(self) -> None:
        """Passes on what is there, and reads it. Where others still have the other end, a process is left to pass on the rest."""
        if not self._is_started:
            for descriptor in (*self._ends, *(copier.source for copier in self._copiers)):
                os.close(descriptor)
            return
        for copier in self._copiers:
            copier.stop()
        for terminal in self.terminals:
            terminal.let_go()
        self._leave_to_another([copier for copier in self._copiers if not copier.is_at_end])
        self._feed.finish()

    def catch_up(self) -> None:
        """Waits a moment until what the command has printed is passed on: before triagectl is stopped with it."""
        deadline = time.monotonic() + _CATCH_UP_S
        while any(copier.is_behind() for copier in self._copiers) and time.monotonic() < deadline:
            time.sleep(0.001)
        for terminal in self.terminals:
            terminal.follow()

    def resize(self) -> None:
        """Gives the command's terminals the size of the real ones."""
        for terminal in self.terminals:
            terminal.resize()

    @property
    def unread_bytes(self) -> int:
        """How much was passed on unread."""
        return self._feed.unread_bytes

    @property
    def unwritten(self) -> str:
        """Which output could not be written, and why: "standard output: no space left on device"; "" where a reader has gone."""
        names = {"stdout": "standard output", "stderr": "standard error"}
        lost = [copier for copier in self._copiers if copier.error not in (0, errno.EPIPE, errno.EIO)]
        return ", ".join(f"{names[copier.stream]}: {os.strerror(copier.error).lower()}" for copier in lost)

    @property
    def failure(self) -> Exception | None:
        """Why the output was not read to its end."""
        return self._feed.failure

    def _leave_to_another(self, copiers: list[Copier]) -> None:
        if not copiers:
            return
        with contextlib.suppress(OSError):  # no process to be had: then what comes later is lost, and its writer is told
            if os.fork() == 0:
                try:
                    threads = [threading.Thread(target=copier.pass_on) for copier in copiers[1:]]
                    for thread in threads:
                        thread.start()
                    copiers[0].pass_on()
                    for thread in threads:
                        thread.join()
                finally:
                    os._exit(0)
        for copier in copiers:
            os.close(copier.source)


def is_same_file(one: int, other: int) -> bool:
    """Whether two descriptors are the same pipe, terminal or socket, or one open file (then its offset is shared)."""
    try:
        first, second = os.fstat(one), os.fstat(other)
    except OSError:
        return False
    if (first.st_dev, first.st_ino) != (second.st_dev, second.st_ino):
        return False
    if not stat.S_ISREG(first.st_mode):
        return True
    # Opened twice, each has an offset of its own; moving one shows it.
    position = os.lseek(one, 0, os.SEEK_CUR)
    if os.lseek(other, 0, os.SEEK_CUR) != position:
        return False
    os.lseek(one, position + 1, os.SEEK_SET)
    is_shared = os.lseek(other, 0, os.SEEK_CUR) == position + 1
    os.lseek(one, position, os.SEEK_SET)
    return is_shared
