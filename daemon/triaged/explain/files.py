# SPDX-License-Identifier: Apache-2.0
"""Limits on open files, on terminals, and on the size of files.

Hard facts:
- EMFILE comes from one place for nearly every call that gives a descriptor (fs/file.c alloc_fd): RLIMIT_NOFILE. Those that have
  other reasons are inotify_init, fanotify_init and mq_open.
- A Go program raises its soft limit to the hard one at its start: there the hard one counts.
- ENFILE is fs.file-max, which CAP_SYS_ADMIN passes; of pipe2 it may be the pages of the user's pipes (`pipes`).
"""
from __future__ import annotations

from triaged.explain.capability import CAP_SYS_ADMIN, CAP_SYS_RESOURCE, has_on_host
from triaged.explain.hypothesis import hypothesis
from triaged.explain.remedies import set_parameter
from triaged.explain.resource_limits import blame_resource, of_unread
from triaged.explain.situation import Situation
from triaged.explain.wording import count, free, size, who
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.symptom import SeenIn
from triaged.model.verdict import Evidence

_OTHER_REASONS = ("inotify_init", "inotify_init1", "fanotify_init", "mq_open")
_NEAR = 256
_NOFILE = 7
_ENOUGH_FILES = 65536
_EASILY_REACHED = 1024  # the usual soft limit
_OPENS = ("open", "openat", "openat2")


def has_files_left(situation: Situation) -> int | None:
    """How many more files the process may open; None where that is not known."""
    process = situation.process
    if process is None:
        return None
    soft, used = process.soft("NOFILE"), process.open_files
    if soft is UNLIMITED:
        return 1 << 30
    return max(soft - used, 0) if isinstance(soft, int) and isinstance(used, int) else None


@hypothesis("rlimit.NOFILE", errnos=("EMFILE",))
def nofile(situation: Situation) -> Outcome | None:
    """The process has RLIMIT_NOFILE files open (ulimit -n, LimitNOFILE=). Sockets, pipes and the like are files.

    A Go program raises its soft limit to the hard one, so the hard one counts there.
    """
    cause, process, symptom = "rlimit.NOFILE", situation.process, situation.symptom
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    soft, hard, used = process.soft("NOFILE"), process.hard("NOFILE"), process.open_files
    if not isinstance(soft, int):
        return of_unread(situation, "NOFILE", soft, _ENOUGH_FILES) if isinstance(soft, Unknown) else RuledOut(cause, "unlimited")
    left = has_files_left(situation)
    if left and (situation.was_asked or symptom.syscall in _OTHER_REASONS):
        return RuledOut(cause, f"{count(left)} free of {count(soft)}")
    if left is None and (situation.was_asked or symptom.syscall in _OTHER_REASONS):
        return NotDecidable(cause, used.why if isinstance(used, Unknown) else str(used))
    # `left` may be more than 0 by now: alloc_fd has no other reason to say EMFILE. A text alone may be of another call, and of a
    # process that set its own limit.
    is_told_only = symptom.seen_in is SeenIn.OUTPUT and left is None
    if is_told_only:
        status = Status.LIKELY if soft <= _EASILY_REACHED else Status.POSSIBLE
    else:
        status = Status.POSSIBLE if left and not symptom.syscall else Status.PROVED
    had = "; how many it had open was not seen" if is_told_only else " and had as many"
    evidence = (Evidence("open files", str(used), f"/proc/{process.identity.pid}/fd", situation.time_usec),)
    if isinstance(hard, int) and hard == soft:
        summary = f"{who(process)} may have {count(soft)} files open (hard RLIMIT_NOFILE){had}"
        wanted = max(hard * 2, _ENOUGH_FILES)
    else:
        most = "as many as it likes" if hard is UNLIMITED else count(hard) if isinstance(hard, int) else "more"
        summary = f"{who(process)} may have {count(soft)} files open (soft RLIMIT_NOFILE; hard: {most}){had}"
        wanted = hard if isinstance(hard, int) else _ENOUGH_FILES
    return blame_resource(situation, "NOFILE", status, summary, evidence, wanted, 5)


@hypothesis("sysctl.fs.file-max", errnos=("ENFILE",))
def file_max(situation: Situation) -> Outcome | None:
    """The machine has fs.file-max files open already. Root (CAP_SYS_ADMIN) is exempt; the kernel says so in its log, once."""
    cause, usage = "sysctl.fs.file-max", situation.host_limit("fs.file-max")
    if usage is None or not isinstance(usage.used, int) or not isinstance(usage.limit, int):
        return NotDecidable(cause, "fs.file-max or fs.file-nr cannot be read")
    if has_on_host(situation, CAP_SYS_ADMIN):
        return RuledOut(cause, "it does not bind who has CAP_SYS_ADMIN")
    line = next((each for each in situation.log() if each.startswith("VFS: file-max limit")), "")
    left = usage.limit - usage.used
    if (situation.was_asked and left > 0) or (not line and left >= _NEAR):
        return RuledOut(cause, free(usage.used, usage.limit) + (", but it was reached since the boot" if line else ""))
    evidence = [
        Evidence("fs.file-max", usage.limit, usage.limit_from, situation.time_usec),
        Evidence("fs.file-nr", usage.used, usage.used_from, situation.time_usec),
    ]
    if line:
        evidence.append(Evidence("kernel log", line, "kernel log", situation.time_usec))
    status = Status.PROVED if line or left <= 0 else Status.LIKELY
    return Blamed(
        cause, status, "host", f"fs.file-max is {count(usage.limit)}, and {count(usage.used)} files are open on this machine",
        tuple(evidence), set_parameter("fs.file-max", max(usage.limit * 2, 1 << 20), usage.limit), "headroom.nearly-used-up",
        "parameter:fs.file-max", weight=3,
    )


