# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: counts what was skipped by its reason, and in CI fails a run that skipped what nobody agreed to.

tests/allowed-skips lists what may be skipped in CI, a line each: a glob of test ids, white space, and why it is all right.
"""
from __future__ import annotations

import os
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ALLOWED = Path(__file__).resolve().parents[1] / "allowed-skips"


def read_allowed(path: Path = ALLOWED) -> dict[str, str]:
    """The globs of test ids that may be skipped, each with its reason. Raises: ValueError for a line without a reason."""
    allowed = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            glob, _, reason = line.partition(" ")
            if not reason.strip():
                raise ValueError(f"{path}:{number}: {glob} has no reason")
            allowed[glob] = reason.strip()
    return allowed


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What the test or the module said when it skipped."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr)


class Skips:
    """Collects the skips of one run."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped[report.nodeid] = reason_of(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped[report.nodeid] = reason_of(report)

    def not_allowed(self) -> dict[str, str]:
        """Test id -> reason, of those that no line of the list matches."""
        allowed = read_allowed()
        return {
            nodeid: reason for nodeid, reason in self.skipped.items() if not any(fnmatchcase(nodeid, glob) for glob in allowed)
        }

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if os.environ.get("CI") and self.not_allowed() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, by reason")
            for reason, count in Counter(self.skipped.values()).most_common():
                terminalreporter.write_line(f"{count:4} {reason}")
        if os.environ.get("CI"):
            for nodeid, reason in self.not_allowed().items():
                terminalreporter.write_line(f"FAILED: no line in tests/allowed-skips for {nodeid}: {reason}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Skips(), "triaged-skips")
