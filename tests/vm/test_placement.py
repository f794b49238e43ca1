# SPDX-License-Identifier: Apache-2.0
"""Go tests in slices where they should not be: the way there, where the slice comes from, and the move that puts it right."""
from __future__ import annotations

import json
from typing import Any

import pytest
from cgroup_scenes import INSIDE, all_findings, evidence, fault, in_scope, start
from machine import Machine

HOLD = f"{INSIDE} -test.run=TestHold"
CONTAINER = "0123456789abcdef" * 4
RULE = "placement.forbidden-slice"


@pytest.fixture
def machine(machine_with_cgroup_faults: Machine) -> Machine:
    return machine_with_cgroup_faults


def finding_at(machine: Machine, cgroup: str, name: str = "", timeout: float = 30.0) -> dict[str, Any]:
    """The finding about what runs in the cgroup, once it has the evidence `name`."""

    def found() -> list[dict[str, Any]]:
        here = [each for each in all_findings(machine, RULE) if each["subject"]["cgroup"] == cgroup]
        return [each for each in here if not name or name in evidence(each)]

    machine.wait_until("sleep 0.2", lambda done: bool(found()), timeout=timeout)
    (finding,) = found()
    return finding


def test_who_made_a_default_slice_is_told(machine: Machine) -> None:
    asked = "slice, says systemd"
    start(machine, in_scope(fault("TestHold"), options="--slice=default.slice"))
    said = evidence(finding_at(machine, "/default.slice/run-tests.scope", asked))
    assert "systemd-run --scope" in said["started by"]
    assert "without a file: only because of run-tests.scope, which names it" in said[asked]
    machine.run("systemctl stop run-tests.scope")

    machine.write("/etc/systemd/system/default.slice", "[Slice]\n")
    machine.run("systemctl daemon-reload")
    start(machine, in_scope(fault("TestHold"), unit="with-file", options="--slice=default.slice"))
    said = evidence(finding_at(machine, "/default.slice/with-file.scope", asked))
    assert "by /etc/systemd/system/default.slice" in said[asked]
    assert said["slice comes from"] == "unit file /etc/systemd/system/default.slice"
    machine.run("systemctl stop with-file.scope default.slice; rm /etc/systemd/system/default.slice; systemctl daemon-reload")
    machine.wait_until("test -d /sys/fs/cgroup/default.slice", lambda done: done.status != 0)

    machine.run("mkdir /sys/fs/cgroup/default.slice")
    start(machine, f"echo 0 >/sys/fs/cgroup/default.slice/cgroup.procs; exec {fault('TestHold')}")
    said = evidence(finding_at(machine, "/default.slice", asked))
    assert "default.slice is no loaded unit: its cgroup was made by hand" in said[asked]
    assert "made by hand" in said["slice comes from"]


def test_the_way_through_service_cron_su_and_out_of_a_scope(machine: Machine) -> None:
    machine.run(f"systemd-run --quiet --unit=nightly {fault('TestHold').removeprefix('env ').replace('TAKE=60s', '-E TAKE=60s')}")
    finding = finding_at(machine, "/system.slice/nightly.service", "started by")
    said = evidence(finding)
    assert said["started by"] == "service nightly.service"
    assert "systemd[1] in /init.scope" in said["way"]
    settings = [fix for fix in finding["fixes"] if fix["type"] == "set-unit-setting"]
    assert [(fix["unit"], fix["name"]) for fix in settings] == [("nightly.service", "Slice")]
    machine.run("systemctl stop nightly.service")

    # cron's place in the tree, by its name: a job of the real one comes only once a minute. Not su, which opens a session
    # elsewhere by PAM.
    machine.run("cp /bin/dash /usr/local/sbin/cron")
    command = f"runuser -u alice -- {fault('TestHold')}; true"
    machine.run(["systemd-run", "--quiet", "--unit=jobs", "/usr/local/sbin/cron", "-c", command])
    machine.wait_until("triagectl list --json", lambda done: "cron" in done.out)
    found = [each for each in all_findings(machine, RULE) if "cron" in str(evidence(each).get("way"))]
    assert len(found) == 1, found
    assert {"cron", "su"} <= set(str(evidence(found[0])["started by"]).replace(",", "").split())
    machine.run("systemctl stop jobs.service; pkill cgroups.test || true", check=False)

    leaves = f"(echo 0 >/sys/fs/cgroup/cgroup.procs; exec {fault('TestHold')}) & wait"
    machine.write("/run/leaves", leaves)
    start(machine, in_scope("sh /run/leaves", unit="left", options="--slice=ci.slice"))
    machine.wait_until("triagectl list --json", lambda done: "left the unit of its parent" in done.out)
    (left,) = [each for each in all_findings(machine, RULE) if "left the unit" in str(evidence(each)["how it got there"])]
    assert evidence(left)["unit that it came from"] == "left.scope"


