# SPDX-License-Identifier: Apache-2.0
"""A terminal for a command's output that looks like the real one, so that what is written to it can be read on the way.

Only the output goes through it. Standard input, the controlling terminal and the process group stay the real ones: keys, Ctrl-C,
Ctrl-Z, the shell's job control, /dev/tty and what is typed ahead work as without triagectl. The new terminal does nothing to
the bytes (no OPOST): that is the real one's part.

A program that wants every key at once may set that mode by way of its output (curses does): the new terminal's. The real one then
follows it, as long as it lasts. Some also read the keys there: less opens the terminal anew by the name of its standard error. They
get them from here.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import termios
import threading

_INPUT_FLAGS, _OUTPUT_FLAGS, _LOCAL_FLAGS, _CHARACTERS = 0, 1, 3, 6


class Terminal:
    """A pseudo-terminal with the size and settings of the terminal `real`."""

    def __init__(self, real: int) -> None:
        self._real = real
        self.master, self.slave = pty.openpty()
        settings = termios.tcgetattr(real)
        settings[_OUTPUT_FLAGS] &= ~termios.OPOST
        settings[_LOCAL_FLAGS] &= ~termios.ECHO
        termios.tcsetattr(self.slave, termios.TCSANOW, settings)
        self._name = os.ttyname(self.slave)
        self._seen = termios.tcgetattr(self.slave)
        self._usual: list[int | list[bytes | int]] | None = None  # of the real one, while it follows
        self._keys: Keys | None = None
        self._lock = threading.Lock()
        self.resize()

    def follow(self) -> None:
        """Does to the real terminal what a program has done to this one since the last time."""
        with self._lock, contextlib.suppress(termios.error, OSError):  # hung up
            now = termios.tcgetattr(self.master)
            if now == self._seen:
                return
            self._seen = now
            if int(now[_LOCAL_FLAGS]) & termios.ICANON:
                self._let_go()
            elif self._is_ours():
                self._take_keys(now)

    def let_go(self) -> None:
        """The real terminal is again as it was."""
        with self._lock, contextlib.suppress(termios.error, OSError):
            self._let_go()

    def _is_ours(self) -> bool:
        # In the background the terminal is somebody else's, who has set it as he needs it; to touch it would stop us.
        return os.tcgetpgrp(self._real) == os.getpgrp()

    def _take_keys(self, settings: list[int | list[bytes | int]]) -> None:
        real = termios.tcgetattr(self._real)
        self._usual = self._usual or list(real)
        for index in (_INPUT_FLAGS, _LOCAL_FLAGS, _CHARACTERS):
            real[index] = settings[index]
        termios.tcsetattr(self._real, termios.TCSANOW, real)
        if self._keys is None and _is_read(self._name):
            self._keys = Keys(self.master)

    def _let_go(self) -> None:
        if self._keys is not None:
            self._keys.stop()
            self._keys = None
        usual, self._usual = self._usual, None
        if usual is not None and self._is_ours():
            termios.tcsetattr(self._real, termios.TCSANOW, usual)

    def resize(self) -> None:
        """Takes over the size of the real terminal."""
        try:
            size = fcntl.ioctl(self._real, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)
        except OSError:
            return  # hung up



class Keys:
    """Passes on what is typed at the controlling terminal, until `stop`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._source = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        for descriptor in (self._source, self._stop_read, self._stop_write):
            os.close(descriptor)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTIN})  # in the background read() then gives EIO instead of a stop
        poller = select.poll()
        poller.register(self._source, select.POLLIN)
        poller.register(self._stop_read, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop_read in ready:
                return
            try:
                data = os.read(self._source, 4096)
            except OSError:
                return
            if not data:
                return
            os.write(self._target, data)


def _is_read(name: str) -> bool:
    """Whether a program has opened the terminal of this name for reading alone: what it has from us is open for both."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{number}") != name:
                    continue
                with open(f"/proc/{pid}/fdinfo/{number}") as file:
                    flags = next(line.split()[1] for line in file if line.startswith("flags:"))
                if int(flags, 8) & os.O_ACCMODE == os.O_RDONLY:
                    return True
    return False
