# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import parse_cgroups
from triaged.run.command import Remains, RunningCommand, give_back_signals, hold_signals, read_remains


def test_when_it_has_ended_the_kernel_still_knows_it() -> None:
    mask = hold_signals()
    try:
        command = RunningCommand("/bin/true", ("true",), (-1, -1), mask)
        command.release()
        seen: list[tuple[str, Remains]] = []
        status = command.wait(
            lambda: None, lambda: None, lambda signal, sender: False,
            lambda: seen.append((Path(f"/proc/{command.pid}/stat").read_text(), read_remains(KernelPaths(), command.pid))),
        )
    finally:
        give_back_signals(mask)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(seen) == 1
    assert seen[0][0].startswith(f"{command.pid} (true) Z ")
    layout = read_layout(KernelPaths())
    own = parse_cgroups(Path("/proc/self/cgroup").read_bytes())
    assert seen[0][1].cgroups == (own if all(each.is_v2 for each in layout.hierarchies) else {})
    assert not os.path.exists(f"/proc/{command.pid}")


def test_while_it_runs_the_place_of_it_may_be_looked_at() -> None:
    mask = hold_signals()
    ticks: list[bool] = []
    try:
        command = RunningCommand("/bin/sleep", ("sleep", "1.2"), (-1, -1), mask)
        command.release()
        command.wait(
            lambda: None, lambda: None, lambda signal, sender: False,
            on_tick=lambda: ticks.append(os.path.exists(f"/proc/{command.pid}")),
        )
    finally:
        give_back_signals(mask)
    assert ticks
    assert all(ticks)
