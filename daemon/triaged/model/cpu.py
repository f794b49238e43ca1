# SPDX-License-Identifier: Apache-2.0
"""How much CPU a cgroup may use, and how much a Go process in it tries to use at once."""
from __future__ import annotations

from dataclasses import dataclass

from triaged.model.cgroup import CgroupId
from triaged.model.limit import Limit, Unknown
from triaged.model.process import ProcessIdentity


@dataclass(frozen=True)
class CpuQuota:
    """The CPU bandwidth of one cgroup: `quota_usec` of every `period_usec`. `file` holds it; `unit` as in `CgroupLimit`."""

    cgroup: CgroupId
    file: str
    quota_usec: Limit
    period_usec: int
    unit: str = ""

    @property
    def cores(self) -> float | None:
        """What the quota is worth in cores; None where it is not a number."""
        if isinstance(self.quota_usec, int) and self.period_usec > 0:
            return self.quota_usec / self.period_usec
        return None


@dataclass(frozen=True)
class GoProcess:
    """A live Go process and how many of its goroutines run at once. `origin` says what decided that.

    `cpus` are those of its affinity mask, which a cpuset makes smaller. runtime.GOMAXPROCS(), called by the program itself,
    cannot be seen from outside.
    """

    process: ProcessIdentity
    gomaxprocs: int | Unknown
    origin: str
    cpus: int | Unknown
