# SPDX-License-Identifier: Apache-2.0
"""What a case needs of the machine it runs on, and whether it is there."""
from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

LANDLOCK_CREATE_RULESET, VERSION = 444, 1
LANDLOCK_WITH_PORTS = 4
TREE = Path(__file__).resolve()


def _value(name: str) -> int:
    """A kernel parameter's first number; -1 where there is none."""
    try:
        return int(Path("/proc/sys", name.replace(".", "/")).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return -1


def _landlock() -> int:
    return int(ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), VERSION))


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


# What is needed -> whether it is there, and what is missing.
NEEDS: Mapping[str, tuple[Callable[[], bool], str]] = {
    # No feature test: where pid_max is not the namespace's, writing it would change the machine's.
    "pid_max-of-namespace": (lambda: _release() >= (6, 14), "kernel.pid_max is the whole machine's before Linux 6.14"),
    "max_map_count": (lambda: _value("vm.max_map_count") < 68000, "vm.max_map_count is beyond what the test maps"),
    "no-huge-pages": (lambda: _value("vm.nr_hugepages") == 0, "this machine reserves huge pages, or knows none"),
    "core-files": (
        lambda: not Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")), "core files go elsewhere here"
    ),
    "cgroup-v1-devices": (lambda: os.path.exists("/sys/fs/cgroup/devices/devices.deny"), "no devices controller of version 1"),
    "cgroup-v1-cpuset": (lambda: os.path.exists("/sys/fs/cgroup/cpuset/cpuset.cpus"), "no cpuset controller of version 1"),
    "protected_hardlinks": (lambda: _value("fs.protected_hardlinks") == 1, "fs.protected_hardlinks is off"),
    "pipe-max-size": (lambda: 0 < _value("fs.pipe-max-size") < 4 << 20, "fs.pipe-max-size is 4 MiB or more"),
    "no-yama": (lambda: _value("kernel.yama.ptrace_scope") <= 0, "yama restricts ptrace()"),
    "perf_event_paranoid": (lambda: _value("kernel.perf_event_paranoid") >= 2, "kernel.perf_event_paranoid is below 2"),
    "unprivileged_bpf_disabled": (lambda: _value("kernel.unprivileged_bpf_disabled") > 0, "users may use bpf()"),
    "unprivileged_userfaultfd": (lambda: _value("vm.unprivileged_userfaultfd") == 0, "users may use userfaultfd()"),
    "inotify-instances": (lambda: 0 < _value("fs.inotify.max_user_instances") < 190, "more than 190 inotify instances a user"),
    "aio-max-nr": (lambda: 0 < _value("fs.aio-max-nr") < 100_000, "fs.aio-max-nr is 100,000 or more"),
    "landlock-net": (lambda: _landlock() >= LANDLOCK_WITH_PORTS, "Landlock here knows no ports"),
    "open-tree": (lambda: all(path.stat().st_mode & 1 for path in TREE.parents), "other users cannot enter the checkout"),
    "32-bit": (lambda: os.path.exists("/proc/sys/abi/vsyscall32"), "this kernel runs no 32-bit programs"),
    "gcc": (lambda: shutil.which("gcc") is not None, "no gcc"),
}


def missing(needs: tuple[str, ...]) -> str:
    """Why a case cannot run here, or "". Raises: KeyError for a need that nobody knows."""
    return "; ".join(NEEDS[need][1] for need in needs if not NEEDS[need][0]())
