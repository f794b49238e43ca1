# SPDX-License-Identifier: Apache-2.0
"""What speaks for and against the causes of a SIGKILL."""
from __future__ import annotations

import re
from dataclasses import dataclass

from triaged.model.limit import UNLIMITED, Limit, Unknown

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_KILL = frozenset({"KILL", "SIGKILL", "9"})


@dataclass(frozen=True)
class OomCounter:
    """A counter of OOM kills: `before` when the process was first seen, `after` when it had ended.

    `path` is the cgroup that it belongs to, "" for the host.
    """

    path: str
    file: str
    before: int
    after: int | Unknown

    @property
    def is_unchanged(self) -> bool:
        return self.after == self.before


@dataclass(frozen=True)
class Relative:
    """A process above the killed one. `command` are its arguments, `age_s` is for how long it had lived at the kill, if known."""

    pid: int
    comm: str
    command: tuple[str, ...] = ()
    age_s: float | None = None

    @property
    def is_killing_timeout(self) -> bool:
        """Whether it is timeout(1), told to send SIGKILL: at once (-s KILL) or after its first signal (-k)."""
        if self.comm != "timeout":
            return False
        for number, word in enumerate(self.command[1:], 1):
            if not word.startswith("-"):
                return False  # the duration: what follows is the command
            after = self.command[number + 1] if number + 1 < len(self.command) else ""
            if word.startswith(("-k", "--kill-after")):
                return True
            if (word in ("-s", "--signal") and after in _KILL) or word.removeprefix("--signal=").removeprefix("-s") in _KILL:
                return True
        return False


    @property
    def kills_after_s(self) -> float | None:
        """After how many seconds timeout(1) sends SIGKILL; None where its arguments do not tell, or it never does."""
        signal, grace, words = "", 0.0, list(self.command[1:])
        while words and words[0].startswith("-"):
            word = words.pop(0)
            name, separator, value = word.partition("=")
            if not separator and word in ("-s", "--signal", "-k", "--kill-after") and words:
                name, value = word, words.pop(0)
            elif word[:2] in ("-s", "-k") and len(word) > 2:
                name, value = word[:2], word[2:]
            if name in ("-s", "--signal"):
                signal = value
            elif name in ("-k", "--kill-after"):
                grace = _seconds(value)
        after = _seconds(words[0]) if words else 0.0
        if after <= 0:
            return None
        if signal in _KILL:
            return after
        return after + grace if grace > 0 else None


def _seconds(text: str) -> float:
    """A duration of timeout(1) in s; 0 where it is none (and where it means: never)."""
    match = re.fullmatch(r"(\d*\.?\d+|\d+\.)([smhd]?)", text)
    return float(match.group(1)) * _UNITS[match.group(2)] if match else 0.0


@dataclass(frozen=True)
class KillEvidence:
    """What was found when a process had been killed.

    `counters` are of its cgroup and each ancestor, innermost first; `host` is the whole machine's. Units of `cpu_used_s` and
    `cpu_limit` (hard RLIMIT_CPU): s. `relatives` are its parent and that one's, as far as known. `is_cgroup_empty`: no process
    was left in its cgroup, or the cgroup was gone.
    """

    counters: tuple[OomCounter, ...]
    host: OomCounter | None
    cpu_used_s: float | Unknown
    cpu_limit: Limit
    relatives: tuple[Relative, ...]
    is_cgroup_empty: bool

    @property
    def oom_kills(self) -> tuple[OomCounter, ...]:
        """The counters that rose."""
        everywhere = (*self.counters, *((self.host,) if self.host else ()))
        return tuple(each for each in everywhere if isinstance(each.after, int) and each.after > each.before)

    @property
    def is_oom_ruled_out(self) -> bool:
        """Whether no OOM kill at all happened meanwhile, here (every ancestor's counter was read) or on the machine."""
        if self.host is not None and self.host.is_unchanged:
            return True
        return bool(self.counters) and all(each.is_unchanged for each in self.counters)

    @property
    def is_cpu_limit_hit(self) -> bool:
        """Whether it had used its RLIMIT_CPU up, as far as that can be seen; the kernel then sends SIGKILL itself."""
        if self.cpu_limit is UNLIMITED or not isinstance(self.cpu_limit, int) or isinstance(self.cpu_used_s, Unknown):
            return False
        # The limit is held against whole ticks, of which a busy machine gives a task only parts; what /proc shows is the time that
        # it really ran. Measured on 6.18 under load: a limit of 1 s killed at 0.78 to 0.96 s.
        return self.cpu_used_s >= self.cpu_limit * 0.7
