# SPDX-License-Identifier: Apache-2.0
"""What a person sees of triaged from inside a machine: findings, signals on the bus, entries of the journal."""
from __future__ import annotations

import json
from typing import Any

from machine import Completed, Machine

MANAGER = "org.triaged.Triage1 /org/triaged/Triage1 org.triaged.Triage1.Manager"
LIST_FINDINGS = f"busctl call {MANAGER} ListFindings a{{sv}} 0"  # word for word as the README has it
SIGNALS = "/run/watched-signals"


def watch_signals(machine: Machine) -> None:
    """Records every signal of triaged from now on, as busctl sees it."""
    machine.run(
        f"systemd-run --quiet --unit=watch -p StandardOutput=file:{SIGNALS} busctl --json=short monitor "
        "--match=type=signal,interface=org.triaged.Triage1.Manager --match=type=signal,interface=org.example.Watching"
    )
    # Not every version says when it listens: it does when it hears.
    machine.wait_until(f"busctl emit / org.example.Watching Heard; cat {SIGNALS}", lambda done: "Heard" in done.out)


def signals(machine: Machine, member: str) -> list[dict[str, Any]]:
    """The recorded signals of one name, oldest first."""
    # systemd 252 says "Monitoring bus message stream." in between.
    messages = [json.loads(line) for line in machine.get(SIGNALS).splitlines() if line.startswith(b"{")]
    return [message for message in messages if message["member"] == member]


def findings(machine: Machine, user: str = "root") -> list[dict[str, Any]]:
    """The open findings as `triagectl list --json` gives them."""
    done = machine.run(["triagectl", "list", "--json"], user=user, check=False)
    assert done.status in (0, 1), str(done)
    return list(json.loads(done.out)["findings"])


def wait_for_finding(machine: Machine, rule: str, timeout: float = 30.0) -> dict[str, Any]:
    """The open finding of the rule. Raises: AssertionError if there is none in time, or more than one."""

    def has_rule(done: Completed) -> bool:
        return any(finding["rule"] == rule for finding in json.loads(done.out or '{"findings": []}')["findings"])

    done = machine.wait_until("triagectl list --json", has_rule, timeout=timeout)
    found = [finding for finding in json.loads(done.out)["findings"] if finding["rule"] == rule]
    assert len(found) == 1, found
    return dict(found[0])


def entries(machine: Machine, *matches: str) -> list[dict[str, Any]]:
    """Journal entries with all their fields."""
    done = machine.run(["journalctl", "--output=json", "--all", "--no-pager", *matches])
    return [json.loads(line) for line in done.out.splitlines()]


def seconds_between(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    """From when one entry came into being to when the other did: what the kernel stamped, or else what journald stamped."""

    def microseconds(entry: dict[str, Any]) -> int:
        return int(entry.get("_SOURCE_MONOTONIC_TIMESTAMP") or entry["__MONOTONIC_TIMESTAMP"])

    return (microseconds(later) - microseconds(earlier)) / 1e6


def go_test(package: str, *, unit: str = "run-tests", options: str = "", environment: str = "") -> str:
    """A command line: `go test` of a package of faults in a transient scope or service of its own.

    The environment and HOME go to it by env: a scope takes them from its caller, a service does not.
    """
    return (
        f"cd /srv/faults && systemd-run --quiet --scope --unit={unit} {options} "
        f"env HOME=/root {environment} go test -count=1 ./{package}"
    )


