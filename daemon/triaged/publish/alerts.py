# SPDX-License-Identifier: Apache-2.0
"""What triaged says in the journal: one alert for a finding that opens, one entry when it ends.

A repetition is no new alert; a finding that opens again is. Findings that were open when triaged was stopped were told then.
In a storm the first alerts stand for the rest, which is counted and told as a number.
"""
from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import Enum

from triaged.changes import Change, What
from triaged.model.cgroup import is_user_manager
from triaged.model.finding import Finding, State
from triaged.model.fix import Fix
from triaged.publish.journal import Journal
from triaged.store import Store

_BURST = 50
_REFILL_S = 0.5
_QUIET_S = 2.0
_LOGGED_FAILURES = 10

_log = logging.getLogger(__name__)


class Event(str, Enum):
    """The MESSAGE_ID of each kind of entry; units/triaged.catalog explains each."""

    FINDING_OPENED = "1c45fc3fcada48d89ba08440a4c8edc9"
    FINDING_CLOSED = "9840c9bf7ff94e0b98a8b91454b52211"
    ALERTS_SUPPRESSED = "8f51b41fb5fd4193b493dc9447d02aaf"
    SOURCE_DEGRADED = "913ab63520f74d058c44f4a1d57489f0"
    SOURCE_RECOVERED = "6994e74158bf4aec952c283ee0c64940"
    STATE_NOT_SAVED = "737fa39b85ef46929d590e077f4d96d3"
    STATE_SAVED_AGAIN = "0b44ad05c1104b70bb7974a1bca75717"
    FIX_APPLIED = "6f1098cb46f94323862671cb7062f2c1"
    FIX_UNDONE = "cc72949b63614f8e80b4b284aa69283a"
    FIX_FAILED = "2a67feef0a7a408aaab5c29f4ef2a9d6"


def _typed(fix: Fix) -> str:
    """The first command of a fix, for reading: an argument with a space is quoted."""
    import shlex

    return shlex.join(fix.commands[0]) if fix.commands else fix.title


def finding_fields(finding: Finding) -> dict[str, str]:
    """The fields that name a finding and its subject, for any entry about it."""
    subject = finding.subject
    fields = {
        "TRIAGED_RULE": finding.rule,
        "TRIAGED_FINDING": finding.identifier,
        "TRIAGED_SUBJECT": str(subject.get("name", "")),
        "TRIAGED_SUBJECT_TYPE": str(subject.get("type", "")),
        "TRIAGED_KIND": finding.kind.value,
        "TRIAGED_STATE": finding.state.value,
        "TRIAGED_COUNT": str(finding.count),
    }
    unit = str(subject.get("unit", ""))
    if unit and is_user_manager(str(subject.get("cgroup", ""))):
        fields["OBJECT_SYSTEMD_USER_UNIT"] = unit
    elif unit:
        fields["OBJECT_SYSTEMD_UNIT"] = unit
    pid = subject.get("pid") or finding.pid
    if pid:
        fields["OBJECT_PID"] = str(pid)
    if finding.fixes:
        fields["TRIAGED_FIX"] = _typed(finding.fixes[0])
    return fields


