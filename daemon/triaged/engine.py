# SPDX-License-Identifier: Apache-2.0
"""Fact -> the rules for its type -> verdict -> store. A rule that raises is isolated: logged once for each error, counted."""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from triaged.model.facts import Fact, SubjectGone
from triaged.model.quoting import shown
from triaged.model.verdict import Fine, Problem, Undecided
from triaged.rules.rule import Rule
from triaged.store import Store, now_usec

_log = logging.getLogger(__name__)

_EXPIRY_AT_LEAST_S = 60.0
_EXPIRY_AT_MOST_S = 3600.0
_MAX_ERRORS = 200


class Engine:
    """Judges facts. `counters` are what it has judged: facts, problems, fine, undecided, failures.

    `failures` counts the exceptions of each rule.
    """

    def __init__(self, rules: Iterable[Rule], store: Store, clock: Callable[[], int] = now_usec) -> None:
        self.rules = tuple(rules)
        self.counters: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self._store = store
        self._clock = clock
        self._logged: set[tuple[str, str]] = set()
        by_type: dict[type[Any], list[Rule]] = {}
        seen: set[str] = set()
        for each in self.rules:
            if each.identifier in seen:
                raise ValueError(f"two rules are called {each.identifier}")
            seen.add(each.identifier)
            by_type.setdefault(each.on, []).append(each)
        self._by_type: Mapping[type[Any], tuple[Rule, ...]] = {kind: tuple(rules) for kind, rules in by_type.items()}

    def rule(self, identifier: str) -> Rule | None:
        """The rule of that id."""
        return next((each for each in self.rules if each.identifier == identifier), None)

    def take(self, fact: Fact) -> None:
        """Judges one fact. Raises nothing."""
        self._count("facts")
        if isinstance(fact, SubjectGone):
            self._end(fact)
            return
        for each in self._by_type.get(type(fact), ()):
            try:
                self._judge(each, fact)
            except Exception as error:
                self._note_failure(each, error)

    def _judge(self, each: Rule, fact: Fact) -> None:
        verdict = each.judge(fact)
        if isinstance(verdict, Problem):
            self._count("problems")
            self._store.report(each, verdict)
        elif isinstance(verdict, Fine):
            self._count("fine")
            self._store.resolve(each.identifier, verdict.subject, verdict.reason)
        elif isinstance(verdict, Undecided):
            self._count("undecided")
        else:
            raise TypeError(f"rule {each.identifier} gave {type(verdict).__name__}, not a verdict")

    def _note_failure(self, each: Rule, error: Exception) -> None:
        self._count("failures")
        self.failures[each.identifier] = self.failures.get(each.identifier, 0) + 1
        what = (each.identifier, f"{type(error).__name__}: {error}"[:200])
        if what not in self._logged and len(self._logged) < _MAX_ERRORS:
            self._logged.add(what)
            _log.error("rule %s failed, ignoring the fact; please report this", each.identifier, exc_info=error)

    def _end(self, gone: SubjectGone) -> None:
        """Closes what can no longer be: a risk or a lack of headroom. What was hit stays until it expires."""
        if gone.process is not None:
            self._store.resolve_about(f"process:{gone.process.pid}.{gone.process.start_ticks}", "the process ended")
        if gone.cgroup is not None:
            self._store.resolve_about(f"cgroup:{shown(gone.cgroup.path, 4200)}", "the cgroup was removed")

    def next_expiry(self) -> int | None:
        """When a finding expires next, µs since the epoch; None: none does as things stand."""
        return self._store.next_expiry()

    def expire(self, now: int | None = None) -> int:
        """Ends and forgets findings whose time is over at `now` (µs since the epoch); gives how many."""
        return self._store.expire(self._clock() if now is None else now)

    async def run_expiry(self) -> None:
        """Calls `expire` when it has something to do, at most once a minute, until cancelled."""
        while True:
            self.expire()
            due = self.next_expiry()
            pause = _EXPIRY_AT_MOST_S if due is None else (due - self._clock()) / 1e6
            await asyncio.sleep(min(max(pause, _EXPIRY_AT_LEAST_S), _EXPIRY_AT_MOST_S))

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1
