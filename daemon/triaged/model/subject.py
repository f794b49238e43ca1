# SPDX-License-Identifier: Apache-2.0
"""What a finding is about. `key` is its identity; the rest is for people."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from triaged.model.cgroup import CgroupId, Container, container_of
from triaged.model.process import ProcessIdentity
from triaged.model.quoting import shown


@dataclass(frozen=True)
class HostSubject:
    """The host itself, or one kernel parameter of it (`parameter`, dotted: kernel.pid_max)."""

    parameter: str = ""

    @property
    def key(self) -> str:
        return f"parameter:{self.parameter}" if self.parameter else "host"

    @property
    def owner_uid(self) -> int | None:
        """Facts about the host are nobody's private matter."""
        return None

    def as_dict(self) -> Mapping[str, str | int]:
        return {"type": "host", "name": shown(self.parameter) or "host"}


@dataclass(frozen=True)
class CgroupSubject:
    """A cgroup, its unit and slice, and the user that it belongs to (`uid`, None for the system's own).

    `scope` tells findings of one rule about the same cgroup apart (the name of a limit), or is "".
    """

    cgroup: CgroupId
    uid: int | None = None
    scope: str = ""

    @property
    def key(self) -> str:
        # Not the inode: a unit that is restarted is the same unit to its operator.
        return f"cgroup:{self.cgroup.path}" + (f"#{self.scope}" if self.scope else "")

    @property
    def owner_uid(self) -> int | None:
        return self.uid

    def as_dict(self) -> Mapping[str, str | int]:
        path = shown(self.cgroup.path, 4200)
        out: dict[str, str | int] = {"type": "cgroup", "name": path, "cgroup": path}
        if self.cgroup.unit:
            out["unit"] = shown(self.cgroup.unit)
        out["slice"] = shown(self.cgroup.slice)
        container: Container | None = container_of(self.cgroup.path)
        if container:
            out["container"] = container.identifier
            if container.runtime:
                out["container_runtime"] = container.runtime
            if container.pod:
                out["pod"] = container.pod
        return out


@dataclass(frozen=True)
class ProcessSubject:
    """A process, or all processes of one program in one cgroup (`by_program`: identity by exe and cgroup, not by pid).

    `by_workload`: all processes of its workload in one cgroup (a test binary has another path in every run).
    `scope` tells findings of one rule about the same process apart (a syscall name, a resource limit), or is "".
    """

    process: ProcessIdentity
    by_program: bool = False
    by_workload: bool = False
    scope: str = ""

    @property
    def key(self) -> str:
        who = self.process
        if self.by_workload and who.workload:
            name = f"workload:{who.workload.workload}@{who.cgroup}"
        elif self.by_program:
            name = f"program:{who.exe or who.comm}@{who.cgroup}"
        else:
            name = f"process:{who.pid}.{who.start_ticks}"
        return f"{name}#{self.scope}" if self.scope else name

    @property
    def owner_uid(self) -> int | None:
        return self.process.uid if self.process.uid >= 0 else None

    def as_dict(self) -> Mapping[str, str | int]:
        who = self.process
        cgroup = CgroupId(who.cgroup)
        out: dict[str, str | int] = {"type": "process", "name": shown(who.exe or who.comm or str(who.pid), 4200), "pid": who.pid}
        if who.start_ticks:
            out["start_ticks"] = who.start_ticks
        if who.comm:
            out["comm"] = shown(who.comm)
        if who.exe:
            out["exe"] = shown(who.exe, 4200)
        if who.uid >= 0:
            out["uid"] = who.uid
        if who.argv:
            out["command"] = shown(" ".join(who.argv), 1000)
        if who.cgroup:
            out["cgroup"] = shown(who.cgroup, 4200)
            out["slice"] = shown(cgroup.slice)
            if cgroup.unit:
                out["unit"] = shown(cgroup.unit)
        if who.workload:
            out["workload"] = who.workload.workload
            out["role"] = who.workload.role
            if who.workload.package:
                out["package"] = shown(who.workload.package, 1000)
        if who.ci_job:
            out["ci_job"] = shown(who.ci_job)
        return out


Subject = Union[HostSubject, CgroupSubject, ProcessSubject]
