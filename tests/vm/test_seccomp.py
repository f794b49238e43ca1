# SPDX-License-Identifier: Apache-2.0
"""seccomp on Debian 12 and 13: filters read by the helper of the package, silent refusals found, a unit's filter repaired."""
from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from image import cache_directory, unpack_go
from machine import Machine
from observe import MANAGER, entries, findings, wait_for_finding

FAULTS = Path(__file__).with_name("seccomp_faults")
BINARIES = "/opt/faults"


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test binaries of seccomp_faults: compiled out here, in there that would take minutes."""
    go = unpack_go(cache_directory()) / "bin/go"
    directory = tmp_path_factory.mktemp("seccomp-faults")
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0",
                   "GOCACHE": str(cache_directory() / "go-build")}  # fmt: skip
    for package in ("memfile", "userns"):
        argv = [go, "test", "-c", "-o", directory / f"{package}.test", f"./{package}"]
        subprocess.run(argv, cwd=FAULTS, env=environment, check=True)
    return directory


@pytest.fixture
def faulty(machine: Machine, binaries: Path) -> Machine:
    machine.put(binaries, BINARIES)
    machine.run(f"chmod 755 {BINARIES} {BINARIES}/*")
    return machine


def call(machine: Machine, member: str, *arguments: str, user: str = "root", check: bool = True) -> Any:
    """A method of the Manager, as busctl calls it; the answer's data, or what was said instead."""
    argv = ["busctl", "--json=short", "--timeout=140", "call", *MANAGER.split(), member, *arguments]
    done = machine.run(argv, user=user, timeout=150, check=check)
    return json.loads(done.out)["data"] if done.status == 0 else done.err


def test_a_units_filter_that_breaks_a_go_test_is_named_repaired_verified_and_put_back(faulty: Machine) -> None:
    faulty.write("/etc/systemd/system/ci-tests.service", (
        f"[Service]\nType=oneshot\nExecStart={BINARIES}/memfile.test -test.v\n"
        "SystemCallFilter=~memfd_create swapoff\n"  # without SystemCallErrorNumber=: killed, and recorded
    ))
    faulty.run("systemctl daemon-reload")
    start = "systemctl start ci-tests; s=$?; journalctl -u ci-tests -o cat --no-pager; exit $s"
    failed = faulty.run(start, timeout=120, check=False)
    assert failed.status != 0
    assert "status=31/SYS" in failed.out

    finding = wait_for_finding(faulty, "seccomp.denied", timeout=60)
    assert "memfd_create" in finding["summary"]
    assert finding["subject"]["unit"] == "ci-tests.service"
    key = "set-unit-setting:ci-tests.service:SystemCallFilter"
    assert key in [fix["key"] for fix in finding["fixes"]]

    (preview,) = call(faulty, "PreviewFix", "ssa{sv}", finding["id"], key, "0")
    told = {name: value["data"] for name, value in preview.items()}
    assert (told["Old"], told["New"], told["Obstacle"]) == ("memfd_create refused", "memfd_create allowed", "")
    assert "+SystemCallFilter=memfd_create" in told["Diff"]
    assert faulty.run("ls /etc/systemd/system/ci-tests.service.d 2>&1", check=False).status != 0  # a look changes nothing

    (outcome,) = call(faulty, "ApplyFix", "ssa{sv}", finding["id"], key, "0")
    applied = {name: value["data"] for name, value in outcome.items()}
    assert applied["State"] == "verified", applied
    assert "let memfd_create through (before: memfd_create was killed by the filter)" in applied["Verification"]
    assert faulty.run("systemctl start ci-tests", timeout=120).status == 0
    assert faulty.run("systemctl show -p SystemCallFilter --value ci-tests").out == "~swapoff\n"

    (outcome,) = call(faulty, "UndoFix", "ssa{sv}", finding["id"], key, "0")
    assert outcome["State"]["data"] == "undone"
    assert faulty.run("test -e /etc/systemd/system/ci-tests.service.d", check=False).status != 0
    failed = faulty.run(start, timeout=120, check=False)
    assert failed.status != 0


