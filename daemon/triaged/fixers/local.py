# SPDX-License-Identifier: Apache-2.0
"""Applies and undoes fixes in this process.

Order of events: check the closed list; compare with what the finding saw; write the originals down, durably; change; read
back; do the failing thing again; look once more whether it held; write down how it went. Whatever fails after the change
puts back what is still ours. After a crash at any point `recover` finds the truth by reading.
"""
from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from triaged.errors import FixBusy, FixFailed, FixRefused, FixRepeated, FixStale, FixUnknown, Gone, TriagedError
from triaged.fixers.fixer import Caller, Outcome, Preview, Probe, RecordState, TypeFixer
from triaged.fixers.part import Original, Part
from triaged.fixers.records import Record, Records, record_id
from triaged.fixers.verification import ProbeResult, judge, run_probe
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.model.fix import Fix, ManualStep

log = logging.getLogger(__name__)

SETTLE_S = 0.3  # how long a new value must hold before it counts: what watches a parameter puts it back faster than that
T = TypeVar("T")


class LocalFixer:
    """See `fixer.Fixer`. `on_step` is called with the name of each step when it is done (tests stop the process there)."""

    def __init__(
        self,
        fixers: Sequence[TypeFixer[Any]],
        records: Records,
        paths: KernelPaths,
        *,
        settle_s: float = SETTLE_S,
        on_step: Callable[[str], None] = lambda step: None,
        now_usec: Callable[[], int] = lambda: time.time_ns() // 1000,
        probe: Callable[[Probe], Awaitable[ProbeResult]] = run_probe,
    ) -> None:
        self._fixers: Mapping[type[Any], TypeFixer[Any]] = {fixer.kind: fixer for fixer in fixers}
        self._records = records
        self._paths = paths
        self._settle_s = settle_s
        self._step = on_step
        self._now_usec = now_usec
        self._probe = probe
        self._is_busy = False
        self._running: set[asyncio.Task[Any]] = set()

    async def preview(self, fix: Fix, uid: int | None = None) -> Preview:
        """See `Fixer.preview`. Raises: FixRefused, KernelError, BusError."""
        fixer = self._fixer(fix)
        parts = fixer.parts(fix)
        value_part = parts[fixer.value_part]
        obstacle = verification = ""
        notes: tuple[str, ...] = ()
        presents: tuple[str | None, ...] = ()
        diff = ""
        try:
            presents = await _read_all(parts)
            diff = "".join([await part.diff() for part in parts])
            await self._may_apply(fixer, fix, parts, presents)
            notes = await fixer.notes(fix, presents[fixer.value_part])
            plan = await fixer.probe(fix, presents[fixer.value_part], uid)
            verification = f"will {plan.plan}" if isinstance(plan, Probe) else f"none: {plan.why}"
        except TriagedError as error:
            obstacle = error.shown()
        old = presents[fixer.value_part] if presents else None
        return Preview(
            key=fix.key,
            type=fix.type,
            title=fix.title,
            target=value_part.name,
            old=old or "",
            new=value_part.wanted,
            files=tuple(part.file for part in parts if part.file),
            diff=diff,
            lasting=bool(getattr(fix, "lasting", True)) and fix.type != "set-resource-limit",
            undoable=True,
            risk=fixer.risk(fix),
            commands=fix.commands,
            verification=verification,
            notes=notes,
            obstacle=obstacle,
        )

    async def apply(self, finding: str, fix: Fix, caller: Caller, uid: int | None = None) -> Outcome:
        """See `Fixer.apply`. Raises: FixRefused, FixStale, FixRepeated, FixBusy, FixFailed, StateError, KernelError, BusError."""
        fixer = self._fixer(fix)
        return await self._to_its_end(self._apply(fixer, finding, fix, caller, uid))

    async def undo(self, finding: str, key: str, caller: Caller) -> Outcome:
        """See `Fixer.undo`. Raises: FixUnknown, FixRefused, FixStale, FixBusy, FixFailed, StateError."""
        return await self._to_its_end(self._undo(finding, key, caller))

    async def outcomes(self) -> tuple[Outcome, ...]:
        """See `Fixer.outcomes`. Raises: StateError."""
        return tuple(record.outcome() for record in await asyncio.to_thread(self._records.all))

    async def recover(self) -> tuple[Outcome, ...]:
        """Finds out what became of fixes that were under way when this process's predecessor ended, and of those that
        a reboot or the end of a process has ended. What it changed or learned. Call it once, before anything else.

        Raises: FixBusy, StateError.
        """
        return await self._to_its_end(self._recover())

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        # A caller that goes away must not leave a change half made: the work goes on without it.
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for what is under way."""
        while self._running:
            await asyncio.wait(tuple(self._running))

    def _fixer(self, fix: Fix, is_applied: bool = False) -> TypeFixer[Any]:
        if isinstance(fix, ManualStep):
            raise FixRefused(f"triaged does not do this itself: {fix.title}", "see its commands")
        fixer = self._fixers.get(type(fix))
        if fixer is None:
            raise FixRefused(f"fixes of type {fix.type} cannot be applied here: systemd is not running")
        if not is_applied:  # what a former version was allowed to apply can still be undone
            fixer.check(fix)
        return fixer

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        if self._is_busy:
            raise FixBusy("another fix is being applied or undone", "try again in a moment")
        self._is_busy = True
        try:
            with self._records.alone():
                yield
        finally:
            self._is_busy = False

    async def _may_apply(
        self, fixer: TypeFixer[Any], fix: Fix, parts: tuple[Part, ...], presents: tuple[str | None, ...]
    ) -> None:
        """Raises FixRepeated, FixStale or FixRefused where the fix must not be applied to what is there now."""
        value, wanted = presents[fixer.value_part], parts[fixer.value_part].wanted
        records = await asyncio.to_thread(self._records.all)
        holding = [record for record in records if record.state.is_open and parts[fixer.value_part].name in record.originals]
        if all(present == part.wanted for present, part in zip(presents, parts, strict=True)):
            if any(record.fix.key == fix.key for record in holding):
                raise FixRepeated(f"{fix.title}: applied already")
            raise FixStale(f"{parts[fixer.value_part].name} is {wanted} already; nothing to do")
        seen = fixer.seen(fix)
        ours = value == wanted and bool(holding)  # the same for now was applied before, and now it shall last
        if not fixer.is_as_seen(fix, value) and not ours:
            holder = await parts[fixer.value_part].holder()
            raise FixStale(
                f"{parts[fixer.value_part].name} is {value}, not {seen} as the finding saw" + (f" ({holder})" if holder else ""),
                "look at the finding again",
            )
        await fixer.judge(fix, presents)

    async def _apply(self, fixer: TypeFixer[Any], finding: str, fix: Fix, caller: Caller, uid: int | None) -> Outcome:
        async with self._alone():
            parts = fixer.parts(fix)
            presents = await _read_all(parts)
            await self._may_apply(fixer, fix, parts, presents)
            old = presents[fixer.value_part]
            plan = await fixer.probe(fix, old, uid)
            before: ProbeResult | None = await self._probe(plan) if isinstance(plan, Probe) and plan.compares else None
            originals = {part.name: await part.save() for part in parts}
            started = self._now_usec()
            record = Record(
                identifier=record_id(fix.key, started),
                finding=finding,
                fix=fix,
                state=RecordState.SAVED,
                originals=originals,
                caller=caller,
                boot_id=await asyncio.to_thread(self._boot_id),
                saved_usec=started,
                changed_usec=started,
                old=old or "",
                new=parts[fixer.value_part].wanted,
            )
            await asyncio.to_thread(self._records.put, record)
            self._step("saved")
            try:
                for part in parts:
                    if originals[part.name].value != part.wanted:
                        await part.write()
                    self._step("written")
                await self._read_back(parts)
                self._step("changed")
                record = await self._note(record, RecordState.APPLIED, "holds; not verified yet", "")
                self._step("applied")
                helped: bool | None = None
                verification = f"not verified: {plan.why}" if not isinstance(plan, Probe) else ""
                if isinstance(plan, Probe):
                    judged = judge(plan, before, await self._probe(plan))
                    helped, verification = judged.helped, judged.text
                if helped is False:
                    raise FixFailed(f"it did not help: {verification}")
                await asyncio.sleep(self._settle_s)
                await self._read_back(parts)
            except Exception as error:  # the border of a fixer: whatever it is, nothing half-done may stay
                if not isinstance(error, TriagedError):
                    log.exception("fixer for %s died, putting back", fix.key)
                left = await self._put_back(parts, originals)
                message = f"{error}; " + ("; ".join(left) if left else f"everything is as before ({old})")
                await self._note(record, RecordState.FAILED, message, "")
                raise FixFailed(f"{fix.title}: {message}", getattr(error, "remedy", "")) from error
            record = await self._note(
                record, RecordState.VERIFIED if helped else RecordState.APPLIED, f"was {old}, is {record.new}", verification
            )
            self._step("verified")
            return record.outcome()

    async def _undo(self, finding: str, key: str, caller: Caller) -> Outcome:
        async with self._alone():
            records = await asyncio.to_thread(self._records.all)
            record = _to_undo(records, finding, key)
            fixer = self._fixer(record.fix, is_applied=True)
            parts = fixer.parts(record.fix)
            for other in records:
                if other.state.is_open and other.saved_usec > record.saved_usec and set(other.originals) & set(record.originals):
                    raise FixRefused(f"{other.fix.title}: applied later and rests on this one", f"undo {other.fix.key} first")
            standing = await _standing(parts, record.originals)
            if standing in ("foreign", "gone"):
                message = "; ".join(await _changed_since(parts, record.originals))
                state = RecordState.ENDED if standing == "gone" else RecordState.SUPERSEDED
                await self._note(record, state, message, record.verification)
                raise FixStale(f"{record.fix.title}: not undone, {message}")
            record = await self._note(replace(record, caller=caller), RecordState.UNDOING, record.message, record.verification)
            self._step("undoing")
            left = await self._put_back(parts, record.originals)
            self._step("put-back")
            if await _holds_any(parts, record.originals):
                message = f"{record.fix.title}: could not be undone; " + "; ".join(left)
                await self._note(record, RecordState.APPLIED, message, record.verification)
                raise FixFailed(message)
            message = "; ".join([f"{record.old} is back" if not left else "undone as far as nobody has changed it since", *left])
            record = await self._note(record, RecordState.UNDONE, message, record.verification)
            self._step("undone")
            return record.outcome()

    async def _recover(self) -> tuple[Outcome, ...]:
        async with self._alone():
            boot_id = await asyncio.to_thread(self._boot_id)
            out = []
            for record in await asyncio.to_thread(self._records.all):
                if record.state.is_open:
                    try:
                        after = await self._recovered(record, boot_id)
                    except TriagedError as error:
                        log.warning("fix %s cannot be looked at, leaving it as it is: %s", record.fix.key, error.shown())
                        continue
                    if after is not None:
                        out.append(after.outcome())
            return tuple(out)

    async def _recovered(self, record: Record, boot_id: str) -> Record | None:
        fixer = self._fixer(record.fix, is_applied=True)
        parts = fixer.parts(record.fix)
        for part in parts:
            await part.tidy()
        standing = await _standing(parts, record.originals)
        was_under_way = record.state in (RecordState.SAVED, RecordState.UNDOING)
        if standing == "gone":
            return await self._note(record, RecordState.ENDED, "what it was set on does not exist any more", record.verification)
        if standing == "foreign":
            left = await self._put_back(parts, record.originals) if was_under_way else await _changed_since(parts, record.originals)
            state = RecordState.ENDED if record.boot_id != boot_id else RecordState.SUPERSEDED
            return await self._note(record, state, "; ".join(left), record.verification)
        if standing == "original":
            if record.state is RecordState.UNDOING:
                return await self._note(record, RecordState.UNDONE, f"{record.old} is back", record.verification)
            if record.state is RecordState.SAVED:
                return await self._note(record, RecordState.FAILED, "interrupted before anything was changed", "")
            state = RecordState.ENDED if record.boot_id != boot_id else RecordState.SUPERSEDED
            why = "ended with the boot that it was for" if state is RecordState.ENDED else "somebody else put it back"
            return await self._note(record, state, f"{why}: it is {record.old}", record.verification)
        if record.state is RecordState.UNDOING or (record.state is RecordState.SAVED and standing == "partly"):
            # Half done: what was begun is taken back, so that nothing half-done stays.
            left = await self._put_back(parts, record.originals)
            state = RecordState.UNDONE if record.state is RecordState.UNDOING else RecordState.FAILED
            return await self._note(record, state, "; ".join(["interrupted halfway; put back", *left]), "")
        if record.state is RecordState.SAVED:
            message = f"was {record.old}, is {record.new}; interrupted after the change"
            return await self._note(record, RecordState.APPLIED, message, "not verified: interrupted")
        if standing == "partly":
            if record.boot_id == boot_id:
                message = "; ".join(await _changed_since(parts, record.originals))
                return await self._note(record, record.state, message, record.verification)
            return None
        if record.state is RecordState.APPLIED and not record.verification:
            return await self._note(record, RecordState.APPLIED, f"was {record.old}, is {record.new}", "not verified: interrupted")
        return None

    async def _read_back(self, parts: Sequence[Part]) -> None:
        for part in parts:
            present = await part.read()
            if present != part.wanted:
                holder = await part.holder()
                by = f" ({holder})" if holder else ""
                raise FixFailed(f"{part.name} is {present} although {part.wanted.strip()} was written{by}")

    async def _put_back(self, parts: Sequence[Part], originals: Mapping[str, Original]) -> list[str]:
        """Restores every part that still holds what we wrote; a clause for each that is not as it was afterwards."""
        left = []
        for part in reversed(parts):
            original = originals[part.name]
            try:
                present = await part.read()
                if (part.holds(present) and present != original.value) or await part.leaves(original):
                    await part.restore(original)
                await part.tidy()
            except TriagedError as error:
                left.append(f"{part.name} could not be put back: {error}")
        for part in parts:
            try:
                present = await part.read()
                if present != originals[part.name].value:
                    left.append(await _described(part, originals[part.name], present))
            except TriagedError as error:
                left.append(f"{part.name}: {error}")
        return left

    async def _note(self, record: Record, state: RecordState, message: str, verification: str) -> Record:
        record = replace(record, state=state, message=message, verification=verification, changed_usec=self._now_usec())
        await asyncio.to_thread(self._records.put, record)
        return record

    def _boot_id(self) -> str:
        return read_text(f"{self._paths.proc}/sys/kernel/random/boot_id", 64).strip()


def _to_undo(records: Sequence[Record], finding: str, key: str) -> Record:
    of_finding = [record for record in records if record.finding == finding]
    holding = [record for record in of_finding if record.state.is_open and key in ("", record.fix.key)]
    keys = sorted({record.fix.key for record in holding})
    if len(keys) > 1:
        raise FixUnknown(f"finding {finding[:200]} has more than one applied fix", f"name one of {', '.join(keys)}")
    if holding:
        return holding[-1]
    closed = [record for record in of_finding if key in ("", record.fix.key)]
    if closed:
        raise FixUnknown(f"{closed[-1].fix.title}: there is nothing to undo, it is {closed[-1].state.value} ({closed[-1].message})")
    raise FixUnknown(f"no fix of finding {finding[:200]} has been applied")


async def _read_all(parts: Sequence[Part]) -> tuple[str | None, ...]:
    out = []
    for part in parts:
        try:
            out.append(await part.read())
        except Gone as error:
            raise FixStale(f"there is no {part.name} here (any more)", "look at the finding again") from error
    return tuple(out)


async def _standing(parts: Sequence[Part], originals: Mapping[str, Original]) -> str:
    """How the host stands to a record: "original", "ours", "partly" (some is ours), "foreign" (nothing is ours any more, and
    somebody else changed something), "gone"."""
    ours = originals_left = partly = 0
    for part in parts:
        try:
            present = await part.read()
        except Gone:
            return "gone"
        if present == part.wanted:
            ours += 1
        elif present == originals[part.name].value:
            originals_left += 1
        elif part.holds(present):
            partly += 1
    if ours == len(parts):
        return "ours"
    if originals_left == len(parts):
        return "original"
    return "partly" if ours or partly else "foreign"


async def _holds_any(parts: Sequence[Part], originals: Mapping[str, Original]) -> bool:
    """Whether some part still holds what we wrote, or cannot be read."""
    try:
        presents = [await part.read() for part in parts]
    except TriagedError:
        return True
    return any(
        part.holds(present) and present != originals[part.name].value for part, present in zip(parts, presents, strict=True)
    )


async def _changed_since(parts: Sequence[Part], originals: Mapping[str, Original]) -> list[str]:
    out = []
    for part in parts:
        try:
            present = await part.read()
            if present != part.wanted:
                out.append(await _described(part, originals[part.name], present))
        except TriagedError as error:
            out.append(str(error))
    return out


async def _described(part: Part, original: Original, present: str | None) -> str:
    if present == original.value:
        return f"{part.name} is {present} again, as it was before"
    holder = await part.holder()
    now = present.strip() if present is not None else "not set"
    return f"{part.name} is {now} now, not {part.wanted.strip()}" + (f": {holder}" if holder else "")

