# SPDX-License-Identifier: Apache-2.0
"""What the mount under a path forbids: noexec, read-only, nosuid, hidepid; and what is not mounted at all.

Hard facts:
- execve() of a file on a noexec mount gives EACCES whatever its mode is, a mapping with PROT_EXEC of such a file EPERM.
- A mount is read-only by its own option or by its file system's (mountinfo shows both); EROFS has no other cause.
- On a nosuid mount a set-user-id program starts without its owner's rights, and says nothing.
- With hidepid=2 the directories of other users' processes in /proc do not exist (ENOENT), with hidepid=1 they are closed (EPERM).
"""
from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from triaged.explain import calls
from triaged.explain.access import access_of
from triaged.explain.calls import calls_of
from triaged.explain.hypothesis import hypothesis
from triaged.explain.situation import Situation
from triaged.explain.view import (
    credentials_of,
    file_facts,
    own_deeds,
    parameter_evidence,
    set_parameter,
    state_evidence,
    subject_of,
    subject_path,
)
from triaged.model.capability import capability_number
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.cgroup import container_of
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.process_state import Mount, ProcessState
from triaged.model.quoting import shown
from triaged.model.surroundings import EXECUTE
from triaged.model.symptom import SymptomKind
from triaged.model.verdict import Evidence

_PSEUDO = frozenset({
    "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "securityfs", "debugfs", "tracefs", "configfs", "bpf", "pstore",
    "efivarfs", "binfmt_misc", "hugetlbfs", "nsfs", "autofs", "fusectl", "devtmpfs", "squashfs", "iso9660",
})  # fmt: skip
_PROT_EXEC, _MS_RDONLY, _MS_NOEXEC = 4, 1, 8
# What a machine is expected to have mounted, the kinds of file system that it may be, and how it is mounted.
EXPECTED: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "/proc": (frozenset({"proc"}), ("mount", "-t", "proc", "proc", "/proc")),
    "/sys": (frozenset({"sysfs"}), ("mount", "-t", "sysfs", "sysfs", "/sys")),
    "/dev/shm": (frozenset({"tmpfs"}), ("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")),
    "/dev/pts": (frozenset({"devpts"}), ("mount", "-t", "devpts", "devpts", "/dev/pts")),
    "/dev/mqueue": (frozenset({"mqueue"}), ("mount", "-t", "mqueue", "mqueue", "/dev/mqueue")),
    "/dev/hugepages": (frozenset({"hugetlbfs"}), ("mount", "-t", "hugetlbfs", "hugetlbfs", "/dev/hugepages")),
    "/sys/fs/cgroup": (frozenset({"cgroup2", "tmpfs", "cgroup"}), ("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")),
    "/sys/fs/bpf": (frozenset({"bpf"}), ("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")),
    "/sys/fs/fuse/connections": (frozenset({"fusectl"}), ("mount", "-t", "fusectl", "fusectl", "/sys/fs/fuse/connections")),
    "/sys/kernel/tracing": (frozenset({"tracefs"}), ("mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing")),
    "/sys/kernel/debug": (frozenset({"debugfs"}), ("mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug")),
    "/sys/kernel/security": (frozenset({"securityfs"}), ("mount", "-t", "securityfs", "securityfs", "/sys/kernel/security")),
    "/proc/sys/fs/binfmt_misc": (
        frozenset({"binfmt_misc"}), ("mount", "-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc")),
}  # fmt: skip
_SPEAKS_OF_RIGHTS = re.compile(
    r"effective uid is not 0|no new privileges|no_new_privs|set-?user-?id|\bset-?uid\b|\bsuid\b|\bnot (?:as )?root\b|"
    r"must be (?:run as )?root", re.I,
)
_ALWAYS_THERE = re.compile(
    r"/proc/self(?:/(?:status|stat|maps|exe|fd|cmdline|environ|limits|mountinfo|mounts|cgroup|ns)\b|$)|"
    r"/proc/(?:cpuinfo|meminfo|stat|uptime|version|filesystems|mounts|loadavg)$|/sys/(?:kernel|class|devices)$|/dev/pts/ptmx$"
)
_WITHOUT_HIDEPID = ManualStep(
    "remount-proc", "mount /proc without hidepid", (("mount", "-o", "remount,hidepid=0", "/proc"),),
    risk="users then see each other's processes and command lines",
)
_PATH = re.compile(r"(?<![\w.])(/[\w./+-]+)")
_MOST_PROGRAMS = 64
_CANDIDATES = ("/var/tmp", "/tmp", "/dev/shm", "/home")


