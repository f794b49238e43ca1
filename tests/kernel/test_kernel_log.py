# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from triaged.errors import InterfaceMissing, KernelError, Malformed
from triaged.kernel.kernel_log import (
    ForkRejected,
    KernelLogReader,
    LogEvent,
    LogParser,
    OomKill,
    Suppressed,
    parse_record,
    realtime_of,
)
from triaged.kernel.paths import KernelPaths

KILLED = "Memory cgroup out of memory: Killed process {pid} ({comm}) total-vm:8kB, anon-rss:2kB, file-rss:3kB, shmem-rss:0kB, {end}"
END = "UID:1000 pgtables:108kB oom_score_adj:0"
OOM = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg={limit},task_memcg={path},"
    "task={comm},pid={pid},uid=1000"
)


def record(text: str, flags: str = "-", stamp: int = 1_000_000, priority: int = 6) -> bytes:
    """A record as /dev/kmsg gives it."""
    raw = text.encode("utf-8", "surrogateescape")
    escaped = b"".join(b"\\x%02x" % byte if byte < 32 or byte > 126 or byte == 92 else bytes((byte,)) for byte in raw)
    return b"%d,1,%d,%s;%s\n SUBSYSTEM=x\n" % (priority, stamp, flags.encode(), escaped)


def parsed(*records: bytes) -> list[LogEvent]:
    parser = LogParser()
    return [event for data in records if (event := parser.feed(parse_record(data))) is not None]


def kill(pid: int, comm: str, path: str, limit: str = "/ci.slice", stamp: int = 1_000_000) -> list[bytes]:
    return [
        record(OOM.format(limit=limit, path=path, comm=comm, pid=pid), stamp=stamp),
        record(KILLED.format(pid=pid, comm=comm, end=END), stamp=stamp + 20, priority=3),
    ]


def test_a_record_is_priority_sequence_stamp_and_text_without_escapes() -> None:
    found = parse_record(b"4,346,1640512358,-;a b),c=\\x0a\"\\x5c\\xff\n SUBSYSTEM=cpu\n DEVICE=+cpu:0\n")
    assert (found.priority, found.sequence, found.stamp_usec, found.is_continued) == (4, 346, 1640512358, False)
    assert os.fsencode(found.text) == b'a b),c=\n"\\\xff'


@pytest.mark.parametrize("data", [b"", b"6,1", b"6,1,2", b";x", b"6,1;x", b"a,b,c,-;x", b"6,,3,-;x", b"\xff\xfe"])
def test_a_record_cut_short_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_record(data)


def test_a_kill_names_victim_limit_and_cgroup() -> None:
    (event,) = parsed(*kill(459, "corpus.test", "/ci.slice/run.scope"))
    assert isinstance(event, OomKill)
    assert (event.pid, event.comm, event.uid) == (459, "corpus.test", 1000)
    assert (event.limit_path, event.cgroup_path) == ("/ci.slice", "/ci.slice/run.scope")
    assert not event.is_host_wide
    assert not event.is_repeated
    assert "oom-kill:" in event.text
    assert "Killed process" in event.text


def test_what_a_program_writes_into_the_kernel_log_is_not_believed() -> None:
    forged = [
        kill(459, "corpus.test", "/ci.slice")[1].replace(b"3,", b"11,", 1),
        record("cgroup: fork rejected by pids controller in /ci.slice", priority=12),
    ]
    assert parsed(*forged) == []


def test_a_kill_without_its_oom_kill_line_names_only_the_victim() -> None:
    (event,) = parsed(kill(459, "x", "/a")[1])
    assert isinstance(event, OomKill)
    assert (event.pid, event.comm, event.uid, event.cgroup_path, event.limit_path) == (459, "x", 1000, "", "")


def test_an_oom_kill_line_alone_is_no_kill() -> None:
    assert parsed(kill(459, "x", "/a")[0]) == []


def test_a_host_wide_kill_names_no_limit() -> None:
    line = (
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a/b,task=x,pid=7,uid=0"
    )
    (event,) = parsed(record(line), record(KILLED.format(pid=7, comm="x", end=END).replace("Memory cgroup out", "Out")))
    assert isinstance(event, OomKill)
    assert event.is_host_wide
    assert (event.limit_path, event.cgroup_path) == ("", "/a/b")


@pytest.mark.parametrize("comm", [") total-vm:", "a b),task=\n", ",task=x,pid=1", ",uid=0", "", "é\udcff", "(", "x,task_memcg"])
def test_no_comm_forges_a_victim_or_a_cgroup(comm: str) -> None:
    (event,) = parsed(*kill(459, comm, "/ci.slice/a,b=c"))
    assert isinstance(event, OomKill)
    assert (event.pid, event.comm, event.cgroup_path) == (459, comm, "/ci.slice/a,b=c")


