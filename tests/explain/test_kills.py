# SPDX-License-Identifier: Apache-2.0
"""SIGKILL: the OOM killer of a cgroup or of the machine, RLIMIT_CPU, or somebody of the run."""
from __future__ import annotations

from typing import Any

from situations import TEST, blamed, limit_at, outcomes, own_fault, process, ruled_out, situated, undecided, with_limits

from triaged.explain.kills import cpu_time, file_size, host_memory, memory_max
from triaged.explain.situation import Situation
from triaged.model.cause import Status
from triaged.model.fix import SetUnitProperty
from triaged.model.limit import UNLIMITED
from triaged.model.symptom import SeenIn, Symptom, SymptomKind

MB = 1 << 20
VMSTAT = ("/nonexistent/proc/vmstat", "oom_kill")
LINE = (
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/ci.service,task_memcg=/ci.service/job,"
    "task=a.test,pid=500,uid=1000"
)
KILLED = (
    "{why}: Killed process 500 (a.test) total-vm:8kB, anon-rss:2kB, file-rss:3kB, shmem-rss:0kB, UID:1000 pgtables:108kB "
    "oom_score_adj:0"
)


def killed(signal: int = 9, **more: Any) -> Symptom:
    return Symptom(SymptomKind.KILLED, signal=signal, **{"seen_in": SeenIn.TRACE, **more})


def events(path: str, name: str, local: bool = True) -> tuple[str, str]:
    return f"/sys/fs/cgroup{path}/memory.events{'.local' if local else ''}", name


def after_oom(rises: dict[tuple[str, str], int], symptom: Symptom | None = None, **more: Any) -> Situation:
    """A process in /ci.service/job, of which /ci.service has a limit; `rises` are what the counters rose by."""
    limits = (
        limit_at("/ci.service/job", UNLIMITED, 70 * MB, "memory.max"), limit_at("/ci.service", 80 * MB, 79 * MB, "memory.max"),
    )
    keys = [VMSTAT, *(events(path, name) for path in ("/ci.service/job", "/ci.service") for name in ("oom", "oom_kill"))]
    before = {key: 5 for key in keys}
    after = {key: 5 + rises.get(key, 0) for key in keys}
    who = more.pop("who", process(cgroup="/ci.service/job"))
    return situated(symptom or killed(), who, kept={"cgroup:memory": limits}, before=before, after=after, **more)


OWN = {events("/ci.service/job", "oom_kill"): 1, events("/ci.service", "oom"): 1, VMSTAT: 1}


def test_the_ancestor_whose_limit_was_hit_is_blamed() -> None:
    found = blamed(memory_max, after_oom(OWN))
    assert (found.cause, found.status, found.subject) == ("cgroup.memory.max", Status.PROVED, "ci.service")
    assert "MemoryMax=83886080 (80 MiB)" in found.summary
    assert found.fixes[0] == SetUnitProperty("ci.service", "MemoryMax", str(1 << 30))
    assert (found.rule, found.subject_key) == ("cgroup.memory.oom-kill", "cgroup:/ci.service")
    assert ruled_out(host_memory, after_oom(OWN)) == "a cgroup's limit was hit"


def test_counters_that_did_not_move_rule_the_oom_killer_out() -> None:
    assert ruled_out(memory_max, after_oom({})) == "no oom_kill above it rose"
    assert "counted no OOM kill" in ruled_out(host_memory, after_oom({}))


def test_the_log_names_the_victim_and_whose_limit_it_was() -> None:
    situation = after_oom({}, read_log=lambda: (LINE, KILLED.format(why="Memory cgroup out of memory")))
    found = blamed(memory_max, situation)
    assert (found.status, found.subject) == (Status.PROVED, "ci.service")
    assert any(item.name == "kernel log" for item in found.evidence)


def test_a_machine_without_memory_is_told_from_a_cgroup() -> None:
    rises = {events("/ci.service/job", "oom_kill"): 1, VMSTAT: 1}
    found = blamed(host_memory, after_oom(rises))
    assert (found.cause, found.status, found.rule) == ("host.memory", Status.PROVED, "host.memory.oom-kill")
    assert "whole machine" in ruled_out(memory_max, after_oom(rises))
    logged = after_oom({}, read_log=lambda: (KILLED.format(why="Out of memory"),))
    assert blamed(host_memory, logged).status is Status.PROVED


