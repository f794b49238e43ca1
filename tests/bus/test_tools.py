# SPDX-License-Identifier: Apache-2.0
"""What people and desktops use: busctl, gdbus, and GLib's view of the object manager."""
from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triaged.bus.client import BlockingClient
from triaged.bus.codec import finding_path

NAME = "org.triaged.Triage1"
PATH = "/org/triaged/Triage1"
SYSTEM_PYTHON = "/usr/bin/python3"


def run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, timeout=60, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def busctl(service: Any) -> Callable[..., str]:
    """busctl on the bus of the service."""
    return lambda *words: run("busctl", f"--address={service.bus.address}", "--no-pager", *words)


def test_busctl_call_lists_findings(busctl: Callable[..., str]) -> None:
    out = busctl("call", NAME, PATH, f"{NAME}.Manager", "ListFindings", "a{sv}", "1", "limit", "u", "2")
    assert out.startswith('aa{sv}s 2 16 "Id" s "cgroup.pids.limit-hit-')
    assert out.count('"Summary" s ') == 2


def test_busctl_tree_shows_every_finding(busctl: Callable[..., str], client: BlockingClient) -> None:
    out = busctl("tree", "--list", NAME)
    assert {finding_path(row["Id"]) for row in client.list_findings()} <= set(out.split())


def test_busctl_introspect_reads_like_the_contract(busctl: Callable[..., str], client: BlockingClient) -> None:
    lines = {tuple(line.split()[:4]) for line in busctl("introspect", NAME, PATH).splitlines()}
    assert (".ListFindings", "method", "a{sv}", "aa{sv}s") in lines
    assert (".FindingOpened", "signal", "ossy", "-") in lines
    assert (".Policies", "property", "as", "1") in lines
    identifier = client.list_findings(unit="unit-3.service")[0]["Id"]
    lines = {tuple(line.split()[:4]) for line in busctl("introspect", NAME, finding_path(identifier)).splitlines()}
    assert (".Severity", "property", "y", "3") in lines
    assert any(line[:3] == (".Evidence", "property", "a{sv}") for line in lines)


def test_busctl_get_property_reads_one(busctl: Callable[..., str]) -> None:
    assert busctl("get-property", NAME, PATH, f"{NAME}.Manager", "Version") == 's "0.0.test"\n'


def test_busctl_monitor_shows_a_finding_come(service: Any, tmp_path: Path) -> None:
    if shutil.which("busctl") is None:
        pytest.skip("busctl is not installed")
    out = tmp_path / "monitor"
    with out.open("wb") as file, subprocess.Popen(
        ["busctl", f"--address={service.bus.address}", "--no-pager", "monitor", NAME], stdout=file, stderr=subprocess.STDOUT
    ) as monitor:
        end = time.monotonic() + 30
        while b"Monitoring bus message stream" not in out.read_bytes() and time.monotonic() < end:
            time.sleep(0.02)
        identifier = service.do("open")
        while b"Member=FindingOpened" not in out.read_bytes() and time.monotonic() < end:
            time.sleep(0.02)
        monitor.terminate()
    service.do("remove", id=identifier)
    text = out.read_text()
    assert f"Path={PATH}  Interface={NAME}.Manager  Member=FindingOpened" in text
    assert f'STRING "{identifier}";' in text
    assert f"Path={PATH}  Interface=org.freedesktop.DBus.ObjectManager  Member=InterfacesAdded" in text


def test_gdbus_introspect_shows_the_manager_and_its_objects(service: Any) -> None:
    out = run("gdbus", "introspect", "--address", service.bus.address, "--dest", NAME, "--object-path", PATH)
    words = " ".join(out.split())
    assert "ListFindings(in a{sv} options, out aa{sv} findings, out s next);" in words
    assert "FindingOpened(o finding, s id, s rule, y severity);" in words
    assert "readonly s Version = '0.0.test';" in out
    assert "node finding {" in out


def test_gdbus_call_refuses_by_name(service: Any) -> None:
    if shutil.which("gdbus") is None:
        pytest.skip("gdbus is not installed")
    where = ("--address", service.bus.address, "--dest", NAME, "--object-path", PATH)
    done = subprocess.run(
        ["gdbus", "call", *where, "--method", f"{NAME}.Manager.GetFinding", "x"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert f"{NAME}.Error.NoSuchFinding" in done.stderr


def test_glib_sees_objects_come_change_and_go(service: Any) -> None:
    if not os.path.exists(SYSTEM_PYTHON) or subprocess.run([SYSTEM_PYTHON, "-c", "import gi"], capture_output=True).returncode:
        pytest.skip("python3-gi is not installed")
    program = textwrap.dedent(f"""
        import sys
        from gi.repository import Gio, GLib
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        connection = Gio.DBusConnection.new_for_address_sync({service.bus.address!r}, flags, None, None)
        manager = Gio.DBusObjectManagerClient.new_sync(
            connection, Gio.DBusObjectManagerClientFlags.DO_NOT_AUTO_START, "{NAME}", "{PATH}", None, None, None)
        loop = GLib.MainLoop()
        def tell(*words):
            print(*words, flush=True)
        manager.connect("object-added", lambda _, item: tell("added", item.get_object_path()))
        manager.connect("object-removed", lambda _, item: (tell("removed", item.get_object_path()), loop.quit()))
        def changed(_, item, proxy, values, invalidated):
            tell("changed", item.get_object_path(), values.unpack().get("Count"), proxy.get_cached_property("Count").unpack())
        manager.connect("interface-proxy-properties-changed", changed)
        first = manager.get_objects()[0].get_interface("{NAME}.Finding")
        tell("objects", len(manager.get_objects()), first.get_cached_property("Rule").unpack())
        GLib.timeout_add_seconds(50, loop.quit)
        loop.run()
    """)
    with subprocess.Popen([SYSTEM_PYTHON, "-c", program], stdout=subprocess.PIPE, text=True) as glib:
        assert glib.stdout is not None
        word, count, rule = glib.stdout.readline().split()
        assert (word, int(count) >= 300, rule) == ("objects", True, "cgroup.pids.limit-hit")
        identifier = service.do("open")
        assert glib.stdout.readline() == f"added {finding_path(identifier)}\n"
        service.do("change", id=identifier)
        assert glib.stdout.readline() == f"changed {finding_path(identifier)} 2 2\n"
        service.do("remove", id=identifier)
        assert glib.stdout.readline() == f"removed {finding_path(identifier)}\n"
