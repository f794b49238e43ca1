# SPDX-License-Identifier: Apache-2.0
"""Which failing calls a trace of a run records, and which not: data, each with its reason.

Measured on 6.18 (Go 1.27.3, a healthy `go test` of one package): 2,600 calls fail without anything being wrong, nine tenths
of them epoll_ctl on regular files (EPERM). What is left out here is left out by the kernel's own filters, so that it costs next to
nothing: a call that is not traced about 30 ns, a traced one about 150 ns (`syscalls:sys_exit_X` with a filter); a filter on
`raw_syscalls:sys_exit` costs 170 ns for every call, futex and read as well.

Calls are named as programs know them; the kernel's trace events call some of them otherwise (`EVENT_NAMES`).
"""
from __future__ import annotations

import errno
from collections.abc import Iterable


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The kernel's function names, where they are not the call's.
EVENT_NAMES = {
    "newfstat": "fstat", "newfstatat": "newfstatat", "newlstat": "lstat", "newstat": "stat", "newuname": "uname",
    "sendfile64": "sendfile", "umount": "umount2",
}

# Not recorded at all. The first word of each entry is the reason.
UNTRACED: dict[str, str] = {
    "waits, and what it returns is time or work, never a limit":
        "futex futex_wait futex_wake futex_waitv futex_requeue epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6 "
        "nanosleep clock_nanosleep pause rt_sigsuspend rt_sigtimedwait restart_syscall wait4 waitid sched_yield",
    "asks only: what is refused here is refused again to whoever acts on the answer":
        "access faccessat faccessat2 stat lstat fstat newfstatat statx readlink readlinkat getcwd getxattr lgetxattr fgetxattr "
        "listxattr llistxattr flistxattr getsockname getpeername getsockopt getdents getdents64 lseek statfs fstatfs mincore "
        "clock_gettime clock_getres gettimeofday time times getrusage sysinfo uname getpid gettid getppid getpgid getpgrp getsid "
        "getuid geteuid getgid getegid getresuid getresgid getgroups getpriority getrlimit getcpu getitimer timer_gettime "
        "timerfd_gettime timer_getoverrun capget sched_getaffinity sched_getparam sched_getscheduler sched_getattr "
        "sched_get_priority_max sched_get_priority_min sched_rr_get_interval get_robust_list rt_sigpending ioprio_get",
    "works on what was handed out before: its errors are the peer's or those of the data":
        "read readv pread64 preadv preadv2 recvfrom recvmsg recvmmsg close close_range shutdown flock",
    "the C library's and the language runtime's own business, with its own way out":
        "rt_sigreturn rt_sigaction rt_sigprocmask sigaltstack set_robust_list set_tid_address rseq arch_prctl exit exit_group "
        "madvise membarrier getrandom brk fadvise64 readahead timer_delete alarm setitimer sync",
}

_WAITS, _ASKS, _OPENED, _RUNTIME = UNTRACED.values()
# The errors that the calls above do give: who hears of one of these from a program cannot ask the trace about it.
_ERRNOS_OF_UNTRACED = (
    (_WAITS, "EAGAIN ETIMEDOUT EINVAL"),
    (_ASKS, "EACCES EPERM ELOOP ENAMETOOLONG EINVAL ERANGE ENOPROTOOPT EOPNOTSUPP"),
    (_OPENED, "EAGAIN EIO EINVAL ECONNREFUSED ETIMEDOUT EHOSTUNREACH ENETUNREACH EFAULT"),
    (_RUNTIME, "EINVAL ENOMEM"),
    ("write writev pwrite64 pwritev pwritev2 sendto sendmsg sendmmsg accept accept4 fcntl", "EAGAIN"),
    ("epoll_ctl", "EPERM"),
    ("fcntl", "EACCES EINVAL"),
    ("ioctl", "EINVAL ENXIO ENODEV EIO EBUSY EOPNOTSUPP"),
)

