# SPDX-License-Identifier: Apache-2.0
"""Resource limits of a live process: prlimit(2).

Facts that shape this module: prlimit takes a pid, which may be reused between the check and the call. So the process's
start time is compared before and after; a pid that was reused in between would show another one. Raising a hard limit needs
CAP_SYS_RESOURCE; RLIMIT_NOFILE cannot go beyond fs.nr_open even then (EPERM). Go raises its soft NOFILE limit at start only:
a limit that is raised later is seen by a Go process, but its soft limit has to be raised along.
"""
from __future__ import annotations

import asyncio
import resource
from collections.abc import Mapping

from triaged.errors import FixRefused, Gone, KernelError
from triaged.fixers.fixer import Probe, TypeFixer, Unverifiable
from triaged.fixers.part import Original, Part
from triaged.kernel.files import read_text, translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks
from triaged.model.fix import SetResourceLimit

_MAXIMUM = (1 << 63) - 1
RESOURCES: Mapping[str, int] = {
    "AS": resource.RLIMIT_AS,
    "CORE": resource.RLIMIT_CORE,
    "CPU": resource.RLIMIT_CPU,
    "DATA": resource.RLIMIT_DATA,
    "FSIZE": resource.RLIMIT_FSIZE,
    "MEMLOCK": resource.RLIMIT_MEMLOCK,
    "MSGQUEUE": resource.RLIMIT_MSGQUEUE,
    "NOFILE": resource.RLIMIT_NOFILE,
    "NPROC": resource.RLIMIT_NPROC,
    "SIGPENDING": resource.RLIMIT_SIGPENDING,
    "STACK": resource.RLIMIT_STACK,
}


def limit_text(soft: int, hard: int) -> str:
    """SOFT:HARD, as prlimit(1) takes it; -1 is unlimited."""
    return ":".join("unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard))


class ProcessLimit(Part):
    """One resource limit of one process: "SOFT:HARD"."""

    def __init__(self, paths: KernelPaths, fix: SetResourceLimit) -> None:
        self._paths = paths
        self._pid = fix.pid
        self._start_ticks = fix.start_ticks
        self._resource = RESOURCES[fix.resource]
        self.name = f"RLIMIT_{fix.resource} of process {fix.pid}"
        self.wanted = limit_text(fix.soft, fix.hard)

    async def read(self) -> str | None:
        # One system call and one small file: not worth a thread.
        self._same_process()
        text = limit_text(*self._prlimit(None))
        self._same_process()
        return text

    async def write(self) -> None:
        self._set(self.wanted)

    async def restore(self, original: Original) -> None:
        if original.value is None:
            raise KernelError(self.name, "had no value before")
        self._set(original.value)

    async def holder(self) -> str:
        return "the process itself or somebody else set it"

    def _set(self, text: str) -> None:
        soft, hard = (resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in text.split(":"))
        self._same_process()
        self._prlimit((soft, hard))
        self._same_process()

    def _same_process(self) -> None:
        if read_start_ticks(self._paths, self._pid) != self._start_ticks:
            raise Gone(f"{self._paths.proc}/{self._pid}")

    def _prlimit(self, limits: tuple[int, int] | None) -> tuple[int, int]:
        try:
            if limits is None:
                return resource.prlimit(self._pid, self._resource)
            return resource.prlimit(self._pid, self._resource, limits)
        except OSError as error:
            raise translated(error, self.name) from error
        except ValueError as error:  # soft above hard, as Python says it
            raise KernelError(self.name, str(error)) from error


class ResourceLimitFixer(TypeFixer[SetResourceLimit]):
    """Raises resource limits of live processes."""

    kind = SetResourceLimit

    def __init__(self, paths: KernelPaths) -> None:
        self._paths = paths

    def check(self, fix: SetResourceLimit) -> None:
        if fix.resource not in RESOURCES:
            raise FixRefused(f"{fix.resource[:40]!r} is not a resource that triaged raises", f"one of {', '.join(RESOURCES)}")
        if fix.pid <= 1 or fix.start_ticks <= 0:
            raise FixRefused("a process is named by its pid (not 0 or 1) with its start time")
        for name, value in (("soft", fix.soft), ("hard", fix.hard)):
            if not -1 <= value <= _MAXIMUM:
                raise FixRefused(f"{name} limit {value}: from 0 up, or -1 for unlimited")
        if _rank(fix.soft) > _rank(fix.hard):
            raise FixRefused(f"the soft limit {fix.soft} is above the hard limit {fix.hard}")

    def parts(self, fix: SetResourceLimit) -> tuple[Part, ...]:
        return (ProcessLimit(self._paths, fix),)

    def seen(self, fix: SetResourceLimit) -> str:
        return fix.seen

    def risk(self, fix: SetResourceLimit) -> str:
        return fix.risk or "the process may use more of the machine than whoever set the limit wanted"

    async def judge(self, fix: SetResourceLimit, presents: tuple[str | None, ...]) -> None:
        soft, hard = (-1 if word == "unlimited" else int(word) for word in (presents[0] or "0:0").split(":"))
        if _rank(fix.soft) < _rank(soft) or _rank(fix.hard) < _rank(hard):
            raise FixRefused(f"{fix.title}: it is {presents[0]} now, and triaged does not lower resource limits")
        if fix.resource == "NOFILE":
            most = int(await asyncio.to_thread(read_text, f"{self._paths.proc}/sys/fs/nr_open"))
            if _rank(fix.hard) > most:
                raise FixRefused(f"RLIMIT_NOFILE = {fix.hard}: the kernel allows {most} (fs.nr_open)", "raise fs.nr_open first")

    async def notes(self, fix: SetResourceLimit, present: str | None) -> tuple[str, ...]:
        return ("holds for this process and those that it starts from now on; those that it has started keep their own",)

    async def probe(self, fix: SetResourceLimit, present: str | None, uid: int | None) -> Probe | Unverifiable:
        if fix.resource != "NOFILE" or fix.soft < 0:
            return Unverifiable(f"only the process itself could use RLIMIT_{fix.resource} again; the kernel holds the new limit")
        old = (present or "0:0").split(":")[0]
        if old == "unlimited" or int(old) + 8 > 65536:
            return Unverifiable(f"it would take more than 65536 open files to go beyond {old}")
        return Probe(
            "open-files-under-limit",
            f"open {min(int(old) + 8, fix.soft - 3)} files under the process's own limit",
            {"pid": fix.pid, "files": min(int(old) + 8, fix.soft - 3)},
        )


def _rank(value: int) -> int:
    return 1 << 64 if value == -1 else value
