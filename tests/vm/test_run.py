# SPDX-License-Identifier: Apache-2.0
"""`triagectl run --slice` through a real systemd, the system's and a user's own, and an ordinary user's trace by triaged-helper."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cgroup_scenes import INSIDE, build_faults, drop_in, fault
from hardware import Snapshot
from machine import Completed, Machine, restore

REPORT = "/tmp/report"
SCOPES = "/sys/fs/cgroup/ci.slice/triagectl-run-*.scope"
OWN = "/user.slice/user-1000.slice/user@1000.service/ci.slice/triagectl-run-"
GROW = f"{INSIDE} -test.run=TestGrow"
KEYS = """
import os, pty, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
read = b""
while b"begun" not in read:
    read += os.read(terminal, 1000)
os.write(terminal, b"\\x03")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_faults(tmp_path_factory.mktemp("cgroup-faults"))


@pytest.fixture(scope="module")
def shared(installed: Snapshot, faults: Path) -> Iterator[Machine]:
    """One machine for all tests of a suite: each leaves it as it was. Traced, hence patched."""
    with restore(installed, is_patched=True) as machine:
        machine.put(faults, INSIDE)
        yield machine


@pytest.fixture
def machine(shared: Machine) -> Iterator[Machine]:
    yield shared
    shared.run("rm -rf /run/systemd/system/ci.slice.d /tmp/report; systemctl daemon-reload; systemctl stop ci.slice", timeout=180)


def triagectl_run(machine: Machine, options: str, command: str, **more: Any) -> Completed:
    return machine.run(f"triagectl run {options} -- {command}", timeout=240, check=False, **more)


def judged(machine: Machine, options: str, command: str, **more: Any) -> tuple[Completed, dict[str, Any]]:
    """A run, and its report."""
    done = triagectl_run(machine, f"--report {REPORT} {options}", command, **more)
    report: dict[str, Any] = json.loads(machine.get(REPORT))
    machine.run(["rm", REPORT])
    return done, report


def assert_nothing_is_left(machine: Machine) -> None:
    """No scope, and nothing that kept it."""
    machine.wait_until(f"ls -d {SCOPES}; pgrep -x cat", lambda done: not done.out)
    assert not machine.run("systemctl list-units --all --no-legend 'triagectl-run-*'").out


def test_roots_command_is_in_a_scope_of_its_own_from_its_first_instruction_on(machine: Machine) -> None:
    done = triagectl_run(machine, "--no-trace --slice ci-nightly.slice", "cat /proc/self/cgroup")
    assert done.out.startswith("0::/ci.slice/ci-nightly.slice/triagectl-run-"), str(done)
    assert (done.status, done.err) == (0, "")
    show = "systemctl show -P Slice -P TasksAccounting -P MemoryAccounting -P CPUAccounting -P IOAccounting -P OOMPolicy"
    done = triagectl_run(machine, "--no-trace --quiet --slice ci.slice", f"sh -c '{show} \"triagectl-run-*.scope\"; exit 3'")
    assert (done.status, done.err) == (3, ""), str(done)
    assert sorted(done.out.split()) == ["ci.slice", "continue", "yes", "yes", "yes", "yes"]
    # The OOM killer takes the command rather than who is to tell of it.
    done = triagectl_run(machine, "--no-trace", "sh -c 'cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj'")
    usual, spared = map(int, done.out.split())
    assert spared == max(usual - 500, -999)
    # Another user's command stays there.
    done = triagectl_run(machine, "--no-trace --slice ci.slice", "sudo -u alice sh -c 'id -un; cat /proc/self/cgroup'")
    assert done.out.startswith("alice\n0::/ci.slice/triagectl-run-"), str(done)
    assert_nothing_is_left(machine)


@pytest.mark.parametrize("options", ["", "--no-trace"])
def test_a_memory_limit_of_the_slice_is_named_and_the_run_goes_on(machine: Machine, options: str) -> None:
    drop_in(machine, "ci.slice", "MemoryMax=80M", "MemorySwapMax=0")
    # By default systemd would end all of a scope in which one process was killed.
    command = f"sh -c '{fault('TestGrow')}; test $? = 137 && exit 4'"
    done, report = judged(machine, f"{options} --slice ci.slice", command)
    assert done.status == 4, str(done)
    (cause,) = report["causes"]
    assert (report["verdict"], cause["cause"], cause["status"]) == ("machine", "cgroup.memory.max", "proved"), report
    assert cause["subject"] == "ci.slice"
    assert cause["summary"].startswith("ci.slice has MemoryMax=83886080 (80 MiB), and the OOM killer ended process ")
    if options:
        # Where nothing but the death of the command tells of it.
        done, report = judged(machine, f"{options} --slice ci.slice", GROW, env={"TAKE": "60s"})
        (cause,) = report["causes"]
        assert (done.status, cause["cause"], cause["subject"]) == (137, "cgroup.memory.max", "ci.slice"), report
    assert_nothing_is_left(machine)


