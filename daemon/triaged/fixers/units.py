# SPDX-License-Identifier: Apache-2.0
"""Units of the system's systemd: resource properties at run time, and what only a unit file can say.

Facts that shape this module: SetUnitProperties() takes resource-control properties only (no LimitXXX=, no Slice=), applies
them at once and writes one drop-in per property, 50-NAME.conf, below system.control of /etc or /run (of a transient
unit: below its transient directory). Setting the old value again would leave a drop-in that pins it; so undo sets the old
value, then puts back the drop-ins as they were, and reloads: until then systemd would call the unit changed on disk.
"""
from __future__ import annotations

import asyncio
import difflib
import mmap
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from triaged.errors import FixFailed, FixRefused, KernelError
from triaged.fixers.fixer import Probe, TypeFixer, Unverifiable
from triaged.fixers.own_file import OwnFile
from triaged.fixers.part import Original, Part
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.model.fix import SetUnitProperty, SetUnitSetting
from triaged.model.unit_filter import SETTING as SYSTEM_CALL_FILTER
from triaged.model.unit_filter import added_calls

INFINITY = (1 << 64) - 1
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.(service|scope|slice|socket|mount|swap)")
_SERVICE = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.service")


class UnitManager(Protocol):
    """What is needed of the system's systemd. Every method may raise BusError."""

    async def read_property(self, unit: str, name: str) -> str | int | bool | list[str]:
        """A property of the unit by its D-Bus name, of the interface that has it. Loads the unit where need be."""

    async def set_property(self, unit: str, name: str, signature: str, value: int | str | bool, *, runtime: bool) -> None:
        """SetUnitProperties with one property."""

    async def read_filter(self, unit: str) -> tuple[bool, tuple[str, ...]]:
        """SystemCallFilter= of the service as systemd has it loaded: whether it is a list of what is allowed, and its calls."""

    async def reload(self) -> None:
        """Reads the unit files again (daemon-reload)."""


@dataclass(frozen=True)
class Property:
    """A unit property on the list: its D-Bus name, how the value is written in unit files, and the risk of raising it."""

    bus_name: str
    parse: Callable[[str], int]
    text: Callable[[int], str]
    risk: str


def _parse_tasks(value: str) -> int:
    return INFINITY if value == "infinity" else _number(value, 1, 1 << 40)


def _parse_bytes(value: str) -> int:
    if value == "infinity":
        return INFINITY
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(value[-1:], 1)
    number = _number(value[:-1] if factor > 1 else value, 1, 1 << 62) * factor
    if not 4 << 20 <= number < 1 << 62:
        raise ValueError("from 4M up")
    return number


def _parse_quota(value: str) -> int:
    # CPUQuotaPerSecUSec: 100 % is 1 s of CPU time per second.
    return INFINITY if value in ("", "infinity") else _number(value.removesuffix("%"), 1, 1_000_000) * 10_000


def _parse_weight(value: str) -> int:
    return _number(value, 1, 10_000)


def _number(text: str, minimum: int, maximum: int) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or not minimum <= int(text) <= maximum:
        raise ValueError(f"a number from {minimum} to {maximum}")
    return int(text)


def _number_text(value: int) -> str:
    return "infinity" if value == INFINITY else str(value)


def _quota_text(value: int) -> str:
    return "infinity" if value == INFINITY else f"{value // 10_000}%"


_SHARE = "the other units get less of the machine when this one uses what it may"
PROPERTIES: Mapping[str, Property] = {
    "CPUQuota": Property("CPUQuotaPerSecUSec", _parse_quota, _quota_text, _SHARE),
    "CPUWeight": Property("CPUWeight", _parse_weight, _number_text, _SHARE),
    "MemoryHigh": Property("MemoryHigh", _parse_bytes, _number_text, _SHARE),
    "MemoryMax": Property("MemoryMax", _parse_bytes, _number_text, _SHARE),
    "MemorySwapMax": Property("MemorySwapMax", _parse_bytes, _number_text, _SHARE),
    "TasksMax": Property("TasksMax", _parse_tasks, _number_text, "a program that forks without end is stopped later"),
}
# What systemd reads only from unit files. A value is SOFT or SOFT:HARD.
_LIMITS = ("LimitAS", "LimitCORE", "LimitDATA", "LimitFSIZE", "LimitMEMLOCK", "LimitMSGQUEUE", "LimitNOFILE", "LimitNPROC",
           "LimitSIGPENDING", "LimitSTACK")  # fmt: skip
