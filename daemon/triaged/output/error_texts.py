# SPDX-License-Identifier: Apache-2.0
"""Which error, signal or time-out a line of text names.

Go prints the C library's texts in lower case ("resource temporarily unavailable"), Python adds "[Errno 11]", Rust "(os error 11)",
Java "error=11". Go's runtime gives bare numbers ("epollcreate failed with 1", "errno=11").
"""
from __future__ import annotations

import errno
import os
import re
import signal
from functools import lru_cache

from triaged.model.mention import Mention
from triaged.model.symptom import SymptomKind

LONGEST_LINE = 4096

# Errors that programs use for their own purposes all the time, or whose text is an everyday phrase.
_NOT_TOLD_BY_TEXT = frozenset({"EDOM", "ERANGE", "EINTR", "ENOMSG", "EINPROGRESS", "ENOTUNIQ", "EREMCHG"})
# Names that share a number: the one that is said.
_NAMES = {number: name for number, name in errno.errorcode.items()}
_NAMES.update({errno.EAGAIN: "EAGAIN", errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK"})
_BY_TEXT = {
    os.strerror(number).lower(): name for number, name in sorted(_NAMES.items(), reverse=True) if name not in _NOT_TOLD_BY_TEXT
}
_BY_TEXT["operation not supported"] = "EOPNOTSUPP"
_TEXTS = re.compile("|".join(re.escape(text) for text in sorted(_BY_TEXT, key=len, reverse=True)))
_NUMBER = re.compile(r"\[errno (\d{1,3})\]|\(os error (\d{1,3})\)|\berrno[ =:](\d{1,3})\b|\berror=(\d{1,3}),")
_FAILED_WITH = re.compile(r"runtime: (\w+)(?: on fd \d+)? failed with (\d{1,3})\b")
_RUNTIME_CALLS = {
    "epollcreate": "epoll_create1", "eventfd": "eventfd2", "epollctl": "epoll_ctl", "epollwait": "epoll_pwait", "pipe": "pipe2",
}
_NAME = re.compile(r"\b(E[A-Z0-9]{2,14})\b")

# What Go's runtime says without naming an error: (text, call, error).
_RUNTIME_TEXTS = (
    ("failed to reserve page summary memory", "mmap", "ENOMEM"),
    ("runtime: cannot allocate memory", "mmap", "ENOMEM"),
    ("runtime: out of memory", "mmap", "ENOMEM"),
    ("cannot reserve arena virtual address space", "mmap", "ENOMEM"),
    ("failed to allocate heap arena", "mmap", "ENOMEM"),
    ("memoryerror", "mmap", "ENOMEM"),
    ("virtual memory exhausted", "mmap", "ENOMEM"),
    ("memory exhausted", "mmap", "ENOMEM"),
    ("out of memory", "mmap", "ENOMEM"),
    ("std::bad_alloc", "mmap", "ENOMEM"),
    ("pthread_create failed", "clone3", ""),
    ("can't start new thread", "clone3", "EAGAIN"),
    ("failed to create new os thread", "clone", ""),
    ("sigaction failed", "rt_sigaction", ""),
    ("cannot open standard fds", "fcntl", ""),
    ("futexwakeup", "futex", ""),
    ("cannot set up thread-local storage", "arch_prctl", ""),
    ("no such host", "", "EAI_NONAME"),
    ("name or service not known", "", "EAI_NONAME"),
    ("temporary failure in name resolution", "", "EAI_AGAIN"),
    ("server misbehaving", "", "EAI_AGAIN"),
    ("mapping output file failed", "fallocate", ""),
    ("resize output file failed", "ftruncate", ""),
)
_TIMED_OUT = re.compile(
    r"panic: test timed out after|i/o timeout|deadline exceeded|\btimed out\b|timeout exceeded|\*\*\* test killed"
)
_SIGNAL_TEXTS = {
    "killed": signal.SIGKILL, "bad system call": signal.SIGSYS, "segmentation fault": signal.SIGSEGV,
    "cpu time limit exceeded": signal.SIGXCPU, "file size limit exceeded": signal.SIGXFSZ, "aborted": signal.SIGABRT,
    "terminated": signal.SIGTERM, "bus error": signal.SIGBUS, "trace/breakpoint trap": signal.SIGTRAP, "hangup": signal.SIGHUP,
}
_SIGNAL = re.compile(r"\bsignal: (" + "|".join(re.escape(text) for text in _SIGNAL_TEXTS) + r")\b")
_SHELL_SIGNAL = re.compile(r"^(?:\S+: line \d+: +\d+ )?(killed|bad system call|cpu time limit exceeded|file size limit exceeded)\b")
_SIGNAL_NAME = re.compile(r"\bSIG(KILL|SYS|XCPU|XFSZ)\b")
_SIGNAL_NUMBER = re.compile(r"\(signal: (\d{1,2}), SIG[A-Z]+")
_DIED_WITH = re.compile(r"(?i:died with <signals)\.(SIG[A-Z]+)|exited with exit code -(\d{1,2})\b|\breturned? -(9|24|25|31)\b")
_TRAPPED = re.compile(r"syscall\.(?:Raw)?Syscall6?\((0x[0-9a-f]+)")

# Go: "OPERATION PATH: TEXT", the operation being one of these; what call it stands for, where it is but one.
_SAME_NAME = (
    "openat", "write", "read", "chown", "lchown", "fchown", "unlinkat", "mount", "chdir", "chroot", "pipe2", "waitid", "unshare",
    "setns", "socket", "bind", "listen", "connect", "accept4", "getsockopt", "setsockopt", "mmap", "mlock", "ptrace", "bpf",
    "perf_event_open", "io_uring_setup", "memfd_create", "keyctl", "add_key", "userfaultfd", "fanotify_init", "mq_open",
    "inotify_init1", "inotify_add_watch", "sethostname", "setpriority", "sched_setscheduler", "io_setup", "personality",
    "pidfd_open", "openat2", "clone3", "clone", "execve", "flock", "fallocate", "mremap", "mprotect", "shmget", "semget", "msgget",
)
_OPERATIONS = {
    "fork/exec": "", "open": "openat", "mkdir": "mkdirat", "chmod": "fchmodat", "remove": "unlinkat", "rename": "renameat",
    "link": "linkat", "symlink": "symlinkat", "truncate": "ftruncate", "stat": "newfstatat", "lstat": "newfstatat",
    "umount": "umount2", "mknod": "mknodat", "readdirent": "getdents64", "accept": "accept4", "inotify_init": "inotify_init1",
    "exec": "execve", "rlock": "flock", "lock": "flock", "setrlimit": "prlimit64", **{name: name for name in _SAME_NAME},
}
_OPERATION = re.compile(
    r"(?:^|[\s:\"'(])(" + "|".join(sorted((re.escape(word) for word in _OPERATIONS), key=len, reverse=True)) + r")"
    r"(?: ((?:[/.$][^\s:'\"]*|(?:[0-9.]+|\[[0-9a-f:]+\])?:\d+|\S*->\S+|\S+)))?(?: [^:]{0,80})?: *$",
    re.IGNORECASE,
)
_PATH = re.compile(r"(?<![\w/])(/[^\s:'\",;()\[\]]+)")
_ADDRESS = re.compile(r"(?<![\w.:])((?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-f:.]+\]|localhost)?:\d{1,5})\b")


def errno_named(number: int) -> str:
    """The name of an error number, or ''."""
    return _NAMES.get(number, "")


_MARKS = (
    "denied", "permitted", "unavailable", "too many", "no space", "memory", "killed", "timed out", "timeout", "errno", "error",
    "signal", "exceeded", "failed", "too large", "invalid", "no such", "refused", "unreachable", "cannot", "read-only", "busy",
    "system call", "not supported", "not implemented", "misbehaving", "too long", "exists", "quota", "host", "died with", "thread",
    "in use", "available", "is down",
)
_NAMED_MARKS = ("EPERM", "EACCES", "EAGAIN", "ENO", "EMFILE")


@lru_cache(maxsize=1)  # a line is asked about for its package and for its test
def may_mention(line: str) -> bool:
    """Whether it is worth while to parse the line: a few searches, for output that goes by in bulk."""
    lower = line.lower()
    # A plain loop: a third of the time that any() takes, a fifteenth of one expression with all of them (measured: 2 µs a line).
    for mark in _MARKS:
        if mark in lower:
            return True
    return "E" in line and any(mark in line for mark in _NAMED_MARKS)


def parse_mention(line: str, at_ns: int = 0) -> Mention | None:
    """What the line tells of an error of the operating system; None if nothing. Of several the last: Go wraps errors outside in."""
    line = line[:LONGEST_LINE].rstrip()
    lower = line.lower()
    found = _death(line, lower, at_ns) or _error(line, lower, at_ns)
    if found is None and _TIMED_OUT.search(lower):
        operation, path = _about(line)
        return Mention(line, SymptomKind.TIMED_OUT, operation=operation, path=path or _last(_ADDRESS, line), at_ns=at_ns)
    return found


def _death(line: str, lower: str, at_ns: int) -> Mention | None:
    number = 0
    match = _SIGNAL.search(lower) or _SHELL_SIGNAL.match(lower)
    if match:
        number = _SIGNAL_TEXTS[match[1]]
    elif match := _SIGNAL_NUMBER.search(line):
        number = int(match[1])
    elif match := _DIED_WITH.search(line):
        number = int(match[2] or match[3] or 0) or getattr(signal.Signals, match[1] or "", signal.SIGKILL)
    elif "bad system call" in lower and (match := _SIGNAL_NAME.search(line)):
        number = signal.SIGSYS
    if not number:
        return None
    return Mention(line, SymptomKind.KILLED, signal=int(number), at_ns=at_ns)


def _error(line: str, lower: str, at_ns: int) -> Mention | None:
    match = _FAILED_WITH.search(line)
    if match:
        call = _RUNTIME_CALLS.get(match[1], match[1])
        return Mention(line, SymptomKind.CALL, errno_named(int(match[2])), syscall=call, at_ns=at_ns)
    name, start = "", len(line)
    for match in _TEXTS.finditer(lower):
        name, start = _BY_TEXT[match[0]], match.start()
    numbers = [int(next(filter(None, match.groups()))) for match in _NUMBER.finditer(lower)]
    if numbers and errno_named(numbers[-1]):
        name = errno_named(numbers[-1])
        start = min(start, next(_NUMBER.finditer(lower)).start())
    call, told = next(((call, error) for text, call, error in _RUNTIME_TEXTS if text in lower), ("", ""))
    if not name:
        name = told or next((word for word in reversed(_NAME.findall(line)) if hasattr(errno, word)), "")
    if not name and not call:
        return None
    operation, path = _about(line[:start])
    if not call:
        call = _OPERATIONS.get(operation, "")
    if not path:
        path = _last(_PATH, line) or _last(_ADDRESS, line)
    return Mention(line, SymptomKind.CALL, name, syscall=call, operation=operation, path=path, at_ns=at_ns)


def _about(before: str) -> tuple[str, str]:
    """The operation and what it was about, from the part of a line before the error's text."""
    match = _OPERATION.search(before)
    if match is None:
        return "", ""
    path = match[2] or ""
    if not path or not (path.startswith(("/", ".", "$")) or ":" in path):
        path = path if match[1].lower() == "fork/exec" else _last(_PATH, before)
    return match[1].lower(), path.rstrip(":,")


def _last(pattern: re.Pattern[str], line: str) -> str:
    found = pattern.findall(line)
    return str(found[-1]).rstrip(".,") if found else ""


def trapped_syscall(text: str) -> int | None:
    """The number of the call for which a SECCOMP_RET_TRAP ended a Go program: the first argument of the goroutine's top frame."""
    match = _TRAPPED.search(text)
    return int(match[1], 16) if match and "SIGSYS" in text else None
