# SPDX-License-Identifier: Apache-2.0
"""Why a namespace cannot be made, and what does not work inside of one.

Hard facts (user_namespaces(7), kernel/user_namespace.c, kernel/nsproxy.c; measured on 6.18 and 6.12):
- ENOSPC of clone() and unshare() is always a limit on namespaces: user.max_X_namespaces of some user namespace above, or 32 user
  namespaces within each other. Root is not exempt. It prints as "no space left on device".
- EPERM of CLONE_NEWUSER: the process is in a chroot, its ids have no mapping in its user namespace, or (Debian and Ubuntu)
  kernel.unprivileged_userns_clone is 0.
- Ubuntu's kernel.apparmor_restrict_unprivileged_userns lets the namespace be made and takes the capabilities in it away.
- Root of a user namespace may only do what its own namespaces allow: the host's ports, clock, devices and host name are not its.
"""
from __future__ import annotations

from triaged.explain import calls
from triaged.explain.calls import calls_of
from triaged.explain.capabilities import NEW_USER, port_of
from triaged.explain.hypothesis import Hypothesis, hypothesis
from triaged.explain.seccomp_answer import passed_by_seccomp
from triaged.explain.security_log import apparmor_denials
from triaged.explain.situation import Situation
from triaged.explain.view import (
    credentials_of,
    is_labelled,
    label_of,
    network_number,
    own_deeds,
    parameter_evidence,
    set_parameter,
    state_evidence,
    subject_of,
    tested_ancestors,
)
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.fix import ManualStep
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown
from triaged.model.subject import HostSubject
from triaged.model.verdict import Evidence

_MAKERS = frozenset({"clone", "clone3", "unshare"})
_SYS_ADMIN = 21
# kind as /proc/PID/ns names it: flag, parameter
_KINDS = {
    "user": (NEW_USER, "max_user_namespaces"), "pid": (0x20000000, "max_pid_namespaces"), "net": (0x40000000, "max_net_namespaces"),
    "mnt": (0x00020000, "max_mnt_namespaces"), "uts": (0x04000000, "max_uts_namespaces"), "ipc": (0x08000000, "max_ipc_namespaces"),
    "cgroup": (0x02000000, "max_cgroup_namespaces"), "time": (0x00000080, "max_time_namespaces"),
}  # fmt: skip
# What the kernel has by default is half of threads-max; whoever sets less than this has set a limit.
_PLENTY = 1000


def flags_of(situation: Situation) -> int | None:
    """The flags of the failed clone or unshare; None where they are not known (those of clone3 are in the process's memory)."""
    symptom = situation.symptom
    return symptom.arguments[0] if symptom.syscall in ("clone", "unshare") and symptom.arguments else None


def may_make(situation: Situation, flag: int) -> bool | None:
    """Whether the symptom is about making a namespace of this kind; None where that cannot be told."""
    meant = calls_of(situation.symptom)
    if not meant & _MAKERS:
        return False
    flags = flags_of(situation)
    return None if flags is None else bool(flags & flag)


def _limited(kind: str) -> Hypothesis:
    flag, parameter = _KINDS[kind]
    key = f"user.{parameter}"

    def judge(situation: Situation) -> Outcome | None:
        if may_make(situation, flag) is False:
            return None
        value = situation.number(key)
        if isinstance(value, Unknown):
            return NotDecidable(key_of(key), value.why)
        evidence = (parameter_evidence(situation, key, value),)
        asked = _asked_kinds(situation)
        rivals = [other for other in asked if other != kind and _is_low(situation, other)]
        if value == 0 or (value < _PLENTY and not rivals):
            is_sure = not rivals and (value == 0 or asked == [kind])
            summary = (
                f"{key} is {value}: no further {kind} namespace can be made, also by root; it prints as \"no space left on device\""
            )
            rule = "sysctl.user-namespaces-off" if kind == "user" and value == 0 else ""
            return Blamed(
                key_of(key), Status.PROVED if is_sure else Status.LIKELY, "host", summary, evidence,
                set_parameter(situation, key, "65536"), rule, HostSubject(key).key if rule else "", weight=6,
            )  # fmt: skip
        process = situation.process
        if process is not None and not process.has_initial_user_namespace:
            # The reader sees the value of its own user namespace; the process's own, or one in between, may be lower.
            why = f"{key} is {value} here; what it is in the user namespace of the process cannot be seen from outside"
            if asked == [kind]:
                return Blamed(key_of(key), Status.LIKELY, subject_of(process), why, evidence, _inside(key), weight=4)
            return NotDecidable(key_of(key), why)
        if asked == [kind]:
            summary = f"{key} is {value}, and clone() gives ENOSPC only for this limit or 32 namespaces within each other"
            fixes = set_parameter(situation, key, str(value * 2))
            return Blamed(key_of(key), Status.LIKELY, "host", summary, evidence, fixes, weight=3)
        return RuledOut(key_of(key), f"{key} is {value:,}") if value >= _PLENTY else NotDecidable(key_of(key), f"{key} is {value}")

    judge.__doc__ = (
        f"{key} is used up: clone() and unshare() of a new {kind} namespace give ENOSPC, also for root. "
        "How many there are is shown nowhere; 0 means that none can be made."
    )
    return hypothesis(f"sysctl.{key}", syscalls=_MAKERS, errnos=("ENOSPC",))(judge)


