# SPDX-License-Identifier: Apache-2.0
"""How much of a limit is in use, and which of several limits binds first."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from triaged.model.limit import Limit, Unknown

OPENS_AT = 0.8
# Between the two nothing changes: a use that swings around 80 % is one finding, not a hundred.
CLOSES_BELOW = 0.7

@dataclass(frozen=True)
class Usage:
    """One limit and what is in use of it, at one place.

    `resource` is what runs out ("tasks", "files", "memory", "mappings", "accept queue", "ports", "inotify instances", ...);
    `limit_name` is the kernel's own name of the limit ("pids.max", "RLIMIT_NOFILE", "kernel.threads-max"); `where` is the place
    that it counts for ("host", "user 1000", "process 12", a cgroup's path, a socket). `unit` is the systemd unit of exactly that
    cgroup, or "". Units: bytes of memory; tasks, files, mappings and so on otherwise. `is_lower_bound`: at least so much is in
    use, more may be out of sight. `note` says why the limit does not bind ("root is exempt"), or "".
    """

    resource: str
    limit_name: str
    where: str
    used: int | Unknown
    limit: Limit
    used_from: str = ""
    limit_from: str = ""
    unit: str = ""
    is_lower_bound: bool = False
    note: str = ""

    @property
    def share(self) -> float | None:
        """In use, of the limit: 0.8 for 80 %. None where either is not a number, the limit is 0 or does not bind."""
        if not isinstance(self.used, int) or not isinstance(self.limit, int) or self.limit <= 0 or self.note:
            return None
        return self.used / self.limit

    @property
    def free(self) -> int | None:
        """How much more can be had; never below 0. None where that is not known or not limited."""
        if not isinstance(self.used, int) or not isinstance(self.limit, int) or self.note:
            return None
        return max(self.limit - self.used, 0)


def binding(usages: Iterable[Usage], resource: str) -> Usage | None:
    """The limit on `resource` that is reached first: the one with the least free. None where none is known to bind."""
    known = [usage for usage in usages if usage.resource == resource and usage.free is not None]
    return min(known, key=lambda usage: usage.free or 0, default=None)
