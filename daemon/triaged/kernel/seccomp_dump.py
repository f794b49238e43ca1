# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters that are installed in a process, read out of the kernel.

Hard facts (kernel/seccomp.c seccomp_get_filter): CAP_SYS_ADMIN in the initial user namespace is needed, and the reader itself
must have no filter: a unit with SystemCallFilter=, RestrictNamespaces= or LockPersonality= cannot do it (EACCES). Index 0 is the
filter that was installed first (measured on 6.18; ptrace(2) says the opposite).
"""
from __future__ import annotations

import ctypes
import errno
import os
import struct
from threading import Thread

from triaged.errors import Gone, InterfaceMissing, KernelError, NotPermitted, TriagedError
from triaged.kernel import ptrace
from triaged.kernel.files import read_text, translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks
from triaged.model.filters import FilterDump, InstalledFilter

MAX_INSTRUCTIONS = 4096
_FLAG_LOG = 2
_MODES = {0: "none", 1: "strict", 2: "filter"}
_METADATA = struct.Struct("=QQ")


def read_seccomp_status(paths: KernelPaths, pid: int) -> tuple[str, int, bool]:
    """Mode ("none", "strict", "filter"), number of filters (-1 below 5.9), and whether no_new_privs is set. Needs no privilege.

    Source: /proc/PID/status, Seccomp, Seccomp_filters, NoNewPrivs. Raises: Gone, NotPermitted, InterfaceMissing.
    """
    path = f"{paths.proc}/{pid}/status"
    fields = dict(line.split(":\t", 1) for line in read_text(path).splitlines() if ":\t" in line)
    if "Seccomp" not in fields:
        raise InterfaceMissing(path, "has no Seccomp field", "the kernel was built without CONFIG_SECCOMP")
    mode = _MODES.get(int(fields["Seccomp"]), fields["Seccomp"])
    return mode, int(fields.get("Seccomp_filters", -1)), fields.get("NoNewPrivs", "0").strip() == "1"


def read_filters(paths: KernelPaths, pid: int, timeout_s: float = 1.0, start_ticks: int = 0) -> FilterDump:
    """Every filter of a thread, newest first. Stops it for a moment (about 0.2 ms; see benchmarks/seccomp_dump.py).

    With `start_ticks` exactly that process: Gone if the pid is another's by now.
    Source: PTRACE_SECCOMP_GET_FILTER, PTRACE_SECCOMP_GET_METADATA (ptrace(2)).
    Raises: Gone, NotPermitted, InterfaceMissing, KernelError.
    """
    mode, count, has_no_new_privileges = read_seccomp_status(paths, pid)
    _check_same(paths, pid, start_ticks)
    if mode != "filter":
        return FilterDump(pid, mode, (), has_no_new_privileges)
    if read_seccomp_status(paths, os.getpid())[0] != "none":
        raise NotPermitted(
            f"/proc/{pid}", "its filters may not be read: this process has a seccomp filter itself",
            "run without SystemCallFilter= and the other settings that load a filter (systemd.exec(5))",
        )
    if os.getpid() == pid:
        raise KernelError(f"/proc/{pid}", "a process cannot trace itself")
    result: list[FilterDump | TriagedError] = []

    def work() -> None:
        try:
            result.append(_dumped(paths, pid, count, has_no_new_privileges, timeout_s, start_ticks))
        except TriagedError as error:
            result.append(error)

    # In a thread of its own: whatever goes wrong, its end detaches.
    thread = Thread(target=work, name=f"seccomp-dump-{pid}")
    thread.start()
    thread.join()
    outcome = result[0] if result else KernelError(f"/proc/{pid}", "its filters could not be read")
    if isinstance(outcome, TriagedError):
        raise outcome
    return outcome


def _check_same(paths: KernelPaths, pid: int, start_ticks: int) -> None:
    if start_ticks and read_start_ticks(paths, pid) != start_ticks:
        raise Gone(f"{paths.proc}/{pid}")


def _dumped(
    paths: KernelPaths, pid: int, count: int, has_no_new_privileges: bool, timeout_s: float, start_ticks: int
) -> FilterDump:
    buffer = ctypes.create_string_buffer(MAX_INSTRUCTIONS * 8)
    found: list[InstalledFilter] = []
    with ptrace.Stopped(pid, timeout_s) as stopped:
        _check_same(paths, pid, start_ticks)  # while it is stopped, nobody else can have the pid
        while count < 0 or len(found) < count:
            try:
                length = ptrace.request(ptrace.SECCOMP_GET_FILTER, pid, len(found), buffer)
            except OSError as error:
                if error.errno == errno.ENOENT and found:
                    break
                raise _explained(error, pid) from error
            found.append(InstalledFilter(buffer.raw[: length * 8], _is_logged(pid, len(found))))
    return FilterDump(pid, "filter", tuple(reversed(found)), has_no_new_privileges, stopped.stopped_ns)


def _is_logged(pid: int, index: int) -> bool:
    metadata = ctypes.create_string_buffer(_METADATA.pack(index, 0), _METADATA.size)
    try:
        ptrace.request(ptrace.SECCOMP_GET_METADATA, pid, _METADATA.size, metadata)
    except OSError:
        return False  # below 4.16
    flags: int = _METADATA.unpack(metadata.raw)[1]
    return bool(flags & _FLAG_LOG)


def _explained(error: OSError, pid: int) -> KernelError:
    path = f"/proc/{pid}"
    if error.errno == errno.EACCES:
        return NotPermitted(path, "its filters may not be read", "run as root, in the initial user namespace")
    if error.errno == errno.EIO:
        return InterfaceMissing(path, "this kernel does not give filters out", "it needs CONFIG_CHECKPOINT_RESTORE")
    if error.errno == errno.EINVAL:
        return KernelError(path, "has no filter any more")
    if error.errno == errno.EMEDIUMTYPE:
        return KernelError(path, "has a filter that is not classic BPF")
    if error.errno == errno.ESRCH:
        return Gone(path)
    return translated(error, path)
