# SPDX-License-Identifier: Apache-2.0
"""Profiles as Docker, Podman, containerd, CRI-O and Kubernetes' localhostProfile have them: OCI JSON, read and written.

Sources: OCI runtime-spec, config-linux.md "Seccomp"; moby profiles/seccomp (includes, excludes, archMap, minKernel), runc
libcontainer/seccomp (rules that equal the default are left out; two conditions on one argument become two rules; with a
denying default other than ENOSYS, calls newer than the newest that the profile names get ENOSYS), containers/common (errno names).
"""
from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from triaged.errors import ConfigError
from triaged.seccomp.action import ENOSYS, Action, ActionKind
from triaged.seccomp.policy import ArchPolicy, Branch, Condition, Policy
from triaged.seccomp.syscalls import number_of

MAX_BYTES = 4 << 20
_ACTIONS = {
    "SCMP_ACT_KILL": ActionKind.KILL_THREAD, "SCMP_ACT_KILL_THREAD": ActionKind.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": ActionKind.KILL_PROCESS, "SCMP_ACT_TRAP": ActionKind.TRAP, "SCMP_ACT_ERRNO": ActionKind.ERRNO,
    "SCMP_ACT_NOTIFY": ActionKind.USER_NOTIF, "SCMP_ACT_TRACE": ActionKind.TRACE, "SCMP_ACT_LOG": ActionKind.LOG,
    "SCMP_ACT_ALLOW": ActionKind.ALLOW,
}
_ACTION_NAMES = {kind: name for name, kind in _ACTIONS.items() if name != "SCMP_ACT_KILL"}
_OPERATORS = {
    "SCMP_CMP_NE": "!=", "SCMP_CMP_LT": "<", "SCMP_CMP_LE": "<=", "SCMP_CMP_EQ": "==", "SCMP_CMP_GE": ">=", "SCMP_CMP_GT": ">",
    "SCMP_CMP_MASKED_EQ": "&==",
}
_OPERATOR_NAMES = {comparison: name for name, comparison in _OPERATORS.items()}
# libseccomp's constants, our names, and the words that includes.arches and excludes.arches use.
_ARCHES = {
    "SCMP_ARCH_X86_64": ("x86_64", "amd64"), "SCMP_ARCH_X86": ("i386", "x86"), "SCMP_ARCH_X32": ("x32", "x32"),
    "SCMP_ARCH_AARCH64": ("aarch64", "arm64"), "SCMP_ARCH_ARM": ("arm", "arm"), "SCMP_ARCH_RISCV64": ("riscv64", "riscv64"),
    "SCMP_ARCH_PPC64LE": ("ppc64le", "ppc64le"), "SCMP_ARCH_S390X": ("s390x", "s390x"),
}
_ARCH_NAMES = {ours: theirs for theirs, (ours, _) in _ARCHES.items()}
_GATE_WORDS = {ours: word for ours, word in _ARCHES.values()}
_FIELDS = {
    "defaultAction", "defaultErrnoRet", "defaultErrno", "archMap", "architectures", "syscalls", "flags", "listenerPath",
    "listenerMetadata",
}
_RULE_FIELDS = {"name", "names", "action", "errnoRet", "errno", "args", "comment", "includes", "excludes"}


@dataclass(frozen=True)
class Gate:
    """What `includes` or `excludes` of a rule ask for. Empty: nothing."""

    capabilities: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: tuple[int, ...] = ()

    def __str__(self) -> str:
        parts = list(self.capabilities)
        if self.arches:
            parts.append("architecture " + " or ".join(self.arches))
        if self.min_kernel:
            parts.append("kernel >= " + ".".join(str(n) for n in self.min_kernel))
        return " and ".join(parts)


@dataclass(frozen=True)
class Rule:
    """One entry of `syscalls`."""

    names: tuple[str, ...]
    action: Action
    conditions: tuple[Condition, ...] = ()
    includes: Gate = Gate()
    excludes: Gate = Gate()
    comment: str = ""


@dataclass(frozen=True)
class Profile:
    """A profile as its file says it. `origin` is the file.

    `arches` and `arch_map` name architectures as `syscalls` does, and those without a table as libseccomp does.
    """

    default: Action
    rules: tuple[Rule, ...]
    arches: tuple[str, ...] = ()
    arch_map: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True)