SETTINGS = (*_LIMITS, "Slice", SYSTEM_CALL_FILTER)
_MORE_CALLS = "whoever breaks into the unit's processes can make these calls, too"
_OTHER_FILTERS = (
    "RestrictNamespaces=, RestrictAddressFamilies=, LockPersonality=, ProtectKernelModules= and their like load filters, too; "
    "so may the program itself (triagectl seccomp dump PID)"
)
_LIMIT_VALUE = re.compile(r"(?:[0-9]{1,19}|infinity)(?::(?:[0-9]{1,19}|infinity))?")
_SLICE_VALUE = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.slice")


def check_unit(unit: str) -> None:
    """Raises FixRefused unless it is the name of a unit that can have limits."""
    if not _UNIT.fullmatch(unit):
        raise FixRefused(f"{unit[:80]!r} is not the name of a service, scope, slice, socket, mount or swap unit")


class UnitProperty(Part):
    """A resource property of a unit, through systemd."""

    def __init__(self, manager: UnitManager, paths: KernelPaths, fix: SetUnitProperty) -> None:
        self._manager = manager
        self._paths = paths
        self._fix = fix
        self._property = PROPERTIES[fix.name]
        self.name = f"{fix.name} of {fix.unit}"
        self.wanted = self._property.text(self._property.parse(fix.value))

    async def read(self) -> str | None:
        value = await self._manager.read_property(self._fix.unit, self._property.bus_name)
        return self._property.text(int(str(value)))

    async def write(self) -> None:
        await self._set(self.wanted)
        path = await self.control_file()
        if not await asyncio.to_thread(_sets, path, self._fix.name):
            # Seen on 252 and 257: it goes on without a word where it cannot write.
            raise FixFailed(f"systemd could not write {path}: it would be forgotten at the next reload", "is it read-only?")

    async def save(self) -> Original:
        drop_ins = await self._drop_ins()
        texts = {path: await asyncio.to_thread(_text_of, path) for path in drop_ins if self._is_systemds(path)}
        return Original(await self.read(), {"drop_ins": drop_ins, "texts": texts})

    async def restore(self, original: Original) -> None:
        if original.value is None:
            raise FixFailed(f"{self.name} had no value before")
        before = set(original.more.get("drop_ins", ()))
        await self._set(original.value)
        texts: dict[str, str | None] = dict(original.more.get("texts", {}))
        texts.update({path: None for path in await self._added(before)})
        if texts:
            await asyncio.to_thread(self._put_back, texts)
            await self._manager.reload()

    async def leaves(self, original: Original) -> bool:
        for path in await self._added(set(original.more.get("drop_ins", ()))):
            text = await asyncio.to_thread(_text_of, path)
            if f"{self._fix.name}={self.wanted}" in text.splitlines():
                return True
        return False

    async def holder(self) -> str:
        drop_ins = await self._drop_ins()
        found = [path for path in drop_ins if await asyncio.to_thread(_sets, path, self._fix.name)]
        return f"{found[-1]} sets it" if found else "no drop-in sets it: somebody set it at run time, or the unit file does"

    async def rival(self) -> str:
        """The drop-in that wins over systemd's own when unit files are read again, or ''."""
        name = f"50-{self._fix.name}.conf"
        later = [path for path in await self._drop_ins() if os.path.basename(path) > name]
        found = [path for path in later if await asyncio.to_thread(_sets, path, self._fix.name)]
        return found[-1] if found else ""

    async def diff(self) -> str:
        path = self.file = await self.control_file()
        old = await asyncio.to_thread(_text_of, path)
        section = self._fix.unit.rsplit(".", 1)[1].capitalize()
        new = f"[{section}]\n{self._fix.name}={self.wanted}\n"
        return "".join(
            difflib.unified_diff(
                [line for line in old.splitlines(keepends=True) if not line.startswith("#")] if old else [],
                new.splitlines(keepends=True),
                path if old else "/dev/null",
                path,
            )
        )

    async def control_file(self) -> str:
        """The drop-in that systemd will write."""
        name = f"50-{self._fix.name}.conf"
        if await self._manager.read_property(self._fix.unit, "Transient"):
            return f"{self._paths.run}/systemd/transient/{self._fix.unit}.d/{name}"
        above = self._paths.etc if self._fix.lasting else self._paths.run
        return f"{above}/systemd/system.control/{self._fix.unit}.d/{name}"

    async def _set(self, text: str) -> None:
        value = self._property.parse(text)
        await self._manager.set_property(self._fix.unit, self._property.bus_name, "t", value, runtime=not self._fix.lasting)

    async def _drop_ins(self) -> list[str]:
        value = await self._manager.read_property(self._fix.unit, "DropInPaths")
        return list(value) if isinstance(value, list) else []

    async def _added(self, before: Collection[str]) -> list[str]:
        return [path for path in await self._drop_ins() if path not in before and self._is_systemds(path)]

    def _is_systemds(self, path: str) -> bool:
        directory, name = os.path.split(path)
        above = os.path.dirname(directory)
        return name == f"50-{self._fix.name}.conf" and (
            above.endswith("/systemd/system.control") or above.endswith("/systemd/transient")
        )

    def _put_back(self, texts: Mapping[str, str | None]) -> None:
        for path, text in texts.items():
            directory, name = os.path.split(path)
            OwnFile(directory, name, makes_directory=True).write(text)


