# SPDX-License-Identifier: Apache-2.0
"""The units as systemd itself judges them, without a running systemd."""
from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "units").glob("*.service"))
EXPOSURE_AT_MOST = {"triaged.service": 2.0, "triaged-helper.service": 7.0}

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A root directory with the units and empty programs where the units look for them."""
    directory = tmp_path / "usr/lib/systemd/system"
    directory.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, directory)
        for program in re.findall(r"^Exec\w+=[-@:+!]*(/\S+)", unit.read_text(), re.MULTILINE):
            path = tmp_path / program.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o755)
    for target in ("basic.target", "sysinit.target", "shutdown.target", "multi-user.target", "dbus.socket", "-.mount"):
        (directory / target).write_text("[Unit]\nDescription=stands in for the system's own\n" + (
            "[Socket]\nListenStream=/run/dbus/system_bus_socket\n" if target == "dbus.socket" else
            "[Mount]\nWhat=none\nWhere=/\n" if target == "-.mount" else ""))
    (directory / "dbus.service").write_text("[Service]\nExecStart=/bin/kill\n")
    return tmp_path


def test_there_is_a_unit() -> None:
    assert "triaged.service" in [unit.name for unit in UNITS]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_to_complain_about(unit: Path, installed: Path) -> None:
    result = analyze("verify", f"--root={installed}", "--man=no", "--recursive-errors=no", unit.name)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_verify_does_complain_about_an_unknown_key(installed: Path) -> None:
    unit = installed / "usr/lib/systemd/system/triaged.service"
    unit.write_text(unit.read_text().replace("[Service]\n", "[Service]\nNoSuchKey=1\n", 1))
    result = analyze("verify", f"--root={installed}", "--man=no", "--recursive-errors=no", unit.name)
    assert "NoSuchKey" in result.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_exposure_stays_below_its_bound(unit: Path, installed: Path) -> None:
    result = analyze("security", "--offline=true", "--no-pager", f"--root={installed}", unit.name)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert found, result.stdout + result.stderr
    assert float(found[1]) <= EXPOSURE_AT_MOST[unit.name], result.stdout


def test_the_service_keeps_what_it_reads() -> None:
    """Each of these would blind a source without any error from systemd."""
    text = (ROOT / "units/triaged.service").read_text()
    for blinding in ("ProtectKernelLogs=yes", "PrivateNetwork=yes", "PrivateUsers=yes", "ProcSubset=pid", "ProtectProc=invisible"):
        assert f"\n{blinding}" not in text
    bounding = re.search(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
    ambient = re.search(r"^AmbientCapabilities=(.*)$", text, re.MULTILINE)
    assert bounding
    assert ambient
    assert set(bounding[1].split()) == set(ambient[1].split())
