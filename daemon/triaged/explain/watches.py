# SPDX-License-Identifier: Apache-2.0
"""Limits on what watches files: inotify, fanotify, epoll.

Hard facts:
- All of them are counted for each user over all its processes. What inotify has is shown in fdinfo, the others nowhere.
- inotify_add_watch gives ENOSPC for fs.inotify.max_user_watches only, epoll_ctl for fs.epoll.max_user_watches only.
- fs.inotify.max_user_instances is user.max_inotify_instances of the first user namespace under another name (inotify_user.c); that
  of a process's own user namespace bounds it as well.
"""
from __future__ import annotations

from triaged.explain.files import has_files_left
from triaged.explain.hypothesis import hypothesis
from triaged.explain.remedies import set_parameter
from triaged.explain.situation import Situation
from triaged.explain.wording import count, free
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.fix import ManualStep
from triaged.model.limit import Unknown
from triaged.model.usage import Usage
from triaged.model.verdict import Evidence


def _per_user(
    situation: Situation, key: str, what: str, status: Status, wanted_at_least: int, used: int | None = None
) -> Outcome:
    most = situation.number(key)
    if isinstance(most, Unknown):
        return NotDecidable(f"sysctl.{key}", most.why)
    path = f"/proc/sys/{key.replace('.', '/')}"
    evidence = [Evidence(key, most, path, situation.time_usec)]
    if used is not None:
        evidence.append(Evidence(f"{what} of the user, at least", used, "/proc/*/fdinfo", situation.time_usec))
    uid = situation.process.identity.uid if situation.process is not None else -1
    user = f"user {uid}" if uid >= 0 else "each user"
    return Blamed(
        f"sysctl.{key}", status, "host", f"{user} may have {count(most)} {what} ({key}), over all its processes", tuple(evidence),
        set_parameter(key, max(most * 2, wanted_at_least), most), weight=6,
    )


def _inotify(situation: Situation, key: str, what: str, status: Status, wanted_at_least: int) -> Outcome:
    usage, process = _user_has(situation, key), situation.process
    used = usage.used if usage is not None and isinstance(usage.used, int) else None
    is_below = used is not None and usage is not None and isinstance(usage.limit, int) and used < usage.limit // 2
    if process is None or process.has_initial_user_namespace or not is_below:
        return _per_user(situation, key, what, status, wanted_at_least, used)
    # The same parameter of its own user namespace bounds it too, and cannot be read from here.
    inner = key.replace("fs.inotify.max_user_", "user.max_inotify_")
    command = ("nsenter", f"--user=/proc/{process.identity.pid}/ns/user", "sysctl", "-w", f"{inner}={wanted_at_least}")
    step = ManualStep("in-the-namespace", f"raises {inner} in the user namespace of the process", (command,))
    evidence = (Evidence(f"{what} of the user, at least", used or 0, "/proc/*/fdinfo", situation.time_usec),)
    summary = f"the user has {count(used or 0)} {what}, fewer than {key} allows: {inner} of its user namespace is less"
    return Blamed(f"sysctl.{inner}", Status.LIKELY, "user namespace", summary, evidence, (step,), weight=6)


def _user_has(situation: Situation, key: str) -> Usage | None:
    return next((each for each in situation.user_usage() if each.limit_name == key), None)


def _is_inotify(situation: Situation) -> bool:
    """Whether it is an inotify call's; of a text, whether it speaks of one."""
    text = situation.symptom.text.lower()
    if situation.symptom.syscall:
        return True
    return "epoll" not in text and any(word in text for word in ("inotify", "fsnotify", "watch"))


def _sure(situation: Situation) -> Status:
    """A call gives this error for one limit only; which call it was, a text alone does not say."""
    return Status.PROVED if situation.symptom.syscall else Status.LIKELY


def _when_asked(situation: Situation, key: str) -> Outcome | None:
    """What is free now, where nothing failed yet; None where it did, or where the limit is reached."""
    if not situation.was_asked:
        return None
    usage = _user_has(situation, key)
    if situation.process is None or usage is None or not isinstance(usage.used, int) or not isinstance(usage.limit, int):
        most = situation.number(key)
        return NotDecidable(f"sysctl.{key}", f"{key} is {most}; it counts for each user: name a process")
    return RuledOut(f"sysctl.{key}", free(usage.used, usage.limit)) if usage.used < usage.limit else None


@hypothesis("sysctl.fs.inotify.max_user_instances", syscalls=("inotify_init1", "inotify_init"), errnos=("EMFILE",))
def inotify_instances(situation: Situation) -> Outcome | None:
    """The user has fs.inotify.max_user_instances inotify instances, over all its processes. The text says "too many open files"."""
    key = "fs.inotify.max_user_instances"
    if not _is_inotify(situation):
        return None
    found = _when_asked(situation, key)
    if found is not None:
        return found
    left = has_files_left(situation)
    if left == 0:
        return NotDecidable(f"sysctl.{key}", "its own files had run out as well")
    return _inotify(situation, key, "inotify instances", Status.PROVED if left else Status.LIKELY, 1024)


@hypothesis("sysctl.fs.inotify.max_user_watches", syscalls=("inotify_add_watch",), errnos=("ENOSPC",))
def inotify_watches(situation: Situation) -> Outcome | None:
    """The user has fs.inotify.max_user_watches watches. The text says "no space left on device"; no disk is full."""
    key = "fs.inotify.max_user_watches"
    if not _is_inotify(situation):
        return None
    found = _when_asked(situation, key)
    if found is not None:
        return found
    return _inotify(situation, key, "inotify watches", _sure(situation), 524288)


@hypothesis("sysctl.fs.epoll.max_user_watches", syscalls=("epoll_ctl",), errnos=("ENOSPC",))
def epoll_watches(situation: Situation) -> Outcome | None:
    """The user watches fs.epoll.max_user_watches files with epoll, over all its processes."""
    key = "fs.epoll.max_user_watches"
    if not situation.symptom.syscall and "epoll" not in situation.symptom.text.lower():
        return None
    if situation.was_asked:
        return NotDecidable(f"sysctl.{key}", f"{key} is {situation.number(key)}; how many a user has is shown nowhere")
    return _per_user(situation, key, "files watched with epoll", _sure(situation), 1 << 20)


@hypothesis("sysctl.fs.fanotify.", syscalls=("fanotify_init", "fanotify_mark"), errnos=("EMFILE", "ENOSPC"))
def fanotify(situation: Situation) -> Outcome | None:
    """The user has fs.fanotify.max_user_groups groups, or fs.fanotify.max_user_marks marks."""
    symptom = situation.symptom
    if not symptom.syscall:
        return None
    is_group = symptom.syscall == "fanotify_init"
    name, what = ("max_user_groups", "fanotify groups") if is_group else ("max_user_marks", "fanotify marks")
    if (symptom.syscall, symptom.errno) not in (("fanotify_init", "EMFILE"), ("fanotify_mark", "ENOSPC")):
        return None
    key = f"fs.fanotify.{name}"
    if situation.was_asked:
        return NotDecidable(f"sysctl.{key}", f"{key} is {situation.number(key)}; how many a user has is shown nowhere")
    if symptom.syscall == "fanotify_init" and has_files_left(situation) == 0:
        return NotDecidable(f"sysctl.{key}", "its own files had run out")
    return _per_user(situation, key, what, Status.PROVED, 1024)


WATCHES = (inotify_instances, inotify_watches, epoll_watches, fanotify)