class UnitPropertyFixer(TypeFixer[SetUnitProperty]):
    """Raises resource properties of units of the system's systemd, for this boot or lastingly."""

    kind = SetUnitProperty

    def __init__(self, manager: UnitManager, paths: KernelPaths) -> None:
        self._manager = manager
        self._paths = paths

    def check(self, fix: SetUnitProperty) -> None:
        check_unit(fix.unit)
        known = PROPERTIES.get(fix.name)
        if known is None:
            raise FixRefused(f"{fix.name[:40]!r} is not a property that triaged sets", f"one of {', '.join(PROPERTIES)}")
        try:
            known.parse(fix.value)
        except ValueError as error:
            raise FixRefused(f"{fix.name}={fix.value[:40]}: {error}") from error

    def parts(self, fix: SetUnitProperty) -> tuple[Part, ...]:
        return (UnitProperty(self._manager, self._paths, fix),)

    def seen(self, fix: SetUnitProperty) -> str:
        known = PROPERTIES[fix.name]
        text = "infinity" if fix.seen in ("unlimited", "max") else fix.seen
        try:
            return known.text(known.parse(text)) if text else ""
        except ValueError:
            return text

    def is_as_seen(self, fix: SetUnitProperty, present: str | None) -> bool:
        seen = self.seen(fix)
        if not seen or seen == present:
            return True
        # The finding saw the cgroup's file, where the kernel counts memory in whole pages; systemd keeps what it was told.
        return fix.name.startswith("Memory") and bool(present) and present != "infinity" and seen.isdigit() and (
            int(present or 0) // mmap.PAGESIZE == int(seen) // mmap.PAGESIZE
        )

    def risk(self, fix: SetUnitProperty) -> str:
        return fix.risk or PROPERTIES[fix.name].risk

    async def judge(self, fix: SetUnitProperty, presents: tuple[str | None, ...]) -> None:
        if await self._manager.read_property(fix.unit, "LoadState") != "loaded":
            remedy = "a user's own manager takes systemctl --user set-property"
            raise FixRefused(f"{fix.unit} is not a unit of the system's systemd", remedy)
        known = PROPERTIES[fix.name]
        if presents[0] is not None and known.parse(fix.value) < known.parse(presents[0]):
            raise FixRefused(f"{fix.title}: it is {presents[0]} now, and triaged does not lower limits of units")
        rival = await UnitProperty(self._manager, self._paths, fix).rival() if fix.lasting else ""
        if rival:
            raise FixRefused(f"{fix.title}: {rival} sets it and wins over what systemd would write", f"change it in {rival}")

    async def notes(self, fix: SetUnitProperty, present: str | None) -> tuple[str, ...]:
        notes = [] if fix.lasting else ["holds until the next boot"]
        rival = await UnitProperty(self._manager, self._paths, fix).rival()
        if rival:
            notes = [f"holds until systemd reads its files again: then {rival} wins"]
        if fix.lasting and await self._manager.read_property(fix.unit, "Transient"):
            notes.append(f"{fix.unit} is a transient unit: the setting ends with it")
        return tuple(notes)

    async def probe(self, fix: SetUnitProperty, present: str | None, uid: int | None) -> Probe | Unverifiable:
        if fix.name != "TasksMax":
            return Unverifiable(f"using up {fix.name} on purpose would endanger what runs in {fix.unit}")
        cgroup = str(await self._manager.read_property(fix.unit, "ControlGroup"))
        directory = await asyncio.to_thread(_pids_directory, self._paths, cgroup) if cgroup else ""
        if not directory:
            return Unverifiable(f"{fix.unit} has no cgroup now: nothing runs in it")
        try:
            tasks = int(await asyncio.to_thread(read_text, f"{directory}/pids.current"))
        except (KernelError, ValueError) as error:
            return Unverifiable(f"the tasks of {fix.unit} cannot be counted ({error})")
        if present is None or present == "infinity":
            return Unverifiable("there was no limit before")
        more = int(present) - tasks + 1
        new = PROPERTIES[fix.name].parse(fix.value)
        if more > 2048 or tasks + more > new - (new >> 4):
            return Unverifiable(f"it would take {more} tasks more to go beyond {present}: too many beside what runs there")
        return Probe(
            "fork-in-cgroup",
            f"hold {max(more, 1)} tasks more in {cgroup}, one beyond {present}",
            {"directory": directory, "tasks": max(more, 1), "beyond": int(present)},
        )


