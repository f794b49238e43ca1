# SPDX-License-Identifier: Apache-2.0
"""Situations of which everything is known beforehand: nothing of this machine is read."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from triaged.explain.hypothesis import Hypothesis
from triaged.explain.situation import Situation
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.paths import KernelPaths
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted
from triaged.model.cgroup import CgroupId
from triaged.model.facts import CgroupLimit
from triaged.model.limit import UNLIMITED, Limit
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.process_state import Credentials, ProcessState
from triaged.model.symptom import Deed, SeenIn, Symptom, SymptomKind
from triaged.model.usage import Usage

NOWHERE = KernelPaths.below("/nonexistent")
INITIAL = {"user": "user:[4026531837]"}
TEST = WorkloadMatch("go-test", "test-binary", "example.org/a")


def user(uid: int = 1000, effective: int = 0) -> Credentials:
    return Credentials((uid,) * 4, (uid,) * 4, effective=effective)


def process(pid: int = 500, uid: int = 1000, effective: int = 0, cgroup: str = "/ci.service", **more: Any) -> ProcessState:
    """A process of an ordinary user in the cgroup, without limits."""
    limits = {"NOFILE": (UNLIMITED, UNLIMITED), "NPROC": (UNLIMITED, UNLIMITED), **more.pop("limits", {})}
    identity = ProcessIdentity(
        pid, 5000, more.pop("ppid", 400), uid, more.pop("comm", "a.test"), "/tmp/a.test", ("/tmp/a.test",),
        {"": cgroup}, more.pop("workload", None),
    )
    more.setdefault("namespaces", INITIAL)
    return ProcessState(identity, user(uid, effective), limits=limits, time_usec=1_000_000, **more)


def call(syscall: str, errno: str, **more: Any) -> Symptom:
    more.setdefault("seen_in", SeenIn.TRACE)
    return Symptom(SymptomKind.CALL, syscall, errno, **more)


def set_by(pid: int, resource: int, is_test: bool = True, target: int = 0) -> Deed:
    return Deed(pid, "a.test", "prlimit64", (target, resource, 0x1000, 0, 0, 0), is_test=is_test)


def limit_at(path: str, limit: Limit, used: int, file: str = "pids.max") -> CgroupLimit:
    unit = path.rsplit("/", 1)[-1]
    return CgroupLimit(CgroupId(path), f"/sys/fs/cgroup{path}/{file}", limit, used, unit if "." in unit else "")


def host(key: str, used: int, limit: int, is_lower_bound: bool = False) -> Usage:
    return Usage("tasks", key, "host", used, limit, "/used", f"/proc/sys/{key.replace('.', '/')}", is_lower_bound=is_lower_bound)


def roomy(**instead: Usage) -> tuple[Usage, ...]:
    """A host with room for everything."""
    found = {
        "threads": host("kernel.threads-max", 300, 190_000), "pids": host("kernel.pid_max", 300, 4_194_304, True),
        "files": host("fs.file-max", 2_000, 2_466_170), "aio": host("fs.aio-max-nr", 0, 65_536),
    }
    return tuple({**found, **instead}.values())


def situated(
    symptom: Symptom, who: ProcessState | None = None, *, kept: Mapping[str, object] | None = None,
    before: Mapping[tuple[str, str], int] | None = None, after: Mapping[tuple[str, str], int] | None = None, **more: Any,
) -> Situation:
    """A situation. `kept` is what was read, by the names under which `Situation` keeps it."""
    known: dict[str, object] = {
        "layout": CgroupLayout(()), "usage:host": roomy(), "usage:pids-left": 4_000_000, "usage:tasks": 10, "cgroup:pids": (),
        "cgroup:memory": (), **(kept or {}),
    }
    then, now = before or {}, after or before or {}
    return Situation(symptom, who, NOWHERE, baseline=then, read_counters_now=lambda: now, _kept=known, **more)


def outcomes(hypothesis: Hypothesis, situation: Situation) -> list[Outcome]:
    """What a hypothesis says of a situation; nothing where it does not concern it."""
    if not hypothesis.concerns(situation.symptom):
        return []
    found = hypothesis.judge(situation)
    if found is None:
        return []
    return [found] if isinstance(found, (Blamed, RuledOut, NotDecidable, SelfInflicted)) else list(found)


def blamed(hypothesis: Hypothesis, situation: Situation) -> Blamed:
    """The one cause that it gives."""
    (found,) = outcomes(hypothesis, situation)
    assert isinstance(found, Blamed), found
    assert found.summary
    assert found.evidence
    return found


def ruled_out(hypothesis: Hypothesis, situation: Situation) -> str:
    """By what it rules its cause out."""
    (found,) = outcomes(hypothesis, situation)
    assert isinstance(found, RuledOut), found
    return found.because


def undecided(hypothesis: Hypothesis, situation: Situation) -> str:
    """Why it cannot tell."""
    (found,) = outcomes(hypothesis, situation)
    assert isinstance(found, NotDecidable), found
    return found.why


def own_fault(hypothesis: Hypothesis, situation: Situation) -> str:
    """By what it proves that the test did it itself."""
    (found,) = outcomes(hypothesis, situation)
    assert isinstance(found, SelfInflicted), found
    return found.because


def with_limits(who: ProcessState, **limits: tuple[Limit, Limit]) -> ProcessState:
    return replace(who, limits={**who.limits, **limits})