# Never recorded, whatever the call. ENOENT: the call alone does not say which file is missing; the program's own text does.
HARMLESS_ERRNOS: dict[str, tuple[int, ...]] = {
    "the program asked for what is not there, or is there already": (
        errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ESRCH, errno.ECHILD, errno.ENODATA,
    ),
    "the descriptor is of another kind, or is closed": (errno.EBADF, errno.ESPIPE, errno.ENOTTY, errno.ENOTSOCK),
    "the call is to be made again": (errno.EINTR,),
    "the connection's own state": (
        errno.EPIPE, errno.EALREADY, errno.EINPROGRESS, errno.EISCONN, errno.ENOTCONN, errno.ECONNRESET, errno.ECANCELED,
    ),
}

# EAGAIN of these is a limit's; of all others it means "nothing there yet".
EAGAIN_IS_A_LIMIT = _names(
    "clone clone3 fork vfork execve execveat unshare setns io_setup io_uring_setup mlock mlock2 mlockall munlock munlockall mmap "
    "mremap setuid setreuid setresuid setgid setregid setresgid timer_create rt_sigqueueinfo rt_tgsigqueueinfo add_key "
    "request_key keyctl mkdir mkdirat perf_event_open userfaultfd inotify_init inotify_init1 fanotify_init socket pidfd_open "
    "sched_setscheduler sched_setattr swapon bpf"
)

# Besides those above.
HARMLESS_OF_CALL: dict[str, tuple[int, ...]] = {
    "prctl": (errno.EINVAL,),  # PR_SET_VMA and others that an older kernel does not know
    "copy_file_range": (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP),  # then the data is copied by hand
    "sendfile": (errno.EINVAL,),
    "splice": (errno.EINVAL,),
    "fallocate": (errno.EOPNOTSUPP,),
    "setxattr": (errno.EOPNOTSUPP,),
    "lsetxattr": (errno.EOPNOTSUPP,),
    "fsetxattr": (errno.EOPNOTSUPP,),
    "setsockopt": (errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL),
    "open": (errno.ENXIO,),  # /dev/tty without a terminal, a FIFO without a reader
    "openat": (errno.ENXIO,),
    "setsid": (errno.EPERM,),  # leads its session already
    "setpgid": (errno.EPERM, errno.EACCES),
    "utimensat": (errno.EINVAL,),
    "sendto": (errno.ECONNREFUSED,),
    "sendmsg": (errno.ECONNREFUSED,),
    "sendmmsg": (errno.ECONNREFUSED,),
}

# Called all the time, or failing all the time: only these errors.
ONLY_ERRNOS_OF_CALL: dict[str, tuple[int, ...]] = {
    "epoll_ctl": (errno.ENOSPC, errno.ENOMEM),  # EPERM: a regular file, 2,269 times in a healthy go test
    "fcntl": (errno.EPERM, errno.EMFILE, errno.ENOLCK, errno.ENOMEM),  # EACCES and EAGAIN: somebody else has the lock
    "ioctl": (errno.EPERM, errno.EACCES, errno.ENOMEM, errno.ENOSPC),
}

LAST_ERRNO = 133

# Their beginning is recorded too: the arguments matter to whoever explains the error.
ENTERED = _names(
    "clone clone3 fork vfork execve execveat unshare setns mount umount2 pivot_root chroot socket socketpair bind connect listen "
    "ptrace bpf perf_event_open io_uring_setup userfaultfd memfd_create keyctl add_key request_key prlimit64 setrlimit seccomp "
    "prctl umask setuid setgid setreuid setregid setresuid setresgid setgroups capset personality setpriority sched_setscheduler "
    "sched_setattr sched_setaffinity kill tkill tgkill rt_sigqueueinfo pidfd_send_signal mkdir mkdirat mknod mknodat mlock mlock2 "
    "mmap semop msgsnd "
    "mlockall io_setup inotify_init inotify_init1 inotify_add_watch fanotify_init fanotify_mark shmget semget msgget mq_open "
    "fallocate truncate ftruncate landlock_restrict_self link linkat symlink symlinkat sethostname setdomainname quotactl "
    "open_tree fsopen fsmount move_mount mount_setattr swapon timer_create rt_tgsigqueueinfo exit_group"
)

