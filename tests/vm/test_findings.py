# SPDX-License-Identifier: Apache-2.0
"""Real Go tests hit real limits on Debian 12 and 13, and what a person is told of it: list, signal, journal entry, explanation."""
from __future__ import annotations

import json
from typing import Any

from machine import Machine
from observe import entries, findings, go_test, seconds_between, signals, wait_for_finding, watch_signals

# A second is the promise; emulated code is about ten times slower (measured: 0.1 to 0.4 s, more while the host is busy otherwise).
AT_ONCE_S = 2.0


def alert_of(machine: Machine, finding: dict[str, Any]) -> dict[str, Any]:
    """The one journal entry about the finding."""
    found = entries(machine, f"TRIAGED_FINDING={finding['id']}")
    assert len(found) == 1, found
    return found[0]


def test_go_test_over_tasks_max_is_told_at_once(machine: Machine) -> None:
    watch_signals(machine)
    failed = machine.run(go_test("worker", options="-p TasksMax=40"), timeout=180, check=False)
    assert failed.status == 1
    assert "resource temporarily unavailable" in failed.out

    finding = wait_for_finding(machine, "cgroup.pids.limit-hit")
    assert finding["kind"] == "hit"
    assert finding["severity"] == "error"
    assert finding["subject"]["unit"] == "run-tests.scope"
    assert finding["evidence"]["pids.max at /system.slice/run-tests.scope"]["value"].startswith("40, in use ")

    (opened,) = [signal for signal in signals(machine, "FindingOpened") if signal["payload"]["data"][1] == finding["id"]]
    assert opened["path"] == "/org/triaged/Triage1"
    assert opened["payload"]["data"][2:] == ["cgroup.pids.limit-hit", 3]

    alert = alert_of(machine, finding)
    assert alert["PRIORITY"] == "3"
    assert alert["TRIAGED_RULE"] == "cgroup.pids.limit-hit"
    assert alert["TRIAGED_SUBJECT"]
    assert alert["OBJECT_SYSTEMD_UNIT"] == "run-tests.scope"
    assert alert["OBJECT_PID"] == str(finding["evidence"]["process pid"]["value"])
    assert finding["evidence"]["process workload"]["value"].startswith("go-test "), finding
    assert len(alert["MESSAGE_ID"]) == 32
    refused = [line for line in entries(machine, "_TRANSPORT=kernel") if "fork rejected by pids controller" in line["MESSAGE"]]
    assert seconds_between(refused[0], alert) < AT_ONCE_S

    # As the manual says: the entry is found by its field, but not by -u, for which its writer would have to be root.
    assert finding["id"] in machine.run("triagectl log run-tests.scope").out
    assert len(entries(machine, "OBJECT_SYSTEMD_UNIT=run-tests.scope", f"TRIAGED_FINDING={finding['id']}")) == 1
    assert not [entry for entry in entries(machine, "--unit=run-tests.scope") if "TRIAGED_FINDING" in entry]

    explained = machine.run(f"journalctl -x --no-pager MESSAGE_ID={alert['MESSAGE_ID']}").out
    assert "Defined-By: triaged" in explained
    assert finding["id"] in explained


def test_a_limit_of_the_slice_is_blamed_on_the_slice(machine: Machine) -> None:
    machine.write("/run/systemd/system/ci.slice.d/limit.conf", "[Slice]\nTasksMax=40\n")
    machine.run("systemctl daemon-reload")
    failed = machine.run(go_test("worker", options="--slice=ci.slice -p TasksMax=infinity"), timeout=180, check=False)
    assert "resource temporarily unavailable" in failed.out
    finding = wait_for_finding(machine, "cgroup.pids.limit-hit")
    assert finding["subject"]["cgroup"] == "/ci.slice", finding
    # The tasks are those of the scope below: one of them is named.
    assert alert_of(machine, finding)["OBJECT_PID"] == str(finding["evidence"]["process pid"]["value"])
    assert finding["evidence"]["process workload"]["value"].startswith("go-test "), finding


def test_an_oom_kill_in_a_scope_names_the_scope_and_the_victim(machine: Machine) -> None:
    # From systemd 253 a scope is stopped altogether when something in it is killed: `go test` itself then cannot say so any more.
    failed = machine.run(go_test("store", options="-p MemoryMax=150M -p MemorySwapMax=0"), timeout=240, check=False)
    assert failed.status != 0

    finding = wait_for_finding(machine, "cgroup.memory.oom-kill")
    assert finding["kind"] == "hit"
    assert finding["subject"]["unit"] == "run-tests.scope"
    assert "store.test" in finding["summary"]
    assert alert_of(machine, finding)["OBJECT_SYSTEMD_UNIT"] == "run-tests.scope"
    assert not [other for other in findings(machine) if other["rule"] == "host.memory.oom-kill"]


def test_a_system_call_that_the_units_filter_refuses_is_named(machine: Machine) -> None:
    run_gate = (
        "systemd-run --quiet --wait --pipe --collect --unit=run-gate -p SystemCallFilter=~swapoff -p WorkingDirectory=/srv/faults "
        "-E HOME=/root go test -count=1 ./gate"
    )
    failed = machine.run(run_gate, timeout=180, check=False)
    assert failed.status == 1
    assert "bad system call" in failed.out

    finding = wait_for_finding(machine, "seccomp.denied")
    assert finding["kind"] == "hit"
    assert "swapoff" in finding["summary"]
    alert = alert_of(machine, finding)
    assert alert["OBJECT_SYSTEMD_UNIT"] == "run-gate.service"
    assert alert["OBJECT_PID"].isdecimal()
    recorded = entries(machine, "_TRANSPORT=audit") or entries(machine, "_TRANSPORT=kernel")
    records = [line for line in recorded if "syscall=168" in line["MESSAGE"]]
    assert records
    assert seconds_between(records[0], alert) < AT_ONCE_S

    # The test binary of the next run has another path; it is the same cause, and no second alert.
    assert machine.run(run_gate, timeout=180, check=False).status == 1
    machine.wait_until(
        f"triagectl show {finding['id']} --json", lambda done: json.loads(done.out)["count"] >= 2 * finding["count"]
    )
    assert [row["id"] for row in findings(machine) if row["rule"] == "seccomp.denied"] == [finding["id"]]
    alert_of(machine, finding)


def test_go_test_in_default_slice_is_a_risk_and_not_a_hit(machine: Machine) -> None:
    machine.run(go_test("healthy", unit="tests", options="--slice=default.slice", environment="TAKE=3s"), timeout=180)
    finding = wait_for_finding(machine, "placement.forbidden-slice")
    assert finding["kind"] == "risk"
    assert "default.slice" in finding["summary"]


def test_a_healthy_go_test_in_a_proper_place_is_no_finding(machine: Machine) -> None:
    machine.run(go_test("healthy", options="--slice=ci.slice"), timeout=180)
    # Nor what a program writes into the kernel log, which is not the kernel's word.
    forged = "Memory cgroup out of memory: Killed process 4242 (x) total-vm:1kB, anon-rss:1kB, UID:0 pgtables:4kB oom_score_adj:0"
    machine.run(f"echo '<3>{forged}' >/dev/kmsg; echo '<6>cgroup: fork rejected by pids controller in /ci.slice' >/dev/kmsg")
    assert "Killed process 4242" in machine.run("dmesg").out
    machine.run("busctl call org.triaged.Triage1 /org/triaged/Triage1 org.triaged.Triage1.Manager Refresh")
    assert findings(machine) == []
