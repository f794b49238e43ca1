# SPDX-License-Identifier: Apache-2.0
"""How a process came to be where it is, told from its ancestors."""
from __future__ import annotations

import pytest

from triaged.model.way import Arrival, Step, Way, words

INIT = Step(1, "systemd", "/usr/lib/systemd/systemd", "/init.scope")
CRON = Step(50, "cron", "/usr/sbin/cron", "/system.slice/cron.service")
SHELL = Step(60, "bash", "/bin/bash", "/user.slice/user-0.slice/session-1.scope")
RUN = "/ci.slice/run-r0a1b.scope"


def go(cgroup: str) -> Step:
    return Step(99, "go", "/usr/local/go/bin/go", cgroup)


@pytest.mark.parametrize(
    ("way", "arrival", "started_by"),
    [
        (Way((go(CRON.cgroup), CRON, INIT)), Arrival.STARTED, "cron, service cron.service"),
        (Way((go("/default.slice/run-r0a1b.scope"), SHELL)), Arrival.STARTED, "systemd-run --scope"),
        (Way((go("/default.slice/run-p12-i13.scope"), SHELL)), Arrival.STARTED, "systemd-run --scope"),
        (
            Way((go("/default.slice/tests.scope"), SHELL)), Arrival.STARTED,
            "systemd-run --scope, or another that asked systemd for a scope",
        ),
        (Way((go("/default.slice"), Step(70, "bash", "/bin/bash", RUN))), Arrival.LEFT, ""),
        (Way((go("/system.slice/a.service"), Step(70, "bash", "/bin/bash", RUN))), Arrival.LEFT, "service a.service"),
        (Way((go("/default.slice"), Step(70, "bash", "/bin/bash", "/default.slice"), INIT)), Arrival.UNKNOWN, ""),
        (Way((go("/"), Step(1, "init", "/sbin/init", "/"))), Arrival.INHERITED, ""),
        (Way((go("/default.slice"),)), Arrival.UNKNOWN, ""),
        (Way((go("/default.slice"), Step(70, "bash", "/bin/bash", "/default.slice"), SHELL), executed_in=RUN), Arrival.MOVED, ""),
        (Way((go("/default.slice"), Step(8, "sudo", "/usr/bin/sudo", SHELL.cgroup))), Arrival.LEFT, "sudo"),
        (Way((go("/system.slice/x.scope"), Step(8, "containerd-shim", "/bin/x", "/system.slice/d.service"))), Arrival.STARTED,
         "container runtime"),
    ],
)
def test_the_way_tells_how_it_got_there(way: Way, arrival: Arrival, started_by: str) -> None:
    assert way.arrival is arrival
    assert way.started_by == started_by


def test_a_cut_name_of_a_runner_is_recognised() -> None:
    assert Step(5, "Runner.Listener"[:15], "", "/x").starter == "CI runner"
    assert Step(5, "bash", "/bin/bash", "/x").starter == ""


def test_the_words_begin_at_the_outermost() -> None:
    assert words((go("/default.slice"), SHELL)) == (
        "bash[60] in /user.slice/user-0.slice/session-1.scope > go[99] in /default.slice"
    )