_PIVOT = ManualStep("pivot-root", "run it in a container or mount namespace with pivot_root() instead of chroot()")


def key_of(parameter: str) -> str:
    """The cause of a parameter."""
    return f"sysctl.{parameter}"


def _asked_kinds(situation: Situation) -> list[str]:
    """The kinds of namespaces that were to be made; all of them where that is not known."""
    flags = flags_of(situation)
    return [kind for kind, (flag, _) in _KINDS.items() if flags is None or flags & flag]


def _is_low(situation: Situation, kind: str) -> bool:
    value = situation.number(f"user.{_KINDS[kind][1]}")
    return isinstance(value, int) and value < _PLENTY


def _inside(key: str) -> tuple[ManualStep, ...]:
    return (ManualStep("inside", f"raise {key} inside the container or user namespace in which it runs, or above it"),)


def _makes_user_namespace(situation: Situation) -> bool:
    """Whether it may be about a user namespace: surely, or as one of several things that a fork/exec does."""
    return may_make(situation, NEW_USER) is not False


@hypothesis("sysctl.kernel.unprivileged_userns_clone", syscalls=_MAKERS, errnos=("EPERM",))
def unprivileged_userns_clone(situation: Situation) -> Outcome | None:
    """kernel.unprivileged_userns_clone is 0: only root makes user namespaces, others get EPERM.

    The parameter is Debian's and Ubuntu's own; other kernels do not have it, and newer releases set it to 1.
    """
    key = "kernel.unprivileged_userns_clone"
    if not _makes_user_namespace(situation):
        return None
    value, who = situation.number(key), credentials_of(situation)
    if isinstance(value, Unknown):
        return RuledOut(key_of(key), "this kernel does not have the parameter")
    if value != 0:
        return RuledOut(key_of(key), f"{key} is {value}")
    if who is not None and who.has(_SYS_ADMIN):
        return RuledOut(key_of(key), "the process has CAP_SYS_ADMIN, which it does not bind")
    status = _gate_status(situation, sorted(calls_of(situation.symptom) & _MAKERS), may_make(situation, NEW_USER))
    if status is None:
        return RuledOut(key_of(key), "a seccomp filter refused the call before")
    return Blamed(
        key_of(key), status, "host", f"{key} is 0: only root can make user namespaces", (parameter_evidence(situation, key, 0),),
        set_parameter(situation, key, "1", "every user may then make user namespaces"), "sysctl.user-namespaces-off",
        HostSubject(key).key, weight=7,
    )


def _gate_status(situation: Situation, meant: list[str], applies: bool | None) -> Status | None:
    """How sure a gate is that is closed and lies in the way: None if a filter refused the call before it came so far."""
    passed = passed_by_seccomp(situation, meant)
    if passed is False:
        return None
    return Status.PROVED if applies and passed else Status.LIKELY


@hypothesis("sysctl.kernel.apparmor_restrict_unprivileged_userns", errnos=("EPERM", "EACCES"))
def apparmor_restrict_unprivileged_userns(situation: Situation) -> Outcome | None:
    """kernel.apparmor_restrict_unprivileged_userns is 1 (Ubuntu from 23.10 on): user namespaces of programs without a profile that
    has "userns," get no capabilities.

    The namespace is made; writing uid_map, mount(), sethostname() and setgroups() in it fail then with EPERM or EACCES.
    """
    key = "kernel.apparmor_restrict_unprivileged_userns"
    value, process = situation.number(key), situation.process
    if isinstance(value, Unknown) or value == 0:
        return None
    meant = calls_of(situation.symptom)
    log = [line for line in apparmor_denials(situation) if "userns_create" in line or 'profile="unprivileged_userns"' in line]
    concerned = _MAKERS | {
        "mount", "sethostname", "setgroups", "setgid", "setuid", "setresuid", "setresgid", "write", "openat", "chroot",
    }  # fmt: skip
    if not meant & concerned and "uid_map" not in situation.symptom.path + situation.symptom.text:
        return None
    is_restricted = label_of(process).startswith("unprivileged_userns")
    if not log and not is_restricted:
        return None
    evidence = (parameter_evidence(situation, key, value), *(Evidence("kernel log", shown(line, 400), "kmsg") for line in log[:2]))
    fixes = (
        ManualStep("apparmor-profile", "give the program an AppArmor profile with the rule \"userns,\" (see /etc/apparmor.d)"),
        *set_parameter(situation, key, "0", "every user may then make user namespaces with capabilities in them"),
    )
    summary = f"{key} is {value}: the user namespace was made and has no capabilities"
    return Blamed(
        key_of(key), Status.PROVED, "host", summary, evidence, fixes,
        "sysctl.user-namespaces-off", HostSubject(key).key, weight=9,
    )


