# SPDX-License-Identifier: Apache-2.0
"""Where the buses are, and the private one."""
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest

from triaged.bus.address import PrivateBus, resolve
from triaged.bus.client import can_own_name
from triaged.bus.connection import BUS_NAME, BUS_PATH, connect
from triaged.errors import BusError

needs_daemon = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")


@pytest.mark.parametrize(
    ("where", "environment", "address"),
    [
        ("", {"TRIAGED_BUS_ADDRESS": "unix:path=/a"}, "unix:path=/a"),
        ("", {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/b"}, "unix:path=/b"),
        ("system", {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/b", "TRIAGED_BUS_ADDRESS": "unix:path=/a"}, "unix:path=/b"),
        ("session", {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/c"}, "unix:path=/c"),
        ("unix:path=/d", {}, "unix:path=/d"),
    ],
)
def test_a_bus_is_named_in_words_or_by_its_address(where: str, environment: dict[str, str], address: str) -> None:
    assert resolve(where, environment) == address


def test_the_system_bus_is_where_every_distribution_has_it() -> None:
    assert resolve("system", {}) in ("unix:path=/run/dbus/system_bus_socket", "unix:path=/var/run/dbus/system_bus_socket")


def test_a_session_without_a_bus_is_told(tmp_path: Path) -> None:
    with pytest.raises(BusError, match="no session bus"):
        resolve("session", {"XDG_RUNTIME_DIR": str(tmp_path)})


@needs_daemon
async def test_a_private_bus_serves_and_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = tmp_path / "with space, and <more>"
    directory.mkdir()
    async with PrivateBus(str(directory)) as bus:
        connection = await connect(bus.address)
        assert (await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "GetId"))[0]
        assert await can_own_name(bus.address)
        await connection.close()
    assert os.listdir(directory) == []
    assert not await can_own_name(bus.address)


async def test_a_bus_that_complains_much_is_not_held_up(tmp_path: Path) -> None:
    async with PrivateBus(str(tmp_path)) as bus:
        assert bus._process is not None
        descriptor = os.open(f"/proc/{bus._process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        try:
            left = 1 << 20
            until = time.monotonic() + 10
            while left > 0:
                assert time.monotonic() < until, f"nobody reads the last {left} bytes"
                with contextlib.suppress(BlockingIOError):
                    left -= os.write(descriptor, b"x" * 4096)
                await asyncio.sleep(0)
        finally:
            os.close(descriptor)


@needs_daemon
async def test_a_bus_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(BusError, match=r"dbus-daemon did not start: .*too long"):
        await PrivateBus(str(make_long(tmp_path))).start()


def make_long(directory: Path) -> Path:
    long = directory / ("x" * 120)
    long.mkdir()
    return long


async def test_a_machine_without_dbus_daemon_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BusError) as caught:
        await PrivateBus(str(tmp_path)).start()
    assert "apt-get install dbus" in caught.value.shown()
