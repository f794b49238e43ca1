# SPDX-License-Identifier: Apache-2.0
"""capability.CAP_X: a privileged call by a process that lacks the privilege.

Which capability a call needs stands in NEEDS. Only what is left after the filters (seccomp comes first) is blamed on a capability:
the kernel's own refusal leaves no trace below 6.14, where the tracepoint cap_capable names it.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from triaged.explain import calls
from triaged.explain.calls import calls_of
from triaged.explain.hypothesis import Hypothesis, hypothesis
from triaged.explain.seccomp_answer import passed_by_seccomp
from triaged.explain.security_log import denial_in_log
from triaged.explain.situation import Situation
from triaged.explain.view import (
    credentials_of,
    file_facts,
    inherited_deeds,
    network_number,
    owner_of,
    state_evidence,
    subject_of,
    subject_path,
)
from triaged.model.capability import capability_number
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.cgroup import container_of, is_user_manager, unit_of
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.process_state import Credentials, ProcessState
from triaged.model.quoting import shown
from triaged.model.verdict import Evidence

NEW_USER = 0x10000000
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_AF_PACKET, _SOCK_RAW = 17, 3
_PORT = re.compile(r":(\d+)(?=\b|: )")
_DROPS = frozenset({"capset", "prctl", "setuid", "setresuid", "setreuid", "setgid", "setresgid", "setgroups"})
_PR_CAPBSET_DROP = 24


@dataclass(frozen=True)
class Need:
    """The calls that need a capability, what they are used for, and the error without it. `applies` looks closer at arguments,
    files and texts: False where this call needed none, None where that cannot be told."""

    capability: str
    calls: frozenset[str]
    what: str
    errnos: tuple[str, ...] = ("EPERM",)
    applies: Callable[[Situation], bool | None] = lambda situation: True
    is_of_root: bool = False

    @property
    def number(self) -> int:
        return capability_number(self.capability)

    @property
    def cause(self) -> str:
        return f"capability.CAP_{self.capability}"


def _argument(situation: Situation, index: int) -> int | None:
    arguments = situation.symptom.arguments
    return arguments[index] if len(arguments) > index else None


def _gives_away(situation: Situation) -> bool | None:
    """chown: anything but a change of the group of an own file to an own group."""
    who, path = credentials_of(situation), subject_path(situation)
    at = {"fchownat": 2, "chown": 1, "lchown": 1, "fchown": 1}.get(situation.symptom.syscall)
    uid, gid = (_argument(situation, at), _argument(situation, at + 1)) if at is not None else (None, None)
    if who is None or not path:
        return True
    facts = file_facts(situation, path)
    if isinstance(facts, Unknown) or facts.node is None or uid is None or gid is None:
        return True
    keeps_owner = uid & 0xFFFFFFFF in (0xFFFFFFFF, facts.node.uid)
    owns_group = gid & 0xFFFFFFFF in (0xFFFFFFFF, facts.node.gid, who.gids[3], *who.groups)
    return not (facts.node.uid == who.uids[3] and keeps_owner and owns_group)


def _is_foreign_file(situation: Situation) -> bool | None:
    """chmod, utimes and the like: the file belongs to somebody else."""
    who, path = credentials_of(situation), subject_path(situation)
    facts = file_facts(situation, path) if path else Unknown("no path")
    if who is None or isinstance(facts, Unknown) or facts.node is None:
        return None
    if calls_of(situation.symptom) & (calls.REMOVALS | calls.RENAMES):
        directory = facts.directory
        if directory is None or not directory.is_shared():
            return False
        return who.uids[3] not in (directory.uid, facts.node.uid)
    return facts.node.uid != who.uids[3]


def _is_stopped_by_mode(situation: Situation) -> bool | None:
    who, path = credentials_of(situation), subject_path(situation)
    facts = file_facts(situation, path) if path else Unknown("no path")
    if who is None or isinstance(facts, Unknown):
        return None
    wanted = 4 if calls_of(situation.symptom) <= calls.LOOKS else 6
    return facts.obstacle(who, wanted) is not None


def _makes_namespaces(situation: Situation) -> bool | None:
    """unshare and clone: a namespace that is not made together with a user namespace, in which everything is allowed."""
    symptom = situation.symptom
    if symptom.syscall in ("clone", "unshare"):
        flags = _argument(situation, 0)
        if flags is None:
            return None if symptom.syscall == "clone" else True
        return bool(flags & NEW_NAMESPACES) and not flags & NEW_USER
    return None if symptom.syscall in ("clone3", "fork", "vfork") or not symptom.syscall else True


def port_of(situation: Situation) -> int | None:
    """The port that a bind was about, where the symptom's path or text has it."""
    symptom = situation.symptom
    for text in (symptom.path, symptom.text):
        found = _PORT.findall(text)
        if found:
            return int(found[0])
    return None


