# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from triaged.errors import ConfigError
from triaged.seccomp.action import ALLOW, ENOSYS, EPERM, KILL_PROCESS, KILL_THREAD, Action, ActionKind
from triaged.seccomp.check import Answer, CheckResult, Outcome, check_workload, policy_answers
from triaged.seccomp.needs import Needs, needs_from
from triaged.seccomp.policy import ArchPolicy, Branch, Condition

MEASURED = {
    "toolchain": "go9.9", "arch": "x86_64", "source": "a test",
    "part": [
        {
            "name": "binary", "program": "*.test",
            "seen": ["mmap", "clone3", "getpid", "setitimer", "timer_create", "socket", "fallocate"],
            "tolerates-eperm": ["getpid", "setitimer", "timer_create", "fallocate"],
            "tolerates-enosys": ["getpid", "setitimer", "timer_create", "clone3"],
            "effect": [
                {"call": "mmap", "errno": "EPERM", "shows": "cannot allocate memory"},
                {"call": "clone3", "errno": "EPERM", "shows": "pthread_create failed"},
                {"call": "fallocate", "errno": "ENOSYS", "shows": "mapping output file failed"},
            ],
        },
    ],
    "tool": [{"name": "cc1", "of": "C compiler", "seen": ["brk", "mmap"]}],
}
DESCRIBED = {
    "workload": [
        {"name": "w", "title": "a workload", "parts": ["binary"]},
        {"name": "c", "title": "with a compiler", "parts": ["binary", "C compiler"]},
    ],
    "note": [
        {"call": "setitimer", "effect": "no samples", "needed": True, "only-with": ["timer_create"]},
        {"call": "socket", "arguments": [[2, 1], [10, 1]]},
    ],
}
NEEDS: Needs = needs_from(MEASURED, DESCRIBED, "test")


def judged(denied: dict[str, Action | tuple[Answer, ...]], workload: str = "w", decided: Action = ALLOW) -> CheckResult:
    def answers(call: str) -> tuple[Answer, ...]:
        found = denied.get(call, ALLOW)
        return ((found, ""),) if isinstance(found, Action) else found
    return check_workload(answers, NEEDS, workload, decide=lambda call, arguments: decided)


def outcome(result: CheckResult, call: str) -> tuple[Outcome, str]:
    return next((verdict.outcome, verdict.shows) for verdict in result.verdicts if verdict.call == call)


def test_all_allowed_works() -> None:
    result = judged({})
    assert result.works
    assert {verdict.outcome for verdict in result.verdicts} == {Outcome.ALLOWED}


def test_a_required_call_that_is_denied_breaks_with_the_text_that_is_printed() -> None:
    result = judged({"mmap": EPERM})
    assert not result.works
    assert outcome(result, "mmap") == (Outcome.BREAKS, "cannot allocate memory")


def test_a_probed_call_may_be_denied_but_not_killed() -> None:
    assert outcome(judged({"getpid": EPERM}), "getpid")[0] is Outcome.HARMLESS
    assert judged({"getpid": EPERM}).works
    for action in (KILL_PROCESS, KILL_THREAD, Action(ActionKind.TRAP)):
        assert outcome(judged({"getpid": action}), "getpid")[0] is Outcome.BREAKS


def test_what_is_done_without_alone_but_not_together_is_not_called_harmless() -> None:
    measured = {**MEASURED, "part": [{**MEASURED["part"][0], "tolerates-enosys-together": False}]}  # type: ignore[dict-item]
    needs = needs_from(measured, DESCRIBED, "test")

    def found(*denied: str) -> CheckResult:
        return check_workload(lambda call: ((ENOSYS if call in denied else ALLOW, ""),), needs, "w")

    assert outcome(found("getpid"), "getpid") == (Outcome.HARMLESS, "")
    both = found("getpid", "clone3")
    assert {outcome(both, call)[0] for call in ("getpid", "clone3")} == {Outcome.DEPENDS}
    assert "not together" in outcome(both, "getpid")[1]
    assert both.works  # it is not known to break
    assert outcome(judged({"getpid": ENOSYS, "clone3": ENOSYS}), "getpid")[0] is Outcome.HARMLESS


