# SPDX-License-Identifier: Apache-2.0
"""I/O limits and huge pages: facts in, verdict out."""
from __future__ import annotations

from dataclasses import replace

import pytest

from triaged.model.cgroup import CgroupId
from triaged.model.facts import CgroupLimit, HugePagesFacts, IoFacts
from triaged.model.fix import ManualStep
from triaged.model.io import IoLimit
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.verdict import Fine, Problem, Undecided
from triaged.rules.devices import huge_pages_refused, io_throttled

CONTAINER = "0123456789abcdef" * 4
POD = "/kubepods.slice/kubepods-pod12345678_1234_1234_1234_123456789abc.slice/cri-containerd-" + CONTAINER + ".scope"
CI = CgroupId("/ci.slice", 7)
WHO = ProcessIdentity(10, 100, comm="w.test", cgroups={"": "/ci.slice/run.scope"})
SLOW = IoFacts(
    CI, (IoLimit("/dev/vda", "wbps", 1 << 20, 10 << 20), IoLimit("/dev/vda", "rbps", 1 << 20, 0)), 6_000_000, 10_000_000,
    "/c/ci.slice/io.max", "/c/ci.slice/io.stat", "ci.slice", "/etc/x.conf:2, IOWriteBandwidthMax=/dev/vda 1M", (WHO,), 5,
)
HUGE = HugePagesFacts(
    CgroupLimit(CI, "/c/ci.slice/hugetlb.2MB.max", 4 << 20, 4 << 20, "ci.slice"), "2MB", 2, "/c/ci.slice/hugetlb.2MB.events.local",
    (WHO,), 5,
)


def test_a_rate_at_the_limit_with_tasks_that_stand_still_is_a_hit() -> None:
    verdict = io_throttled.judge(SLOW)
    assert isinstance(verdict, Problem)
    assert verdict.summary == (
        "ci.slice was at its limit of 1048576 bytes/s written on /dev/vda; its tasks stood still 60% of the time"
    )
    said = {item.name: item.value for item in verdict.evidence}
    assert said["done"] == "10485760 in 10.0 s: 100% of what wbps allows"
    assert said["rbps of /dev/vda"] == "1048576 bytes/s read"
    assert said["limit comes from"] == "/etc/x.conf:2, IOWriteBandwidthMax=/dev/vda 1M"
    (fix,) = verdict.fixes
    assert isinstance(fix, ManualStep)
    assert fix.commands == (("systemctl", "set-property", "--runtime", "ci.slice", "IOWriteBandwidthMax=/dev/vda 4194304"),)


def test_on_version_1_the_rate_alone_tells() -> None:
    verdict = io_throttled.judge(replace(SLOW, stalled_usec=Unknown("version 1 has no pressure")))
    assert isinstance(verdict, Problem)
    assert "stood still" not in verdict.summary


def test_below_the_rate_or_without_waiting_nothing_is_said() -> None:
    assert isinstance(io_throttled.judge(replace(SLOW, interval_usec=20_000_000)), Undecided)
    assert isinstance(io_throttled.judge(replace(SLOW, stalled_usec=100_000)), Undecided)


def test_a_limit_that_was_taken_away_closes_the_finding() -> None:
    assert isinstance(io_throttled.judge(replace(SLOW, limits=())), Fine)


@pytest.mark.parametrize(("path", "words"), [
    (f"/system.slice/docker-{CONTAINER}.scope", "--device-write-bps"), (POD, "pod 12345678-1234-1234-1234-123456789abc"),
])  # fmt: skip
def test_a_container_is_made_anew(path: str, words: str) -> None:
    verdict = io_throttled.judge(replace(SLOW, cgroup=CgroupId(path), unit=path.rsplit("/", 1)[-1]))
    assert isinstance(verdict, Problem)
    assert words in verdict.fixes[0].title


def test_refused_huge_pages_are_a_hit_with_the_file_to_write() -> None:
    verdict = huge_pages_refused.judge(HUGE)
    assert isinstance(verdict, Problem)
    assert verdict.summary == "ci.slice was refused huge pages of 2MB 2 times: its limit is 4194304 bytes"
    assert "/c/ci.slice/hugetlb.2MB.max" in verdict.fixes[0].title
    assert isinstance(huge_pages_refused.judge(replace(HUGE, refused=0)), Fine)


def test_huge_pages_of_a_pod_are_its_resource_limit() -> None:
    owner = replace(HUGE.owner, cgroup=CgroupId(POD))
    verdict = huge_pages_refused.judge(replace(HUGE, owner=owner))
    assert isinstance(verdict, Problem)
    assert "hugepages-2Mi of pod" in verdict.fixes[0].title
