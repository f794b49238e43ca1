# SPDX-License-Identifier: Apache-2.0
"""What tests of cgroups do inside a machine: Go tests at their limits in scopes, and findings with their evidence."""
from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from image import cache_directory, unpack_go
from machine import Machine
from observe import wait_for_finding

FAULTS = Path(__file__).resolve().parent / "cgroup_faults"
INSIDE = "/opt/cgroups.test"


def build_faults(directory: Path) -> Path:
    """The test binary of cgroup_faults, static, by the machines' own toolchain. Built outside: that is ten times faster."""
    binary = directory / "cgroups.test"
    environment = os.environ | {
        "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "-mod=mod", "GOCACHE": str(directory / "cache"),
    }
    go = unpack_go(cache_directory()) / "bin/go"
    subprocess.run([go, "test", "-c", "-o", binary, "."], cwd=FAULTS, env=environment, check=True, stdin=subprocess.DEVNULL)
    return binary


def fault(name: str, *, take: str = "60s", environment: str = "") -> str:
    """The command line of one test of cgroup_faults."""
    return f"env TAKE={take} {environment} {INSIDE} -test.run={name} -test.v"


def in_scope(command: str, *, unit: str = "run-tests", options: str = "") -> str:
    """The command line in a transient scope."""
    return f"systemd-run --quiet --scope --unit={unit} {options} {command}"


def start(machine: Machine, command: str) -> None:
    """Starts it in the background. It ends with the machine, or by `systemctl stop` of its unit."""
    machine.run(["sh", "-c", 'setsid sh -c "$0" >/run/output 2>&1 </dev/null &', command])


def drop_in(machine: Machine, unit: str, *settings: str) -> str:
    """A drop-in of the unit; the file that has it."""
    path = f"/run/systemd/system/{unit}.d/limit.conf"
    machine.write(path, "\n".join([f"[{unit.rsplit('.', 1)[1].capitalize()}]", *settings, ""]))
    machine.run("systemctl daemon-reload")
    return path


def evidence(finding: dict[str, Any]) -> dict[str, Any]:
    """Name and value of each piece of evidence."""
    return {name: item["value"] for name, item in finding["evidence"].items()}


def wait_and_say(machine: Machine, rule: str, timeout: float = 40.0) -> tuple[dict[str, Any], dict[str, Any]]:
    """The finding of the rule, and its evidence."""
    finding = wait_for_finding(machine, rule, timeout)
    return finding, evidence(finding)


def is_at_limit(said: dict[str, Any], limit: int) -> bool:
    """Whether the memory of a kill's evidence is as much as `limit` (bytes).

    A page that the limit is about to refuse is counted for a moment, and each processor charges some ahead.
    """
    in_use, told_limit = map(int, re.findall(r"(\d+) bytes in use of (\d+)", said["memory at that moment"])[0])
    return told_limit == limit and abs(in_use - limit) <= 1 << 20


def all_findings(machine: Machine, rule: str) -> list[dict[str, Any]]:
    """The open findings of the rule."""
    done = machine.run(["triagectl", "list", "--json", "--rule", rule], check=False)
    assert done.status in (0, 1), str(done)
    return [finding for finding in json.loads(done.out)["findings"] if finding["rule"] == rule]
