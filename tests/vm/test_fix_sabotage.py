# SPDX-License-Identifier: Apache-2.0
"""Fixes that somebody or something is in the way of, on a real kernel and through the installed package.

Whatever happens, the error has a name and a reason, the host is as it was, and what is told afterwards is what is so.
"""
from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from fixing import apply, ask, files_of_settings, finding_with, fixes_of, refusal, undo
from hardware import Snapshot
from image import SUITES
from machine import Machine, restore
from observe import MANAGER

PARAMETER = "vm.max_map_count"
KEY = f"set-parameter:{PARAMETER}"
LASTING = f"{KEY}:lasting"
LOW, HIGH = "2000", "65530"
DROP_IN = "/etc/sysctl.d/zz-triaged.conf"
# FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL: chattr is not in every Debian.
CHATTR = """
import fcntl, os, struct, sys
sign, path = sys.argv[1:]
descriptor = os.open(path, os.O_RDONLY)
(flags,) = struct.unpack("L", fcntl.ioctl(descriptor, 0x80086601, bytes(8)))
fcntl.ioctl(descriptor, 0x40086602, struct.pack("L", flags | 16 if sign == "+i" else flags & ~16))
"""
WATCHDOG = f"""
import time
path = "/proc/sys/{PARAMETER.replace(".", "/")}"
while True:
    with open(path) as file:
        is_low = file.read() == "{LOW}\\n"
    if not is_low:
        with open(path, "w") as file:
            file.write("{LOW}")
    time.sleep(0.02)
"""
# Kills a process when the step is done, once for each token; in the helper's own unit, with all its restrictions.
KILLED_HELPER = """#!/usr/bin/python3 -I
import os, signal, sys
from triaged.helper import main

def on_step(step):
    with open("/run/systemd/kill-at") as file:
        wanted, count, token, pid = file.read().split()
    done = "/var/lib/triaged-helper/killed"
    seen = open(done).read().split() if os.path.exists(done) else []
    if step == wanted and token not in seen:
        on_step.left = getattr(on_step, "left", int(count)) - 1
        if not on_step.left:
            with open(done, "a") as file:
                print(token, file=file)
            os.kill(int(pid) or os.getpid(), signal.SIGKILL)

sys.exit(main(on_step=on_step))
"""
IN_ITS_PLACE = "[Service]\nExecStart=\nExecStart=/usr/local/libexec/killed-helper --bus system\n"


@pytest.fixture(scope="module")
def workshop(installed: Snapshot) -> Iterator[Machine]:
    """One machine for all: what is in the way is out of it when a test is over."""
    with restore(installed) as machine:
        machine.write("/usr/local/libexec/chattr.py", CHATTR)
        machine.write("/usr/local/libexec/killed-helper", KILLED_HELPER)
        machine.run("chmod 755 /usr/local/libexec/killed-helper")
        yield machine


@pytest.fixture
def low(workshop: Machine) -> str:
    """The id of the finding about a parameter that is too low; nothing is left of a test that failed."""
    machine = workshop
    machine.run(f"rm -f {DROP_IN}; sysctl -q -w {PARAMETER}={LOW}")
    return str(finding_with(machine, KEY)["Id"])


def value(machine: Machine) -> str:
    return machine.run(["sysctl", "-n", PARAMETER]).out.strip()


def refused(machine: Machine, finding: str, key: str) -> str:
    """The text of FixFailed, when nothing is left of the attempt but the record that says so."""
    files = files_of_settings(machine)
    name, text = refusal(machine, "ApplyFix", finding, key, "{}")
    assert name == "FixFailed", text
    assert value(machine) == LOW
    assert files_of_settings(machine) == files
    assert fixes_of(machine, finding)[-1]["State"] == "failed"
    assert [row["State"] for row in ask(machine, "ListFindings", "a{sv}", "0") if row["Id"] == finding] == ["open"]
    return text


ON_TRIXIE = pytest.mark.parametrize("booted", SUITES[:1], indirect=True)


@ON_TRIXIE
@pytest.mark.parametrize("key", [KEY, LASTING])
def test_a_parameter_that_is_read_only(workshop: Machine, low: str, key: str) -> None:
    file = f"/proc/sys/{PARAMETER.replace('.', '/')}"
    # The helper's own view of the mounts begins when it starts.
    workshop.run(f"mount --bind {file} {file} && mount -o remount,bind,ro {file} && systemctl stop triaged-helper")
    text = refused(workshop, low, key)
    workshop.run(f"umount {file}")
    assert "read-only file system" in text
    assert "everything is as before (2000)" in text


