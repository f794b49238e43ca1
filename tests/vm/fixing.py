# SPDX-License-Identifier: Apache-2.0
"""Findings repaired over D-Bus inside a machine: with busctl where the answer counts, with gdbus where the error's name does."""
from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from image import HERE, cache_directory, unpack_go
from machine import Completed, Machine
from observe import MANAGER

ERROR = "org.triaged.Triage1.Error."
SOURCES = HERE / "fix_faults"
INSIDE = "/srv/limits"
TEST_BINARY = f"{INSIDE}/limits.test"
# bob may apply and undo; alice may not.
RULES = """polkit.addRule(function(action, subject) {
    if ((action.id == "org.triaged.apply-fix" || action.id == "org.triaged.undo-fix") && subject.user == "bob") {
        return polkit.Result.YES;
    }
});
"""


def compile_tests(directory: Path) -> Path:
    """The Go tests of fix_faults as one binary, compiled out here: inside it takes a minute."""
    binary = directory / "limits.test"
    cache = cache_directory()
    environment = os.environ | {
        "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0", "GOCACHE": str(cache / "go-build"),
    }
    go = unpack_go(cache) / "bin/go"
    for command in ([go, "vet", "."], [go, "test", "-c", "-o", binary, "."]):
        done = subprocess.run(command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return binary


def prepare(machine: Machine, binary: Path) -> None:
    """Brings the tests, with their sources, and the rule for bob into the machine."""
    machine.put(SOURCES, INSIDE)
    machine.put(binary, TEST_BINARY)
    machine.write("/etc/polkit-1/rules.d/50-bob.rules", RULES)


def go_test(machine: Machine, name: str, user: str = "alice") -> Completed:
    """Runs one of the tests."""
    return machine.run([TEST_BINARY, "-test.run", f"^{name}$"], user=user, check=False)


def plain(value: Any) -> Any:
    """What busctl prints as JSON, without the types of variants."""
    if isinstance(value, dict):
        if value.keys() == {"type", "data"}:
            return plain(value["data"])
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def ask(machine: Machine, member: str, signature: str = "", *values: str, user: str = "root") -> Any:
    """What a method of the Manager answers: the first value. Raises: AssertionError where it answers an error."""
    words = [*MANAGER.split(), member, *([signature, *values] if signature else [])]
    done = machine.run(["busctl", "--json=short", "--timeout=150", "call", *words], user=user, timeout=180)
    return plain(json.loads(done.out)["data"])[0] if done.out.strip() else None


def refusal(machine: Machine, member: str, *values: str, user: str = "root") -> tuple[str, str]:
    """The name (without what all have in common) and the text of the error that a method answers."""
    service, path, interface = MANAGER.split()
    words = ["gdbus", "call", "--system", "--timeout=150", "-d", service, "-o", path, "-m", f"{interface}.{member}", *values]
    done = machine.run(words, user=user, timeout=180, check=False)
    assert done.status == 1, str(done)
    match = re.match(r"Error: GDBus\.Error:([\w.]+): (.*)", done.err, re.DOTALL)
    assert match, str(done)
    return match.group(1).removeprefix(ERROR), match.group(2).strip()


def preview(machine: Machine, finding: str, key: str, user: str = "root") -> dict[str, Any]:
    """PreviewFix. Raises: AssertionError where it answers an error."""
    return dict(ask(machine, "PreviewFix", "ssa{sv}", finding, key, "0", user=user))


def apply(machine: Machine, finding: str, key: str, user: str = "root") -> dict[str, Any]:
    """ApplyFix. Raises: as `preview`."""
    return dict(ask(machine, "ApplyFix", "ssa{sv}", finding, key, "0", user=user))


def undo(machine: Machine, finding: str, key: str = "", user: str = "root") -> dict[str, Any]:
    """UndoFix. Raises: as `preview`."""
    return dict(ask(machine, "UndoFix", "ssa{sv}", finding, key, "0", user=user))


def finding_beginning(machine: Machine, key: str, rule: str) -> dict[str, Any]:
    """The open finding of the rule with a fix whose key begins so, waited for.

    Raises: AssertionError if there is none, or more than one.
    """
    look = f"busctl call {MANAGER} Refresh; busctl --json=short call {MANAGER} ListFindings 'a{{sv}}' 1 rule s {rule}"
    machine.wait_until(look, lambda done: f'"{key}' in done.out)
    rows = ask(machine, "ListFindings", "a{sv}", "1", "rule", "s", rule)
    found = [row for row in rows if any(fix["Key"].startswith(key) for fix in row["Fixes"])]
    assert len(found) == 1, found
    return found[0]


def finding_with(machine: Machine, key: str, rule: str = "sysctl.below-policy") -> dict[str, Any]:
    """The open finding of the rule that offers the fix, waited for. Raises: as `finding_beginning`."""
    finding = finding_beginning(machine, key, rule)
    assert key in [fix["Key"] for fix in finding["Fixes"]], finding
    return finding


def files_of_settings(machine: Machine) -> str:
    """Every file that a fix could have written, with what is in it."""
    return machine.run(
        "find /etc/sysctl.d /etc/systemd /run/systemd/system.control -type f -exec sha256sum {} + 2>/dev/null | sort -k 2"
    ).out


def fixes_of(machine: Machine, finding: str) -> list[dict[str, Any]]:
    """What ListFixes knows of the finding, oldest first."""
    return [row for row in ask(machine, "ListFixes") if row["Finding"] == finding]
