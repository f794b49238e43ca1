# SPDX-License-Identifier: Apache-2.0
"""Where the kernel's files are. Every reader hangs on one of these, so that a test can point it at a fixture tree."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelPaths:
    """The roots of the kernel's file systems and of the configuration that speaks about them. No trailing slashes.

    `cgroup` is where the cgroup hierarchies are mounted (cgroup2 itself, or the tmpfs above version 1's controllers).
    """

    proc: str = "/proc"
    sys: str = "/sys"
    cgroup: str = "/sys/fs/cgroup"
    dev: str = "/dev"
    etc: str = "/etc"
    run: str = "/run"
    usr_lib: str = "/usr/lib"
    tracing: str = "/sys/kernel/tracing"

    @staticmethod
    def below(root: str) -> KernelPaths:
        """The same tree below another root (a fixture, a container's root)."""
        root = root.rstrip("/")
        return KernelPaths(
            *(root + path for path in (
                "/proc", "/sys", "/sys/fs/cgroup", "/dev", "/etc", "/run", "/usr/lib", "/sys/kernel/tracing",
            ))
        )