@ON_TRIXIE
@pytest.mark.parametrize("what", ["/etc/sysctl.d", DROP_IN])
def test_a_drop_in_that_nobody_may_write(workshop: Machine, low: str, what: str) -> None:
    if what == DROP_IN:
        workshop.write(DROP_IN, "# of another fix\nkernel.pid_max = 4194304\n")
    workshop.run(f"python3 /usr/local/libexec/chattr.py +i {what}")
    text = refused(workshop, low, LASTING)
    workshop.run(f"python3 /usr/local/libexec/chattr.py -i {what}; rm -f {DROP_IN}")
    assert f"{DROP_IN}: operation not permitted" in text
    assert "everything is as before (2000)" in text


@ON_TRIXIE
def test_a_directory_of_systemds_that_nobody_may_write(workshop: Machine, low: str) -> None:
    # systemd itself sets the value all the same and says nothing.
    forks = "for i in $(seq 30); do sleep 2 & done; wait"
    workshop.run("systemctl set-property --runtime ci.slice TasksMax=20; mkdir -p /etc/systemd/system.control")
    workshop.run("systemd-run --quiet --slice=ci.slice --unit=holder sleep infinity")
    assert workshop.run(f"systemd-run --quiet --scope --slice=ci.slice sh -c '{forks}'", check=False).status
    key = "set-unit-property:ci.slice:TasksMax:lasting"
    finding = finding_with(workshop, key, "cgroup.pids.limit-hit")
    workshop.run("python3 /usr/local/libexec/chattr.py +i /etc/systemd/system.control")
    text = refused(workshop, finding["Id"], key)
    workshop.run("python3 /usr/local/libexec/chattr.py -i /etc/systemd/system.control")
    assert "systemd could not write /etc/systemd/system.control/ci.slice.d/50-TasksMax.conf" in text
    assert workshop.get("/sys/fs/cgroup/ci.slice/pids.max") == b"20\n"
    workshop.run("systemctl stop holder; systemctl revert ci.slice")


@ON_TRIXIE
@pytest.mark.parametrize("key", [KEY, LASTING])
def test_a_process_that_puts_the_old_value_back_at_once(workshop: Machine, low: str, key: str) -> None:
    workshop.write("/usr/local/libexec/watchdog.py", WATCHDOG)
    workshop.run("systemd-run --quiet --unit=watchdog python3 /usr/local/libexec/watchdog.py; sleep 1")
    text = refused(workshop, low, key)
    workshop.run("systemctl stop watchdog")
    assert f"{PARAMETER} is {LOW} although {HIGH} was written" in text or "it did not help" in text


@ON_TRIXIE
def test_a_value_that_the_kernel_refuses(workshop: Machine, low: str) -> None:
    # Ephemeral ports must not reach below net.ipv4.ip_unprivileged_port_start.
    workshop.write(
        "/etc/triaged/policies.d/default.toml.d/ports.toml",
        '[[parameter]]\nkey = "net.ipv4.ip_local_port_range"\nvalue = "500 60999"\nwhy = "a test: no kernel grants it"\n',
    )
    workshop.run("systemctl reload triaged")
    key = "set-parameter:net.ipv4.ip_local_port_range:lasting"
    finding = finding_with(workshop, key)
    assert "the kernel refused 500 60999: invalid argument" in refused(workshop, finding["Id"], key)
    assert workshop.run("sysctl -n net.ipv4.ip_local_port_range").out.split() == ["32768", "60999"]
    workshop.run("rm -r /etc/triaged/policies.d/default.toml.d; systemctl reload triaged")


@ON_TRIXIE
def test_a_symbolic_link_where_the_drop_in_should_be(workshop: Machine, low: str) -> None:
    before = workshop.run("sha256sum /etc/passwd; ls -l /etc/passwd").out
    for make, take_away in (
        (f"ln -s /etc/passwd {DROP_IN}", f"rm {DROP_IN}"),
        ("mv /etc/sysctl.d /etc/real; ln -s /etc/real /etc/sysctl.d", "rm /etc/sysctl.d; mv /etc/real /etc/sysctl.d"),
    ):
        workshop.run(f"systemctl stop triaged-helper; {make}")
        name, text = refusal(workshop, "ApplyFix", low, LASTING, "{}")
        workshop.run(f"systemctl stop triaged-helper; {take_away}")
        assert (name, "is a symbolic link" in text) == ("FixRefused", True), text
        assert value(workshop) == LOW
    assert workshop.run("sha256sum /etc/passwd; ls -l /etc/passwd").out == before


