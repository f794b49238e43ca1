# SPDX-License-Identifier: Apache-2.0
"""Which system call a line of output speaks of: what Go, the C library and others print for a call that failed.

Go names the operation before the error's text ("chown /x: operation not permitted", "listen tcp [::1]:0: bind: permission
denied"), by the call's name or by a word of its own (os.PathError, net.OpError); what its runtime says when a call that it needs
was denied was measured (Go 1.27, each call denied alone).
"""
from __future__ import annotations

import errno
import os
import re

from triaged.model.symptom import SeenIn, Symptom

CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
EXECS = frozenset({"execve", "execveat"})
OPENS = frozenset({"open", "openat", "openat2", "creat"})
CHOWNS = frozenset({"chown", "lchown", "fchown", "fchownat"})
CHMODS = frozenset({"chmod", "fchmod", "fchmodat", "fchmodat2"})
LINKS = frozenset({"link", "linkat"})
SYMLINKS = frozenset({"symlink", "symlinkat"})
RENAMES = frozenset({"rename", "renameat", "renameat2"})
REMOVALS = frozenset({"unlink", "unlinkat", "rmdir"})
DIRECTORIES = frozenset({"mkdir", "mkdirat"})
NODES = frozenset({"mknod", "mknodat"})
STATS = frozenset({"stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "statfs"})
LOOKS = STATS | {"fstat"}
WRITES = frozenset({
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "fallocate", "ftruncate", "copy_file_range", "sendfile", "splice",
    "fsync", "fdatasync", "close", "sync_file_range",
})
TIMES = frozenset({"utime", "utimes", "utimensat", "futimesat"})
ATTRIBUTES = frozenset({"setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"})
TRUNCATES = frozenset({"truncate", "ftruncate"})
MAKES_OR_CHANGES = (
    OPENS | CHOWNS | CHMODS | LINKS | SYMLINKS | RENAMES | REMOVALS | DIRECTORIES | NODES | TIMES | ATTRIBUTES | TRUNCATES
)
ON_PATHS = MAKES_OR_CHANGES | STATS | EXECS | {"chdir", "chroot", "mount", "umount2", "inotify_add_watch"}
ON_DESCRIPTORS = WRITES | {
    "fchown", "fchmod", "fsetxattr", "fremovexattr", "getdents64", "fchdir", "flock", "ioctl", "read", "pread64",
}
MAPS = frozenset({"mmap", "mprotect", "pkey_mprotect", "mremap"})
SENDS = frozenset({"sendto", "sendmsg", "sendmmsg", "write", "writev"})
MEMORY_LOCKS = frozenset({"mlock", "mlock2", "mlockall", "mmap", "shmctl"})
# What Go's os/exec may do between the fork and the end of execve, in the order of syscall.forkAndExecInChild1; what a text
# "fork/exec X: ..." may stand for. The first group happens always, the second only where SysProcAttr asks for it.
FORK_EXEC_ALWAYS = (*sorted(CLONES), "execve", "pipe2", "dup3", "fcntl", "close")
FORK_EXEC_ASKED = (
    "unshare", "setns", "mount", "setgroups", "setresgid", "setgid", "setresuid", "setuid", "chroot", "chdir", "ptrace", "setsid",
    "setpgid", "ioctl", "prctl", "capset", "openat", "write", "prlimit64", "pidfd_open",
)
FORK_EXEC = frozenset({*FORK_EXEC_ALWAYS, *FORK_EXEC_ASKED})

_WORDS = {
    "fork/exec": FORK_EXEC, "fork": CLONES, "exec": EXECS, "open": OPENS, "mkdir": DIRECTORIES, "chown": CHOWNS, "lchown": CHOWNS,
    "chmod": CHMODS, "link": LINKS, "hardlink": LINKS, "symlink": SYMLINKS, "rename": RENAMES, "remove": REMOVALS,
    "unlink": REMOVALS, "rmdir": REMOVALS, "unlinkat": REMOVALS, "stat": STATS, "lstat": STATS,
    "readdirent": frozenset({"getdents64"}),
    "mkfifo": NODES, "mknod": NODES, "chtimes": TIMES, "truncate": TRUNCATES, "write": WRITES, "copy": WRITES,
    "copy_file_range": frozenset({"copy_file_range"}), "fallocate": frozenset({"fallocate"}), "socket": frozenset({"socket"}),
    "bind": frozenset({"bind"}), "listen": frozenset({"listen"}), "connect": frozenset({"connect"}),
    "accept": frozenset({"accept4"}), "sendto": frozenset({"sendto"}), "sendmsg": frozenset({"sendmsg"}),
    "umount": frozenset({"umount2"}),
    "unmount": frozenset({"umount2"}), "ptrace": frozenset({"ptrace"}), "getwd": frozenset({"getcwd"}),
    "waitid": frozenset({"waitid"}), "wait": frozenset({"wait4", "waitid"}), "kill": frozenset({"kill", "pidfd_send_signal"}),
    "signal": frozenset({"kill", "pidfd_send_signal", "tgkill"}), "setpriority": frozenset({"setpriority"}),
    "sysctl": OPENS, "mapping": frozenset({"fallocate", "mmap", "ftruncate"}), "rlock": frozenset({"flock", "fcntl"}),
    "lock": frozenset({"flock", "fcntl"}), "mlock": frozenset({"mlock", "mlock2"}), "mprotect": frozenset({"mprotect"}),
    "bpf": frozenset({"bpf"}), "fanotify": frozenset({"fanotify_init"}), "userfaultfd": frozenset({"userfaultfd"}),
    "io_uring": frozenset({"io_uring_setup"}), "perf": frozenset({"perf_event_open"}), "pthread_create": CLONES,
}
_NAMES = frozenset({
    "accept4", "acct", "add_key", "bpf", "capset", "chroot", "clock_settime", "clone", "clone3", "connect", "delete_module", "dup3",
    "epoll_create1", "eventfd2", "execve", "fanotify_init", "fchown", "fchownat", "finit_module", "flock", "fsopen", "ftruncate",
    "futex", "getcwd", "getdents64", "getpeername", "getsockname", "getsockopt", "init_module", "inotify_init1", "io_setup",
    "io_uring_setup", "ioperm", "iopl", "ioprio_set", "kcmp", "kexec_load", "keyctl", "kill", "landlock_create_ruleset", "linkat",
    "memfd_create", "mkdirat", "mknod", "mknodat", "mlock", "mlockall", "mmap", "mount", "mprotect", "name_to_handle_at",
    "newfstatat", "open_by_handle_at", "openat", "openat2", "perf_event_open", "personality", "pidfd_getfd", "pidfd_open", "pipe2",
    "pivot_root", "prctl", "prlimit64", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "reboot", "renameat2",
    "request_key", "sched_setaffinity", "sched_setattr", "sched_setscheduler", "seccomp", "sendto", "setdomainname", "setgid",
    "setgroups", "sethostname", "setns", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit", "setsockopt",
    "settimeofday", "setuid", "shmget", "signalfd4", "socket", "socketpair", "statx", "swapoff", "swapon", "sync_file_range",
    "syslog", "timer_create", "timerfd_create", "umount2", "unlinkat", "unshare", "userfaultfd", "utimensat", "vfork", "wait4",
    "waitid",
})
_WORD = re.compile(r"[A-Za-z_][\w/]*")

# What is printed when a call is denied that Go's runtime, its tools or the C library need; the texts name no call or a wrong one.
DENIED_TEXTS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple((re.compile(pattern), calls) for pattern, calls in (
    (r"failed to create new OS thread", ("clone", "clone3")),
    (r"pthread_create failed", ("clone3", "clone")),
    (r"epollcreate failed with", ("epoll_create1",)),
    (r"eventfd failed with", ("eventfd2",)),
    (r"epollctl failed with", ("epoll_ctl",)),
    (r"epollwait on fd \d+ failed with", ("epoll_pwait",)),
    (r"netpollinit failed", ("epoll_create1", "eventfd2", "epoll_ctl")),
    (r"unexpected error while checking standard file descriptor", ("fcntl",)),
    (r"cannot open standard fds", ("fcntl", "openat")),
    (r"sigaction failed", ("rt_sigaction",)),
    (r"futexwakeup addr=\S+ returned", ("futex",)),
    (r"cannot set up thread-local storage", ("arch_prctl",)),
    (r"error while loading shared libraries", ("mprotect", "newfstatat", "pread64", "openat", "mmap")),
    (r"package testing is not in std", ("close", "newfstatat", "getdents64", "openat")),
    (r"cannot find GOROOT directory", ("newfstatat",)),
    (r"cannot determine current directory", ("getcwd",)),
    (r"mapping output file failed", ("fallocate", "mmap", "ftruncate")),
    (r"resize output file failed", ("ftruncate",)),
    (r"cannot allocate memory", ("mmap",)),
    (r"net\.Addr is nil", ("getsockname", "getpeername")),
))  # fmt: skip
# TRAP: Go prints the registers of the call, "syscall.Syscall(0x110, ..."; the first is its number.
TRAPPED = re.compile(r"\bsyscall\.(?:Raw)?Syscall\w*\(0x([0-9a-f]+)")


# Calls that one word may stand for: a line that says "open" may be about openat, one that says "mmap" about brk. Of a word for two
# calls, the old one and the new one (pipe and pipe2), the usual one is enough.
_FAMILIES = (
    CLONES, EXECS, OPENS, CHOWNS, CHMODS, LINKS, SYMLINKS, RENAMES, REMOVALS, DIRECTORIES, NODES, LOOKS, TIMES, ATTRIBUTES,
    frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2", "copy_file_range", "sendfile", "splice"}),
    frozenset({"read", "pread64", "readv", "preadv", "preadv2", "recvfrom", "recvmsg"}),
    TRUNCATES | {"fallocate"},
    frozenset({"mmap", "mremap", "mprotect", "brk", "munmap", "madvise"}),
    frozenset({"mlock", "mlock2", "mlockall"}),
    frozenset({"sched_setscheduler", "sched_setattr", "sched_setparam"}),
    frozenset({"flock", "fcntl"}),
    frozenset({"kill", "tgkill", "pidfd_send_signal"}),
)  # fmt: skip
_FAMILY_OF = {name: family for family in _FAMILIES for name in family}


def calls_behind(operation: str, syscall: str) -> frozenset[str]:
    """The calls that may stand behind what a line of output names; empty where it may be any."""
    if operation == "fork/exec":
        return FORK_EXEC
    return _FAMILY_OF.get(syscall, frozenset({syscall})) if syscall else frozenset()


def calls_of(symptom: Symptom) -> frozenset[str]:
    """The calls that the symptom may be about: the one that was traced, or those that its text names; none where it names none."""
    if not symptom.syscall:
        return named_calls(symptom.text, symptom.errno)
    return calls_behind("", symptom.syscall) if symptom.seen_in is SeenIn.OUTPUT else frozenset({symptom.syscall})


def named_calls(text: str, error: str) -> frozenset[str]:
    """The calls that a line of output may mean, from the words before the error's own text."""
    before = _before_error(text, error)
    for segment in reversed(before.split(": ")):
        for word in _WORD.findall(segment):
            name = word.lower()
            if name in _WORDS:
                return _WORDS[name]
            if name in _NAMES:
                return frozenset({name})
    return frozenset()


def denied_calls(text: str) -> tuple[str, ...]:
    """The calls of which the text is what is printed when they are denied, likeliest first."""
    for pattern, calls in DENIED_TEXTS:
        if pattern.search(text):
            return calls
    return ()


def _before_error(text: str, error: str) -> str:
    number = next((each for each, name in errno.errorcode.items() if name == error), 0)
    at = text.lower().rfind(os.strerror(number).lower()) if number else -1
    return text[:at] if at >= 0 else text
