# SPDX-License-Identifier: Apache-2.0
"""Repairs as typed data, never a shell string. What applies them is in `fixers`; here is only what they are.

Each has a `key` that names it within its finding, a `title` for people, and the `commands`
(argv lists) that a person who would rather type it would type. `seen` is the value that the finding
saw, as the kernel or systemd wrote it ("": the rule did not say); a fix is not applied to another one.
"""
from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Union

Argv = tuple[str, ...]


@dataclass(frozen=True)
class SetParameter:
    """Set a kernel parameter: now, and (`lasting`) by a drop-in in /etc/sysctl.d.

    `netns_pid` with `netns_start_ticks`: in the network namespace of that process (net.* only; 0: in the host's).
    """

    parameter: str
    value: str
    lasting: bool = False
    risk: str = ""
    seen: str = ""
    netns_pid: int = 0
    netns_start_ticks: int = 0

    type: ClassVar[str] = "set-parameter"

    @property
    def key(self) -> str:
        where = f":netns-of-{self.netns_pid}" if self.netns_pid else ""
        return f"{self.type}:{self.parameter}{where}" + (":lasting" if self.lasting else "")

    @property
    def title(self) -> str:
        if self.netns_pid:
            return f"sets {self.parameter} = {self.value} in the network namespace of process {self.netns_pid} while it lives"
        return f"sets {self.parameter} = {self.value} " + ("now and at every boot" if self.lasting else "until the next boot")

    @property
    def commands(self) -> tuple[Argv, ...]:
        inside = ("nsenter", f"--net=/proc/{self.netns_pid}/ns/net") if self.netns_pid else ()
        out: list[Argv] = [(*inside, "sysctl", "-w", f"{self.parameter}={self.value}")]
        if self.lasting:
            line = shlex.quote(f"{self.parameter} = {self.value}")
            out.append(("sh", "-c", f"echo {line} > /etc/sysctl.d/zz-{self.parameter.replace('.', '-')}.conf"))
        return tuple(out)


@dataclass(frozen=True)
class SetUnitProperty:
    """Set the resource property `name` of a systemd unit; `value` as systemd.resource-control(5) writes it."""

    unit: str
    name: str
    value: str
    lasting: bool = False
    risk: str = ""
    seen: str = ""

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
class SetUnitSetting:
    """Set what systemd takes only from unit files by a drop-in of our own, from the unit's next start on.

    LimitXXX= and Slice= are set; SystemCallFilter= is added to: `value` are the calls that the unit is to be allowed besides.
    """

    unit: str
    name: str
    value: str
    risk: str = ""
    seen: str = ""

    type: ClassVar[str] = "set-unit-setting"

    @property
    def key(self) -> str:
        return f"{self.type}:{self.unit}:{self.name}"

    @property
    def title(self) -> str:
        how = f"of {self.unit} by a drop-in, from its next start on"
        if self.name == "SystemCallFilter":
            return f"allows {', '.join(self.value.split())} in {self.name}= {how}"
        return f"sets {self.name}={self.value} {how}"

    @property
    def commands(self) -> tuple[Argv, ...]:
        directory = f"/etc/systemd/system/{self.unit}.d"
        line = shlex.quote(f"{self.name}={self.value}")
        return (
            ("mkdir", "-p", directory),
            ("sh", "-c", f"printf '[Service]\\n%s\\n' {line} > {shlex.quote(directory + '/local.conf')}"),
            ("systemctl", "daemon-reload"),
            ("systemctl", "restart", self.unit),
        )


@dataclass(frozen=True)
class SetResourceLimit:
    """Raise a resource limit of one live process (prlimit). `resource` is the kernel's name without RLIMIT_: NOFILE.

    Units are those of setrlimit(2). `seen` is "SOFT:HARD".
    """

    pid: int
    start_ticks: int
    resource: str
    soft: int
    hard: int
    risk: str = ""
    seen: str = ""

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
class MoveProcesses:
    """Move a live process with all its descendants into a transient scope of its own in a slice of the system's systemd.

    `seen` is the cgroup in which the finding saw the process.
    """

    pid: int
    start_ticks: int
    slice: str
    risk: str = ""
    seen: str = ""

    type: ClassVar[str] = "move-processes"
    lasting: ClassVar[bool] = False

    @property
    def key(self) -> str:
        return f"{self.type}:{self.pid}.{self.start_ticks}:{self.slice}"

    @property
    def scope(self) -> str:
        """The unit that is made for it."""
        return f"triaged-moved-{self.pid}-{self.start_ticks}.scope"

    @property
    def title(self) -> str:
        return f"moves process {self.pid} and all that it started into {self.slice}"

    @property
    def commands(self) -> tuple[Argv, ...]:
        return ((
            "busctl", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
            "StartTransientUnit", "ssa(sv)a(sa(sv))", self.scope, "fail", "2", "PIDs", "au", "1", str(self.pid), "Slice", "s",
            self.slice, "0",
        ),)


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


Fix = Union[SetParameter, SetUnitProperty, SetUnitSetting, SetResourceLimit, MoveProcesses, ManualStep]
FIX_TYPES: Mapping[str, type[Any]] = {
    kind.type: kind for kind in (SetParameter, SetUnitProperty, SetUnitSetting, SetResourceLimit, MoveProcesses, ManualStep)
}


_PLAIN: Mapping[str, type[Any]] = {"str": str, "int": int, "bool": bool}


def fix_as_dict(fix: Fix) -> dict[str, Any]:
    """The fix for JSON and for the state file; `fix_from_dict` reads it back."""
    out: dict[str, Any] = {"type": fix.type, "key": fix.key, "title": fix.title}
    out.update(asdict(fix))
    out["commands"] = [list(argv) for argv in fix.commands]
    return out


def fix_from_dict(data: Mapping[str, Any]) -> Fix:
    """The fix that `fix_as_dict` wrote. Raises ValueError for an unknown type, a missing field, or a field of the wrong type."""
    kind = FIX_TYPES.get(str(data.get("type")))
    if kind is None:
        raise ValueError(f"unknown fix type {str(data.get('type'))[:100]!r}")
    fields: dict[str, Any] = {name: data[name] for name in kind.__dataclass_fields__ if name in data and name != "type"}
    if kind is ManualStep:
        fields["commands"] = tuple(tuple(str(word) for word in argv) for argv in fields.get("commands", ()))
    for name, value in fields.items():
        # Annotations are text here; every field but `commands` is a plain str, int or bool. True is not a number.
        wanted = str(kind.__dataclass_fields__[name].type)
        if wanted in _PLAIN and type(value) is not _PLAIN[wanted]:
            raise ValueError(f"{name} of a {kind.type} fix is {type(value).__name__}, not {wanted}")
    try:
        fix: Fix = kind(**fields)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return fix
