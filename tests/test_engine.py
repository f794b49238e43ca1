# SPDX-License-Identifier: Apache-2.0
"""The engine on facts made by hand and a store in memory."""
from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from triaged.bus.codec import View, finding_properties
from triaged.bus.seam import plain
from triaged.engine import Engine
from triaged.model.cgroup import CgroupId
from triaged.model.facts import CgroupLimit, HeadroomFacts, ParameterFacts, PidsFacts, PlacementFacts, SubjectGone
from triaged.model.finding import State
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.requirement import Operator, ParameterRequirement, PlacementRequirement
from triaged.model.subject import CgroupSubject, HostSubject, ProcessSubject
from triaged.model.usage import Usage
from triaged.model.verdict import Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.publish.alerts import finding_fields
from triaged.publish.journal import encode_entry
from triaged.rules import RULES
from triaged.rules.rule import Rule, rule
from triaged.store import Store


@dataclass
class Clock:
    usec: int = 1_000_000_000_000

    def __call__(self) -> int:
        return self.usec


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock=clock)


PID_MAX = ParameterFacts(
    "kernel.pid_max", "/proc/sys/kernel/pid_max", "1000",
    ParameterRequirement("default", "kernel.pid_max", Operator.AT_LEAST, 32768, Severity.WARNING, "because"),
)
FULL = CgroupLimit(CgroupId("/system.slice/ci.service"), "/sys/fs/cgroup/system.slice/ci.service/pids.max", 20, 20, "ci.service")
REFUSED = PidsFacts(FULL.cgroup, 3, 3, FULL, (FULL,), "/sys/fs/cgroup/system.slice/ci.service/pids.events")


def test_a_problem_opens_a_finding(store: Store) -> None:
    engine = Engine(RULES, store)
    engine.take(REFUSED)
    store.flush()
    (finding,) = store.findings()
    assert finding.rule == "cgroup.pids.limit-hit"
    assert finding.kind is Kind.HIT
    assert finding.subject["unit"] == "ci.service"
    assert finding.count == 3
    assert engine.counters == {"facts": 1, "problems": 1}


def test_fine_closes_the_finding_and_keeps_the_reason(store: Store) -> None:
    engine = Engine(RULES, store)
    engine.take(PID_MAX)
    engine.take(replace(PID_MAX, value="4194304"))
    store.flush()
    (finding,) = store.findings()
    assert finding.state is State.RESOLVED
    assert "4194304" in finding.reason


def test_undecided_closes_nothing(store: Store) -> None:
    engine = Engine(RULES, store)
    engine.take(PID_MAX)
    engine.take(replace(PID_MAX, value="what?"))
    store.flush()
    assert [finding.state for finding in store.findings()] == [State.OPEN]


def _broken_and_good() -> tuple[Rule, Rule]:
    @rule("test.broken", on=ParameterFacts, severity=Severity.ERROR)
    def broken(facts: ParameterFacts) -> Verdict:
        """Raises."""
        raise ZeroDivisionError(facts.key)

    @rule("test.good", on=ParameterFacts, severity=Severity.ERROR)
    def good(facts: ParameterFacts) -> Verdict:
        """Works."""
        return Problem(HostSubject(facts.key), "well")

    return broken, good


def test_a_rule_that_raises_is_isolated_counted_and_logged_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(_broken_and_good(), store)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            engine.take(PID_MAX)
    store.flush()
    assert [finding.rule for finding in store.findings()] == ["test.good"]
    assert engine.failures == {"test.broken": 5}
    (record,) = caplog.records
    assert "test.broken" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_a_rule_that_gives_no_verdict_is_a_failure(store: Store) -> None:
    @rule("test.silent", on=ParameterFacts, severity=Severity.ERROR)
    def silent(facts: ParameterFacts) -> Verdict:
        """Gives None."""
        return None  # type: ignore[return-value]

    engine = Engine((silent,), store)
    engine.take(PID_MAX)
    assert engine.failures == {"test.silent": 1}


def test_two_rules_of_one_name_are_refused(store: Store) -> None:
    broken, _ = _broken_and_good()
    with pytest.raises(ValueError, match=r"two rules are called test\.broken"):
        Engine((broken, broken), store)