@hypothesis("process.chroot", syscalls=_MAKERS, errnos=("EPERM",))
def in_chroot(situation: Situation) -> Outcome | None:
    """The process is in a chroot: the kernel refuses user namespaces there with EPERM, also to root.

    Containers use pivot_root() instead and are not concerned.
    """
    if not _makes_user_namespace(situation):
        return None
    process = situation.process
    if process is None:
        return NotDecidable("process.chroot", "no process was named")
    is_chrooted = chrooted(process)
    if not is_chrooted:
        if _is_left_to_chroot(situation, process):
            summary = f"nothing else refuses {subject_of(process)} a user namespace: the kernel does so in a chroot"
            evidence = (state_evidence(situation, "root", shown(process.root), "root"),)
            return Blamed("process.chroot", Status.LIKELY, subject_of(process), summary, evidence, (_PIVOT,), weight=3)
        if is_chrooted is None:
            return NotDecidable("process.chroot", "its mounts could not be read")
        return RuledOut("process.chroot", "its root directory is that of its mount namespace")
    if own_deeds(situation, "chroot"):
        return SelfInflicted("process.chroot", "the program under test went into the chroot itself")
    status = _gate_status(situation, sorted(calls_of(situation.symptom) & _MAKERS), may_make(situation, NEW_USER))
    if status is None:
        return RuledOut("process.chroot", "a seccomp filter refused the call before")
    summary = f"{subject_of(process)} is in a chroot ({shown(process.root)}), where no user namespace can be made"
    evidence = (state_evidence(situation, "root", shown(process.root), "root"),)
    return Blamed("process.chroot", status, subject_of(process), summary, evidence, (_PIVOT,), weight=7)


def _is_left_to_chroot(situation: Situation, process: ProcessState) -> bool:
    """Whether the kernel has no other reason left: a chroot onto a mount cannot be told from its root directory by looking.

    (kernel/user_namespace.c, create_user_ns: EPERM for a chroot, for ids without a mapping, and by security modules.)
    """
    who, flags = credentials_of(situation), flags_of(situation)
    if who is None or flags is None or not flags & NEW_USER or not process.has_initial_user_namespace:
        return False
    restricted = situation.number("kernel.apparmor_restrict_unprivileged_userns")
    if isinstance(restricted, int) and restricted:
        return False
    closed = situation.number("kernel.unprivileged_userns_clone")
    if closed == 0 and not who.has(_SYS_ADMIN):
        return False
    if is_labelled(process) or apparmor_denials(situation):
        return False
    return passed_by_seccomp(situation, [situation.symptom.syscall]) is True


def chrooted(process: ProcessState) -> bool | None:
    """Whether the root directory of the process is not that of its mount namespace; None where that cannot be told.

    mountinfo shows mounts below the process's root only: in a chroot into a plain directory none is at "/".
    """
    if process.root not in ("/", ""):
        return True
    if not process.mounts:
        return None
    return not any(mount.point == "/" for mount in process.mounts)


# calls -> errors that root of a user namespace gets for what belongs to a namespace above it
_BEYOND = {
    "EINVAL": calls.CHOWNS | {"setuid", "setgid", "setresuid", "setresgid", "setreuid", "setregid", "setgroups"},
    "EACCES": frozenset({"bind", "setpriority"}) | calls.OPENS,
    "EPERM": frozenset({
        "setgroups", "mount", "mknod", "mknodat", "settimeofday", "clock_settime", "sethostname", "setdomainname", "reboot",
        "swapon", "init_module", "finit_module", "syslog", "setpriority", "sched_setscheduler", "mlock", "socket", "setns",
        "unshare", "clone",
        "bpf", "perf_event_open", "quotactl", "adjtimex", "clock_adjtime", "acct", "ioctl", "prlimit64", "fanotify_init",
    }) | calls.CHOWNS,
}


