# SPDX-License-Identifier: Apache-2.0
"""systemd's SystemCallFilter= and what belongs to it, read from a unit file, a drop-in, or a bare list of calls.

Sources: systemd.exec(5) "System Call Filtering"; src/shared/seccomp-util.c: an allow-list always has @default, systemd loads one
filter for each local architecture, and SystemCallArchitectures= another one that kills calls of the others.
"""
from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from triaged.errors import ConfigError
from triaged.seccomp.action import ALLOW, KILL_PROCESS, Action, ActionKind
from triaged.seccomp.policy import ArchPolicy, Branch, Policy
from triaged.seccomp.syscalls import ARCHES, number_of

Groups = Mapping[str, tuple[str, ...]]
MAX_BYTES = 1 << 20
_ARCHES = {
    "x86-64": "x86_64", "x86": "i386", "x32": "x32", "arm64": "aarch64", "arm": "arm", "riscv64": "riscv64", "ppc64-le": "ppc64le",
    "s390x": "s390x",
}
_LOCAL = {"x86_64": ("x86_64", "i386", "x32"), "aarch64": ("aarch64", "arm")}
_KEYS = ("SystemCallFilter", "SystemCallErrorNumber", "SystemCallArchitectures")


@dataclass(frozen=True)
class SystemdFilter:
    """The settings of one unit. `calls` maps a call to the action its entry asked for, or None for the list's own.

    `arches` is None where SystemCallArchitectures= is not set. `unknown` are words that name no group and no call.
    """

    is_allow_list: bool
    calls: Mapping[str, Action | None]
    denial: Action = KILL_PROCESS
    arches: tuple[str, ...] | None = None
    unknown: tuple[str, ...] = ()
    origin: str = ""


def parse_groups(text: str) -> Groups:
    """The groups, from the text of `systemd-analyze syscall-filter`: `@name` at a line's beginning, its members indented."""
    groups: dict[str, list[str]] = {}
    members: list[str] | None = None
    for line in text.splitlines():
        words = line.split("#", 1)[0].split()
        if line.startswith("@") and len(words) == 1:
            members = groups.setdefault(words[0], [])
        elif members is not None:
            members += words
    return {name: tuple(found) for name, found in groups.items()}


def expanded(word: str, groups: Groups) -> set[str] | None:
    """The calls that a word of SystemCallFilter= stands for; None for an unknown group."""
    if not word.startswith("@"):
        return {word}
    if word not in groups:
        return None
    out: set[str] = set()
    seen: set[str] = set()
    pending = [word]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        for member in groups.get(name, ()):
            if member.startswith("@"):
                pending.append(member)
            else:
                out.add(member)
    return out


def parse_filter(text: str, origin: str, groups: Groups) -> SystemdFilter:
    """The filter that a unit file, a drop-in or a bare list sets. Raises: ConfigError with the line."""
    if len(text) > MAX_BYTES:
        raise ConfigError(origin, 0, f"is larger than {MAX_BYTES} bytes")
    state = _State(origin, groups)
    for line, key, value in _assignments(text, origin):
        state.assign(line, key, value)
    if state.is_allow_list is None:
        raise ConfigError(origin, 0, "sets no SystemCallFilter=")
    return SystemdFilter(state.is_allow_list, dict(state.calls), state.denial, state.arches, tuple(state.unknown), origin)


def _assignments(text: str, origin: str) -> Iterable[tuple[int, str, str]]:
    joined = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not joined and (not stripped or stripped[0] in "#;["):
            continue
        if joined and stripped[:1] in ("#", ";"):
            continue
        joined += stripped
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        key, separator, value = joined.partition("=")
        joined = ""
        if not separator:
            key, value = "SystemCallFilter", key
        key = key.strip()
        if key in _KEYS:
            yield number, key, value.strip()
        elif not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", key):
            raise ConfigError(origin, number, f"is no assignment and no list of system calls: {key[:60]!r}")


