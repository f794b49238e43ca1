# SPDX-License-Identifier: Apache-2.0
"""CPU quotas: facts in, verdict out."""
from __future__ import annotations

from dataclasses import replace

import pytest

from triaged.model.cgroup import CgroupId
from triaged.model.cpu import CpuQuota, GoProcess
from triaged.model.facts import CpuFacts
from triaged.model.fix import ManualStep, SetUnitProperty
from triaged.model.limit import UNLIMITED, Limit, Unknown
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.verdict import Fine, Problem, Undecided
from triaged.rules.cpu import cpu_throttled, slow_down

CI, RUN = "/ci.slice", "/ci.slice/run.scope"
CONTAINER = "/docker/" + "0123456789abcdef" * 4


def quota(path: str, usec: Limit, unit: str = "") -> CpuQuota:
    return CpuQuota(CgroupId(path), f"/sys/fs/cgroup{path}/cpu.max", usec, 100_000, unit)


def go(gomaxprocs: int | Unknown = 4, path: str = RUN, pid: int = 10) -> GoProcess:
    workload = WorkloadMatch("go-test", "test-binary", "example.org/w", "go1.27.3")
    who = ProcessIdentity(pid, 100, comm="w.test", exe="/tmp/w.test", uid=0, cgroups={"": path}, workload=workload)
    return GoProcess(who, gomaxprocs, "go1.27.3: the 4 CPUs of its affinity mask", 4)


FACTS = CpuFacts(
    quota(CI, 50_000, "ci.slice"), (quota(RUN, UNLIMITED, "run.scope"), quota(CI, 50_000, "ci.slice")), (go(),),
    interval_usec=10_000_000, periods=100, throttled_periods=83, throttled_usec=20_000_000, stalled_usec=8_000_000,
    counter_file="/sys/fs/cgroup/ci.slice/cpu.stat", time_usec=5,
)


def judged(facts: CpuFacts) -> Problem:
    verdict = cpu_throttled.judge(facts)
    assert isinstance(verdict, Problem)
    return verdict


def test_an_ancestors_quota_below_gomaxprocs_is_named_with_what_would_help() -> None:
    verdict = judged(FACTS)
    assert verdict.subject.key == "cgroup:/ci.slice"
    assert verdict.summary == "ci.slice used up its CPU quota of 0.5 cores in 83% of the periods; it bounds GOMAXPROCS 4"
    evidence = {each.name: each.value for each in verdict.evidence}
    assert evidence["throttled periods"] == "83 of 100 in 10.0 s"
    assert evidence["slow-down, at least"] == "5.0 times (estimate from PSI cpu full)"
    assert evidence["why Go does not see it"] == "it reads only the quota of its own cgroup, /ci.slice/run.scope"
    assert evidence["recommended"] == "GOMAXPROCS=1, go test -p 1 -parallel 1"
    assert evidence["cpu.max at /ci.slice"] == "50000 of every 100000 µs: 0.5 cores"
    now, lasting, manual = verdict.fixes
    assert now == SetUnitProperty("ci.slice", "CPUQuota", "400%", False, seen="50%")
    assert lasting == SetUnitProperty("ci.slice", "CPUQuota", "400%", True, seen="50%")
    assert isinstance(manual, ManualStep)
    assert manual.commands == (("env", "GOMAXPROCS=1", "go", "test", "-p=1", "-parallel=1", "./..."),)


def test_several_test_binaries_share_the_quota() -> None:
    both = replace(FACTS, quota=quota(CI, 300_000, "ci.slice"), processes=(go(2), go(2, pid=11)))
    verdict = judged(both)
    assert "2 Go processes with GOMAXPROCS 4 together" in verdict.summary
    assert {each.name: each.value for each in verdict.evidence}["recommended"] == "GOMAXPROCS=3, go test -p 1 -parallel 3"


def test_a_quota_that_covers_gomaxprocs_is_fine_however_often_it_was_used_up() -> None:
    assert isinstance(cpu_throttled.judge(replace(FACTS, processes=(go(1),), quota=quota(CI, 100_000))), Fine)


def test_without_a_quota_there_is_nothing_to_find() -> None:
    assert isinstance(cpu_throttled.judge(replace(FACTS, quota=quota(CI, UNLIMITED))), Fine)


@pytest.mark.parametrize(
    "facts",
    [
        replace(FACTS, throttled_periods=10), replace(FACTS, periods=4, throttled_periods=4),
        replace(FACTS, processes=(go(Unknown("no build information")),)), replace(FACTS, quota=quota(CI, Unknown("not permitted"))),
    ],
    ids=["a-tenth", "too-few", "gomaxprocs-unknown", "quota-unknown"],
)
def test_where_it_cannot_be_told_nothing_is_said(facts: CpuFacts) -> None:
    assert isinstance(cpu_throttled.judge(facts), Undecided)


def test_without_pressure_the_slow_down_is_estimated_from_throttled_time_over_all_cpus() -> None:
    slower = slow_down(replace(FACTS, stalled_usec=Unknown("version 1")))
    assert slower == (pytest.approx(2.0), "cpu.stat")
    assert slow_down(replace(FACTS, stalled_usec=99_000_000)) == (pytest.approx(100.0), "PSI cpu full")


def test_a_containers_quota_is_raised_in_its_runtime() -> None:
    verdict = judged(replace(FACTS, quota=quota(CONTAINER, 50_000), processes=(go(path=CONTAINER),)))
    first = verdict.fixes[0]
    assert isinstance(first, ManualStep)
    assert first.commands == (("docker", "update", "--cpus=4", CONTAINER.rsplit("/", 1)[1]),)
    assert "why Go does not see it" not in {each.name for each in verdict.evidence}


def test_a_users_own_unit_is_left_to_its_user() -> None:
    path = "/user.slice/user-1000.slice/user@1000.service/app.slice/run.scope"
    verdict = judged(replace(FACTS, quota=quota(path, 50_000, "run.scope")))
    assert isinstance(verdict.fixes[0], ManualStep)
    assert verdict.fixes[0].commands[0][:3] == ("systemctl", "--user", "set-property")
