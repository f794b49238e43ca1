# SPDX-License-Identifier: Apache-2.0
"""The findings: opened, counted, closed, expired, capped, and saved before anybody hears of them.

`report` and its kin change memory at once and never wait. `run` saves what changed (in a thread, one at a time) and only then
tells the subscribers; `findings` and `find` give what was saved. Openings and closings are saved at once; repetitions at most
once a second for each finding. Without a directory, or where it fails, everything goes on in memory.
"""
from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from triaged.changes import Change, Subscription, What
from triaged.errors import StateError
from triaged.finding_files import MAX_FILE_BYTES, FindingFiles, counter_bytes
from triaged.model.finding import Finding, State, finding_id
from triaged.model.subject import Subject
from triaged.model.verdict import Evidence, Kind, Problem, Severity

_log = logging.getLogger(__name__)

_COALESCE_S = 1.0
_CATCH_UP_S = 2.0
_COUNTERS_EVERY_S = 10.0
_LOOK_EVERY_S = 0.1
_LAST_SEEN_EVERY_USEC = 3600 * 1_000_000
# A storm of findings costs a bounded share of a core: so many files, then a rest.
_BATCH = 128
_REST_S = 0.2
_MAX_COUNTERS = 20_000
_MAX_COUNTERS_BYTES = MAX_FILE_BYTES - 1024
_MAX_EVIDENCE = 64
_MAX_FIXES = 16
_DIGITS = (8, 12, 16, 24, 32, 64)


