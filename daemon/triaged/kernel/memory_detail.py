# SPDX-License-Identifier: Apache-2.0
"""What the memory files of a cgroup say beside its limit: peak, failcnt, swap, oom.group; and one quick sample of its use.

Hard facts:
- under_oom of version 1's memory.oom_control is 1 only while tasks wait in the OOM handler: after a kill it reads 0.
- Version 2 bounds swap by itself (memory.swap.max), version 1 memory and swap together (memory.memsw.*).
- memory.peak exists since Linux 5.19, memory.swap.peak since 6.5.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.cgroups import ancestry, read_counters, read_limit, read_number
from triaged.model.limit import Limit, Unknown
from triaged.model.memory import MemoryDetail, MemorySample

_Value = TypeVar("_Value")


def read_memory_detail(hierarchy: Hierarchy, path: str) -> MemoryDetail:
    """The state of one cgroup's memory; what cannot be read is Unknown with the reason.

    Source: version 2: memory.{current,peak,events.local,oom.group,swap.current,swap.max}; version 1:
    memory.{usage_in_bytes,max_usage_in_bytes,failcnt,oom_control}, memory.memsw.{usage,limit}_in_bytes.
    Raises: Gone where the mount does not show that part of the tree.
    """
    directory = hierarchy.directory(path)
    if hierarchy.is_v2:
        return MemoryDetail(
            used_bytes=_or_unknown(read_number, f"{directory}/memory.current"),
            peak_bytes=_or_unknown(read_number, f"{directory}/memory.peak"),
            limit_hits=_counter(f"{directory}/memory.events.local", "max"),
            under_oom=Unknown("version 2 does not have it"),
            is_group=_flag(_or_unknown(read_number, f"{directory}/memory.oom.group")),
            swap_used_bytes=_or_unknown(read_number, f"{directory}/memory.swap.current"),
            swap_limit=_limit(f"{directory}/memory.swap.max"),
            swap_counts_memory=False,
            directory=directory,
        )
    used = _or_unknown(read_number, f"{directory}/memory.usage_in_bytes")
    both = _or_unknown(read_number, f"{directory}/memory.memsw.usage_in_bytes")
    return MemoryDetail(
        used_bytes=used,
        peak_bytes=_or_unknown(read_number, f"{directory}/memory.max_usage_in_bytes"),
        limit_hits=_or_unknown(read_number, f"{directory}/memory.failcnt"),
        under_oom=_flag(_counter(f"{directory}/memory.oom_control", "under_oom")),
        is_group=Unknown("version 1 does not have it"),
        swap_used_bytes=max(both - used, 0) if isinstance(both, int) and isinstance(used, int) else _first_unknown(both, used),
        swap_limit=_limit(f"{directory}/memory.memsw.limit_in_bytes"),
        swap_counts_memory=True,
        directory=directory,
    )


def read_memory_sample(hierarchy: Hierarchy, path: str) -> MemorySample:
    """What is in use at a cgroup now. About 25 µs.

    Source: version 2: memory.current, memory.swap.current; version 1: memory.usage_in_bytes, memory.memsw.usage_in_bytes.
    Raises: Gone, NotPermitted, Malformed.
    """
    directory = hierarchy.directory(path)
    used = read_number(f"{directory}/{'memory.current' if hierarchy.is_v2 else 'memory.usage_in_bytes'}")
    now = time.time_ns() // 1000
    if hierarchy.is_v2:
        return MemorySample(now, used, _or_unknown(read_number, f"{directory}/memory.swap.current"))
    both = _or_unknown(read_number, f"{directory}/memory.memsw.usage_in_bytes")
    return MemorySample(now, used, max(both - used, 0) if isinstance(both, int) else both)


def limited_paths(layout: CgroupLayout, path: str) -> tuple[str, ...]:
    """The cgroups from `path` to the root that have a finite memory limit, innermost first."""
    return tuple(limit.cgroup.path for limit in ancestry(layout, "memory", path) if isinstance(limit.limit, int))


def _or_unknown(read: Callable[[str], _Value], path: str) -> _Value | Unknown:
    try:
        return read(path)
    except KernelError as error:
        return Unknown(str(error))


def _limit(path: str) -> Limit:
    return _or_unknown(read_limit, path)


def _counter(path: str, field: str) -> int | Unknown:
    counters = _or_unknown(read_counters, path)
    if isinstance(counters, Unknown):
        return counters
    return counters.get(field, Unknown(f"{path} has no {field}"))


def _flag(value: int | Unknown) -> bool | Unknown:
    return value if isinstance(value, Unknown) else value != 0


def _first_unknown(*values: int | Unknown) -> Unknown:
    return next(value for value in values if isinstance(value, Unknown))
