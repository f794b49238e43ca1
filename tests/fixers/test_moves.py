# SPDX-License-Identifier: Apache-2.0
"""Real process trees, moved between cgroups of the test's own by what stands for systemd here."""
from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from triaged.errors import BusError, FixFailed, FixRefused, FixStale, KernelError
from triaged.fixers.fixer import Caller, RecordState
from triaged.fixers.local import LocalFixer
from triaged.fixers.moves import MoveFixer, TreePlace, read_tree
from triaged.fixers.records import Records
from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.model.fix import MoveProcesses

PATHS = KernelPaths()
ROOT = Caller(0)
# A parent with one child that lives, which begins another one when it is told to.
_TREE = """
import os, time
child = os.fork()
if not child:
    while os.read(0, 1):
        if not os.fork():
            while True:
                time.sleep(60)
    os._exit(0)
print(child, flush=True)
os.wait()
"""


class Cgroups:
    """Stands for systemd: units are directories below a slice's.

    As systemd does, it refuses a call that names a process that ended, and to attach to what it did not make a scope of ours.
    `is_refusing`: it moves nothing; `attaches` at most so many.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.units: dict[str, Path] = {}
        self.main_pid = 0
        self.is_refusing = False
        self.attaches = 1000
        self.limits: dict[str, dict[str, int]] = {}

    async def read_property(self, unit: str, name: str) -> str | int | bool | list[str]:
        if name == "MainPID":
            return self.main_pid
        if name != "ActiveState":
            return self.limits.get(unit, {}).get(name, (1 << 64) - 1)
        directory = self.units.get(unit)
        return "active" if directory is not None and directory.exists() else "inactive"

    async def start_scope(self, name: str, slice_name: str, pids: Sequence[int], limits: Mapping[str, int]) -> None:
        self.limits[name] = dict(limits)
        directory = self.top / slice_name / name
        directory.mkdir(parents=True)
        self.units[name] = directory
        if not self.is_refusing:
            self._put(directory, pids)

    async def attach(self, unit: str, pids: Sequence[int]) -> None:
        if not unit.startswith("triaged-moved-"):
            raise BusError("", "Process migration not available on non-delegated units.")
        self.attaches -= 1
        if not self.is_refusing and self.attaches >= 0:
            self._put(self.units[unit], pids)

    def _put(self, directory: Path, pids: Sequence[int]) -> None:
        for pid in pids:
            try:
                (directory / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError as error:
                raise BusError("", f"Process with ID {pid} does not exist.") from error
        for unit in list(self.units.values()):  # an empty scope ends
            if unit != directory and unit.exists() and not (unit / "cgroup.procs").read_text():
                unit.rmdir()


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    try:
        layout = read_layout(PATHS)
    except KernelError as error:
        pytest.skip(f"no cgroups here: {error}")
    hierarchy = next((each for each in layout.hierarchies if each.name == "name=systemd"), layout.unified)
    assert hierarchy is not None
    top = Path(hierarchy.directory(f"/triaged-move-{os.getpid()}"))
    try:
        top.mkdir()
    except PermissionError:
        pytest.skip("making cgroups needs root")
    yield Cgroups(top)
    until = time.monotonic() + 5
    for directory in sorted((path for path in top.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
        while directory.exists():
            with contextlib.suppress(OSError):
                directory.rmdir()
            assert time.monotonic() < until, f"{directory} stays busy"
    top.rmdir()


@pytest.fixture
def tree(cgroups: Cgroups) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A parent and its child in old.scope of default.slice."""
    asyncio.run(cgroups.start_scope("old.scope", "default.slice", [], {"TasksMax": 40}))
    directory = cgroups.units["old.scope"]
    parent = subprocess.Popen(
        [sys.executable, "-c", _TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: (directory / "cgroup.procs").write_text("0") and None,
    )
    assert parent.stdout is not None
    yield parent, int(parent.stdout.readline())
    for pid in reversed(read_tree(PATHS, parent.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    parent.communicate()


@pytest.fixture
def fixer(cgroups: Cgroups, tmp_path: Path) -> LocalFixer:
    (tmp_path / "originals").mkdir(mode=0o700)
    return LocalFixer([MoveFixer(cgroups, PATHS)], Records(str(tmp_path / "originals")), PATHS, settle_s=0.0)


def move(pid: int, to: str = "ci.slice") -> MoveProcesses:
    who = read_process(PATHS, pid)
    return MoveProcesses(pid, who.start_ticks, to, seen=who.cgroup)


def tree_of(tree: tuple[subprocess.Popen[bytes], int]) -> list[int]:
    return [tree[0].pid, tree[1]]


def places(pids: Sequence[int]) -> set[str]:
    return {read_process(PATHS, pid).cgroup.split("/", 2)[2] for pid in pids}


def test_the_whole_tree_is_moved_and_put_back(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int], cgroups: Cgroups
) -> None:
    parent, child = tree
    fix = move(parent.pid)
    preview = asyncio.run(fixer.preview(fix))
    assert preview.obstacle == ""
    assert preview.new == "ci.slice"
    assert not preview.lasting
    applied = asyncio.run(fixer.apply("f", fix, ROOT))
    assert applied.state is RecordState.APPLIED
    assert places([parent.pid, child]) == {f"ci.slice/{fix.scope}"}
    assert not cgroups.units["old.scope"].exists()
    del cgroups.limits["old.scope"]
    undone = asyncio.run(fixer.undo("f", fix.key, ROOT))
    assert undone.state is RecordState.UNDONE
    assert places([parent.pid, child]) == {"default.slice/old.scope"}
    assert cgroups.limits == {fix.scope: {}, "old.scope": {"TasksMax": 40}}


def test_a_process_that_ends_meanwhile_harms_nothing(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, child = tree
    fix = move(parent.pid)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    really = TreePlace.places
    looks = 0

    def places_with_one_that_ended(part: TreePlace) -> dict[int, str]:
        nonlocal looks
        looks += 1
        return {**really(part), **({gone.pid: "/default.slice/old.scope"} if looks < 5 else {})}

    monkeypatch.setattr(TreePlace, "places", places_with_one_that_ended)
    asyncio.run(fixer.apply("f", fix, ROOT))
    assert places([parent.pid, child]) == {f"ci.slice/{fix.scope}"}


def test_a_child_born_after_the_move_goes_back_with_the_rest(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int]
) -> None:
    parent, _ = tree
    fix = move(parent.pid)
    asyncio.run(fixer.apply("f", fix, ROOT))
    assert parent.stdin is not None
    parent.stdin.write(b"x")
    parent.stdin.flush()
    until = time.monotonic() + 5
    while len(read_tree(PATHS, parent.pid)) < 3:
        assert time.monotonic() < until, "no child was born"
        time.sleep(0.02)
    asyncio.run(fixer.undo("f", fix.key, ROOT))
    assert places(read_tree(PATHS, parent.pid)) == {"default.slice/old.scope"}


def test_a_move_that_does_nothing_is_shown_as_failed(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int], cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triaged.fixers.moves._ROUNDS", 3)
    cgroups.is_refusing = True
    with pytest.raises(FixFailed, match="stay outside"):
        asyncio.run(fixer.apply("f", move(tree[0].pid), ROOT))
    assert places([tree[0].pid]) == {"default.slice/old.scope"}


def test_a_move_that_stops_halfway_is_taken_back(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int], cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triaged.fixers.moves._ROUNDS", 3)
    cgroups.attaches = 0
    with pytest.raises(FixFailed, match=r"stay outside.*everything is as before"):
        asyncio.run(fixer.apply("f", move(tree[0].pid), ROOT))
    assert places(tree_of(tree)) == {"default.slice/old.scope"}


def test_a_move_that_was_interrupted_halfway_is_taken_back_by_the_next(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int], cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(part: TreePlace, unit: str) -> None:
        raise asyncio.CancelledError  # which nothing catches: as if the process ended here

    fix = move(tree[0].pid)
    with monkeypatch.context() as patched:
        patched.setattr(TreePlace, "_gather", killed)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(fixer.apply("f", fix, ROOT))
    assert len(places(tree_of(tree))) == 2
    (outcome,) = asyncio.run(fixer.recover())
    assert (outcome.state, outcome.message) == (RecordState.FAILED, "interrupted halfway; put back")
    assert places(tree_of(tree)) == {"default.slice/old.scope"}


def test_another_process_of_the_same_number_is_not_moved(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int]
) -> None:
    wrong = MoveProcesses(tree[0].pid, 1, "ci.slice")
    with pytest.raises(FixStale):
        asyncio.run(fixer.apply("f", wrong, ROOT))


def test_a_process_in_no_scope_or_service_is_not_moved_for_it_could_not_be_put_back(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int], cgroups: Cgroups
) -> None:
    (cgroups.top / "default.slice/cgroup.procs").write_text(str(tree[0].pid))
    with pytest.raises(FixRefused, match="could not be undone"):
        asyncio.run(fixer.apply("f", move(tree[0].pid), ROOT))
    assert places([tree[0].pid]) == {"default.slice"}


def test_the_main_process_of_a_service_stays(
    fixer: LocalFixer, tree: tuple[subprocess.Popen[bytes], int], cgroups: Cgroups
) -> None:
    asyncio.run(cgroups.start_scope("tests.service", "default.slice", [tree[0].pid], {}))
    cgroups.main_pid = tree[0].pid
    with pytest.raises(FixRefused, match="main process of"):
        asyncio.run(fixer.apply("f", move(tree[0].pid), ROOT))


@pytest.mark.parametrize(
    "fix", [MoveProcesses(1, 5, "ci.slice"), MoveProcesses(9, 0, "ci.slice"), MoveProcesses(9, 5, "ci.service"),
            MoveProcesses(9, 5, "../x.slice"), MoveProcesses(9, 5, "system.slice")],
)
def test_what_is_not_on_the_list_is_refused(fixer: LocalFixer, fix: MoveProcesses) -> None:
    with pytest.raises(FixRefused):
        asyncio.run(fixer.apply("f", fix, ROOT))
