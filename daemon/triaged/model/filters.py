# SPDX-License-Identifier: Apache-2.0
"""The seccomp filters of a process, as they were read out of the kernel."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InstalledFilter:
    """One filter: its instructions (`struct sock_filter`, packed) and whether it was loaded with SECCOMP_FILTER_FLAG_LOG."""

    instructions: bytes
    is_logged: bool


@dataclass(frozen=True)
class FilterDump:
    """The filters of a thread, newest first, and how long it stood still for that (`stopped_ns`, 0 if there were none).

    `mode` is "none", "strict" or "filter".
    """

    pid: int
    mode: str
    filters: tuple[InstalledFilter, ...] = ()
    has_no_new_privileges: bool = False
    stopped_ns: int = 0