def mount_under(situation: Situation, path: str) -> Mount | None:
    """The mount on which a path of the process lies, links followed where the file can still be looked at."""
    process = situation.process
    if process is None:
        return None
    facts = file_facts(situation, path)
    return process.mount_of(path if isinstance(facts, Unknown) else facts.path)


def mount_evidence(situation: Situation, mount: Mount) -> tuple[Evidence, ...]:
    """A line of mountinfo as evidence."""
    options = ",".join(sorted(mount.options))
    super_options = ",".join(sorted(mount.super_options))
    return (
        state_evidence(situation, "mount", f"{shown(mount.source)} on {shown(mount.point)} ({mount.kind})", "mountinfo"),
        state_evidence(situation, "options", f"{options} - {super_options}", "mountinfo"),
    )


def mounted_by_test(situation: Situation, flag: int) -> bool:
    """Whether the program under test mounted something with this flag itself."""
    return any(deed.arguments[3] & flag for deed in own_deeds(situation, "mount") if len(deed.arguments) > 3)


def mounted_for_a_moment(situation: Situation, flag: int = 0) -> bool:
    """Whether the program under test had something mounted (with this flag) at the symptom, and took it away afterwards."""
    at_ns = situation.symptom.first_ns
    before = [deed for deed in own_deeds(situation, "mount") if deed.at_ns <= at_ns]
    with_flag = [deed for deed in before if not flag or (len(deed.arguments) > 3 and deed.arguments[3] & flag)]
    return bool(with_flag) and any(deed.at_ns > at_ns for deed in own_deeds(situation, "umount2"))


@hypothesis("mount.noexec", syscalls=calls.EXECS | calls.MAPS, errnos=("EACCES", "EPERM"))
def noexec(situation: Situation) -> Outcome | None:
    """The program lies on a mount with noexec: execve() gives EACCES. Go builds and runs test binaries below $GOTMPDIR or $TMPDIR.

    A mapping with PROT_EXEC of a file there gives EPERM (shared libraries, plugins).
    """
    symptom, process = situation.symptom, situation.process
    meant = calls_of(symptom)
    is_exec = bool(meant & calls.EXECS) and symptom.errno == "EACCES"
    is_map = symptom.syscall in calls.MAPS and len(symptom.arguments) > 2 and bool(symptom.arguments[2] & _PROT_EXEC)
    if not is_exec and not is_map:
        return None
    path = subject_path(situation)
    if process is None or not path:
        return NotDecidable("mount.noexec", "which file it was is not known") if is_exec and symptom.syscall else None
    mount = mount_under(situation, path)
    if mount is None:
        return NotDecidable("mount.noexec", "its mounts could not be read")
    if mounted_for_a_moment(situation, _MS_NOEXEC):
        return SelfInflicted("mount.noexec", "the program under test had something mounted with noexec itself then")
    if "noexec" not in mount.options:
        return RuledOut("mount.noexec", f"{shown(mount.point)} is mounted without noexec")
    if mounted_by_test(situation, _MS_NOEXEC):
        return SelfInflicted("mount.noexec", "the program under test mounted with noexec itself")
    access = access_of(situation)
    if is_exec and not isinstance(access, Unknown) and access.obstacle is not None and access.obstacle is access.facts.node:
        return None  # it is no program: its mode alone forbids it
    is_there = not isinstance(access, Unknown) and access.facts.node is not None
    summary = f"{shown(path)} lies on {shown(mount.point)}, which is mounted noexec: nothing there can be executed"
    return Blamed(
        "mount.noexec", Status.PROVED if is_there else Status.LIKELY, shown(mount.point), summary, mount_evidence(situation, mount),
        _for_noexec(process, mount, path), weight=8,
    )


