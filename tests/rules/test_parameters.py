# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters against wishes: facts in, verdict out."""
from __future__ import annotations

from dataclasses import replace

import pytest

from triaged.model.facts import ParameterFacts
from triaged.model.fix import ManualStep, SetParameter
from triaged.model.limit import Unknown
from triaged.model.requirement import Operator, ParameterRequirement, WantedValue
from triaged.model.verdict import Fine, Problem, Severity, Undecided, Verdict
from triaged.policy import Policy, combine
from triaged.rules.parameters import below_policy, user_namespaces_off

LEAST, MOST, EQUALS, ONE_OF, BETWEEN = Operator.AT_LEAST, Operator.AT_MOST, Operator.EQUALS, Operator.ONE_OF, Operator.BETWEEN


def facts(key: str, running: str | Unknown, operator: Operator, value: WantedValue, **more: object) -> ParameterFacts:
    wanted = ParameterRequirement(
        "default", key, operator, value, Severity.NOTICE, "because", ("go-test",), weakens="less safe", origin="default.toml:3"
    )
    made = ParameterFacts(key, f"/proc/sys/{key.replace('.', '/')}", running, wanted, time_usec=42)
    return replace(made, **more)  # type: ignore[arg-type]


def problem(verdict: Verdict) -> Problem:
    assert isinstance(verdict, Problem), verdict
    return verdict


@pytest.mark.parametrize(
    ("running", "operator", "value", "wish", "fixed"),
    [
        ("1000", LEAST, 32768, "at least 32768", "32768"),
        ("-1", LEAST, 0, "at least 0", "0"),
        ("3", MOST, 1, "at most 1", "1"),
        ("2", ONE_OF, (0, 1), "one of 0, 1", "0"),
        ("0", EQUALS, 1, "1", "1"),
        ("|/bin/x %p", EQUALS, "core", "core", "core"),
        ("0", BETWEEN, (1, 5), "between 1 and 5", "1"),
        ("9", BETWEEN, (1, 5), "between 1 and 5", "5"),
        ("40000\t40009", LEAST, 16384, "at least 16384", "23626 40009"),
        ("1\t0", LEAST, "0 2147483647", "a range that covers 0 2147483647", "0 2147483647"),
        ("32768\t60999", LEAST, "1024 40000", "a range that covers 1024 40000", "1024 60999"),
        ("2000\t3000", LEAST, 60000, "at least 60000", "1024 61023"),
    ],
)
def test_a_value_that_does_not_grant_the_wish_is_a_problem_with_a_fix_that_does(
    running: str, operator: Operator, value: WantedValue, wish: str, fixed: str
) -> None:
    given = facts("kernel.x", running, operator, value)
    verdict = problem(below_policy.judge(given))
    shown = " ".join(running.split())
    assert verdict.summary == f"kernel.x is {shown}, policy default wants {wish}"
    assert verdict.severity is Severity.NOTICE
    now, lasting = verdict.fixes
    assert now == SetParameter("kernel.x", fixed, False, "less safe", shown)
    assert lasting == SetParameter("kernel.x", fixed, True, "less safe", shown)
    assert isinstance(below_policy.judge(replace(given, value=fixed)), Fine)


@pytest.mark.parametrize(
    ("running", "operator", "value"),
    [
        ("32768", LEAST, 32768), ("9223372036854775807", LEAST, 1048576), ("1", MOST, 1), ("core", ONE_OF, ("core", "x")),
        ("1", ONE_OF, (0, 1)), ("32768\t60999", LEAST, 28232), ("0\t2147483647", LEAST, "0 2147483647"), ("5", BETWEEN, (1, 5)),
        ("x", Operator.PRESENT, None),
    ],
)
def test_a_value_that_grants_the_wish_is_fine(running: str, operator: Operator, value: WantedValue) -> None:
    assert isinstance(below_policy.judge(facts("kernel.x", running, operator, value)), Fine)


@pytest.mark.parametrize(
    ("running", "operator", "value"),
    [("what?", LEAST, 5), ("", MOST, 5), ("1 2 3", LEAST, 5), ("5", LEAST, "1 9"), (Unknown("permission denied"), LEAST, 5)],
)
def test_a_value_that_cannot_be_compared_decides_nothing(running: str | Unknown, operator: Operator, value: WantedValue) -> None:
    for rule in (below_policy, user_namespaces_off):
        assert isinstance(rule.judge(facts("user.max_user_namespaces", running, operator, value)), Undecided)


