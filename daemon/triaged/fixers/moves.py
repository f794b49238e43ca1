# SPDX-License-Identifier: Apache-2.0
"""A process tree into another slice: a transient scope of systemd's takes the processes.

Facts that shape this module (systemd 252 and 257):
- StartTransientUnit moves the processes of PIDs= when its job runs, after it was answered; a fork in between inherits the old
  cgroup. So the tree is listed again until nobody is left outside; later ones go by AttachProcessesToUnit.
- One process that ended meanwhile makes either call fail for all of them. So the first process goes alone (its later children
  follow it), the others one by one; whether all arrived is seen by looking.
- A scope that is empty ends and is forgotten. Undo therefore makes the old scope again, under its name and in its slice.
- Taking a service's main process out of the service would make systemd lose it: that is refused.
- Memory that was charged stays with the old cgroup.
"""
from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from typing import Protocol

from triaged.errors import BusError, FixFailed, FixRefused, Gone, KernelError
from triaged.fixers.fixer import Probe, TypeFixer, Unverifiable
from triaged.fixers.part import Original, Part
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process, read_start_ticks
from triaged.model.cgroup import container_of, is_user_manager, own_unit_of, slice_of
from triaged.model.fix import MoveProcesses

log = logging.getLogger(__name__)

_SLICE = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.slice")
_FORBIDDEN = frozenset({"-.slice", "system.slice"})
_TREE_CAP = 4096
_ROUNDS = 50
_PAUSE_S = 0.1


class ScopeManager(Protocol):
    """What is needed of the system's systemd. Every method may raise BusError."""

    async def read_property(self, unit: str, name: str) -> str | int | bool | list[str]:
        """See `fixers.units.UnitManager`."""

    async def start_scope(self, name: str, slice_name: str, pids: Sequence[int]) -> None:
        """StartTransientUnit of a scope that takes the processes."""

    async def attach(self, unit: str, pids: Sequence[int]) -> None:
        """AttachProcessesToUnit."""


def read_tree(paths: KernelPaths, pid: int) -> list[int]:
    """A process and all its descendants, at most 4096. Orphans belong to another tree by then.

    Source: /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN). Raises: Gone if the first is.
    """
    found, waiting = [pid], [pid]
    while waiting and len(found) < _TREE_CAP:
        base = f"{paths.proc}/{waiting.pop()}/task"
        try:
            threads = os.listdir(base)
        except OSError as error:
            if base == f"{paths.proc}/{pid}/task":
                raise Gone(base) from error
            continue
        for thread in threads:
            try:
                children = [int(word) for word in read_text(f"{base}/{thread}/children").split()]
            except KernelError:
                continue  # it ended meanwhile
            found += children
            waiting += children
    return found


