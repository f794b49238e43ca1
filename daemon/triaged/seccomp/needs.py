# SPDX-License-Identifier: Apache-2.0
"""What workloads need of system calls: measured data (config/seccomp/*.toml), as types. See scripts/measure-go-syscalls.

A *part* is one kind of program that was measured (the test binary of a cgo package; a whole `go test`): the calls that it makes,
and for each of them what happened when it was denied with EPERM and with ENOSYS. A *workload* is made of parts.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from triaged.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One measured kind of program. `tolerates` has, by errno name, the calls whose denial changes nothing that was seen, each
    denied alone; `not_together` the errno names with which all of them denied at once do make the run fail.

    `shows` has, by call and errno name, what the program printed and how it ended. Where `was_denied` is False only the calls
    were observed (the C compiler's).
    """

    name: str
    program: str
    seen: frozenset[str]
    tolerates: Mapping[str, frozenset[str]] = field(default_factory=dict)
    shows: Mapping[tuple[str, str], str] = field(default_factory=dict)
    was_denied: bool = True
    not_together: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Note:
    """What measuring does not show of a call: an effect that no exit status tells, a race, which arguments are used.

    `effect` replaces what was measured for an errno (or any, ""); `is_needed` says that the call counts as required although a
    denial passed. `only_with`: it holds only where those calls are denied, too. `arguments` are those that the workload is
    known to use.
    """

    call: str
    effect: str = ""
    is_needed: bool = False
    only_with: tuple[str, ...] = ()
    arguments: tuple[tuple[int, ...], ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Workload:
    """A workload by the name that `--workload` takes."""

    name: str
    title: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Feature:
    """What some packages do beyond what every test run needs: one call (in any of the ways that `arguments` has) and what Go
    prints when it is refused; ERROR in `shows` stands for the errno's text. `form` is the call with its arguments, for people.
    """

    name: str
    title: str
    call: str
    arguments: tuple[tuple[int, ...], ...] = ()
    shows: str = ""
    form: str = ""

    @property
    def written(self) -> str:
        """The call as a person writes it: unshare(CLONE_NEWUSER), bpf."""
        return self.form or self.call

    def prints(self, error: int) -> str:
        """What a test shows where the call returns that errno."""
        return self.shows.replace("ERROR", os.strerror(error).lower())


@dataclass(frozen=True)
class Needs:
    """All that is known about one toolchain."""

    toolchain: str
    arch: str
    source: str
    parts: Mapping[str, Part]
    workloads: Mapping[str, Workload]
    notes: Mapping[str, Note]
    features: tuple[Feature, ...] = ()

    def parts_of(self, workload: str) -> tuple[Part, ...]:
        """The parts of a workload. Raises: KeyError for an unknown one."""
        return tuple(self.parts[name] for name in self.workloads[workload].parts)

    def calls_of(self, workload: str) -> frozenset[str]:
        """Every call that the workload makes."""
        return frozenset().union(*(part.seen for part in self.parts_of(workload)))

    def required_by(self, workload: str, errno_name: str = "EPERM") -> frozenset[str]:
        """The calls that the workload cannot do without where a denial returns that errno."""
        return frozenset(
            call for part in self.parts_of(workload) for call in part.seen if not self.is_harmless(part, call, errno_name)
        )

    def is_harmless(self, part: Part, call: str, errno_name: str) -> bool:
        """Whether the part does its work when the call returns that errno. Another errno than the two tried must pass both."""
        note = self.notes.get(call)
        if note is not None and note.is_needed:
            return False
        tried = part.tolerates.values() if errno_name not in part.tolerates else (part.tolerates[errno_name],)
        return bool(part.tolerates) and all(call in calls for calls in tried)


def needs_from(measured: Mapping[str, Any], described: Mapping[str, Any], origin: str) -> Needs:
    """The needs that a measured document and the description of workloads hold. Raises: ConfigError."""
    try:
        parts = {str(table["name"]): _part(table) for table in measured["part"]}
        tools: dict[str, list[Mapping[str, Any]]] = {}
        for table in measured.get("tool", ()):
            tools.setdefault(str(table["of"]), []).append(table)
        for name, tables in tools.items():
            seen = frozenset(call for table in tables for call in table["seen"])
            parts[name] = Part(name, name, seen, was_denied=False)
        workloads = {
            str(table["name"]): Workload(str(table["name"]), str(table["title"]), tuple(table["parts"]))
            for table in described["workload"]
        }
        notes = {str(table["call"]): _note(table) for table in described.get("note", ())}
        features = tuple(_feature(table) for table in described.get("feature", ()))
        needs = Needs(
            str(measured["toolchain"]), str(measured["arch"]), str(measured["source"]), parts, workloads, notes, features
        )
        for workload in workloads.values():
            for name in workload.parts:
                if name not in parts:
                    raise ConfigError(origin, 0, f"workload {workload.name!r} has a part {name!r} that was not measured")
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(origin, 0, f"is no description of needs: {error!r}") from error
    return needs


def _part(table: Mapping[str, Any]) -> Part:
    tolerates = {
        name.upper(): frozenset(table[f"tolerates-{name}"]) for name in ("eperm", "enosys") if f"tolerates-{name}" in table
    }
    shows = {(str(effect["call"]), str(effect["errno"])): str(effect["shows"]) for effect in table.get("effect", ())}
    not_together = frozenset(name for name in tolerates if table.get(f"tolerates-{name.lower()}-together") is False)
    return Part(str(table["name"]), str(table["program"]), frozenset(table["seen"]), tolerates, shows, not_together=not_together)


def _feature(table: Mapping[str, Any]) -> Feature:
    arguments: Iterable[Iterable[int]] = table.get("arguments", ())
    return Feature(
        str(table["name"]), str(table["title"]), str(table["call"]),
        tuple(tuple(int(value) for value in values) for values in arguments), str(table["shows"]),
        str(table.get("form", "")),
    )


def _note(table: Mapping[str, Any]) -> Note:
    arguments: Iterable[Iterable[int]] = table.get("arguments", ())
    return Note(
        str(table["call"]), str(table.get("effect", "")), bool(table.get("needed", False)), tuple(table.get("only-with", ())),
        tuple(tuple(int(value) for value in values) for values in arguments), str(table.get("source", "")),
    )
