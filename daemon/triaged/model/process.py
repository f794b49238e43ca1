# SPDX-License-Identifier: Apache-2.0
"""Who a process is: enough to name it long after it ended."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WorkloadMatch:
    """A process recognised by a workload definition: "go-test", its role, and the package where it is known.

    `toolchain` is the version that built it ("go1.22.1"), where known.
    """

    workload: str
    role: str
    package: str = ""
    toolchain: str = ""


@dataclass(frozen=True)
class ProcessIdentity:
    """One process, for as long as the machine is up: a pid with its start time is never reused.

    Sources: /proc/PID/stat (start_ticks: clock ticks since boot, field 22), status, exe, cmdline, cgroup.
    Fields that could not be read are "", (), {}, -1 for `uid` and 0 for `start_ticks`.
    `cgroups` maps a hierarchy ("" for version 2, else the version 1 controller) to the path there.
    `ci_job` names the CI job from the CI system's own variables, or "".
    """

    pid: int
    start_ticks: int = 0
    ppid: int = 0
    uid: int = -1
    comm: str = ""
    exe: str = ""
    argv: tuple[str, ...] = ()
    cgroups: Mapping[str, str] = field(default_factory=dict)
    workload: WorkloadMatch | None = None
    ci_job: str = ""

    @property
    def cgroup(self) -> str:
        """The path that names the process's unit: version 2's, else systemd's own named hierarchy, else ''.

        On the hybrid layout systemd's tree is the authority; a bare "/" of an unused version 2 mount is not taken.
        """
        unified = self.cgroups.get("", "")
        named = self.cgroups.get("name=systemd", "")
        return named if named and unified in ("", "/") else unified or named

    def cgroup_for(self, controller: str) -> str:
        """The path in the hierarchy that limits `controller` ("pids", "memory", "cpu"): version 1's own, else version 2's."""
        return self.cgroups.get(controller, self.cgroups.get("", ""))
