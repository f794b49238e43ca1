# SPDX-License-Identifier: Apache-2.0
"""triaged.service under systemd on Debian 12 and 13: it answers, reloads, is watched, outlives being killed, says what is wrong."""
from __future__ import annotations

import json

from machine import Machine
from observe import LIST_FINDINGS, entries, findings, wait_for_finding


def main_pid(machine: Machine) -> str:
    return machine.run("systemctl show --property=MainPID --value triaged").out.strip()


def break_a_parameter(machine: Machine) -> str:
    """Sets a kernel parameter below the default policy and waits for the finding. Gives its id."""
    machine.run("sysctl -q -w net.core.somaxconn=16")
    machine.run("busctl call org.triaged.Triage1 /org/triaged/Triage1 org.triaged.Triage1.Manager Refresh", timeout=60)
    done = machine.wait_until("triagectl list --json", lambda done: "somaxconn" in done.out)
    return str(next(row["id"] for row in json.loads(done.out)["findings"] if "somaxconn" in json.dumps(row)))


def test_a_fresh_machine_has_no_findings_and_every_source_is_active(machine: Machine) -> None:
    assert machine.run(LIST_FINDINGS).out == 'aa{sv}s 0 ""\n'
    assert machine.run(LIST_FINDINGS, user="alice").out == 'aa{sv}s 0 ""\n'
    sources = json.loads(machine.run("triagectl status --json").out)["sources"]
    assert {source["name"] for source in sources if source["state"] != "active"} == set(), sources
    names = {source["name"] for source in sources}
    assert names >= {"process-events", "seccomp-audit", "cgroup-events", "kernel-log", "kernel-parameters"}
    assert entries(machine, "--unit=triaged", "--priority=warning") == []


def test_introspection_reads_as_a_person_expects(machine: Machine) -> None:
    seen = machine.run("gdbus introspect --system --dest org.triaged.Triage1 --object-path /org/triaged/Triage1").out
    assert "interface org.triaged.Triage1.Manager" in seen
    assert "ListFindings(in  a{sv} options," in seen
    assert "readonly s Version" in seen


def test_a_call_starts_the_enabled_service(machine: Machine) -> None:
    machine.run("systemctl stop triaged")
    assert machine.run(LIST_FINDINGS, timeout=60).out.startswith("aa{sv}s ")
    assert machine.run("systemctl is-active triaged").out == "active\n"


def test_a_parameter_below_the_policy_is_a_risk_until_it_is_right_again(machine: Machine) -> None:
    identity = break_a_parameter(machine)
    machine.run("sysctl -q -w net.core.somaxconn=4096")
    machine.run("busctl call org.triaged.Triage1 /org/triaged/Triage1 org.triaged.Triage1.Manager Refresh")
    machine.wait_until("triagectl list --json", lambda done: identity not in done.out)
    closed = json.loads(machine.run("triagectl list --state resolved --json").out)["findings"]
    assert [row["id"] for row in closed] == [identity]


def test_reload_takes_a_new_policy_without_a_restart(machine: Machine) -> None:
    before = main_pid(machine)
    machine.write(
        "/etc/triaged/policies.d/mine.toml",
        'title = "mine"\n[[parameter]]\nkey = "vm.swappiness"\noperator = "equals"\nvalue = 1\nwhy = "a test"\n',
    )
    machine.write("/etc/triaged/triaged.toml.d/mine.toml", 'policies = ["default", "mine"]\n')
    machine.run("systemctl reload triaged")
    machine.wait_until("triagectl list --json", lambda done: "vm.swappiness" in done.out)
    assert main_pid(machine) == before


def test_a_mistake_in_the_configuration_is_named_and_the_daemon_goes_on(machine: Machine) -> None:
    before = main_pid(machine)
    machine.write("/etc/triaged/triaged.toml.d/mine.toml", "\nno-such-key = 1\n")
    machine.run("systemctl reload triaged")
    machine.wait_until(
        "journalctl -u triaged --no-pager -o cat",
        lambda done: "/etc/triaged/triaged.toml.d/mine.toml:2" in done.out and "no-such-key" in done.out,
    )
    assert main_pid(machine) == before
    machine.run(LIST_FINDINGS)


def test_a_start_with_a_wrong_configuration_is_not_tried_again(machine: Machine) -> None:
    machine.write("/etc/triaged/triaged.toml.d/mine.toml", "no-such-key = 1\n")
    assert machine.run("systemctl restart triaged", check=False).status != 0
    assert machine.run("systemctl show --property=ExecMainStatus,NRestarts,ActiveState triaged").out.split() == [
        "NRestarts=0", "ExecMainStatus=78", "ActiveState=failed"
    ]


def test_kill_9_loses_no_finding(machine: Machine) -> None:
    identity = break_a_parameter(machine)
    before = main_pid(machine)
    machine.run(f"kill -9 {before}")
    machine.wait_until(
        "systemctl show --property=MainPID,ActiveState --value triaged",
        lambda done: "active" in done.out.split() and before not in done.out.split(),
    )
    assert [row["id"] for row in findings(machine)] == [identity]


def test_a_state_file_cut_short_is_named_and_kept_aside(machine: Machine) -> None:
    break_a_parameter(machine)
    machine.run("systemctl stop triaged")
    machine.run("find /var/lib/triaged -type f -exec truncate --size=40 {} +")
    machine.run("systemctl start triaged")
    said = machine.run("journalctl -u triaged --no-pager -o cat --priority=warning").out
    assert "/var/lib/triaged/" in said
    wait_for_finding(machine, "sysctl.below-policy")


def test_a_daemon_that_hangs_is_killed_and_started_again(machine: Machine) -> None:
    machine.write("/run/systemd/system/triaged.service.d/soon.conf", "[Service]\nWatchdogSec=5s\n")
    machine.run("systemctl daemon-reload; systemctl restart triaged")
    before = main_pid(machine)
    machine.run("sleep 8")  # longer than the watchdog: it is fed
    assert main_pid(machine) == before
    machine.run(f"kill -STOP {before}")
    machine.wait_until(
        "systemctl show --property=MainPID,ActiveState --value triaged",
        lambda done: "active" in done.out.split() and before not in done.out.split(),
    )
    machine.run(LIST_FINDINGS, timeout=60)


def test_a_bus_that_goes_away_is_found_again(machine: Machine) -> None:
    machine.run("systemctl restart dbus.service", timeout=60)
    machine.wait_until(LIST_FINDINGS, lambda done: done.status == 0, timeout=90)


def test_scan_works_without_daemon_and_without_root(machine: Machine) -> None:
    machine.run("systemctl disable --now triaged")
    healthy = machine.run("triagectl scan", user="alice", check=False)
    assert healthy.status == 0, str(healthy)
    machine.run("sysctl -q -w net.core.somaxconn=16")
    broken = machine.run("triagectl scan --json", user="alice", check=False)
    assert broken.status == 1, str(broken)
    assert [row["kind"] for row in json.loads(broken.out)["findings"]] == ["risk"]


def test_it_stops_in_time_and_removes_nothing_that_is_needed(machine: Machine) -> None:
    machine.run("systemctl stop triaged", timeout=30)
    assert machine.run("systemctl show --property=Result --value triaged").out == "success\n"