def _pids_directory(paths: KernelPaths, cgroup: str) -> str:
    for above in (paths.cgroup, f"{paths.cgroup}/unified", f"{paths.cgroup}/pids"):
        if os.path.exists(f"{above}{cgroup}/pids.current"):
            return f"{above}{cgroup}"
    return ""


def _text_of(path: str) -> str:
    try:
        return read_text(path)
    except KernelError:
        return ""


def _sets(path: str, name: str) -> bool:
    return any(line.partition("=")[0].strip() == name for line in _text_of(path).splitlines())


class UnitDropIn(Part):
    """A drop-in of ours for one setting of a unit. Written means read by systemd, too."""

    def __init__(self, manager: UnitManager, paths: KernelPaths, fix: SetUnitSetting) -> None:
        self._manager = manager
        self._unit = fix.unit
        name = f"zz-triaged-{fix.name}.conf"
        if fix.name == SYSTEM_CALL_FILTER:  # each set of calls its own file: one can be undone without the others
            name = f"zz-triaged-{fix.name}-{'-'.join(added_calls(fix.value))[:150]}.conf"
        self._own = OwnFile(f"{paths.etc}/systemd/system/{fix.unit}.d", name, makes_directory=True)
        self.file = self._own.path
        self.name = self._own.path
        self.wanted = (
            "# Written by triaged; `triagectl undo` removes it. Edited by hand, it is left alone from then on.\n"
            f"[Service]\n{fix.name}={fix.value}\n"
        )

    async def read(self) -> str | None:
        return await asyncio.to_thread(self._own.read)

    async def write(self) -> None:
        await asyncio.to_thread(self._own.write, self.wanted)
        await self._manager.reload()

    async def restore(self, original: Original) -> None:
        await asyncio.to_thread(self._own.write, original.value)
        await self._manager.reload()

    async def tidy(self) -> None:
        await asyncio.to_thread(self._own.tidy)

    async def holder(self) -> str:
        return f"{self._own.path} was edited"

    async def diff(self) -> str:
        return await asyncio.to_thread(self._own.diff, self.wanted)


