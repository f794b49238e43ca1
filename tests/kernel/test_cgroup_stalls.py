# SPDX-License-Identifier: Apache-2.0
"""Freezer, cpuset and the number of cgroups, on cgroups of the test's own. memory.high and pressure: tests/vm."""
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.cgroup_states import read_online_cpus
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.model.cpu import GoProcess
from triaged.model.facts import CpusetFacts, Fact, FrozenFacts, HeadroomFacts, HugePagesFacts, IoFacts
from triaged.model.process import ProcessIdentity
from triaged.model.verdict import Fine, Problem
from triaged.rules.devices import huge_pages_refused, io_throttled
from triaged.rules.headroom import nearly_used_up
from triaged.rules.stalls import cpuset_small, frozen
from triaged.sources.cgroup_stalls import StallLooks

PATHS = KernelPaths()


@pytest.fixture
def own(layout: CgroupLayout) -> Iterator[Callable[[Hierarchy | None], Path]]:
    """Makes a cgroup in a hierarchy; gives its directory. Removes it with what was made below it."""
    made: list[Path] = []

    def make(hierarchy: Hierarchy | None) -> Path:
        if hierarchy is None:
            pytest.skip("no such hierarchy here")
        directory = Path(hierarchy.directory(f"/triaged-stall-{os.getpid()}"))
        try:
            directory.mkdir()
        except PermissionError:
            pytest.skip("making cgroups needs root")
        made.append(directory)
        return directory

    yield make
    until = time.monotonic() + 5
    for directory in made:
        for each in (*sorted((path for path in directory.iterdir() if path.is_dir()), reverse=True), directory):
            while each.exists():
                with contextlib.suppress(OSError):
                    each.rmdir()
                assert time.monotonic() < until, f"{each} stays busy"


@pytest.fixture
def sleeper() -> Iterator[Callable[[Path], ProcessIdentity]]:
    """Starts a process that waits in a cgroup."""
    started: list[subprocess.Popen[bytes]] = []

    def start(directory: Path) -> ProcessIdentity:
        def enter() -> None:
            (directory / "cgroup.procs").write_text("0")

        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, preexec_fn=enter)
        started.append(child)
        return read_process(PATHS, child.pid)

    yield start
    for child in started:
        child.kill()
        child.communicate()


def only(facts: Iterator[Fact], kind: type[Fact]) -> list[Fact]:
    return [fact for fact in facts if isinstance(fact, kind)]


def test_a_freezer_above_the_process_is_found_and_its_thawing_too(
    layout: CgroupLayout, own: Callable[[Hierarchy | None], Path], sleeper: Callable[[Path], ProcessIdentity]
) -> None:
    hierarchy = layout.holding("freezer") or layout.unified
    outer = own(hierarchy)
    inner = outer / "inner"
    inner.mkdir()
    who = sleeper(inner)
    is_new = (outer / "cgroup.freeze").exists()
    file = outer / ("cgroup.freeze" if is_new else "freezer.state")
    looks = StallLooks(PATHS)
    assert only(looks.look(layout, [who], []), FrozenFacts) == []
    file.write_text("1" if is_new else "FROZEN")
    try:
        (fact,) = only(looks.look(layout, [who], []), FrozenFacts)
    finally:
        file.write_text("0" if is_new else "THAWED")
    assert isinstance(fact, FrozenFacts)
    assert fact.cgroup.path == f"/{outer.name}"
    assert [process.pid for process in fact.processes] == [who.pid]
    assert isinstance(frozen.judge(fact), Problem)
    (later,) = only(looks.look(layout, [who], []), FrozenFacts)
    assert isinstance(frozen.judge(later), Fine)
    assert only(looks.look(layout, [who], []), FrozenFacts) == []


def test_a_cpuset_below_gomaxprocs_is_found(
    layout: CgroupLayout, own: Callable[[Hierarchy | None], Path], sleeper: Callable[[Path], ProcessIdentity]
) -> None:
    hierarchy = layout.holding("cpuset")
    directory = own(hierarchy)
    if read_online_cpus(PATHS.sys) < 2:
        pytest.skip("one CPU only: no cpuset can be smaller")
    if not (directory / "cpuset.cpus").exists():
        pytest.skip("the cpuset controller is not handed on here")
    (directory / "cpuset.mems").write_text("0")
    (directory / "cpuset.cpus").write_text("1")
    who = sleeper(directory)
    looks = StallLooks(PATHS)
    (fact,) = only(looks.look(layout, [who], [GoProcess(who, 4, "GOMAXPROCS=4 in its environment", 1)]), CpusetFacts)
    assert isinstance(fact, CpusetFacts)
    assert (fact.cgroup.path, fact.cpus) == (f"/{directory.name}", 1)
    verdict = cpuset_small.judge(fact)
    assert isinstance(verdict, Problem)
    assert "leaves 1 CPU" in verdict.summary
    (later,) = only(looks.look(layout, [who], [GoProcess(who, 1, "GOMAXPROCS=1 in its environment", 1)]), CpusetFacts)
    assert isinstance(cpuset_small.judge(later), Fine)


