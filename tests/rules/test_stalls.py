# SPDX-License-Identifier: Apache-2.0
"""Cgroups that slow down or hold: facts in, verdict out."""
from __future__ import annotations

from dataclasses import replace

import pytest

from triaged.model.cgroup import CgroupId
from triaged.model.cpu import GoProcess
from triaged.model.facts import CgroupLimit, CpusetFacts, FrozenFacts, MemoryHighFacts, PressureFacts
from triaged.model.fix import ManualStep, SetUnitProperty
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.verdict import Fine, Kind, Problem, Undecided
from triaged.rules.stalls import cpuset_small, frozen, memory_high, pressure

CI = CgroupId("/ci.slice", 7)
WHO = ProcessIdentity(
    10, 100, comm="w.test", exe="/tmp/w.test", uid=0, cgroups={"": "/ci.slice/run.scope"},
    workload=WorkloadMatch("go-test", "test-binary", "example.org/w", "go1.27.3"),
)
HIGH = MemoryHighFacts(
    CgroupLimit(CI, "/sys/fs/cgroup/ci.slice/memory.high", 60 << 20, 61 << 20, "ci.slice"), 3000, 4_000_000, 10_000_000, (WHO,),
    "/sys/fs/cgroup/ci.slice/memory.events.local", 5,
)
PRESSED = PressureFacts(CI, "io", 8_000_000, 6_000_000, 10_000_000, "/sys/fs/cgroup/ci.slice/io.pressure", (), (WHO,), 5)
SMALL = CpusetFacts(CI, "/sys/fs/cgroup/ci.slice/cpuset.cpus.effective", 2, 8, GoProcess(WHO, 8, "GOMAXPROCS=8", 2), "ci.slice", 5)
FROZEN = FrozenFacts(CI, "/sys/fs/cgroup/ci.slice/cgroup.freeze", True, "ci.slice", (WHO,), 5)


def test_memory_high_that_makes_tasks_stand_still_is_a_hit_at_its_owner() -> None:
    verdict = memory_high.judge(HIGH)
    assert isinstance(verdict, Problem)
    assert memory_high.kind is Kind.HIT
    assert verdict.subject.key == "cgroup:/ci.slice"
    assert "40% of the time" in verdict.summary
    assert verdict.occurrences == 3000
    assert verdict.fixes[0] == SetUnitProperty("ci.slice", "MemoryHigh", str(120 << 20), False)
    assert {each.name: each.source for each in verdict.evidence}["no task could run"].endswith("/ci.slice/memory.pressure")


@pytest.mark.parametrize(
    "facts",
    [replace(HIGH, throttled=0), replace(HIGH, stalled_usec=400_000), replace(HIGH, stalled_usec=Unknown("no PSI"))],
    ids=["not-held-back", "hardly-held-back", "no-pressure"],
)
def test_memory_high_that_does_no_harm_is_no_finding(facts: MemoryHighFacts) -> None:
    assert isinstance(memory_high.judge(facts), Undecided)


def test_memory_high_that_was_lifted_closes_the_finding() -> None:
    assert isinstance(memory_high.judge(replace(HIGH, owner=replace(HIGH.owner, limit=UNLIMITED))), Fine)


def test_pressure_without_a_limit_is_the_hosts() -> None:
    verdict = pressure.judge(PRESSED)
    assert isinstance(verdict, Problem)
    assert pressure.kind is Kind.RISK
    assert "60% of the time; no limit of a cgroup applies" in verdict.summary
    assert verdict.subject.key == "cgroup:/ci.slice#io"


def test_pressure_shows_the_limits_that_apply() -> None:
    verdict = pressure.judge(replace(PRESSED, limits=(("io.max at /ci.slice", "8:0 rbps=1048576"),)))
    assert isinstance(verdict, Problem)
    assert "no limit" not in verdict.summary
    assert ("io.max at /ci.slice", "8:0 rbps=1048576") in {(each.name, each.value) for each in verdict.evidence}


def test_little_pressure_is_fine() -> None:
    assert isinstance(pressure.judge(replace(PRESSED, full_usec=3_000_000)), Fine)
    assert isinstance(pressure.judge(replace(PRESSED, resource="memory", full_usec=900_000)), Fine)


def test_gomaxprocs_above_the_cpuset_is_a_risk() -> None:
    verdict = cpuset_small.judge(SMALL)
    assert isinstance(verdict, Problem)
    assert verdict.summary == "GOMAXPROCS is 8, and the cpuset of ci.slice leaves 2 CPUs"
    assert isinstance(verdict.fixes[1], ManualStep)
    assert verdict.fixes[1].commands[0][-1] == "AllowedCPUs=0-7"


def test_a_mask_of_its_own_is_told_from_a_cpuset() -> None:
    verdict = cpuset_small.judge(replace(SMALL, cpus=Unknown("its own mask")))
    assert isinstance(verdict, Problem)
    assert "taskset" in verdict.summary
    assert len(verdict.fixes) == 1


def test_gomaxprocs_that_fits_is_fine_and_a_small_machine_is_no_cpuset() -> None:
    assert isinstance(cpuset_small.judge(replace(SMALL, process=replace(SMALL.process, gomaxprocs=2))), Fine)
    assert isinstance(cpuset_small.judge(replace(SMALL, host_cpus=2)), Undecided)
    assert isinstance(cpuset_small.judge(replace(SMALL, process=replace(SMALL.process, gomaxprocs=Unknown("?")))), Undecided)


def test_a_frozen_cgroup_says_how_to_thaw_it() -> None:
    verdict = frozen.judge(FROZEN)
    assert isinstance(verdict, Problem)
    assert verdict.summary == "ci.slice is frozen with 1 process of workloads in it"
    assert verdict.fixes[0].commands == (("systemctl", "thaw", "ci.slice"),)
    old = replace(FROZEN, unit="", cgroup=CgroupId("/a", 3, "freezer"), file="/sys/fs/cgroup/freezer/a/freezer.self_freezing")
    verdict = frozen.judge(old)
    assert isinstance(verdict, Problem)
    assert "write THAWED into /sys/fs/cgroup/freezer/a/freezer.state" in verdict.fixes[0].title


def test_a_thawed_cgroup_closes_the_finding() -> None:
    assert isinstance(frozen.judge(replace(FROZEN, is_frozen=False)), Fine)