def _is_low_port(situation: Situation) -> bool | None:
    if situation.symptom.path.startswith(("/", "@")):
        return False
    port, start = port_of(situation), network_number(situation, "net.ipv4.ip_unprivileged_port_start")
    if port is None:
        return None
    return 0 < port < (start if isinstance(start, int) else 1024)


def _is_raw_socket(situation: Situation) -> bool | None:
    family, kind = _argument(situation, 0), _argument(situation, 1)
    if family is not None and kind is not None:
        return family == _AF_PACKET or kind & 0xF == _SOCK_RAW
    text = situation.symptom.text.lower()
    return True if re.search(r"\braw\b|\bip[46]?:|\bpacket\b|\bicmp", text) else None


def _is_beyond_locked(situation: Situation) -> bool | None:
    """mlock: RLIMIT_MEMLOCK is too small, which the capability would lift."""
    process = situation.process
    if process is None:
        return None
    soft = process.soft("MEMLOCK")
    return None if isinstance(soft, Unknown) else isinstance(soft, int)


def _raises_hard_limit(situation: Situation) -> bool | None:
    return None if situation.symptom.syscall in ("", "fcntl") else True


NEEDS = (
    Need("CHOWN", calls.CHOWNS, "giving a file to another user or group", applies=_gives_away),
    Need("DAC_OVERRIDE", calls.MAKES_OR_CHANGES | calls.STATS | {"chdir"}, "passing over the modes of files", ("EACCES",),
         _is_stopped_by_mode, is_of_root=True),
    Need("FOWNER", calls.CHMODS | calls.TIMES | calls.ATTRIBUTES | calls.REMOVALS | calls.RENAMES,
         "changing the mode or times of somebody else's file, removing it from a sticky directory", ("EPERM",), _is_foreign_file,
         is_of_root=True),
    Need("KILL", frozenset({"kill", "tkill", "tgkill", "pidfd_send_signal", "rt_sigqueueinfo"}),
         "signals to other users' processes"),
    Need("SETGID", frozenset({"setgid", "setregid", "setresgid", "setgroups"}), "taking another group"),
    Need("SETUID", frozenset({"setuid", "setreuid", "setresuid"}), "taking another user's id"),
    Need("NET_BIND_SERVICE", frozenset({"bind"}), "ports below net.ipv4.ip_unprivileged_port_start", ("EACCES",), _is_low_port),
    Need("NET_ADMIN", frozenset({"ioctl", "setsockopt", "sendto", "sendmsg"}), "changing the network's set-up, marking packets",
         ("EPERM",), lambda situation: True if situation.symptom.syscall == "setsockopt" else None),
    Need("NET_RAW", frozenset({"socket"}), "raw and packet sockets", ("EPERM",), _is_raw_socket),
    Need("IPC_LOCK", calls.MEMORY_LOCKS - {"mmap"}, "locking more memory than RLIMIT_MEMLOCK", ("EPERM", "ENOMEM"),
         _is_beyond_locked),
    Need("SYS_MODULE", frozenset({"init_module", "finit_module", "delete_module"}), "kernel modules"),
    Need("SYS_RAWIO", frozenset({"iopl", "ioperm"}), "input and output ports"),
    Need("SYS_CHROOT", frozenset({"chroot"}), "another root directory"),
    Need("SYS_PTRACE", frozenset({"ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"}),
         "looking into processes of others", ("EPERM",), lambda situation: None),
    Need("SYS_PACCT", frozenset({"acct"}), "process accounting"),
    Need("SYS_ADMIN", calls.CLONES | {
        "unshare", "setns", "mount", "umount2", "pivot_root", "sethostname", "setdomainname", "swapon", "swapoff", "quotactl",
        "fanotify_init", "fsopen", "fsmount", "fspick", "open_tree", "move_mount", "mount_setattr",
    }, "namespaces, mounts, the host's name", ("EPERM",), _makes_namespaces),
    Need("SYS_BOOT", frozenset({"reboot", "kexec_load", "kexec_file_load"}), "restarting the machine"),
    Need("SYS_NICE", frozenset({"setpriority", "nice", "sched_setscheduler", "sched_setparam", "sched_setattr", "ioprio_set",
         "sched_setaffinity", "mbind", "move_pages"}), "a higher priority, real-time scheduling", ("EPERM", "EACCES")),
    Need("SYS_RESOURCE", frozenset({"prlimit64", "setrlimit", "fcntl"}), "raising a hard limit", ("EPERM",), _raises_hard_limit),
    Need("SYS_TIME", frozenset({"settimeofday", "clock_settime", "adjtimex", "clock_adjtime", "stime"}), "setting the clock"),
    Need("SYS_TTY_CONFIG", frozenset({"vhangup"}), "hanging up a terminal"),
    Need("MKNOD", calls.NODES, "making device files"),
    Need("SYSLOG", frozenset({"syslog"}), "the kernel's log", ("EPERM",)),
    Need("PERFMON", frozenset({"perf_event_open"}), "performance counters", ("EACCES", "EPERM"), lambda situation: None),
    Need("BPF", frozenset({"bpf"}), "BPF programs and maps"),
    Need("DAC_READ_SEARCH", frozenset({"open_by_handle_at"}), "opening files by handle"),
    Need("WAKE_ALARM", frozenset({"timer_create", "timerfd_create"}), "timers that wake the machine", ("EPERM",)),
)  # fmt: skip


