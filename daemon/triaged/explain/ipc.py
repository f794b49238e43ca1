# SPDX-License-Identifier: Apache-2.0
"""Limits on message queues, shared memory, semaphores and keys.

Hard facts:
- kernel.shm*, kernel.sem, kernel.msg* and fs.mqueue.* belong to an IPC namespace; /proc/sys and /proc/sysvipc show the reader's.
- mq_open gives EMFILE for RLIMIT_MSGQUEUE, ENOSPC for queues_max, EINVAL for what was asked of one queue (ipc/mqueue.c).
- EDQUOT of the key calls is kernel.keys.maxkeys or maxbytes, for root kernel.keys.root_max* (security/keys/key.c).
"""
from __future__ import annotations

from triaged.errors import KernelError
from triaged.explain.capability import CAP_SYS_RESOURCE, has_on_host
from triaged.explain.files import has_files_left
from triaged.explain.hypothesis import hypothesis
from triaged.explain.remedies import set_parameter
from triaged.explain.resource_limits import blame_resource, of_unread
from triaged.explain.situation import Situation
from triaged.explain.wording import bound, count, free, size, who
from triaged.kernel.files import read_text
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.verdict import Evidence

_NO_LIMIT = 1 << 40  # pages; the kernel's default is nearly 1 << 64
_USUAL = {"shm": 4096, "msg": 32000, "sem": 32000}
_MOST_OBJECTS = 32768  # IPCMNI, what the kernel has without ipcmni_extend
_ELSEWHERE = "it is in another IPC namespace, which cannot be read from here"


def _is_elsewhere(situation: Situation) -> bool:
    return not situation.shares_namespace("ipc")


def _blame(
    situation: Situation, key: str, value: int, status: Status, summary: str, wanted: int, *more: Evidence
) -> Blamed:
    evidence = (Evidence(key, value, f"/proc/sys/{key.replace('.', '/')}", situation.time_usec), *more)
    return Blamed(f"sysctl.{key}", status, "host", summary, evidence, set_parameter(key, wanted, value), weight=5)


# -- POSIX message queues


@hypothesis("rlimit.MSGQUEUE", syscalls=("mq_open",), errnos=("EMFILE",))
def msgqueue(situation: Situation) -> Outcome | None:
    """The message queues of the user would take more than RLIMIT_MSGQUEUE bytes (ulimit -q, LimitMSGQUEUE=)."""
    cause, process = "rlimit.MSGQUEUE", situation.process
    if not situation.symptom.syscall:
        return None
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    limit = process.soft("MSGQUEUE")
    if not isinstance(limit, int):
        return of_unread(situation, "MSGQUEUE", limit, 1 << 23) if isinstance(limit, Unknown) else RuledOut(cause, "unlimited")
    if situation.was_asked:
        return NotDecidable(cause, f"it is {size(limit)}; how much the user's queues take is shown nowhere")
    if not has_files_left(situation):
        return NotDecidable(cause, "its own files had run out, or may have")
    summary = f"all message queues of {who(process)}'s user may take {size(limit)} (RLIMIT_MSGQUEUE)"
    return blame_resource(situation, "MSGQUEUE", Status.PROVED, summary, (), max(limit * 4, 1 << 23), 5)


@hypothesis("sysctl.fs.mqueue.queues_max", syscalls=("mq_open",), errnos=("ENOSPC",))
def queues_max(situation: Situation) -> Outcome | None:
    """There are fs.mqueue.queues_max message queues already. CAP_SYS_RESOURCE is exempt."""
    key = "fs.mqueue.queues_max"
    most = situation.number(key)
    if not situation.symptom.syscall:
        return None
    if _is_elsewhere(situation):
        return NotDecidable(f"sysctl.{key}", _ELSEWHERE)
    if isinstance(most, Unknown):
        return NotDecidable(f"sysctl.{key}", most.why)
    if has_on_host(situation, CAP_SYS_RESOURCE):
        return RuledOut(f"sysctl.{key}", "it does not bind who has CAP_SYS_RESOURCE")
    if situation.was_asked:
        return NotDecidable(f"sysctl.{key}", f"it is {count(most)}; how many there are only a mounted mqueue shows")
    return _blame(situation, key, most, Status.PROVED, f"there may be {count(most)} message queues ({key})", max(most * 4, 1024))


