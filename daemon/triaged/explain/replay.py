# SPDX-License-Identifier: Apache-2.0
"""What became of a process after it was read: its own later calls, done again on what is known of it.

A process may be gone a few milliseconds after it was made; then what is known is from before it executed its program, or of its
parent. Whatever changed ids, capabilities, limits, namespaces and filters since then was a call that succeeded, which the trace
tells. What it had in use (open files, mappings, memory) is not known then. A Go program raises its soft RLIMIT_NOFILE to the hard
one.
"""
from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from triaged.explain.situation import Situation
from triaged.model.limit import Limit, Unknown
from triaged.model.process_state import Bounds, Credentials, ProcessState
from triaged.model.quoting import shown
from triaged.model.symptom import Deed

# asm-generic/resource.h; the same on x86, Arm, RISC-V, POWER and s390.
RESOURCE_NUMBERS = {
    "CPU": 0, "FSIZE": 1, "DATA": 2, "STACK": 3, "CORE": 4, "RSS": 5, "NPROC": 6, "NOFILE": 7, "MEMLOCK": 8, "AS": 9, "LOCKS": 10,
    "SIGPENDING": 11, "MSGQUEUE": 12, "NICE": 13, "RTPRIO": 14, "RTTIME": 15,
}
_NAMES = {number: name for name, number in RESOURCE_NUMBERS.items()}
_INFINITY = (1 << 64) - 1
_GONE = Unknown("it had gone before that could be read")

_UNCHANGED = 0xFFFFFFFF
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 22, 24, 38
_KINDS = {0x00020000: "mnt", 0x02000000: "cgroup", 0x04000000: "uts", 0x08000000: "ipc", 0x10000000: "user", 0x20000000: "pid",
          0x40000000: "net"}  # fmt: skip
_OF_IDS = frozenset({
    "setuid", "setresuid", "setreuid", "setgid", "setresgid", "setregid", "setgroups", "capset", "umask", "prctl",
})
_MOUNTS = frozenset({"mount", "umount2", "pivot_root"})
_READING_NS = 50_000_000
_LATER = "it was changed after the process was read"


def is_old(process: ProcessState) -> bool:
    """Whether the process was gone when it should have been read, and this is from before or of another one."""
    return bool(process.stands_for) or not process.identity.exe


def replayed(situation: Situation) -> Situation:
    """The situation with the process as its later calls left it, where it could not be read in time."""
    process = situation.process
    if process is None or situation.was_asked:  # who asks is told of what is there now
        return situation
    if not is_old(process):
        before = _with_ids_of_then(situation, process)
        return situation if before is process else replace(situation, process=before)
    pids = {process.identity.pid, process.stands_for, *(each.identity.pid for each in situation.ancestors)} - {0}
    return replace(situation, process=brought_up_to_date(process, situation.deeds, pids, situation.symptom.first_ns))


def _with_ids_of_then(situation: Situation, process: ProcessState) -> ProcessState:
    """The process with the ids, capabilities and umask that it had at the symptom, where it changed them again before it was read.

    A test that gives up its rights for a moment takes them back.
    """
    at_ns, start = situation.symptom.first_ns, situation.at_start
    read_ns = _monotonic_ns(process.time_usec) + 2 * _READING_NS
    own = [deed for deed in situation.deeds if deed.pid == process.identity.pid and deed.syscall in _OF_IDS]
    if not at_ns or not any(at_ns < deed.at_ns < read_ns for deed in own):
        return process
    if start is None:
        return replace(process, credentials=Unknown(_LATER))
    pids = {process.identity.pid, *(each.identity.pid for each in situation.ancestors)}
    earlier = [deed for deed in situation.deeds if deed.pid in pids and deed.syscall in _OF_IDS and deed.at_ns <= at_ns]
    then = after(
        replace(process, credentials=start.credentials, umask=start.umask), sorted(earlier, key=lambda deed: deed.at_ns)
    )
    return replace(process, credentials=then.credentials, umask=then.umask)


def brought_up_to_date(process: ProcessState, deeds: Iterable[Deed], pids: set[int], until_ns: int = 0) -> ProcessState:
    """The process after what `pids` did between the reading of it and `until_ns` (0: ever), without what it had in use."""
    since = _monotonic_ns(process.time_usec)
    # What it inherited from was perhaps read after it was made: all that it did itself comes on top of that.
    own = process.stands_for if process.stands_for != process.identity.pid else 0
    later = [
        deed for deed in sorted(deeds, key=lambda each: each.at_ns)
        if not deed.at_ns or ((since < deed.at_ns or deed.pid == own) and not (until_ns and deed.at_ns > until_ns))
    ]
    if process.mounts and any(deed.syscall in _MOUNTS for deed in later):
        process = replace(process, mounts=())  # by whom and where is not told: what was mounted is not known any more
    now = after(
        replace(
            process, open_files=_GONE, mappings=_GONE, address_space_bytes=_GONE, data_bytes=_GONE, locked_bytes=_GONE,
            cpu_time_s=_GONE, pending_signals=_GONE, threads=_GONE,
        ),
        (deed for deed in later if (set_resource(deed)[1] or deed.pid) in pids),
    )
    if isinstance(now.credentials, Unknown) or now.credentials.uids[0] == now.identity.uid:
        return now
    return replace(now, identity=replace(now.identity, uid=now.credentials.uids[0]))


