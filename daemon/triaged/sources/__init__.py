# SPDX-License-Identifier: Apache-2.0
"""When to look: one class per kernel interface. SOURCES is the whole list, in the order in which they are shown."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.requirement import ParameterRequirement, PlacementRequirement, ResourceLimitRequirement
from triaged.sources.cgroups import CgroupEvents
from triaged.sources.failures import Failures
from triaged.sources.filter_reader import FilterReader
from triaged.sources.headroom import Headroom
from triaged.sources.kernel_log import KernelLog
from triaged.sources.ledger import Ledger
from triaged.sources.memory_history import MemoryHistory
from triaged.sources.parameters import KernelParameters
from triaged.sources.process_events import ProcessEvents
from triaged.sources.seccomp_audit import SeccompAudit
from triaged.sources.seccomp_filters import Judge, SeccompFilters
from triaged.sources.source import Source
from triaged.sources.workload_cgroups import WorkloadCgroups


class Counters(Protocol):
    """How far kernel counters were reported before, over a restart of the daemon (the store keeps it)."""

    def counters(self) -> dict[str, int]: ...
    def set_counter(self, key: str, value: int) -> None: ...
    def forget_counter(self, key: str) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What sources are built from. The ledger is where the kernel log and the counters find that they saw the same; what was
    sampled of watched cgroups goes into `history`, for the facts about them.

    `filters` reads seccomp filters of processes that failed, `judge_filters` says what they refuse.
    """

    paths: KernelPaths
    table: ProcessTable
    parameters: tuple[ParameterRequirement, ...]
    limits: tuple[ResourceLimitRequirement, ...]
    placements: tuple[PlacementRequirement, ...]
    counters: Counters
    ledger: Ledger
    judge_filters: Judge
    failures: Failures
    filters: FilterReader | None = None
    history: MemoryHistory = field(default_factory=MemoryHistory)


def _cgroup_events(parts: Parts) -> Source:
    def keep(key: str, total: int) -> None:
        if total:
            parts.counters.set_counter(key, total)
        else:
            parts.counters.forget_counter(key)

    return CgroupEvents(parts.paths, parts.table, parts.counters.counters(), keep, parts.ledger, parts.history)


def _process_events(parts: Parts) -> Source:
    return ProcessEvents(parts.paths, parts.table, parts.placements, parts.limits, parts.failures)


def _seccomp_filters(parts: Parts) -> Source:
    return SeccompFilters(parts.paths, parts.failures, parts.filters, parts.judge_filters)


SOURCES: tuple[tuple[str, Callable[[Parts], Source]], ...] = (
    (ProcessEvents.name, _process_events),
    (WorkloadCgroups.name, lambda parts: WorkloadCgroups(parts.paths, parts.table, parts.history)),
    # The log before the counters: one pass over both then tells each kill with its victim, and from the counters only the rest.
    (KernelLog.name, lambda parts: KernelLog(parts.paths, parts.table, parts.ledger, parts.history)),
    (CgroupEvents.name, _cgroup_events),
    (SeccompAudit.name, lambda parts: SeccompAudit(parts.paths, parts.table)),
    (SeccompFilters.name, _seccomp_filters),
    (KernelParameters.name, lambda parts: KernelParameters(parts.paths, parts.parameters)),
    (Headroom.name, lambda parts: Headroom(parts.paths, parts.table)),
)
SOURCE_NAMES = tuple(name for name, _ in SOURCES)


def build_sources(parts: Parts) -> tuple[Source, ...]:
    """All sources, not yet started."""
    return tuple(build(parts) for _, build in SOURCES)
