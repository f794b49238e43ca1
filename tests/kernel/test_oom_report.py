# SPDX-License-Identifier: Apache-2.0
"""The kernel's report before an oom-kill line, as 6.18 (version 1), 6.12 and 6.1 (version 2) write it."""
from __future__ import annotations

import mmap

import pytest

from triaged.kernel.oom_report import ReportParser
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.memory import OomReport

V1 = """\
python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
memory: usage 8192kB, limit 8192kB, failcnt 19
memory+swap: usage 9216kB, limit 9007199254740988kB, failcnt 0
kmem: usage 24kB, limit 9007199254740988kB, failcnt 0
Memory cgroup stats for /ci:
cache 0
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
[  13642]     0  13642    20527     5398     3744     1654         0   102400        0             0 python3
[    977]  1000   977      100       20       10       10         0    20480        7          -500 a b),pid=1
[    978]  1000   978      100        1       10       10         0    20480        0             0 """
V2_OLD = """\
store.test invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
memory: usage 153600kB, limit 153600kB, failcnt 163
swap: usage 512kB, limit 0kB, failcnt 3
Tasks state (memory values in pages):
[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name
[    459]     0   459   500000    38400   200704        0             0 store.test"""


def report(text: str) -> OomReport:
    parser = ReportParser()
    for line in text.split("\n"):
        parser.feed(line)
    found = parser.finish()
    assert found is not None
    return found


def test_memory_swap_and_tasks_are_those_at_the_moment_of_the_kill() -> None:
    found = report(V1)
    assert (found.used_bytes, found.limit, found.limit_hits) == (8192 * 1024, 8192 * 1024, 19)
    assert (found.swap_used_bytes, found.swap_limit) == (1024 * 1024, UNLIMITED)
    assert [(task.pid, task.uid, task.comm) for task in found.tasks] == [
        (13642, 0, "python3"), (977, 1000, "a b),pid=1"), (978, 1000, "")
    ]
    assert found.tasks[0].rss_bytes == 5398 * mmap.PAGESIZE
    assert found.tasks[1].swap_bytes == 7 * mmap.PAGESIZE
    assert found.tasks[1].oom_score_adj == -500
    assert found.tasks_left_out == 0


def test_the_columns_of_an_older_kernel_are_found_by_their_names() -> None:
    found = report(V2_OLD)
    assert (found.used_bytes, found.swap_used_bytes, found.swap_limit) == (153600 * 1024, 512 * 1024, 0)
    assert [(task.pid, task.rss_bytes, task.comm) for task in found.tasks] == [(459, 38400 * mmap.PAGESIZE, "store.test")]


def test_of_many_tasks_the_largest_are_kept_and_the_others_counted() -> None:
    rows = [f"[{pid:7}]     0 {pid:5}      100    {pid:5}   4096        0             0 t{pid}" for pid in range(1, 101)]
    found = report("\n".join([*V2_OLD.split("\n")[:-1], *rows]))
    assert [task.pid for task in found.tasks] == list(range(100, 84, -1))
    assert found.tasks_left_out == 84


def test_without_a_report_there_is_none_and_one_report_is_given_once() -> None:
    parser = ReportParser()
    assert parser.finish() is None
    for line in V2_OLD.split("\n"):
        parser.feed(line)
    assert parser.finish() is not None
    assert parser.finish() is None


def test_a_report_that_was_cut_off_does_not_become_part_of_the_next() -> None:
    parser = ReportParser()
    for line in [*V1.split("\n"), "eater invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0"]:
        parser.feed(line)
    assert parser.finish() is None


def test_without_counters_the_task_list_stands_alone() -> None:
    found = report("\n".join(V2_OLD.split("\n")[3:]))
    assert isinstance(found.used_bytes, Unknown)
    assert isinstance(found.limit, Unknown)
    assert len(found.tasks) == 1


@pytest.mark.parametrize("line", [
    "[    459]     0   459   500000    x   200704        0             0 a", "[", "[  459", "[    459]", "memory: usage kB, limit",
])  # fmt: skip
def test_a_line_that_does_not_fit_is_passed_over(line: str) -> None:
    parser = ReportParser()
    for each in [*V2_OLD.split("\n")[:-1], line]:
        parser.feed(each)
    found = parser.finish()
    assert found is not None
    assert found.tasks == ()
