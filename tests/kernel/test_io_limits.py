# SPDX-License-Identifier: Apache-2.0
"""I/O limits as both versions write them; what they do on a real device: test_cgroup_stalls.py, tests/vm."""
from __future__ import annotations

from pathlib import Path

import pytest

from triaged.errors import Malformed
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.io_limits import parse_io_max, parse_io_stat, parse_v1_counters, read_device_name, read_io
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import Unknown


def test_only_finite_limits_count() -> None:
    text = "8:0 rbps=max wbps=1048576 riops=max wiops=max\n252:16 rbps=5 wbps=max riops=7 wiops=max\n"
    assert parse_io_max(text) == {("8:0", "wbps"): 1048576, ("252:16", "rbps"): 5, ("252:16", "riops"): 7}
    assert parse_io_max("") == {}


def test_counters_have_the_names_of_the_limits() -> None:
    text = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:0 \n"
    assert parse_io_stat(text) == {("8:0", "rbps"): 1, ("8:0", "wbps"): 2, ("8:0", "riops"): 3, ("8:0", "wiops"): 4}


def test_version_1_writes_a_line_for_each_direction() -> None:
    text = "8:0 Read 10\n8:0 Write 20\n8:0 Sync 1\n8:0 Total 30\nTotal 30\n"
    assert parse_v1_counters(text, "bps") == {("8:0", "rbps"): 10, ("8:0", "wbps"): 20}


@pytest.mark.parametrize("text", ["sda wbps=1", "8:0 wbps=-1", "8:0 wbps=x"])
def test_nonsense_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_io_max(text)


def test_an_ancestors_limit_is_found_on_version_2(tmp_path: Path) -> None:
    inner = tmp_path / "ci.slice" / "run.scope"
    inner.mkdir(parents=True)
    (inner / "io.max").write_text("")
    (inner.parent / "io.max").write_text("8:0 rbps=max wbps=1 riops=max wiops=max\n")
    (inner.parent / "io.stat").write_text("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n")
    (inner.parent / "io.pressure").write_text("some avg10=0 avg60=0 avg300=0 total=9\nfull avg10=0 avg60=0 avg300=0 total=7\n")
    layout = CgroupLayout((Hierarchy("", str(tmp_path), "/", frozenset({"io"})),))
    (state,) = read_io(layout, "/ci.slice/run.scope")
    assert (state.cgroup.path, state.unit, state.stalled_usec) == ("/ci.slice", "ci.slice", 7)
    assert state.limits == {("8:0", "wbps"): 1}
    assert state.done["8:0", "wbps"] == 2


def test_version_1_names_the_file_of_its_limit(tmp_path: Path) -> None:
    directory = tmp_path / "ci"
    directory.mkdir()
    for name in ("read_bps", "write_bps", "read_iops", "write_iops"):
        (directory / f"blkio.throttle.{name}_device").write_text("8:0 7\n" if name == "read_bps" else "")
    (directory / "blkio.throttle.io_service_bytes_recursive").write_text("8:0 Read 10\nTotal 10\n")
    (directory / "blkio.throttle.io_serviced_recursive").write_text("8:0 Read 1\nTotal 1\n")
    layout = CgroupLayout((Hierarchy("blkio", str(tmp_path), "/", frozenset({"blkio"})),))
    (state,) = read_io(layout, "/ci")
    assert state.file == f"{directory}/blkio.throttle.read_bps_device"
    assert isinstance(state.stalled_usec, Unknown)
    assert state.done == {("8:0", "rbps"): 10, ("8:0", "riops"): 1}
    assert list(read_io(CgroupLayout(()), "/ci")) == []


def test_a_device_has_a_name_where_the_kernel_shows_it(tmp_path: Path) -> None:
    directory = tmp_path / "sys/dev/block/8:0"
    directory.mkdir(parents=True)
    (directory / "uevent").write_text("MAJOR=8\nMINOR=0\nDEVNAME=sda\nDEVTYPE=disk\n")
    paths = KernelPaths.below(str(tmp_path))
    assert read_device_name(paths, "8:0") == "/dev/sda"
    assert read_device_name(paths, "9:9") == "9:9"
