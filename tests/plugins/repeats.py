# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: in CI, what failed on a real kernel, bus or machine is run once more, in sight of all.

Thousands of tests there ask a kernel that is shared with others, or a machine that is emulated, and depend on who is scheduled
when. One that fails and then passes does not fail the run, but its first failure is printed whole at the end: it is a defect
of the test or of triaged all the same. More of them than `MOST` fail the run, and what fails twice does. Elsewhere than in CI
nothing is repeated; tests that ask nobody but the code (rules, model, ...) never are.
"""
from __future__ import annotations

import os

import pytest

PLACES = ("tests/bus/", "tests/corpus/", "tests/kernel/", "tests/run/", "tests/vm/")
MOST = 4


class Repeats:
    """Marks what may be repeated, and tells what was."""

    def __init__(self) -> None:
        self.repeated: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.nodeid.startswith(PLACES):
                item.add_marker(pytest.mark.flaky(reruns=1, reruns_delay=1))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if str(report.outcome) == "rerun":
            self.repeated[report.nodeid] = report.longreprtext

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if len(self.repeated) > MOST and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.repeated:
            return
        terminalreporter.section("run once more, with the first failure")
        for nodeid, text in self.repeated.items():
            terminalreporter.write_line(f"REPEATED: {nodeid}", yellow=True)
            terminalreporter.write_line(text)
        if len(self.repeated) > MOST:
            terminalreporter.write_line(f"FAILED: {len(self.repeated)} tests had to be repeated, {MOST} may", red=True)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI"):
        config.pluginmanager.register(Repeats(), "triaged-repeats")