def test_a_full_number_of_cgroups_is_found_where_mkdir_fails(
    layout: CgroupLayout, own: Callable[[Hierarchy | None], Path], sleeper: Callable[[Path], ProcessIdentity]
) -> None:
    directory = own(layout.unified)
    who = sleeper(directory)
    (directory / "cgroup.max.descendants").write_text("2")
    looks = StallLooks(PATHS)
    assert only(looks.look(layout, [who], []), HeadroomFacts) == []
    (directory / "a").mkdir()
    (directory / "b").mkdir()
    with pytest.raises(BlockingIOError):
        (directory / "c").mkdir()
    (fact,) = only(looks.look(layout, [who], []), HeadroomFacts)
    verdict = nearly_used_up.judge(fact)
    assert isinstance(verdict, Problem)
    assert "100% of cgroup.max.descendants" in verdict.summary
    (directory / "a").rmdir()
    (directory / "b").rmdir()
    (later,) = only(looks.look(layout, [who], []), HeadroomFacts)
    assert isinstance(nearly_used_up.judge(later), Fine)


def test_a_full_depth_of_cgroups_is_found_where_mkdir_fails(
    layout: CgroupLayout, own: Callable[[Hierarchy | None], Path], sleeper: Callable[[Path], ProcessIdentity]
) -> None:
    directory = own(layout.unified)
    who = sleeper(directory)
    (directory / "cgroup.max.depth").write_text("1")
    (directory / "a").mkdir()
    with pytest.raises(BlockingIOError):
        (directory / "a" / "b").mkdir()
    (fact,) = only(StallLooks(PATHS).look(layout, [who], []), HeadroomFacts)
    verdict = nearly_used_up.judge(fact)
    assert isinstance(verdict, Problem)
    assert "100% of cgroup.max.depth" in verdict.summary
    assert "EAGAIN" in verdict.fixes[0].title


# Maps a huge page (MAP_HUGETLB, MAP_NORESERVE) and touches it: the cgroup is asked before the machine's pool is.
_TOUCHES = """
import mmap, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
pages = mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000 | 0x4000)
pages[0] = 1
"""


@pytest.fixture
def hugetlb(layout: CgroupLayout) -> Iterator[Hierarchy]:
    """The hierarchy of the hugetlb controller, which is handed on to the cgroups below the root while the test runs."""
    hierarchy = layout.holding("hugetlb")
    if hierarchy is None or not Path("/sys/kernel/mm/hugepages/hugepages-2048kB").is_dir():
        pytest.skip("no hugetlb controller, or no huge pages of 2 MB here")
    control = Path(hierarchy.mount) / "cgroup.subtree_control"
    is_ours = hierarchy.is_v2 and "hugetlb" not in control.read_text().split()
    if is_ours:
        try:
            control.write_text("+hugetlb")
        except OSError as error:
            pytest.skip(f"the hugetlb controller cannot be handed on here: {error.strerror}")
    yield hierarchy
    if is_ours:
        control.write_text("-hugetlb")


def test_huge_pages_that_a_cgroup_refuses_are_found(
    layout: CgroupLayout, hugetlb: Hierarchy, own: Callable[[Hierarchy | None], Path], sleeper: Callable[[Path], ProcessIdentity]
) -> None:
    hierarchy = hugetlb
    directory = own(hierarchy)
    limit = directory / ("hugetlb.2MB.max" if hierarchy.is_v2 else "hugetlb.2MB.limit_in_bytes")
    limit.write_text("0")
    who = sleeper(directory)
    looks = StallLooks(PATHS)
    assert only(looks.look(layout, [who], []), HugePagesFacts) == []
    done = subprocess.run([sys.executable, "-c", _TOUCHES, str(directory)], check=False, capture_output=True)
    assert done.returncode == -7, done.stderr
    (fact,) = only(looks.look(layout, [who], []), HugePagesFacts)
    assert isinstance(fact, HugePagesFacts)
    assert (fact.owner.cgroup.path, fact.page_size, fact.refused) == (f"/{directory.name}", "2MB", 1)
    verdict = huge_pages_refused.judge(fact)
    assert isinstance(verdict, Problem)
    assert only(looks.look(layout, [who], []), HugePagesFacts) == []


def test_writing_as_fast_as_the_limit_allows_is_found(
    layout: CgroupLayout, own: Callable[[Hierarchy | None], Path], sleeper: Callable[[Path], ProcessIdentity], tmp_path: Path
) -> None:
    hierarchy = layout.holding("io") or layout.holding("blkio")
    directory = own(hierarchy)
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    if not Path(f"/sys/dev/block/{number}").exists() or Path(f"/sys/dev/block/{number}/partition").exists():
        pytest.skip(f"the test's files are on {number}, which is no whole disk")
    assert hierarchy is not None
    if hierarchy.is_v2:
        (directory / "io.max").write_text(f"{number} wbps=1048576")
    else:
        (directory / "blkio.throttle.write_bps_device").write_text(f"{number} 1048576")
    who = sleeper(directory)
    looks = StallLooks(PATHS)
    assert only(looks.look(layout, [who], []), IoFacts) == []
    writes = ["dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=256k", "count=12", "oflag=direct"]

    def enter() -> None:
        (directory / "cgroup.procs").write_text("0")

    begun = time.monotonic()
    done = subprocess.run(writes, check=False, capture_output=True, preexec_fn=enter)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begun > 2
    (fact,) = only(looks.look(layout, [who], []), IoFacts)
    assert isinstance(fact, IoFacts)
    (limit,) = fact.limits
    assert (limit.what, limit.per_s, limit.done) == ("wbps", 1048576, 3 << 20)
    assert limit.device.startswith("/dev/")
    verdict = io_throttled.judge(fact)
    assert isinstance(verdict, Problem), (verdict, fact)
    assert "1048576 bytes/s written" in verdict.summary
