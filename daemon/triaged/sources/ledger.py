# SPDX-License-Identifier: Apache-2.0
"""What the kernel log and the counters both tell, so that each kill is reported once.

A kill has a line in the kernel log (who it was) and a place in a counter (how many there were). Either may be missing: the log
is rate limited and may not be readable, a counter goes with its cgroup. Either may come first. So a line is
reported at once and stands as *credit* for the counter's rise; a rise without credit waits for its line for a moment and is
then reported without, as a *debt* that a late line pays silently.

Of more than ten kills in 5 s the kernel writes only pid and comm. Where nobody knows the cgroup of that pid, the line is *held*
for a moment: if just one counter rises meanwhile, victim and cgroup belong together; of several, the counters are told, which know
the cgroups, and the lines are not. Which pids were seen in which cgroup is kept here too, for those lines; and which cgroups
vanished without a kill of their own: a line that remains when all living counters were read, and the only such cgroup, belong
together.
"""
from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from triaged.kernel.kernel_log import ForkRejected, OomKill

WAIT_S = 0.2
HOLD_S = 0.3
_PATIENCE_S = 1.5
_LATE_S = 5.0
_CREDIT_CAP = 4096
_OWED_CAP = 4096
_HELD_CAP = 4096
_MEMBERS_CAP = 8192
_MEMBER_AGE_S = 60.0
_PLACED_CAP = 4096
_VANISHED_CAP = 1024
_VANISHED_BEFORE_S = 0.5  # a line may be read so long after the cgroup is seen to be gone


@dataclass
class Owed:
    """Kills that a counter told of and no line yet. `is_below`: somewhere below `path`, in cgroups that are gone.

    `source` is whatever the counting side wants back with it. `line` is the kernel log's word about it, if it named no cgroup.
    """

    path: str
    kills: int
    is_below: bool
    source: object
    deadline: float
    line: OomKill | None = None

    def matches(self, path: str) -> bool:
        """Whether a line that names `path` ("" if it names none) may be about these kills."""
        if not path or self.path == path:
            return True
        return self.is_below and _is_below(path, self.path)


@dataclass(frozen=True)
class Vanished:
    """The cgroups that went at about the time of a kill, and had none that was told.

    `is_complete`: of all that live the counters were read since, so that it was in one of these. Of `lines` such kills this is the
    `number`th, both in the order in which they came.
    """

    paths: tuple[str, ...]
    is_complete: bool
    lines: int = 1
    number: int = 0

    @property
    def only(self) -> str:
        """The one that is left for the kill, or ''. One kill, one cgroup: so it was; as many of both: so it most likely was."""
        return self.paths[self.number] if self.is_complete and len(self.paths) == self.lines else ""

    def if_possible(self, path: str) -> str:
        """`path`, or '' where the kill cannot have been: it lives, and its counter, which was read since, did not rise."""
        return path if path in self.paths or not self.is_complete else ""


@dataclass
class _Held:
    """A line that names no cgroup. `is_told`: by a counter, with it or instead of it."""

    kill: OomKill
    since: float
    deadline: float
    is_told: bool = False


