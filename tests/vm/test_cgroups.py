# SPDX-License-Identifier: Apache-2.0
"""Real Go tests at the limits of cgroups, version 2, on Debian 12 and 13: the finding, whose limit it was, and what set it."""
from __future__ import annotations

from pathlib import Path

import pytest
from cgroup_scenes import INSIDE, all_findings, drop_in, evidence, fault, in_scope, is_at_limit, start, wait_and_say
from machine import Machine
from observe import MANAGER

CONTAINER = "0123456789abcdef" * 4
STORM = {"trixie": 1000, "bookworm": 100}
# What is the same in both kernels and both systemds is shown on one of them: a machine costs half a minute.
once = pytest.mark.parametrize("booted", ["trixie"], indirect=True)


@pytest.fixture
def machine(machine_with_cgroup_faults: Machine) -> Machine:
    return machine_with_cgroup_faults


def test_an_oom_kill_below_a_slice_has_its_minute_before_and_the_file_that_set_the_limit(machine: Machine) -> None:
    file = drop_in(machine, "ci.slice", "MemoryMax=120M", "MemorySwapMax=0")
    machine.run(in_scope(fault("TestGrow"), options="--slice=ci.slice"), timeout=120, check=False)
    finding, said = wait_and_say(machine, "cgroup.memory.oom-kill")
    assert finding["subject"]["unit"] == "ci.slice"
    assert "the victim was in /ci.slice/run-tests.scope" in finding["summary"]
    assert said["victim workload"] == "go-test test-binary"
    assert said["victim package"] == "example.org/cgroupfaults"
    assert said["limit comes from"].startswith(f"{file}:2, MemoryMax=120M")
    assert said["memory in the minute before"].count("MiB") >= 3
    assert is_at_limit(said, 120 << 20)
    assert "cgroups.test[" in said["tasks by memory"]
    assert said["oom.group"].startswith("0")
    assert said["limit of swap"] == 0
    assert said["times at the limit"] > 0


@once
def test_memory_high_of_a_scope_holds_its_tasks_back(machine: Machine) -> None:
    start(machine, in_scope(fault("TestChurn"), options="-p MemoryHigh=60M -p MemorySwapMax=0"))
    finding, said = wait_and_say(machine, "cgroup.memory.high", timeout=60)
    assert finding["subject"]["unit"] == "run-tests.scope"
    assert "MemoryHigh=" in said["limit comes from"]
    pressure = all_findings(machine, "cgroup.pressure")
    assert [each["subject"]["cgroup"] for each in pressure] in ([], ["/system.slice/run-tests.scope"])


@once
def test_a_quota_of_the_slice_is_found_below_gomaxprocs(machine: Machine) -> None:
    file = drop_in(machine, "ci.slice", "CPUQuota=40%")
    start(machine, in_scope(fault("TestBusy", environment="GOMAXPROCS=2"), options="--slice=ci.slice"))
    finding, said = wait_and_say(machine, "cgroup.cpu.throttled", timeout=60)
    assert finding["subject"]["unit"] == "ci.slice"
    assert "CPU quota of 0.4 cores" in finding["summary"]
    assert said["limit comes from"].startswith(f"{file}:2, CPUQuota=40%")
    assert "its own cgroup" in said["why Go does not see it"]
    assert said["recommended"].startswith("GOMAXPROCS=1,")
    assert "PSI" in said["slow-down, at least"]
    assert [fix["type"] for fix in finding["fixes"]][:2] == ["set-unit-property", "set-unit-property"]


@once
def test_a_small_cpuset_and_a_frozen_scope_are_found(machine: Machine) -> None:
    start(machine, in_scope(fault("TestHold", environment="GOMAXPROCS=2"), options="-p AllowedCPUs=0"))
    finding, _ = wait_and_say(machine, "cgroup.cpuset.small")
    assert "GOMAXPROCS is 2" in finding["summary"]
    machine.run("systemctl freeze run-tests.scope")
    finding, _ = wait_and_say(machine, "cgroup.frozen")
    assert finding["subject"]["unit"] == "run-tests.scope"
    machine.run("systemctl thaw run-tests.scope")
    machine.wait_until("triagectl list --json --rule cgroup.frozen", lambda done: '"findings": []' in done.out)


@once
def test_a_scope_that_writes_as_fast_as_it_may_is_found(machine: Machine) -> None:
    options = "-p 'IOWriteBandwidthMax=/dev/vda 1M'"
    start(machine, in_scope(fault("TestWrite", environment="DIRECTORY=/root"), options=options))
    finding, said = wait_and_say(machine, "cgroup.io.throttled")
    assert finding["subject"]["unit"] == "run-tests.scope"
    assert "bytes/s written on /dev/vda" in finding["summary"]
    assert "IOWriteBandwidthMax=" in said["limit comes from"]
    assert "% of" in said["no task could run"]


