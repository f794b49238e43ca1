# SPDX-License-Identifier: Apache-2.0
"""Numbers and names as a person reads them in a verdict."""
from __future__ import annotations

from triaged.model.limit import Limit, Unknown, Unlimited
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown


def count(number: int) -> str:
    """63512 as "63,512"."""
    return f"{number:,}"


def size(number: float) -> str:
    """Bytes with a binary prefix: 67108864 as "64 MiB"."""
    for prefix in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.4g} {prefix}"
        number /= 1024
    return f"{number:.4g} TiB"


def bound(limit: Limit, is_bytes: bool = False) -> str:
    """A limit: a number, "unlimited", or why it is not known."""
    if isinstance(limit, (Unlimited, Unknown)):
        return str(limit)
    return size(limit) if is_bytes else count(limit)


def free(used: int, limit: int, is_bytes: bool = False) -> str:
    """What is left of a limit: "63,512 free"."""
    left = max(limit - used, 0)
    return f"{size(left) if is_bytes else count(left)} free"


def who(process: ProcessState | None) -> str:
    """A process as the subject of a sentence: "process 12 (worker.test)"."""
    if process is None:
        return "the process"
    name = shown(process.identity.comm or process.identity.exe.rsplit("/", 1)[-1])
    return f"process {process.identity.pid}" + (f" ({name})" if name else "")
