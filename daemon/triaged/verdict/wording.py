# SPDX-License-Identifier: Apache-2.0
"""How a judged run is told in words, the same on a terminal, in JUnit and in annotations."""
from __future__ import annotations

import signal
from collections.abc import Iterable

from triaged.model.mention import FailedStage, Failure
from triaged.model.symptom import Symptom, SymptomKind
from triaged.verdict.report import Charge, FailureVerdict, Verdict

_GROUPED = 3


def failed_name(failure: Failure) -> str:
    """What failed, in a few words: "example.org/app/worker TestSpawnWorkers"."""
    if failure.stage is FailedStage.COMMAND:
        return "the command"
    if failure.stage is FailedStage.BUILD:
        return f"the build of {failure.package}"
    return " ".join(part for part in (failure.package, failure.test) if part) or "the test binary"


def failed_names(failures: Iterable[Failure]) -> str:
    """Several failed things; beyond three their number."""
    names = list(dict.fromkeys(failed_name(failure) for failure in failures))
    if len(names) > _GROUPED:
        return f"{', '.join(names[:_GROUPED])} and {len(names) - _GROUPED} more"
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]


def symptom_text(symptom: Symptom, count: int = 1) -> str:
    """The symptom: "clone() = EAGAIN, 13 times", "killed by SIGKILL", "timed out"."""
    times = "" if count <= 1 else f", {count:,} times"
    if symptom.kind is SymptomKind.KILLED:
        try:
            name = signal.Signals(symptom.signal).name
        except ValueError:
            name = f"signal {symptom.signal}"
        return f"killed by {name}{times}"
    if symptom.kind is SymptomKind.TIMED_OUT:
        return f"timed out{times}"
    if symptom.kind is SymptomKind.SILENT:
        return "no call failed"
    if not symptom.syscall:
        return f"{symptom.errno}{times}"
    return f"{symptom.syscall}() = {symptom.errno or 'refused'}{times}"


def cause_text(charge: Charge) -> str:
    """A cause in one sentence, with the symptom by which it showed."""
    sure = {"likely": "likely: ", "possible": "possible: "}.get(charge.blamed.status.value, "")
    return f"{sure}{symptom_text(charge.symptom, charge.count)}: {charge.blamed.summary}"


def limit_name(cause: str) -> str:
    """A cause id as people call the limit: RLIMIT_NPROC, kernel.pid_max, pids.max."""
    domain, _, name = cause.partition(".")
    return {"rlimit": f"RLIMIT_{name}", "sysctl": name, "cgroup": name, "capability": name}.get(domain, cause)


def headline(judged: FailureVerdict) -> str:
    """One failed thing and whose fault it is."""
    name = failed_name(judged.failure)
    if judged.verdict is Verdict.MACHINE:
        return f"{name} failed because of the machine, not the code"
    if judged.verdict is Verdict.UNDECIDED:
        return f"{name} failed, and what could be seen does not decide why"
    return f"{name} failed, and the machine is not to blame"