@ON_TRIXIE
@pytest.mark.parametrize(("step", "count", "state", "verification"), [
    ("saved", 1, "failed", ""),
    ("written", 1, "failed", ""),
    ("written", 2, "applied", "not verified: interrupted"),
    ("applied", 1, "applied", "not verified: interrupted"),
    ("verified", 1, "verified", "verified: a process held "),
])  # fmt: skip
def test_a_helper_that_is_killed_while_it_applies(
    workshop: Machine, low: str, step: str, count: int, state: str, verification: str
) -> None:
    machine = workshop
    kill_at(machine, step, count)
    if state == "failed":
        name, text = refusal(machine, "ApplyFix", low, LASTING, "{}")
        assert (name, "interrupted" in text) == ("FixFailed", True), text
        assert "nothing was changed" not in text
    else:
        assert apply(machine, low, LASTING)["State"] == state
    is_so, because = the_truth(machine, low)
    assert (is_so, because[: len(verification)]) == (state, verification)
    if state != "failed":
        assert undo(machine, low)["State"] == "undone"
    assert (value(machine), machine.run(f"test -e {DROP_IN}", check=False).status) == (LOW, 1)


@ON_TRIXIE
@pytest.mark.parametrize("step", ["undoing", "put-back"])
def test_a_helper_that_is_killed_while_it_undoes(workshop: Machine, low: str, step: str) -> None:
    apply(workshop, low, LASTING)
    kill_at(workshop, step)
    assert undo(workshop, low)["State"] == "undone"
    assert the_truth(workshop, low)[0] == "undone"


@ON_TRIXIE
def test_a_daemon_that_is_killed_while_the_helper_applies(workshop: Machine, low: str) -> None:
    machine = workshop
    pid = machine.run("systemctl show --property=MainPID --value triaged").out.strip()
    kill_at(machine, "applied", pid=pid)
    words = f"busctl --timeout=60 call {MANAGER} ApplyFix 'ssa{{sv}}' {low} {LASTING} 0"
    assert machine.run(words, check=False).status
    machine.wait_until(
        "systemctl show --property=MainPID,ActiveState --value triaged",
        lambda done: "active" in done.out.split() and pid not in done.out.split(),
        timeout=90,
    )
    machine.wait_until(f"busctl --json=short call {MANAGER} ListFixes", lambda done: '"verified"' in done.out)
    assert the_truth(machine, low)[0] == "verified"
    assert [row["Id"] for row in ask(machine, "ListFindings", "a{sv}", "1", "state", "s", "all") if row["Id"] == low] == [low]
    assert undo(machine, low)["State"] == "undone"
    assert value(machine) == LOW


@ON_TRIXIE
def test_a_helper_that_is_killed_at_any_moment(workshop: Machine, low: str) -> None:
    machine = workshop
    machine.run("rm -f /run/systemd/system/triaged-helper.service.d/kill.conf; systemctl daemon-reload")
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    met = []
    for _ in range(4):
        ask(machine, "ListFixes")  # it is up
        after = moments.uniform(0.05, 0.9)
        call = f"busctl --timeout=60 call {MANAGER} ApplyFix 'ssa{{sv}}' {low} {LASTING} 0"
        machine.run(f"{call} >/dev/null 2>&1 & sleep {after:.3f}; systemctl kill --signal=KILL triaged-helper; wait")
        rows = fixes_of(machine, low)
        if not rows or rows[-1]["State"] in ("failed", "undone"):
            assert (value(machine), machine.run(f"test -e {DROP_IN}", check=False).status) == (LOW, 1), f"seed {seed}"
        else:
            the_truth(machine, low)
            assert undo(machine, low)["State"] == "undone", f"seed {seed}"
        met.append(rows[-1]["State"] if rows else "nothing")
    assert set(met) <= {"nothing", "failed", "undone", "applied", "verified"}, (seed, met)


def kill_at(machine: Machine, step: str, count: int = 1, pid: str = "0") -> None:
    """From the next call on: the helper, or the process `pid`, is killed when the step is done for the `count`-th time."""
    machine.write("/run/systemd/kill-at", f"{step} {count} {random.randrange(1 << 30)} {pid}\n")
    machine.write("/run/systemd/system/triaged-helper.service.d/kill.conf", IN_ITS_PLACE)
    machine.run("systemctl daemon-reload; systemctl stop triaged-helper")


def the_truth(machine: Machine, finding: str) -> tuple[Any, Any]:
    """State and verification of the newest fix; the host is as they say."""
    row = fixes_of(machine, finding)[-1]
    holds = row["State"] in ("applied", "verified")
    assert value(machine) == (HIGH if holds else LOW)
    text = machine.run(f"cat {DROP_IN}", check=False).out
    assert (f"{PARAMETER} = {HIGH}\n" in text) == holds
    records = machine.run("cat /var/lib/triaged-helper/*.json").out.replace("}\n{", "},\n{")
    (newest,) = [each for each in json.loads(f"[{records}]")[-1:]]
    assert newest["state"] == row["State"]
    return row["State"], row["Verification"]
