# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from triaged.errors import Gone, InterfaceMissing, Malformed
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.cgroups import (
    CpuState,
    MemoryState,
    PidsState,
    ancestry,
    parse_counters,
    parse_limit,
    read_cpu,
    read_event_counter,
    read_memory,
    read_pids,
    walk,
)
from triaged.model.limit import UNLIMITED, Unknown

V2_EVENTS = "low 0\nhigh 0\nmax 37\noom 1\noom_kill {kills}\noom_group_kill 0\n"


def v2(root: Path, options: frozenset[str] = frozenset()) -> Hierarchy:
    return Hierarchy("", str(root), controllers=frozenset({"pids", "memory", "cpu"}), options=options)


def v1(root: Path, controller: str) -> Hierarchy:
    return Hierarchy(controller, str(root), controllers=frozenset({controller}))


def cgroup(root: Path, path: str, **files: str) -> Path:
    """Makes a cgroup's directory and its files; "pids_max" stands for pids.max."""
    directory = root / path.lstrip("/")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("_", ".", 1).replace("_local", ".local")).write_text(text)
    return directory


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max\n", UNLIMITED), ("0\n", 0), ("512\n", 512), ("-1\n", UNLIMITED),
        ("9223372036854771712\n", UNLIMITED), ("9223372036854710272\n", UNLIMITED), ("9223372036854706176\n", 9223372036854706176),
    ],
)
def test_unlimited_is_told_from_zero_and_from_a_number_in_both_versions(text: str, limit: object) -> None:
    assert parse_limit(text) == limit


@pytest.mark.parametrize("text", ["", "\n", "12a", "-5", "max max", "１２", "0x10"])
def test_a_limit_that_is_no_number_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_limit(text, "/x/pids.max")


@pytest.mark.parametrize("text", ["oom_kill", "oom_kill x\n", "oom_kill -1\n", "oom_kill 1 2\n", "oom_kill 1\nhi\n", " \n"])
def test_counters_cut_short_or_garbled_are_malformed_and_name_the_line(text: str) -> None:
    with pytest.raises(Malformed, match=r"memory\.events"):
        parse_counters(text, "/x/memory.events")


def test_no_counters_are_no_error() -> None:
    assert parse_counters("") == {}


def test_a_full_cgroup_of_version_2_is_read(tmp_path: Path) -> None:
    directory = cgroup(tmp_path, "/a.slice/b.service", pids_max="12\n", pids_current="12\n", pids_events="max 3\n")
    (directory / "pids.peak").write_text("12\n")
    (directory / "memory.max").write_text("max\n")
    (directory / "memory.current").write_text("4096\n")
    (directory / "memory.events").write_text(V2_EVENTS.format(kills=5))
    (directory / "memory.events.local").write_text(V2_EVENTS.format(kills=2))
    assert read_pids(v2(tmp_path), "/a.slice/b.service") == PidsState(12, 12, 12, 3)
    assert read_memory(v2(tmp_path), "/a.slice/b.service") == MemoryState(UNLIMITED, 4096, Unknown("not on this kernel"), 2, 37, 1)


def test_before_linux_5_2_memory_events_is_local_itself(tmp_path: Path) -> None:
    directory = cgroup(tmp_path, "/a")
    for name, text in (("memory.max", "1\n"), ("memory.current", "1\n"), ("memory.events", V2_EVENTS.format(kills=5))):
        (directory / name).write_text(text)
    assert read_memory(v2(tmp_path), "/a").kills == 5


