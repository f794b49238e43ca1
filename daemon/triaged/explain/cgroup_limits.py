# SPDX-License-Identifier: Apache-2.0
"""The limits of the cgroups above a process, each read once and kept in the situation.

A cgroup may be gone when its process is judged (the scope of systemd-run goes with its last process): then what the run read of it
before stands for it, and where nothing was read, nothing is ruled out.
"""
from __future__ import annotations

from collections.abc import Mapping

from triaged.errors import KernelError
from triaged.explain.situation import Situation
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.cgroup_states import read_high
from triaged.kernel.cpu_quota import QuotaState, read_quotas
from triaged.kernel.io_limits import IoState, read_io
from triaged.kernel.paths import KernelPaths
from triaged.model.facts import CgroupLimit
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.process_state import ProcessState
from triaged.model.symptom import Symptom, SymptomKind


def cpu_quotas(situation: Situation) -> tuple[QuotaState, ...]:
    """The CPU quotas above the process, innermost first, also those without a limit."""
    process = situation.process

    def read() -> tuple[QuotaState, ...]:
        try:
            return () if process is None else read_quotas(situation.layout, process.identity.cgroup_for("cpu"))
        except KernelError:
            return ()

    return situation.of_cgroup("cpu", "cpu", read)


def memory_highs(situation: Situation) -> tuple[CgroupLimit, ...]:
    """The finite memory.high above the process, innermost first."""
    process = situation.process

    def read() -> tuple[CgroupLimit, ...]:
        try:
            found = () if process is None else read_high(situation.layout, process.identity.cgroup_for("memory"))
            return tuple(each.limit for each in found)
        except KernelError:
            return ()

    return situation.of_cgroup("memory.high", "memory", read)


def io_limits(situation: Situation) -> tuple[IoState, ...]:
    """The cgroups above the process that have I/O limits, innermost first."""
    process = situation.process
    controller = "io" if situation.layout.holding("io") is not None else "blkio"

    def read() -> tuple[IoState, ...]:
        try:
            return () if process is None else tuple(read_io(situation.layout, process.identity.cgroup_for(controller)))
        except KernelError:
            return ()

    return situation.of_cgroup("io", controller, read)


def read_limits(paths: KernelPaths, layout: CgroupLayout, cgroups: Mapping[str, str]) -> Mapping[str, object]:
    """All of these above a process in these cgroups as they are now, by the names under which a situation keeps them."""
    process = ProcessState(ProcessIdentity(0, 0, 0, -1, "", "", (), cgroups), Unknown("nobody is asked about"))
    situation = Situation(Symptom(SymptomKind.TIMED_OUT), process, paths)
    situation.kept("layout", lambda: layout)
    cpu_quotas(situation)
    memory_highs(situation)
    io_limits(situation)
    for controller in ("pids", "memory"):
        situation.cgroup_limits(controller)
    return situation.limits()
