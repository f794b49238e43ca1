# SPDX-License-Identifier: Apache-2.0
"""A tree of cgroups on an ordinary file system: its files change as the kernel's do, and inotify is the real one."""
from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from triaged.errors import Exhausted
from triaged.kernel.cgroup_layout import Hierarchy
from triaged.kernel.inotify import Inotify
from triaged.model.cgroup import CgroupId
from triaged.sources.cgroup_tree import CgroupTree, Increase

MEMORY = "memory.events", "memory.events.local", "oom_kill"
PIDS = "pids.events", "pids.events.local", "max"


class Machine:
    """A version 2 hierarchy below `root`. `hit` counts as the kernel does: at the cgroup and in every ancestor."""

    def __init__(self, root: Path, inotify: Inotify | None, is_local: bool = False) -> None:
        self.root = root
        self.inotify = inotify
        self.is_local = is_local
        self.counted: Counter[str] = Counter()
        self.saved: dict[str, int] = {}
        hierarchy = Hierarchy("", str(root), controllers=frozenset({"pids", "memory"}))
        self.tree = CgroupTree(hierarchy, ("pids",) if is_local else ("memory",), inotify, self._count, self._saved)
        self.file, self.local, self.field = PIDS if is_local else MEMORY

    def _count(self, what: str) -> None:
        self.counted[what] += 1

    def _saved(self, cgroup: CgroupId, file: str) -> int:
        return self.saved.get(cgroup.path, 0)

    def make(self, path: str) -> Path:
        """Makes a cgroup and those above it."""
        at = self.root
        for name in path.strip("/").split("/"):
            at = at / name
            if not at.exists():
                at.mkdir()
                (at / self.file).write_text(f"{self.field} 0\n")
                if not self.is_local:
                    (at / self.local).write_text(f"{self.field} 0\n")
        return at

    def hit(self, path: str, times: int = 1) -> None:
        at = self.root / path.strip("/")
        if not self.is_local:
            self._add(at / self.local, times)
        self._add(at / self.file, times)
        while not self.is_local and at.parent != self.root:
            at = at.parent
            self._add(at / self.file, times)

    def _add(self, file: Path, times: int) -> None:
        number = int(file.read_text().split()[1]) + times
        with open(file, "r+") as opened:
            opened.write(f"{self.field} {number}\n")

    def remove(self, path: str) -> None:
        shutil.rmtree(self.root / path.strip("/"))

    def count(self) -> None:
        """Has the tree take the events that are waiting, and nothing settle."""
        if self.inotify is not None:
            while events := self.inotify.read():
                for event in events:
                    self.tree.take(event)
        self.tree.count_dirty()

    def look(self) -> list[Increase]:
        """What the events that are waiting made known, after everything settled."""
        self.count()
        self.tree.settle()
        found, self.tree.increases = self.tree.increases, []
        return found

    def rises(self) -> list[tuple[str, int, bool]]:
        return [(increase.cgroup.path, increase.by, increase.is_lost) for increase in self.look()]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    inotify = Inotify()
    yield Machine(tmp_path, inotify)
    inotify.close()


def test_a_kill_is_told_at_its_own_cgroup_only(machine: Machine) -> None:
    machine.make("/ci.slice/run.scope")
    machine.tree.scan()
    machine.hit("/ci.slice/run.scope", 2)
    (increase,) = machine.look()
    assert (increase.cgroup.path, increase.by, increase.total, increase.is_lost) == ("/ci.slice/run.scope", 2, 2, False)
    assert increase.own_file == f"{machine.root}/ci.slice/run.scope/memory.events.local"
    assert increase.cgroup.inode == (machine.root / "ci.slice/run.scope").stat().st_ino
    assert machine.rises() == []


def test_a_parent_and_a_child_that_both_rise_are_both_told(machine: Machine) -> None:
    machine.make("/a/b")
    machine.tree.scan()
    machine.hit("/a")
    machine.hit("/a/b", 3)
    assert sorted(machine.rises()) == [("/a", 1, False), ("/a/b", 3, False)]


