# SPDX-License-Identifier: Apache-2.0
"""Who a process is, read from /proc.

Facts that shape this module:
- A pid may be reused between two reads. An open descriptor of /proc/PID is not: after the process ended, every read
  below it fails with ESRCH (proc_pid_make_inode keeps the struct pid). So each process is opened once.
- comm, argv and the environment are bytes that the process chose; comm may hold ')', newlines and half a character.
- Once a process is exiting, the version 1 hierarchies show "/" for it, whatever its cgroup was (proc_cgroup_show).
- exe of a zombie or a kernel thread does not exist; of another user's process it cannot be read without CAP_SYS_PTRACE.
"""
from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from triaged.errors import Gone, Malformed, NotPermitted
from triaged.kernel.ci_environment import parse_ci_job
from triaged.kernel.files import read_at, read_bytes, translated
from triaged.kernel.paths import KernelPaths
from triaged.model.process import ProcessIdentity

_STAT_CAP = 4096
_STATUS_CAP = 8192
_CGROUP_CAP = 1 << 17  # a path is at most 4096 bytes, there are at most some 16 hierarchies
_ARGV_CAP = 2048  # what is kept for each of thousands of processes; the first arguments tell what it is
_ENVIRONMENT_CAP = 1 << 18
_DELETED = " (deleted)"
_PF_EXITING = 0x4


def read_process(paths: KernelPaths, pid: int) -> ProcessIdentity:
    """Who a process is now. `workload` and `ci_job` are left empty (see `ProcessTable`, `read_ci_job`).

    Source: /proc/PID/{stat,status,exe,cmdline,cgroup} (proc(5)). What the caller may not read stays empty.
    Raises: Gone, NotPermitted (hidepid), Malformed.
    """
    path = f"{paths.proc}/{pid}"
    directory = _open(path)
    try:
        uid = parse_real_uid(read_at(directory, path, "status", _STATUS_CAP), f"{path}/status")
        exe = _read_exe(directory, path)
        argv = parse_argv(read_at(directory, path, "cmdline", _ARGV_CAP + 1))
        cgroups = parse_cgroups(read_at(directory, path, "cgroup", _CGROUP_CAP), f"{path}/cgroup")
        stat = parse_stat(read_at(directory, path, "stat", _STAT_CAP), f"{path}/stat")  # last: it says whether the rest holds
        if stat.is_exiting and len(cgroups) > 1:
            cgroups = {}
        return ProcessIdentity(pid, stat.start_ticks, stat.ppid, uid, stat.comm, exe, argv, cgroups)
    finally:
        os.close(directory)


def read_exe(paths: KernelPaths, pid: int) -> str:
    """The path of a process's executable; '' where there is none (a zombie, a kernel thread). One system call.

    Raises: Gone, NotPermitted (another user's process, without CAP_SYS_PTRACE).
    """
    path = f"{paths.proc}/{pid}/exe"
    try:
        return os.readlink(path).removesuffix(_DELETED)
    except OSError as error:
        raise translated(error, path) from error


def read_exes(paths: KernelPaths, pids: Iterable[int]) -> tuple[list[tuple[int, str]], int]:
    """The processes that still live, each with its executable, and how many may not be looked at. For storms.

    Processes that are gone, and those without an executable, are left out: most of a storm is gone when it is read.
    """
    found: list[tuple[int, str]] = []
    refused = 0
    # A pid of the dead is known to be so by getpgid for half the price of a look-up in /proc (measured on 6.18: 3 against 6 µs).
    is_real = paths.proc == "/proc"
    for pid in pids:
        try:
            if is_real:
                os.getpgid(pid)
            found.append((pid, os.readlink(f"{paths.proc}/{pid}/exe").removesuffix(_DELETED)))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                refused += 1
    return found, refused


def read_cgroup_record(paths: KernelPaths, pid: int) -> bytes:
    """The text of a process's /proc/PID/cgroup, for `parse_cgroups`.

    Raises: Gone (also for an exiting process whose paths are not shown any more), NotPermitted, Malformed.
    """
    path = f"{paths.proc}/{pid}/cgroup"
    record = read_bytes(path, _CGROUP_CAP)
    if record.count(b"\n") > 1 and b":/\n" in record:
        stat = f"{paths.proc}/{pid}/stat"
        if parse_stat(read_bytes(stat, _STAT_CAP), stat).is_exiting:
            raise Gone(path)
    return record


def read_comm(paths: KernelPaths, pid: int) -> str:
    """The comm of a process, raw. Raises: Gone, NotPermitted."""
    return read_bytes(f"{paths.proc}/{pid}/comm", 64).decode("utf-8", "surrogateescape").removesuffix("\n")