def _judged(situation: Situation, need: Need) -> Outcome | None:
    symptom, process = situation.symptom, situation.process
    meant = calls_of(symptom)
    if not meant & need.calls:
        return None
    who = credentials_of(situation)
    if who is None:
        why = "no process was named" if process is None else "its capabilities could not be read"
        return NotDecidable(need.cause, why) if symptom.syscall else None
    is_root, is_dropped = who.uids[1] == 0, not who.bounding >> need.number & 1
    if need.is_of_root and not is_root:
        return None  # what the mode of a file means for everybody else
    applies = need.applies(situation)
    if applies is False:
        return None
    if who.has(need.number):
        return RuledOut(need.cause, f"the process has CAP_{need.capability}") if symptom.syscall else None
    passed = passed_by_seccomp(situation, sorted(meant & need.calls))
    if passed is False:
        because = "a seccomp filter answered before the kernel asked for a capability"
        return RuledOut(need.cause, because) if symptom.syscall else None
    module = denial_in_log(situation)
    if module:
        return RuledOut(need.cause, f"{module} refused it, says the kernel's log")
    given_up = given_up_by_test(situation, need.capability)
    if given_up:
        return SelfInflicted(need.cause, given_up)
    return _blamed(situation, need, who, _status(meant, need, who, applies, passed, is_root or is_dropped))


def _status(
    meant: frozenset[str], need: Need, who: Credentials, applies: bool | None, passed: bool | None, is_unusual: bool
) -> Status:
    is_named = meant <= need.calls
    if not is_named:
        # A fork/exec may fail in any of several calls: blamed only if no other capability of these is missing.
        rivals = [each for each in NEEDS if each is not need and each.calls & meant & calls.FORK_EXEC and not who.has(each.number)]
        return Status.LIKELY if is_unusual and not rivals and passed else Status.POSSIBLE
    if applies is None and need.capability in ("NET_ADMIN", "SYS_PTRACE", "PERFMON"):
        return Status.LIKELY if is_unusual and need.capability != "NET_ADMIN" else Status.POSSIBLE
    if applies and passed and is_unusual:
        return Status.PROVED
    return Status.LIKELY


