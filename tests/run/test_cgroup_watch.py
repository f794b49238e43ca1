# SPDX-License-Identifier: Apache-2.0
"""What is known of a cgroup that is gone when its run is judged."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from situations import blamed, limit_at, process, ruled_out, undecided

from triaged.explain.io_rates import io_max
from triaged.explain.situation import Situation
from triaged.explain.slowness import cpu_max, memory_high
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.paths import KernelPaths
from triaged.model.counter import READ_AT
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.run.cgroup_watch import CgroupWatch

OWN, SCOPE = "/user.slice", "/system.slice/run.scope"
TIMED_OUT = Symptom(SymptomKind.TIMED_OUT, seen_in=SeenIn.OUTPUT)
Tree = Callable[..., None]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def write(path: str, **files: str) -> None:
        (tmp_path / path.strip("/")).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / path.strip("/") / name.replace("_", ".", 1)).write_text(text)

    write(OWN)
    write("/system.slice", pids_max="max\n", pids_current="3\n")
    write(SCOPE, cpu_max="5000 100000\n", cpu_stat="nr_periods 2\nnr_throttled 1\nthrottled_usec 9\n", io_stat="")
    write(SCOPE, io_max="253:0 rbps=max wbps=1000 riops=max wiops=max\n", memory_high="max\n", memory_max="max\n", pids_max="40\n")
    write(SCOPE, pids_current="3\n", memory_current="4096\n", io_pressure="full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
    return write


@pytest.fixture
def layout(tmp_path: Path) -> CgroupLayout:
    return CgroupLayout((Hierarchy("", str(tmp_path), controllers=frozenset({"cpu", "memory", "pids", "io"})),))


def watch_of(layout: CgroupLayout, tmp_path: Path) -> CgroupWatch:
    watch = CgroupWatch(KernelPaths.below(str(tmp_path / "nowhere")), layout, {"": OWN})
    watch.start()
    return watch


def judged(watch: CgroupWatch, layout: CgroupLayout, **kept: object) -> Situation:
    return Situation(
        TIMED_OUT, process(cgroup=SCOPE), KernelPaths.below("/nonexistent"), baseline=watch.baseline,
        read_counters_now=watch.counters_now, limits_then=watch.limits_of, _kept={"layout": layout, **kept},
    )


def test_limits_and_counters_of_a_scope_outlive_it(tree: Tree, layout: CgroupLayout, tmp_path: Path) -> None:
    watch = watch_of(layout, tmp_path)
    watch.note({"": SCOPE})
    tree(SCOPE, cpu_stat="nr_periods 12\nnr_throttled 9\nthrottled_usec 99\n", io_stat="253:0 rbytes=0 wbytes=5000 rios=0 wios=2\n")
    watch.look()
    shutil.rmtree(tmp_path / SCOPE.strip("/"))
    watch.finish()
    situation = judged(watch, layout)
    changes = situation.changes()
    file = f"{tmp_path}{SCOPE}/cpu.stat"
    assert (changes[file, "nr_throttled"].before, changes[file, "nr_throttled"].after) == (1, 9)
    assert changes[file, READ_AT].rise > 0
    assert changes[f"{tmp_path}{SCOPE}/io.stat", "253:0 wbytes"].rise == 5000  # the file was empty when it was first read
    assert blamed(cpu_max, situation).cause == "cgroup.cpu.max"
    assert situation.cgroup_limits("pids")[0].limit == 40
    assert ruled_out(memory_high, situation) == "no cgroup above it has a memory.high"


def test_the_command_that_moves_is_followed(tree: Tree, layout: CgroupLayout, tmp_path: Path) -> None:
    watch = watch_of(layout, tmp_path)
    watch.moved({"": OWN})
    assert watch._thread is None
    watch.moved({"": SCOPE})
    assert watch._thread is not None
    watch.finish()
    assert watch.limits_of({"": SCOPE})
    assert not watch._thread.is_alive()


def test_of_a_scope_that_was_never_seen_nothing_is_ruled_out(layout: CgroupLayout, tree: Tree, tmp_path: Path) -> None:
    watch = watch_of(layout, tmp_path)
    shutil.rmtree(tmp_path / SCOPE.strip("/"))
    watch.finish()
    for each in (cpu_max, memory_high, io_max):
        assert "has gone" in undecided(each, judged(watch, layout))


def test_a_scope_that_is_there_is_read_when_it_is_asked_for(layout: CgroupLayout, tree: Tree, tmp_path: Path) -> None:
    watch = watch_of(layout, tmp_path)
    watch.note({"": SCOPE})
    tree(SCOPE, pids_max="50\n")
    assert judged(watch, layout).cgroup_limits("pids")[0].limit == 50
    watch.finish()


def test_the_commands_own_cgroup_is_not_looked_at_again(layout: CgroupLayout, tree: Tree, tmp_path: Path) -> None:
    watch = watch_of(layout, tmp_path)
    watch.note({"": OWN})
    assert watch.limits_of({"": OWN}) == {}
    watch.finish()


def test_what_a_situation_keeps_is_not_read_again(layout: CgroupLayout, tree: Tree, tmp_path: Path) -> None:
    watch = watch_of(layout, tmp_path)
    known = (limit_at(SCOPE, 7, 7),)
    assert judged(watch, layout, **{"cgroup:pids": known}).cgroup_limits("pids") == known
    watch.finish()
