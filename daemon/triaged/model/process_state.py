# SPDX-License-Identifier: Apache-2.0
"""Everything that bounds one process, read at one moment and kept: it can be judged long after the process is gone."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triaged.model.limit import UNLIMITED, Limit, Unknown
from triaged.model.process import ProcessIdentity

Bounds = tuple[Limit, Limit]  # soft, hard
_NOT_READ = Unknown("not read")


@dataclass(frozen=True)
class Mount:
    """One line of /proc/PID/mountinfo. `options` are those of the mount, `super_options` those of the file system; `parent` is the
    identifier of the mount that it is mounted in."""

    identifier: int
    device: str
    root: str
    point: str
    options: frozenset[str]
    kind: str
    source: str
    super_options: frozenset[str]
    parent: int = 0


@dataclass(frozen=True)
class Credentials:
    """Who a process is to the kernel. Ids are real, effective, saved, file system; capability sets are bit masks.

    Source: /proc/PID/status.
    """

    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...] = ()
    inheritable: int = 0
    permitted: int = 0
    effective: int = 0
    bounding: int = 0
    ambient: int = 0
    no_new_privileges: bool = False

    def has(self, capability: int) -> bool:
        """Whether the capability (its number in linux/capability.h) is effective."""
        return bool(self.effective >> capability & 1)


@dataclass(frozen=True)
class ProcessState:
    """A process as it was at `time_usec` (µs since the epoch). What could not be read is Unknown with the reason.

    `limits` by the kernel's name without RLIMIT_ ("NOFILE"); `namespaces` by kind ("user": "user:[4026531837]"); `uid_map` and
    `gid_map` as the kernel writes them; `seccomp_mode` is "none", "strict" or "filter"; `filters` are the installed seccomp
    filters, newest first, where they were dumped (instructions packed as struct sock_filter). `root` is the root directory as seen
    by the reader. `data_bytes` is what RLIMIT_DATA bounds, `cpu_time_s` what RLIMIT_CPU does. `lsm_label` is
    /proc/PID/attr/current, or "" where no security module has labels. `stands_for`: the process of which the failing one inherited
    all this (it had gone before it could be read); 0 if this is that process itself.
    """

    identity: ProcessIdentity
    credentials: Credentials | Unknown
    limits: Mapping[str, Bounds] = field(default_factory=dict)
    namespaces: Mapping[str, str] = field(default_factory=dict)
    uid_map: str = ""
    gid_map: str = ""
    mounts: tuple[Mount, ...] = ()
    root: str = "/"
    directory: str = ""
    umask: int | Unknown = _NOT_READ
    threads: int | Unknown = _NOT_READ
    open_files: int | Unknown = _NOT_READ
    mappings: int | Unknown = _NOT_READ
    address_space_bytes: int | Unknown = _NOT_READ
    locked_bytes: int | Unknown = _NOT_READ
    data_bytes: int | Unknown = _NOT_READ
    cpu_time_s: float | Unknown = _NOT_READ
    pending_signals: int | Unknown = _NOT_READ
    cpus_allowed: int | Unknown = _NOT_READ
    seccomp_mode: str | Unknown = _NOT_READ
    filters: tuple[bytes, ...] | Unknown = _NOT_READ
    lsm_label: str | Unknown = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    time_usec: int = 0
    stands_for: int = 0

    def soft(self, resource: str) -> Limit:
        """The soft limit of a resource; Unknown where this kernel has none."""
        return self.limits[resource][0] if resource in self.limits else Unknown("not among the limits read")

    def hard(self, resource: str) -> Limit:
        """The hard limit of a resource; Unknown where this kernel has none."""
        return self.limits[resource][1] if resource in self.limits else Unknown("not among the limits read")

    @property
    def has_initial_user_namespace(self) -> bool:
        """Whether root here is root of the machine. (The first user namespace has a fixed inode, include/linux/proc_ns.h.)"""
        return self.namespaces.get("user") in (None, "user:[4026531837]")

    def mount_of(self, path: str) -> Mount | None:
        """The mount on which an absolute path lies, found as the kernel does: from the root on, mount by mount.

        So what was mounted over a directory hides the mounts that were in it before. The order of mountinfo does not tell that
        (mounts are moved when a system starts), nor do the points alone.
        """
        over = [mount for mount in self.mounts if _holds(mount.point, path)]
        identifiers = {mount.identifier for mount in self.mounts}
        at = next((each for each in over if each.parent == each.identifier or each.parent not in identifiers), None)
        if at is None or not any(mount.parent for mount in over):
            return max(reversed(over), key=lambda mount: len(mount.point), default=None)
        while inner := [mount for mount in over if mount.parent == at.identifier and mount is not at]:
            at = min(inner, key=lambda mount: len(mount.point))
        return at


def _holds(point: str, path: str) -> bool:
    point = point.rstrip("/")
    return path == point or path.startswith(point + "/")


def is_finite(bounds: Bounds) -> bool:
    """Whether either bound is a number."""
    return any(bound is not UNLIMITED and not isinstance(bound, Unknown) for bound in bounds)
