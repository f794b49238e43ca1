# SPDX-License-Identifier: Apache-2.0
"""How fast a cgroup may read and write a device, and how fast it did."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IoLimit:
    """One limit of io.max: `what` as there (rbps, wbps, riops, wiops), of `device` ("/dev/vda", or major:minor).

    Units: bytes or operations per second. `done` is what was done during the look.
    """

    device: str
    what: str
    per_s: int
    done: int

    @property
    def words(self) -> str:
        """The limit for people: "1048576 bytes/s written"."""
        unit = "bytes/s" if self.what.endswith("bps") else "operations/s"
        return f"{self.per_s} {unit} {'read' if self.what.startswith('r') else 'written'}"

    def share(self, interval_usec: int) -> float:
        """How much of it was used: 1.0 for all."""
        return self.done / (self.per_s * interval_usec / 1_000_000) if self.per_s > 0 else 1.0