def test_an_allow_list_gets_a_call_more_and_a_unit_without_one_gets_none(faulty: Machine) -> None:
    service = f"[Service]\nType=oneshot\nExecStart={BINARIES}/memfile.test -test.v\n"
    faulty.write("/etc/systemd/system/ci-list.service", service + (
        "SystemCallFilter=@system-service\nSystemCallFilter=~memfd_create\n"
    ))
    # The same refusal, but by a filter of the program's own (as far as systemd can see).
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["memfd_create"], "action": "SCMP_ACT_ERRNO"}]}
    faulty.write("/etc/deny.json", json.dumps(profile))
    command = f"/usr/bin/triagectl seccomp run --log --profile /etc/deny.json -- {BINARIES}/memfile.test -test.v"
    faulty.write("/etc/systemd/system/ci-own.service", f"[Service]\nType=oneshot\nExecStart={command}\n")
    faulty.run("systemctl daemon-reload; systemctl start ci-list; systemctl start ci-own", timeout=200, check=False)

    def both(done: Any) -> bool:
        return "ci-list.service" in done.out and "ci-own.service" in done.out

    faulty.wait_until("triagectl list --rule seccomp.denied --json", both, timeout=60)
    by_unit = {finding["subject"]["unit"]: finding for finding in findings(faulty) if finding["rule"] == "seccomp.denied"}

    key = "set-unit-setting:ci-list.service:SystemCallFilter"
    (outcome,) = call(faulty, "ApplyFix", "ssa{sv}", by_unit["ci-list.service"]["id"], key, "0")
    assert outcome["State"]["data"] == "verified", outcome
    assert faulty.run("systemctl start ci-list", timeout=120).status == 0

    said = call(
        faulty, "ApplyFix", "ssa{sv}", by_unit["ci-own.service"]["id"], "set-unit-setting:ci-own.service:SystemCallFilter", "0",
        check=False,
    )
    assert "sets no SystemCallFilter=" in said
    assert faulty.run("test -e /etc/systemd/system/ci-own.service.d", check=False).status != 0


def test_a_go_test_that_fails_as_in_a_container_is_found_by_itself_and_inspected_on_request(faulty: Machine) -> None:
    # Docker's default profile, which records nothing; the shell stands for the container's own.
    faulty.run(
        "systemd-run --quiet --unit=box -E TAKE=3s triagectl seccomp run --profile docker-26.1 --caps none -- "
        f"sh -c '{BINARIES}/userns.test -test.v; s=$?; sleep 90; exit $s'",
    )
    finding = wait_for_finding(faulty, "seccomp.silent-denials", timeout=90)
    assert "operation not permitted" in faulty.run("journalctl -u box -o cat --no-pager").out
    assert finding["kind"] == "risk"
    assert finding["subject"]["unit"] == "box.service"
    told = {name: str(item["value"]) for name, item in finding["evidence"].items()}
    packages = " ".join(text for name, text in told.items() if name.startswith("packages "))
    assert "clone(CLONE_NEWUSER) returns EPERM: a package that uses SysProcAttr.Cloneflags with CLONE_NEWUSER fails" in packages
    assert "clone3 (ERRNO(ENOSYS))" in told["refused and done without"]
    assert not [other for other in findings(faulty) if other["rule"] == "seccomp.denied"]
    assert not [entry for entry in entries(faulty, "--unit=triaged", "--priority=warning") if "Traceback" in entry["MESSAGE"]]

    pid = faulty.run("pgrep -f '^sleep 90'").out.strip()
    process, filters, calls, consequences = call(faulty, "InspectSeccomp", "ua{sv}", pid, "1", "workload", "s", "go-test,go-cgo")
    assert process["Mode"]["data"] == "filter"
    assert process["Works"]["data"] is True
    assert len(filters) == 1
    assert {row["Outcome"]["data"] for row in calls if row["Call"]["data"] == "futex"} == {"allowed"}
    assert "clone3 returns ENOSYS: go-cgo does without" in consequences
    # Of root's process another user learns nothing; of an own one everything but the instructions.
    said = faulty.run(["busctl", "call", *MANAGER.split(), "InspectSeccomp", "ua{sv}", pid, "0"], user="alice", check=False)
    assert said.status != 0
    assert "org.triaged.inspect-process" in said.err


def test_the_source_is_active_and_its_helper_has_no_filter_of_its_own(machine: Machine) -> None:
    sources = json.loads(machine.run("triagectl status --json").out)["sources"]
    assert [source["state"] for source in sources if source["name"] == "seccomp-filters"] == ["active"]
    call(machine, "InspectSeccomp", "ua{sv}", machine.run("systemctl show -p MainPID --value triaged").out.strip(), "0")
    helper = machine.run("systemctl show -p MainPID --value triaged-helper").out.strip()
    assert machine.run(f"grep Seccomp: /proc/{helper}/status").out.split() == ["Seccomp:", "0"]
