# SPDX-License-Identifier: Apache-2.0
"""All that bounds one process, read in one go: about 30 small files, so that it can be judged when the process is long gone.

Hard facts:
- One descriptor of /proc/PID is held over all reads: whatever is read below it is the same process's, or fails.
- Of a zombie limits, ids and cgroups can still be read; its memory, files and mappings are gone.
- Another user's ns/, root, cwd, fd/, maps and environ need CAP_SYS_PTRACE; status, limits and mountinfo do not.
- /proc/PID/environ is the environment at exec, not what the process made of it.
"""
from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from triaged.errors import Gone, KernelError, Malformed
from triaged.kernel.files import read_at, translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import ProcessStat, parse_argv, parse_cgroups, parse_stat
from triaged.kernel.resource_limits import parse_resource_limits
from triaged.kernel.seccomp_dump import read_filters
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.process_state import Bounds, Credentials, Mount, ProcessState

T = TypeVar("T")

_CAP = 1 << 16
_ARGV_CAP = 2049
_MOUNTS_CAP = 4 << 20
_ENVIRONMENT_CAP = 1 << 18
_MAPS_PIECE = 1 << 18
_DELETED = " (deleted)"
_SECCOMP_MODES = {"0": "none", "1": "strict", "2": "filter"}
_OCTAL = re.compile(r"\\([0-7]{3})")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def read_process_state(
    paths: KernelPaths,
    pid: int,
    *,
    identity: ProcessIdentity | None = None,
    with_filters: bool = False,
    with_mappings: bool = True,
) -> ProcessState:
    """Everything that bounds a process now. What may not be read is Unknown, or empty, and costs nothing else.

    `identity` is who it is known to be: its workload and CI job are kept. `with_filters` stops it for a moment (`seccomp_dump`);
    `with_mappings` counts its mappings, 1 ms for every 2,000 or so.
    Source: /proc/PID/{stat,status,limits,cgroup,cmdline,exe,ns,uid_map,gid_map,mountinfo,root,cwd,fd,maps,environ,attr/current}.
    Raises: Gone if there is no such process, or `identity` was another one with the same pid; NotPermitted (hidepid); Malformed.
    """
    path = f"{paths.proc}/{pid}"
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise translated(error, path) from error
    try:
        state = _read_all(directory, path, pid, identity, with_mappings)
    finally:
        os.close(directory)
    return replace(state, filters=_read_filters(paths, pid)) if with_filters else state


def _read_all(directory: int, path: str, pid: int, known: ProcessIdentity | None, with_mappings: bool) -> ProcessState:
    record = read_at(directory, path, "stat", _CAP)
    stat = parse_stat(record, f"{path}/stat")
    if known is not None and known.start_ticks and known.start_ticks != stat.start_ticks:
        raise Gone(path)
    fields = parse_status_fields(read_at(directory, path, "status", _CAP))
    credentials = _attempt(lambda: parse_credentials(fields, f"{path}/status"))
    limits = _attempt(lambda: parse_resource_limits(_text(directory, path, "limits"), f"{path}/limits"))
    bounds: Mapping[str, Bounds] = {}
    if not isinstance(limits, Unknown):
        bounds = {name: (limit.soft, limit.hard) for name, limit in limits.items()}
    mounts = _attempt(lambda: parse_mountinfo(_text(directory, path, "mountinfo", _MOUNTS_CAP), f"{path}/mountinfo"))
    environment = _attempt(lambda: parse_environment(read_at(directory, path, "environ", _ENVIRONMENT_CAP)))
    mappings: int | Unknown = Unknown("not counted")
    if with_mappings:
        mappings = _attempt(lambda: _count_lines(directory, path, "maps"))
    return ProcessState(
        identity=_identity(directory, path, pid, stat, fields, known),
        credentials=credentials,
        limits=bounds,
        namespaces=_read_namespaces(directory),
        uid_map=_optional(directory, path, "uid_map"),
        gid_map=_optional(directory, path, "gid_map"),
        mounts=() if isinstance(mounts, Unknown) else mounts,
        root=_link(directory, "root") or "/",
        directory=_link(directory, "cwd").removesuffix(_DELETED),
        umask=_number(fields, "Umask", path, 8),
        threads=_number(fields, "Threads", path),
        open_files=_attempt(lambda: _count_files(directory, path)),
        mappings=mappings,
        address_space_bytes=_kilobytes(fields, "VmSize", path),
        locked_bytes=_kilobytes(fields, "VmLck", path),
        data_bytes=_kilobytes(fields, "VmData", path),
        cpu_time_s=_cpu_time(record, path),
        pending_signals=_number(fields, "SigQ", path),
        cpus_allowed=_cpus(fields, path),
        seccomp_mode=_seccomp_mode(fields, path),
        lsm_label=_optional(directory, path, "attr/current").rstrip("\0\n"),
        environment={} if isinstance(environment, Unknown) else environment,
        time_usec=time.time_ns() // 1000,
    )


