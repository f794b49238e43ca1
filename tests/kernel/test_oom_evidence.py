# SPDX-License-Identifier: Apache-2.0
"""What a finding about a real OOM kill says besides who was killed: the minute before, the moment, and the files afterwards."""
from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from own_cgroups import LIMIT_BYTES, NobodyKnown, Watching, eat_in, limit_memory, make_below, need_log, remove

from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.memory_detail import limited_paths, read_memory_detail, read_memory_sample
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import OomFacts
from triaged.model.limit import Unknown
from triaged.model.verdict import Problem
from triaged.model.workload import ProcessPattern, WorkloadDefinition
from triaged.rules.memory import cgroup_oom_kill
from triaged.sources.cgroups import CgroupEvents
from triaged.sources.kernel_log import KernelLog
from triaged.sources.ledger import Ledger
from triaged.sources.memory_history import MemoryHistory
from triaged.sources.workload_cgroups import WorkloadCgroups

Make = Callable[[str, str], tuple[Hierarchy, str, Path]]
PATHS = KernelPaths()
EATERS = WorkloadDefinition("eaters", "Programs that take memory", (ProcessPattern("eater", ("eater.test",)),))
# Takes 4 MiB every 0.6 s: about 4 s until 32 MiB are full.
_GROWS = "import time\nkept = []\nwhile True:\n    kept.append(bytearray(4 << 20))\n    time.sleep(0.6)"


def kills(watching: Watching, path: str) -> list[OomFacts]:
    """Those in the test's own cgroups: others on this machine have theirs."""
    return [fact for fact in watching.about(path) if isinstance(fact, OomFacts)]


def evidence(fact: OomFacts) -> dict[str, object]:
    verdict = cgroup_oom_kill.judge(fact)
    assert isinstance(verdict, Problem)
    return {item.name: item.value for item in verdict.evidence}


def start_eater(where: Path, directory: Path) -> subprocess.Popen[bytes]:
    """A process of the workload, in the cgroup before it executes."""
    program = where / "eater.test"
    shutil.copy(os.path.realpath(sys.executable), program)

    def enter() -> None:
        (directory / "cgroup.procs").write_text("0")

    return subprocess.Popen([program, "-c", _GROWS], preexec_fn=enter)


async def test_a_watched_cgroup_has_its_last_minute_in_the_finding(own_cgroup: Make, tmp_path: Path) -> None:
    hierarchy, path, directory = own_cgroup("memory", "watched")
    limit_memory(hierarchy, directory)
    ledger, history, table = Ledger(), MemoryHistory(), ProcessTable(PATHS, [EATERS])
    events = CgroupEvents(PATHS, table, ledger=ledger, history=history)
    log, looks = KernelLog(PATHS, table, ledger, history), WorkloadCgroups(PATHS, table, history)

    async with Watching(log, events, looks) as watching:
        await need_log(log)
        assert history.watched == ()
        eater = start_eater(tmp_path, directory)
        try:
            table.read(eater.pid)
            assert await asyncio.to_thread(eater.wait, 30) == -9
        finally:
            eater.kill()
            eater.wait()
        await watching.until(lambda: bool(kills(watching, path)))
    (fact,) = kills(watching, path)
    used = [sample.used_bytes for sample in fact.samples]
    assert len(used) >= 3
    assert used == sorted(used)
    assert used[0] < LIMIT_BYTES / 2 < used[-1] <= LIMIT_BYTES
    gaps = [later.at_usec - earlier.at_usec for earlier, later in zip(fact.samples, fact.samples[1:], strict=False)]
    assert min(gaps) > 500_000, "sampled more often than once a second"
    said = evidence(fact)
    assert str(said["memory in the minute before"]).count(" MiB") >= 3
    assert "before: " in str(said["last sample"])
    assert fact.owner is not None
    assert fact.owner.cgroup.path == path


