# SPDX-License-Identifier: Apache-2.0
"""The bus policy, on a bus that forbids as much as the system bus does by itself."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from triaged.data import find_data

CONTRACT = Path(find_data().interface_xml)
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:abstract={name}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><deny own="*"/><deny send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
<allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/></policy>
<include>{policy}</include></busconfig>"""
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to call as another user")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A bus with the policy of a system bus, and ours."""
    policy = CONTRACT.with_name("org.triaged.Triage1.conf")
    if shutil.which("dbus-daemon") is None or not policy.exists():
        pytest.skip("dbus-daemon or dbus/org.triaged.Triage1.conf is not here")
    name = f"triaged-policy-{os.getpid()}"
    config = tmp_path / "bus.conf"
    config.write_text(CONFIG.format(name=name, policy=policy))
    command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as bus:
        assert bus.stdout is not None
        assert bus.stdout.readline()
        yield f"unix:abstract={name}"
        bus.terminate()


def as_user(uid: int, address: str, code: str) -> str:
    program = f"""
import asyncio, os
from triaged.bus.connection import BUS_NAME, BUS_PATH, connect
from triaged.errors import BusError
os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
async def ask(*call):
    connection = await connect({address!r})
    try:
        return (await connection.call(*call, timeout_s=5))[0]
    except BusError as error:
        return error.name.rsplit(".", 1)[-1]
    finally:
        await connection.close()
print(asyncio.run(ask({code})))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, env=environment, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_root
def test_only_the_daemon_may_have_the_name(address: str) -> None:
    request = 'BUS_NAME, BUS_PATH, BUS_NAME, "RequestName", "su", ["org.triaged.Triage1", 3]'
    assert as_user(0, address, request) == "1"
    assert as_user(65534, address, request) == "AccessDenied"


@needs_root
def test_everybody_may_call_what_the_contract_has_and_nothing_else(address: str) -> None:
    code = '"org.triaged.Triage1", "/org/triaged/Triage1", "{}", "Ping"'
    interfaces = (
        "org.triaged.Triage1.Manager", "org.triaged.Triage1.Finding", "org.freedesktop.DBus.Properties",
        "org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.ObjectManager", "org.freedesktop.DBus.Peer",
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", f"""
import asyncio
from triaged.bus.connection import BUS_NAME, BUS_PATH, connect
async def hold():
    connection = await connect({address!r}, on_call=lambda connection, call: connection.reply_error(call, "a.Reached", "x"))
    await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "RequestName", "su", ["org.triaged.Triage1", 3])
    print(flush=True)
    await connection.closed
asyncio.run(hold())
"""], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert {as_user(65534, address, code.format(interface)) for interface in interfaces} == {"Reached"}
        assert as_user(65534, address, code.format("org.example.Other")) == "AccessDenied"
        holder.terminate()


def test_the_bus_starts_the_daemon_only_through_systemd() -> None:
    lines = CONTRACT.with_name("org.triaged.Triage1.service").read_text().splitlines()
    assert "Name=org.triaged.Triage1" in lines
    assert "Exec=/bin/false" in lines
    unit = (CONTRACT.parent.parent / "units" / "triaged.service").read_text().splitlines()
    (alias,) = (line.partition("=")[2] for line in lines if line.startswith("SystemdService="))
    assert f"Alias={alias}" in unit
