# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

from triaged.kernel.kernel_log import OomKill
from triaged.sources.ledger import HOLD_S, WAIT_S, Ledger, Vanished


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def kill(is_repeated: bool = False) -> OomKill:
    return OomKill(7, "x", 0, False, "", "", 1, "text", is_repeated)


def reading() -> tuple[Ledger, Clock]:
    clock = Clock()
    ledger = Ledger(clock)
    ledger.log_is_read = True
    return ledger, clock


def overdue(ledger: Ledger, clock: Clock) -> list[tuple[str, int]]:
    clock.now += WAIT_S + 0.01
    return [(owed.path, owed.kills) for owed in ledger.due()]


def test_a_line_before_its_counter_is_told_once() -> None:
    ledger, clock = reading()
    assert ledger.take_kill(kill(), "/a")
    ledger.take_count("/a", 1, None)
    assert overdue(ledger, clock) == []


def test_a_counter_before_its_line_waits_and_the_line_tells_it() -> None:
    ledger, clock = reading()
    ledger.take_count("/a", 1, None)
    assert ledger.due() == []
    assert ledger.next_due() == clock.now + WAIT_S
    assert ledger.take_kill(kill(), "/a")
    assert overdue(ledger, clock) == []


def test_a_counter_without_a_line_is_told_after_a_moment_and_a_late_line_not_again() -> None:
    ledger, clock = reading()
    ledger.take_count("/a", 2, None)
    assert ledger.take_kill(kill(), "/a")
    assert overdue(ledger, clock) == [("/a", 1)]
    assert not ledger.take_kill(kill(), "/a")
    assert ledger.take_kill(kill(), "/a"), "the debt is paid: this is another kill"


def test_without_the_log_nothing_waits() -> None:
    ledger = Ledger(Clock())
    ledger.take_count("/a", 1, "where")
    assert [(owed.kills, owed.source) for owed in ledger.due()] == [(1, "where")]


def test_a_line_of_another_cgroup_stands_for_nothing() -> None:
    ledger, clock = reading()
    ledger.take_count("/a", 1, None)
    assert ledger.take_kill(kill(), "/b")
    assert overdue(ledger, clock) == [("/a", 1)]


def test_kills_in_cgroups_that_are_gone_are_matched_below_their_ancestor() -> None:
    ledger, clock = reading()
    assert ledger.take_kill(kill(), "/ci.slice/gone.scope")
    assert ledger.take_kill(kill(), "/other")
    ledger.take_count("/ci.slice", 2, None, is_below=True)
    assert ledger.take_kill(kill(), "/ci.slice/gone-too.scope")
    assert overdue(ledger, clock) == []


def test_a_line_that_names_no_cgroup_stands_for_any_kill() -> None:
    ledger, clock = reading()
    assert ledger.take_kill(kill(), "")
    ledger.take_count("/a", 2, None)
    assert ledger.take_kill(kill(), "")
    assert overdue(ledger, clock) == []


def test_the_repeated_line_of_a_group_kill_stands_for_a_count_and_is_not_told() -> None:
    ledger, clock = reading()
    assert ledger.take_kill(kill(), "/a")
    assert not ledger.take_kill(kill(is_repeated=True), "/a")
    ledger.take_count("/a", 2, None)
    assert overdue(ledger, clock) == []


def test_a_cgroup_is_preferred_to_its_ancestor() -> None:
    ledger, clock = reading()
    ledger.take_count("/a", 1, None, is_below=True)
    ledger.take_count("/a/b", 1, None)
    assert ledger.take_kill(kill(), "/a/b")
    assert overdue(ledger, clock) == [("/a", 1)]


def test_in_whatever_order_lines_and_counters_come_each_kill_is_told_once() -> None:
    shuffle = random.Random(0)
    for _ in range(300):
        ledger, clock = reading()
        steps = [("line", path) for path in "abc" for _ in range(4)] + [("count", path) for path in "abc" for _ in range(4)]
        shuffle.shuffle(steps)
        told = 0
        for kind, path in steps:
            if kind == "line":
                told += ledger.take_kill(kill(), f"/{path}")
            else:
                ledger.take_count(f"/{path}", 1, None)
            clock.now += shuffle.choice((0.0, 0.05, 0.3))
            told += sum(owed.kills for owed in ledger.due())
        told += sum(number for _, number in overdue(ledger, clock))
        assert told == 12