def test_a_cgroup_that_is_gone_closes_its_lack_of_headroom_and_keeps_its_hits_and_what_its_runs_do(store: Store) -> None:
    engine = Engine(RULES, store)
    path = "/system.slice/ci.service"
    process = ProcessIdentity(7, 70, comm="go", exe="/usr/bin/go", cgroups={"": path}, workload=WorkloadMatch("go-test", "command"))
    engine.take(REFUSED)
    engine.take(PlacementFacts(process, PlacementRequirement("p", ("go-test",), ("system.slice",), why="w")))
    limit = CgroupLimit(CgroupId(path), f"{path}/pids.max", 100, 90, "ci.service")
    engine.take(HeadroomFacts(Usage("tasks", "pids.max", path, 90, 100), cgroup=limit))
    engine.take(PID_MAX)
    store.flush()
    assert store.open_count == 4
    engine.take(SubjectGone(cgroup=CgroupId(path)))
    store.flush()
    assert {finding.rule: finding.state for finding in store.findings()} == {
        "cgroup.pids.limit-hit": State.OPEN,
        "headroom.nearly-used-up": State.RESOLVED,
        "placement.forbidden-slice": State.OPEN,
        "sysctl.below-policy": State.OPEN,
    }


def test_a_process_that_is_gone_closes_what_is_about_it_alone(store: Store) -> None:
    @rule("test.headroom", on=ProcessIdentity, severity=Severity.NOTICE, kind=Kind.HEADROOM)
    def headroom(process: ProcessIdentity) -> Verdict:
        """Names one process."""
        return Problem(ProcessSubject(process, scope="NOFILE"), "nearly full")

    engine = Engine((headroom,), store)
    engine.take(ProcessIdentity(7, 70))  # type: ignore[arg-type]
    engine.take(ProcessIdentity(7, 71))  # type: ignore[arg-type]
    engine.take(SubjectGone(process=ProcessIdentity(7, 70)))
    store.flush()
    assert {finding.subject["start_ticks"]: finding.state for finding in store.findings()} == {70: State.RESOLVED, 71: State.OPEN}


def test_a_hit_expires_when_it_is_not_seen_again(store: Store, clock: Clock) -> None:
    engine = Engine(RULES, store, clock)
    engine.take(replace(REFUSED, time_usec=clock.usec))
    due = engine.next_expiry()
    assert due == clock.usec + 7 * 86400 * 1_000_000
    assert engine.expire(due - 1) == 0
    assert engine.expire(due) == 1
    store.flush()
    assert [finding.state for finding in store.findings()] == [State.EXPIRED]


def test_rules_give_the_verdicts_that_the_engine_knows() -> None:
    assert {Problem, Fine, Undecided} == set(Verdict.__args__)  # type: ignore[attr-defined]
    assert CgroupSubject(CgroupId("/a")).key == "cgroup:/a"


def test_a_cgroup_path_of_4000_odd_bytes_comes_whole_through_state_journal_and_bus(tmp_path: Path) -> None:
    name = "/x\x1b[2J\n\udcff" + "y" * 3_000 + "/é" * 480 + "/run.scope"
    assert len(os.fsencode(name)) >= 4_000 - 20
    limit = replace(FULL, cgroup=CgroupId(name), unit="run.scope")
    store = Store(str(tmp_path))
    store.load()
    Engine(RULES, store).take(replace(REFUSED, cgroup=limit.cgroup, owner=limit, ancestry=(limit,)))
    store.flush()
    again = Store(str(tmp_path))
    assert again.load() == []
    (finding,) = again.findings()
    assert finding.subject_key == f"cgroup:{name}"
    fields = finding_fields(finding)
    assert b"\x1b" not in encode_entry({"MESSAGE": finding.summary, **fields})
    assert fields["TRIAGED_SUBJECT"] == f"/x\\x1b[2J\\x0a\\xff{name[8:]}"
    on_the_bus = plain(finding_properties(finding, "", View.FULL))
    assert on_the_bus["Subject"]["cgroup"] == fields["TRIAGED_SUBJECT"]
    assert "\x1b" not in str(on_the_bus)
    assert len(on_the_bus["Summary"]) < 1000
