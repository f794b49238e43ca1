# SPDX-License-Identifier: Apache-2.0
"""What the output of a command tells: which tests failed, and which lines speak of an error of the operating system."""
from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from triaged.model.symptom import SeenIn, Symptom, SymptomKind


@dataclass(frozen=True)
class Mention:
    """A line of output that names an error, a signal or a time-out.

    `errno`, `signal` and `syscall` as in a Symptom ("" and 0 where the line does not say). `operation` is the word before the
    error, as Go writes it ("fork/exec", "open", "bind"); `path` the file, program or address it is about. `at_ns`: ns of
    CLOCK_MONOTONIC.
    """

    text: str
    kind: SymptomKind
    errno: str = ""
    signal: int = 0
    syscall: str = ""
    operation: str = ""
    path: str = ""
    at_ns: int = 0

    def as_symptom(self) -> Symptom:
        """The same as a symptom that only the output tells of."""
        return Symptom(
            self.kind, self.syscall, self.errno, self.signal, path=self.path, text=self.text, seen_in=SeenIn.OUTPUT,
            first_ns=self.at_ns, last_ns=self.at_ns,
        )


class FailedStage(str, Enum):
    """test: a test failed; package: a test binary failed as a whole (panic, exit, signal, time-out); build: it was not built;
    command: the command itself gave up."""

    TEST = "test"
    PACKAGE = "package"
    BUILD = "build"
    COMMAND = "command"


@dataclass(frozen=True)
class Failure:
    """Something that failed: a test of a package, a package, or the command ("" for both).

    `mentions` are in the order of the output; `text` is the end of what it printed. `at_ns`: when the failure was told.
    """

    stage: FailedStage
    package: str = ""
    test: str = ""
    mentions: tuple[Mention, ...] = ()
    text: str = ""
    at_ns: int = 0


@dataclass(frozen=True)
class ToldResult:
    """A test that ended, as the output tells: "pass", "fail" or "skip". `seconds` -1: not told."""

    package: str
    test: str
    outcome: str
    seconds: float = -1.0


@dataclass(frozen=True)
class OutputReport:
    """All that the output told. `loose` are mentions that belong to no failed test or package."""

    failures: tuple[Failure, ...] = ()
    results: tuple[ToldResult, ...] = ()
    loose: tuple[Mention, ...] = ()
