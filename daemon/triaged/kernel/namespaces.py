# SPDX-License-Identifier: Apache-2.0
"""Whether this process sees the machine or only a part of it."""
from __future__ import annotations

import os

from triaged.kernel.paths import KernelPaths

# include/linux/proc_ns.h: the first namespaces have fixed inodes. (The network's is fixed only since 6.18.)
_INITIAL = {"cgroup": 0xEFFFFFFB, "pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}


def is_initial_namespace(paths: KernelPaths, kind: str) -> bool:
    """Whether the caller is in the machine's first namespace of `kind` (cgroup, pid, user).

    A kernel without namespaces of that kind has only one. Source: /proc/self/ns/KIND (namespaces(7)).
    """
    link = _read_link(f"{paths.proc}/self/ns/{kind}")
    return link is None or link == f"{kind}:[{_INITIAL[kind]}]"


def shares_network_with_init(paths: KernelPaths) -> bool | None:
    """Whether the caller is in the network namespace of process 1; None where that may not be read.

    In the first pid namespace process 1 is the machine's own.
    """
    own, init = _read_link(f"{paths.proc}/self/ns/net"), _read_link(f"{paths.proc}/1/ns/net")
    return None if own is None or init is None else own == init


def read_namespace(paths: KernelPaths, kind: str) -> str | None:
    """The caller's own namespace of `kind`, as "user:[4026531837]"; None where this kernel has none."""
    return _read_link(f"{paths.proc}/self/ns/{kind}")


def _read_link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