def test_a_parameter_that_this_kernel_does_not_have_is_no_finding_unless_it_is_to_exist() -> None:
    missing = facts("kernel.x", Unknown("no such file"), LEAST, 5, is_missing=True)
    assert isinstance(below_policy.judge(missing), Undecided)
    wanted = replace(missing, requirement=replace(missing.requirement, operator=Operator.PRESENT, value=None))
    verdict = problem(below_policy.judge(wanted))
    assert verdict.summary == "kernel.x does not exist on this kernel, policy default wants it"
    assert verdict.fixes == ()


def test_the_evidence_is_the_value_with_its_file_and_the_wish_with_its_reason() -> None:
    verdict = problem(below_policy.judge(facts("kernel.x", "5", LEAST, 9)))
    assert [(item.name, item.value, item.source, item.time_usec) for item in verdict.evidence] == [
        ("kernel.x", "5", "/proc/sys/kernel/x", 42),
        ("wanted by policy default", "at least 9", "default.toml:3", 42),
        ("why (default)", "because", "default.toml:3", 42),
        ("matters for (default)", "go-test", "default.toml:3", 42),
        ("what gets weaker (default)", "less safe", "default.toml:3", 42),
    ]


def test_of_several_policies_only_those_that_are_not_granted_are_named_and_count() -> None:
    def wants(policy: str, value: int, severity: Severity) -> Policy:
        return Policy(policy, "t", (ParameterRequirement(policy, "kernel.x", LEAST, value, severity, "w"),))

    (both,) = combine([wants("default", 100, Severity.ERROR), wants("load", 1000, Severity.INFO)]).parameters
    given = replace(facts("kernel.x", "500", LEAST, 1), requirement=both)
    verdict = problem(below_policy.judge(given))
    assert verdict.summary == "kernel.x is 500, policy load wants at least 1000"
    assert verdict.severity is Severity.INFO
    worse = problem(below_policy.judge(replace(given, value="50")))
    assert worse.summary == "kernel.x is 50, policy default wants at least 100 and policy load wants at least 1000"
    assert worse.severity is Severity.ERROR


@pytest.mark.parametrize(("key", "running"), [("kernel.yama.ptrace_scope", "3"), ("kernel.unprivileged_bpf_disabled", "1")])
def test_what_the_kernel_does_not_take_back_is_a_step_for_a_person(key: str, running: str) -> None:
    (step,) = problem(below_policy.judge(facts(key, running, EQUALS, 0))).fixes
    assert isinstance(step, ManualStep)
    assert "restart the machine" in step.title


def test_a_value_with_control_characters_is_shown_escaped() -> None:
    assert "\x1b" not in problem(below_policy.judge(facts("kernel.core_pattern", "a\x1b[31m", EQUALS, "core"))).summary


@pytest.mark.parametrize(
    ("key", "running", "wanted", "says"),
    [
        ("user.max_user_namespaces", "0", (LEAST, 100), "ENOSPC"),
        ("kernel.unprivileged_userns_clone", "0", (EQUALS, 1), "EPERM"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", (EQUALS, 0), "can make a user namespace but gets no"),
    ],
)
def test_a_parameter_that_makes_user_namespaces_fail_says_how_and_is_one_finding(
    key: str, running: str, wanted: tuple[Operator, int], says: str
) -> None:
    given = facts(key, running, *wanted)
    verdict = problem(user_namespaces_off.judge(given))
    assert verdict.summary.startswith(f"{key} is {running}: ")
    assert says in verdict.summary
    superseded = below_policy.judge(given)
    assert isinstance(superseded, Fine)
    assert "sysctl.user-namespaces-off" in superseded.reason


def test_too_few_user_namespaces_are_below_the_policy_not_off() -> None:
    given = facts("user.max_user_namespaces", "7", LEAST, 100)
    assert isinstance(user_namespaces_off.judge(given), Fine)
    assert problem(below_policy.judge(given)).summary == "user.max_user_namespaces is 7, policy default wants at least 100"


def test_whoever_wants_user_namespaces_off_is_not_told_that_they_are() -> None:
    given = facts("user.max_user_namespaces", "0", EQUALS, 0)
    assert isinstance(user_namespaces_off.judge(given), Fine)
    assert isinstance(below_policy.judge(given), Fine)


def test_other_parameters_are_none_of_its_business() -> None:
    assert isinstance(user_namespaces_off.judge(facts("kernel.pid_max", "0", LEAST, 5)), Undecided)