class Setting:
    """Where a profile is applied. `runtime` is docker, podman (both honour includes and excludes), containerd or cri-o.

    containerd reads a localhostProfile as the plain OCI format, which has no gates and no archMap: it ignores them.
    `low_level` is runc or crun; only runc adds the ENOSYS rule for newer calls.
    """

    arch: str = "x86_64"
    capabilities: frozenset[str] = frozenset()
    kernel: tuple[int, ...] = (6, 12)
    runtime: str = "docker"
    low_level: str = "runc"


# What Docker gives a container by default (moby, oci/caps/defaults.go); Podman's list is shorter and within it.
DEFAULT_CAPABILITIES = frozenset({
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
    "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
})


def parse_profile(text: str, origin: str) -> Profile:
    """The profile that an OCI JSON text holds. Raises: ConfigError with the place inside the document."""
    if len(text) > MAX_BYTES:
        raise ConfigError(origin, 0, f"is larger than {MAX_BYTES} bytes")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(origin, error.lineno, f"not valid JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(origin, 0, f"not valid JSON: {error}") from error
    reader = _Reader(origin)
    table = reader.table(data, "the document")
    spec = table.get("linux")
    if isinstance(spec, dict) and "seccomp" in spec:  # a whole config.json of an OCI bundle
        table = reader.table(spec["seccomp"], "linux.seccomp")
    if "defaultAction" not in table:
        raise ConfigError(origin, 0, "has no defaultAction", "an OCI seccomp profile begins with it")
    reader.known(table, _FIELDS, "the document")
    default = reader.action(table, "default", "defaultAction", "defaultErrnoRet", "defaultErrno")
    arches = reader.arches(table.get("architectures"), "architectures")
    arch_map: dict[str, tuple[str, ...]] = {}
    for at, entry in enumerate(reader.list(table.get("archMap"), "archMap")):
        where = f"archMap[{at}]"
        entry = reader.table(entry, where)
        main = reader.arches([entry.get("architecture")], f"{where}.architecture")
        sub = reader.arches(entry.get("subArchitectures"), f"{where}.subArchitectures")
        arch_map.update({name: sub for name in main})
    if table.get("architectures") and table.get("archMap"):
        raise ConfigError(origin, 0, "has both architectures and archMap; runtimes refuse that")
    rules = tuple(reader.rule(entry, f"syscalls[{at}]") for at, entry in enumerate(reader.list(table.get("syscalls"), "syscalls")))
    return Profile(default, rules, arches, arch_map, origin)


@dataclass(frozen=True)
class _Reader:
    origin: str

    def error(self, where: str, message: str) -> ConfigError:
        return ConfigError(self.origin, 0, f"{where}: {message}")

    def table(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(where, "must be an object")
        return value

    def list(self, value: Any, where: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(where, "must be an array")
        return value

    def strings(self, value: Any, where: str) -> tuple[str, ...]:
        words = self.list(value, where)
        if not all(isinstance(word, str) for word in words):
            raise self.error(where, "must hold strings")
        return tuple(words)

    def number(self, value: Any, where: str, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self.error(where, f"must be an integer from 0 to {most}")
        return value

    def known(self, table: dict[str, Any], fields: set[str], where: str) -> None:
        for key in table:
            if key not in fields:
                raise self.error(where, f"unknown field {key[:60]!r}")

    def arches(self, value: Any, where: str) -> tuple[str, ...]:
        out = []
        for word in self.strings(value, where):
            if not re.fullmatch(r"SCMP_ARCH_[A-Z0-9_]{1,20}", word):
                raise self.error(where, f"unknown architecture {word[:60]!r}")
            out.append(_ARCHES[word][0] if word in _ARCHES else word)  # others (mips, s390, ...) have no table here
        return tuple(out)

    def action(self, table: dict[str, Any], where: str, key: str, errno_key: str, name_key: str) -> Action:
        word = table.get(key)
        if not isinstance(word, str) or word not in _ACTIONS:
            raise self.error(where, f"unknown action {str(word)[:60]!r}")
        kind = _ACTIONS[word]
        if kind not in (ActionKind.ERRNO, ActionKind.TRACE):
            return Action(kind)
        value = errno.EPERM
        if table.get(errno_key) is not None:
            value = self.number(table[errno_key], f"{where}.{errno_key}", 0xFFFF)
        name = table.get(name_key)
        if isinstance(name, str) and name:
            number = getattr(errno, name, None)
            if not isinstance(number, int):
                raise self.error(where, f"unknown errno {name[:60]!r}")
            value = number
        return Action.of(kind | value)

    def rule(self, entry: Any, where: str) -> Rule:
        table = self.table(entry, where)
        self.known(table, _RULE_FIELDS, where)
        names = self.strings(table.get("names"), f"{where}.names")
        name = table.get("name")
        if isinstance(name, str) and name:
            if names:
                raise self.error(where, "has both name and names; runtimes refuse that")
            names = (name,)
        if not names:
            raise self.error(where, "names no system call")
        arguments = self.list(table.get("args"), f"{where}.args")
        conditions = [self.condition(argument, f"{where}.args[{at}]") for at, argument in enumerate(arguments)]
        return Rule(
            names, self.action(table, where, "action", "errnoRet", "errno"), tuple(conditions),
            self.gate(table.get("includes"), f"{where}.includes"), self.gate(table.get("excludes"), f"{where}.excludes"),
            str(table.get("comment") or "")[:200],
        )

    def condition(self, entry: Any, where: str) -> Condition:
        table = self.table(entry, where)
        self.known(table, {"index", "value", "valueTwo", "op"}, where)
        comparison = _OPERATORS.get(str(table.get("op")))
        if comparison is None:
            raise self.error(where, f"unknown operator {str(table.get('op'))[:60]!r}")
        index = self.number(table.get("index"), f"{where}.index", 5)
        value = self.number(table.get("value", 0), f"{where}.value", 0xFFFFFFFFFFFFFFFF)
        second = self.number(table.get("valueTwo", 0), f"{where}.valueTwo", 0xFFFFFFFFFFFFFFFF)
        if comparison == "&==":  # `value` is the mask
            return Condition(index, comparison, second, value)
        return Condition(index, comparison, value)

    def gate(self, entry: Any, where: str) -> Gate:
        table = self.table(entry or {}, where)
        self.known(table, {"caps", "arches", "minKernel"}, where)
        text = table.get("minKernel") or ""
        if not isinstance(text, str) or (text and not re.fullmatch(r"\d{1,4}(\.\d{1,5}){0,2}", text)):
            raise self.error(where, f"unknown kernel version {str(text)[:40]!r}")
        kernel = tuple(int(part) for part in text.split(".")) if text else ()
        return Gate(self.strings(table.get("caps"), f"{where}.caps"), self.strings(table.get("arches"), f"{where}.arches"), kernel)


def is_active(rule: Rule, setting: Setting) -> bool:
    """Whether a runtime keeps the rule in this setting (moby profiles/seccomp/seccomp_linux.go)."""
    if setting.runtime == "containerd":
        return True
    word = _GATE_WORDS[setting.arch]
    excludes, includes = rule.excludes, rule.includes
    if word in excludes.arches or setting.capabilities.intersection(excludes.capabilities):
        return False
    if excludes.min_kernel and setting.kernel >= excludes.min_kernel:
        return False
    if includes.arches and word not in includes.arches:
        return False
    return setting.capabilities.issuperset(includes.capabilities) and setting.kernel >= includes.min_kernel


def gate_text(rule: Rule) -> str:
    """What the rule's being there depends on, for a person, or ''."""
    parts = [f"only with {rule.includes}"] if str(rule.includes) else []
    if str(rule.excludes):
        parts.append(f"not with {rule.excludes}")
    return ", ".join(parts)


def resolved(profile: Profile, setting: Setting) -> Policy:
    """What the profile comes to in a setting. Calls that an architecture does not have are passed over, as by libseccomp."""
    if profile.arches:
        arches = profile.arches
    elif setting.runtime == "containerd":
        arches = ()
    else:
        arches = profile.arch_map.get(setting.arch, ())
    rules = [rule for rule in profile.rules if is_active(rule, setting)]
    names = dict.fromkeys((setting.arch, *(arch for arch in arches if arch in _ARCH_NAMES)))
    return Policy(tuple(_arch_policy(arch, profile, rules, setting) for arch in names))


def _arch_policy(arch: str, profile: Profile, rules: Iterable[Rule], setting: Setting) -> ArchPolicy:
    branches: dict[int, list[Branch]] = {}
    newest = 0
    for rule in rules:
        why = "; ".join(text for text in (rule.comment, gate_text(rule)) if text)
        for name in rule.names:
            number = number_of(arch, name)
            if number is None:
                continue
            newest = max(newest, number)
            if rule.action != profile.default:
                branches.setdefault(number, []).extend(_branches(rule, why))
    beyond = None
    is_denying = profile.default.kind not in (ActionKind.ALLOW, ActionKind.LOG, ActionKind.TRACE)
    if setting.low_level == "runc" and is_denying and profile.default != ENOSYS:
        beyond = ENOSYS
    # libseccomp keeps one unconditional rule for a call above all conditional ones of the same call.
    ordered = {number: tuple(sorted(found, key=lambda branch: bool(branch.conditions))) for number, found in branches.items()}
    return ArchPolicy(arch, profile.default, ordered, newest, beyond)


def _branches(rule: Rule, why: str) -> Iterable[Branch]:
    indexes = [condition.argument for condition in rule.conditions]
    if len(set(indexes)) < len(indexes):  # runc: then each condition is a rule of its own
        return [Branch(rule.action, (condition,), why) for condition in rule.conditions]
    return [Branch(rule.action, rule.conditions, why)]


def written(profile: Profile) -> str:
    """The profile as JSON: the same text for the same rules, sorted, what equals a default left out.

    Rules that differ only in their names become one; a rule's comment tells them apart.
    """
    document: dict[str, Any] = {"defaultAction": _ACTION_NAMES[profile.default.kind]}
    if profile.default.kind is ActionKind.ERRNO:
        document["defaultErrnoRet"] = profile.default.data
    if profile.arches:
        document["architectures"] = [_ARCH_NAMES.get(arch, arch) for arch in profile.arches]
    if profile.arch_map:
        document["archMap"] = [
            {"architecture": _ARCH_NAMES.get(arch, arch), "subArchitectures": [_ARCH_NAMES.get(name, name) for name in sub]}
            for arch, sub in sorted(profile.arch_map.items())
        ]
    document["syscalls"] = [_rule_document(rule) for rule in merged_rules(profile.rules)]
    return _laid_out(document)


def merged_rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules with names sorted and rules that differ only in names joined, in a stable order."""
    names: dict[Rule, set[str]] = {}
    for rule in rules:
        names.setdefault(replace(rule, names=()), set()).update(rule.names)
    joined = [replace(rule, names=tuple(sorted(found))) for rule, found in names.items()]
    unconditional = [rule for rule in joined if not rule.conditions]
    # Conditional rules stay in their order: where two hold, the first one counts.
    return (*sorted(unconditional, key=lambda rule: (rule.action.value, rule.comment, rule.names, str(rule))),
            *(rule for rule in joined if rule.conditions))


def _rule_document(rule: Rule) -> dict[str, Any]:
    out: dict[str, Any] = {"names": list(rule.names), "action": _ACTION_NAMES[rule.action.kind]}
    if rule.action.kind is ActionKind.ERRNO:
        out["errnoRet"] = rule.action.data
    if rule.conditions:
        out["args"] = [_condition_document(condition) for condition in rule.conditions]
    if rule.comment:
        out["comment"] = rule.comment
    for name, gate in (("includes", rule.includes), ("excludes", rule.excludes)):
        document: dict[str, Any] = {}
        if gate.capabilities:
            document["caps"] = list(gate.capabilities)
        if gate.arches:
            document["arches"] = list(gate.arches)
        if gate.min_kernel:
            document["minKernel"] = ".".join(str(part) for part in gate.min_kernel)
        if document:
            out[name] = document
    return out


def _condition_document(condition: Condition) -> dict[str, Any]:
    is_masked = condition.comparison == "&=="
    out: dict[str, Any] = {"index": condition.argument, "value": condition.mask if is_masked else condition.value}
    if is_masked:
        out["valueTwo"] = condition.value
    return {**out, "op": _OPERATOR_NAMES[condition.comparison]}


def _laid_out(document: dict[str, Any]) -> str:
    """JSON with each rule on a few lines: a diff of two profiles shows calls, not brackets."""
    import textwrap

    rules = []
    for rule in document.pop("syscalls"):
        names = textwrap.fill(", ".join(json.dumps(name) for name in rule.pop("names")), 120, initial_indent=" " * 6,
                              subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
        rest = json.dumps(rule)[1:-1]
        rules.append(f'    {{\n     "names": [\n{names}\n     ],\n     {rest}\n    }}')
    head = json.dumps(document, indent=2)[:-2]
    body = ",\n".join(rules)
    return f'{head},\n  "syscalls": [\n{body}\n  ]\n}}\n' if rules else f'{head},\n  "syscalls": []\n}}\n'
