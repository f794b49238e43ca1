# SPDX-License-Identifier: Apache-2.0
"""Real quotas in cgroups of the test's own, above real Go test binaries that keep every CPU busy.

Needs root, a hierarchy with the cpu controller in which cgroups may be made, and a Go toolchain.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.cpu_quota import read_quotas
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import CpuFacts
from triaged.model.verdict import Fine, Problem
from triaged.model.workload import ProcessPattern, WorkloadDefinition
from triaged.rules.cpu import cpu_throttled
from triaged.sources.source import SourceState
from triaged.sources.workload_cgroups import WorkloadCgroups

PATHS = KernelPaths()
GO_TEST = WorkloadDefinition("go-test", "Go tests", (ProcessPattern("test-binary", ("*.test",), arguments=("-test.*",)),))
_BUSY = """package busy

import "testing"

func TestBusy(t *testing.T) {
	for range 4 {
		go func() {
			for {
			}
		}()
	}
	select {}
}
"""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test binary that keeps GOMAXPROCS CPUs busy."""
    if shutil.which("go") is None:
        pytest.skip("needs a Go toolchain in PATH")
    directory = tmp_path_factory.mktemp("busy")
    (directory / "go.mod").write_text("module example.org/busy\n\ngo 1.25\n")
    (directory / "busy_test.go").write_text(_BUSY)
    binary = directory / "busy.test"
    subprocess.run(["go", "test", "-c", "-o", binary, "."], cwd=directory, check=True, capture_output=True)
    return binary


@pytest.fixture
def nested(layout: CgroupLayout) -> Iterator[Callable[[str], tuple[Path, Path]]]:
    """Makes an own cgroup with one below it, in the hierarchy of a controller; gives their directories."""
    made: list[Path] = []

    def make(controller: str) -> tuple[Path, Path]:
        hierarchy = layout.holding(controller)
        if hierarchy is None:
            pytest.skip(f"no hierarchy here has the {controller} controller")
        outer = Path(hierarchy.directory(f"/triaged-quota-{os.getpid()}"))
        try:
            outer.mkdir()
        except PermissionError:
            pytest.skip("making cgroups needs root")
        made.append(outer)
        if hierarchy.is_v2:
            (outer / "cgroup.subtree_control").write_text(f"+{controller}")
        inner = outer / "inner"
        inner.mkdir()
        made.append(inner)
        return outer, inner

    yield make
    until = time.monotonic() + 5
    for directory in reversed(made):
        while directory.exists():
            with contextlib.suppress(OSError):
                directory.rmdir()
            assert time.monotonic() < until, f"{directory} stays busy"


@contextlib.contextmanager
def running(binary: Path, directory: Path, **environment: str) -> Iterator[int]:
    """The binary at work in a cgroup; its pid."""

    def enter() -> None:
        (directory / "cgroup.procs").write_text("0")

    process = subprocess.Popen([binary, "-test.run=Busy"], env=environment, preexec_fn=enter)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def set_quota(directory: Path, percent: int) -> None:
    if (directory / "cpu.max").exists():
        (directory / "cpu.max").write_text(f"{percent * 1000} 100000" if percent > 0 else "max 100000")
    else:
        (directory / "cpu.cfs_quota_us").write_text(str(percent * 1000) if percent > 0 else "-1")


def looked(table: ProcessTable) -> tuple[WorkloadCgroups, list[CpuFacts]]:
    source = WorkloadCgroups(PATHS, table)
    return source, [fact for fact in source.snapshot() if isinstance(fact, CpuFacts)]


def test_an_ancestors_quota_is_counted_there_and_bounds_what_runs_below(
    busy: Path, nested: Callable[[str], tuple[Path, Path]], layout: CgroupLayout
) -> None:
    outer, inner = nested("cpu")
    set_quota(outer, 20)
    with running(busy, inner, GOMAXPROCS="4") as pid:
        table = ProcessTable(PATHS, [GO_TEST])
        table.read(pid)
        source, facts = looked(table)
        chain = read_quotas(layout, f"/{outer.name}/inner")
    assert source.status.state is SourceState.ACTIVE
    (fact,) = facts
    assert fact.quota.cgroup.path == f"/{outer.name}"
    assert fact.quota.cores == pytest.approx(0.2)
    assert [each.gomaxprocs for each in fact.processes] == [4]
    assert fact.throttled_periods > fact.periods * 0.5
    # Where the limit is, there it is counted: the process's own cgroup shows nothing.
    assert [state.state.throttled_periods > 0 for state in chain] == [False, True]
    verdict = cpu_throttled.judge(fact)
    assert isinstance(verdict, Problem)
    evidence = {each.name: each.value for each in verdict.evidence}
    assert "its own cgroup" in str(evidence["why Go does not see it"])
    assert evidence["process GOMAXPROCS"] == "4 (GOMAXPROCS=4 in its environment)"


def test_a_quota_that_is_enough_is_no_finding(busy: Path, nested: Callable[[str], tuple[Path, Path]]) -> None:
    _, inner = nested("cpu")
    set_quota(inner, 100)
    with running(busy, inner, GOMAXPROCS="1") as pid:
        table = ProcessTable(PATHS, [GO_TEST])
        table.read(pid)
        _, facts = looked(table)
    assert [type(cpu_throttled.judge(fact)) for fact in facts] in ([], [Fine])


def test_a_quota_that_is_taken_away_closes_the_finding(busy: Path, nested: Callable[[str], tuple[Path, Path]]) -> None:
    _, inner = nested("cpu")
    set_quota(inner, 20)
    with running(busy, inner) as pid:
        table = ProcessTable(PATHS, [GO_TEST])
        table.read(pid)
        source, facts = looked(table)
        assert [type(cpu_throttled.judge(fact)) for fact in facts] == [Problem]
        set_quota(inner, 0)
        later = [fact for fact in source.snapshot() if isinstance(fact, CpuFacts)]
    assert isinstance(cpu_throttled.judge(later[-1]), Fine)


async def test_nothing_is_looked_at_until_a_workload_runs(busy: Path, nested: Callable[[str], tuple[Path, Path]]) -> None:
    _, inner = nested("cpu")
    set_quota(inner, 20)
    table = ProcessTable(PATHS, [GO_TEST])
    source = WorkloadCgroups(PATHS, table)
    stream = source.facts()
    first = asyncio.ensure_future(stream.__anext__())
    await asyncio.sleep(0.3)
    assert source.counters == {"looks": 1}
    with running(busy, inner) as pid:
        table.read(pid)
        fact = await asyncio.wait_for(first, 10)
    assert isinstance(fact, CpuFacts)
    assert fact.throttled_periods > 0
    await stream.aclose()