class Ledger:
    """Reconciles the kernel log with the counters. One is shared by the two sources; both run in one event loop.

    `log_is_read` is set by the kernel log's source while it reads; without it nothing waits. The `on_...` functions are set by
    the counters' source while it runs. `dropped` counts held lines for which there was no room.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.log_is_read = False
        self.dropped = 0
        self.on_kill: Callable[[str], None] | None = None
        self.on_refusal: Callable[[ForkRejected], None] | None = None
        self._clock = clock
        self._owed: list[Owed] = []
        self._debts: list[Owed] = []
        self._credit: OrderedDict[str, int] = OrderedDict()
        self._held: list[_Held] = []
        self._members: OrderedDict[int, tuple[str, float]] = OrderedDict()
        self._placed: OrderedDict[str, None] = OrderedDict()
        self._vanished: deque[tuple[float, str]] = deque(maxlen=_VANISHED_CAP)
        self._living_read_at = float("-inf")

    def take_kill(self, kill: OomKill, path: str) -> bool:
        """Takes a line about a kill in the cgroup `path` ("" if unknown). True: it is news, report it."""
        now = self._clock()
        self._note_placed(path)
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

    def hold(self, kill: OomKill) -> None:
        """Holds a line that names no cgroup until `release`."""
        now = self._clock()
        if len(self._held) >= _HELD_CAP:
            del self._held[0]
            self.dropped += 1
        self._held.append(_Held(kill, now, now + HOLD_S))

    def release(self) -> list[tuple[OomKill, Vanished]]:
        """The held lines whose time is over and that no counter spoke for, each with where it may have been."""
        now = self._clock()
        # A counter that rose meanwhile may yet speak for it; and what goes by elimination waits until all counters were read.
        is_owed = any(owed.kills > 0 for owed in self._owed)
        waiting = [held for held in self._held if not held.is_told]

        def is_due(held: _Held) -> bool:
            is_early = is_owed or self._living_read_at < held.since
            return now >= held.deadline + (_PATIENCE_S if is_early else 0.0)

        self._held = [held for held in waiting if not is_due(held)]
        unplaced = [held for held in waiting if not held.kill.is_repeated]
        due = [held for held in unplaced if is_due(held)]
        since = unplaced[0].since if unplaced else now
        return [(held.kill, self._candidates(since, held, len(unplaced), number)) for number, held in enumerate(due)]

    def pay_debt(self) -> bool:
        """Whether a counter was told without its line, of which a line without a cgroup may now be the one; it is then paid."""
        now = self._clock()
        self._debts = [debt for debt in self._debts if debt.kills > 0 and debt.deadline >= now]
        if self._debts:
            self._debts[0].kills -= 1
        return bool(self._debts)

    def _candidates(self, since: float, held: _Held, lines: int, number: int) -> Vanished:
        paths = [path for when, path in self._vanished if when >= since - _VANISHED_BEFORE_S and path not in self._placed]
        return Vanished(tuple(dict.fromkeys(paths)), self._living_read_at >= held.since, lines, number)

    def note_vanished(self, path: str) -> None:
        """Takes note that a cgroup is gone, and what its own counter said last is not known."""
        self._vanished.append((self._clock(), path))

    def note_living_read(self, at: float) -> None:
        """Takes note that the counters of all living cgroups were read, beginning at `at`."""
        self._living_read_at = at

    def _note_placed(self, path: str) -> None:
        self._placed[path] = None
        self._placed.move_to_end(path)
        if len(self._placed) > _PLACED_CAP:
            self._placed.popitem(last=False)

    def next_release(self) -> float | None:
        """When `release` should be asked next, on the ledger's clock; None if nothing is held."""
        now = self._clock()
        # One whose time is over waits for a counter: asked again soon.
        return min((max(held.deadline, now + WAIT_S / 4) for held in self._held), default=None)

    def note_members(self, path: str, pids: Iterable[int]) -> None:
        """Takes note that these processes were seen in the cgroup."""
        now = self._clock()
        for pid in pids:
            self._members[pid] = (path, now)
            self._members.move_to_end(pid)
        while len(self._members) > _MEMBERS_CAP:
            self._members.popitem(last=False)

    def cgroup_of(self, pid: int) -> str:
        """The cgroup in which the process was seen within the last minute, or ''. A pid is not used again so soon."""
        path, when = self._members.get(pid, ("", 0.0))
        return path if path and self._clock() - when <= _MEMBER_AGE_S else ""

    def take_count(self, path: str, kills: int, source: object, is_below: bool = False) -> None:
        """Takes a counter's rise; what no line stands for yet comes out of `due` later."""
        if not is_below:
            self._note_placed(path)
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
        held = [each for each in self._held if not each.is_told]
        total = sum(owed.kills for owed in due)
        if held and len(held) == total == 1 and not self._owed:
            due[0].line = held[0].kill
        for each in held[:total]:
            each.is_told = True
        # What a held line stood for owes nothing more.
        paid = min(len(held), total)
        for owed in due:
            here = min(paid, owed.kills)
            paid -= here
            if owed.kills > here:
                self._debts.append(Owed(owed.path, owed.kills - here, owed.is_below, None, late))
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