def test_only_the_top_is_told_and_the_tree_is_read_downwards(machine: Machine) -> None:
    machine.make("/a/b/c")
    machine.make("/a/b2")
    machine.tree.scan()
    machine.hit("/a/b/c")
    assert machine.inotify is not None
    for event in machine.inotify.read():
        if event.name == "":  # what the kernel tells when no inode below is cached: the watch on the top's own file
            machine.tree.take(event)
    assert machine.rises() == [("/a/b/c", 1, False)]


def test_a_kill_in_a_cgroup_that_vanished_at_once_is_told_with_its_name(machine: Machine) -> None:
    machine.make("/ci.slice/other.scope")
    machine.tree.scan()
    machine.make("/ci.slice/fleeting.scope")
    machine.hit("/ci.slice/fleeting.scope")
    machine.remove("/ci.slice/fleeting.scope")
    (increase,) = machine.look()
    assert (increase.cgroup.path, increase.by, increase.is_lost) == ("/ci.slice", 1, True)
    assert increase.removed == ("/ci.slice/fleeting.scope",)


def test_a_watched_cgroups_last_kill_is_not_lost_with_it(machine: Machine) -> None:
    machine.make("/a/b")
    machine.tree.scan()
    machine.hit("/a/b", 2)
    assert machine.rises() == [("/a/b", 2, False)]
    machine.hit("/a/b", 1)
    machine.remove("/a/b")
    assert machine.rises() == [("/a", 1, True)]
    assert [(cgroup.path, was_hit) for cgroup, was_hit in machine.tree.gone] == [("/a/b", True)]


def test_a_removed_cgroup_is_told_as_gone_although_nothing_was_hit_in_it(machine: Machine) -> None:
    machine.make("/a/b/c")
    machine.tree.scan()
    machine.remove("/a/b")
    machine.rises()
    assert {(cgroup.path, was_hit) for cgroup, was_hit in machine.tree.gone} == {("/a/b", False), ("/a/b/c", False)}


def test_a_thousand_fleeting_cgroups_are_all_counted(machine: Machine) -> None:
    machine.make("/a/steady")
    machine.tree.scan()
    told = 0
    for number in range(1000):
        machine.make(f"/a/{number}.scope")
        machine.hit(f"/a/{number}.scope")
        if number % 3:
            told += sum(by for _, by, _ in machine.rises())
        machine.remove(f"/a/{number}.scope")
        if number % 7 == 0:
            machine.hit("/a/steady")
            told += sum(by for _, by, _ in machine.rises())
    told += sum(by for _, by, _ in machine.rises())
    assert told == 1000 + 143
    assert len(machine.tree) == 3


def test_a_name_that_is_made_again_is_another_cgroup(machine: Machine) -> None:
    machine.make("/a/b")
    machine.tree.scan()
    machine.hit("/a/b", 5)
    machine.rises()
    # Open: or the file system may give its inode to the next one, which a cgroup file system does not.
    before = os.open(machine.root / "a/b", os.O_RDONLY)
    machine.remove("/a/b")
    machine.make("/a/b")
    machine.hit("/a/b", 2)
    assert machine.rises() == [("/a/b", 2, False)]
    os.close(before)


def test_what_a_cgroup_could_not_explain_when_it_went_is_explained_by_its_parent(machine: Machine) -> None:
    machine.make("/a/b/c")
    machine.tree.scan()
    machine.hit("/a/b/c", 2)
    machine.remove("/a/b/c")
    machine.count()
    assert machine.tree.unsettled
    machine.remove("/a/b")
    assert machine.rises() == [("/a", 2, True)]


def test_what_the_topmost_cgroup_could_not_explain_when_it_went_is_told_of_it(machine: Machine) -> None:
    machine.make("/a/b")
    machine.tree.scan()
    machine.hit("/a/b", 2)
    machine.remove("/a/b")
    machine.count()
    assert machine.tree.unsettled
    machine.remove("/a")
    assert machine.rises() == [("/a", 2, True)]


def test_children_made_before_their_parent_was_watched_are_taken_in(machine: Machine) -> None:
    machine.tree.scan()
    machine.make("/a/b/c/d")
    machine.rises()
    assert len(machine.tree) == 5
    machine.hit("/a/b/c/d")
    assert machine.rises() == [("/a/b/c/d", 1, False)]