async def test_an_unwatched_cgroup_has_no_samples_but_the_moment_and_what_came_after(own_cgroup: Make) -> None:
    hierarchy, path, directory = own_cgroup("memory", "unwatched")
    limit_memory(hierarchy, directory)
    ledger, history = Ledger(), MemoryHistory()
    log = KernelLog(PATHS, NobodyKnown(), ledger, history)
    async with Watching(log, CgroupEvents(PATHS, NobodyKnown(), ledger=ledger, history=history)) as watching:
        await need_log(log)
        pid = await asyncio.to_thread(eat_in, directory, "one, two")
        await watching.until(lambda: bool(kills(watching, path)))
    (fact,) = kills(watching, path)
    assert fact.samples == ()
    assert fact.report is not None
    used = fact.report.used_bytes
    # A page that the limit is about to refuse is counted for a moment, and each processor charges some ahead.
    assert isinstance(used, int)
    assert abs(used - LIMIT_BYTES) <= 1 << 20
    assert fact.report.limit == LIMIT_BYTES
    assert [(task.pid, task.comm) for task in fact.report.tasks] == [(pid, "one, two")]
    said = evidence(fact)
    assert f"{used} bytes in use of {LIMIT_BYTES}" in str(said["memory at that moment"])
    assert str(said["tasks by memory"]).startswith(f"one, two[{pid}] ")
    assert int(str(said["peak"])) >= LIMIT_BYTES * 0.9
    assert "memory in the minute before" not in said
    assert "no unit's" in str(said["limit comes from"])
    if not hierarchy.is_v2:
        assert said["under_oom"] == "0, as always after a kill: it says nothing about it"
        assert str(said["times at the limit"]).isdecimal()  # 0 where memory and swap share a limit
    else:
        assert said["oom.group"] == "0: one process at a time"


async def test_of_a_cgroup_that_vanished_the_log_still_tells_the_limit(own_cgroup: Make) -> None:
    hierarchy, path, top = own_cgroup("memory", "vanishing")
    directory = make_below(hierarchy, "memory", top, "leaf")
    limit_memory(hierarchy, directory, 16 << 20)
    log = KernelLog(PATHS, NobodyKnown(), Ledger())
    async with Watching(log) as watching:
        await need_log(log)
        # Blocks the loop on purpose: when the line is read, the cgroup is gone.
        eat_in(directory)
        remove(directory)
        await watching.until(lambda: bool(kills(watching, path)))
    (fact,) = kills(watching, path)
    assert fact.owner is not None
    assert fact.owner.limit == 16 << 20
    assert fact.detail is None


def test_the_files_are_read_as_they_are_on_this_layout(own_cgroup: Make, layout: CgroupLayout) -> None:
    hierarchy, path, directory = own_cgroup("memory", "files")
    assert limited_paths(layout, path) == ()
    limit_memory(hierarchy, directory)
    assert limited_paths(layout, f"{path}/below/it") == (path,)
    detail = read_memory_detail(hierarchy, path)
    assert detail.used_bytes == 0
    assert isinstance(detail.under_oom, Unknown) == hierarchy.is_v2
    assert isinstance(detail.is_group, Unknown) != hierarchy.is_v2
    sample = read_memory_sample(hierarchy, path)
    assert sample.used_bytes == 0
    assert sample.at_usec > 0


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    made = tmp_path / "gone"
    detail = read_memory_detail(Hierarchy("", str(made), "/", frozenset({"memory"})), "/a")
    assert all(isinstance(value, Unknown) for value in (detail.used_bytes, detail.peak_bytes, detail.swap_limit, detail.is_group))
    os.makedirs(made / "b")
    (made / "b" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 1\noom_kill 1\n")
    detail = read_memory_detail(Hierarchy("memory", str(made), "/", frozenset({"memory"})), "/b")
    assert detail.under_oom is True


@pytest.mark.parametrize("version", ["", "memory"])
def test_swap_is_told_apart_on_both_versions(tmp_path: Path, version: str) -> None:
    directory = tmp_path / "a"
    directory.mkdir()
    files = {
        "": {"memory.current": "100", "memory.swap.current": "30", "memory.swap.max": "max"},
        "memory": {"memory.usage_in_bytes": "100", "memory.memsw.usage_in_bytes": "130", "memory.memsw.limit_in_bytes": "400"},
    }[version]
    for name, text in files.items():
        (directory / name).write_text(text + "\n")
    hierarchy = Hierarchy(version, str(tmp_path), "/", frozenset({"memory"}))
    detail = read_memory_detail(hierarchy, "/a")
    assert detail.swap_used_bytes == 30
    assert detail.swap_counts_memory == bool(version)
    assert read_memory_sample(hierarchy, "/a").swap_bytes == 30
