# SPDX-License-Identifier: Apache-2.0
"""Where the buses are, and a private one where none can be used."""
from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Mapping

from triaged.errors import BusError

SYSTEM_SOCKETS = ("/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket")
START_TIMEOUT_S = 10.0


def system_bus(environ: Mapping[str, str] = os.environ) -> str:
    """The address of the system bus: $DBUS_SYSTEM_BUS_ADDRESS, or the socket that every distribution has."""
    asked = environ.get("DBUS_SYSTEM_BUS_ADDRESS", "")
    if asked:
        return asked
    return "unix:path=" + next((path for path in SYSTEM_SOCKETS if os.path.exists(path)), SYSTEM_SOCKETS[0])


def session_bus(environ: Mapping[str, str] = os.environ) -> str:
    """The address of the user's bus: $DBUS_SESSION_BUS_ADDRESS, or bus in $XDG_RUNTIME_DIR. Raises BusError if neither is set."""
    asked = environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    if asked:
        return asked
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.exists(os.path.join(runtime, "bus")):
        return f"unix:path={runtime}/bus"
    raise BusError("", "there is no session bus", "log in to a session, or use the system bus")


def resolve(where: str, environ: Mapping[str, str] = os.environ) -> str:
    """The address that "system" (or ""), "session" or an address means; "" prefers $TRIAGED_BUS_ADDRESS. Raises BusError."""
    if not where:
        where = environ.get("TRIAGED_BUS_ADDRESS", "") or "system"
    if where == "system":
        return system_bus(environ)
    return session_bus(environ) if where == "session" else where


class PrivateBus:
    """A dbus-daemon of one's own, with a socket in `directory`. Every local user that can reach the socket may use it.

    Use as an asynchronous context manager, or call `start` and `stop`.
    """

    def __init__(self, directory: str) -> None:
        self._directory = os.path.abspath(directory)
        self._socket = os.path.join(self._directory, "bus")
        self._config = os.path.join(self._directory, "bus.conf")
        self._process: asyncio.subprocess.Process | None = None
        self._complaints: asyncio.Future[None] | None = None

    @property
    def address(self) -> str:
        """The address of the bus."""
        return "unix:path=" + _escaped(self._socket)

    async def start(self) -> None:
        """Starts the bus and returns when it takes connections. Raises BusError where it cannot be started."""
        import shutil  # half a megabyte with its compressors, which a service on the system bus does not need

        program = shutil.which("dbus-daemon")
        if program is None:
            raise BusError("", "dbus-daemon is not installed", "apt-get install dbus, or dnf install dbus-daemon")
        _write_config(self._config, self._socket)
        self._process = await asyncio.create_subprocess_exec(
            program, f"--config-file={self._config}", "--nofork", "--nopidfile", "--print-address=1",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for the daemon; the bus is ended after it. And what it would tell systemd, the daemon says.
            start_new_session=True, preexec_fn=_end_with_parent(),
            env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), START_TIMEOUT_S)
        except asyncio.TimeoutError:
            line = b""
        if not line:
            await self.stop()
            text = (await self._process.stderr.read(2000)).decode("utf-8", "replace").strip()
            remedy = "is the directory writable, and its path short enough?"
            raise BusError("", f"dbus-daemon did not start: {text or 'no answer'}", remedy)
        # It complains there about what clients do: a pipe that nobody reads would be full one day, and the bus would stand still.
        self._complaints = asyncio.ensure_future(_read_away(self._process.stderr))

    async def stop(self) -> None:
        """Ends the bus and removes its files."""
        process = self._process
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5.0)
            except asyncio.TimeoutError:
                process.kill()
                await process.wait()
        if self._complaints is not None:
            self._complaints.cancel()
        for path in (self._socket, self._config):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    async def __aenter__(self) -> PrivateBus:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _escaped(path: str) -> str:
    """The path as a value in a bus address (D-Bus specification, "Server Addresses"); that leaves nothing that XML would escape."""
    plain = re.compile(rb"[-0-9A-Za-z_/.]")
    return "".join(chr(byte) if plain.match(bytes((byte,))) else f"%{byte:02x}" for byte in os.fsencode(path))


async def _read_away(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 16):
        pass


def _end_with_parent() -> Callable[[], None]:
    """What has the bus end when this process is killed and cannot end it (PR_SET_PDEATHSIG, prctl(2))."""
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGTERM, 0, 0, 0)


def _write_config(path: str, socket_path: str) -> None:
    # Not the session configuration: no activation, no policy of the distribution, so that only what was started here is on it.
    # `type` system would make the bus change its user.
    text = f"""<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <keep_umask/>
  <listen>unix:path={_escaped(socket_path)}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="false"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
  <limit name="max_replies_per_connection">128</limit>
</busconfig>
"""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