@hypothesis("sysctl.fs.nr_open", syscalls=("prlimit64", "setrlimit"), errnos=("EPERM",))
def nr_open(situation: Situation) -> Outcome | None:
    """No RLIMIT_NOFILE may be above fs.nr_open, not even root's. Without CAP_SYS_RESOURCE no hard limit may be raised at all."""
    cause, symptom = "sysctl.fs.nr_open", situation.symptom
    arguments = symptom.arguments
    if not symptom.syscall:
        return None
    resource = arguments[1 if symptom.syscall == "prlimit64" else 0] if len(arguments) > 1 else _NOFILE
    if resource != _NOFILE:
        return None
    most = situation.number("fs.nr_open")
    if isinstance(most, Unknown):
        return NotDecidable(cause, most.why)
    if not has_on_host(situation, CAP_SYS_RESOURCE):
        return NotDecidable(cause, f"without CAP_SYS_RESOURCE no limit is raised anyway; nr_open is {count(most)}")
    evidence = (Evidence("fs.nr_open", most, "/proc/sys/fs/nr_open", situation.time_usec),)
    summary = f"RLIMIT_NOFILE was to be more than fs.nr_open, {count(most)}, allows"
    wanted = max(most * 2, 1073741816)
    return Blamed(cause, Status.PROVED, "host", summary, evidence, set_parameter("fs.nr_open", wanted, most), weight=2)


@hypothesis("sysctl.kernel.pty.max", syscalls=_OPENS, errnos=("ENOSPC",))
def pty_max(situation: Situation) -> Outcome | None:
    """All kernel.pty.max pseudo terminals are in use. The text says "no space left on device"; no disk is full."""
    key, cause, symptom = "kernel.pty.max", "sysctl.kernel.pty.max", situation.symptom
    if not symptom.path.endswith("/ptmx") and not (situation.was_asked and not symptom.path):
        return None
    most, used = situation.number(key), situation.number("kernel.pty.nr")
    if isinstance(most, Unknown) or isinstance(used, Unknown):
        return NotDecidable(cause, "kernel.pty.* cannot be read")
    if used < most and (most - used > _NEAR or not symptom.path or situation.was_asked):
        return RuledOut(cause, free(used, most))
    evidence = (
        Evidence(key, most, "/proc/sys/kernel/pty/max", situation.time_usec),
        Evidence("kernel.pty.nr", used, "/proc/sys/kernel/pty/nr", situation.time_usec),
    )
    status = Status.PROVED if symptom.path and used >= most else Status.LIKELY
    return Blamed(
        cause, status, "host", f"{key} is {count(most)}, and {count(used)} pseudo terminals are in use", evidence,
        set_parameter(key, max(most * 2, 4096), most), weight=4,
    )


@hypothesis("rlimit.FSIZE", errnos=("EFBIG",))
def fsize(situation: Situation) -> Outcome | None:
    """A file may not become larger than RLIMIT_FSIZE (ulimit -f, LimitFSIZE=). Go ignores the SIGXFSZ that comes with it."""
    cause, process = "rlimit.FSIZE", situation.process
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    limit = process.soft("FSIZE")
    if not isinstance(limit, int):
        return of_unread(situation, "FSIZE", limit, UNLIMITED) if isinstance(limit, Unknown) else RuledOut(cause, "unlimited")
    summary = f"{who(process)} may make files of {size(limit)} at most (RLIMIT_FSIZE)"
    # File systems have a largest size too, terabytes above any limit that somebody sets.
    status = Status.PROVED if limit < 1 << 40 and not situation.was_asked else Status.POSSIBLE
    return blame_resource(situation, "FSIZE", status, summary, (), UNLIMITED, 5)


@hypothesis("rlimit.LOCKS", syscalls=("flock", "fcntl"), errnos=("ENOLCK",))
def locks(situation: Situation) -> Outcome | None:
    """RLIMIT_LOCKS, which Linux shows and does not enforce: never a cause. ENOLCK is the file system's (NFS without lockd)."""
    return RuledOut("rlimit.LOCKS", "the kernel has not enforced it since 2.4")


FILES = (nofile, file_max, nr_open, pty_max, fsize, locks)