@pytest.mark.parametrize("options", ["", "--no-trace"])
def test_a_limit_on_tasks_of_the_slice_is_named(machine: Machine, options: str) -> None:
    drop_in(machine, "ci.slice", "TasksMax=24")
    done, report = judged(machine, f"{options} --slice ci.slice", "go test -count=1 ./worker", cwd="/srv/faults")
    assert done.status == 1, str(done)
    (cause,) = report["causes"]
    assert (cause["cause"], cause["status"], cause["subject"]) == ("cgroup.pids.max", "proved", "ci.slice"), report
    # Up to 6.10 only the scope counts it, which systemd removes at once.
    assert cause["summary"].startswith("ci.slice has TasksMax=24 and was full (pids.events max +")
    assert (cause["test"], cause["package"]) == ("TestSpawnWorkers", "example.org/faults/worker")
    assert_nothing_is_left(machine)


def test_where_there_is_no_scope_to_be_had_it_is_said_and_the_command_runs(machine: Machine) -> None:
    done = triagectl_run(machine, "--no-trace --slice ci@x.slice", "echo ran")
    assert (done.status, done.out) == (2, "")
    assert "'ci@x.slice' is not the name of a slice" in done.err
    machine.run("systemctl mask --runtime ci.slice")
    done = triagectl_run(machine, "--no-trace --slice ci.slice", "cat /proc/self/cgroup")
    assert (done.status, done.out) == (0, "0::/system.slice/test-agent.service\n")
    assert "no scope of its own in ci.slice: Unit ci.slice is masked" in done.err
    machine.run("systemctl unmask --runtime ci.slice")
    machine.write("/run/systemd/system/ci.slice.d/needs.conf", "[Unit]\nRequires=fails.service\nAfter=fails.service\n")
    machine.write("/run/systemd/system/fails.service", "[Service]\nType=oneshot\nExecStart=false\n")
    machine.run("systemctl daemon-reload")
    done = triagectl_run(machine, "--no-trace --slice ci.slice", "cat /proc/self/cgroup")
    assert (done.status, done.out) == (0, "0::/system.slice/test-agent.service\n")
    assert "(dependency); systemctl status ci.slice; going on where triagectl is" in done.err
    machine.run("rm /run/systemd/system/fails.service")
    assert_nothing_is_left(machine)


@pytest.mark.parametrize(("signal", "status"), [("TERM", 143), ("KILL", 137)])
def test_a_signal_to_triagectl_leaves_no_scope(machine: Machine, signal: str, status: int) -> None:
    begin = "triagectl run --no-trace --quiet --slice ci.slice -- sh -c 'echo begun >/run/begun; exec sleep 600' & triagectl=$!"
    wait = "while ! [ -s /run/begun ]; do sleep 0.1; done; rm /run/begun"
    there = f"ls -d {SCOPES} >/dev/null && pgrep -x cat >/dev/null || exit 99"
    done = machine.run(f"{begin}; {wait}; {there}; kill -{signal} $triagectl; wait $triagectl", check=False)
    assert done.status == status, str(done)
    assert machine.run("pgrep -x sleep", check=False).out == ""
    assert_nothing_is_left(machine)


def test_ctrl_c_leaves_no_scope(machine: Machine) -> None:
    machine.write("/run/keys.py", KEYS)
    command = "triagectl run --no-trace --quiet --slice ci.slice -- sh -c 'echo begun; exec sleep 600'"
    assert machine.run(f"python3 /run/keys.py {command}").out == "-2\n"
    assert machine.run("pgrep -x sleep", check=False).out == ""
    assert_nothing_is_left(machine)


