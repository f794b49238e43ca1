# SPDX-License-Identifier: Apache-2.0
"""Time-outs: quotas, memory.high, the freezer, cpusets."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from situations import INITIAL, blamed, limit_at, outcomes, process, ruled_out, situated, undecided

from triaged.explain.io_rates import io_max
from triaged.explain.situation import Situation
from triaged.explain.slowness import cpu_max, cpuset, freeze, memory_high
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.cgroups import CpuState
from triaged.kernel.cpu_quota import QuotaState
from triaged.kernel.io_limits import IoState
from triaged.model.cause import Status
from triaged.model.cgroup import CgroupId
from triaged.model.counter import READ_AT
from triaged.model.cpu import CpuQuota
from triaged.model.fix import SetUnitProperty
from triaged.model.symptom import SeenIn, Symptom, SymptomKind

TIMED_OUT = Symptom(SymptomKind.TIMED_OUT, seen_in=SeenIn.OUTPUT)
DIRECTORY = "/sys/fs/cgroup/ci.service"
STAT = f"{DIRECTORY}/cpu.stat"
TEN_S: dict[str, object] = {"count:elapsed": 10_000_000}


def quota(cores: float = 0.5) -> tuple[QuotaState, ...]:
    limit = CpuQuota(CgroupId("/ci.service"), f"{DIRECTORY}/cpu.max", int(cores * 100_000), 100_000, "ci.service")
    return (QuotaState(limit, CpuState(int(cores * 100_000), 100_000, 0, 0, 0), DIRECTORY),)


def lived(seconds: float, cpu: float, **more: Any) -> dict[str, Any]:
    """A process that began 50 s after the boot, and what it had used of the CPU when it was read."""
    who = process(cpu_time_s=cpu, **more)
    kept = {"boot": who.time_usec / 1e6 - 50 - seconds}
    return {"who": who, "boot": kept["boot"]}


def run_of(seconds: float, throttled: int, periods: int, used: float = 5.0, age: float = 10.0) -> Situation:
    found = lived(age, used)
    before = {(STAT, "nr_throttled"): 3, (STAT, "nr_periods"): 4}
    after = {(STAT, "nr_throttled"): 3 + throttled, (STAT, "nr_periods"): 4 + periods}
    kept = {"cgroup:cpu": quota(), "boot": found["boot"], "count:elapsed": int(seconds * 1e6)}
    return situated(TIMED_OUT, found["who"], kept=kept, before=before, after=after, at_start=process(pid=300))


def test_a_quota_that_held_a_busy_test_back_is_proved() -> None:
    found = blamed(cpu_max, run_of(10, 90, 100))
    assert (found.cause, found.status, found.subject) == ("cgroup.cpu.max", Status.PROVED, "ci.service")
    assert "0.5 cores" in found.summary
    assert found.fixes[0] == SetUnitProperty("ci.service", "CPUQuota", "100%")


def test_a_test_that_waited_for_itself_was_not_held_back() -> None:
    assert "used the CPU for 0.0 s of 10 s" in ruled_out(cpu_max, run_of(10, 90, 100, used=0.04))


def test_a_little_throttling_is_no_cause() -> None:
    assert "20% of the run" in ruled_out(cpu_max, run_of(10, 20, 100))


def test_of_a_process_read_when_it_began_it_is_likely_only() -> None:
    assert blamed(cpu_max, run_of(10, 90, 100, used=0.01, age=0.1)).status is Status.LIKELY


def test_no_quota_rules_it_out_and_unread_counters_decide_nothing() -> None:
    assert ruled_out(cpu_max, situated(TIMED_OUT, process(), kept={"cgroup:cpu": ()}))
    assert undecided(cpu_max, situated(TIMED_OUT, process(), kept={"cgroup:cpu": quota()}))
    assert undecided(cpu_max, situated(TIMED_OUT))


def high(held: int, stalled_s: float) -> Situation:
    limit = limit_at("/ci.service", 60 << 20, 60 << 20, "memory.high")
    events, pressure = (f"{DIRECTORY}/memory.events.local", "high"), (f"{DIRECTORY}/memory.pressure", "full")
    before = {events: 1, pressure: 0}
    after = {events: 1 + held, pressure: int(stalled_s * 1e6)}
    kept = {"cgroup:memory.high": (limit,), **TEN_S}
    return situated(TIMED_OUT, process(), kept=kept, before=before, after=after, at_start=process(pid=300))


def test_a_memory_high_that_stopped_everything_is_proved() -> None:
    found = blamed(memory_high, high(900, 5.8))
    assert (found.status, "58% of the run" in found.summary) == (Status.PROVED, True)
    assert found.fixes[0] == SetUnitProperty("ci.service", "MemoryHigh", str(120 << 20))


def test_a_memory_high_that_held_nobody_back_is_ruled_out() -> None:
    assert ruled_out(memory_high, high(0, 0)) == "nothing was held back"
    assert "1% of the run" in ruled_out(memory_high, high(5, 0.1))
    assert ruled_out(memory_high, situated(TIMED_OUT, process(), kept={"cgroup:memory.high": ()}))


def test_a_frozen_cgroup_is_proved_while_it_is_frozen(tmp_path: Path) -> None:
    (tmp_path / "ci.service").mkdir()
    file = tmp_path / "ci.service/cgroup.freeze"
    file.write_text("1\n")
    layout = CgroupLayout((Hierarchy("", str(tmp_path)),))
    found = blamed(freeze, situated(TIMED_OUT, process(), kept={"layout": layout}))
    assert (found.status, found.rule, found.fixes[0].commands) == (
        Status.PROVED, "cgroup.frozen", (("systemctl", "thaw", "ci.service"),)
    )
    file.write_text("0\n")
    assert ruled_out(freeze, situated(TIMED_OUT, process(), kept={"layout": layout})) == "no cgroup above it is frozen"


def test_a_cgroup_that_was_thawed_again_is_seen_by_what_it_counted() -> None:
    key = (f"{DIRECTORY}/cgroup.stat.local", "frozen_usec")
    situation = situated(TIMED_OUT, process(), kept=TEN_S, before={key: 0}, after={key: 9_000_000}, at_start=process(pid=300))
    assert blamed(freeze, situation).status is Status.PROVED
    short = situated(TIMED_OUT, process(), kept=TEN_S, before={key: 0}, after={key: 900_000}, at_start=process(pid=300))
    assert ruled_out(freeze, short) == "it was frozen for 0.9 s only"


def cpus(allowed: int, waited_s: float | None) -> Situation:
    layout = CgroupLayout((Hierarchy("", "/sys/fs/cgroup"),))
    key = (f"{DIRECTORY}/cpu.pressure", "some")
    before = {**({key: 0} if waited_s is not None else {})}
    after = {**({key: int(waited_s * 1e6)} if waited_s is not None else {})}
    who = process(cpus_allowed=allowed, namespaces=INITIAL)
    kept = {"cpus:online": 4, "layout": layout, **TEN_S}
    return situated(TIMED_OUT, who, kept=kept, before=before, after=after, at_start=process(pid=300))


def test_a_test_that_speaks_of_cpus_is_told_which_cpuset_takes_them(tmp_path: Path) -> None:
    (tmp_path / "ci.service").mkdir()
    (tmp_path / "ci.service/cpuset.cpus.effective").write_text("0\n")
    layout = CgroupLayout((Hierarchy("", str(tmp_path), controllers=frozenset({"cpuset"})),))
    told = Symptom(SymptomKind.SILENT, text="the test needs 2 CPUs, this process may use 1", seen_in=SeenIn.OUTPUT)
    kept = {"cpus:online": 4, "layout": layout}
    found = blamed(cpuset, situated(told, process(cpus_allowed=1), kept=kept))
    assert (found.cause, found.status, found.subject) == ("cgroup.cpuset", Status.LIKELY, "ci.service")
    assert "all 4 CPUs" in ruled_out(cpuset, situated(told, process(cpus_allowed=4), kept=kept))
    (tmp_path / "ci.service/cpuset.cpus.effective").write_text("0-3\n")
    assert "taskset" in ruled_out(cpuset, situated(told, process(cpus_allowed=1), kept=kept))
    other = Symptom(SymptomKind.SILENT, text="got 3, want 4", seen_in=SeenIn.OUTPUT)
    assert outcomes(cpuset, situated(other, process(cpus_allowed=1), kept=kept)) == []


def test_few_cpus_are_likely_only_where_tasks_waited_for_them() -> None:
    assert blamed(cpuset, cpus(1, 8.0)).status is Status.LIKELY
    assert "10% of the run only" in ruled_out(cpuset, cpus(1, 1.0))
    assert "not measured" in undecided(cpuset, cpus(1, None))
    assert ruled_out(cpuset, cpus(4, 8.0)) == "it may run on all 4 CPUs"


def test_cpus_that_were_in_use_the_whole_time_are_possible_though_nothing_waited_for_them() -> None:
    found = blamed(cpuset, replace(cpus(1, 1.0), cpus_used=0.97))
    assert (found.status, found.evidence[-1].value) == (Status.POSSIBLE, "0.97")
    assert "10% of the run only" in ruled_out(cpuset, replace(cpus(1, 1.0), cpus_used=0.6))


def io(done: int, stalled_s: float | None, *, was_read: bool = True) -> Situation:
    """Ten seconds in a cgroup that may write 1,000 bytes a second."""
    state = IoState(
        CgroupId("/ci.service"), f"{DIRECTORY}/io.max", "ci.service", {("253:0", "wbps"): 1000}, {}, 0, f"{DIRECTORY}/io.stat"
    )
    stamp, pressure = (f"{DIRECTORY}/io.stat", READ_AT), (f"{DIRECTORY}/io.pressure", "full")
    before = {**({stamp: 5} if was_read else {}), **({pressure: 7} if stalled_s is not None else {})}
    after = {stamp: 10_000_005, (f"{DIRECTORY}/io.stat", "253:0 wbytes"): done}
    after = after if was_read else {}
    after = {**after, **({pressure: 7 + int(stalled_s * 1e6)} if stalled_s is not None else {})}
    return situated(TIMED_OUT, process(), kept={"cgroup:io": (state,)}, before=before, after=after, at_start=process(pid=300))


def test_an_io_limit_that_was_used_up_while_all_waited_is_proved() -> None:
    found = blamed(io_max, io(9_000, 8.0))
    assert (found.cause, found.status, found.subject) == ("cgroup.io.max", Status.PROVED, "ci.service")
    assert "90% of it was used" in found.summary
    assert found.fixes[0].commands[0][-1] == "IOWriteBandwidthMax=253:0 4000"


def test_an_io_limit_that_nobody_felt_is_ruled_out() -> None:
    assert "3% of the rate" in ruled_out(io_max, io(300, 0.1))
    assert "1% of the run" in ruled_out(io_max, io(9_000, 0.1))
    assert ruled_out(io_max, situated(TIMED_OUT, process(), kept={"cgroup:io": ()})) == "no cgroup above it has an I/O limit"


def test_an_io_limit_whose_counters_are_not_known_decides_nothing() -> None:
    assert "not read before" in undecided(io_max, io(9_000, 8.0, was_read=False))
    assert undecided(io_max, situated(TIMED_OUT))


def test_a_stall_before_anything_was_written_is_possible_only() -> None:
    assert blamed(io_max, io(0, 8.0)).status is Status.POSSIBLE
