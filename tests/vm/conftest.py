# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a Debian 12 and a Debian 13 that booted, the same with triaged installed and running, and throw-away machines of both.

A machine that does not boot or answer fails the test with its console; only where none can run at all it skips, and says why.
Under pytest-xdist the workers share the package and the snapshots, and a module's tests of one release stay together.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).parent))

from cgroup_scenes import INSIDE as CGROUP_FAULTS
from cgroup_scenes import build_faults
from hardware import Snapshot
from image import ROOT, SUITES, locked, why_not
from machine import Machine, derive, ensure_image, restore
from package import INSIDE, PACKAGE


@pytest.fixture(scope="session", params=SUITES)
def booted(request: pytest.FixtureRequest) -> Snapshot:
    """A Debian with what triaged depends on, and without triaged."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    return ensure_image(request.param)


def of_the_run(factory: pytest.TempPathFactory) -> Path:
    """The directory that all workers of this run have."""
    mine = factory.getbasetemp()
    return (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "shared"


@pytest.fixture(scope="session")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from this tree."""
    shared = of_the_run(tmp_path_factory)
    with locked(shared):
        if not (shared / PACKAGE).exists():
            build = [ROOT / "scripts/build-deb"]
            done = subprocess.run(build, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
            assert done.returncode == 0, done.stderr
            shutil.copy(ROOT / "dist" / PACKAGE, shared)
    return shared / PACKAGE


@pytest.fixture(scope="session")
def installed(booted: Snapshot, deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The same Debian after `dpkg -i` and `systemctl enable --now triaged`, with the daemon up and the machine at rest."""

    def install(machine: Machine) -> None:
        machine.put(deb, INSIDE)
        machine.run(["dpkg", "-i", INSIDE], timeout=300)
        machine.run("systemctl enable --now triaged || { journalctl -u triaged --no-pager; exit 1; }", timeout=180)
        machine.wait_until("systemctl is-system-running", lambda done: done.out != "starting\n")

    directory = of_the_run(tmp_path_factory) / booted.suite
    with locked(directory):
        if not (directory / "installed").exists():
            scratch = directory / f"scratch-{os.getpid()}"
            derive(booted, scratch, install)
            scratch.rename(directory / "installed")
    return Snapshot(booted.suite, directory / "installed")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Gigabytes of memory and disk are not left for three runs."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
        shutil.rmtree(of_the_run(factory), ignore_errors=True)


class Machines(LoadScopeScheduling):
    """Tests that share a machine, those of one module on one release, go to the same worker. (By marks it is not to be had: the
    groups of pytest-xdist 3.8 are lost on pytest 9.2.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return f"{nodeid.partition('::')[0]} {next((suite for suite in SUITES if suite in nodeid), '')}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Machines:
    return Machines(config, log)


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