class JournalPublisher:
    """Follows the store and writes the journal. Make it after the store has loaded, so that it knows what was told before."""

    def __init__(self, store: Store, journal: Journal, clock: Callable[[], float] = time.monotonic) -> None:
        self.suppressed = 0
        self.failures = 0
        self._store = store
        self._journal = journal
        self._clock = clock
        self._told = {finding.identifier for finding in store.findings() if finding.is_open}
        self._subscription = store.subscribe("journal")
        self._allowance = float(_BURST)
        self._filled_at = clock()
        self._unsaid = 0

    async def run(self) -> None:
        """Writes entries for all changes, until cancelled or until the store ends the subscription."""
        while True:
            try:
                # After a storm the number that was left out is told when it is over, not at the next finding.
                change = await asyncio.wait_for(anext(self._subscription), _QUIET_S if self._unsaid else None)
            except asyncio.TimeoutError:
                await self._is_allowed(0)
                continue
            except StopAsyncIteration:
                return
            try:
                if change.what is What.RESYNC:
                    await self._resync()
                elif change.finding is not None:
                    await self._take(change, change.finding)
            except Exception:  # the border of a publisher: one entry that cannot be written ends neither the others nor the daemon
                self.failures += 1
                if self.failures <= _LOGGED_FAILURES:
                    _log.exception("a journal entry could not be made, going on without it; please report this")

    async def _take(self, change: Change, finding: Finding) -> None:
        if change.what is What.OPENED:
            await self._open(finding)
        elif change.what is What.CLOSED:
            await self._close(finding)
        elif change.what is What.REMOVED:
            self._told.discard(finding.identifier)

    async def _resync(self) -> None:
        """Changes were lost: whoever is open and was not told, and the other way round."""
        findings = {finding.identifier: finding for finding in self._store.findings()}
        for identifier in sorted(self._told):
            finding = findings.get(identifier)
            if finding is None:
                self._told.discard(identifier)
            elif not finding.is_open:
                await self._close(finding)
        for finding in findings.values():
            if finding.is_open and finding.identifier not in self._told:
                await self._open(finding)

    async def _open(self, finding: Finding) -> None:
        self._told.add(finding.identifier)
        if await self._is_allowed():
            await self.send(Event.FINDING_OPENED, finding.summary, int(finding.severity), finding_fields(finding))

    async def _close(self, finding: Finding) -> None:
        if finding.identifier not in self._told:
            return  # an end without a beginning says nothing to anybody
        self._told.discard(finding.identifier)
        if await self._is_allowed():
            because = f": {finding.reason}" if finding.reason else ""
            message = f"{finding.rule} of {finding.subject.get('name', '')} is {finding.state.value}{because}"
            priority = 5 if finding.state is State.DISMISSED else 6
            await self.send(Event.FINDING_CLOSED, message, priority, finding_fields(finding))

    async def _is_allowed(self, entries: int = 1) -> bool:
        """Whether so many more entries are within the bound; after a storm says first how many were not."""
        now = self._clock()
        self._allowance = min(_BURST, self._allowance + (now - self._filled_at) / _REFILL_S)
        self._filled_at = now
        if self._allowance < max(1, entries):
            self._unsaid += entries
            self.suppressed += entries
            return False
        self._allowance -= entries
        if self._unsaid:
            message = f"{self._unsaid} entries about findings were left out of the journal, too many at once"
            fields = {"TRIAGED_COUNT": str(self._unsaid)}
            self._unsaid = 0
            await self.send(Event.ALERTS_SUPPRESSED, message, 4, fields)
        return True

    async def source_changed(self, name: str, state: str, reason: str, remedy: str, is_worse: bool) -> None:
        """Says that a source sees less than it should (`is_worse`), or all again."""
        fields = {"TRIAGED_SOURCE": name, "TRIAGED_SOURCE_STATE": state, "TRIAGED_REASON": reason, "TRIAGED_REMEDY": remedy}
        if is_worse:
            message = f"source {name} is {state}" + (f": {reason}" if reason else "") + (f"; {remedy}" if remedy else "")
            await self.send(Event.SOURCE_DEGRADED, message, 4, fields)
        else:
            await self.send(Event.SOURCE_RECOVERED, f"source {name} is {state} again", 6, fields)

    async def store_changed(self, is_saving: bool, reason: str, remedy: str) -> None:
        """Says that findings are no longer saved, or that they are again."""
        if is_saving:
            await self.send(Event.STATE_SAVED_AGAIN, "findings are saved again", 6, {})
        else:
            fields = {"TRIAGED_REASON": reason, "TRIAGED_REMEDY": remedy}
            await self.send(Event.STATE_NOT_SAVED, f"findings are kept in memory only: {reason}", 4, fields)

    async def fix_changed(self, event: Event, finding: Finding, fix_key: str, caller: str, message: str) -> None:
        """Says that a fix was applied, undone, or failed, and on whose behalf (`caller`: a user's name or number)."""
        fields = {**finding_fields(finding), "TRIAGED_FIX": fix_key, "TRIAGED_CALLER": caller}
        await self.send(event, message, 4 if event is Event.FIX_FAILED else 5, fields)

    async def send(self, event: Event, message: str, priority: int, fields: dict[str, str]) -> None:
        """One entry. `priority` is a syslog priority."""
        await self._journal.send(
            {"MESSAGE": message, "MESSAGE_ID": event.value, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": "triaged", **fields}
        )