class TreePlace(Part):
    """Where a process tree is: the slice if all of it is there, else the cgroups that it is in."""

    def __init__(self, manager: ScopeManager, paths: KernelPaths, fix: MoveProcesses) -> None:
        self._manager = manager
        self._paths = paths
        self._fix = fix
        self.name = f"the place of process {fix.pid} and its descendants"
        self.wanted = fix.slice

    async def read(self) -> str | None:
        places = await asyncio.to_thread(self.places)
        if all(slice_of(path) == self._fix.slice for path in places.values()):
            return self._fix.slice
        return ", ".join(sorted(set(places.values())))

    async def save(self) -> Original:
        places = await asyncio.to_thread(self.places)
        old = ", ".join(sorted(set(places.values())))
        return Original(old, {"places": {str(pid): path for pid, path in places.items()}})

    async def write(self) -> None:
        await self._manager.start_scope(self._fix.scope, self._fix.slice, [self._fix.pid])
        await self._gather(self._fix.scope)

    async def restore(self, original: Original) -> None:
        before: dict[str, str] = dict(original.more["places"])
        root = before[str(self._fix.pid)]
        by_path: dict[str, list[int]] = {}
        # Who was born since goes where the first process was.
        for pid in await asyncio.to_thread(self.places):
            by_path.setdefault(before.get(str(pid), root), []).append(pid)
        for path, pids in by_path.items():
            unit = own_unit_of(path)
            if not unit:
                raise FixFailed(f"{path} is no unit's: systemd cannot move anything back there")
            state = await self._manager.read_property(unit, "ActiveState")
            if unit.endswith(".scope") and state != "active":
                await self._restart(unit, slice_of(path), pids)
        for _ in range(_ROUNDS):
            places = await asyncio.to_thread(self.places)
            outside = {pid: before.get(str(pid), root) for pid, path in places.items() if before.get(str(pid), root) != path}
            if not outside:
                return
            for pid, path in outside.items():
                await self._attach(own_unit_of(path), [pid])
            await asyncio.sleep(_PAUSE_S)
        raise FixFailed(f"not every process is back: {await self.read()}")

    async def _restart(self, unit: str, slice_name: str, pids: Sequence[int]) -> None:
        for pid in pids:
            try:
                return await self._manager.start_scope(unit, slice_name, [pid])
            except BusError as error:
                log.debug("%s did not take process %d: %s", unit, pid, error)
        raise FixFailed(f"{unit} could not be made again")

    async def _attach(self, unit: str, pids: Sequence[int]) -> None:
        for pid in pids:
            try:
                await self._manager.attach(unit, [pid])
            except BusError as error:  # it ended meanwhile, or the caller sees that it stays outside
                log.debug("%s did not take process %d: %s", unit, pid, error)

    async def holder(self) -> str:
        return "somebody moved it, or it started something elsewhere"

    def places(self) -> dict[int, str]:
        """The cgroup of each process of the tree. Raises: Gone if the first process ended, or its pid is another's."""
        if read_start_ticks(self._paths, self._fix.pid) != self._fix.start_ticks:
            raise Gone(f"{self._paths.proc}/{self._fix.pid}")
        found = {}
        for pid in read_tree(self._paths, self._fix.pid):
            try:
                process = read_process(self._paths, pid)
            except KernelError:
                continue  # it ended meanwhile
            if process.exe and process.cgroup:  # a zombie cannot be moved
                found[pid] = process.cgroup
        return found

    async def _gather(self, unit: str) -> None:
        """Until every process of the tree is in the unit."""
        outside: list[int] = []
        for number in range(_ROUNDS):
            places = await asyncio.to_thread(self.places)
            outside = [pid for pid, path in places.items() if own_unit_of(path) != unit]
            if not outside:
                return
            # The job may not have run yet: attaching needs a scope that is active.
            if number and await self._manager.read_property(unit, "ActiveState") == "active":
                await self._attach(unit, outside)
            await asyncio.sleep(_PAUSE_S)
        raise FixFailed(f"processes {', '.join(str(pid) for pid in outside[:8])} stay outside of {unit}")


class MoveFixer(TypeFixer[MoveProcesses]):
    """Moves process trees into transient scopes."""

    kind = MoveProcesses

    def __init__(self, manager: ScopeManager, paths: KernelPaths) -> None:
        self._manager = manager
        self._paths = paths

    def check(self, fix: MoveProcesses) -> None:
        if fix.pid <= 1 or fix.start_ticks <= 0:
            raise FixRefused("a process is named by its pid (not 0 or 1) with its start time")
        if not _SLICE.fullmatch(fix.slice) or fix.slice in _FORBIDDEN:
            raise FixRefused(f"{fix.slice[:80]!r} is not a slice that triaged moves processes into")

    def parts(self, fix: MoveProcesses) -> tuple[Part, ...]:
        return (TreePlace(self._manager, self._paths, fix),)

    def seen(self, fix: MoveProcesses) -> str:
        return fix.seen

    def is_as_seen(self, fix: MoveProcesses, present: str | None) -> bool:
        return not fix.seen or fix.seen in (present or "").split(", ")

    def risk(self, fix: MoveProcesses) -> str:
        return fix.risk or "limits of the new place hold from then on"

    async def judge(self, fix: MoveProcesses, presents: tuple[str | None, ...]) -> None:
        part = TreePlace(self._manager, self._paths, fix)
        places = await asyncio.to_thread(part.places)
        for path in set(places.values()):
            if container_of(path):
                raise FixRefused(f"{path} is a container's: its runtime would lose the process")
            if is_user_manager(path):
                raise FixRefused(f"{path} belongs to a user's own systemd", "systemd-run --user --scope for the next run")
            unit = own_unit_of(path)
            if not unit.endswith((".scope", ".service")):
                # Seen on 257: systemd takes it away from there, and cannot put it back.
                raise FixRefused(f"{path} is no scope or service: the move could not be undone", "move it by the command, by hand")
            if unit.endswith(".service") and int(str(await self._manager.read_property(unit, "MainPID"))) in places:
                raise FixRefused(f"it is the main process of {unit}: systemd would lose it", f"set Slice= of {unit}")

    async def notes(self, fix: MoveProcesses, present: str | None) -> tuple[str, ...]:
        return ("memory in use stays charged to the old cgroup", "the next run starts where this one was started")

    async def probe(self, fix: MoveProcesses, present: str | None, uid: int | None) -> Probe | Unverifiable:
        return Unverifiable("nothing had failed; every process of the tree is looked for in the new place instead")
