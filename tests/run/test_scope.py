# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from triaged.errors import ConfigError
from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import parse_cgroups, read_cgroup_record
from triaged.run.scope import slice_path

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.mark.parametrize(
    ("name", "path"), [("ci.slice", "ci.slice"), ("ci-a-b.slice", "ci.slice/ci-a.slice/ci-a-b.slice")]
)
def test_a_slices_name_says_where_it_is(name: str, path: str) -> None:
    assert slice_path(name) == path


@pytest.mark.parametrize("name", ["ci", "-.slice", "ci-.slice", "a/b.slice", "../x.slice", "ci--a.slice", "a@b.slice", ""])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        slice_path(name)


def test_a_wrong_name_is_told_and_nothing_is_run(run: Run) -> None:
    answer = run("echo", "ran", options=("--no-trace", "--slice", "wrong"))
    assert (answer.returncode, answer.stdout) == (2, b"")
    assert b"no name of a slice" in answer.stderr or b"not the name of a slice" in answer.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="making cgroups needs root")
@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="with systemd it is a unit: tests/vm has that")
def test_without_systemd_the_scope_is_a_cgroup_that_goes_away(run: Run) -> None:
    layout = read_layout(KernelPaths())
    held = [each for each in layout.hierarchies if each.controllers & {"pids", "memory", "cpu"}]
    if not held or not all(os.access(each.mount, os.W_OK) for each in held):
        pytest.skip("no hierarchy with controllers in which a cgroup may be made")
    answer = run("cat", "/proc/self/cgroup", options=("--no-trace", "--slice", "triagedtest-run.slice"))
    assert answer.returncode == 0
    lines = [line for line in answer.stdout.decode().splitlines() if "triagedtest" in line]
    assert lines
    assert all("/triagedtest.slice/triagedtest-run.slice/triagectl-run-" in line for line in lines)
    cgroups = parse_cgroups(read_cgroup_record(KernelPaths(), os.getpid()))
    for each in held:
        assert not os.path.exists(f"{each.directory(cgroups.get(each.name, '/'))}/triagedtest.slice")
