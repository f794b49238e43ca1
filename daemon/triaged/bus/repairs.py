# SPDX-License-Identifier: Apache-2.0
"""The Manager's methods that change something: fixes previewed, applied and undone, findings dismissed.

The order is the same for all: look whether the caller may see the finding and whether the arguments are right, ask polkit for
the caller, look again (an answer may take minutes), act, write down, tell.
"""
from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from triaged.bus.authority import Action, Authority
from triaged.bus.fix_values import any_variant, bus_error
from triaged.bus.objects import Caller, Handler, Result
from triaged.bus.seam import Variant, plain, signature_of
from triaged.errors import BusError, FixFailed, FixUnknown, TriagedError
from triaged.fixers import fixer
from triaged.fixers.fixer import Fixer, Outcome, Preview, RecordState
from triaged.model.finding import Finding, State
from triaged.model.fix import Fix, ManualStep

log = logging.getLogger(__name__)

ERROR = "org.triaged.Triage1.Error"
INVALID_ARGS = f"{ERROR}.InvalidArgs"
NAME_CHARACTERS = 300
WHY_CHARACTERS = 500
ROWS = 200


class FixEventKind(Enum):
    """What happened to a fix."""

    APPLIED = "applied"
    UNDONE = "undone"
    FAILED = "failed"


@dataclass(frozen=True)
class FixEvent:
    """A fix was applied, undone, or failed, on behalf of `caller`. `finding` is None where it is forgotten by now."""

    kind: FixEventKind
    finding: Finding | None
    finding_id: str
    key: str
    caller: Caller
    message: str


class Findings(Protocol):
    """What a fix does to its finding."""

    def find(self, identifier: str) -> Finding | None:
        """The finding with this id."""

    def close(self, identifier: str, state: State, reason: str) -> bool:
        """Closes it. Whether there is such a finding."""

    def reopen(self, identifier: str, reason: str = "") -> bool:
        """Opens it again. Whether there is such a finding."""


class Repairs:
    """Answers PreviewFix, ApplyFix, UndoFix, ListFixes and DismissFinding (`methods`, for `Service.provide`).

    `find` gives a finding that the caller may see or raises; `tell` is called with every event, in the event loop, and
    must not block.
    """

    def __init__(
        self,
        find: Callable[[Caller, str], Finding],
        findings: Findings,
        fixer: Fixer,
        authority: Authority,
        tell: Callable[[FixEvent], None],
    ) -> None:
        self._find = find
        self._findings = findings
        self._fixer = fixer
        self._authority = authority
        self._tell = tell

    def methods(self) -> Mapping[str, Handler]:
        """The handlers by the names of the methods."""
        return {
            "PreviewFix": self._preview_fix,
            "ApplyFix": self._apply_fix,
            "UndoFix": self._undo_fix,
            "ListFixes": self._list_fixes,
            "DismissFinding": self._dismiss_finding,
        }

    def _preview_fix(self, caller: Caller, identifier: str, key: str, options: Mapping[str, Any]) -> Awaitable[Result]:
        finding, fix = self._fix(caller, identifier, key)
        uid = _uid_option(options, finding)
        return self._previewed(fix, uid)

    async def _previewed(self, fix: Fix, uid: int | None) -> Result:
        if isinstance(fix, ManualStep):
            return (_row(_manual_preview(fix).as_dict()),)
        try:
            return (_row((await self._fixer.preview(fix, uid)).as_dict()),)
        except TriagedError as error:
            raise _translated(error) from error

    async def _apply_fix(self, caller: Caller, identifier: str, key: str, options: Mapping[str, Any]) -> Result:
        finding, fix = self._fix(caller, identifier, key)
        uid = _uid_option(options, finding)
        if isinstance(fix, ManualStep):
            raise BusError(f"{ERROR}.FixRefused", f"triaged does not do this itself: {fix.title}")
        await self._authority.demand(Action.APPLY_FIX, caller)
        _, fix = self._fix(caller, identifier, key)
        try:
            outcome = await self._fixer.apply(identifier, fix, _acting(caller), uid)
        except TriagedError as error:
            if isinstance(error, FixFailed):
                self._report(FixEventKind.FAILED, identifier, key, caller, str(error))
            raise _translated(error) from error
        if outcome.state is RecordState.VERIFIED:
            self._findings.close(identifier, State.FIXED, f"{fix.title}: {outcome.verification}")
        self._report(FixEventKind.APPLIED, identifier, key, caller, f"{fix.title}: {outcome.message}; {outcome.verification}")
        return (_outcome_row(outcome),)

    async def _undo_fix(self, caller: Caller, identifier: str, key: str, options: Mapping[str, Any]) -> Result:
        _name("finding", identifier)
        _name("fix", key)
        if options:
            raise BusError(INVALID_ARGS, f"option {next(iter(options))[:100]!r} is not known; UndoFix has none")
        # A finding may be forgotten while its fix still holds: then only those who may undo anything learn of it.
        if self._findings.find(identifier) is not None:
            self._find(caller, identifier)
        await self._authority.demand(Action.UNDO_FIX, caller)
        try:
            outcome = await self._fixer.undo(identifier, key, _acting(caller))
        except TriagedError as error:
            if isinstance(error, FixFailed):
                self._report(FixEventKind.FAILED, identifier, key, caller, str(error))
            raise _translated(error) from error
        finding = self._findings.find(identifier)
        if finding is not None and finding.state is State.FIXED:
            self._findings.reopen(identifier, f"a fix was undone: {outcome.title}")
        self._report(FixEventKind.UNDONE, identifier, outcome.key, caller, f"undone: {outcome.title}: {outcome.message}")
        return (_outcome_row(outcome),)

    async def _list_fixes(self, caller: Caller) -> Result:
        try:
            outcomes = await self._fixer.outcomes()
        except TriagedError as error:
            raise _translated(error) from error
        return ([_outcome_row(outcome) for outcome in outcomes if self._may_see(caller, outcome)][-ROWS:],)

    def _may_see(self, caller: Caller, outcome: Outcome) -> bool:
        if caller.uid in (0, outcome.caller.uid):
            return True
        try:
            self._find(caller, outcome.finding)
        except BusError:
            return False
        return True

    async def _dismiss_finding(self, caller: Caller, identifier: str, why: str) -> Result:
        _name("finding", identifier)
        if not why.strip() or len(why) > WHY_CHARACTERS or not why.isprintable():
            raise BusError(INVALID_ARGS, f"say why, in one line of at most {WHY_CHARACTERS} characters")
        self._find(caller, identifier)
        await self._authority.demand(Action.DISMISS, caller)
        self._findings.close(identifier, State.DISMISSED, f"{why.strip()} (user {caller.uid})")
        log.info("finding %s dismissed by user %s: %s", identifier, caller.uid, why.strip())
        return ()

    def _fix(self, caller: Caller, identifier: str, key: str) -> tuple[Finding, Fix]:
        """The finding and its fix. Raises: BusError NoSuchFinding, NoSuchFix, InvalidArgs."""
        _name("finding", identifier)
        _name("fix", key)
        finding = self._find(caller, identifier)
        for fix in finding.fixes:
            if fix.key == key:
                return finding, _with_seen(fix, finding)
        known = ", ".join(fix.key for fix in finding.fixes) or "it has none"
        raise _translated(FixUnknown(f"finding {identifier} has no fix {key[:200]!r}", f"its fixes: {known[:1000]}"))

    def _report(self, kind: FixEventKind, identifier: str, key: str, caller: Caller, message: str) -> None:
        log.debug("fix %s of %s for user %s: %s", key, identifier, caller.uid, message)
        self._tell(FixEvent(kind, self._findings.find(identifier), identifier, key, caller, message))