def _for_noexec(process: ProcessState, mount: Mount, path: str) -> tuple[Fix, ...]:
    fixes: list[Fix] = []
    places = [process.environment.get(name, "") for name in ("TMPDIR", "GOTMPDIR")]
    if "/go-build" in path or "/Test" in path or any(place and path.startswith(f"{place}/") for place in places):
        place = next((each for each in _CANDIDATES if _may_execute(process.mount_of(each))), "DIRECTORY")
        title = "let Go (and t.TempDir) build where programs may be executed: set GOTMPDIR to such a directory"
        fixes.append(ManualStep("gotmpdir", title, (("env", f"GOTMPDIR={place}", "go", "test", "./..."),)))
    fixes.append(ManualStep(
        "remount-exec", f"mount {shown(mount.point)} without noexec", (("mount", "-o", "remount,exec", mount.point),),
        risk="programs in it can then be executed by everybody who can write there",
    ))  # fmt: skip
    return tuple(fixes)


def _may_execute(mount: Mount | None) -> bool:
    return mount is not None and not {"noexec", "ro"} & mount.options


@hypothesis("mount.read-only", errnos=("EROFS",))
def read_only(situation: Situation) -> Outcome | None:
    """The mount or the file system is read-only: whatever would write gives EROFS.

    A Go build cache that is filled and read-only does no harm; an empty one does ("failed to initialize build cache").
    """
    process = situation.process
    if mounted_by_test(situation, _MS_RDONLY):
        return SelfInflicted("mount.read-only", "the program under test mounted something read-only itself")
    if process is None:
        return NotDecidable("mount.read-only", "no process was named")
    path = subject_path(situation)
    if not path:
        closed = [mount for mount in process.mounts if _is_read_only(mount) and mount.kind not in _PSEUDO]
        names = ", ".join(shown(mount.point) for mount in closed[:5]) or "none that is known"
        summary = f"the kernel says that the file system is read-only; those that are: {names}"
        subject = shown(closed[0].point) if len(closed) == 1 else subject_of(process)
        evidence = mount_evidence(situation, closed[0]) if len(closed) == 1 else ()
        return Blamed("mount.read-only", Status.LIKELY, subject, summary, evidence, _writable_place(closed[:1]), weight=5)
    mount = mount_under(situation, path)
    if mount is None:
        return Blamed("mount.read-only", Status.LIKELY, shown(path), f"{shown(path)} lies on a read-only file system", weight=5)
    if not _is_read_only(mount):
        return NotDecidable("mount.read-only", f"{shown(mount.point)} is writable now")
    what = "mounted read-only" if "ro" in mount.options else f"a read-only file system ({mount.kind})"
    summary = f"{shown(path)} lies on {shown(mount.point)}, which is {what}"
    evidence = mount_evidence(situation, mount)
    return Blamed("mount.read-only", Status.PROVED, shown(mount.point), summary, evidence, _writable_place([mount]), weight=8)


def _is_read_only(mount: Mount) -> bool:
    return "ro" in mount.options or "ro" in mount.super_options


def _writable_place(mounts: Iterable[Mount]) -> tuple[Fix, ...]:
    title = "let it write elsewhere: a cache by GOCACHE, temporary files by TMPDIR, a test's own files in t.TempDir()"
    fixes: list[Fix] = [ManualStep("writable-place", title)]
    risk = "whoever mounted it read-only had a reason: a container's image, a file system with errors (see dmesg)"
    for mount in mounts:
        command = ("mount", "-o", "remount,rw", mount.point)
        fixes.append(ManualStep("remount-rw", f"mount {shown(mount.point)} writable", (command,), risk))
    return tuple(fixes)


