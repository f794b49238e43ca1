# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a Debian 12 and a Debian 13 that booted, the same with triaged installed and running, and throw-away machines of both.

A machine that does not boot or answer fails the test with its console; only where none can run at all it skips, and says why.
"""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cgroup_scenes import INSIDE as CGROUP_FAULTS
from cgroup_scenes import build_faults
from hardware import Snapshot
from image import ROOT, SUITES, why_not
from machine import Machine, derive, ensure_image, restore
from package import INSIDE, PACKAGE


@pytest.fixture(scope="session", params=SUITES)
def booted(request: pytest.FixtureRequest) -> Snapshot:
    """A Debian with what triaged depends on, and without triaged."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    return ensure_image(request.param)


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package, built from this tree."""
    done = subprocess.run([ROOT / "scripts/build-deb"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr
    return ROOT / "dist" / PACKAGE


@pytest.fixture(scope="session")
def installed(booted: Snapshot, deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """The same Debian after `dpkg -i` and `systemctl enable --now triaged`, with the daemon up and the machine at rest."""

    def install(machine: Machine) -> None:
        machine.put(deb, INSIDE)
        machine.run(["dpkg", "-i", INSIDE], timeout=300)
        machine.run("systemctl enable --now triaged || { journalctl -u triaged --no-pager; exit 1; }", timeout=180)
        machine.wait_until("systemctl is-system-running", lambda done: done.out != "starting\n")

    directory = tmp_path_factory.mktemp(booted.suite) / "installed"
    yield derive(booted, directory, install)
    for path in directory.iterdir():
        path.unlink()


@pytest.fixture
def bare(booted: Snapshot) -> Iterator[Machine]:
    """A machine without triaged, for one test."""
    with restore(booted) as machine:
        yield machine


@pytest.fixture
def machine(installed: Snapshot) -> Iterator[Machine]:
    """A machine on which triaged runs, for one test."""
    with restore(installed) as machine:
        yield machine


@pytest.fixture(scope="session")
def cgroup_faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test binary of cgroup_faults."""
    return build_faults(tmp_path_factory.mktemp("cgroup-faults"))


@pytest.fixture
def machine_with_cgroup_faults(installed: Snapshot, cgroup_faults: Path) -> Iterator[Machine]:
    """The same with Go tests that reach the limits of cgroups."""
    with restore(installed) as machine:
        machine.put(cgroup_faults, CGROUP_FAULTS)
        yield machine
