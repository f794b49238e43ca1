# SPDX-License-Identifier: Apache-2.0
"""disk.full, disk.inodes, disk.quota: nothing more can be written.

Hard facts:
- ENOSPC of a write, an open or a mkdir is a file system without blocks or without inodes; ENOSPC of clone, unshare, mount and
  inotify_add_watch is none (see `namespaces`, `mounts`), however much their text looks like it.
- A file system keeps some blocks for root: others meet its end earlier (statvfs: f_bavail against f_bfree).
- tmpfs (/dev/shm of a container: 64 MB) counts as a disk, and its pages as memory.
- EDQUOT is the quota of a user, group or project and says so itself.
- A run that fills a disk often empties it again when it fails: what is free afterwards proves nothing.
"""
from __future__ import annotations

from triaged.explain import calls
from triaged.explain.calls import calls_of
from triaged.explain.hypothesis import hypothesis
from triaged.explain.mounts import mount_evidence, mount_under, mounted_for_a_moment
from triaged.explain.situation import Situation
from triaged.explain.view import credentials_of, file_facts, open_files, own_deeds, state_evidence, subject_path
from triaged.model.capability import capability_number
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.cgroup import container_of
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.process_state import Mount, ProcessState
from triaged.model.quoting import shown
from triaged.model.surroundings import Space
from triaged.model.verdict import Evidence

_OTHER_CALLS = frozenset({
    "clone", "clone3", "fork", "vfork", "unshare", "setns", "mount", "move_mount", "open_tree", "inotify_add_watch", "shmget",
    "semget", "msgget", "epoll_ctl", "bpf", "keyctl", "add_key",
})  # fmt: skip
_WRITES = calls.MAKES_OR_CHANGES | calls.WRITES | {"mmap", "msync", "io_submit"}
# Smaller than the pieces in which programs write: a file system that has less left refused them.
_FEW_INODES = 1000
_MOST_MOUNTS = 200
# statvfs waits for a server that is gone.
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "fuse", "fuse.sshfs", "autofs"})
_NEARLY_NOTHING = 1 << 20
_PSEUDO = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "devpts", "securityfs", "debugfs", "tracefs", "mqueue", "bpf", "nsfs"})


@hypothesis("disk.", errnos=("ENOSPC",))
def full(situation: Situation) -> list[Outcome] | None:
    """The file system is full (disk.full), or has no inodes left (disk.inodes): writes and new files give ENOSPC.

    The linker prints "mapping output file failed: no space left on device"; the space is needed in $GOTMPDIR, not in the cache.
    A build cache that is full does no harm: Go goes on without writing to it.
    """
    meant = calls_of(situation.symptom)
    if meant & _OTHER_CALLS or (meant and not meant & _WRITES):
        return None
    process, path = situation.process, subject_path(situation)
    if process is None:
        return [NotDecidable("disk.full", "no process was named")]
    places = [path] if path else _writable_places(situation, process)
    judged = [outcome for place in places if (outcome := _judged(situation, process, place, bool(path))) is not None]
    blamed = [each for each in judged if isinstance(each, Blamed)]
    if path or not judged:
        return judged or None
    if blamed:
        return [*blamed[:1]]
    return [NotDecidable("disk.full", "which file it was is not known, and no file system that it may write to is full now")]


def _writable_places(situation: Situation, process: ProcessState) -> list[str]:
    """Where the process may write, the likeliest first: its temporary directory, cache, directory and open files, any mount."""
    names = ("TMPDIR", "GOTMPDIR", "GOCACHE", "HOME")
    found = [process.environment.get(name, "") for name in names]
    points = [mount.point for mount in process.mounts[:_MOST_MOUNTS] if "ro" not in mount.options and mount.kind not in _REMOTE]
    places = dict.fromkeys(
        each for each in (*found, process.directory, "/tmp", "/dev/shm", *open_files(situation), *points) if each.startswith("/")
    )
    by_mount: dict[int, str] = {}
    for place in places:
        mount = mount_under(situation, place)
        if mount is not None and mount.kind not in _PSEUDO:
            by_mount.setdefault(mount.identifier, place)
    return list(by_mount.values())