@hypothesis("mount.missing", errnos=("ENOENT", "ENOSYS", "ENODEV", "EACCES", "EPERM"), syscalls=calls.ON_PATHS | {"mq_open"})
def missing(situation: Situation) -> Outcome | None:
    """A file system that programs expect is not mounted: /dev/shm, /proc, /sys, /dev/pts, the cgroups. Files in it give ENOENT."""
    path, process = subject_path(situation), situation.process
    if process is None or not path:
        return None
    path = "/dev/pts/ptmx" if path == "/dev/ptmx" else path
    point = max((each for each in EXPECTED if path == each or path.startswith(each + "/")), key=len, default="")
    if not point:
        return None
    if not process.mounts:
        return _missing_by_its_absence(situation, process, path, point)
    if situation.symptom.errno in ("EACCES", "EPERM"):
        # An empty directory in a place where nothing is mounted: whoever makes a file in it meets the directory's mode.
        who = credentials_of(situation)
        if who is None or who.uids[1] == 0:
            return None
    kinds, command = EXPECTED[point]
    over = process.mount_of(f"{point}/x")
    over = over if over is not None and over.point == point else None
    if over is not None and (over.kind in kinds or over.kind not in ("tmpfs", "ramfs")):
        return RuledOut("mount.missing", f"{point} is mounted ({over.kind})")
    facts = file_facts(situation, path)
    if not isinstance(facts, Unknown) and situation.symptom.errno == "ENOENT":
        if facts.node is not None:
            return RuledOut("mount.missing", f"{shown(path)} is there now")
        if point in ("/dev/shm", "/dev/hugepages") and any(node.path == point for node in facts.way):
            return None  # a plain directory serves as well: it is the file that is not there
    what = f"{over.kind} is mounted over it" if over else "nothing is mounted there"
    is_there = isinstance(facts, Unknown) or any(node.path == point for node in facts.way)
    steps = (command,) if is_there else (("mkdir", "-p", point), command)
    evidence = (state_evidence(situation, f"mount at {point}", over.kind if over else "none", "mountinfo"),)
    container = container_of(process.identity.cgroup)
    title = f"mount {point}" + (" in the container (--tmpfs, --mount, --shm-size)" if container and point == "/dev/shm" else "")
    return Blamed(
        "mount.missing", Status.PROVED, point, f"{point} is not mounted as programs expect it: {what}", evidence,
        (ManualStep("mount", title, steps),), weight=8,
    )  # fmt: skip


def _missing_by_its_absence(situation: Situation, process: ProcessState, path: str, point: str) -> Outcome | None:
    """What is to be said where the mounts are not known: some files are there wherever the file system is."""
    if situation.symptom.errno != "ENOENT" or not _ALWAYS_THERE.match(path):
        return None
    summary = f"{shown(path)} is always there where {point} is mounted"
    step = ManualStep("mount", f"mount {point}", (EXPECTED[point][1],))
    evidence = (Evidence(path, "does not exist", "the program"),)
    return Blamed("mount.missing", Status.LIKELY, point, summary, evidence, (step,), weight=4)