def test_what_was_there_at_the_first_look_is_told_as_such_less_what_was_saved(machine: Machine) -> None:
    machine.make("/a/b")
    machine.hit("/a/b", 4)
    machine.hit("/a", 2)
    machine.saved = {"/a/b": 3, "/a": 2}
    machine.tree.scan()
    (increase,) = machine.tree.increases
    assert (increase.cgroup.path, increase.by, increase.total, increase.before_start) == ("/a/b", 1, 4, True)


def test_what_was_lost_before_the_start_is_not_told_as_new(machine: Machine) -> None:
    machine.make("/a/b")
    machine.hit("/a/b", 4)
    machine.remove("/a/b")
    machine.make("/a/c")
    machine.tree.scan()
    assert machine.rises() == []
    machine.hit("/a/c")
    assert machine.rises() == [("/a/c", 1, False)]


def test_a_counter_that_is_garbled_is_counted_and_the_others_go_on(machine: Machine) -> None:
    machine.make("/a/b")
    machine.make("/c")
    machine.tree.scan()
    (machine.root / "a/b/memory.events").write_text("oom_kill one\n")
    machine.hit("/c")
    assert machine.rises() == [("/c", 1, False)]
    assert machine.counted["malformed"] >= 1


def test_a_rescan_finds_what_no_event_told(machine: Machine) -> None:
    machine.make("/a/b")
    machine.make("/a/c")
    machine.tree.scan()
    assert machine.inotify is not None
    machine.make("/a/d/e")
    machine.remove("/a/c")
    machine.hit("/a/d/e")
    while machine.inotify.read():
        pass  # as if the queue had overflown
    machine.tree.scan()
    assert len(machine.tree) == 5
    assert machine.rises() == [("/a/d/e", 1, False)]


def test_without_watches_left_the_rest_is_seen_by_looking(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.make("/a/b")

    def exhausted(path: str, mask: int) -> int:
        raise Exhausted("inotify", "no watch left")

    monkeypatch.setattr(machine.inotify, "watch", exhausted)
    machine.tree.scan()
    assert machine.tree.unwatched >= 3
    machine.hit("/a/b")
    assert machine.rises() == []
    machine.tree.mark_all()
    assert machine.rises() == [("/a/b", 1, False)]


def test_local_counters_are_read_where_they_are(tmp_path: Path) -> None:
    inotify = Inotify()
    machine = Machine(tmp_path, inotify, is_local=True)
    machine.make("/a/b")
    machine.hit("/a/b", 2)
    machine.tree.scan()
    assert [(each.cgroup.path, each.by, each.before_start) for each in machine.tree.increases] == [("/a/b", 2, True)]
    assert machine.tree.has_local_counters()
    machine.look()
    machine.hit("/a")
    machine.make("/a/new")
    machine.hit("/a/new")
    assert sorted(machine.rises()) == [("/a", 1, False), ("/a/new", 1, False)]
    inotify.close()


def test_a_cgroup_that_the_kernel_log_names_is_found_and_its_counter_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path, None, is_local=True)
    machine.make("/a")
    machine.tree.scan()
    machine.make("/a/late")
    machine.hit("/a/late", 3)
    machine.tree.mark("/a/late", "pids")
    assert machine.rises() == [("/a/late", 3, False)]
    machine.tree.mark("/none/such", "pids")
    assert machine.rises() == []
    assert machine.tree.beginning_with("/a/l") == ["/a/late"]


def test_a_path_of_4000_characters_and_bytes_that_are_not_utf_8_work(machine: Machine) -> None:
    odd = os.fsdecode(b"\xff\x01,=")
    machine.make(f"/{odd}")
    deep, each = "", "/" + "d" * 8
    while len(str(machine.root)) + len(deep) + len(each) + 21 < 4090:
        deep += each
    machine.make(deep)
    machine.tree.scan()
    machine.hit(deep)
    machine.hit(f"/{odd}")
    assert sorted(machine.rises()) == sorted([(deep, 1, False), (f"/{odd}", 1, False)])