def read_start_ticks(paths: KernelPaths, pid: int) -> int:
    """When the process began, in clock ticks since boot; with the pid it names the process for good.

    Source: /proc/PID/stat, field 22.
    Raises: Gone, NotPermitted, Malformed.
    """
    path = f"{paths.proc}/{pid}"
    directory = _open(path)
    try:
        return parse_stat(read_at(directory, path, "stat", _STAT_CAP), f"{path}/stat").start_ticks
    finally:
        os.close(directory)


def read_ci_job(paths: KernelPaths, pid: int) -> str:
    """The CI job that a process's environment names, or '' (also where it may not be read).

    Source: /proc/PID/environ: the environment at exec, not what the process made of it.
    Raises: Gone.
    """
    path = f"{paths.proc}/{pid}"
    directory = _open(path)
    try:
        return parse_ci_job(read_at(directory, path, "environ", _ENVIRONMENT_CAP))
    except NotPermitted:
        return ""
    finally:
        os.close(directory)


def read_variable(paths: KernelPaths, pid: int, name: str) -> str:
    """A variable of a process's environment, as it was at exec; "".

    Source: /proc/PID/environ, its first 64 KiB. Raises: Gone, NotPermitted.
    """
    path = f"{paths.proc}/{pid}"
    directory = _open(path)
    try:
        wanted = f"{name}=".encode()
        for entry in read_at(directory, path, "environ", _ENVIRONMENT_CAP).split(b"\0"):
            if entry.startswith(wanted):
                return os.fsdecode(entry[len(wanted):])
        return ""
    finally:
        os.close(directory)


def pids(paths: KernelPaths) -> Iterator[int]:
    """The processes that /proc shows, in no certain order.

    Raises: InterfaceMissing or NotPermitted where /proc cannot be listed.
    """
    try:
        names = os.listdir(paths.proc)
    except OSError as error:
        raise translated(error, paths.proc) from error
    return (int(name) for name in names if name.isdecimal() and name.isascii())


class ProcessStat(NamedTuple):
    """What is used of a /proc/PID/stat. `start_ticks`: clock ticks since boot."""

    comm: str
    ppid: int
    is_exiting: bool
    start_ticks: int


def parse_stat(record: bytes, path: str = "stat") -> ProcessStat:
    """The fields 2, 4, 9 and 22 of a /proc/PID/stat.

    Raises: Malformed.
    """
    # comm may hold spaces and parentheses: it ends at the last ')'.
    begin, end = record.find(b"("), record.rfind(b")")
    fields = record[end + 1 :].split()
    if begin < 0 or end < begin or len(fields) < 20:
        raise Malformed(path, _escaped(record))
    try:
        comm = record[begin + 1 : end].decode("utf-8", "surrogateescape")
        return ProcessStat(comm, int(fields[1]), bool(int(fields[6]) & _PF_EXITING), int(fields[19]))
    except ValueError as error:
        raise Malformed(path, _escaped(record)) from error


def parse_real_uid(record: bytes, path: str = "status") -> int:
    """The real user id from a /proc/PID/status.

    Raises: Malformed.
    """
    # The Name line escapes newlines, so that this cannot be forged by a comm.
    at = record.find(b"\nUid:")
    words = record[at + 5 : at + 64].split() if at >= 0 else []
    if not words or not words[0].isdigit():
        raise Malformed(path, _escaped(record))
    return int(words[0])


def parse_argv(record: bytes) -> tuple[str, ...]:
    """The arguments from a /proc/PID/cmdline; cut ones end in '…'."""
    cut = len(record) > _ARGV_CAP
    words = record[:_ARGV_CAP].removesuffix(b"\0").split(b"\0") if record else []
    argv = tuple(word.decode("utf-8", "surrogateescape") for word in words)
    return (*argv, "…") if cut else argv


def parse_cgroups(record: bytes, path: str = "cgroup") -> Mapping[str, str]:
    """The cgroup path in each hierarchy from a /proc/PID/cgroup: "" is version 2, others are version 1 controllers.

    Raises: Malformed.
    """
    found: dict[str, str] = {}
    for line in record.removesuffix(b"\n").split(b"\n"):  # not splitlines: a name may hold a carriage return
        _, first, rest = line.partition(b":")
        controllers, second, cgroup = rest.partition(b":")
        if not first or not second or not cgroup.startswith(b"/"):
            raise Malformed(path, _escaped(line))
        name = cgroup.decode("utf-8", "surrogateescape").removesuffix(_DELETED)
        for controller in controllers.decode("utf-8", "surrogateescape").split(","):
            found[controller] = name
    return found


def _read_exe(directory: int, path: str) -> str:
    try:
        return os.readlink("exe", dir_fd=directory).removesuffix(_DELETED)
    except FileNotFoundError:
        return ""  # a kernel thread or a zombie
    except PermissionError:
        return ""
    except OSError as error:
        raise translated(error, f"{path}/exe") from error


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise translated(error, path) from error


def _escaped(record: bytes) -> str:
    return record[:200].decode("utf-8", "backslashreplace")
