# SPDX-License-Identifier: Apache-2.0
"""Pressure stall information: the time that tasks lost waiting for CPU, memory or I/O.

Hard facts:
- /proc/pressure is the host's; a cgroup has its own files on version 2 only. On the hybrid layout version 2's tree has them too,
  without a controller.
- `cpu` of the host has a `full` line of zeros since 5.13; in a cgroup it counts the time in which every runnable task waited:
  a used-up quota shows there.
- Off with psi=0 on the kernel's command line (the file is absent) or by cgroup.pressure (reading it fails with EOPNOTSUPP).
"""
from __future__ import annotations

from dataclasses import dataclass

from triaged.errors import Malformed
from triaged.kernel.files import read_text


@dataclass(frozen=True)
class Pressure:
    """One pressure file. Totals in µs since the cgroup was made; averages in % of the last 10 s.

    `some`: at least one task waited. `full`: none could run (0 where the kernel has no such line).
    """

    some_usec: int
    full_usec: int
    some_avg10: float
    full_avg10: float


def read_pressure(path: str) -> Pressure:
    """A pressure file.

    Source: /proc/pressure/*, *.pressure (Documentation/accounting/psi.rst).
    Raises: Gone where there is none, InterfaceMissing where it is switched off, NotPermitted, Malformed.
    """
    return parse_pressure(read_text(path, 4096), path)


def parse_pressure(text: str, path: str = "pressure") -> Pressure:
    """The text of a pressure file. Raises: Malformed."""
    averages = {"some": 0.0, "full": 0.0}
    totals = {"some": 0, "full": 0}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        fields = dict(word.split("=", 1) for word in rest.split() if "=" in word)
        if kind not in totals:
            raise Malformed(path, line)
        try:
            averages[kind], totals[kind] = float(fields["avg10"]), int(fields["total"])
        except (KeyError, ValueError) as error:
            raise Malformed(path, line) from error
    if not text.startswith("some "):
        raise Malformed(path, text)
    return Pressure(totals["some"], totals["full"], averages["some"], averages["full"])