@hypothesis("sysctl.fs.mqueue.msg_max", syscalls=("mq_open",), errnos=("EINVAL",))
def msg_max(situation: Situation) -> Outcome | None:
    """A message queue was to hold more messages than fs.mqueue.msg_max, or larger ones than fs.mqueue.msgsize_max.

    With CAP_SYS_RESOURCE 65,536 messages of 16 MiB are allowed.
    """
    key, cause = "fs.mqueue.msg_max", "sysctl.fs.mqueue.msg_max"
    most, largest = situation.number(key), situation.number("fs.mqueue.msgsize_max")
    if not situation.symptom.syscall:
        return None
    if _is_elsewhere(situation):
        return NotDecidable(cause, _ELSEWHERE)
    if isinstance(most, Unknown) or isinstance(largest, Unknown):
        return NotDecidable(cause, "fs.mqueue.* cannot be read")
    if has_on_host(situation, CAP_SYS_RESOURCE):
        return RuledOut(cause, "it does not bind who has CAP_SYS_RESOURCE")
    more = Evidence("fs.mqueue.msgsize_max", largest, "/proc/sys/fs/mqueue/msgsize_max", situation.time_usec)
    summary = f"a message queue may hold {count(most)} messages of {count(largest)} bytes (fs.mqueue.msg_max, msgsize_max)"
    status = Status.POSSIBLE if situation.was_asked else Status.LIKELY  # what was asked for lies in the process's memory
    return _blame(situation, key, most, status, summary, max(most * 8, 1024), more)


# -- System V


def count_objects(situation: Situation, kind: str) -> int | Unknown:
    """How many segments ("shm"), semaphore sets ("sem") or queues ("msg") there are in the reader's IPC namespace."""

    def read() -> int | Unknown:
        try:
            return max(len(read_text(f"{situation.paths.proc}/sysvipc/{kind}", 16 << 20).splitlines()) - 1, 0)
        except KernelError as error:
            return Unknown(str(error))

    return situation.kept(f"sysvipc:{kind}", read)


def _number_reached(situation: Situation, key: str, kind: str, what: str, most: int) -> Outcome:
    """The limit on how many there are is to blame: the call has no other reason. They may have been removed again since."""
    there = count_objects(situation, kind)
    more = Evidence(f"{what} there are", str(there), f"/proc/sysvipc/{kind}", situation.time_usec)
    now = f"and there are {count(there)}" if isinstance(there, int) and there >= most else "and there were as many"
    wanted = min(max(most * 2, _USUAL[kind]), _MOST_OBJECTS)
    return _blame(situation, key, most, Status.PROVED, f"{key} is {count(most)} {what}, {now}", wanted, more)


@hypothesis("sysctl.kernel.shm", syscalls=("shmget",), errnos=("ENOSPC", "EINVAL"))
def shared_memory(situation: Situation) -> Outcome | None:
    """A System V segment larger than kernel.shmmax (EINVAL), or more of them than kernel.shmmni or shmall allow (ENOSPC)."""
    symptom = situation.symptom
    if not symptom.syscall:
        return None
    if _is_elsewhere(situation):
        return NotDecidable("sysctl.kernel.shmmni", _ELSEWHERE)
    largest, most, pages = (situation.number(f"kernel.{name}") for name in ("shmmax", "shmmni", "shmall"))
    if isinstance(largest, Unknown) or isinstance(most, Unknown) or isinstance(pages, Unknown):
        return NotDecidable("sysctl.kernel.shmmni", "kernel.shm* cannot be read")
    asked = symptom.arguments[1] if len(symptom.arguments) > 1 else 0
    if symptom.errno == "EINVAL":
        if asked <= largest:
            because = f"{size(asked)} were asked for, {size(largest)} are allowed" if asked else f"{size(largest)} are allowed"
            return RuledOut("sysctl.kernel.shmmax", because)
        summary = f"a segment of {size(asked)} was asked for; kernel.shmmax allows {size(largest)}"
        return _blame(situation, "kernel.shmmax", largest, Status.PROVED, summary, asked)
    there = count_objects(situation, "shm")
    if situation.was_asked and isinstance(there, int) and there < most:
        return RuledOut("sysctl.kernel.shmmni", free(there, most))
    if pages < _NO_LIMIT and isinstance(there, int) and there < most:
        summary = f"all segments together may take {count(pages)} pages (kernel.shmall)"
        return _blame(situation, "kernel.shmall", pages, Status.LIKELY, summary, pages * 2)
    return _number_reached(situation, "kernel.shmmni", "shm", "segments", most)


