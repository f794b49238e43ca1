# SPDX-License-Identifier: Apache-2.0
"""What a workload's processes look like. The definitions are data (`config/workloads.d/*.toml`)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase


class PackageFrom(str, Enum):
    """Where the name of the package that a process tests comes from."""

    NONE = "none"
    GO_BUILD_INFO = "go-build-info"


@dataclass(frozen=True)
class ProcessPattern:
    """One kind of process of a workload. All that is given must hold; patterns are glob patterns.

    `exe_names` match the base name of the executable (any of them). `subcommand` is the first argument that is no option;
    `options_with_value` are options before it that take the next argument. `arguments` must each match some argument.
    """

    role: str
    exe_names: tuple[str, ...]
    subcommand: str = ""
    options_with_value: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    package_from: PackageFrom = PackageFrom.NONE

    def matches_exe(self, exe: str) -> bool:
        """Whether the executable's base name fits. Cheap: asked first, for every exec."""
        name = exe.removesuffix(" (deleted)").rsplit("/", 1)[-1]
        return any(fnmatchcase(name, pattern) for pattern in self.exe_names)

    def matches_argv(self, argv: tuple[str, ...]) -> bool:
        """Whether the arguments fit."""
        if self.subcommand and self._subcommand(argv) != self.subcommand:
            return False
        return all(any(fnmatchcase(word, pattern) for word in argv[1:]) for pattern in self.arguments)

    def _subcommand(self, argv: tuple[str, ...]) -> str:
        words = iter(argv[1:])
        for word in words:
            if word in self.options_with_value:
                next(words, None)
            elif not word.startswith("-"):
                return word
        return ""


@dataclass(frozen=True)
class WorkloadDefinition:
    """A workload: its name ("go-test"), what people call it, and its kinds of process. `origin` is the file."""

    name: str
    title: str
    processes: tuple[ProcessPattern, ...]
    origin: str = ""


def match_workload(
    definitions: Iterable[WorkloadDefinition], exe: str, argv: tuple[str, ...]
) -> tuple[WorkloadDefinition, ProcessPattern] | None:
    """The first definition and kind of process that fits, or None."""
    for definition in definitions:
        for pattern in definition.processes:
            if pattern.matches_exe(exe) and pattern.matches_argv(argv):
                return definition, pattern
    return None
