# SPDX-License-Identifier: Apache-2.0
"""Repairs as typed data, never a shell string. What applies them is in `fixers`; here is only what they are.

Each has a `key` that names it within its finding, a `title` for people, and the `commands`
(argv lists) that a person who would rather type it would type.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Union

Argv = tuple[str, ...]


@dataclass(frozen=True)
class SetParameter:
    """Set a kernel parameter: now, and (`lasting`) by a drop-in in /etc/sysctl.d."""

    parameter: str
    value: str
    lasting: bool = False
    risk: str = ""

    type: ClassVar[str] = "set-parameter"

    @property
    def key(self) -> str:
        return f"{self.type}:{self.parameter}" + (":lasting" if self.lasting else "")

    @property
    def title(self) -> str:
        return f"sets {self.parameter} = {self.value} " + ("now and at every boot" if self.lasting else "until the next boot")

    @property
    def commands(self) -> tuple[Argv, ...]:
        return (("sysctl", "-w", f"{self.parameter}={self.value}"),)


@dataclass(frozen=True)
class SetUnitProperty:
    """Set the resource property `name` of a systemd unit; `value` as systemd.resource-control(5) writes it."""

    unit: str
    name: str
    value: str
    lasting: bool = False
    risk: str = ""

    type: ClassVar[str] = "set-unit-property"

    @property
    def key(self) -> str:
        return f"{self.type}:{self.unit}:{self.name}" + (":lasting" if self.lasting else "")

    @property
    def title(self) -> str:
        return f"sets {self.name}={self.value} of {self.unit} " + ("lastingly" if self.lasting else "for this boot")

    @property
    def commands(self) -> tuple[Argv, ...]:
        runtime = () if self.lasting else ("--runtime",)
        return (("systemctl", "set-property", *runtime, self.unit, f"{self.name}={self.value}"),)


@dataclass(frozen=True)
class SetResourceLimit:
    """Raise a resource limit of one live process (prlimit). `resource` is the kernel's name without RLIMIT_: NOFILE."""

    pid: int
    start_ticks: int
    resource: str
    soft: int
    hard: int
    risk: str = ""

    type: ClassVar[str] = "set-resource-limit"

    @property
    def key(self) -> str:
        return f"{self.type}:{self.pid}:{self.resource}"

    @property
    def title(self) -> str:
        return f"raises RLIMIT_{self.resource} of process {self.pid} to {self.soft}:{self.hard}"

    @property
    def commands(self) -> tuple[Argv, ...]:
        return (("prlimit", f"--pid={self.pid}", f"--{self.resource.lower()}={self.soft}:{self.hard}"),)


@dataclass(frozen=True)
class ManualStep:
    """Something that triaged must not or cannot do itself; `commands` may be empty where there is nothing to type."""

    name: str
    title: str
    commands: tuple[Argv, ...] = ()
    risk: str = ""

    type: ClassVar[str] = "manual"

    @property
    def key(self) -> str:
        return f"{self.type}:{self.name}"


Fix = Union[SetParameter, SetUnitProperty, SetResourceLimit, ManualStep]
FIX_TYPES: Mapping[str, type[Any]] = {kind.type: kind for kind in (SetParameter, SetUnitProperty, SetResourceLimit, ManualStep)}


def fix_as_dict(fix: Fix) -> dict[str, Any]:
    """The fix for JSON and for the state file; `fix_from_dict` reads it back."""
    out: dict[str, Any] = {"type": fix.type, "key": fix.key, "title": fix.title}
    out.update(asdict(fix))
    out["commands"] = [list(argv) for argv in fix.commands]
    return out


def fix_from_dict(data: Mapping[str, Any]) -> Fix:
    """The fix that `fix_as_dict` wrote. Raises ValueError for an unknown type or a missing field."""
    kind = FIX_TYPES.get(str(data.get("type")))
    if kind is None:
        raise ValueError(f"unknown fix type {data.get('type')!r}")
    fields: dict[str, Any] = {name: data[name] for name in kind.__dataclass_fields__ if name in data}
    if kind is ManualStep:
        fields["commands"] = tuple(tuple(str(word) for word in argv) for argv in fields.get("commands", ()))
    try:
        fix: Fix = kind(**fields)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return fix