@hypothesis("process.user-namespace", errnos=tuple(_BEYOND))
def user_namespace(situation: Situation) -> Outcome | None:
    """The process is root of a user namespace only (rootless container, unshare -U): what belongs to the host stays closed to it.

    Ids that have no mapping give EINVAL ("chown ...: invalid argument"), setgroups() may be forbidden there (EPERM), ports below
    1024 of a network namespace that it does not own give EACCES, and mounts, the clock or devices give EPERM.
    """
    symptom, process = situation.symptom, situation.process
    meant = calls_of(symptom) & _BEYOND[symptom.errno]
    if not meant or (not symptom.syscall and meant != calls_of(symptom)):
        return None
    cause = "process.user-namespace"
    if process is None:
        return None
    if process.has_initial_user_namespace:
        return RuledOut(cause, "it is in the machine's own user namespace") if "user" in process.namespaces else None
    who = credentials_of(situation)
    if _made_itself(situation, process):
        return SelfInflicted(cause, "the program under test made the user namespace itself")
    applies = _is_beyond(situation, process, meant)
    if applies is False:
        return None
    passed = passed_by_seccomp(situation, sorted(meant))
    if passed is False:
        return RuledOut(cause, "a seccomp filter refused the call before")
    if symptom.errno == "EPERM" and (who is None or not who.effective):
        return None  # it is not even root there: that is a missing capability
    evidence = (
        state_evidence(situation, "user namespace", process.namespaces.get("user", ""), "ns/user"),
        state_evidence(situation, "uid_map", " ".join(process.uid_map.split()), "uid_map"),
        state_evidence(situation, "gid_map", " ".join(process.gid_map.split()), "gid_map"),
    )
    summary = f"{subject_of(process)} is root only of its user namespace: {_explained(symptom.errno, meant, process)}"
    fixes = (ManualStep(
        "user-namespace",
        "map more ids into the user namespace (/etc/subuid, /etc/subgid, newuidmap), or run the test outside of it",
    ),)  # fmt: skip
    status = Status.PROVED if applies and passed else Status.LIKELY
    return Blamed(cause, status, subject_of(process), summary, evidence, fixes, weight=9)


def _made_itself(situation: Situation, process: ProcessState) -> bool:
    """Whether the user namespace is the work of the program under test."""
    if any(deed.arguments and deed.arguments[0] & NEW_USER for deed in own_deeds(situation, "clone", "unshare")):
        return True
    own = process.namespaces.get("user")
    return any(each.namespaces.get("user") not in (None, own) for each in tested_ancestors(situation))


def _is_beyond(situation: Situation, process: ProcessState, meant: frozenset[str]) -> bool | None:
    """Whether the call reaches out of the namespace; None where its arguments are not known."""
    symptom = situation.symptom
    if symptom.errno == "EINVAL":
        ids = _ids(situation)
        if ids is None:
            return None
        maps = (process.uid_map, process.gid_map)
        return any(each is not None and not is_mapped(text, each) for text, each in zip(maps, ids, strict=True))
    if meant <= {"bind"}:
        port, start = port_of(situation), network_number(situation, "net.ipv4.ip_unprivileged_port_start")
        if port is None:
            return None
        return 0 < port < (start if isinstance(start, int) else 1024)
    if symptom.errno == "EACCES" and meant & calls.OPENS:
        return symptom.path.startswith(("/proc/sys/", "/sys/"))
    return True if symptom.syscall not in ("clone", "unshare", "socket", "ioctl", "mlock", "prlimit64") else None


def _ids(situation: Situation) -> tuple[int | None, int | None] | None:
    """The user and group that the call was about, as the process wrote them (None: unchanged)."""
    symptom = situation.symptom
    first = {"fchownat": 2, "chown": 1, "lchown": 1, "fchown": 1, "setuid": 0, "setgid": 0, "setresuid": 0, "setresgid": 0}
    at = first.get(symptom.syscall)
    if at is None or len(symptom.arguments) < at + 1:
        return None
    words = [None if each & 0xFFFFFFFF == 0xFFFFFFFF else each & 0xFFFFFFFF for each in symptom.arguments]
    if symptom.syscall in calls.CHOWNS:
        return (words[at], words[at + 1]) if len(words) > at + 1 else None
    return (None, words[0]) if symptom.syscall in ("setgid", "setresgid") else (words[0], None)


def is_mapped(text: str, number: int) -> bool:
    """Whether an id of the namespace has one outside of it, by the text of uid_map or gid_map."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and all(word.isdigit() for word in words):
            first, _, count = map(int, words)
            if first <= number < first + count:
                return True
    return False


def _explained(error: str, meant: frozenset[str], process: ProcessState) -> str:
    if error == "EINVAL":
        return f"the id has no mapping ({' '.join(process.uid_map.split()) or 'no map'})"
    if meant <= {"bind"}:
        return "the network namespace is not its own, so low ports are closed to it"
    if "setgroups" in meant:
        return "setgroups() is not allowed in it"
    return f"{', '.join(sorted(meant))} belongs to a namespace above it"


NAMESPACES = (
    *(_limited(kind) for kind in _KINDS), unprivileged_userns_clone, apparmor_restrict_unprivileged_userns, in_chroot,
    user_namespace,
)
