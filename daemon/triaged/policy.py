# SPDX-License-Identifier: Apache-2.0
"""Policies: what a pack wants of the machine, and what several packs want together.

A policy is NAME.toml, found in the installed policies, /run/triaged/policies.d and /etc/triaged/policies.d: the last one found
counts, an empty one or a link to /dev/null masks the policy. NAME.toml.d/*.toml in any of them extends it: an entry with the same
key (a [[parameter]]'s `key`, a [[limit]]'s `resource`, a [[placement]]'s `workloads`) changes the fields that it names and keeps
the rest, `ignored = true` takes the entry out, and any other entry is new.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from triaged.config import SUFFIX, ConfigPaths, find_drop_ins, is_masked
from triaged.errors import ConfigError
from triaged.model.requirement import (
    Operator,
    ParameterRequirement,
    PlacementRequirement,
    ResourceLimitRequirement,
    WantedValue,
    range_of,
)
from triaged.model.verdict import Severity
from triaged.toml_document import Layer, Table, nearest, read_document

_KEY = re.compile(r"^[a-z0-9_-]+(\.[a-zA-Z0-9_/:@-]+)+$")
RESOURCES = (
    "AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS", "RTPRIO", "RTTIME",
    "SIGPENDING", "STACK",
)


class _SeverityName(str, Enum):
    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"
    INFO = "info"

    @property
    def severity(self) -> Severity:
        return Severity[self.name]


@dataclass(frozen=True)
class Policy:
    """One pack. `origin` is its main file."""

    name: str
    title: str
    parameters: tuple[ParameterRequirement, ...] = ()
    limits: tuple[ResourceLimitRequirement, ...] = ()
    placements: tuple[PlacementRequirement, ...] = ()
    origin: str = ""


@dataclass(frozen=True)
class Conflict:
    """Wishes of several policies that cannot be granted together. None of them is judged until a person decides."""

    subject: str
    wishes: tuple[str, ...]

    @property
    def summary(self) -> str:
        return (
            f"the policies disagree on {self.subject}: {'; '.join(self.wishes)}; it is not judged "
            "(leave one of the policies out, or decide in a drop-in of /etc/triaged/policies.d)"
        )


@dataclass(frozen=True)
class Policies:
    """Policies in force together: one requirement for each parameter, each resource of a workload, each workload's place."""

    policies: tuple[Policy, ...] = ()
    parameters: tuple[ParameterRequirement, ...] = ()
    limits: tuple[ResourceLimitRequirement, ...] = ()
    placements: tuple[PlacementRequirement, ...] = ()
    conflicts: tuple[Conflict, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(policy.name for policy in self.policies)


# Reading one pack


def _value(table: Table, operator: Operator) -> WantedValue:
    """The wanted value, held against its operator. Raises: ConfigError."""
    if operator is Operator.PRESENT:
        if "value" in table:
            raise table.error("'present' takes no value", "value")
        return None
    value = table.scalar_or_list("value")
    if operator is Operator.ONE_OF:
        if not isinstance(value, tuple) or not value:
            raise table.error("'one-of' takes an array of values", "value")
        return value
    if operator is Operator.BETWEEN:
        if isinstance(value, tuple) and len(value) == 2:
            low, high = value
            if isinstance(low, int) and isinstance(high, int) and low <= high:
                return value
        raise table.error("'between' takes an array of two integers, the smaller first", "value")
    if isinstance(value, tuple):
        raise table.error(f"{operator.value!r} takes one value, not an array", "value")
    if operator is Operator.AT_LEAST and not isinstance(value, int) and range_of(value) is None:
        raise table.error("'at-least' takes an integer, or a range such as \"32768 60999\"", "value")
    if operator is Operator.AT_MOST and not isinstance(value, int):
        raise table.error("'at-most' takes an integer", "value")
    return value


def _origin(table: Table) -> str:
    layer = table.layers[-1]
    return f"{layer.document.path}:{layer.document.line(layer.path)}"


def _why(table: Table) -> str:
    why = " ".join(table.string("why").split())
    if not why:
        raise table.error("'why' is empty: a wish without a reason helps nobody", "why")
    return why


def _parameter(policy: str, table: Table) -> ParameterRequirement:
    key = table.string("key")
    if not _KEY.match(key):
        raise table.error(f"{key!r} is not the dotted name of a kernel parameter", "key")
    operator = table.choice("operator", Operator)
    return ParameterRequirement(
        policy, key, operator, _value(table, operator),
        table.choice("severity", _SeverityName, _SeverityName.WARNING).severity, _why(table),
        workloads=table.strings("workloads", ()), references=table.strings("references", ()),
        exists_on=table.string("exists-on", ""), weakens=" ".join(table.string("weakens", "").split()), origin=_origin(table),
    )


def _workloads(table: Table) -> tuple[str, ...]:
    workloads = table.strings("workloads")
    if not workloads:
        raise table.error("'workloads' is empty: it would never be judged", "workloads")
    return workloads


def _limit(policy: str, table: Table) -> ResourceLimitRequirement:
    resource = table.string("resource")
    if resource not in RESOURCES:
        raise table.error(f"there is no resource {resource!r}", "resource", remedy=nearest(resource.upper(), RESOURCES))
    return ResourceLimitRequirement(
        policy, resource, table.integer("at-least", at_least=0),
        table.choice("severity", _SeverityName, _SeverityName.WARNING).severity, _why(table), workloads=_workloads(table),
        references=table.strings("references", ()), origin=_origin(table),
    )


def _placement(policy: str, table: Table) -> PlacementRequirement:
    # A list of a drop-in replaces the one before; `also-allowed-units` of every layer adds to it.
    also: list[str] = []
    for layer in table.layers:
        also += Table((layer,)).strings("also-allowed-units", ())
    return PlacementRequirement(
        policy, _workloads(table), table.strings("forbidden-slices"), (*table.strings("allowed-units", ()), *also),
        table.string("preferred-slice", ""), table.choice("severity", _SeverityName, _SeverityName.WARNING).severity,
        _why(table), origin=_origin(table),
    )


# Of each kind of entry: the key that tells what it is about, and the others.
_PARAMETER = ("key", "operator", "value", "severity", "why", "workloads", "references", "exists-on", "weakens", "ignored")
_LIMIT = ("resource", "at-least", "severity", "why", "workloads", "references", "ignored")
_PLACEMENT = (
    "workloads", "forbidden-slices", "allowed-units", "also-allowed-units", "preferred-slice", "severity", "why", "ignored",
)  # fmt: skip


def _identity(layer: Layer, key: str) -> str:
    """What an entry is about. Raises: ConfigError where it does not say."""
    table = Table((layer,))
    return " ".join(table.strings(key)) if key == "workloads" else table.string(key)


def _entries(table: Table, name: str, keys: Sequence[str]) -> list[Table]:
    """The entries of an array of tables, each with the layers that speak of the same thing; ignored ones are left out."""
    key = keys[0]
    found: dict[str, list[Layer]] = {}
    for layer in table.tables(name):
        Table((layer,)).expect(*keys)
        layers = found.setdefault(_identity(layer, key), [])
        if layers and layers[-1].document is layer.document:
            first = layers[-1].document.line(layers[-1].path)
            raise layer.error(f"a second [[{name}]] for the same {key}; the first is in line {first}", key)
        layers.append(layer)
    entries = [Table(tuple(layers)) for layers in found.values()]
    return [entry for entry in entries if not entry.boolean("ignored", False)]


def _read_policy(name: str, files: Sequence[str]) -> Policy:
    table = Table(tuple(Layer(document, (), document.data) for document in map(read_document, files)))
    table.expect("title", "parameter", "limit", "placement")
    return Policy(
        name, table.string("title"),
        tuple(_parameter(name, entry) for entry in _entries(table, "parameter", _PARAMETER)),
        tuple(_limit(name, entry) for entry in _entries(table, "limit", _LIMIT)),
        tuple(_placement(name, entry) for entry in _entries(table, "placement", _PLACEMENT)),
        files[0],
    )


def _directories(paths: ConfigPaths) -> list[str]:
    return [paths.data.policies, os.path.join(paths.run, "policies.d"), os.path.join(paths.etc, "policies.d")]


def policy_names(paths: ConfigPaths) -> tuple[str, ...]:
    """The names of all policies that can be asked for. Raises: ConfigError."""
    return tuple(os.path.basename(path).removesuffix(SUFFIX) for path in find_drop_ins(_directories(paths)))


def load_policy(paths: ConfigPaths, name: str) -> Policy:
    """One policy with its drop-ins. Raises: ConfigError (no such policy, masked, a mistake with file and line)."""
    directories = _directories(paths)
    main = next((path for path in (os.path.join(d, name + SUFFIX) for d in reversed(directories)) if os.path.lexists(path)), "")
    if not main or "/" in name or not name:
        raise ConfigError(
            os.path.join(directories[-1], name + SUFFIX), 0, f"there is no policy {name!r}", nearest(name, policy_names(paths))
        )
    if is_masked(main):
        raise ConfigError(main, 0, f"the policy {name!r} is masked", "leave it out of `policies`, or remove the mask")
    return _read_policy(name, [main, *find_drop_ins([os.path.join(d, name + SUFFIX + ".d") for d in directories])])


def load_policies(paths: ConfigPaths, names: Iterable[str]) -> Policies:
    """The named policies, combined. Raises: ConfigError."""
    return combine([load_policy(paths, name) for name in dict.fromkeys(names)])


# Combining


def _bounds(requirement: ParameterRequirement) -> tuple[int | None, int | None]:
    """The lowest and the highest number that a wish allows; None: no such bound."""
    value = requirement.value
    if requirement.operator is Operator.BETWEEN and isinstance(value, tuple):
        return int(value[0]), int(value[1])
    if isinstance(value, int):
        return (value, None) if requirement.operator is Operator.AT_LEAST else (None, value)
    return None, None


def _listed(requirement: ParameterRequirement) -> tuple[int | str, ...]:
    """The values that a wish lists one by one; () where it does not."""
    value = requirement.value
    if requirement.operator is Operator.ONE_OF and isinstance(value, tuple):
        return value
    return (value,) if requirement.operator is Operator.EQUALS and isinstance(value, (int, str)) else ()


def _strictest(one: ParameterRequirement, other: ParameterRequirement) -> ParameterRequirement | None:
    """A wish that grants both, or None if nothing does."""
    if one.operator is Operator.PRESENT or other.operator is Operator.PRESENT:
        return other if one.operator is Operator.PRESENT else one
    for first, second in ((one, other), (other, one)):
        listed = _listed(first)
        if listed:
            kept = tuple(value for value in listed if second.is_granted_by(str(value)))
            if kept == listed:
                return first
            if len(kept) == 1:
                return replace(first, operator=Operator.EQUALS, value=kept[0])
            return replace(first, operator=Operator.ONE_OF, value=kept) if kept else None
    ranges = [range_of(one.value), range_of(other.value)]
    if ranges[0] and ranges[1]:
        low, high = min(ranges[0][0], ranges[1][0]), max(ranges[0][1], ranges[1][1])
        kept_range = f"{low} {high}"
        return next((each for each in (one, other) if each.value == kept_range), replace(one, value=kept_range))
    for first, second, span in ((one, other, ranges[0]), (other, one, ranges[1])):
        if span:  # the other is about how many numbers the range holds
            return first if second.is_granted_by(str(first.value)) else None
    floor = max((low for low, _ in map(_bounds, (one, other)) if low is not None), default=None)
    ceiling = min((high for _, high in map(_bounds, (one, other)) if high is not None), default=None)
    for each in (one, other):
        if _bounds(each) == (floor, ceiling):
            return each
    if floor is None or ceiling is None or floor > ceiling:
        return None
    return replace(one, operator=Operator.BETWEEN, value=(floor, ceiling))


def _combine_parameter(wishes: Sequence[ParameterRequirement]) -> ParameterRequirement | Conflict:
    combined = wishes[0]
    for wanted in wishes[1:]:
        both = _strictest(combined, wanted)
        if both is None:
            return Conflict(wishes[0].key, tuple(f"{each.policy} wants {each.wish} ({each.origin})" for each in wishes))
        combined = both
    if len(wishes) == 1:
        return combined
    return replace(
        combined,
        policy="+".join(dict.fromkeys(each.policy for each in wishes)),
        severity=min(each.severity for each in wishes),
        includes=tuple(wishes),
    )


def _combine_placement(wishes: Sequence[PlacementRequirement], workload: str, conflicts: list[Conflict]) -> PlacementRequirement:
    preferred = list(dict.fromkeys(each.preferred_slice for each in wishes if each.preferred_slice))
    if len(preferred) > 1:
        said = tuple(f"{each.policy} prefers {each.preferred_slice} ({each.origin})" for each in wishes if each.preferred_slice)
        conflicts.append(Conflict(f"the slice of {workload}", said))
    return replace(
        wishes[0],
        policy="+".join(dict.fromkeys(each.policy for each in wishes)),
        workloads=(workload,),
        forbidden_slices=tuple(dict.fromkeys(name for each in wishes for name in each.forbidden_slices)),
        allowed_units=tuple(dict.fromkeys(name for each in wishes for name in each.allowed_units)),
        preferred_slice=preferred[0] if len(preferred) == 1 else "",
        severity=min(each.severity for each in wishes),
    )


def combine(policies: Sequence[Policy]) -> Policies:
    """The policies together. What they cannot agree on is a conflict, and is left out of what is judged."""
    parameters: dict[str, list[ParameterRequirement]] = {}
    limits: dict[tuple[str, str], ResourceLimitRequirement] = {}
    placements: dict[str, list[PlacementRequirement]] = {}
    for policy in policies:
        for parameter in policy.parameters:
            parameters.setdefault(parameter.key, []).append(parameter)
        for limit in policy.limits:
            for workload in limit.workloads:
                before = limits.get((limit.resource, workload))
                if before is None or before.at_least < limit.at_least:
                    limits[limit.resource, workload] = replace(limit, workloads=(workload,))
        for placement in policy.placements:
            for workload in placement.workloads:
                placements.setdefault(workload, []).append(placement)
    conflicts: list[Conflict] = []
    agreed = []
    for wishes in parameters.values():
        combined = _combine_parameter(wishes)
        if isinstance(combined, Conflict):
            conflicts.append(combined)
        else:
            agreed.append(combined)
    places = tuple(_combine_placement(wishes, workload, conflicts) for workload, wishes in placements.items())
    return Policies(tuple(policies), tuple(agreed), tuple(limits.values()), places, tuple(conflicts))
