# SPDX-License-Identifier: Apache-2.0
"""Real cgroups, real refusals, real kills: what the counters' and the kernel log's sources make of them together.

Needs root and a version 1 or 2 hierarchy in which own cgroups may be made. Version 2's semantics are tested in tests/vm.
"""
from __future__ import annotations

import asyncio
import time

import pytest
from own_cgroups import (
    LIMIT_BYTES,
    NobodyKnown,
    Watching,
    eat_in,
    fork_in,
    killed,
    limit_memory,
    make_below,
    need_log,
    refused,
    remove,
    sleeper_in,
    sources,
)

from triaged.engine import Engine
from triaged.kernel.cgroups import read_event_counter
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import OomFacts, PidsFacts, SubjectGone
from triaged.publish.alerts import finding_fields
from triaged.rules import RULES
from triaged.sources.cgroups import CgroupEvents
from triaged.sources.kernel_log import KernelLog
from triaged.sources.ledger import Ledger
from triaged.sources.source import SourceState
from triaged.store import Store


async def test_refused_forks_are_told_within_a_second_with_the_cgroup_whose_limit_it_was(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "owner")
    (directory / "pids.max").write_text("4")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        count = await asyncio.to_thread(fork_in, directory, 6)
        assert count > 0
        await watching.until(lambda: refused(watching.about(path)) == count, 1.0)
    fact = watching.about(path)[0]
    assert isinstance(fact, PidsFacts)
    assert fact.owner is not None
    assert (fact.owner.cgroup.path, fact.owner.limit) == (path, 4)
    assert path in fact.record
    assert not fact.before_start


async def test_a_process_that_lives_in_the_cgroup_is_named(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "resident")
    (directory / "pids.max").write_text("3")
    lives_there = sleeper_in(directory)
    try:
        ledger = Ledger()
        table = ProcessTable(KernelPaths(), ())
        events, log = CgroupEvents(KernelPaths(), table, ledger=ledger), KernelLog(KernelPaths(), table, ledger)
        async with Watching(log, events) as watching:
            await need_log(log)
            await asyncio.to_thread(fork_in, directory, 5)
            await watching.until(lambda: refused(watching.about(path)) > 0)
    finally:
        lives_there.kill()
        lives_there.wait()
    fact = next(fact for fact in watching.about(path) if isinstance(fact, PidsFacts))
    assert fact.process is not None
    assert fact.process.pid == lives_there.pid


@pytest.mark.parametrize("limited", ["leaf", "ancestor"])
async def test_the_finding_and_its_journal_entry_name_a_process_that_lives_there(own_cgroup, limited: str) -> None:
    """From the kernel to the fields of the entry; again without a line in the kernel log, which has the first refusal only."""
    hierarchy, _, top = own_cgroup("pids", f"told-{limited}")
    leaf = make_below(hierarchy, "pids", top, "leaf")
    (leaf if limited == "leaf" else top).joinpath("pids.max").write_text("3")
    lives_there = sleeper_in(leaf)
    try:
        ledger, table = Ledger(), ProcessTable(KernelPaths(), ())
        events, log = CgroupEvents(KernelPaths(), table, ledger=ledger), KernelLog(KernelPaths(), table, ledger)
        async with Watching(log, events) as watching:
            await need_log(log)
            for _ in range(2):
                watching.facts.clear()
                await asyncio.to_thread(fork_in, leaf, 5)
                await watching.until(lambda: refused(watching.facts) > 0)
                store = Store()
                engine = Engine(RULES, store)
                for fact in watching.facts:
                    engine.take(fact)
                store.flush()
                (finding,) = [each for each in store.findings() if each.rule == "cgroup.pids.limit-hit"]
                assert finding_fields(finding)["OBJECT_PID"] == str(lives_there.pid)
    finally:
        lives_there.kill()
        lives_there.wait()