class ReportingRule(Protocol):
    """What the store needs to know of a rule."""

    @property
    def identifier(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def severity(self) -> Severity: ...
    @property
    def references(self) -> tuple[str, ...]: ...
    @property
    def expires_after_s(self) -> int: ...


@dataclass(frozen=True)
class StoreStatus:
    """Whether findings are saved. `reason` says why not, or ''; `directory` is where, '' for memory only."""

    directory: str
    is_saving: bool
    reason: str = ""
    remedy: str = ""


def now_usec() -> int:
    """The time, µs since the epoch."""
    return time.time_ns() // 1000


def _is_same(one: Finding, other: Finding) -> bool:
    """Whether a person would see no difference: the times at which the same was seen again are none."""
    def seen(items: Iterable[Evidence]) -> list[tuple[str, object, str]]:
        return [(item.name, item.value, item.source) for item in items]

    return (
        (one.state, one.severity, one.summary, one.pid) == (other.state, other.severity, other.summary, other.pid)
        and one.fixes == other.fixes
        and one.subject == other.subject
        and seen(one.evidence) == seen(other.evidence)
    )


def _places_of(finding: Finding) -> tuple[str, ...]:
    """The process or cgroup with which a finding ends; what was hit stays.

    What is about all runs of a workload in a place stays too, until it expires: a run is over in seconds, its scope goes with it,
    and the next one is started in the same way.
    """
    if finding.kind is Kind.HIT or finding.subject_key.startswith("workload:"):
        return ()
    places = [f"cgroup:{finding.subject['cgroup']}"] if finding.subject.get("cgroup") else []
    if finding.subject_key.startswith("process:"):
        places.append(finding.subject_key.split("#", 1)[0])
    return tuple(places)


class Store:
    """All findings. Not for use by several threads; `clock` gives µs since the epoch."""

    def __init__(
        self, directory: str = "", *, cap: int = 1000, closed_kept_s: int = 7 * 86400, boot: str = "",
        clock: Callable[[], int] = now_usec,
    ) -> None:
        self.dropped = 0
        self.on_status: Callable[[StoreStatus], None] | None = None
        self._cap = cap
        self._closed_kept_s = closed_kept_s
        self._boot = boot
        self._clock = clock
        self._files = FindingFiles(directory) if directory else None
        self._status = StoreStatus(directory, bool(directory), "" if directory else "kept in memory only")
        self._current: dict[str, Finding] = {}
        self._saved: dict[str, Finding] = {}
        self._by_key: dict[tuple[str, str], str] = {}
        self._reserved: set[str] = set()
        # Findings that end with their process or cgroup, by it: thousands of them may end in a second.
        self._places: dict[str, set[str]] = {}
        # For the cap: closed findings, then open ones by severity, each in the order in which they were last touched.
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._open: dict[Severity, OrderedDict[str, None]] = {severity: OrderedDict() for severity in Severity}
        # What is to be saved, with the loop time at which it is due.
        self._dirty: dict[str, float] = {}
        self._due_at = float("inf")
        self._looked_at = float("-inf")
        self._unsaved: set[str] = set()
        self._saved_at: dict[str, float] = {}
        self._counters: OrderedDict[str, int] = OrderedDict()
        self._counters_bytes = 0
        self._are_counters_dirty = False
        self._counters_saved_at = float("-inf")
        self._wake: asyncio.Event | None = None
        self._committed = asyncio.Event()
        self._subscriptions: list[Subscription] = []

    # Reading

    @property
    def status(self) -> StoreStatus:
        """Where findings are saved, and whether that works."""
        return self._status

    def findings(self) -> Sequence[Finding]:
        """All findings as they were last saved, in the order in which they were first seen."""
        return tuple(self._saved.values())

    def find(self, identifier: str) -> Finding | None:
        """A finding by its id, as it was last saved."""
        return self._saved.get(identifier)

    @property
    def open_count(self) -> int:
        """How many findings are open, as last saved."""
        return sum(finding.is_open for finding in self._saved.values())

    def subscribe(self, name: str, bound: int = 2000) -> Subscription:
        """The changes from now on, each after it was saved."""
        subscription = Subscription(name, bound)
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription."""
        subscription.close()
        self._subscriptions = [each for each in self._subscriptions if each is not subscription]

    # Loading

    def load(self) -> list[StateError]:
        """Takes over what the state directory holds; gives what was wrong there, for the log. Blocking; call it first."""
        if self._files is None:
            return []
        try:
            self._files.prepare()
            loaded = self._files.load()
            counters, complaints = self._files.load_counters(self._boot)
        except OSError as error:
            self._note_failure(error)
            return []
        self._reserved = loaded.reserved
        for finding in sorted(loaded.findings, key=lambda each: (each.first_seen_usec, each.identifier)):
            self._put(finding)
            self._saved[finding.identifier] = finding
        self._dirty.clear()
        self._due_at = float("inf")
        while len(self._current) > self._cap:
            self._evict(None)
        self._counters = OrderedDict(counters)
        self._counters_bytes = sum(map(counter_bytes, counters))
        return [*loaded.complaints, *complaints]

    # Changing

    def report(self, rule: ReportingRule, problem: Problem) -> str:
        """Takes a problem: a new finding, the same one again, or one that is open again. Gives its id, or '' if it was dropped."""
        now = problem.time_usec or self._clock()
        key, is_event = problem.subject.key, True
        before = self._lookup(rule.identifier, key)
        severity = rule.severity if problem.severity is None else problem.severity
        if before is None:
            if len(self._current) >= self._cap and not self._evict(severity):
                return ""
            identifier, first, count, state, reason = self._new_id(rule.identifier, key), now, problem.occurrences, State.OPEN, ""
        else:
            identifier, first, state, reason = before.identifier, before.first_seen_usec, before.state, before.reason
            # A state that goes on is not an event: a risk counts how often it began.
            is_event = rule.kind is Kind.HIT or state not in (State.OPEN, State.DISMISSED)
            count = before.count + (problem.occurrences if is_event else 0)
            if state is not State.DISMISSED:
                state, reason = State.OPEN, ""
        finding = Finding(
            identifier, rule.identifier, rule.kind, severity, state, key, problem.subject.as_dict(), problem.summary, first,
            max(now, before.last_seen_usec if before else 0), count, problem.subject.owner_uid,
            tuple(problem.evidence)[:_MAX_EVIDENCE], tuple(problem.fixes)[:_MAX_FIXES], tuple(rule.references), reason,
            problem.pid, rule.expires_after_s, before.extra if before else {},
        )
        saved = self._saved.get(identifier)
        is_old = saved is not None and finding.last_seen_usec - saved.last_seen_usec > _LAST_SEEN_EVERY_USEC
        self._put(finding, is_worth_saving=is_event or is_old or before is None or not _is_same(before, finding))
        return identifier

    def resolve(self, rule: str, subject: Subject, reason: str) -> None:
        """Closes the open finding of that rule and subject, if there is one: the rule looked, and it is well."""
        finding = self._lookup(rule, subject.key)
        if finding is not None and finding.is_open:
            self._put(replace(finding, state=State.RESOLVED, reason=reason))

    def resolve_about(self, place: str, reason: str) -> int:
        """Closes the open findings about a process ("process:PID.START") or cgroup ("cgroup:PATH") but the hits; gives how many."""
        found = [finding for finding in map(self._current.__getitem__, self._places.get(place, ())) if finding.is_open]
        for finding in found:
            self._put(replace(finding, state=State.RESOLVED, reason=reason))
        return len(found)

    def close(self, identifier: str, state: State, reason: str) -> bool:
        """Closes a finding as fixed, resolved or dismissed, whether it was open or not. Whether there is such a finding."""
        if state is State.OPEN:
            raise ValueError("closing a finding does not open it")
        finding = self._current.get(identifier)
        if finding is None:
            return False
        self._put(replace(finding, state=state, reason=reason))
        return True

    def reopen(self, identifier: str, reason: str = "") -> bool:
        """Opens a finding again (a dismissal was taken back, a fix undone). Whether there is such a finding."""
        finding = self._current.get(identifier)
        if finding is None:
            return False
        self._put(replace(finding, state=State.OPEN, reason=reason))
        return True

    def dismiss(self, identifier: str, why: str) -> bool:
        """A person says that it does not matter: it stays closed when it comes again. Whether there is such a finding."""
        return self.close(identifier, State.DISMISSED, why)

    def next_expiry(self) -> int | None:
        """When `expire` has something to do next, µs since the epoch; None: never as things stand."""
        return min((time for time in map(self._ends_at, self._current.values()) if time is not None), default=None)

    def expire(self, now: int | None = None) -> int:
        """Ends open findings that were not seen again for their time, forgets closed ones that are old enough; gives how many."""
        now = self._clock() if now is None else now
        due = [finding for finding in self._current.values() if (self._ends_at(finding) or now + 1) <= now]
        for finding in due:
            if finding.is_open:
                days = finding.expires_after_s / 86400
                self._put(replace(finding, state=State.EXPIRED, reason=f"not seen again for {days:g} days"))
            else:
                self._forget(finding.identifier)
        return len(due)

    def _ends_at(self, finding: Finding) -> int | None:
        if finding.is_open:
            return finding.expires_at_usec
        if finding.state is State.DISMISSED:  # forgetting a dismissal would bring the alert back
            return None
        kept_from = finding.last_seen_usec + finding.expires_after_s * 1_000_000
        return kept_from + self._closed_kept_s * 1_000_000

    # Counter baselines

    def counter(self, key: str) -> int | None:
        """The value up to which a kernel counter was reported, in this boot; None if it never was."""
        return self._counters.get(key)

    def counters(self) -> dict[str, int]:
        """Every counter baseline of this boot, by key."""
        return dict(self._counters)

    def set_counter(self, key: str, value: int) -> None:
        """Notes how far a kernel counter was reported; call it after the engine took the fact that reports it.

        Saved after the finding that came of it, every ten seconds at most: a crash reports twice rather than not at all.
        """
        if key not in self._counters:
            self._counters_bytes += counter_bytes(key)
        self._counters[key] = value
        self._counters.move_to_end(key)
        # The oldest make room: of those a restart tells again what was told. A larger file would not be read at all.
        while len(self._counters) > _MAX_COUNTERS or self._counters_bytes > _MAX_COUNTERS_BYTES:
            self._counters_bytes -= counter_bytes(self._counters.popitem(last=False)[0])
        self._touch_counters()

    def _touch_counters(self) -> None:
        self._are_counters_dirty = self._files is not None
        if self._are_counters_dirty:
            self._plan(self._counters_saved_at + _COUNTERS_EVERY_S)

    def forget_counter(self, key: str) -> None:
        """The counter is gone with its cgroup."""
        if self._counters.pop(key, None) is not None:
            self._counters_bytes -= counter_bytes(key)
            self._touch_counters()

    # Memory

    def _lookup(self, rule: str, key: str) -> Finding | None:
        identifier = self._by_key.get((rule, key))
        return self._current[identifier] if identifier else None

    def _new_id(self, rule: str, key: str) -> str:
        for digits in _DIGITS:
            identifier = finding_id(rule, key, digits)
            # One that was just forgotten may still have its file; the same subject takes its name again.
            holder = self._current.get(identifier) or self._saved.get(identifier)
            is_taken = holder is not None and (holder.rule, holder.subject_key) != (rule, key)
            if not is_taken and identifier not in self._reserved:
                return identifier
        raise StateError(finding_id(rule, key, _DIGITS[-1]), "another finding has the whole hash")

    def _bucket(self, finding: Finding) -> OrderedDict[str, None]:
        return self._open[finding.severity] if finding.is_open else self._closed

    def _put(self, finding: Finding, is_worth_saving: bool = True) -> None:
        identifier = finding.identifier
        before = self._current.get(identifier)
        if before is not None:
            self._bucket(before).pop(identifier, None)
            if _places_of(before) != _places_of(finding):
                self._unplace(before)
        self._bucket(finding)[identifier] = None
        self._current[identifier] = finding
        self._by_key[finding.rule, finding.subject_key] = identifier
        for place in _places_of(finding):
            self._places.setdefault(place, set()).add(identifier)
        if is_worth_saving:
            self._touch(identifier)

    def _forget(self, identifier: str) -> None:
        finding = self._current.pop(identifier)
        self._bucket(finding).pop(identifier, None)
        self._by_key.pop((finding.rule, finding.subject_key), None)
        self._unplace(finding)
        self._touch(identifier)

    def _unplace(self, finding: Finding) -> None:
        for place in _places_of(finding):
            self._places[place].discard(finding.identifier)
            if not self._places[place]:
                del self._places[place]

    def _evict(self, severity: Severity | None) -> bool:
        """Makes room: the closed finding that is longest untouched, else the like open one of the least severity.

        Whether there is room; not if all that is left is worse than `severity`.
        """
        self.dropped += 1
        for bucket in (self._closed, *(self._open[each] for each in sorted(Severity, reverse=True))):
            if bucket:
                identifier = next(iter(bucket))
                finding = self._current[identifier]
                if severity is not None and finding.is_open and finding.severity < severity:
                    return False
                self._forget(identifier)
                return True
        return False

    def _touch(self, identifier: str) -> None:
        """Plans the saving: at once for what is urgent or was quiet for a second, otherwise when the second is over."""
        due = 0.0 if self._is_urgent(identifier) else self._saved_at.get(identifier, float("-inf")) + _COALESCE_S
        if due >= self._dirty.get(identifier, float("inf")):
            return
        self._dirty[identifier] = due
        self._plan(due)

    def _plan(self, due: float) -> None:
        if due < self._due_at:
            self._due_at = due
            if self._wake is not None:
                self._wake.set()

    # Saving

    async def run(self) -> None:
        """Saves and tells, until cancelled; then what is left is saved and told once more."""
        loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        try:
            while True:
                self._wake.clear()
                if self._due_at == float("inf"):
                    await self._wake.wait()  # an idle daemon does not wake
                    continue
                # What is due next may be overtaken by something urgent, which sets the event.
                pause = max(self._due_at, self._looked_at + _LOOK_EVERY_S if self._due_at else 0.0) - loop.time()
                if pause > 0:
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._wake.wait(), pause)
                        continue
                committed = await self._commit_due(loop)
                self._committed.set()
                if committed >= _BATCH:
                    await asyncio.sleep(_REST_S)
        finally:
            self._wake = None
            self.flush()

    async def catch_up(self) -> None:
        """Saves and tells what was put in so far without waiting for its second; returns when it can be found.

        At the latest after two seconds: the disk is slow, or takes nothing.
        """
        waiting = set(self._dirty)
        self._dirty.update(dict.fromkeys(waiting, 0.0))
        if waiting:
            self._plan(0.0)
        until = time.monotonic() + _CATCH_UP_S
        while self._wake is not None and not waiting.isdisjoint(self._dirty) and time.monotonic() < until:
            self._committed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._committed.wait(), max(until - time.monotonic(), 0.0))

    def flush(self) -> None:
        """Saves and tells everything now. Blocking; for the end, and where no loop runs (a scan)."""
        for _ in range(2):  # the second time for what failed before and may work now
            self._settle(self._save([(each, self._current.get(each)) for each in self._dirty]), time.monotonic())
        if self._are_counters_dirty:
            self._are_counters_dirty = False
            self._note_failure(self._save_counters(dict(self._counters)))
        self._due_at = min(self._dirty.values(), default=float("inf"))

    def _is_urgent(self, identifier: str) -> bool:
        current, saved = self._current.get(identifier), self._saved.get(identifier)
        return current is None or saved is None or current.state is not saved.state or current.severity < saved.severity

    async def _commit_due(self, loop: asyncio.AbstractEventLoop) -> int:
        """Saves and tells what is due, at most a batch of it; gives how many."""
        now = self._looked_at = loop.time()
        write_counters = self._are_counters_dirty and self._counters_saved_at + _COUNTERS_EVERY_S <= now
        # What a counter says was reported must have been saved: then everything is due, and the counters are those of now.
        due = list(self._dirty) if write_counters else [each for each, time in self._dirty.items() if time <= now][:_BATCH]
        counters = dict(self._counters) if write_counters else {}
        batch = [(each, self._current.get(each)) for each in due]
        if self._files is None:
            self._settle([(identifier, finding, None) for identifier, finding in batch], now)
        elif batch or write_counters:
            # A thread of its own for each batch: an idle daemon has one thread.
            executor = ThreadPoolExecutor(1, "triaged-store")
            try:
                if batch:
                    self._settle(await loop.run_in_executor(executor, self._save, batch), loop.time())
                if write_counters:
                    self._are_counters_dirty = self._counters != counters
                    self._counters_saved_at = now
                    self._note_failure(await loop.run_in_executor(executor, self._save_counters, counters))
            except BaseException:
                executor.shutdown(wait=True)  # whoever saves next must not meet this thread at the same file
                raise
            executor.shutdown(wait=False)
        self._due_at = min(self._dirty.values(), default=float("inf"))
        if self._are_counters_dirty:
            self._due_at = min(self._due_at, self._counters_saved_at + _COUNTERS_EVERY_S)
        return len(batch)

    def _save(self, batch: Sequence[tuple[str, Finding | None]]) -> list[tuple[str, Finding | None, OSError | None]]:
        """Writes or removes the files. Blocking, and the one part that runs in the thread: it touches nothing but files."""
        out: list[tuple[str, Finding | None, OSError | None]] = []
        for identifier, finding in batch:
            failure = None
            if self._files is not None:
                try:
                    if finding is None:
                        self._files.remove(identifier)
                    else:
                        self._files.write(finding)
                except OSError as error:
                    failure = error
            out.append((identifier, finding, failure))
        return out

    def _save_counters(self, counters: dict[str, int]) -> OSError | None:
        if self._files is not None:
            try:
                self._files.write_counters(self._boot, counters)
            except OSError as error:
                return error
        return None

    def _settle(self, results: Sequence[tuple[str, Finding | None, OSError | None]], now: float) -> None:
        """Takes over what was saved, and tells it."""
        for identifier, finding, failure in results:
            if failure is not None:
                self._unsaved.add(identifier)
                self._note_failure(failure)
            else:
                self._unsaved.discard(identifier)
            if self._current.get(identifier) is finding:
                self._dirty.pop(identifier, None)
            before = self._saved.get(identifier)
            if finding is None:
                self._saved.pop(identifier, None)
                self._saved_at.pop(identifier, None)
            else:
                self._saved[identifier] = finding
                self._saved_at[identifier] = now
                if identifier in self._dirty:
                    self._dirty[identifier] = 0.0 if self._is_urgent(identifier) else now + _COALESCE_S
            self._tell(before, finding)
        if results and all(failure is None for _, _, failure in results) and not self._status.is_saving:
            # The directory works again: what was only in memory is written after all.
            for identifier in self._unsaved:
                self._dirty.setdefault(identifier, now)
            if not self._unsaved:
                self._note_recovery()

    def _tell(self, before: Finding | None, after: Finding | None) -> None:
        if after is None:
            if before is not None:
                self._publish(Change(What.REMOVED, before))
            return
        was_open = before is not None and before.is_open
        if after.is_open:
            self._publish(Change(What.CHANGED if was_open else What.OPENED, after))
        elif before is None:  # it came and went between two looks; nobody hears of an end without a beginning
            if after.state is not State.DISMISSED:
                self._publish(Change(What.OPENED, replace(after, state=State.OPEN, reason="")))
            self._publish(Change(What.CLOSED, after))
        else:
            self._publish(Change(What.CLOSED if was_open or before.state is not after.state else What.CHANGED, after))

    def _publish(self, change: Change) -> None:
        for subscription in self._subscriptions:
            subscription.put(change)

    def _note_failure(self, error: OSError | None) -> None:
        """Notes that saving failed, and says so, the first time."""
        if error is None or self._files is None or not self._status.is_saving:
            return
        reason = f"{error.filename or self._files.directory}: {error.strerror or error}"
        remedy = "make the state directory writable and leave some space; findings are saved again from then on"
        self._status = StoreStatus(self._files.directory, False, reason, remedy)
        _log.warning("cannot save findings (%s), going on in memory; %s", reason, remedy)
        if self.on_status is not None:
            self.on_status(self._status)

    def _note_recovery(self) -> None:
        if self._files is None:
            return
        self._status = StoreStatus(self._files.directory, True)
        _log.info("saving findings in %s again", self._files.directory)
        if self.on_status is not None:
            self.on_status(self._status)