def _blamed(situation: Situation, need: Need, who: Credentials, status: Status) -> Blamed:
    process, symptom = situation.process, situation.symptom
    is_dropped = not who.bounding >> need.number & 1
    name = f"CAP_{need.capability}"
    what = symptom.syscall or shown(symptom.text, 80)
    if is_dropped:
        how, subject = f"{owner_of(process)} runs without {name} (it is not in the bounding set)", owner_of(process)
    elif who.uids[1] == 0:
        how, subject = f"{subject_of(process)} is root without {name}", subject_of(process)
    else:
        how, subject = f"{subject_of(process)} runs as user {who.uids[1]} without {name}", subject_of(process)
    evidence: list[Evidence] = [
        state_evidence(situation, "CapEff", f"{who.effective:016x}", "status"),
        state_evidence(situation, "CapBnd", f"{who.bounding:016x}", "status"),
        state_evidence(situation, "euid", who.uids[1], "status"),
    ]
    weight = 8 if is_dropped or who.uids[1] == 0 else 2
    summary = f"{how}, which is needed for {need.what}"
    if symptom.syscall:
        summary = f"{what} = {symptom.errno}: {summary}"
    fixes = granting(process, need.capability, is_dropped)
    return Blamed(need.cause, status, subject, summary, tuple(evidence), fixes, weight=weight)


def given_up_by_test(situation: Situation, *capabilities: str) -> str:
    """By what it is shown that the program under test gave up the last of the capabilities itself, or ""."""
    start, process = situation.at_start, situation.process
    if start is None or process is None or isinstance(start.credentials, Unknown):
        return ""
    if not any(start.credentials.has(capability_number(each)) for each in capabilities):
        return ""
    for deed in inherited_deeds(situation, *_DROPS):
        if deed.syscall == "prctl" and deed.arguments and deed.arguments[0] != _PR_CAPBSET_DROP:
            continue
        return f"{shown(deed.comm)} (pid {deed.pid}) gave it up itself by {deed.syscall}()"
    return ""


def granting(process: ProcessState | None, capability: str, is_dropped: bool) -> tuple[Fix, ...]:
    """The steps that give a process a capability: by what started it."""
    name = f"CAP_{capability}"
    if process is None:
        return (ManualStep("capability", f"run it with {name}"),)
    path = process.identity.cgroup
    container, unit = container_of(path), unit_of(path)
    if container and is_dropped:
        option = f"--cap-add={capability} (Kubernetes: capabilities.add: [{capability}])"
        title = f"start container {container.identifier[:12]} with {option}"
        return (ManualStep("container-capability", title, risk=f"everything in the container gets {name}"),)
    if unit.endswith(".service"):
        manager = ("systemctl", "--user") if is_user_manager(path) else ("systemctl",)
        setting = "CapabilityBoundingSet= and AmbientCapabilities=" if is_dropped else "AmbientCapabilities="
        show = (*manager, "show", "--property=CapabilityBoundingSet,AmbientCapabilities,User", unit)
        title = f"add {name} to {setting} of {shown(unit)} and restart it"
        return (ManualStep("unit-capability", title, (show, (*manager, "edit", unit))),)
    if is_dropped:
        return (ManualStep("bounding-set", f"start the command with {name} in its bounding set (setpriv --bounding-set, capsh)"),)
    title = f"run the command with {name}: as root, or by sudo setpriv with --inh-caps and --ambient-caps"
    return (ManualStep("capability", title),)


def _made(need: Need) -> Hypothesis:
    def judge(situation: Situation) -> Outcome | None:
        return _judged(situation, need)

    refused = f"{', '.join(sorted(need.calls))}: {' or '.join(need.errnos)}"
    judge.__doc__ = f"The process lacks CAP_{need.capability}, which is needed for {need.what} ({refused})."
    return hypothesis(need.cause, syscalls=need.calls, errnos=need.errnos)(judge)


def lacks_nothing(situation: Situation) -> bool:
    """Whether the call is one that needs a capability for this error, and the process has every one that it may have been."""
    who, symptom = credentials_of(situation), situation.symptom
    needs = [need for need in NEEDS if calls_of(symptom) & need.calls and symptom.errno in need.errnos]
    return who is not None and bool(needs) and all(who.has(need.number) for need in needs)


CAPABILITY_HYPOTHESES = tuple(_made(need) for need in NEEDS)