def _identity(
    directory: int, path: str, pid: int, stat: ProcessStat, fields: Mapping[str, str], known: ProcessIdentity | None
) -> ProcessIdentity:
    argv = _attempt(lambda: parse_argv(read_at(directory, path, "cmdline", _ARGV_CAP)))
    cgroups = _attempt(lambda: parse_cgroups(read_at(directory, path, "cgroup", 1 << 17), f"{path}/cgroup"))
    uid = fields.get("Uid", "").partition("\t")[0]
    now = ProcessIdentity(
        pid, stat.start_ticks, stat.ppid, int(uid) if uid.isdecimal() else -1, stat.comm,
        _link(directory, "exe").removesuffix(_DELETED), () if isinstance(argv, Unknown) else argv,
        {} if isinstance(cgroups, Unknown) else cgroups,
    )
    if stat.is_exiting and len(now.cgroups) > 1:
        now = replace(now, cgroups={})  # version 1 shows "/" for whoever is exiting
    if known is None:
        return now
    return replace(
        now, workload=known.workload, ci_job=known.ci_job, exe=now.exe or known.exe, argv=now.argv or known.argv,
        cgroups=now.cgroups or known.cgroups,
    )


def parse_status_fields(record: bytes) -> dict[str, str]:
    """The fields of a /proc/PID/status as text, by name. (The Name line escapes newlines: no comm can forge another.)"""
    out = {}
    for line in record.decode("utf-8", "surrogateescape").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            out[name] = value.strip()
    return out


