# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pathlib

from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.paths import KernelPaths
from triaged.model.counter import READ_AT
from triaged.run.counters import counter_files, read_counters


def write(path: pathlib.Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_every_shape_of_file_is_read(tmp_path: pathlib.Path) -> None:
    events = write(tmp_path / "memory.events", "low 0\nhigh 3\nmax 7\noom_kill 1\n")
    failcnt = write(tmp_path / "memory.failcnt", "42\n")
    pressure = write(tmp_path / "memory.pressure", "some avg10=0.00 avg60=0.00 total=123\nfull avg10=0.00 avg60=0.00 total=45\n")
    vmstat = write(tmp_path / "vmstat", "nr_free_pages 5\noom_kill 8862\n")
    netstat = write(tmp_path / "netstat", "TcpExt: Other ListenOverflows ListenDrops\nTcpExt: 0 6 -1\nIpExt: A\nIpExt: 1\n")
    assert read_counters([events, failcnt, pressure, vmstat, netstat, str(tmp_path / "missing")]) == {
        (events, "low"): 0, (events, "high"): 3, (events, "max"): 7, (events, "oom_kill"): 1,
        (failcnt, "memory.failcnt"): 42,
        (pressure, "some"): 123, (pressure, "full"): 45,
        (vmstat, "oom_kill"): 8862,
        (netstat, "ListenOverflows"): 6,
    }


def test_io_is_counted_by_device(tmp_path: pathlib.Path) -> None:
    stat = write(tmp_path / "io.stat", "253:0 rbytes=90 wbytes=4096 rios=1 wios=2 dbytes=0 dios=0\n7:0\n8:0 cost.usage=x\n")
    assert read_counters([stat]) == {
        (stat, "253:0 rbytes"): 90, (stat, "253:0 wbytes"): 4096, (stat, "253:0 rios"): 1, (stat, "253:0 wios"): 2,
        (stat, "253:0 dbytes"): 0, (stat, "253:0 dios"): 0,
    }


def test_a_stamped_file_that_counts_nothing_yet_has_its_time(tmp_path: pathlib.Path) -> None:
    stat, missing = write(tmp_path / "io.stat", ""), str(tmp_path / "missing")
    assert [key for key in read_counters([stat, missing], is_stamped=True)] == [(stat, READ_AT)]


def test_a_broken_file_gives_what_can_be_read_of_it(tmp_path: pathlib.Path) -> None:
    assert read_counters([write(tmp_path / "cpu.stat", "nr_periods 4\nnonsense\n\nnr_throttled x\nthrottled_usec 9\n")]) == {
        (f"{tmp_path}/cpu.stat", "nr_periods"): 4, (f"{tmp_path}/cpu.stat", "throttled_usec"): 9}


def test_the_files_are_those_of_each_cgroup_above() -> None:
    layout = CgroupLayout((
        Hierarchy("", "/cg/unified"), Hierarchy("pids", "/cg/pids", controllers=frozenset({"pids"})),
        Hierarchy("memory", "/cg/memory", "/docker/x", frozenset({"memory"})),
    ))
    files = counter_files(KernelPaths(), layout, {"": "/a.slice", "pids": "/a/b", "memory": "/docker/x/run"})
    assert "/proc/vmstat" in files
    assert [file for file in files if file.endswith("/pids.events")] == [
        "/cg/unified/a.slice/pids.events", "/cg/unified/pids.events", "/cg/pids/a/b/pids.events", "/cg/pids/a/pids.events",
        "/cg/pids/pids.events"]
    assert [file for file in files if file.endswith("/memory.failcnt")] == [
        "/cg/memory/run/memory.failcnt", "/cg/memory/memory.failcnt"]
