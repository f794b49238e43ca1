# SPDX-License-Identifier: Apache-2.0
"""Limits as the kernel gives them: a number, *unlimited*, or *unknown*; never one None for all three."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Union


class Unlimited(Enum):
    """The kernel says that there is no limit ("max", "unlimited", RLIM_INFINITY, the v1 memory maximum)."""

    UNLIMITED = "unlimited"

    def __str__(self) -> str:
        return "unlimited"


UNLIMITED = Unlimited.UNLIMITED


@dataclass(frozen=True)
class Unknown:
    """A value that could not be read, and why not."""

    why: str

    def __str__(self) -> str:
        return f"unknown ({self.why})"


Limit = Union[int, Unlimited, Unknown]


def is_finite(limit: Limit) -> bool:
    """Whether the limit is a number."""
    return isinstance(limit, int)