def test_the_errno_decides_for_clone3_and_fallocate() -> None:
    assert outcome(judged({"clone3": ENOSYS}), "clone3")[0] is Outcome.HARMLESS
    assert outcome(judged({"clone3": EPERM}), "clone3") == (Outcome.BREAKS, "pthread_create failed")
    assert outcome(judged({"fallocate": EPERM}), "fallocate")[0] is Outcome.HARMLESS
    assert outcome(judged({"fallocate": ENOSYS}), "fallocate") == (Outcome.BREAKS, "mapping output file failed")


def test_an_errno_that_was_not_tried_is_said_to_be_so() -> None:
    eacces = Action(ActionKind.ERRNO, 13)
    assert outcome(judged({"mmap": eacces}), "mmap") == (
        Outcome.BREAKS, "not tried with EACCES; with another errno: cannot allocate memory")
    assert outcome(judged({"getpid": eacces}), "getpid")[0] is Outcome.HARMLESS


def test_an_effect_that_needs_two_denials_shows_only_with_both() -> None:
    assert outcome(judged({"setitimer": EPERM}), "setitimer")[0] is Outcome.HARMLESS
    assert outcome(judged({"setitimer": EPERM, "timer_create": EPERM}), "setitimer") == (Outcome.BREAKS, "no samples")


def test_known_arguments_decide_a_conditional_call() -> None:
    conditional = ((ALLOW, "args[0] != 0x28"), (EPERM, "otherwise"))
    assert outcome(judged({"socket": conditional}), "socket")[0] is Outcome.ALLOWED
    assert outcome(judged({"socket": conditional}, decided=EPERM), "socket")[0] is Outcome.BREAKS
    assert outcome(judged({"mmap": conditional}), "mmap")[0] is Outcome.DEPENDS


def test_a_supervisor_and_what_was_not_measured_depend() -> None:
    assert outcome(judged({"getpid": Action(ActionKind.USER_NOTIF)}), "getpid")[0] is Outcome.DEPENDS
    assert outcome(judged({"brk": EPERM}, "c"), "brk")[0] is Outcome.DEPENDS


def test_the_worst_comes_first() -> None:
    outcomes = [verdict.outcome for verdict in judged({"mmap": EPERM, "getpid": EPERM}).verdicts]
    assert outcomes == sorted(outcomes, key=list(Outcome).index)


def test_answers_of_a_policy_stop_at_the_first_rule_that_always_holds() -> None:
    condition = Condition(0, "==", 1)
    policy = ArchPolicy("x86_64", EPERM, {0: (Branch(ALLOW, (condition,)),), 1: (Branch(ALLOW),)})
    assert policy_answers(policy, KILL_THREAD, "x86_64", "read") == ((ALLOW, "args[0] == 0x1"), (EPERM, "otherwise"))
    assert policy_answers(policy, KILL_THREAD, "x86_64", "write") == ((ALLOW, ""),)
    assert policy_answers(policy, KILL_THREAD, "x86_64", "close") == ((EPERM, ""),)
    assert policy_answers(None, KILL_THREAD, "x86_64", "close") == ((KILL_THREAD, ""),)
    assert policy_answers(policy, KILL_THREAD, "x86_64", "waitpid") is None


@pytest.mark.parametrize("broken", [
    {}, {"part": [{}]}, {**MEASURED, "part": 5}, {**MEASURED, "part": [{"name": "x", "program": "y"}]},
])
def test_a_wrong_description_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"needs\.toml"):
        needs_from(broken, DESCRIBED, "needs.toml")
    with pytest.raises(ConfigError, match="was not measured"):
        needs_from({**MEASURED, "tool": []}, DESCRIBED, "needs.toml")