class _State:
    def __init__(self, origin: str, groups: Groups) -> None:
        self.origin = origin
        self.groups = groups
        self.is_allow_list: bool | None = None
        self.calls: dict[str, Action | None] = {}
        self.denial = KILL_PROCESS
        self.arches: tuple[str, ...] | None = None
        self.unknown: list[str] = []

    def assign(self, line: int, key: str, value: str) -> None:
        if key == "SystemCallErrorNumber":
            self.denial = self.action(line, value) if value else KILL_PROCESS
        elif key == "SystemCallArchitectures":
            self.set_arches(line, value.split())
        elif not value:
            self.is_allow_list, self.calls = None, {}
        else:
            is_inverted = value.startswith("~")
            if self.is_allow_list is None:
                self.is_allow_list = not is_inverted
                if self.is_allow_list:  # before the words: a later ~ may take calls of @default away
                    self.calls = dict.fromkeys(sorted(expanded("@default", self.groups) or ()))
            for word in value[is_inverted:].split():
                self.add(line, word, is_inverted)

    def add(self, line: int, word: str, is_inverted: bool) -> None:
        name, separator, ending = word.partition(":")
        action = self.action(line, ending) if separator else None
        names = expanded(name, self.groups)
        if names is None:
            self.unknown.append(name)
            return
        for call in names:
            if not re.fullmatch(r"[a-z0-9_]{1,64}", call):
                raise ConfigError(self.origin, line, f"{call[:60]!r} is no name of a system call")
            if not name.startswith("@") and all(number_of(arch, call) is None for arch in ARCHES):
                self.unknown.append(call)
            if is_inverted != self.is_allow_list:
                self.calls[call] = action
            else:
                self.calls.pop(call, None)

    def set_arches(self, line: int, words: list[str]) -> None:
        if not words:
            self.arches = None
            return
        unknown = [word for word in words if word != "native" and not re.fullmatch(r"[a-z0-9-]{1,20}", word)]
        if unknown:
            raise ConfigError(self.origin, line, f"unknown architecture {unknown[0][:60]!r}")
        self.arches = (*(self.arches or ()), *(_ARCHES.get(word, word) for word in words))

    def action(self, line: int, word: str) -> Action:
        if word == "kill":
            return KILL_PROCESS
        number = getattr(errno, word, None) if re.fullmatch(r"E[A-Z0-9]{1,20}", word) else None
        if number is None and word.isdecimal() and word.isascii() and len(word) <= 4 and int(word) <= 4095:
            number = int(word)
        if not isinstance(number, int):
            raise ConfigError(self.origin, line, f"unknown error number {word[:60]!r}")
        return Action(ActionKind.ERRNO, number)


def resolved(found: SystemdFilter, native: str) -> Policy:
    """What the settings come to on a machine of architecture `native`."""
    local = _LOCAL.get(native, (native,))
    allowed = local if found.arches is None else tuple(
        arch for arch in local if arch in found.arches or (arch == native and "native" in found.arches)
    )
    arches = []
    for arch in local:
        if arch not in allowed:
            continue
        branches = {}
        for name, action in found.calls.items():
            number = number_of(arch, name)
            if number is not None:
                branches[number] = (Branch(action or (ALLOW if found.is_allow_list else found.denial)),)
        arches.append(ArchPolicy(arch, found.denial if found.is_allow_list else ALLOW, branches))
    return Policy(tuple(arches), KILL_PROCESS if found.arches is not None else ALLOW)


def written(names: Iterable[str], denial: Action, comments: Mapping[str, str] | None = None) -> str:
    """A drop-in for a service that allows the calls and no others; `comments` says by call what needs it (a heading each)."""
    import textwrap

    headings: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        headings.setdefault((comments or {}).get(name, ""), []).append(name)
    lines = ["[Service]"]
    for heading in sorted(headings):
        lines += [f"# {heading}"] if heading else []
        wrapped = textwrap.wrap(" ".join(headings[heading]), 100, break_long_words=False, break_on_hyphens=False)
        lines += [f"SystemCallFilter={words}" for words in wrapped]
    if denial.kind is ActionKind.ERRNO:
        lines.append(f"SystemCallErrorNumber={errno.errorcode.get(denial.data, str(denial.data))}")
    return "\n".join(lines) + "\n"