class Loaded(Part):
    """What systemd has loaded for the setting. It follows from the drop-in; it is only read."""

    _otherwise = "the unit file or systemd's default sets it"

    def __init__(self, manager: UnitManager, fix: SetUnitSetting) -> None:
        self._manager = manager
        self._fix = fix

    async def write(self) -> None:
        # Nothing to write: the drop-in has been read by now. Another one that sorts behind ours may win.
        present = await self.read()
        if present != self.wanted:
            raise FixFailed(f"{self.name} is still {present}: {await self.holder()}")

    async def restore(self, original: Original) -> None:
        """Nothing: the drop-in's own part puts it back."""

    async def holder(self) -> str:
        paths = await self._manager.read_property(self._fix.unit, "DropInPaths")
        drop_ins = paths if isinstance(paths, list) else []
        found = [path for path in drop_ins if await asyncio.to_thread(_sets, path, self._fix.name)]
        return f"{found[-1]} sets it" if found else self._otherwise


class LoadedSetting(Loaded):
    """The value of the setting."""

    def __init__(self, manager: UnitManager, fix: SetUnitSetting) -> None:
        super().__init__(manager, fix)
        self.name = f"{fix.name} of {fix.unit}"
        self.wanted = setting_text(fix.name, fix.value)

    async def read(self) -> str | None:
        if self._fix.name == "Slice":
            return str(await self._manager.read_property(self._fix.unit, "Slice"))
        hard = _number_text(int(str(await self._manager.read_property(self._fix.unit, self._fix.name))))
        soft = _number_text(int(str(await self._manager.read_property(self._fix.unit, f"{self._fix.name}Soft"))))
        return soft if soft == hard else f"{soft}:{hard}"


class LoadedFilter(Loaded):
    """Which of the calls the SystemCallFilter= lets through."""

    _otherwise = "the unit file sets it"

    def __init__(self, manager: UnitManager, fix: SetUnitSetting) -> None:
        super().__init__(manager, fix)
        self._calls = added_calls(fix.value)
        self.name = f"{fix.name} of {fix.unit} for {' '.join(self._calls)}"
        self.wanted = _answers(self._calls, frozenset(self._calls))

    async def read(self) -> str | None:
        is_allow_list, entries = await self._manager.read_filter(self._fix.unit)
        names = {entry.partition(":")[0] for entry in entries}
        plain = {entry for entry in entries if ":" not in entry}  # "clone3:ENOSYS" is refused in either kind of list
        allowed = plain.intersection(self._calls) if is_allow_list else set(self._calls) - names
        return _answers(self._calls, frozenset(allowed))


def _answers(calls: Sequence[str], allowed: frozenset[str]) -> str:
    refused = [call for call in calls if call not in allowed]
    out = [f"{' '.join(sorted(allowed))} allowed"] if allowed else []
    return ", ".join([*out, *([f"{' '.join(refused)} refused"] if refused else [])])


def setting_text(name: str, value: str) -> str:
    """The value as `LoadedSetting` reads it: SOFT, or SOFT:HARD where they differ."""
    soft, colon, hard = value.partition(":")
    return soft if name in _LIMITS and colon and soft == hard else value