def test_a_user_gets_a_scope_of_the_systems_where_polkit_lets_him_and_else_of_his_own(machine: Machine) -> None:
    machine.run("systemctl start polkit.service", timeout=180)
    where = "sh -c 'cat /proc/self/cgroup; exit 5'"
    done = triagectl_run(machine, "--no-trace --quiet --slice ci.slice", where, user="alice")
    assert (done.status, done.out) == (5, "0::/system.slice/test-agent.service\n"), str(done)
    assert "systemd: Interactive authentication required" in done.err
    assert "user 1000's own systemd: there is no session bus" in done.err
    assert "loginctl enable-linger" in done.err

    machine.run("loginctl enable-linger alice")
    machine.wait_until("systemctl is-active user@1000.service", lambda done: done.out == "active\n")
    done = triagectl_run(machine, "--no-trace --quiet --slice ci.slice", where, user="alice")
    assert (done.status, done.out[: len(OWN) + 3]) == (5, f"0::{OWN}"), str(done)
    assert "the scope is in the ci.slice of user 1000's own systemd (user@1000.service), not in the system's" in done.err
    limits = "[Slice]\nMemoryMax=80M\nMemorySwapMax=0\n"
    machine.write("/home/alice/.config/systemd/user/ci.slice.d/limit.conf", limits)
    machine.run("XDG_RUNTIME_DIR=/run/user/1000 systemctl --user daemon-reload", user="alice")
    done, report = judged(machine, "--no-trace --slice ci.slice", GROW, user="alice", env={"TAKE": "60s"})
    (cause,) = report["causes"]
    # The kernel log is closed to alice: what the scope counted is all that tells, until the scope is gone.
    assert (done.status, cause["cause"], cause["subject"]) == (137, "cgroup.memory.max", "ci.slice"), report
    assert "systemctl --user set-property ci.slice MemoryMax=" in str(cause["fixes"]).replace("', '", " ")
    machine.wait_until(f"ls -d /sys/fs/cgroup{OWN}*", lambda done: not done.out)

    machine.write("/etc/polkit-1/rules.d/10-units.rules", """polkit.addRule(function(action, subject) {
        if (action.id == "org.freedesktop.systemd1.manage-units" && subject.user == "alice") { return polkit.Result.YES; }
    });""")
    ours = "0::/ci.slice/triagectl-run-"
    # polkit reads its rules when it is told that the directory changed.
    machine.wait_until(
        ["runuser", "-u", "alice", "--", "triagectl", "run", "--no-trace", "--slice", "ci.slice", "--", "cat", "/proc/self/cgroup"],
        lambda done: done.out.startswith(ours) and done.err == "", timeout=60,
    )
    machine.run("rm /etc/polkit-1/rules.d/10-units.rules; loginctl disable-linger alice", timeout=180)
    assert_nothing_is_left(machine)


def test_an_ordinary_users_run_is_traced_by_triaged_helper(machine: Machine) -> None:
    _, report = judged(machine, "", "true", user="alice")
    assert "not root, and triaged gave no trace" in " ".join(report["not_seen"]), report
    machine.write("/etc/polkit-1/rules.d/10-trace.rules", """polkit.addRule(function(action, subject) {
        if (action.id == "org.triaged.trace" && subject.user == "alice") { return polkit.Result.YES; }
    });""")
    machine.run("systemctl restart polkit.service", timeout=180)
    drop_in(machine, "ci.slice", "TasksMax=24")
    test = "sudo -u alice triagectl run --report /tmp/report -- go test -count=1 ./worker"
    done = machine.run(f"systemd-run --quiet --scope --slice=ci.slice {test}", cwd="/srv/faults", timeout=240, check=False)
    report = json.loads(machine.get(REPORT))
    assert "failing system calls" not in " ".join(report["not_seen"]), report
    (cause,) = report["causes"]
    assert (done.status, cause["cause"], cause["subject"], cause["status"]) == (1, "cgroup.pids.max", "ci.slice", "proved"), report
    # Only a trace knows the call.
    assert (cause["syscall"], cause["errno"]) in (("clone", "EAGAIN"), ("clone3", "EAGAIN")), report
    machine.run("rm /tmp/report /etc/polkit-1/rules.d/10-trace.rules")
    # The socket of the trace and the trace itself are gone with it, the helper after its 30 s, with its directory.
    machine.wait_until("ls /run/triaged-helper /sys/kernel/tracing/instances", lambda done: "relay" not in done.out + done.err)
    assert "trace-" not in machine.run("ls -A /run/triaged-helper", check=False).out
    look = "systemctl is-active triaged-helper; ls -d /run/triaged-helper"
    machine.wait_until(look, lambda done: done.out == "inactive\n", timeout=90)
