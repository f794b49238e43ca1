# SPDX-License-Identifier: Apache-2.0
"""Policies held against this machine, item by item: `triagectl check` and D-Bus CheckPolicy."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from triaged.errors import Gone, KernelError
from triaged.kernel.parameters import ParameterReader, parameter_path, read_origin
from triaged.kernel.paths import KernelPaths
from triaged.kernel.resource_limits import read_resource_limits
from triaged.model.limit import Unlimited
from triaged.model.requirement import Operator, ParameterRequirement, ResourceLimitRequirement
from triaged.policy import Policies


class Outcome(str, Enum):
    """pass, fail; unknown: could not be read or compared; absent: this kernel has no such parameter, so nothing is wrong with it.

    conflict: the policies asked for do not agree, so that there is nothing to hold the value against.
    """

    PASS = "pass"
    FAIL = "fail"
    UNKNOWN = "unknown"
    ABSENT = "absent"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Item:
    """One wish and what is the case. `value` is the running value as the kernel writes it, or "". `origin`: where it comes from.

    `wanted_by` is the policy, `entry` the file and line of the wish, `why` its reason, `weakens` what it costs.
    `detail` says why an outcome is unknown, absent or a conflict.
    """

    subject: str
    outcome: Outcome
    wish: str
    value: str = ""
    origin: str = ""
    severity: str = ""
    wanted_by: str = ""
    entry: str = ""
    why: str = ""
    weakens: str = ""
    detail: str = ""


    def as_row(self) -> Mapping[str, str]:
        """The item as D-Bus gives it: WantedBy for wanted_by, and so on."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            "".join(part.capitalize() for part in name.split("_")): value.value if isinstance(value, Outcome) else str(value)
            for name, value in values.items()
        }


ReadParameter = Callable[[str], str]


def check(
    policies: Policies, paths: KernelPaths, *, pid: int = 0, read: ReadParameter | None = None, network: str = ""
) -> Iterator[Item]:
    """Each item of the policies, in their order; conflicts last. Resource limits are judged for the process `pid`, if one is given.

    `read` reads a parameter in the place that is meant; this one's by default. `network` names the network namespace
    in which it reads net.*, '' if it is this one.
    """
    read = read or ParameterReader(paths).read
    for wanted in policies.parameters:
        yield _parameter(wanted, paths, read, network if wanted.key.startswith("net.") else "")
    for limit in policies.limits:
        yield _limit(limit, paths, pid)
    for conflict in policies.conflicts:
        yield Item(conflict.subject, Outcome.CONFLICT, " / ".join(conflict.wishes), detail=conflict.summary)


def _parameter(wanted: ParameterRequirement, paths: KernelPaths, read: ReadParameter, network: str) -> Item:
    def item(outcome: Outcome, value: str = "", origin: str = "", detail: str = "") -> Item:
        return Item(
            wanted.key, outcome, wanted.wish, value, origin, wanted.severity.word, wanted.policy, wanted.origin, wanted.why,
            wanted.weakens, detail,
        )

    try:
        value = " ".join(read(wanted.key).split())
    except Gone:
        if wanted.operator is Operator.PRESENT:
            return item(Outcome.FAIL, detail=f"there is no {parameter_path(paths, wanted.key)}")
        where = f" (it exists on {wanted.exists_on})" if wanted.exists_on else ""
        what = f"{network} has no such parameter" if network else "this kernel has no such parameter"
        return item(Outcome.ABSENT, detail=f"{what}{where}")
    except KernelError as error:
        return item(Outcome.UNKNOWN, detail=error.shown())
    origin = f"{network}, which files of sysctl.d do not reach" if network else read_origin(paths, wanted.key, value)
    granted = wanted.is_granted_by(value)
    if granted is None:
        return item(Outcome.UNKNOWN, value, origin, f"{value!r} cannot be compared with {wanted.wish}")
    return item(Outcome.PASS if granted else Outcome.FAIL, value, origin)


def _limit(wanted: ResourceLimitRequirement, paths: KernelPaths, pid: int) -> Item:
    name = f"RLIMIT_{wanted.resource}"

    def item(outcome: Outcome, value: str = "", detail: str = "") -> Item:
        origin = f"/proc/{pid}/limits" if value else ""
        wish = f"hard limit at least {wanted.at_least}"
        return Item(
            name, outcome, wish, value, origin, wanted.severity.word, wanted.policy, wanted.origin, wanted.why, detail=detail
        )

    if not pid:
        return item(Outcome.UNKNOWN, detail="a limit of processes; name one with --pid")
    try:
        limit = read_resource_limits(paths, pid)[wanted.resource].hard
    except KernelError as error:
        return item(Outcome.UNKNOWN, detail=error.shown())
    except KeyError:
        return item(Outcome.ABSENT, detail="this kernel shows no such limit")
    is_enough = isinstance(limit, Unlimited) or (isinstance(limit, int) and limit >= wanted.at_least)
    return item(Outcome.PASS if is_enough else Outcome.FAIL, str(limit))
