# SPDX-License-Identifier: Apache-2.0
"""What a policy wants: of a kernel parameter, of a resource limit, of a workload's place."""
from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Union

from triaged.model.cgroup import CgroupId
from triaged.model.verdict import Severity


class Operator(str, Enum):
    """How the running value is compared with the wanted one.

    Of a parameter that is a range ("32768 60999"), at-least and at-most mean how many numbers it holds, and at-least with a
    range means that the running one covers it.
    between wants a number from the first to the second of two, both included.
    """

    AT_LEAST = "at-least"
    AT_MOST = "at-most"
    BETWEEN = "between"
    EQUALS = "equals"
    ONE_OF = "one-of"
    PRESENT = "present"


_INTEGER = re.compile(r"^-?\d+$")
_RANGE = re.compile(r"^(\d+)\s+(\d+)$")

WantedValue = Union[int, str, tuple[Union[int, str], ...], None]


@dataclass(frozen=True)
class ParameterRequirement:
    """A policy's wish for one kernel parameter. `value` is None only with PRESENT.

    `exists_on` says on which kernels or distributions the parameter exists; a missing parameter is then no finding.
    `weakens` says what breaks or gets weaker when the wish is granted. `origin` is file:line of the entry.
    `includes` are the wishes of several policies that this one stands for; granting it grants each of them.
    """

    policy: str
    key: str
    operator: Operator
    value: WantedValue
    severity: Severity
    why: str
    workloads: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    exists_on: str = ""
    weakens: str = ""
    origin: str = ""
    includes: tuple[ParameterRequirement, ...] = ()

    @property
    def wish(self) -> str:
        """The wish in words: "at least 4096", "one of 0, 1", "to exist"."""
        value = self.value
        if self.operator is Operator.PRESENT:
            return "to exist"
        if isinstance(value, tuple):
            if self.operator is Operator.BETWEEN:
                return f"between {value[0]} and {value[1]}"
            return f"one of {', '.join(str(item) for item in value)}"
        if range_of(value) and self.operator is Operator.AT_LEAST:
            return f"a range that covers {value}"
        return {Operator.AT_LEAST: f"at least {value}", Operator.AT_MOST: f"at most {value}"}.get(self.operator, str(value))

    def is_granted_by(self, running: str) -> bool | None:
        """Whether the running value, as the kernel wrote it, grants the wish; None where the two cannot be compared."""
        text = " ".join(running.split())
        value = self.value
        if self.operator is Operator.PRESENT:
            return True
        if self.operator is Operator.EQUALS:
            return text == str(value)
        if self.operator is Operator.ONE_OF:
            return isinstance(value, tuple) and text in {str(item) for item in value}
        wanted, have = range_of(value), range_of(text)
        if self.operator is Operator.AT_LEAST and wanted:
            return have[0] <= wanted[0] and wanted[1] <= have[1] if have else None
        if have:
            number = have[1] - have[0] + 1
        elif _INTEGER.match(text):
            number = int(text)
        else:
            return None
        if self.operator is Operator.BETWEEN and isinstance(value, tuple):
            return int(value[0]) <= number <= int(value[1])
        if isinstance(value, int):
            return number >= value if self.operator is Operator.AT_LEAST else number <= value
        return None


def range_of(value: WantedValue) -> tuple[int, int] | None:
    """The two numbers of a range ("32768 60999", however the kernel separates them), or None."""
    match = _RANGE.match(value) if isinstance(value, str) else None
    return (int(match.group(1)), int(match.group(2))) if match else None


@dataclass(frozen=True)
class ResourceLimitRequirement:
    """A policy's wish for the processes of some workloads: the hard limit of RLIMIT_`resource` is at least `at_least`."""

    policy: str
    resource: str
    at_least: int
    severity: Severity
    why: str
    workloads: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    origin: str = ""


_SYSTEM_SLICES = ("system.slice", "system-*.slice")


@dataclass(frozen=True)
class PlacementRequirement:
    """Where processes of some workloads must not be. Patterns are glob patterns.

    It speaks of the machine's own tree: of use only where systemd runs and the observer sees the whole tree (in a
    container's cgroup namespace every path begins at "/"). `forbidden_slices` match the innermost slice;
    `allowed_units` are units in which they may be all the same.
    `preferred_slice` is where they belong.
    """

    policy: str
    workloads: tuple[str, ...]
    forbidden_slices: tuple[str, ...]
    allowed_units: tuple[str, ...] = ()
    preferred_slice: str = ""
    severity: Severity = Severity.WARNING
    why: str = ""
    origin: str = ""

    def forbids(self, cgroup: CgroupId) -> bool:
        """Whether it minds the slice, or the unit by name, and does not allow the unit all the same.

        Allowed units are so among the system's services only: systemd-run calls its units run-*.scope in whatever slice, and one in
        default.slice is in the wrong place whatever it is called.
        """
        named = any(fnmatchcase(name, pattern) for name in (cgroup.slice, cgroup.unit) for pattern in self.forbidden_slices)
        is_of_the_system = any(fnmatchcase(cgroup.slice, pattern) for pattern in _SYSTEM_SLICES)
        return named and not (is_of_the_system and any(fnmatchcase(cgroup.unit, pattern) for pattern in self.allowed_units))