def set_resource(deed: Deed) -> tuple[str, int]:
    """Which resource limit a deed set, and of which process; "" and 0 for none."""
    arguments = deed.arguments
    if deed.syscall == "setrlimit" and arguments:
        return _NAMES.get(arguments[0], ""), deed.pid
    # prlimit64(pid, resource, new, old): without `new` it only reads.
    if deed.syscall == "prlimit64" and len(arguments) > 2 and arguments[2]:
        return _NAMES.get(arguments[1], ""), arguments[0] or deed.pid
    return "", 0


def _monotonic_ns(time_usec: int) -> int:
    """A time of day on the trace's clock, less what reading a process may take. -1 where it is not known.

    What had been done before it was read is then done once more, which changes nothing.
    """
    return time_usec * 1000 - time.time_ns() + time.monotonic_ns() - _READING_NS if time_usec else -1


def after(process: ProcessState, deeds: Iterable[Deed]) -> ProcessState:
    """The process as these calls of its own left it; the same object where none of them changed anything."""
    for deed in deeds:
        process = _done(process, deed)
    return process


def _done(process: ProcessState, deed: Deed) -> ProcessState:
    arguments = tuple(each & 0xFFFFFFFF for each in deed.arguments)
    first = arguments[0] if arguments else 0
    if deed.syscall in ("setrlimit", "prlimit64"):
        resource = set_resource(deed)[0]
        limits = {**process.limits, resource: _limits_after(process, deed, resource)}
        return replace(process, limits=limits) if resource else process
    if deed.syscall == "unshare":
        return _left(process, first)
    if deed.syscall == "setns":
        return replace(process, namespaces={kind: f"{kind}:[{_LATER}]" for kind in process.namespaces})
    if deed.syscall in ("chroot", "pivot_root"):
        return replace(process, root=f"({_LATER})", mounts=())
    if deed.syscall == "umask":
        return replace(process, umask=first & 0o777)
    if deed.syscall == "seccomp" or (deed.syscall == "prctl" and first == _PR_SET_SECCOMP):
        # What was read of it with its filters was read after it had installed them.
        known = isinstance(process.filters, tuple) and bool(process.filters)
        return process if known else replace(process, seccomp_mode="filter", filters=Unknown(_LATER))
    if isinstance(process.credentials, Unknown):
        return process
    who = _changed(process.credentials, deed.syscall, arguments)
    return process if who == process.credentials else replace(process, credentials=who)


def _limits_after(process: ProcessState, deed: Deed, resource: str) -> Bounds:
    by = Unknown(f"{shown(deed.comm)} (pid {deed.pid}) set it, and it was not read again")
    hard: Limit = process.hard(resource)
    if deed.is_test and resource == "NOFILE" and deed.value < 0:
        return hard, hard
    soft: Limit = by if deed.value < 0 else process.soft(resource) if deed.value == _INFINITY else deed.value
    if isinstance(soft, int) and isinstance(hard, int) and soft <= hard and deed.is_test:
        return soft, hard
    return soft, by


def _left(process: ProcessState, flags: int) -> ProcessState:
    gone = [kind for flag, kind in _KINDS.items() if flags & flag]
    # A mount namespace begins as a copy: the mounts stay.
    return replace(process, namespaces={**process.namespaces, **{kind: f"{kind}:[{_LATER}]" for kind in gone}})


def _changed(who: Credentials, call: str, arguments: tuple[int, ...]) -> Credentials:
    first = arguments[0] if arguments else 0
    if call == "prctl":
        if first == _PR_CAPBSET_DROP and len(arguments) > 1:
            # Executing a program as root gives what is in the bounding set, and no more.
            kept = ~(1 << arguments[1])
            return replace(who, bounding=who.bounding & kept, effective=who.effective & kept, permitted=who.permitted & kept)
        return replace(who, no_new_privileges=True) if first == _PR_SET_NO_NEW_PRIVS else who
    if call == "setgroups":
        return replace(who, groups=())
    if call in ("setgid", "setresgid", "setregid"):
        return replace(who, gids=_ids(who.gids, call, arguments))
    if call in ("setuid", "setresuid", "setreuid"):
        uids = _ids(who.uids, call, arguments)
        if 0 in who.uids[:3] and 0 not in uids[:3]:
            return replace(who, uids=uids, effective=0, permitted=0, ambient=0)  # capabilities(7), "Effect of user ID changes"
        effective = 0 if not who.uids[1] and uids[1] else who.permitted if who.uids[1] and not uids[1] else who.effective
        return replace(who, uids=uids, effective=effective)
    return who


def _ids(old: tuple[int, int, int, int], call: str, arguments: tuple[int, ...]) -> tuple[int, int, int, int]:
    given = [*arguments[:3], *(_UNCHANGED,) * 3][:3]
    if call in ("setuid", "setgid"):
        given = [given[0]] * 3
    elif call in ("setreuid", "setregid"):
        given = [given[0], given[1], given[1]]
    real, effective, saved = (new if new != _UNCHANGED else was for new, was in zip(given, old, strict=False))
    return real, effective, saved, effective
