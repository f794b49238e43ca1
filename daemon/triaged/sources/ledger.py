# SPDX-License-Identifier: Apache-2.0
"""What the kernel log and the counters both tell, so that each kill is reported once.

A kill has a line in the kernel log (who it was) and a place in a counter (how many there were). Either may be missing: the log
is rate limited and may not be readable, a counter goes with its cgroup. Either may come first. So a line is
reported at once and stands as *credit* for the counter's rise; a rise without credit waits for its line for a moment and is
then reported without, as a *debt* that a late line pays silently.
"""
from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from triaged.kernel.kernel_log import ForkRejected, OomKill

WAIT_S = 0.2
_LATE_S = 5.0
_CREDIT_CAP = 4096
_OWED_CAP = 4096


@dataclass
class Owed:
    """Kills that a counter told of and no line yet. `is_below`: somewhere below `path`, in cgroups that are gone.

    `source` is whatever the counting side wants back with it.
    """

    path: str
    kills: int
    is_below: bool
    source: object
    deadline: float

    def matches(self, path: str) -> bool:
        """Whether a line that names `path` ("" if it names none) may be about these kills."""
        if not path or self.path == path:
            return True
        return self.is_below and _is_below(path, self.path)


class Ledger:
    """Reconciles the kernel log with the counters. One is shared by the two sources; both run in one event loop.

    `log_is_read` is set by the kernel log's source while it reads; without it nothing waits. The `on_...` functions are set by
    the counters' source while it runs.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.log_is_read = False
        self.on_kill: Callable[[str], None] | None = None
        self.on_refusal: Callable[[ForkRejected], None] | None = None
        self._clock = clock
        self._owed: list[Owed] = []
        self._debts: list[Owed] = []
        self._credit: OrderedDict[str, int] = OrderedDict()

    def take_kill(self, kill: OomKill, path: str) -> bool:
        """Takes a line about a kill in the cgroup `path` ("" if unknown). True: it is news, report it."""
        now = self._clock()
        self._debts = [debt for debt in self._debts if debt.kills > 0 and debt.deadline >= now]
        for owed in self._nearest(self._owed, path):
            owed.kills -= 1
            return not kill.is_repeated
        for debt in self._nearest(self._debts, path):
            debt.kills -= 1
            return False
        self._credit[path] = self._credit.pop(path, 0) + 1
        if len(self._credit) > _CREDIT_CAP:
            self._credit.popitem(last=False)
        return not kill.is_repeated

    def take_count(self, path: str, kills: int, source: object, is_below: bool = False) -> None:
        """Takes a counter's rise; what no line stands for yet comes out of `due` later."""
        kills -= self._spend(path, kills)
        if is_below and kills:
            for credited in [each for each in self._credit if _is_below(each, path)]:
                kills -= self._spend(credited, kills)
        kills -= self._spend("", kills)
        if kills > 0:
            wait = WAIT_S if self.log_is_read and len(self._owed) < _OWED_CAP else 0.0
            self._owed.append(Owed(path, kills, is_below, source, self._clock() + wait))

    def due(self, now: float | None = None) -> list[Owed]:
        """The kills that have waited long enough for a line."""
        now = self._clock() if now is None else now
        due = [owed for owed in self._owed if owed.kills > 0 and owed.deadline <= now]
        self._owed = [owed for owed in self._owed if owed.kills > 0 and owed.deadline > now]
        late = self._clock() + _LATE_S
        self._debts.extend(Owed(owed.path, owed.kills, owed.is_below, None, late) for owed in due)
        del self._debts[:-_OWED_CAP]
        return due

    def next_due(self) -> float | None:
        """When `due` should be asked next, on the ledger's clock; None if nothing waits."""
        return min((owed.deadline for owed in self._owed if owed.kills > 0), default=None)

    def _nearest(self, entries: Iterable[Owed], path: str) -> list[Owed]:
        """The entry that a line about `path` belongs to, in a list; the cgroup itself before one above it."""
        found = [entry for entry in entries if entry.kills > 0 and entry.matches(path)]
        return sorted(found, key=lambda entry: (entry.path != path, entry.is_below, -len(entry.path)))[:1]

    def _spend(self, path: str, kills: int) -> int:
        credit = self._credit.get(path, 0)
        spent = min(credit, kills)
        if spent:
            if spent == credit:
                del self._credit[path]
            else:
                self._credit[path] = credit - spent
        return spent


def _is_below(path: str, top: str) -> bool:
    return path.startswith(top if top.endswith("/") else top + "/")
