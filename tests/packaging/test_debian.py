# SPDX-License-Identifier: Apache-2.0
"""The Debian package as scripts/build-deb leaves it. That it installs and runs is shown in tests/vm."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from triaged import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dist" / f"triaged_{__version__}_all.deb"

needs_debhelper = pytest.mark.skipif(
    shutil.which("dh_python3") is None or shutil.which("dpkg-buildpackage") is None,
    reason="debhelper and dh-python are not installed",
)


@pytest.fixture(scope="module")
def deb() -> Path:
    subprocess.run([ROOT / "scripts/build-deb"], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return PACKAGE


def packed(deb: Path) -> dict[str, str]:
    """The files of the package: path -> mode and owner."""
    listing = subprocess.run(["dpkg-deb", "--contents", deb], check=True, capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=5) for line in listing.splitlines()]
    return {row[5].removeprefix("."): f"{row[0]} {row[1]}" for row in rows}


def test_changelog_has_the_version_of_the_package() -> None:
    head = (ROOT / "packaging/debian/changelog").read_text().splitlines()[0]
    assert head.startswith(f"triaged ({__version__}) ")


def test_the_rpm_has_the_same_version() -> None:
    assert f"\nVersion:        {__version__}\n" in (ROOT / "packaging/rpm/triaged.spec").read_text()


@needs_debhelper
def test_every_module_is_packed_and_no_byte_code(deb: Path) -> None:
    files = packed(deb)
    modules = {path.relative_to(ROOT / "daemon").as_posix() for path in (ROOT / "daemon/triaged").rglob("*.py")}
    assert modules
    assert {f"/usr/lib/python3/dist-packages/{module}" for module in modules} <= set(files)
    assert not [name for name in files if name.endswith((".pyc", "__pycache__/"))]


@needs_debhelper
def test_every_installed_kind_of_file_is_packed(deb: Path) -> None:
    """A file added to one of these directories and forgotten in install-tree would be missing on the user's machine only."""
    names = {os.path.basename(name) for name in packed(deb)}
    kinds = (("units", "*.service"), ("units", "*.catalog"), ("dbus", "*"), ("config", "**/*.*"), ("docs/man", "*.[1-8]"))
    for directory, pattern in kinds:
        for path in filter(Path.is_file, (ROOT / directory).glob(pattern)):
            assert path.name in names or f"{path.name}.gz" in names, path


@needs_debhelper
def test_units_lie_where_both_releases_look(deb: Path) -> None:
    files = packed(deb)
    assert files["/usr/lib/systemd/system/triaged.service"] == "-rw-r--r-- root/root"
    assert not [name for name in files if name.startswith("/lib/")]


@needs_debhelper
def test_depends_on_packages_that_debian_12_and_13_have(deb: Path) -> None:
    fields = subprocess.run(["dpkg-deb", "--field", deb, "Depends"], check=True, capture_output=True, text=True).stdout
    alternatives = [[re.split(r"[ :]", name.strip())[0] for name in clause.split("|")] for clause in fields.split(",")]
    known = {
        "python3", "python3-tomli", "python3-dbus-next", "python3-psutil", "python3-pyroute2", "python3-sdnotify",
        "systemd", "systemd-standalone-sysusers", "systemd-sysusers", "default-dbus-system-bus", "dbus-system-bus",
    }
    assert {name for clause in alternatives for name in clause} <= known


@needs_debhelper
def test_installing_neither_enables_nor_starts_and_an_upgrade_restarts_only_what_runs(deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--control", deb, tmp_path], check=True)
    postinst = (tmp_path / "postinst").read_text()
    assert re.findall(r"deb-systemd-invoke (\S+)", postinst) == ["try-restart"]
    assert "was-enabled" in postinst  # `enable` stands only where an administrator enabled it before
    assert "deb-systemd-invoke stop" in (tmp_path / "prerm").read_text()


@needs_debhelper
@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_finds_no_error(deb: Path) -> None:
    command = ["lintian", "--allow-root", "--fail-on", "error", deb]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LANG": "C.UTF-8"})
    assert result.returncode == 0, result.stdout
