# SPDX-License-Identifier: Apache-2.0
"""What the kernel lets this process itself do."""
from __future__ import annotations

from triaged.kernel.files import read_bytes
from triaged.kernel.paths import KernelPaths

CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21


def has_capability(paths: KernelPaths, capability: int) -> bool:
    """Whether the calling process has an effective capability (its number in linux/capability.h).

    Source: CapEff of /proc/self/status. Raises: KernelError.
    """
    for line in read_bytes(f"{paths.proc}/self/status", 8192).splitlines():
        if line.startswith(b"CapEff:"):
            return bool(int(line[7:], 16) >> capability & 1)
    return False