def test_a_cgroup_of_version_1_is_read(tmp_path: Path) -> None:
    directory = cgroup(tmp_path, "/a")
    for name, text in {
        "limit_in_bytes": "33554432\n", "usage_in_bytes": "1000\n", "max_usage_in_bytes": "33554432\n", "failcnt": "188\n",
        "oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    }.items():
        (directory / f"memory.{name}").write_text(text)
    assert read_memory(v1(tmp_path, "memory"), "/a") == MemoryState(
        33554432, 1000, 33554432, 2, 188, Unknown("version 1 does not count it")
    )


def test_the_cpu_quota_of_both_versions_is_the_same_state(tmp_path: Path) -> None:
    cgroup(tmp_path, "/two", cpu_max="50000 100000\n", cpu_stat="usage_usec 9\nnr_periods 10\nnr_throttled 4\nthrottled_usec 700\n")
    one = cgroup(tmp_path, "/one", cpu_stat="nr_periods 10\nnr_throttled 4\nthrottled_time 700000\n")
    (one / "cpu.cfs_quota_us").write_text("50000\n")
    (one / "cpu.cfs_period_us").write_text("100000\n")
    assert read_cpu(v2(tmp_path), "/two") == read_cpu(v1(tmp_path, "cpu"), "/one") == CpuState(50000, 100000, 10, 4, 700)
    (one / "cpu.cfs_quota_us").write_text("-1\n")
    assert read_cpu(v1(tmp_path, "cpu"), "/one").quota_usec is UNLIMITED


def test_a_removed_cgroup_is_gone_and_one_without_the_controller_lacks_the_interface(tmp_path: Path) -> None:
    cgroup(tmp_path, "/a", pids_max="max\n")
    with pytest.raises(InterfaceMissing):
        read_pids(v2(tmp_path), "/a")
    with pytest.raises(Gone):
        read_pids(v2(tmp_path), "/b")


def test_the_ancestry_goes_from_the_inside_out_and_names_units(tmp_path: Path) -> None:
    cgroup(tmp_path, "/ci.slice", pids_max="100\n", pids_current="40\n")
    cgroup(tmp_path, "/ci.slice/run.scope", pids_max="max\n", pids_current="12\n")
    cgroup(tmp_path, "/ci.slice/run.scope/inner", pids_max="12\n", pids_current="12\n")
    limits = ancestry(CgroupLayout((v2(tmp_path),)), "pids", "/ci.slice/run.scope/inner")
    assert [(limit.cgroup.path, limit.limit, limit.used, limit.unit) for limit in limits] == [
        ("/ci.slice/run.scope/inner", 12, 12, ""),
        ("/ci.slice/run.scope", UNLIMITED, 12, "run.scope"),
        ("/ci.slice", 100, 40, "ci.slice"),
    ]
    assert limits[0].file == f"{tmp_path}/ci.slice/run.scope/inner/pids.max"
    assert limits[0].cgroup.inode == (tmp_path / "ci.slice/run.scope/inner").stat().st_ino


def test_the_ancestry_of_a_removed_cgroup_still_tells_the_rest(tmp_path: Path) -> None:
    cgroup(tmp_path, "/ci.slice", pids_max="oops\n", pids_current="40\n")
    gone, garbled = ancestry(CgroupLayout((v2(tmp_path),)), "pids", "/ci.slice/gone.scope")
    assert isinstance(gone.limit, Unknown)
    assert gone.cgroup.inode == 0
    assert isinstance(garbled.limit, Unknown)
    assert garbled.used == 40


def test_without_a_hierarchy_for_the_controller_there_is_no_ancestry(tmp_path: Path) -> None:
    assert ancestry(CgroupLayout(()), "pids", "/a") == ()


def test_a_walk_finds_every_cgroup_with_its_inode(tmp_path: Path) -> None:
    for path in ("/a/b/c", "/a/d", "/e"):
        cgroup(tmp_path, path, pids_max="max\n")
    found = dict(walk(v2(tmp_path)))
    assert set(found) == {"/", "/a", "/a/b", "/a/b/c", "/a/d", "/e"}
    assert found["/a/b/c"] == (tmp_path / "a/b/c").stat().st_ino
    assert set(dict(walk(v2(tmp_path), "/a"))) == {"/a", "/a/b", "/a/b/c", "/a/d"}
    with pytest.raises(Gone):
        list(walk(v2(tmp_path), "/none"))


def test_names_with_odd_bytes_and_paths_of_4000_characters_are_walked_and_read(tmp_path: Path) -> None:
    odd = os.fsdecode(b"a,b=\xff \x01\\x")
    cgroup(tmp_path, f"/{odd}", pids_max="7\n", pids_current="1\n")
    deep = ""
    while len(str(tmp_path)) + len(deep) + 101 < 4040:
        deep += "/" + "d" * 100
    os.makedirs(str(tmp_path) + deep)
    Path(str(tmp_path) + deep + "/pids.max").write_text("9\n")
    Path(str(tmp_path) + deep + "/pids.current").write_text("2\n")
    paths = [path for path, _ in walk(v2(tmp_path))]
    assert f"/{odd}" in paths
    assert deep in paths
    layout = CgroupLayout((v2(tmp_path),))
    assert (ancestry(layout, "pids", f"/{odd}")[0].limit, ancestry(layout, "pids", deep)[0].limit) == (7, 9)


@pytest.mark.parametrize(
    ("options", "has_local", "local_file"),
    [(frozenset(), True, "pids.events.local"), (frozenset(), False, ""), (frozenset({"pids_localevents"}), True, "")],
)
def test_how_pids_events_counts_is_felt_from_the_files_and_mount_options(
    tmp_path: Path, options: frozenset[str], has_local: bool, local_file: str
) -> None:
    directory = cgroup(tmp_path, "/a", pids_events="max 0\n")
    if has_local:
        (directory / "pids.events.local").write_text("max 0\n")
    counter = read_event_counter(v2(tmp_path, options), "pids", str(directory))
    assert counter is not None
    assert counter.local_file == local_file
    assert counter.is_hierarchical is bool(local_file)


def test_version_1_counts_kills_in_oom_control(tmp_path: Path) -> None:
    directory = cgroup(tmp_path, "/a")
    assert read_event_counter(v1(tmp_path, "memory"), "memory", str(directory)) is None
    (directory / "memory.oom_control").write_text("oom_kill 0\n")
    counter = read_event_counter(v1(tmp_path, "memory"), "memory", str(directory))
    assert counter is not None
    assert (counter.file, counter.field, counter.is_hierarchical) == ("memory.oom_control", "oom_kill", False)