def test_a_tree_that_forks_all_the_time_is_moved_whole_and_back(machine: Machine) -> None:
    start(machine, in_scope(fault("TestForks", take="120s"), options="--slice=default.slice"))
    finding = finding_at(machine, "/default.slice/run-tests.scope")
    before = machine.run("cat /sys/fs/cgroup/default.slice/run-tests.scope/cgroup.procs").out.split()
    assert before
    moved = machine.run(["triagectl", "fix", "--yes", finding["id"]], timeout=120, check=False)
    assert moved.status == 0, str(moved)
    where = machine.run("cat /proc/$(pidof -s /opt/cgroups.test)/cgroup").out
    assert "triaged-moved-" in where
    assert "/default.slice" not in where
    # Not one is left behind, and what is forked from now on is in the new place too.
    for _ in range(3):
        left = machine.run("cat /sys/fs/cgroup/default.slice/run-tests.scope/cgroup.procs 2>/dev/null || true").out.split()
        assert left == []
    undone = machine.run(["triagectl", "undo", finding["id"]], timeout=120, check=False)
    assert undone.status == 0, str(undone)
    where = machine.run("cat /proc/$(pidof -s /opt/cgroups.test)/cgroup").out
    assert where.strip().endswith("/default.slice/run-tests.scope")


def test_sudo_is_named_as_the_starter(machine: Machine) -> None:
    start(machine, in_scope(f"sudo -u alice TAKE=60s {HOLD}", options="--slice=default.slice"))
    finding = finding_at(machine, "/default.slice/run-tests.scope", "started by")
    said = evidence(finding)
    assert (said["started by"], finding["subject"]["uid"]) == ("sudo", 1000)
    top, *way = str(said["way"]).split(" > ")
    assert top.endswith("] in /system.slice/test-agent.service")
    assert way[0].startswith("sudo[")
    assert all(step.endswith(" in /default.slice/run-tests.scope") for step in way)
    assert way[-1].startswith("cgroups.test[")


def test_a_crontabs_job_is_named_with_the_whole_way(machine: Machine) -> None:
    machine.run("systemctl is-active cron.service")
    # cron looks once a minute.
    machine.run(["crontab", "-"], user="alice", stdin=f"* * * * * TAKE=100s {HOLD}\n".encode())
    finding = finding_at(machine, "/system.slice/cron.service", "started by", timeout=100)
    machine.run(["crontab", "-r"], user="alice")
    said = evidence(finding)
    assert (said["started by"], finding["subject"]["uid"]) == ("cron, service cron.service", 1000)
    names = [step.partition("[")[0] for step in str(said["way"]).split(" > ")]
    assert names in (["systemd", "cron", "cron", "sh", "cgroups.test"], ["systemd", "cron", "cron", "cgroups.test"]), said["way"]
    assert str(said["way"]).startswith("systemd[1] in /init.scope > cron[")
    assert ("Slice", "cron.service") in [(fix.get("name"), fix.get("unit")) for fix in finding["fixes"]]


def run_container(machine: Machine, name: str, options: str, cgroups_path: str) -> None:
    """A test binary in a container of runc's, which goes on in the background."""
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
    ]
    machine.write(f"/opt/{name}/config.json", json.dumps({
        "ociVersion": "1.0.2", "root": {"path": "/opt/root", "readonly": True}, "mounts": mounts,
        "process": {
            "args": ["/cgroups.test", "-test.run=TestHold"], "env": ["TAKE=100s"], "cwd": "/", "user": {"uid": 0, "gid": 0},
        },
        "linux": {"cgroupsPath": cgroups_path, "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]},
    }))
    machine.run(f"mkdir -p /opt/root/proc /opt/root/dev && cp -n {INSIDE} /opt/root/cgroups.test")
    machine.run(["sh", "-c", f'setsid runc {options} run --bundle /opt/{name} {name} >/opt/{name}/output 2>&1 </dev/null &'])
    machine.wait_until(["runc", "state", name], lambda done: '"running"' in done.out)


def test_a_container_runtime_is_named_where_its_container_is_in_a_wrong_place(machine: Machine) -> None:
    # As docker names its containers: those are places of their own.
    run_container(machine, "as-docker", "--systemd-cgroup", f"system.slice:docker:{CONTAINER}")
    run_container(machine, "by-systemd", "--systemd-cgroup", "default.slice:ci:tests")
    finding = finding_at(machine, "/default.slice/ci-tests.scope", "started by")
    said = evidence(finding)
    assert said["started by"] == "container runtime"
    steps = str(said["way"]).split(" > ")
    assert [step.partition("[")[0] for step in steps] == ["runc", "cgroups.test"]
    assert steps[0].endswith(" in /system.slice/test-agent.service")
    assert [(fix["type"], fix["commands"][0]) for fix in finding["fixes"]] == [
        ("manual", ["docker", "run", "--cgroup-parent=ci.slice", "..."])
    ]
    run_container(machine, "by-hand", "", "/system.slice/tests")
    said = evidence(finding_at(machine, "/system.slice/tests", "started by"))
    assert said["started by"] == "container runtime"
    places = {each["subject"]["cgroup"] for each in all_findings(machine, RULE)}
    assert places == {"/default.slice/ci-tests.scope", "/system.slice/tests"}