# Of these only calls with such arguments (the kernel's filter language; the fields are the event's own).
ENTERED_FILTERS = {
    # SECCOMP, NO_NEW_PRIVS, CAPBSET_DROP, CAP_AMBIENT, SECUREBITS, KEEPCAPS, DUMPABLE, PDEATHSIG; not Go's PR_SET_VMA.
    "prctl": "option == 22 || option == 38 || option == 24 || option == 47 || option == 28 || option == 8 || option == 4 "
             "|| option == 1",
    "tgkill": "sig != 23",  # SIGURG: Go's scheduler
    # MAP_HUGETLB and MAP_LOCKED, 64 GiB and more, MAP_FIXED at an address near 0: what seldom succeeds. Of what succeeds no end is
    # recorded, and the next one that fails would be taken for it.
    "mmap": "flags & 0x42000 || len >= 0x1000000000 || (flags & 0x10 && addr < 0x100000)",
}

# Of these the end is recorded whatever it is: they change what is allowed afterwards, or end somebody.
DEEDS = _names(
    "setrlimit prlimit64 unshare setns seccomp prctl chroot pivot_root setuid setgid setreuid setregid setresuid setresgid "
    "setgroups capset mount umount2 kill tkill rt_sigqueueinfo pidfd_send_signal landlock_restrict_self sched_setaffinity "
    "personality setpriority sethostname umask mknod mknodat"
)

# Called so often that their beginnings are not recorded even where a seccomp filter is about.
FREQUENT = _names(
    "open openat openat2 write writev pwrite64 mmap munmap mprotect mremap fcntl ioctl epoll_ctl unlink unlinkat rename renameat "
    "renameat2 sendto sendmsg accept accept4 pipe2 dup dup2 dup3 chmod fchmod fchmodat ftruncate fsync"
)


def untraced() -> frozenset[str]:
    """Every call that is not recorded."""
    return frozenset(name for names in UNTRACED.values() for name in names.split())


def harmless_errnos() -> frozenset[int]:
    """The errors that are not recorded of any call."""
    return frozenset(number for numbers in HARMLESS_ERRNOS.values() for number in numbers)


def hidden() -> frozenset[tuple[str, str]]:
    """The calls and errors (by name; "" is every call) that a trace leaves out, so that it says nothing of them."""
    found = {("", errno.errorcode[number]) for number in harmless_errnos()}
    found |= {(call, errno.errorcode[number]) for call, numbers in HARMLESS_OF_CALL.items() for number in numbers}
    found |= {(call, name) for calls, names in _ERRNOS_OF_UNTRACED for call in calls.split() for name in names.split()}
    return frozenset(found)


def failures_of(call: str) -> str:
    """The kernel filter that lets through those ends of a call that may tell of a limit."""
    if call in ONLY_ERRNOS_OF_CALL:
        return " || ".join(f"ret == -{number}" for number in ONLY_ERRNOS_OF_CALL[call])
    return failures_but(harmless_of(call))


def harmless_of(call: str) -> frozenset[int]:
    """The errors of a call that tell of no limit."""
    again = frozenset() if call in EAGAIN_IS_A_LIMIT else frozenset({errno.EAGAIN})
    return harmless_errnos() | again | frozenset(HARMLESS_OF_CALL.get(call, ()))


def tells_of_limit(call: str, number: int) -> bool:
    """Whether an error of a call may tell of a limit."""
    if call in ONLY_ERRNOS_OF_CALL:
        return number in ONLY_ERRNOS_OF_CALL[call]
    return 0 < number <= LAST_ERRNO and number not in harmless_of(call)


def failures_but(dropped: Iterable[int]) -> str:
    """The kernel filter for every error but these. Beyond -133 there are no errors, only the kernel's own restarts."""
    return f"ret < 0 && ret > -{LAST_ERRNO + 1}" + "".join(f" && ret != -{number}" for number in sorted(set(dropped)))