def test_a_cgroup_name_that_could_be_read_in_two_ways_is_not_believed() -> None:
    (event,) = parsed(*kill(459, "x", "/a,task_memcg=/system.slice/sshd.service"))
    assert isinstance(event, OomKill)
    assert (event.limit_path, event.cgroup_path) == ("", "")


def test_a_cgroup_name_with_a_task_in_it_stays_part_of_the_path() -> None:
    (event,) = parsed(*kill(459, "x", "/a,task=sshd"))
    assert isinstance(event, OomKill)
    assert event.cgroup_path == "/a,task=sshd"


def test_interleaved_kills_keep_their_own_lines() -> None:
    first, second = kill(1, "a", "/one"), kill(2, "b", "/two")
    events = parsed(first[0], second[0], second[1], first[1])
    assert [(event.pid, event.cgroup_path) for event in events if isinstance(event, OomKill)] == [(2, "/two"), (1, "/one")]


def test_the_victim_of_a_group_kill_is_told_twice_by_the_kernel_and_marked() -> None:
    lines = kill(461, "x", "/a")
    other = record(KILLED.format(pid=460, comm="sleep", end=END))
    events = parsed(*lines, record("Tasks in /a are going to be killed due to memory.oom.group set"), other, lines[1])
    repeated = [(event.pid, event.is_repeated) for event in events if isinstance(event, OomKill)]
    assert repeated == [(461, False), (460, False), (461, True)]


def test_a_pid_that_is_killed_again_much_later_is_another_process() -> None:
    events = parsed(*kill(461, "x", "/a"), kill(461, "x", "/a", stamp=9_000_000)[1])
    assert [event.is_repeated for event in events if isinstance(event, OomKill)] == [False, False]


def test_a_refused_fork_names_the_tasks_cgroup() -> None:
    text = "cgroup: fork rejected by pids controller in /ci.slice/a b,\n\udcff"
    assert parsed(record(text)) == [ForkRejected("/ci.slice/a b,\n\udcff", 1_000_000, text)]


def test_a_long_path_in_continued_records_is_put_together_and_marked_as_cut() -> None:
    path = "/tg" + "/" + "x" * 1017  # as much of a longer one as the kernel writes
    (event,) = parsed(record("cgroup: fork rejected by pids controller in "), record(path, "c"), record("", "c"))
    assert isinstance(event, ForkRejected)
    assert (event.path, event.is_cut) == (path, True)
    (short,) = parsed(record("cgroup: fork rejected by pids controller in "), record("/a" * 300, "c"), record("", "c"))
    assert isinstance(short, ForkRejected)
    assert (short.path, short.is_cut) == ("/a" * 300, False)


def test_an_oom_kill_line_in_three_records_is_put_together_but_a_cut_path_is_not_believed() -> None:
    head, tail = OOM.format(limit="/tg", path="|", comm="eater", pid=7).split("|")
    events = parsed(record(head), record("/tg/" + "x" * 1017, "c"), record(tail, "c"), kill(7, "eater", "/")[1])
    assert [(event.pid, event.limit_path, event.cgroup_path) for event in events if isinstance(event, OomKill)] == [(7, "/tg", "")]
    events = parsed(record(head), record("/tg/" + "x" * 500, "c"), record(tail, "c"), kill(7, "eater", "/")[1])
    assert [event.cgroup_path for event in events if isinstance(event, OomKill)] == ["/tg/" + "x" * 500]


def test_continued_records_without_a_beginning_are_passed_over() -> None:
    assert parsed(record("/x", "c"), record(",task=x,pid=1,uid=0", "c"), record("hello")) == []


def test_lines_that_the_rate_limit_held_back_are_told() -> None:
    assert parsed(record("kauditd_printk_skb: 992 callbacks suppressed")) == [Suppressed("kauditd_printk_skb", 992)]


def test_a_user_who_writes_to_the_log_forges_nothing_that_begins_otherwise() -> None:
    assert parsed(record("x Memory cgroup out of memory: Killed process 1 (init) total-vm:1kB")) == []


def test_a_stamp_becomes_wall_clock_time_and_never_lies_in_the_future() -> None:
    assert realtime_of(4_000_000, 10.0, 1000.0) == 994_000_000
    assert realtime_of(11_000_000, 10.0, 1000.0) == 1_000_000_000


def test_without_the_device_the_reader_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InterfaceMissing) as caught:
        KernelLogReader(KernelPaths.below(str(tmp_path)))
    assert caught.value.remedy


def test_the_real_log_is_read_from_its_end_and_from_its_beginning() -> None:
    try:
        reader = KernelLogReader(KernelPaths(), from_start=True)
    except KernelError as error:
        pytest.skip(f"the kernel log cannot be read here: {error}")
    records = reader.read(limit=100)
    reader.close()
    assert records
    assert reader.malformed == 0
    assert all(record.stamp_usec <= time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6 + 1e6 for record in records)
    sequence = [record.sequence for record in records]
    assert sequence == sorted(sequence)
    end = KernelLogReader(KernelPaths())
    assert len(end.read()) < len(records) + 100
    end.close()