@hypothesis("mount.hidepid", errnos=("ENOENT", "EPERM", "EACCES"), syscalls=calls.ON_PATHS | {"getdents64"})
def hidepid(situation: Situation) -> Outcome | None:
    """/proc is mounted with hidepid: other users' processes cannot be seen (2, "invisible": ENOENT) or not be looked into (1)."""
    path, process, who = subject_path(situation), situation.process, credentials_of(situation)
    parts = path.split("/")
    if process is None or who is None or len(parts) < 3 or parts[1] != "proc" or not parts[2].isdigit():
        return None
    proc = process.mount_of("/proc/1")
    if not process.mounts and parts[2] == "1" and situation.symptom.errno == "ENOENT" and who.uids[1] != 0:
        summary = "process 1 always exists, and a user does not see it: /proc is mounted with hidepid"
        evidence = (Evidence(path, "does not exist", "the program"),)
        return Blamed("mount.hidepid", Status.LIKELY, "/proc", summary, evidence, (_WITHOUT_HIDEPID,), weight=4)
    if proc is None or proc.kind != "proc":
        return None
    value = next((each.partition("=")[2] for each in proc.super_options | proc.options if each.startswith("hidepid=")), "0")
    if value in ("0", "off"):
        return RuledOut("mount.hidepid", "/proc is mounted without hidepid")
    if who.has(capability_number("SYS_PTRACE")):
        return RuledOut("mount.hidepid", "the process has CAP_SYS_PTRACE, which it does not bind")
    group = next((each.partition("=")[2] for each in proc.super_options if each.startswith("gid=")), "")
    if group.isdigit() and int(group) in (who.gids[1], *who.groups):
        return RuledOut("mount.hidepid", f"the process is in group {group}, which it does not bind")
    facts = file_facts(situation, f"/proc/{parts[2]}")
    is_there = not isinstance(facts, Unknown) and facts.node is not None
    if not is_there and parts[2] != "1":
        return NotDecidable("mount.hidepid", f"whether process {parts[2]} was there is not known")
    if is_there and not isinstance(facts, Unknown) and facts.node is not None and facts.node.uid == who.uids[1]:
        return RuledOut("mount.hidepid", "the process that it looked at is the same user's")
    summary = f"/proc is mounted with hidepid={value}: process {parts[2]} of another user cannot be seen"
    seen = mount_evidence(situation, proc)
    return Blamed("mount.hidepid", Status.PROVED, "/proc", summary, seen, (_WITHOUT_HIDEPID,), weight=8)


@hypothesis("mount.nodev", syscalls=calls.OPENS, errnos=("EACCES",))
def nodev(situation: Situation) -> Outcome | None:
    """A device file lies on a mount with nodev: opening it gives EACCES whatever its mode is, also to root."""
    path, process = subject_path(situation), situation.process
    if process is None or not path:
        return None
    facts = file_facts(situation, path)
    if isinstance(facts, Unknown) or not (facts.node.is_device if facts.node is not None else _was_device(situation)):
        return None
    mount = mount_under(situation, path)
    if mount is None or "nodev" not in mount.options:
        return RuledOut("mount.nodev", f"{shown(mount.point)} is mounted without nodev") if mount is not None else None
    command = ("mount", "-o", "remount,dev", mount.point)
    risk = "whoever can make device files there can then use them"
    step = ManualStep("remount-dev", f"mount {shown(mount.point)} without nodev, or use the devices in /dev", (command,), risk)
    status = Status.PROVED if facts.node is not None else Status.LIKELY
    summary = f"{shown(path)} is a device file on {shown(mount.point)}, which is mounted nodev"
    return Blamed("mount.nodev", status, shown(mount.point), summary, mount_evidence(situation, mount), (step,), weight=8)


def _was_device(situation: Situation) -> bool:
    """Whether the program under test has made a device file (mknod is none of the calls that ordinary tests make)."""
    kinds = (stat.S_IFCHR, stat.S_IFBLK)
    at = {"mknod": 1, "mknodat": 2}
    made = [each for each in situation.deeds if each.syscall in at and len(each.arguments) > at[each.syscall]]
    return any(stat.S_IFMT(each.arguments[at[each.syscall]]) in kinds for each in made)


