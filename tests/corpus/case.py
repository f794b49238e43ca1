# SPDX-License-Identifier: Apache-2.0
"""A case of the corpus as its file tells it: what is done to the machine, what runs there, and what a good report says."""
from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
MODULE = HERE / "module"
CASES = HERE / "cases"
FIXES = ("none", "commands", "limit", "property", "inject")
TIED = ("test", "package", "run")
VERDICTS = ("machine", "code", "passed")


class BadCase(Exception):
    """A case's file says something that the runner does not know."""


@dataclass(frozen=True)
class Fix:
    """How the report's fix is tried.

    `says` stands in a title or a command of a fix of the first cause. `by` is "commands" (what the fix would have a person type, or
    the file that it would have written, in the place where the fault is), "limit" (the limit that the fix names instead of the
    injected one), "property" (the unit's property as the fix sets it), "inject" (`inject` instead of the case's own: what the fix
    says in words) or "none".
    """

    says: str = ""
    by: str = "none"
    inject: tuple[Mapping[str, Any], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One case.

    `inject` is from the outside in, each a table whose first key is its kind (see `layers`). `text` is what the command prints when
    the fault is there. `causes` are the right ones, any of which may stand first; `also` are no wrong claims either. `suites` are
    the Debian releases in which a case of virtual machines runs. `tied`: to what the cause has to be tied; a process that is killed
    says no test's name. `gap`: why triaged does not (always) get this one right yet; it may then fail, but not by a wrong claim.
    """

    name: str
    topic: str
    about: str
    where: str
    suites: tuple[str, ...]
    inject: tuple[Mapping[str, Any], ...]
    go: str
    binary: str
    argv: tuple[str, ...]
    flags: tuple[str, ...]
    environment: Mapping[str, str]
    needs: tuple[str, ...]
    timeout_s: int
    text: str
    verdict: str
    causes: tuple[str, ...]
    also: tuple[str, ...]
    errno: str
    tied: str
    gap: str
    fix: Fix

    @property
    def title(self) -> str:
        return f"{self.topic}/{self.name}"

    @property
    def is_fault(self) -> bool:
        return self.verdict == "machine"

    @property
    def package(self) -> str:
        return (self.go or self.binary).split(" ")[0]

    @property
    def test(self) -> str:
        """The one test that runs; "" for a command that is not a test, or a package whose build is at stake."""
        words = (self.go or self.binary).split(" ")
        return words[1] if len(words) > 1 else ""


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def read_case(path: Path) -> Case:
    """Raises: BadCase."""
    table = tomllib.loads(path.read_text())
    expect = table.pop("expect", {})
    fix = expect.pop("fix", {})
    try:
        case = Case(
            name=path.stem, topic=path.parent.name, about=table.pop("about"), where=table.pop("where", "native"),
            suites=_words(table.pop("suites", "trixie")), inject=tuple(table.pop("inject", ())), go=table.pop("go", ""),
            binary=table.pop("binary", ""), argv=_words(table.pop("argv", [])), flags=_words(table.pop("flags", [])),
            environment=table.pop("environment", {}), needs=_words(table.pop("needs", [])), timeout_s=table.pop("timeout_s", 120),
            text=expect.pop("text", ""), verdict=expect.pop("verdict", "machine"), causes=_words(expect.pop("cause", [])),
            also=_words(expect.pop("also", [])), errno=expect.pop("errno", ""), tied=expect.pop("tied", "test"),
            gap=expect.pop("gap", ""),
            fix=Fix(fix.pop("says", ""), fix.pop("by", "none"), tuple(fix.pop("inject", [{}])), fix.pop("environment", {})),
        )
    except KeyError as error:
        raise BadCase(f"{path}: no {error}") from None
    if case.fix.by not in FIXES or (case.fix.by == "inject") == (case.fix.inject == ({},)):
        raise BadCase(f"{path}: a fix is tried by {', '.join(FIXES)}; by inject, and only then, with inject")
    left = [*table, *expect, *fix]
    if left:
        raise BadCase(f"{path}: unknown keys: {' '.join(left)}")
    if case.verdict not in VERDICTS or bool(case.causes) != case.is_fault:
        raise BadCase(f"{path}: a fault has a cause, and nothing else has one")
    if case.tied not in TIED:
        raise BadCase(f"{path}: tied is {', '.join(TIED)}")
    if case.where not in ("native", "vm"):
        raise BadCase(f"{path}: where is native or vm")
    return case


def read_cases() -> list[Case]:
    """Every case, by topic and name. Raises: BadCase."""
    return [read_case(path) for path in sorted(CASES.glob("*/*.toml"))]
