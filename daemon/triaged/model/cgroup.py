# SPDX-License-Identifier: Apache-2.0
"""What a cgroup is called, and what its path says about the unit, slice or container that owns it.

Source of the path rules: systemd's CGROUP_DELEGATION and unit naming; the cgroup drivers of Docker,
containerd/CRI and Podman (cgroupfs: /docker/ID, /kubepods/.../ID, /libpod_parent/libpod-ID;
systemd: docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope).
"""
from __future__ import annotations

import re
from dataclasses import dataclass

_UNIT = re.compile(r"^(?!\.)[^/]+\.(service|scope|slice|socket|mount|swap)$")
_CONTAINER = re.compile(r"^(?:(docker|libpod|crio|cri-containerd)[-:])?([0-9a-f]{64})(?:\.scope)?$")
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
_RUNTIME_OF_PREFIX = {"docker": "docker", "libpod": "podman", "crio": "cri-o", "cri-containerd": "containerd"}
_RUNTIME_OF_PARENT = (("docker", "docker"), ("libpod", "podman"), ("kubepods", "containerd"))
_USER_SLICE = re.compile(r"^user-(\d+)\.slice$")


@dataclass(frozen=True)
class CgroupId:
    """One cgroup, for as long as it exists: a path may be reused, a path with its inode is not.

    `hierarchy` is "" on version 2, else the version 1 controller ("pids", "memory", "name=systemd").
    `inode` is 0 where it was never seen (a kernel log line gives only the path).
    """

    path: str
    inode: int = 0
    hierarchy: str = ""

    @property
    def unit(self) -> str:
        """The innermost systemd unit of the path, or ''."""
        return unit_of(self.path)

    @property
    def slice(self) -> str:
        """The innermost slice of the path; '-.slice' for the root."""
        return slice_of(self.path)


@dataclass(frozen=True)
class Container:
    """A container that the cgroup path names. `runtime` is docker, podman, containerd, cri-o or ''; `pod` a pod UID or ''."""

    runtime: str
    identifier: str
    pod: str = ""


def _unescape(name: str) -> str:
    # systemd prefixes a cgroup name with "_" where it would clash with a kernel file.
    return name[1:] if name.startswith("_") else name


def unit_of(path: str) -> str:
    """The unit that owns the cgroup: the innermost .service or .scope, otherwise the innermost slice, or ''.

    Of user@UID.service's own tree the inner unit is meant (it is the one that sets the limit).
    """
    parts = [_unescape(part) for part in path.split("/") if part]
    for part in reversed(parts):
        if part.endswith((".service", ".scope", ".socket", ".mount", ".swap")) and _UNIT.match(part):
            return part
    for part in reversed(parts):
        if part.endswith(".slice") and _UNIT.match(part):
            return part
    return ""


def own_unit_of(path: str) -> str:
    """The unit whose cgroup is exactly this one (its last part is a unit's name), or ''; "-.slice" for the root."""
    if path == "/":
        return "-.slice"
    last = _unescape(path.rsplit("/", 1)[-1])
    return last if _UNIT.match(last) else ""


def slice_of(path: str) -> str:
    """The innermost slice that holds the cgroup; '-.slice' where no part of the path is a slice."""
    for part in reversed([_unescape(part) for part in path.split("/") if part]):
        if part.endswith(".slice") and _UNIT.match(part):
            return part
    return "-.slice"


def is_user_manager(path: str) -> bool:
    """Whether the cgroup's unit belongs to a per-user systemd (below user@UID.service), not to PID 1."""
    parts = [part for part in path.split("/") if part]
    return any(re.match(r"^user@\d+\.service$", part) for part in parts[:-1])


def uid_of(path: str) -> int | None:
    """The user whose session or user manager the cgroup belongs to; None for the system's own."""
    for part in path.split("/"):
        match = _USER_SLICE.match(part)
        if match:
            return int(match.group(1))
    return None


def container_of(path: str) -> Container | None:
    """The container that the path names, or None."""
    parts = [part for part in path.split("/") if part]
    for index in range(len(parts) - 1, -1, -1):
        match = _CONTAINER.match(parts[index])
        if not match:
            continue
        prefix, identifier = match.group(1) or "", match.group(2)
        above = "/".join(parts[:index])
        pod = _POD.search(above)
        runtime = _RUNTIME_OF_PREFIX.get(prefix, "")
        if not runtime:
            runtime = next((name for hint, name in _RUNTIME_OF_PARENT if hint in above), "")
        return Container(runtime, identifier, pod.group(1).replace("_", "-") if pod else "")
    return None


def pod_of(path: str) -> str:
    """The UID of the Kubernetes pod that the cgroup is or lies in, or ''."""
    found = _POD.findall(path)
    return found[-1].replace("_", "-") if found else ""


def ancestors_of(path: str) -> tuple[str, ...]:
    """The path and every ancestor of it, innermost first, ending in '/'."""
    out = []
    while path and path != "/":
        out.append(path)
        path = path.rsplit("/", 1)[0]
    out.append("/")
    return tuple(out)
