# SPDX-License-Identifier: Apache-2.0
"""What two looks at the failing thing show: for a fix that is to allow something, and for one that is to refuse it."""
from __future__ import annotations

import pytest

from triaged.fixers.fixer import Probe
from triaged.fixers.parameter_probes import parameter_probe
from triaged.fixers.verification import CouldNot, Managed, ProbeResult, Refused, judge
from triaged.model.fix import SetParameter

OPENS = Probe("x", "do it", compares=True)
CLOSES = Probe("x", "do it", compares=True, closes=True)
DONE, NOT_DONE, UNKNOWN = Managed("done"), Refused("operation not permitted"), CouldNot("no probe")


@pytest.mark.parametrize(("probe", "before", "after", "helped", "text"), [
    (OPENS, NOT_DONE, DONE, True, "verified: done (before: operation not permitted)"),
    (OPENS, NOT_DONE, NOT_DONE, False, "still could not do it: operation not permitted"),
    (OPENS, DONE, DONE, None, "not verified: done, and could do so before the change"),
    (OPENS, DONE, UNKNOWN, None, "not verified: tried to do it, but no probe"),
    (CLOSES, DONE, NOT_DONE, True, "verified: it is refused to do it: operation not permitted (before: done)"),
    (CLOSES, DONE, DONE, False, "it is still allowed: done"),
    (CLOSES, NOT_DONE, NOT_DONE, None, "it was refused before the change, too"),
    (CLOSES, UNKNOWN, NOT_DONE, None, "no probe"),
    (CLOSES, DONE, UNKNOWN, None, "not verified: tried to do it, but no probe"),
])  # fmt: skip
def test_what_is_seen_is_judged_by_what_the_fix_is_for(
    probe: Probe, before: ProbeResult, after: ProbeResult, helped: bool | None, text: str
) -> None:
    verification = judge(probe, before, after)
    assert verification.helped is helped
    assert text in verification.text


@pytest.mark.parametrize(("parameter", "old", "new", "closes"), [
    ("user.max_user_namespaces", "7858", "0", True), ("user.max_user_namespaces", "0", "100", False),
    ("kernel.unprivileged_userns_clone", "1", "0", True), ("kernel.unprivileged_userns_clone", "0", "1", False),
    ("kernel.unprivileged_bpf_disabled", "0", "2", True), ("kernel.unprivileged_bpf_disabled", "2", "0", False),
    ("kernel.perf_event_paranoid", "-1", "3", True), ("kernel.perf_event_paranoid", "3", "2", False),
    ("net.ipv4.ping_group_range", "0 2147483647", "1 0", True), ("net.ipv4.ping_group_range", "1 0", "0 2147483647", False),
])  # fmt: skip
def test_a_stricter_value_is_to_refuse_and_a_laxer_one_to_allow(parameter: str, old: str, new: str, closes: bool) -> None:
    probe = parameter_probe(SetParameter(parameter, new), old, None)
    assert isinstance(probe, Probe)
    assert (probe.closes, probe.compares) == (closes, True)
    assert probe.plan.endswith(", and see it refused") == closes


def test_what_stays_allowed_to_root_is_tried_as_somebody_else() -> None:
    probe = parameter_probe(SetParameter("kernel.unprivileged_userns_clone", "0"), "1", 0)
    assert isinstance(probe, Probe)
    assert probe.arguments["uid"] == 65534
