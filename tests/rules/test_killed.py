# SPDX-License-Identifier: Apache-2.0
"""A SIGKILL that was no OOM kill: facts in, verdict out."""
from __future__ import annotations

from dataclasses import replace

import pytest

from triaged.model.facts import ExitFacts
from triaged.model.killed import KillEvidence, OomCounter, Relative
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.verdict import Problem, Undecided
from triaged.rules.killed import killed

GONE = Unknown("the cgroup was removed")
HERE = OomCounter("/ci.slice/run.scope", "/sys/fs/cgroup/ci.slice/run.scope/memory.events", 2, 2)
ABOVE = OomCounter("/ci.slice", "/sys/fs/cgroup/ci.slice/memory.events", 3, 3)
HOST = OomCounter("", "/proc/vmstat", 270, 270)
EVIDENCE = KillEvidence((HERE, ABOVE), HOST, 1.5, UNLIMITED, (Relative(9, "go", ("go", "test", "./...")),), False)
FACTS = ExitFacts(ProcessIdentity(10, 100, comm="w.test", exe="/tmp/w.test"), 9, False, 5, EVIDENCE)


def judged(**changes: object) -> Problem:
    verdict = killed.judge(replace(FACTS, evidence=replace(EVIDENCE, **changes)))  # type: ignore[arg-type]
    assert isinstance(verdict, Problem)
    return verdict


def test_unchanged_counters_prove_that_it_was_no_oom_kill() -> None:
    verdict = judged()
    assert verdict.summary == "w.test (pid 10) was killed by SIGKILL, not for lack of memory: sender unknown"
    evidence = {each.name: each.value for each in verdict.evidence}
    assert evidence["oom_kill of /ci.slice/run.scope"] == "unchanged at 2"
    assert evidence["oom_kill of /ci.slice"] == "unchanged at 3"
    assert evidence["oom_kill of the host"] == "unchanged at 270"


@pytest.mark.parametrize(
    "evidence",
    [
        None, replace(EVIDENCE, counters=(replace(HERE, after=3), ABOVE)), replace(EVIDENCE, host=replace(HOST, after=271)),
        replace(EVIDENCE, counters=(replace(HERE, after=GONE),), host=None), replace(EVIDENCE, counters=(), host=None),
    ],
    ids=["not-seen-to-begin", "rose-here", "rose-elsewhere", "cgroup-gone", "nothing-read"],
)
def test_without_the_proof_nothing_is_claimed(evidence: KillEvidence | None) -> None:
    assert isinstance(killed.judge(replace(FACTS, evidence=evidence)), Undecided)


def test_another_signal_is_not_judged() -> None:
    assert isinstance(killed.judge(replace(FACTS, signal=15)), Undecided)


def test_of_a_removed_cgroup_the_hosts_counter_is_proof_enough() -> None:
    evidence = {each.name: each.value for each in judged(counters=(replace(HERE, after=GONE),)).evidence}
    assert evidence["oom_kill of /ci.slice/run.scope"] == "unknown (the cgroup was removed)"


def test_a_used_up_cpu_limit_names_the_kernel() -> None:
    verdict = judged(cpu_limit=1, cpu_used_s=1.01)
    assert "RLIMIT_CPU of 1 s was used up" in verdict.summary
    assert "was used up" in judged(cpu_limit=1, cpu_used_s=0.78).summary
    assert "sender unknown" in judged(cpu_limit=2, cpu_used_s=1.2).summary
    assert "sender unknown" in judged(cpu_limit=1, cpu_used_s=Unknown("it was reaped")).summary


@pytest.mark.parametrize(
    ("command", "kills"),
    [
        (("timeout", "-k", "5", "10", "w.test"), True), (("timeout", "-s", "KILL", "10", "w.test"), True),
        (("timeout", "--signal=9", "10", "w.test"), True), (("timeout", "--kill-after=5", "10", "w.test"), True),
        (("timeout", "-sKILL", "10", "w.test"), True), (("timeout", "10", "w.test"), False),
        (("timeout", "-s", "INT", "10", "w.test"), False), (("timeout", "10", "env", "-k"), False),
    ],
)
def test_a_timeout_above_it_is_named_only_if_it_kills(command: tuple[str, ...], kills: bool) -> None:
    summary = judged(relatives=(Relative(8, "timeout", command),)).summary
    assert ("probably by pid 8 `timeout`" in summary) is kills


def test_an_emptied_cgroup_points_at_its_owner() -> None:
    assert "cgroup.kill" in judged(is_cgroup_empty=True).summary


@pytest.mark.parametrize(("words", "after"), [
    ("-s KILL 5 go test", 5), ("--signal=9 2m go", 120), ("-sKILL 0.5 x", 0.5), ("-k 3 10 x", 13), ("--kill-after=1m 1h x", 3660),
    ("-k5 .5s x", 5.5), ("-s INT -k 1 5 x", 6), ("5 x", None), ("-s KILL 0 x", None), ("-s KILL x", None), ("-s KILL", None),
    ("", None), ("-k 0 5 x", None), ("-v -s KILL 1. x", 1),
])  # fmt: skip
def test_when_a_timeout_sends_sigkill_is_read_from_its_arguments(words: str, after: float | None) -> None:
    assert Relative(9, "timeout", ("timeout", *words.split())).kills_after_s == after


@pytest.mark.parametrize(("age_s", "sender"), [
    (5.02, "by pid 9 `timeout`, whose 5 s were over"), (3.0, "sender unknown"), (None, "probably by pid 9 `timeout`, above it"),
])  # fmt: skip
def test_a_timeout_is_named_when_its_time_was_over_and_ruled_out_when_not(age_s: float | None, sender: str) -> None:
    verdict = judged(relatives=(Relative(9, "timeout", ("timeout", "-s", "KILL", "5", "go", "test"), age_s),))
    assert verdict.summary.endswith(f": {sender}")
    said = {each.name: str(each.value) for each in verdict.evidence}
    if age_s is not None:
        assert said["time of ancestor 1"].endswith("over" if age_s > 5 else "ruled out, not over yet")
