# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from triaged.model.cgroup import CgroupId
from triaged.model.facts import CgroupLimit, HeadroomFacts
from triaged.model.fix import ManualStep, SetParameter, SetResourceLimit, SetUnitProperty
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.usage import Usage, binding
from triaged.model.verdict import Fine, Problem, Severity, Undecided
from triaged.rules.headroom import nearly_used_up

RUNNER = CgroupLimit(CgroupId("/system.slice/runner.service", 7), "/c/runner.service/pids.max", 100, 85, "runner.service")


def tasks(used: int, limit: int = 100) -> HeadroomFacts:
    return HeadroomFacts(Usage("tasks", "pids.max", RUNNER.cgroup.path, used, limit), cgroup=RUNNER, time_usec=1)


def judge(facts: HeadroomFacts) -> object:
    return nearly_used_up.judge(facts)


def test_four_fifths_in_use_is_a_warning_that_names_the_unit_and_its_property() -> None:
    verdict = judge(tasks(80))
    assert isinstance(verdict, Problem)
    assert verdict.summary == "tasks: 80% of pids.max of runner.service is in use (80 of 100)"
    assert verdict.severity is None
    assert isinstance(verdict.fixes[0], SetUnitProperty)
    assert (verdict.fixes[0].name, verdict.fixes[0].value) == ("TasksMax", "200")


def test_nearly_all_in_use_is_an_error() -> None:
    verdict = judge(tasks(95))
    assert isinstance(verdict, Problem)
    assert verdict.severity is Severity.ERROR


@pytest.mark.parametrize("used", [70, 75, 79])
def test_between_the_marks_nothing_changes(used: int) -> None:
    assert isinstance(judge(tasks(used)), Undecided)


def test_well_below_closes() -> None:
    assert isinstance(judge(tasks(69)), Fine)


@pytest.mark.parametrize(
    "usage",
    [
        Usage("tasks", "pids.max", "/", Unknown("gone"), 100),
        Usage("tasks", "pids.max", "/", 10, UNLIMITED),
        Usage("tasks", "RLIMIT_NPROC", "user 0", 99, 100, note="root is exempt"),
    ],
)
def test_what_is_unknown_unlimited_or_not_binding_is_not_decided(usage: Usage) -> None:
    assert isinstance(judge(HeadroomFacts(usage)), Undecided)


def test_a_host_limit_is_raised_by_its_parameter() -> None:
    verdict = judge(HeadroomFacts(Usage("files", "fs.file-max", "host", 90, 100)))
    assert isinstance(verdict, Problem)
    assert [(type(fix), fix.key) for fix in verdict.fixes] == [
        (SetParameter, "set-parameter:fs.file-max"), (SetParameter, "set-parameter:fs.file-max:lasting"),
    ]


def test_open_files_of_a_process_are_raised_for_that_process() -> None:
    who = ProcessIdentity(12, start_ticks=5, comm="store.test")
    verdict = judge(HeadroomFacts(Usage("files", "RLIMIT_NOFILE", "process 12", 60, 64), process=who))
    assert isinstance(verdict, Problem)
    assert isinstance(verdict.fixes[0], SetResourceLimit)
    assert verdict.subject.key == "process:12.5#RLIMIT_NOFILE"


def test_a_container_is_told_its_runtime_option() -> None:
    path = "/system.slice/docker-" + "a" * 64 + ".scope"
    limit = CgroupLimit(CgroupId(path), "/c/memory.max", 100, 90, path.rsplit("/", 1)[-1])
    verdict = judge(HeadroomFacts(Usage("memory", "memory.max", path, 90, 100), cgroup=limit))
    assert isinstance(verdict, Problem)
    fix = verdict.fixes[0]
    assert isinstance(fix, ManualStep)
    assert fix.commands[0][:3] == ("docker", "update", "--memory=200")


def test_the_limit_with_the_least_left_binds_first() -> None:
    usages = [
        Usage("tasks", "kernel.threads-max", "host", 400, 1000),
        Usage("tasks", "pids.max", "/a", 60, 64),
        Usage("tasks", "RLIMIT_NPROC", "user 0", 60, 60, note="root is exempt"),
        Usage("tasks", "pids.max", "/", 60, UNLIMITED),
        Usage("files", "RLIMIT_NOFILE", "process 1", 64, 64),
    ]
    first = binding(usages, "tasks")
    assert first is not None
    assert (first.limit_name, first.free) == ("pids.max", 4)
