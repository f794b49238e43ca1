# SPDX-License-Identifier: Apache-2.0
"""Go tests at the limits of version 1 cgroups: Debian 12 booted with the legacy hierarchies, as old CI hosts still run it."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroup_scenes import INSIDE, evidence, fault, in_scope, is_at_limit, start, wait_and_say
from hardware import Snapshot
from image import why_not
from machine import Machine, boot_again, ensure_image, restore
from observe import wait_for_finding
from package import INSIDE as PACKAGE_INSIDE

LEGACY = "systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"


@pytest.fixture(scope="module")
def legacy(deb: Path, cgroup_faults: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """Debian 12 with version 1 hierarchies, triaged installed and running, and the faults."""
    reason = why_not()
    if reason:
        pytest.skip(reason)

    def install(machine: Machine) -> None:
        machine.wait_until("systemctl is-system-running", lambda done: done.out != "starting\n", timeout=120)
        machine.put(deb, PACKAGE_INSIDE)
        machine.put(cgroup_faults, INSIDE)
        machine.run(["dpkg", "-i", PACKAGE_INSIDE], timeout=300)
        machine.run("systemctl enable --now triaged || { journalctl -u triaged --no-pager; exit 1; }", timeout=180)

    directory = tmp_path_factory.mktemp("legacy") / "installed"
    yield boot_again(ensure_image("bookworm"), directory, LEGACY, install)
    for path in directory.iterdir():
        path.unlink()


@pytest.fixture
def machine(legacy: Snapshot) -> Iterator[Machine]:
    with restore(legacy) as machine:
        yield machine


def test_memory_and_tasks_of_a_scope_on_version_1(machine: Machine) -> None:
    mounted = machine.run("findmnt --noheadings --output FSTYPE /sys/fs/cgroup/memory").out
    assert mounted == "cgroup\n"
    machine.run(in_scope(fault("TestGrow"), options="-p MemoryMax=80M"), timeout=120, check=False)
    finding, said = wait_and_say(machine, "cgroup.memory.oom-kill")
    assert finding["subject"]["unit"] == "run-tests.scope"
    assert said["victim package"] == "example.org/cgroupfaults"
    assert said["memory in the minute before"].count("MiB") >= 3
    assert is_at_limit(said, 80 << 20)

    forks = "sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do sleep 3 & done; wait'"
    machine.run(in_scope(forks, unit="forks", options="-p TasksMax=8"), check=False)
    finding, said = wait_and_say(machine, "cgroup.pids.limit-hit")
    assert finding["subject"]["unit"] == "forks.scope"
    assert "not kernel.threads-max" in said


def test_quota_freezer_and_wrong_slice_on_version_1(machine: Machine) -> None:
    options = "--slice=default.slice -p CPUQuota=40%"
    start(machine, in_scope(fault("TestBusy", environment="GOMAXPROCS=2"), options=options))
    finding, said = wait_and_say(machine, "cgroup.cpu.throttled", timeout=60)
    assert finding["subject"]["unit"] == "run-tests.scope"
    assert "cpu.stat" in said["slow-down, at least"]
    finding = wait_for_finding(machine, "placement.forbidden-slice")
    assert "default.slice" in finding["summary"]
    assert "systemd-run --scope" in evidence(finding)["started by"]

    # systemd freezes on version 2 only; others (a checkpoint, docker pause) do it on version 1 too.
    machine.run("mkdir /sys/fs/cgroup/freezer/paused")
    machine.run(f"echo $(pidof -s {INSIDE}) >/sys/fs/cgroup/freezer/paused/cgroup.procs")
    machine.run("echo FROZEN >/sys/fs/cgroup/freezer/paused/freezer.state")
    finding, _ = wait_and_say(machine, "cgroup.frozen")
    assert finding["subject"]["cgroup"] == "/paused"
    machine.run("echo THAWED >/sys/fs/cgroup/freezer/paused/freezer.state")
    machine.wait_until("triagectl list --json --rule cgroup.frozen", lambda done: '"findings": []' in done.out)
