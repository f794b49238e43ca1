# SPDX-License-Identifier: Apache-2.0
"""What a policy wants: of a kernel parameter, of a resource limit, of a workload's place."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Union

from triaged.model.verdict import Severity


class Operator(str, Enum):
    """How the running value is compared with the wanted one."""

    AT_LEAST = "at-least"
    AT_MOST = "at-most"
    EQUALS = "equals"
    ONE_OF = "one-of"
    PRESENT = "present"


WantedValue = Union[int, str, tuple[Union[int, str], ...], None]


@dataclass(frozen=True)
class ParameterRequirement:
    """A policy's wish for one kernel parameter. `value` is None only with PRESENT.

    `exists_on` says on which kernels or distributions the parameter exists; a missing parameter is then no finding.
    `weakens` says what breaks or gets weaker when the wish is granted. `origin` is file:line of the entry.
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


@dataclass(frozen=True)
class PlacementRequirement:
    """Where processes of some workloads must not be. Patterns are glob patterns.

    `forbidden_slices` match the innermost slice; `allowed_units` are units in which they may be all the same.
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