def _sem_limits(situation: Situation) -> tuple[int, int, int, int] | None:
    text = situation.parameter("kernel.sem")
    words = text.split() if isinstance(text, str) else []
    if len(words) != 4 or not all(word.isdigit() for word in words):
        return None
    in_set, everywhere, at_once, sets = (int(word) for word in words)
    return in_set, everywhere, at_once, sets


@hypothesis("sysctl.kernel.sem", syscalls=("semget", "semop", "semtimedop"), errnos=("ENOSPC", "EINVAL", "E2BIG"))
def semaphores(situation: Situation) -> Outcome | None:
    """A System V limit of kernel.sem: semaphores in a set (EINVAL), in all sets or sets (ENOSPC), operations at once (E2BIG)."""
    cause, symptom = "sysctl.kernel.sem", situation.symptom
    limits = _sem_limits(situation)
    if not symptom.syscall or (symptom.errno == "E2BIG") == (symptom.syscall == "semget"):
        return None
    if _is_elsewhere(situation):
        return NotDecidable(cause, _ELSEWHERE)
    if limits is None:
        return NotDecidable(cause, "kernel.sem cannot be read")
    in_set, everywhere, at_once, sets = limits
    asked = symptom.arguments[1 if symptom.syscall == "semget" else 2] if len(symptom.arguments) > 2 else 0
    there = count_objects(situation, "sem")
    status = Status.PROVED
    if symptom.errno == "EINVAL":
        if symptom.syscall != "semget" or asked <= in_set:
            return RuledOut(cause, f"{count(in_set)} semaphores are allowed in a set")
        summary = f"a set of {count(asked)} semaphores was asked for; the first number of kernel.sem allows {count(in_set)}"
    elif symptom.errno == "E2BIG":
        if asked and asked <= at_once:
            return RuledOut(cause, f"{count(at_once)} operations are allowed at once")
        summary = f"the third number of kernel.sem allows {count(at_once)} operations at once"
    elif situation.was_asked and isinstance(there, int) and there < sets:
        return RuledOut(cause, f"{free(there, sets)} of {count(sets)} sets")
    elif (isinstance(there, int) and there >= sets) or sets * max(asked, 1) <= everywhere:
        summary = f"the fourth number of kernel.sem allows {count(sets)} sets"
    else:
        status = Status.LIKELY
        summary = f"the second number of kernel.sem allows {count(everywhere)} semaphores in all sets together"
    value = situation.parameter("kernel.sem")
    raised = (max(in_set, asked, 32000), everywhere * 2, max(at_once, 500), max(sets * 2, _USUAL["sem"]))
    wanted = " ".join(str(number) for number in raised)
    fix: tuple[Fix, ...] = (
        ManualStep("kernel-sem", f"raises kernel.sem to {wanted}", (("sysctl", "-w", f"kernel.sem={wanted}"),)),
    )
    evidence = (
        Evidence("kernel.sem", " ".join(str(value).split()), "/proc/sys/kernel/sem", situation.time_usec),
        Evidence("sets there are", str(there), "/proc/sysvipc/sem", situation.time_usec),
    )
    return Blamed(cause, status, "host", summary, evidence, fix, weight=5)


