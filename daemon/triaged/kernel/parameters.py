# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters: files below /proc/sys, by their dotted names.

Hard facts:
- A name may be written with dots or with slashes; the first separator in it says which. After a dot a slash stands for a dot of
  the file's name (net.ipv4.conf.eth0/1.rp_filter is .../eth0.1/rp_filter), as in sysctl(8) and sysctl.d(5).
- Nothing notifies of a change. A file kept open and read with pread() costs 1.5 µs, opening it each time 6 µs (measured on 6.18).
- Who may read is judged by user and group id alone (fs/proc/proc_sysctl.c, test_perm): CAP_DAC_READ_SEARCH does not open what
  only root may read, such as net.core.bpf_jit_harden (measured on 6.18).
- /proc/sys/net is the network namespace of the reader, /proc/sys/user its user namespace.
"""
from __future__ import annotations

import os
from collections import OrderedDict

from triaged.errors import Gone, KernelError
from triaged.kernel.files import translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.sysctl_order import read_assignments

_VALUE_CAP = 65536
_KEPT = 256
_SWAP = str.maketrans("./", "/.")


def parameter_path(paths: KernelPaths, key: str) -> str:
    """The file of a parameter. Raises: KernelError for what cannot be the name of one."""
    first = next((character for character in key if character in "./"), "")
    path = key.translate(_SWAP) if first == "." else key
    if any(part in ("", ".", "..") or "\0" in part or "\n" in part for part in path.split("/")):
        raise KernelError(f"{paths.proc}/sys", f"{key[:100]!r} is not the name of a kernel parameter")
    return f"{paths.proc}/sys/{path}"


class ParameterReader:
    """Reads parameters again and again, through files kept open (at most 256 of them)."""

    def __init__(self, paths: KernelPaths) -> None:
        self._paths = paths
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, key: str) -> str:
        """The value as the kernel writes it, without the newline at its end.

        Raises: Gone if this kernel has no such parameter, NotPermitted, KernelError.
        """
        path = parameter_path(self._paths, key)
        descriptor = self._open.get(path)
        if descriptor is not None:
            try:
                return _text(os.pread(descriptor, _VALUE_CAP, 0))
            except OSError:
                self._forget(path)  # its module was unloaded, its interface removed; there may be a new one
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._open[path] = descriptor
            if len(self._open) > _KEPT:
                os.close(self._open.popitem(last=False)[1])
            return _text(os.pread(descriptor, _VALUE_CAP, 0))
        except OSError as error:
            self._forget(path)
            # A directory (kernel.keys) is the name of no parameter either.
            raise (Gone(path) if isinstance(error, (IsADirectoryError, NotADirectoryError)) else translated(error, path)) from error

    def _forget(self, path: str) -> None:
        descriptor = self._open.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Closes all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape").rstrip("\n")


def read_origin(paths: KernelPaths, key: str, value: str) -> str:
    """Where a parameter's running value comes from, in words.

    Source: the sysctl.d files in systemd-sysctl's order (`kernel.sysctl_order`). That nobody wrote the parameter cannot be
    seen: where no file sets it, the value is the kernel's default or was set at run time.
    """
    assignments = read_assignments(paths, key)
    if not assignments:
        return "no sysctl.d file sets it: the kernel's default, or set at run time"
    last = assignments[-1]
    if last.value.split() == value.split():
        beaten = f", over {', '.join(str(each) for each in assignments[:-1])}" if len(assignments) > 1 else ""
        return f"{last}{beaten}"
    return f"set at run time, not lasting: {last} sets {last.value} at boot"
