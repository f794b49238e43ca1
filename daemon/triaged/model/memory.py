# SPDX-License-Identifier: Apache-2.0
"""What is known of a cgroup's memory besides its limit: at the moment of an OOM kill, after it, and in the minute before."""
from __future__ import annotations

from dataclasses import dataclass

from triaged.model.limit import Limit, Unknown


@dataclass(frozen=True)
class OomTask:
    """One line of the kernel's task list. Units: bytes. `comm` is raw."""

    pid: int
    uid: int
    rss_bytes: int
    swap_bytes: int
    oom_score_adj: int
    comm: str


@dataclass(frozen=True)
class OomReport:
    """What the kernel wrote of the cgroup whose limit was hit, at that very moment; Unknown where the log had no such line.

    Units: bytes; `limit_hits` is the failcnt of the page counter. `tasks` are those with the most memory, `tasks_left_out` counts
    the others.
    """

    used_bytes: int | Unknown
    limit: Limit
    limit_hits: int | Unknown
    swap_used_bytes: int | Unknown
    swap_limit: Limit
    tasks: tuple[OomTask, ...] = ()
    tasks_left_out: int = 0


@dataclass(frozen=True)
class MemoryDetail:
    """A cgroup's memory as it was read after a kill. Units: bytes; counters since it was made.

    `under_oom` exists on version 1 only and is true only while tasks wait for memory; `is_group` is memory.oom.group (version 2
    only). `swap_limit` bounds swap alone on version 2, memory and swap together on version 1 (`swap_counts_memory`).
    """

    used_bytes: int | Unknown
    peak_bytes: int | Unknown
    limit_hits: int | Unknown
    under_oom: bool | Unknown
    is_group: bool | Unknown
    swap_used_bytes: int | Unknown
    swap_limit: Limit
    swap_counts_memory: bool
    directory: str


@dataclass(frozen=True)
class MemorySample:
    """Memory in use at a cgroup at one time (µs since the epoch). Units: bytes; `swap_bytes` Unknown without swap accounting."""

    at_usec: int
    used_bytes: int
    swap_bytes: int | Unknown