class UnitSettingFixer(TypeFixer[SetUnitSetting]):
    """Sets LimitXXX= and Slice= of services, and adds to SystemCallFilter=, by drop-ins of our own; they count from the next start.
    """

    kind = SetUnitSetting
    value_part = 1

    def __init__(self, manager: UnitManager, paths: KernelPaths) -> None:
        self._manager = manager
        self._paths = paths

    def check(self, fix: SetUnitSetting) -> None:
        if not _SERVICE.fullmatch(fix.unit):
            raise FixRefused(f"{fix.unit[:80]!r} is not the name of a service")
        if fix.name not in SETTINGS:
            raise FixRefused(f"{fix.name[:40]!r} is not a setting that triaged writes", f"one of {', '.join(SETTINGS)}")
        if fix.name == SYSTEM_CALL_FILTER:
            try:
                added_calls(fix.value)
            except ValueError as error:
                raise FixRefused(f"{fix.name}={fix.value[:40]!r}: {error}") from error
            return
        shape = _SLICE_VALUE if fix.name == "Slice" else _LIMIT_VALUE
        if not shape.fullmatch(fix.value):
            raise FixRefused(f"{fix.name}={fix.value[:40]!r} is not a value of it")

    def parts(self, fix: SetUnitSetting) -> tuple[Part, ...]:
        if fix.name == SYSTEM_CALL_FILTER:
            return (UnitDropIn(self._manager, self._paths, fix), LoadedFilter(self._manager, fix))
        return (UnitDropIn(self._manager, self._paths, fix), LoadedSetting(self._manager, fix))

    def seen(self, fix: SetUnitSetting) -> str:
        return setting_text(fix.name, fix.seen.replace("unlimited", "infinity"))

    def risk(self, fix: SetUnitSetting) -> str:
        return fix.risk or (_MORE_CALLS if fix.name == SYSTEM_CALL_FILTER else _SHARE)

    async def judge(self, fix: SetUnitSetting, presents: tuple[str | None, ...]) -> None:
        if await self._manager.read_property(fix.unit, "LoadState") != "loaded":
            raise FixRefused(f"{fix.unit} is not a unit of the system's systemd")
        if await self._manager.read_property(fix.unit, "Transient"):
            remedy = f"systemd-run -p {fix.name}={fix.value} ..."
            raise FixRefused(f"{fix.unit} is transient: set it where the unit is started", remedy)
        if fix.name == SYSTEM_CALL_FILTER:
            await self._judge_filter(fix, presents[1])
        elif fix.name != "Slice" and presents[1] is not None and _lowers(presents[1], fix.value):
            raise FixRefused(f"{fix.title}: it is {presents[1]} now, and triaged does not lower limits of units")

    async def _judge_filter(self, fix: SetUnitSetting, present: str | None) -> None:
        _, entries = await self._manager.read_filter(fix.unit)
        if not entries:
            # A line of ours would be the first one, and so a list of all that is allowed.
            raise FixRefused(f"{fix.unit} sets no SystemCallFilter=: the call is refused by another filter", _OTHER_FILTERS)
        if present == LoadedFilter(self._manager, fix).wanted:
            raise FixRefused(f"SystemCallFilter= of {fix.unit} lets {fix.value} through already", _OTHER_FILTERS)

    async def notes(self, fix: SetUnitSetting, present: str | None) -> tuple[str, ...]:
        return (f"counts from the next start of {fix.unit}: systemctl restart {fix.unit}",)

    async def probe(self, fix: SetUnitSetting, present: str | None, uid: int | None) -> Probe | Unverifiable:
        if fix.name == SYSTEM_CALL_FILTER:
            calls = added_calls(fix.value)
            return Probe(
                "system-call", f"make {', '.join(calls)} in a transient unit with the filters of {fix.unit}",
                {"unit": fix.unit, "calls": list(calls)}, compares=True,
            )
        return Unverifiable(f"it counts from the next start of {fix.unit}; systemd has read the new value")


def _lowers(present: str, value: str) -> bool:
    def bounds(text: str) -> list[int]:
        soft, _, hard = text.partition(":")
        return [INFINITY if word == "infinity" else int(word) for word in (soft, hard or soft)]

    return any(new < old for old, new in zip(bounds(present), bounds(value), strict=True))