def _with_seen(fix: Fix, finding: Finding) -> Fix:
    """The fix with the value that the finding saw, where the rule left it to the evidence of that name."""
    name = getattr(fix, "parameter", "")
    if not name or isinstance(fix, ManualStep) or fix.seen:
        return fix
    seen = next((str(item.value) for item in finding.evidence if item.name == name), "")
    return replace(fix, seen=seen)


def _uid_option(options: Mapping[str, Any], finding: Finding) -> int | None:
    """As which user the failing thing is done again. Raises: BusError InvalidArgs."""
    for name, value in options.items():
        if name != "uid":
            raise BusError(INVALID_ARGS, f"option {name[:100]!r} is not known; known is uid")
        if signature_of(value) != "u":
            raise BusError(INVALID_ARGS, f"option uid: a number (u) is wanted, not {signature_of(value)[:20]}")
        if plain(value) >= 0xFFFFFFFE:
            raise BusError(INVALID_ARGS, f"option uid: {plain(value)} is no user")
        return int(plain(value))
    of_subject = finding.subject.get("uid")
    return of_subject if isinstance(of_subject, int) and of_subject >= 0 else finding.owner_uid


def _name(what: str, value: str) -> None:
    if len(value) > NAME_CHARACTERS or not value.isprintable():
        raise BusError(INVALID_ARGS, f"the name of a {what} is at most {NAME_CHARACTERS} printable characters long")


def _acting(caller: Caller) -> fixer.Caller:
    return fixer.Caller(-1 if caller.uid is None else caller.uid, caller.name)


def _translated(error: TriagedError) -> BusError:
    return bus_error(ERROR, error)


def _manual_preview(fix: ManualStep) -> Preview:
    return Preview(
        key=fix.key, type=fix.type, title=fix.title, target="", old="", new="", files=(), diff="", lasting=False, undoable=False,
        risk=fix.risk, commands=fix.commands, verification="none: a person does it",
        obstacle="triaged does not do this itself; the commands are for a person",
    )  # fmt: skip


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    values = outcome.as_dict()
    values["time"] = values.pop("time_usec")
    del values["record"], values["caller_bus_name"]
    row = _row(values)
    row["CallerUid"] = Variant("x", outcome.caller.uid)
    return row


def _row(values: Mapping[str, Any]) -> dict[str, Any]:
    """Names in CamelCase, as the properties of a finding."""
    return {"".join(part.capitalize() for part in name.split("_")): any_variant(name, value) for name, value in values.items()}

