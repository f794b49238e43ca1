# SPDX-License-Identifier: Apache-2.0
"""The Debian package on Debian 12 and 13: what installing, upgrading and removing it does to a system."""
from __future__ import annotations

from pathlib import Path

from machine import Machine
from package import INSIDE

# Where a package may leave something, without what every dpkg run and every boot touches.
SNAPSHOT_OF_FILES = (
    r"find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /dev -o -path /tmp -o -path /var/tmp -o -path /var/log "
    r"-o -path /root -o -path /var/lib/dpkg -o -path /var/lib/systemd/timers -o -path /var/cache -o -path /srv \) -prune -o -print"
)


def test_installing_enables_and_starts_nothing_and_a_purge_leaves_nothing(bare: Machine, deb: Path) -> None:
    before = set(bare.run(SNAPSHOT_OF_FILES).out.splitlines())
    bare.put(deb, INSIDE)
    bare.run(["dpkg", "-i", INSIDE], timeout=300)
    assert bare.run("systemctl is-enabled triaged", check=False).out.strip() == "disabled"
    assert bare.run("systemctl is-active triaged", check=False).out.strip() == "inactive"
    bare.run("systemctl enable --now triaged", timeout=180)
    bare.run("echo '# mine' >/etc/triaged/triaged.toml.d/mine.toml")

    bare.run("dpkg --remove triaged", timeout=120)
    assert bare.run("systemctl is-active triaged", check=False).out.strip() == "inactive"
    assert bare.run("pgrep -u triaged", check=False).out == ""
    bare.run("ls -d /etc/triaged/triaged.toml.d/mine.toml /var/lib/triaged")  # only a purge removes what was written

    bare.run("dpkg --purge triaged", timeout=120)
    after = set(bare.run(SNAPSHOT_OF_FILES).out.splitlines())
    # Backups of the user database are the system's own.
    assert {name for name in after - before if not name.startswith("/etc/") or not name.endswith("-")} == set()
    assert bare.run("busctl --system list --activatable | grep -c triaged", check=False).out.strip() == "0"


def test_debsums_of_an_installed_package_are_right(machine: Machine) -> None:
    assert machine.run("dpkg --verify triaged").out == ""


def test_an_upgrade_restarts_the_running_service(machine: Machine) -> None:
    before = machine.run("systemctl show --property=MainPID --value triaged").out
    machine.run(["dpkg", "-i", INSIDE], timeout=300)
    assert machine.run("systemctl is-enabled triaged").out.strip() == "enabled"
    machine.wait_until("systemctl is-active triaged", lambda done: done.out.strip() == "active")
    assert machine.run("systemctl show --property=MainPID --value triaged").out != before


def test_the_unit_that_runs_is_as_closed_as_the_file_says(machine: Machine) -> None:
    exposure = machine.run("systemd-analyze security --no-pager triaged.service | tail -n 1").out
    assert float(exposure.split(":")[1].split()[0]) <= 2.0
    pid = machine.run("systemctl show --property=MainPID --value triaged").out.strip()
    status = machine.run(["cat", f"/proc/{pid}/status"]).out
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    # CAP_NET_ADMIN 12, CAP_DAC_READ_SEARCH 2, CAP_SYS_PTRACE 19, CAP_SYSLOG 34, CAP_AUDIT_READ 37
    expected = sum(1 << bit for bit in (2, 12, 19, 34, 37))
    assert {int(fields[name], 16) for name in ("CapEff", "CapBnd", "CapAmb")} == {expected}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert fields["Uid"].split()[0] != "0"
