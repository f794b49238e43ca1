# SPDX-License-Identifier: Apache-2.0
"""What the kernel writes into its log before an oom-kill line: the memory of the cgroup at its limit, and its tasks.

Hard facts (seen on 6.18, 6.12 and 6.1):
- The lines of one report follow each other (the OOM handler holds a lock), with lines of others in between. The kernel writes at
  most ten reports in 5 s, each with its oom-kill line; kills beyond that have no report.
- "memory: usage 8192kB, limit 8192kB, failcnt 19" is the cgroup whose limit was hit, at that moment; of a host-wide kill there is
  none. Swap is "swap: ..." on version 2 and "memory+swap: ..." on version 1.
- The task list is of all tasks in and below that cgroup, in pages; vm.oom_dump_tasks switches it off. Its columns differ: the
  head of the table names them.
"""
from __future__ import annotations

import heapq
import mmap
import re

from triaged.model.limit import UNLIMITED, Limit, Unknown
from triaged.model.memory import OomReport, OomTask

_INVOKED = re.compile(r" invoked oom-killer: gfp_mask=")
_COUNTER = re.compile(r"^(memory|swap|memory\+swap): usage (\d+)kB, limit (\d+)kB, failcnt (\d+)$")
_HEAD = re.compile(r"^\[ +pid +\] +uid +tgid .*\bname$")
_ROW = re.compile(r"^\[ *(\d+)\] +(\S.*)$", re.S)
_NO_LINE = Unknown("the kernel log had no line about it")
_TASKS_KEPT = 16
# "No limit" is the page counter's maximum, LONG_MAX pages or bytes: more than any machine has, in kB.
_UNLIMITED_KB = 1 << 50


class ReportParser:
    """Takes the texts of records in; `finish` gives what they said and begins anew."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._counters: dict[str, tuple[int, Limit, int]] = {}
        self._columns: list[str] | None = None
        self._tasks: list[tuple[int, int, OomTask]] = []
        self._rows = 0

    def feed(self, text: str) -> None:
        """Takes one record; most say nothing."""
        if text.startswith("["):
            self._take_row(text)
        elif _INVOKED.search(text):
            self._begin()
        elif (match := _COUNTER.match(text)) is not None:
            limit = int(match.group(3))
            bound: Limit = UNLIMITED if limit >= _UNLIMITED_KB else limit * 1024
            self._counters[match.group(1)] = (int(match.group(2)) * 1024, bound, int(match.group(4)))

    def _take_row(self, text: str) -> None:
        if _HEAD.match(text):
            self._columns = text.replace("[", " ").replace("]", " ").split()
            return
        match = _ROW.match(text) if self._columns else None
        if match is None or self._columns is None:
            return
        words = [match.group(1), *match.group(2).split(None, len(self._columns) - 2)]
        if len(words) == len(self._columns) - 1:
            words.append("")  # a comm may be empty
        row = dict(zip(self._columns, words, strict=False))
        try:
            task = OomTask(
                pid=int(row["pid"]), uid=int(row["uid"]), rss_bytes=int(row["rss"]) * mmap.PAGESIZE,
                swap_bytes=int(row["swapents"]) * mmap.PAGESIZE, oom_score_adj=int(row["oom_score_adj"]), comm=row["name"],
            )
        except (KeyError, ValueError):
            return
        self._rows += 1
        heapq.heappush(self._tasks, (task.rss_bytes + task.swap_bytes, -self._rows, task))
        if len(self._tasks) > _TASKS_KEPT:
            heapq.heappop(self._tasks)

    def finish(self) -> OomReport | None:
        """The report that ends with an oom-kill line; None if there was none."""
        counters, tasks, rows = self._counters, self._tasks, self._rows
        self._begin()
        if not counters and not tasks:
            return None
        used, limit, hits = counters.get("memory", (_NO_LINE, _NO_LINE, _NO_LINE))
        swap: int | Unknown = _NO_LINE
        swap_limit: Limit = _NO_LINE
        if "swap" in counters:
            swap, swap_limit, _ = counters["swap"]
        elif "memory+swap" in counters and isinstance(used, int):
            both, swap_limit, _ = counters["memory+swap"]
            swap = max(both - used, 0)
        largest_first = tuple(task for _, _, task in sorted(tasks, reverse=True))
        return OomReport(used, limit, hits, swap, swap_limit, largest_first, rows - len(largest_first))