async def test_an_ancestors_pids_max_is_named_as_the_owner(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("pids", "ancestor")
    (directory / "pids.max").write_text("3")
    leaf = make_below(hierarchy, "pids", directory, "middle", "leaf")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        count = await asyncio.to_thread(fork_in, leaf, 5)
        await watching.until(lambda: refused(watching.about(path)) == count)
    owners = {fact.owner.cgroup.path for fact in watching.about(path) if isinstance(fact, PidsFacts) and fact.owner}
    assert owners == {path}


async def test_later_refusals_in_the_same_cgroup_are_counted_too(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "again")
    (directory / "pids.max").write_text("3")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        first = await asyncio.to_thread(fork_in, directory, 5)
        await watching.until(lambda: refused(watching.about(path)) == first)
        second = await asyncio.to_thread(fork_in, directory, 6)
        await watching.until(lambda: refused(watching.about(path)) == first + second)


async def test_a_refusal_is_told_although_its_cgroup_is_removed_at_once(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("pids", "fleeting")
    (directory / "pids.max").write_text("3")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)

        def hit_and_vanish() -> None:
            leaf = make_below(hierarchy, "pids", directory, "leaf")
            assert fork_in(leaf, 5) > 0
            remove(leaf)

        await asyncio.to_thread(hit_and_vanish)
        await watching.until(lambda: refused(watching.about(path)) > 0)
    fact = next(fact for fact in watching.about(path) if isinstance(fact, PidsFacts))
    assert fact.owner is not None
    assert fact.owner.cgroup.path == path


async def test_a_refusal_below_a_path_of_4000_characters_is_told_with_all_of_it(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("pids", "long")
    (directory / "pids.max").write_text("3")
    names = []
    while len(str(directory)) + 201 * (len(names) + 1) < 4050:
        names.append("x" * 200)
    leaf = make_below(hierarchy, "pids", directory, *names)
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        count = await asyncio.to_thread(fork_in, leaf, 5)
        await watching.until(lambda: refused(watching.about(path)) == count)
    facts = [fact for fact in watching.about(path) if isinstance(fact, PidsFacts)]
    assert all(fact.owner and fact.owner.cgroup.path == path for fact in facts)
    counter = read_event_counter(hierarchy, "pids", str(leaf))
    assert counter is not None
    if not counter.is_hierarchical:  # it counts where the task was
        assert all(fact.cgroup.path == path + "".join(f"/{name}" for name in names) for fact in facts)


async def test_a_kill_is_told_once_with_victim_record_and_owner(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("memory", "oom")
    limit_memory(hierarchy, directory)
    leaf = make_below(hierarchy, "memory", directory, "leaf")
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        pid = await asyncio.to_thread(eat_in, leaf, "a b),task=\n")
        await watching.until(lambda: killed(watching.about(path)) >= 1)
        await asyncio.sleep(0.5)  # long enough for the counter to tell it a second time
    facts = [fact for fact in watching.about(path) if isinstance(fact, OomFacts)]
    assert [fact.kills for fact in facts] == [1]
    fact = facts[0]
    assert fact.victim is not None
    assert (fact.victim.pid, fact.victim.comm) == (pid, "a b),task=\n")
    assert fact.owner is not None
    assert (fact.owner.cgroup.path, fact.owner.limit) == (path, LIMIT_BYTES)
    assert "Killed process" in fact.record
    assert not fact.is_host_wide


async def test_many_kills_in_fleeting_cgroups_are_each_told_once(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("memory", "storm")
    limit_memory(hierarchy, directory, 8 << 20)
    kills = 20  # more than the ten oom-kill lines that the kernel writes in 5 s
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)

        def storm() -> None:
            for number in range(kills):
                leaf = make_below(hierarchy, "memory", directory, f"leaf-{number}")
                eat_in(leaf)
                remove(leaf)

        await asyncio.to_thread(storm)
        await watching.until(lambda: killed(watching.about(path)) >= kills)
        await asyncio.sleep(0.5)
    assert killed(watching.about(path)) == kills


async def test_without_the_kernel_log_counters_still_tell_and_the_status_says_what_is_lost(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("memory", "unlogged")
    limit_memory(hierarchy, directory)
    events, _ = sources()
    async with Watching(events) as watching:
        await asyncio.to_thread(eat_in, directory)
        await watching.until(lambda: killed(watching.about(path)) == 1)
        if not hierarchy.is_v2:
            assert events.status.state is SourceState.DEGRADED
            assert "kernel log" in events.status.reason
    fact = watching.about(path)[0]
    assert isinstance(fact, OomFacts)
    assert fact.victim is None
    assert fact.owner is not None
    assert fact.owner.cgroup.path == path


async def test_counters_from_before_the_start_are_told_as_such_and_once_over_restarts(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "earlier")
    (directory / "pids.max").write_text("3")
    count = fork_in(directory, 5)
    saved: dict[str, int] = {}
    events = CgroupEvents(KernelPaths(), NobodyKnown(), on_counter=saved.__setitem__)
    async with Watching(events) as watching:
        await watching.until(lambda: refused(watching.about(path)) == count)
    fact = watching.about(path)[0]
    assert isinstance(fact, PidsFacts)
    assert fact.before_start
    again = CgroupEvents(KernelPaths(), NobodyKnown(), baseline=saved, on_counter=saved.__setitem__)
    async with Watching(again) as watching:
        more = await asyncio.to_thread(fork_in, directory, 5)
        await watching.until(lambda: refused(watching.about(path)) == more)


async def test_a_removed_cgroup_that_was_reported_is_told_as_gone(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "removed")
    (directory / "pids.max").write_text("3")
    fork_in(directory, 5)
    saved: dict[str, int] = {}
    events = CgroupEvents(KernelPaths(), NobodyKnown(), on_counter=saved.__setitem__)
    async with Watching(events) as watching:
        await watching.until(lambda: refused(watching.about(path)) > 0)
        remove(directory)
        await watching.until(lambda: any(isinstance(fact, SubjectGone) for fact in watching.about(path)))
    assert not [key for key, total in saved.items() if path in key and total]


async def test_idle_the_source_sleeps(own_cgroup) -> None:
    events, log = sources()
    async with Watching(log, events):
        await need_log(log)
        before = events.counters.get("events", 0)
        used = time.process_time()
        await asyncio.sleep(2.0)
        used = time.process_time() - used
        if events.counters.get("events", 0) - before > 50:
            pytest.skip("somebody else makes and removes cgroups here at this moment")
    assert used < 0.1


async def test_a_cgroup_that_was_hit_before_is_polled_again_when_another_one_is_hit(own_cgroup) -> None:
    _, path, directory = own_cgroup("pids", "twice")
    (directory / "pids.max").write_text("3")
    fork_in(directory, 5)
    events, log = sources()
    async with Watching(log, events) as watching:
        await need_log(log)
        await watching.until(lambda: refused(watching.about(path)) > 0)
        _, other, second = own_cgroup("pids", "other")
        (second / "pids.max").write_text("3")
        for _ in range(2):  # the kernel logs the first time only
            before = refused(watching.about(other))
            count = await asyncio.to_thread(fork_in, second, 5)
            await watching.until(lambda count=count, before=before: refused(watching.about(other)) == before + count)


def test_one_pass_over_log_and_counters_tells_an_earlier_kill_once_with_its_victim(own_cgroup) -> None:
    hierarchy, path, directory = own_cgroup("memory", "past")
    limit_memory(hierarchy, directory)
    pid = eat_in(directory)
    events, log = sources()
    facts = [*log.snapshot(), *events.snapshot()]
    if log.status.state is not SourceState.ACTIVE:
        pytest.skip(f"the kernel log cannot be read here: {log.status.reason}")
    kills = [fact for fact in facts if isinstance(fact, OomFacts) and fact.cgroup.path == path]
    assert [(fact.kills, fact.before_start) for fact in kills] == [(1, True)]
    assert kills[0].victim is not None
    assert kills[0].victim.pid == pid
