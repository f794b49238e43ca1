# SPDX-License-Identifier: Apache-2.0
"""What is reported of a run: the verdict, each failed thing with its causes, what was ruled out. `--report` writes it as JSON."""
from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from triaged.model.cause import Blamed, RuledOut, Status
from triaged.model.finding import finding_id
from triaged.model.mention import Failure, ToldResult
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown
from triaged.model.symptom import Symptom
from triaged.run.record import Role


class Verdict(str, Enum):
    """machine: a limit or setting of the machine made something fail; code: nothing speaks for that; undecided: what would decide
    it could not be seen; passed: nothing failed."""

    MACHINE = "machine"
    CODE = "code"
    PASSED = "passed"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Charge:
    """A cause of one failed thing: with the symptom by which it showed, in which process, and how often."""

    blamed: Blamed
    symptom: Symptom
    failure: Failure
    process: ProcessState | None
    count: int
    rank: int = 1

    @property
    def finding(self) -> str:
        """The id of the finding that the daemon has of the same cause, if it has one; "" where no rule tells of it."""
        blamed = self.blamed
        return finding_id(blamed.rule, blamed.subject_key) if blamed.rule and blamed.subject_key else ""


@dataclass(frozen=True)
class FailureVerdict:
    """One failed thing, judged. `reasons` say in words why it is the code's fault, or why nothing can be told."""

    failure: Failure
    verdict: Verdict
    charges: tuple[Charge, ...] = ()
    ruled_out: tuple[RuledOut, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A failing call or a deadly signal that the kernel told of during the run, whether or not something failed because of it."""

    symptom: Symptom
    program: str
    package: str
    role: Role


@dataclass(frozen=True)
class Report:
    """A judged run. `exit_status` is the command's, as a shell tells it. `seen`: what the kernel told of, in order. `blind`: what
    could not be seen, and why."""

    verdict: Verdict
    exit_status: int
    argv: tuple[str, ...] = ()
    failures: tuple[FailureVerdict, ...] = ()
    results: tuple[ToldResult, ...] = ()
    seen: tuple[Seen, ...] = ()
    blind: tuple[str, ...] = ()
    started_usec: int = 0
    ended_usec: int = 0

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Every cause of every failed thing, the first rank first."""
        return tuple(sorted((charge for failure in self.failures for charge in failure.charges), key=lambda charge: charge.rank))

    @property
    def ruled_out(self) -> tuple[RuledOut, ...]:
        """What was ruled out, each cause once; what is a cause of something else is not among it."""
        blamed = {charge.blamed.cause for charge in self.charges}
        found: dict[str, RuledOut] = {}
        for failure in self.failures:
            for each in failure.ruled_out:
                if each.cause not in blamed:
                    found.setdefault(each.cause, each)
        return tuple(found.values())

    def as_json(self) -> dict[str, Any]:
        """The report as `--report` writes it."""
        return {
            "verdict": self.verdict.value,
            "exit_status": self.exit_status,
            "command": list(self.argv),
            "causes": [_charge_as_json(charge) for charge in self.charges],
            "ruled_out": [{"cause": each.cause, "because": each.because} for each in self.ruled_out],
            "failures": [
                {
                    "stage": each.failure.stage.value, "package": each.failure.package, "test": each.failure.test,
                    "verdict": each.verdict.value, "reasons": list(each.reasons),
                }
                for each in self.failures
            ],
            "seen": [_seen_as_json(each) for each in self.seen],
            "not_seen": list(self.blind),
            "started_usec": self.started_usec,
            "ended_usec": self.ended_usec,
        }


def _charge_as_json(charge: Charge) -> dict[str, Any]:
    blamed, symptom, process = charge.blamed, charge.symptom, charge.process
    who = None
    if process is not None:
        identity = process.identity
        who = {"pid": process.stands_for or identity.pid, "comm": shown(identity.comm), "exe": shown(identity.exe, 4200)}
    return {
        "cause": blamed.cause,
        "rank": charge.rank,
        "status": blamed.status.value,
        "package": charge.failure.package,
        "test": charge.failure.test,
        "process": who,
        "syscall": symptom.syscall,
        "errno": symptom.errno,
        "signal": symptom.signal,
        "count": charge.count,
        **{key: value for key, value in blamed.as_json().items() if key not in ("cause", "status")},
        "finding": charge.finding,
    }


def _seen_as_json(seen: Seen) -> dict[str, Any]:
    symptom = seen.symptom
    return {
        "syscall": symptom.syscall, "errno": symptom.errno, "signal": symptom.signal, "count": symptom.count,
        "began": symptom.entered, "program": shown(seen.program, 4200), "package": seen.package, "role": seen.role.value,
    }


def shell_status(wait_status: int) -> int:
    """A wait status as a shell tells it: 128 + N for signal N."""
    code = os.waitstatus_to_exitcode(wait_status)
    return 128 - code if code < 0 else code


def best(causes: Iterable[Blamed]) -> tuple[Blamed, ...]:
    """The causes that are claimed: the proved ones, else the likely ones, else the possible ones."""
    all_of_them = tuple(causes)
    for status in Status:
        found = tuple(cause for cause in all_of_them if cause.status is status)
        if found:
            return found
    return ()