def parse_credentials(fields: Mapping[str, str], path: str = "status") -> Credentials:
    """The ids and capabilities among the fields of a /proc/PID/status.

    Raises: Malformed.
    """
    try:
        uids, gids = _four(fields["Uid"]), _four(fields["Gid"])
        inheritable, permitted, effective, bounding = (int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd"))
        return Credentials(
            uids, gids, tuple(int(word) for word in fields.get("Groups", "").split()), inheritable, permitted, effective, bounding,
            int(fields.get("CapAmb", "0"), 16), fields.get("NoNewPrivs") == "1",
        )
    except (KeyError, ValueError) as error:
        raise Malformed(path, str(error), "its ids or capabilities cannot be parsed") from error


def parse_mountinfo(text: str, path: str = "mountinfo") -> tuple[Mount, ...]:
    """The mounts of a /proc/PID/mountinfo, in its order (proc_pid_mountinfo(5)).

    Raises: Malformed.
    """
    found = []
    for line in text.split("\n"):
        if not line:
            continue
        head, separator, tail = line.partition(" - ")
        first, last = head.split(" "), tail.split(" ")
        if not separator or len(first) < 6 or len(last) < 3 or not first[0].isdecimal():
            raise Malformed(path, line)
        found.append(Mount(
            int(first[0]), first[2], _unescaped(first[3]), _unescaped(first[4]), frozenset(first[5].split(",")), last[0],
            _unescaped(last[1]), frozenset(last[2].split(",")), int(first[1]) if first[1].isdecimal() else 0,
        ))
    return tuple(found)


def parse_environment(record: bytes) -> dict[str, str]:
    """The variables of a /proc/PID/environ. What is no assignment is left out; of two of one name the first counts (getenv(3))."""
    out: dict[str, str] = {}
    for entry in record.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name:
            out.setdefault(name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
    return out


def parse_cpu_mask(text: str, path: str = "status") -> int:
    """How many CPUs a mask such as "ffffffff,0000000f" holds.

    Raises: Malformed.
    """
    try:
        return bin(int(text.replace(",", ""), 16)).count("1")
    except ValueError as error:
        raise Malformed(path, text) from error


def _four(text: str) -> tuple[int, int, int, int]:
    real, effective, saved, file_system = (int(word) for word in text.split())
    return real, effective, saved, file_system


def _attempt(read: Callable[[], T]) -> T | Unknown:
    try:
        return read()
    except KernelError as error:
        return Unknown(str(error))


def _text(directory: int, path: str, name: str, cap: int = _CAP) -> str:
    return read_at(directory, path, name, cap).decode("utf-8", "surrogateescape")


def _optional(directory: int, path: str, name: str) -> str:
    """A file that some kernels do not have, or do not let be read ("" then)."""
    text = _attempt(lambda: _text(directory, path, name))
    return "" if isinstance(text, Unknown) else text


def _link(directory: int, name: str) -> str:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return ""  # another user's, a zombie's


def _read_namespaces(directory: int) -> dict[str, str]:
    # Not listed but asked for by name: half the system calls.
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
    found = {kind: _link(directory, f"ns/{kind}") for kind in kinds}
    return {kind: link for kind, link in found.items() if link}


def _number(fields: Mapping[str, str], name: str, path: str, base: int = 10) -> int | Unknown:
    if name not in fields:
        return Unknown(f"{path}/status has no {name}")
    try:
        return int(fields[name].partition("/")[0], base)
    except ValueError:
        return Unknown(f"{path}/status: {name} is {fields[name][:40]!r}")


def _kilobytes(fields: Mapping[str, str], name: str, path: str) -> int | Unknown:
    words = fields.get(name, "").split()
    if len(words) != 2 or not words[0].isdecimal():
        return Unknown(f"{path}/status has no {name}")
    return int(words[0]) * 1024


def _cpus(fields: Mapping[str, str], path: str) -> int | Unknown:
    if "Cpus_allowed" not in fields:
        return Unknown(f"{path}/status has no Cpus_allowed")
    return _attempt(lambda: parse_cpu_mask(fields["Cpus_allowed"], f"{path}/status"))


def _seccomp_mode(fields: Mapping[str, str], path: str) -> str | Unknown:
    if "Seccomp" not in fields:
        return Unknown(f"{path}/status has no Seccomp: the kernel was built without it")
    return _SECCOMP_MODES.get(fields["Seccomp"], fields["Seccomp"])


def _cpu_time(stat: bytes, path: str) -> float | Unknown:
    words = stat[stat.rfind(b")") + 1 :].split()[11:13]
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return Unknown(f"{path}/stat has no CPU time")
    return sum(int(word) for word in words) / _TICKS_PER_S


def _count_files(directory: int, path: str) -> int:
    """How many descriptors are open. Since Linux 6.2 the directory's size says so; before, it is 0."""
    try:
        size = os.stat("fd", dir_fd=directory).st_size
        if size:
            return size
        descriptor = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            return len(os.listdir(descriptor))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise translated(error, f"{path}/fd") from error


def _count_lines(directory: int, path: str, name: str) -> int:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            return sum(part.count(b"\n") for part in iter(lambda: os.read(descriptor, _MAPS_PIECE), b""))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise translated(error, f"{path}/{name}") from error


def _read_filters(paths: KernelPaths, pid: int) -> tuple[bytes, ...] | Unknown:
    try:
        return tuple(each.instructions for each in read_filters(paths, pid).filters)
    except KernelError as error:
        return Unknown(error.shown())


def _unescaped(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match.group(1), 8)), field) if "\\" in field else field
