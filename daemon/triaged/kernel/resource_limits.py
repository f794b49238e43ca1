# SPDX-License-Identifier: Apache-2.0
"""The resource limits of one process."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triaged.errors import Malformed
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import UNLIMITED, Limit

# The names of fs/proc/base.c, lnames[].
_RESOURCES = {
    "Max cpu time": "CPU",
    "Max file size": "FSIZE",
    "Max data size": "DATA",
    "Max stack size": "STACK",
    "Max core file size": "CORE",
    "Max resident set": "RSS",
    "Max processes": "NPROC",
    "Max open files": "NOFILE",
    "Max locked memory": "MEMLOCK",
    "Max address space": "AS",
    "Max file locks": "LOCKS",
    "Max pending signals": "SIGPENDING",
    "Max msgqueue size": "MSGQUEUE",
    "Max nice priority": "NICE",
    "Max realtime priority": "RTPRIO",
    "Max realtime timeout": "RTTIME",
}
_NAME_WIDTH = 26  # "%-25s %-20s %-20s %-10s"


@dataclass(frozen=True)
class ResourceLimit:
    """One RLIMIT: what holds now (`soft`) and how far the process itself may raise it (`hard`).

    Units: getrlimit(2)'s (bytes, seconds, descriptors, processes; RTTIME in µs).
    """

    soft: Limit
    hard: Limit


def read_resource_limits(paths: KernelPaths, pid: int) -> Mapping[str, ResourceLimit]:
    """All resource limits of a process by the kernel's name without RLIMIT_ ("NOFILE").

    Source: /proc/PID/limits.
    Raises: Gone, NotPermitted, Malformed.
    """
    path = f"{paths.proc}/{pid}/limits"
    return parse_resource_limits(read_text(path, 8192), path)


def parse_resource_limits(text: str, path: str = "limits") -> Mapping[str, ResourceLimit]:
    """The limits in the text of a /proc/PID/limits. A resource that this kernel has and we do not know is left out.

    Raises: Malformed.
    """
    found = {}
    for line in text.splitlines()[1:]:
        resource = _RESOURCES.get(line[:_NAME_WIDTH].rstrip())
        if resource is None:
            continue
        words = line[_NAME_WIDTH:].split()
        if len(words) < 2:
            raise Malformed(path, line)
        found[resource] = ResourceLimit(_limit(words[0], line, path), _limit(words[1], line, path))
    if not found:
        raise Malformed(path, text, "no resource limit in it")
    return found


def _limit(word: str, line: str, path: str) -> Limit:
    if word == "unlimited":
        return UNLIMITED
    if not word.isascii() or not word.isdigit():
        raise Malformed(path, line)
    return int(word)
