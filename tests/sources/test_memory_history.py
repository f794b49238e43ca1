# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from triaged.model.memory import MemorySample
from triaged.sources.memory_history import CGROUPS_CAP, MemoryHistory

SECOND = 1_000_000


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sample(clock: Clock, used: int = 1) -> MemorySample:
    return MemorySample(int(clock.now * SECOND), used, 0)


def test_the_minute_before_is_given_oldest_first_and_nothing_older() -> None:
    clock = Clock()
    history = MemoryHistory(clock)
    for number in range(100):
        history.keep([("/ci.slice", sample(clock, number))])
        clock.now += 1
    found = history.before("/ci.slice", int(1099 * SECOND))
    assert [each.used_bytes for each in found] == list(range(39, 100))
    assert [each.used_bytes for each in history.before("/ci.slice", int(1050.5 * SECOND))] == list(range(36, 51))


def test_a_cgroup_that_was_not_watched_has_no_history() -> None:
    assert MemoryHistory(Clock()).before("/other", 5) == ()


def test_a_cgroup_that_is_sampled_no_more_is_forgotten_after_a_minute() -> None:
    clock = Clock()
    history = MemoryHistory(clock)
    history.keep([("/old", sample(clock))])
    clock.now += 59
    history.keep([("/new", sample(clock))])
    assert history.before("/old", int(clock.now * SECOND))
    clock.now += 2
    history.keep([("/new", sample(clock))])
    assert history.watched == ("/new",)


def test_the_number_of_cgroups_and_of_samples_is_bounded() -> None:
    clock = Clock()
    history = MemoryHistory(clock)
    for number in range(3 * CGROUPS_CAP):
        history.keep([(f"/{number}", sample(clock))])
    assert len(history.watched) == CGROUPS_CAP
    for _ in range(1000):
        history.keep([("/busy", sample(clock))])
    assert len(history.before("/busy", int(clock.now * SECOND))) == 64
