# SPDX-License-Identifier: Apache-2.0
"""A process tree into another slice: a transient scope of systemd's takes the processes.

Facts that shape this module (systemd 252 and 257):
- StartTransientUnit moves the processes of PIDs= when its job runs, after it was answered; a fork in between inherits the old
  cgroup. So the tree is listed again until nobody is left outside; later ones go by AttachProcessesToUnit.
- One process that ended meanwhile makes either call fail for all of them. So the first process goes alone (its later children
  follow it), the others one by one; whether all arrived is seen by looking.
- A scope that is empty ends and is forgotten. Undo therefore makes the old scope again, under its name, in its slice, with its
  limits on tasks, memory and CPU.
- AttachProcessesToUnit works for delegated units only (since 257.13 or so: "not available on non-delegated units"). Our scope is
  one; what the processes came from seldom is. So they are written back into their old cgroups, which is where systemd has them.
- Taking a service's main process out of the service would make systemd lose it: that is refused.
- Memory that was charged stays with the old cgroup.
"""
from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from triaged.errors import BusError, FixFailed, FixRefused, Gone, KernelError, TriagedError
from triaged.fixers.fixer import Probe, TypeFixer, Unverifiable
from triaged.fixers.part import Original, Part
from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process, read_start_ticks
from triaged.model.cgroup import container_of, is_user_manager, own_unit_of, slice_of
from triaged.model.fix import MoveProcesses

log = logging.getLogger(__name__)

_SLICE = re.compile(r"[A-Za-z0-9:_.\\@-]{1,240}\.slice")
_FORBIDDEN = frozenset({"-.slice", "system.slice"})
_TREE_CAP = 4096
_LIMITS = ("CPUQuotaPerSecUSec", "CPUWeight", "MemoryHigh", "MemoryMax", "MemorySwapMax", "TasksMax")
_NOT_SET = (1 << 64) - 1
_ROUNDS = 50
_PAUSE_S = 0.1


class ScopeManager(Protocol):
    """What is needed of the system's systemd. Every method may raise BusError."""

    async def read_property(self, unit: str, name: str) -> str | int | bool | list[str]:
        """See `fixers.units.UnitManager`."""

    async def start_scope(self, name: str, slice_name: str, pids: Sequence[int], limits: Mapping[str, int]) -> None:
        """StartTransientUnit of a scope that takes the processes, with properties of type t."""

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
        scopes = sorted({unit for unit in map(own_unit_of, places.values()) if unit.endswith(".scope")})
        limits = {scope: await self._limits_of(scope) for scope in scopes}
        return Original(old, {"places": {str(pid): path for pid, path in places.items()}, "limits": limits})

    async def _limits_of(self, scope: str) -> dict[str, int]:
        values = {name: int(str(await self._manager.read_property(scope, name))) for name in _LIMITS}
        return {name: value for name, value in values.items() if value != _NOT_SET}

    async def write(self) -> None:
        before = await self.save()
        try:
            await self._manager.start_scope(self._fix.scope, self._fix.slice, [self._fix.pid], {})
            await self._gather(self._fix.scope)
        except TriagedError:
            await self.restore(before)
            raise

    def holds(self, present: str | None) -> bool:
        return present == self.wanted or f"/{self._fix.scope}" in (present or "")

    async def restore(self, original: Original) -> None:
        before: dict[str, str] = dict(original.more["places"])
        root = before[str(self._fix.pid)]
        for _ in range(_ROUNDS):
            # Who was born since goes where the first process was.
            places = await asyncio.to_thread(self.places)
            outside = {pid: before.get(str(pid), root) for pid, path in places.items() if before.get(str(pid), root) != path}
            if not outside:
                return
            for path in set(outside.values()):
                limits = original.more.get("limits", {}).get(own_unit_of(path), {})
                await self._make_ready(path, [pid for pid, wanted in outside.items() if wanted == path], limits)
            await asyncio.to_thread(self._write_back, outside)
            await asyncio.sleep(_PAUSE_S)
        raise FixFailed(f"not every process is back: {await self.read()}")

    async def _make_ready(self, path: str, pids: Sequence[int], limits: Mapping[str, int]) -> None:
        """Makes the scope of the cgroup again if it ended when it was empty."""
        unit = own_unit_of(path)
        if not unit:
            raise FixFailed(f"{path} is no unit's: nothing can be moved back there")
        if unit.endswith(".scope") and await self._manager.read_property(unit, "ActiveState") not in ("active", "activating"):
            await self._restart(unit, slice_of(path), pids, limits)

    def _write_back(self, wanted: Mapping[int, str]) -> None:
        """Writes each process into its cgroup, in every hierarchy; where version 1 has none of it, into the nearest above."""
        for hierarchy in read_layout(self._paths).hierarchies:
            for pid, path in wanted.items():
                directory = hierarchy.directory(path)
                while not os.path.isdir(directory) and directory != hierarchy.mount and not hierarchy.is_v2:
                    directory = os.path.dirname(directory)
                try:
                    with open(f"{directory}/cgroup.procs", "w") as file:
                        file.write(str(pid))
                except OSError as error:  # it ended, or the scope's job has not run yet: the caller looks again
                    log.debug("%s did not take process %d: %s", directory, pid, error)

    async def _restart(self, unit: str, slice_name: str, pids: Sequence[int], limits: Mapping[str, int]) -> None:
        for pid in pids:
            try:
                return await self._manager.start_scope(unit, slice_name, [pid], limits)
            except BusError as error:
                log.debug("%s did not take process %d: %s", unit, pid, error)
        raise FixFailed(f"{unit} could not be made again")

    async def _attach(self, unit: str, pids: Sequence[int]) -> None:
        for pid in pids:
            try:
                await self._manager.attach(unit, [pid])
            except BusError as error:  # it ended meanwhile; or it stays outside, which the caller sees
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
        notes = ["memory in use stays charged to the old cgroup", "the next run starts where this one was started"]
        part = TreePlace(self._manager, self._paths, fix)
        for unit in sorted({own_unit_of(path) for path in (await asyncio.to_thread(part.places)).values()}):
            if unit.endswith(".scope"):
                notes.append(f"{unit} ends when it is empty; an undo makes it again, with its limits on tasks, memory and CPU")
        return tuple(notes)

    async def probe(self, fix: MoveProcesses, present: str | None, uid: int | None) -> Probe | Unverifiable:
        return Unverifiable("nothing had failed; every process of the tree is looked for in the new place instead")