@hypothesis("mount.nosuid", kinds=(SymptomKind.CALL, SymptomKind.SILENT))
def nosuid(situation: Situation) -> Outcome | None:
    """A set-user-id program lies on a mount with nosuid: it starts without its owner's rights, and fails later (EPERM).

    sudo says so itself ("effective uid is not 0, is sudo on a file system with the 'nosuid' option set").
    """
    found = setid_program(situation)
    if found is None:
        return None
    mount = mount_under(situation, found.path)
    if mount is None:
        return None
    if "nosuid" not in mount.options:
        return RuledOut("mount.nosuid", f"{shown(mount.point)} is mounted without nosuid")
    lies = f"lies on {shown(mount.point)}, which is mounted nosuid"
    summary = f"{shown(found.path)} should run with the rights of {found.rights}, and {lies}"
    title = f"mount {shown(mount.point)} without nosuid, or put the program elsewhere"
    risk = "set-user-id programs there then have their owner's rights"
    step = ManualStep("remount-suid", title, (("mount", "-o", "remount,suid", mount.point),), risk)
    status = Status.PROVED if found.is_named else Status.LIKELY
    return Blamed("mount.nosuid", status, shown(mount.point), summary, mount_evidence(situation, mount), (step,), weight=9)


@dataclass(frozen=True)
class SetidProgram:
    """A program that should run with other rights than whoever starts it: whose they are, and whether the symptom names it."""

    path: str
    rights: str
    is_named: bool


def setid_program(situation: Situation) -> SetidProgram | None:
    """The set-user-id program that the symptom is about, which runs without its owner's rights."""
    process, who, symptom = situation.process, credentials_of(situation), situation.symptom
    if process is None or who is None:
        return None
    says_so = _SPEAKS_OF_RIGHTS.search(symptom.text) is not None
    if not says_so and (symptom.kind is SymptomKind.SILENT or symptom.errno not in ("EPERM", "EACCES")):
        return None
    programs = [process.identity.exe] if process.identity.exe.startswith("/") else []
    if says_so:
        programs += _PATH.findall(symptom.text)
        # A helper is often named by a variable, as compilers and browsers are.
        programs += [value for value in process.environment.values() if value.startswith("/") and ":" not in value][:_MOST_PROGRAMS]
        programs += ["/usr/bin/sudo"] if "sudo" in symptom.text else []
    for program in programs:
        facts = file_facts(situation, program)
        if isinstance(facts, Unknown) or facts.node is None:
            continue
        if facts.node.is_setid and (says_so or facts.node.uid != who.uids[1]) and facts.node.permits(who, EXECUTE):
            says_so_itself = program in symptom.text or f"{program.rsplit('/', 1)[-1]}: " in symptom.text
            return SetidProgram(program, f"user {facts.node.uid}", program == process.identity.exe or says_so_itself)
        if facts.has_capabilities and not who.effective:
            return SetidProgram(program, "file capabilities", program == process.identity.exe)
    return None


@hypothesis("sysctl.fs.mount-max", syscalls=("mount", "move_mount", "open_tree", "unshare", "clone", "clone3"), errnos=("ENOSPC",))
def mount_max(situation: Situation) -> Outcome | None:
    """The mount namespace holds fs.mount-max mounts: mount() gives ENOSPC ("no space left on device")."""
    process = situation.process
    if not calls_of(situation.symptom) & {"mount", "move_mount", "open_tree", "unshare", "clone", "clone3"}:
        return None
    value = situation.number("fs.mount-max")
    if isinstance(value, Unknown):
        return None
    if process is None or not process.mounts:
        return NotDecidable("sysctl.fs.mount-max", "its mounts could not be read")
    used = len(process.mounts)
    # A recursive bind mount asks for many at once, so a namespace may be refused one that is not full.
    if used * 2 < value:
        return RuledOut("sysctl.fs.mount-max", f"{used:,} of {value:,} mounts")
    is_mount = situation.symptom.syscall in ("mount", "move_mount", "open_tree")
    return Blamed(
        "sysctl.fs.mount-max", Status.PROVED if is_mount and used >= value else Status.LIKELY, "host",
        f"fs.mount-max is {value}, and the mount namespace holds {used} mounts",
        (parameter_evidence(situation, "fs.mount-max", value), state_evidence(situation, "mounts", used, "mountinfo")),
        set_parameter(situation, "fs.mount-max", str(max(value * 2, 100000))), weight=6,
    )


MOUNTS = (noexec, read_only, missing, hidepid, nodev, nosuid, mount_max)