def test_version_1_blames_the_limit_that_is_there() -> None:
    file = "/sys/fs/cgroup/ci.service/memory.oom_control"
    limit = limit_at("/ci.service", 80 * MB, 79 * MB, "memory.limit_in_bytes")
    counted = {"before": {(file, "oom_kill"): 0, VMSTAT: 1}, "after": {(file, "oom_kill"): 1, VMSTAT: 2}}
    assert blamed(memory_max, situated(killed(), process(), kept={"cgroup:memory": (limit,)}, **counted)).subject == "ci.service"


def test_another_process_that_the_oom_killer_took_acquits_nobody_who_sent_it() -> None:
    assert blamed(memory_max, after_oom(OWN, killed(sender_pid=77))).status is Status.POSSIBLE


def test_counters_that_were_not_read_before_decide_nothing() -> None:
    limit = limit_at("/ci.service", 80 * MB, 79 * MB, "memory.max")
    assert undecided(memory_max, situated(killed(), process(), kept={"cgroup:memory": (limit,)}))
    assert undecided(host_memory, situated(killed(), process()))
    assert undecided(memory_max, situated(killed()))


def test_in_the_root_cgroup_only_the_machine_counts() -> None:
    situation = situated(killed(), process(cgroup="/"), before={VMSTAT: 1}, after={VMSTAT: 2})
    assert blamed(host_memory, situation).status is Status.LIKELY
    sent = situated(killed(sender_pid=3), process(cgroup="/"), before={VMSTAT: 1}, after={VMSTAT: 2})
    assert undecided(host_memory, sent)


def test_a_cgroup_that_the_test_made_is_its_own_fault() -> None:
    who, start = process(cgroup="/ci.service/job/own", workload=TEST), process(pid=300, cgroup="/ci.service/job")
    own = limit_at("/ci.service/job/own", 80 * MB, 79 * MB, "memory.max")
    key = events("/ci.service/job/own", "oom_kill")
    oom = events("/ci.service/job/own", "oom")
    situation = situated(
        killed(), who, kept={"cgroup:memory": (own,)}, before={key: 0, oom: 0, VMSTAT: 0}, after={key: 1, oom: 1, VMSTAT: 1},
        at_start=start, ancestors=(start,),
    )
    assert "under test" in own_fault(memory_max, situation)


def test_used_up_cpu_time_is_blamed_where_no_oom_kill_was() -> None:
    who = with_limits(process(cgroup="/ci.service/job", cpu_time_s=0.96), CPU=(1, 1))
    assert blamed(cpu_time, after_oom({}, who=who)).status is Status.PROVED
    assert "OOM killer" in ruled_out(cpu_time, after_oom(OWN, who=who))
    unread = with_limits(process(cgroup="/ci.service/job"), CPU=(1, 1))
    assert blamed(cpu_time, after_oom({}, who=unread)).status is Status.LIKELY  # nothing else is left
    assert undecided(cpu_time, situated(killed(), unread))
    assert ruled_out(cpu_time, after_oom({}, who=with_limits(process(), CPU=(1, UNLIMITED)))) == "unlimited"
    assert "process 77 sent" in ruled_out(cpu_time, after_oom({}, killed(sender_pid=77), who=who))


def test_sigxcpu_is_the_soft_limit() -> None:
    who = with_limits(process(), CPU=(1, UNLIMITED))
    assert blamed(cpu_time, situated(killed(24), who)).status is Status.PROVED


def test_sigxfsz_is_the_file_size() -> None:
    assert blamed(file_size, situated(killed(25), with_limits(process(), FSIZE=(4096, 4096)))).cause == "rlimit.FSIZE"
    assert outcomes(file_size, situated(killed(9), with_limits(process(), FSIZE=(4096, 4096)))) == []


def test_a_daemon_that_frees_memory_is_named() -> None:
    situation = situated(killed(sender_pid=77), process(), kept={"sender": "systemd-oomd"})
    assert "systemd-oomd ended" in blamed(host_memory, situation).summary