def test_a_flood_of_lines_without_counters_stays_bounded() -> None:
    ledger, _ = reading()
    for number in range(20_000):
        ledger.take_kill(kill(), f"/{number}")
    assert len(ledger._credit) <= 4096


def test_a_line_without_a_cgroup_waits_for_the_one_counter_that_rises_and_goes_with_it() -> None:
    ledger, clock = reading()
    ledger.hold(kill())
    ledger.take_count("/a", 1, "source")
    assert ledger.release() == []
    clock.now += WAIT_S + 0.01
    (owed,) = ledger.due()
    assert (owed.path, owed.kills, owed.line) == ("/a", 1, kill())
    clock.now += 5
    assert ledger.release() == []


def test_of_several_counters_none_is_given_a_line_and_the_lines_are_not_told_again() -> None:
    ledger, clock = reading()
    for path in ("/a", "/b"):
        ledger.hold(kill())
        ledger.take_count(path, 1, None)
    clock.now += WAIT_S + 0.01
    assert [owed.line for owed in ledger.due()] == [None, None]
    clock.now += 5
    assert ledger.release() == []
    assert not ledger.pay_debt(), "the lines came before: nothing is owed"


def test_a_line_that_no_counter_speaks_for_is_given_back_with_what_vanished() -> None:
    ledger, clock = reading()
    ledger.note_vanished("/long-ago")
    clock.now += 5
    ledger.note_vanished("/told")
    assert ledger.take_kill(kill(), "/told")
    ledger.hold(kill())
    ledger.note_vanished("/a")
    ledger.note_living_read(clock.now)
    clock.now += HOLD_S + 0.01
    ((given, vanished),) = ledger.release()
    assert given == kill()
    assert vanished == Vanished(("/a",), is_complete=True)
    assert vanished.only == "/a"


def test_what_is_left_is_only_believed_when_all_that_lives_was_read() -> None:
    ledger, clock = reading()
    ledger.hold(kill())
    ledger.note_vanished("/a")
    clock.now += HOLD_S + 0.01
    assert ledger.release() == [], "it waits for the look"
    clock.now += 2
    ((_, vanished),) = ledger.release()
    assert vanished.paths == ("/a",)
    assert vanished.only == ""


def test_of_two_places_for_one_kill_none_is_chosen() -> None:
    assert Vanished(("/a", "/b"), True).only == ""
    assert Vanished(("/a", "/b"), True, lines=2, number=1).only == "/b"


def test_a_cgroup_that_lives_and_whose_counter_did_not_rise_is_none_where_the_kill_was() -> None:
    assert Vanished(("/a", "/b"), True).if_possible("/a") == "/a"
    assert Vanished(("/a", "/b"), True).if_possible("/alive") == ""
    assert Vanished(("/a", "/b"), False).if_possible("/alive") == "/alive", "not every counter was read"


def test_a_repeated_line_is_not_given_back() -> None:
    ledger, clock = reading()
    ledger.hold(kill(is_repeated=True))
    clock.now += 5
    assert ledger.release() == []
    assert ledger.next_release() is None


def test_a_counter_told_without_its_line_is_a_debt_that_a_line_without_a_cgroup_pays_once() -> None:
    ledger, clock = reading()
    ledger.take_count("/a", 1, None)
    assert overdue(ledger, clock) == [("/a", 1)]
    assert ledger.pay_debt()
    assert not ledger.pay_debt()


def test_a_process_that_was_seen_in_a_cgroup_is_known_there_for_a_minute() -> None:
    ledger, clock = reading()
    ledger.note_members("/a", [7, 8])
    ledger.note_members("/b", [8])
    assert (ledger.cgroup_of(7), ledger.cgroup_of(8), ledger.cgroup_of(9)) == ("/a", "/b", "")
    clock.now += 61
    assert ledger.cgroup_of(7) == ""


def test_a_flood_of_lines_without_cgroups_stays_bounded_and_is_counted() -> None:
    ledger, _ = reading()
    for number in range(10_000):
        ledger.hold(kill())
        ledger.note_members(f"/{number}", [number])
        ledger.note_vanished(f"/{number}")
    assert len(ledger._held) == 4096
    assert ledger.dropped == 10_000 - 4096
    assert len(ledger._members) == 8192
