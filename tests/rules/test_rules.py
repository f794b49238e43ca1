# SPDX-License-Identifier: Apache-2.0
"""What holds for every rule."""
from __future__ import annotations

import re

import pytest

from triaged.model.verdict import Severity
from triaged.rules import RULES
from triaged.rules.rule import Rule, rule

IDENTIFIERS = (
    "sysctl.below-policy", "sysctl.user-namespaces-off", "rlimit.below-policy", "cgroup.pids.limit-hit", "cgroup.memory.oom-kill",
    "host.memory.oom-kill", "seccomp.denied", "seccomp.logged", "placement.forbidden-slice",
)


def test_rule_ids_are_stable_and_never_reused() -> None:
    assert {each.identifier for each in RULES} >= set(IDENTIFIERS)
    assert len({each.identifier for each in RULES}) == len(RULES)


@pytest.mark.parametrize("each", RULES, ids=lambda each: each.identifier)
def test_a_rule_is_its_own_manual(each: Rule) -> None:
    assert re.fullmatch(r"[a-z]+(\.[a-z]+)*\.[a-z]+(-[a-z]+)*", each.identifier)
    assert each.title.endswith(".")
    assert len(each.explanation) > 200
    assert each.references
    assert all(re.match(r"^(https://|man:[a-z_0-9.-]+\(\d\))", reference) for reference in each.references)


def test_a_rule_without_a_docstring_is_refused() -> None:
    with pytest.raises(TypeError, match=r"rule test\.x has no docstring"):
        rule("test.x", on=int, severity=Severity.INFO)(lambda fact: fact)