@once
def test_huge_pages_and_the_number_of_cgroups_of_a_cgroup_made_by_hand(machine: Machine) -> None:
    machine.run("echo +hugetlb >/sys/fs/cgroup/cgroup.subtree_control; mkdir /sys/fs/cgroup/by-hand")
    machine.run("cd /sys/fs/cgroup/by-hand && echo 0 >hugetlb.2MB.max && echo 2 >cgroup.max.descendants && mkdir a b")
    full = machine.run("mkdir /sys/fs/cgroup/by-hand/c", check=False)
    assert "Resource temporarily unavailable" in full.err
    start(machine, f"echo 0 >/sys/fs/cgroup/by-hand/cgroup.procs; exec {fault('TestHugePage')}")
    finding, _ = wait_and_say(machine, "cgroup.hugetlb.limit-hit")
    assert finding["subject"]["cgroup"] == "/by-hand"
    finding, _ = wait_and_say(machine, "headroom.nearly-used-up")
    assert "100% of cgroup.max.descendants" in finding["summary"]


@once
def test_a_sigkill_of_timeout_is_no_oom_kill_and_names_it(machine: Machine) -> None:
    machine.run(f"timeout -s KILL 6 {fault('TestHold')}", check=False)
    finding, said = wait_and_say(machine, "process.killed")
    assert "not for lack of memory: by pid" in finding["summary"]
    assert "`timeout`, whose 6 s were over" in finding["summary"]
    assert said["oom_kill of the host"].startswith("unchanged at ")
    machine.run(f"{fault('TestHold')} & sleep 3; kill -KILL $(pidof {INSIDE}); wait", check=False)
    found = [each for each in all_findings(machine, "process.killed") if each["id"] != finding["id"]]
    assert len(found) == 1
    assert found[0]["summary"].endswith("sender unknown")


def test_transient_scopes_that_run_out_of_memory_and_vanish_are_a_finding_each(machine: Machine) -> None:
    kills = STORM[machine.snapshot.suite]
    machine.put(Path(__file__).with_name("scope_storm.py"), "/run/scope_storm.py")
    # Two at once; in the kernel's log only ten in five seconds have more than a pid.
    script = "for first in 1 2; do python3 /run/scope_storm.py $first $0 2 >/run/storm-$first & done; wait; cat /run/storm-[12]"
    done = machine.run(["sh", "-c", script, str(kills)], timeout=1500)
    print(f"{machine.snapshot.suite}: {kills} transient scopes in {done.seconds:.0f} s")
    victims = {f"storm-{number}.scope": int(pid) for number, pid in map(str.split, done.out.splitlines())}
    assert len(victims) == kills, done.err

    count = f"busctl get-property {MANAGER} OpenFindings"
    machine.wait_until(count, lambda done: int(done.out.split()[-1] if done.out else 0) >= kills, timeout=60)
    found = all_findings(machine, "cgroup.memory.oom-kill")
    assert sorted(str(each["subject"].get("unit")) for each in found) == sorted(victims)
    assert {each["count"] for each in found} == {1}
    # The victim is known too, but for kills that only a counter told.
    told = {str(each["subject"]["unit"]): each["summary"] for each in found if "OOM killer ended pid " in each["summary"]}
    assert all(f"OOM killer ended pid {victims[unit]} (tail)" in summary for unit, summary in told.items())
    assert len(told) >= kills * 0.9


@once
def test_the_limits_of_a_container_are_raised_by_its_runtime(machine: Machine) -> None:
    machine.run(in_scope("tail /dev/zero", unit=f"docker-{CONTAINER}", options="-p MemoryMax=20M"), timeout=60, check=False)
    finding, said = wait_and_say(machine, "cgroup.memory.oom-kill")
    assert (finding["subject"]["container"], finding["subject"]["container_runtime"]) == (CONTAINER, "docker")
    assert finding["fixes"][0]["commands"] == [["docker", "update", "--memory=41943040", "--memory-swap=83886080", CONTAINER]]
    assert said["limit comes from"] == "the container's runtime, from the container's options"


def test_pids_max_is_told_apart_from_what_gives_the_same_error(machine: Machine) -> None:
    file = drop_in(machine, "ci.slice", "TasksMax=12")
    options = "--slice=ci.slice -p TasksMax=infinity"
    machine.run(in_scope("sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do sleep 3 & done; wait'", options=options), check=False)
    finding, said = wait_and_say(machine, "cgroup.pids.limit-hit")
    assert finding["subject"]["unit"] == "ci.slice"
    assert said["limit comes from"].startswith(f"{file}:2, TasksMax=12")
    assert {"not kernel.threads-max", "not kernel.pid_max"} <= said.keys()
    assert "ulimit -u" in said["Go's hint"]
    assert evidence(finding)["pids.max at /ci.slice"].startswith("12, in use ")