@hypothesis("sysctl.kernel.msg", syscalls=("msgget", "msgsnd"), errnos=("ENOSPC", "EINVAL"))
def message_queues(situation: Situation) -> Outcome | None:
    """One more System V queue than kernel.msgmni allows (ENOSPC), or a message longer than kernel.msgmax (EINVAL)."""
    symptom = situation.symptom
    pair = (symptom.syscall, symptom.errno)
    if pair not in (("msgget", "ENOSPC"), ("msgsnd", "EINVAL")):
        return None
    key = "kernel.msgmni" if symptom.syscall == "msgget" else "kernel.msgmax"
    most = situation.number(key)
    if _is_elsewhere(situation):
        return NotDecidable(f"sysctl.{key}", _ELSEWHERE)
    if isinstance(most, Unknown):
        return NotDecidable(f"sysctl.{key}", most.why)
    if symptom.syscall == "msgsnd":
        asked = symptom.arguments[2] if len(symptom.arguments) > 2 else 0
        if asked <= most:
            return RuledOut(f"sysctl.{key}", f"messages may have {count(most)} bytes")
        summary = f"a message of {count(asked)} bytes was sent; {key} allows {count(most)}"
        return _blame(situation, key, most, Status.PROVED, summary, asked)
    there = count_objects(situation, "msg")
    if situation.was_asked and isinstance(there, int) and there < most:
        return RuledOut(f"sysctl.{key}", free(there, most))
    return _number_reached(situation, key, "msg", "queues", most)


# -- keys


def parse_key_users(text: str) -> dict[int, tuple[int, int, int, int]]:
    """Of each user in a /proc/key-users: keys, their maximum, bytes, their maximum. Lines of another kind are passed over."""
    out = {}
    for line in text.splitlines():
        uid, colon, rest = line.partition(":")
        words = rest.split()
        pairs = [word.split("/") for word in words[2:4]]
        if colon and len(words) == 4 and all(len(pair) == 2 and all(part.isdigit() for part in pair) for pair in pairs):
            (keys, most), (taken, room) = pairs
            out[int(uid)] = int(keys), int(most), int(taken), int(room)
    return out


@hypothesis("sysctl.kernel.keys.", syscalls=("add_key", "request_key", "keyctl"), errnos=("EDQUOT",))
def keys(situation: Situation) -> Outcome | None:
    """The user has kernel.keys.maxkeys keys, or they take kernel.keys.maxbytes. For root it is kernel.keys.root_max*."""
    process = situation.process
    if not situation.symptom.syscall:
        return None
    if process is None:
        return NotDecidable("sysctl.kernel.keys.maxkeys", "it counts for each user; name a process")
    uid = process.identity.uid
    prefix = "kernel.keys.root_max" if uid == 0 else "kernel.keys.max"

    def read() -> tuple[int, int, int, int] | None:
        try:
            return parse_key_users(read_text(f"{situation.paths.proc}/key-users", 1 << 20)).get(uid)
        except KernelError:
            return None

    row = situation.kept(situation.name_of_user("key-users"), read)
    if row is None and not situation.was_asked:
        most = situation.number(f"{prefix}keys")
        if isinstance(most, int):  # gone with its keys; nothing but the quota gives the error, and mostly their number
            summary = f"a user may have {count(most)} keys ({prefix}keys); how many there were is not known any more"
            return _blame(situation, f"{prefix}keys", most, Status.LIKELY, summary, max(most * 10, 20000))
    if row is None:
        return NotDecidable(f"sysctl.{prefix}keys", "/proc/key-users does not show what the user has")
    have, most, taken, room = row
    if situation.was_asked and have < most and taken < room:
        return RuledOut(f"sysctl.{prefix}keys", f"{free(have, most)}, {size(room - taken)} free")
    # A key is charged before it is made: one of a few kB may not fit although some bytes are left.
    is_number = have >= most or taken < room // 2
    key, limit = (f"{prefix}keys", most) if is_number else (f"{prefix}bytes", room)
    summary = f"user {uid} has {count(have)} of {bound(most)} keys, {count(taken)} of {bound(room)} bytes ({key})"
    return _blame(situation, key, limit, Status.PROVED, summary, max(limit * 10, 20000))


IPC = (msgqueue, queues_max, msg_max, shared_memory, semaphores, message_queues, keys)
