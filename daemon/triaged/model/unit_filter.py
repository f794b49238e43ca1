# SPDX-License-Identifier: Apache-2.0
"""Which system calls triaged adds to the SystemCallFilter= of a unit: single calls by name, never those that change the host."""
from __future__ import annotations

import re

SETTING = "SystemCallFilter"
MOST_CALLS = 32
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
# systemd's groups @module, @reboot, @swap, @raw-io and @clock, and what switches off accounting or the root: no test needs them.
NEVER_ADDED = frozenset({
    "acct", "adjtimex", "clock_adjtime", "clock_adjtime64", "clock_settime", "clock_settime64", "create_module", "delete_module",
    "finit_module", "get_kernel_syms", "init_module", "ioperm", "iopl", "kexec_file_load", "kexec_load", "nfsservctl",
    "pciconfig_iobase", "pciconfig_read", "pciconfig_write", "pivot_root", "query_module", "quotactl", "quotactl_fd", "reboot",
    "s390_pci_mmio_read", "s390_pci_mmio_write", "settimeofday", "stime", "swapoff", "swapon", "syslog", "umount2",
})


def added_calls(value: str) -> tuple[str, ...]:
    """The calls that a value adds, sorted. Raises: ValueError, with the reason, where triaged does not add that."""
    words = value.split(" ")
    if len(words) > MOST_CALLS:
        raise ValueError(f"more than {MOST_CALLS} calls")
    for word in words:
        if not _NAME.fullmatch(word):
            raise ValueError("names of system calls with a space between, no groups and no ~")
        if word in NEVER_ADDED:
            raise ValueError(f"triaged does not add {word}")
    return tuple(sorted(set(words)))


def is_addable(call: str) -> bool:
    """Whether triaged would add the call to a unit's filter."""
    return bool(_NAME.fullmatch(call)) and call not in NEVER_ADDED