def _judged(situation: Situation, process: ProcessState, path: str, is_known: bool) -> Outcome | None:
    facts = file_facts(situation, path)
    mount = mount_under(situation, path)
    if path == "/dev/ptmx" or (mount is not None and mount.kind in _PSEUDO):
        return None  # terminals and the kernel's own files have limits of their own
    if isinstance(facts, Unknown):
        return NotDecidable("disk.full", facts.why)
    if isinstance(facts.space, Unknown):
        return NotDecidable("disk.full", facts.space.why)
    if mount is not None and _made_by_test(situation, mount):
        return SelfInflicted("disk.full", f"the program under test mounted {shown(mount.point)} itself")
    space, point = facts.space, shown(mount.point) if mount is not None else shown(path)
    evidence = (*(mount_evidence(situation, mount) if mount is not None else ()), *_space_evidence(space))
    if space.has_no_inodes:
        summary = f"the file system at {point} has no inode left (of {space.inodes:,}): no further file can be made"
        fixes = (ManualStep("inodes", f"remove files from {point}, or make it with more inodes", (("df", "-i", point),)),)
        status = Status.PROVED if is_known else Status.LIKELY
        return Blamed("disk.inodes", status, point, summary, evidence, fixes, weight=8)
    left = _available(situation, space)
    if left < _NEARLY_NOTHING or (space.total_bytes and left * 100 < space.total_bytes and is_known):
        summary = f"the file system at {point} is full: {_mib(left)} of {_mib(space.total_bytes)} left"
        status = Status.PROVED if is_known and left < _NEARLY_NOTHING else Status.LIKELY
        return Blamed("disk.full", status, point, summary, evidence, _for_space(process, mount, point), weight=8)
    if not is_known:
        return RuledOut("disk.full", f"{point} has {_mib(left)} left")
    if _is_scarcer_in_inodes(situation, space, left):
        summary = f"{point} had no room for another file; it has {space.inodes:,} inodes, and {_mib(left)} left"
        fixes = (ManualStep("inodes", f"remove files from {point}, or make it with more inodes", (("df", "-i", point),)),)
        return Blamed("disk.inodes", Status.LIKELY, point, summary, evidence, fixes, weight=4)
    # It was full when it was written to; or what was asked for at once (fallocate of a linker) did not fit.
    asked = _asked_bytes(situation)
    if asked is not None and asked > left:
        summary = f"{_mib(asked)} were asked for at once, and the file system at {point} has {_mib(left)} left"
        return Blamed("disk.full", Status.PROVED, point, summary, evidence, _for_space(process, mount, point), weight=8)
    if mounted_for_a_moment(situation):
        return SelfInflicted("disk.full", f"{point} has room, and the program under test had something mounted itself then")
    summary = f"the kernel says that the file system at {point} was full; now {_mib(left)} of {_mib(space.total_bytes)} are free"
    return Blamed("disk.full", Status.LIKELY, point, summary, evidence, _for_space(process, mount, point), weight=4)


def _made_by_test(situation: Situation, mount: Mount) -> bool:
    start = situation.at_start
    if start is None or not own_deeds(situation, "mount"):
        return False
    return all(each.point != mount.point for each in start.mounts)


def _is_scarcer_in_inodes(situation: Situation, space: Space, left: int) -> bool:
    """Whether it was rather inodes that ran out, by what is left now: only what makes a file needs one."""
    meant = calls_of(situation.symptom)
    makes = calls.OPENS | calls.DIRECTORIES | calls.NODES | calls.SYMLINKS
    if not meant or not meant <= makes or not space.inodes or not space.total_bytes:
        return False
    return space.free_inodes / space.inodes < left / space.total_bytes or space.inodes < _FEW_INODES


def _available(situation: Situation, space: Space) -> int:
    who = credentials_of(situation)
    is_privileged = who is not None and who.has(capability_number("SYS_RESOURCE"))
    return space.free_bytes if is_privileged else space.available_bytes


def _asked_bytes(situation: Situation) -> int | None:
    symptom = situation.symptom
    at = {"fallocate": 3, "write": 2, "pwrite64": 2}.get(symptom.syscall)
    return symptom.arguments[at] if at is not None and len(symptom.arguments) > at else None


def _space_evidence(space: Space) -> tuple[Evidence, ...]:
    return (
        Evidence("size in bytes", space.total_bytes, "statvfs"), Evidence("free bytes", space.available_bytes, "statvfs"),
        Evidence("free inodes", space.free_inodes, "statvfs"),
    )


def _for_space(process: ProcessState, mount: Mount | None, point: str) -> tuple[Fix, ...]:
    fixes: list[Fix] = []
    if mount is not None and mount.point == "/dev/shm" and container_of(process.identity.cgroup):
        title = "start the container with a larger /dev/shm (--shm-size=1g; Kubernetes: an emptyDir of memory)"
        fixes.append(ManualStep("shm-size", title))
    elif mount is not None and mount.kind == "tmpfs":
        command = ("mount", "-o", "remount,size=4g", mount.point)
        fixes.append(ManualStep("tmpfs-size", f"make the tmpfs at {point} larger", (command,), "its pages count as memory"))
    title = f"free space at {point}, or set TMPDIR and GOTMPDIR to a place with more"
    fixes.append(ManualStep("space", title, (("df", "-h", point),)))
    return tuple(fixes)


def _mib(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB" if count >= 10 << 30 else f"{count / (1 << 20):,.1f} MiB"


@hypothesis("disk.quota", errnos=("EDQUOT",))
def quota(situation: Situation) -> Outcome | None:
    """The disk quota of the user, group or project is used up: writes give EDQUOT ("disk quota exceeded").

    Keys have a quota with the same error (kernel.keys.maxkeys, add_key and request_key): that one is meant there.
    """
    if calls_of(situation.symptom) & {"add_key", "request_key", "keyctl"}:
        return None
    process, path = situation.process, subject_path(situation)
    mount = mount_under(situation, path) if path else None
    point = shown(mount.point) if mount is not None else "the file system"
    evidence = mount_evidence(situation, mount) if mount is not None else ()
    who = credentials_of(situation)
    if who is not None:
        evidence = (*evidence, state_evidence(situation, "uid", who.uids[3], "status"))
    step = ManualStep("quota", f"free space in {point}, or raise the quota", (("quota", "-s"), ("repquota", "-s", point)))
    return Blamed("disk.quota", Status.PROVED if process is not None else Status.LIKELY, point,
                  f"the disk quota in {point} is used up", evidence, (step,), weight=8)


DISKS = (full, quota)
