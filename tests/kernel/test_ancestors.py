# SPDX-License-Identifier: Apache-2.0
"""The ways of real processes through cgroups of the test's own, and of processes that are made up."""
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from triaged.errors import KernelError
from triaged.kernel.ancestors import read_way
from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.kernel.process_table import ProcessTable
from triaged.model.way import Arrival
from triaged.model.workload import ProcessPattern, WorkloadDefinition

MakeProc = Callable[..., KernelPaths]
WORKLOAD = WorkloadDefinition("t", "t", (ProcessPattern("test-binary", ("*",)),))
INIT = b"0::/init.scope\n"
RUN = b"0::/ci.slice/run.scope\n"
OUT = b"0::/default.slice\n"

# A shell in the first cgroup starts a process that goes into the second one, says so, and waits.
_LEAVES = """
import os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
read, write = os.pipe()
pid = os.fork()
if not pid:
    with open(sys.argv[2] + "/cgroup.procs", "w") as procs:
        procs.write("0")
    os.write(write, b"x")
    sys.stdin.read()
    os._exit(0)
os.read(read, 1)
print(pid, flush=True)
os.wait()
"""


def test_a_child_that_left_its_scope_is_told_from_one_that_never_was_in_it(made_up_proc: MakeProc) -> None:
    made_up_proc(pid=1, comm=b"systemd", cgroup=INIT, ppid=0, start_ticks=1)
    made_up_proc(pid=50, comm=b"bash", cgroup=RUN, ppid=1, start_ticks=10)
    made_up_proc(pid=51, comm=b"bash", cgroup=OUT, ppid=1, start_ticks=10)
    made_up_proc(pid=60, comm=b"go", cgroup=OUT, ppid=50, start_ticks=20)
    paths = made_up_proc(pid=61, comm=b"go", cgroup=OUT, ppid=51, start_ticks=20)
    table = ProcessTable(paths, [])
    left = read_way(paths, table, read_process(paths, 60))
    assert [step.pid for step in left.steps] == [60, 50]
    assert left.arrival is Arrival.LEFT
    assert left.elsewhere is not None
    assert left.elsewhere.unit == "run.scope"
    never = read_way(paths, table, read_process(paths, 61))
    assert [step.pid for step in never.steps] == [61, 51, 1]
    assert never.arrival is Arrival.UNKNOWN


def test_a_parent_that_ended_is_remembered(made_up_proc: MakeProc) -> None:
    paths = made_up_proc(pid=50, comm=b"bash", cgroup=RUN, ppid=1, start_ticks=10)
    table = ProcessTable(paths, [WORKLOAD])
    table.read(50)
    # Its number is another's now, which began later.
    made_up_proc(pid=50, comm=b"other", cgroup=OUT, ppid=1, start_ticks=99)
    made_up_proc(pid=60, comm=b"go", cgroup=OUT, ppid=50, start_ticks=20)
    way = read_way(paths, table, read_process(paths, 60))
    assert [(step.comm, step.is_remembered) for step in way.steps] == [("go", False), ("bash", True)]
    assert way.arrival is Arrival.LEFT


def test_a_process_that_was_moved_after_its_execution_is_noticed(made_up_proc: MakeProc) -> None:
    made_up_proc(pid=1, comm=b"systemd", cgroup=INIT, ppid=0, start_ticks=1)
    paths = made_up_proc(pid=60, comm=b"go", cgroup=RUN, ppid=1, start_ticks=20)
    table = ProcessTable(paths, [WORKLOAD])
    table.read(60)
    made_up_proc(pid=60, comm=b"go", cgroup=OUT, ppid=1, start_ticks=20)
    way = read_way(paths, table, table.read(60))
    assert (way.arrival, way.executed_in) == (Arrival.MOVED, "/ci.slice/run.scope")


@pytest.fixture
def two_cgroups() -> Iterator[tuple[Path, Path]]:
    """A scope and a slice of the test's own in the tree that names units."""
    try:
        layout = read_layout(KernelPaths())
    except KernelError as error:
        pytest.skip(f"no cgroups here: {error}")
    hierarchy = next((each for each in layout.hierarchies if each.name == "name=systemd"), layout.unified)
    assert hierarchy is not None
    base = f"/triaged-way-{os.getpid()}"
    made = [Path(hierarchy.directory(base + end)) for end in (".scope", ".slice")]
    try:
        for directory in made:
            directory.mkdir()
    except PermissionError:
        pytest.skip("making cgroups needs root")
    yield made[0], made[1]
    until = time.monotonic() + 5
    for directory in made:
        while directory.exists():
            with contextlib.suppress(OSError):
                directory.rmdir()
            assert time.monotonic() < until, f"{directory} stays busy"


def test_on_this_kernel_a_process_that_leaves_its_scope_is_caught(two_cgroups: tuple[Path, Path]) -> None:
    scope, outside = two_cgroups
    child = subprocess.Popen([sys.executable, "-c", _LEAVES, scope, outside], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        paths = KernelPaths()
        way = read_way(paths, ProcessTable(paths, []), read_process(paths, pid))
    finally:
        child.communicate()
    assert way.steps[0].cgroup == f"/{outside.name}"
    assert way.elsewhere is not None
    assert (way.elsewhere.pid, way.elsewhere.cgroup) == (child.pid, f"/{scope.name}")
    assert way.arrival is Arrival.LEFT
