# SPDX-License-Identifier: Apache-2.0
"""pids.max and memory limits: facts in, verdict out."""
from __future__ import annotations

from dataclasses import replace

import pytest

from triaged.model.cgroup import CgroupId
from triaged.model.facts import CgroupLimit, OomFacts, PidsFacts
from triaged.model.fix import ManualStep, SetUnitProperty
from triaged.model.limit import UNLIMITED, Limit, Unknown
from triaged.model.memory import MemoryDetail, MemorySample, OomReport, OomTask
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.subject import CgroupSubject, HostSubject
from triaged.model.usage import Usage
from triaged.model.verdict import Fine, Problem, Undecided, Verdict
from triaged.rules.memory import cgroup_oom_kill, host_oom_kill
from triaged.rules.pids import pids_limit_hit

IDENTIFIER = "0123456789abcdef" * 4
POD = "12345678-1234-1234-1234-123456789abc"


def limit(path: str, value: Limit, used: int | Unknown = 0, unit: str = "", file: str = "pids.max") -> CgroupLimit:
    return CgroupLimit(CgroupId(path, 5), f"/sys/fs/cgroup{path}/{file}", value, used, unit)


def problem(verdict: Verdict) -> Problem:
    assert isinstance(verdict, Problem), verdict
    return verdict


def evidence(verdict: Problem) -> dict[str, object]:
    return {item.name: item.value for item in verdict.evidence}


SERVICE = limit("/system.slice/ci.service", 20, 20, "ci.service")
LEAF = limit("/system.slice/ci.service/job", UNLIMITED, 18)
PROCESS = ProcessIdentity(
    77, 7, uid=1000, comm="go\x1b", exe="/usr/bin/go", workload=WorkloadMatch("go-test", "command", "example.org/a"),
    ci_job="job 5",
)
REFUSED = PidsFacts(
    LEAF.cgroup, 2, 5, SERVICE, (LEAF, SERVICE), "/sys/fs/cgroup/system.slice/ci.service/job/pids.events",
    "kernel: fork rejected\n", PROCESS, time_usec=42,
)


def test_refused_forks_name_the_ancestor_whose_limit_was_full() -> None:
    verdict = problem(pids_limit_hit.judge(REFUSED))
    assert verdict.summary == "5 forks refused: ci.service was full at 20 tasks, counted in /system.slice/ci.service/job"
    assert verdict.subject == CgroupSubject(SERVICE.cgroup)
    assert (verdict.occurrences, verdict.pid, verdict.time_usec) == (2, 77, 42)


def test_every_limit_on_the_way_up_is_evidence_with_its_file() -> None:
    verdict = problem(pids_limit_hit.judge(REFUSED))
    said = evidence(verdict)
    assert said["pids.max at /system.slice/ci.service/job"] == "unlimited, in use 18"
    assert said["pids.max at /system.slice/ci.service"] == "20, in use 20"
    assert said["limit set by"] == "ci.service"
    assert said["forks refused"] == 5
    assert said["kernel log"] == "kernel: fork rejected\\x0a"
    assert said["process comm"] == "go\\x1b"
    sources = {item.name: item.source for item in verdict.evidence}
    assert sources["forks refused"] == REFUSED.counter_file
    assert sources["pids.max at /system.slice/ci.service"] == SERVICE.file


def test_what_names_a_user_s_program_is_private() -> None:
    private = {item.name for item in problem(pids_limit_hit.judge(REFUSED)).evidence if item.private}
    assert private == {"process exe", "process package", "process CI job"}


def test_the_limit_of_a_unit_can_be_raised_for_now_and_for_good() -> None:
    assert problem(pids_limit_hit.judge(REFUSED)).fixes == (
        SetUnitProperty("ci.service", "TasksMax", "64", False, seen="20"),
        SetUnitProperty("ci.service", "TasksMax", "64", True, seen="20"),
    )
    large = replace(SERVICE, limit=500)
    assert [fix.value for fix in problem(pids_limit_hit.judge(replace(REFUSED, owner=large))).fixes  # type: ignore[union-attr]
            ] == ["1000", "1000"]


def test_one_fork_is_one_fork() -> None:
    facts = replace(REFUSED, cgroup=SERVICE.cgroup, forks_refused=1, forks_refused_total=1)
    assert problem(pids_limit_hit.judge(facts)).summary == "1 fork refused: ci.service was full at 20 tasks"


def test_where_the_owner_is_not_decided_it_says_so_and_offers_no_fix() -> None:
    verdict = problem(pids_limit_hit.judge(replace(REFUSED, owner=None)))
    assert verdict.summary.endswith("in cgroup /system.slice/ci.service/job; it is not decided which cgroup's pids.max was full")
    assert verdict.subject == CgroupSubject(LEAF.cgroup)
    assert verdict.fixes == ()


def test_what_was_counted_before_the_start_is_told_as_that() -> None:
    assert "5 forks refused before triaged started: " in problem(pids_limit_hit.judge(replace(REFUSED, before_start=True))).summary
    oom = replace(OOM, before_start=True)
    assert "before triaged started" in problem(cgroup_oom_kill.judge(oom)).summary


def test_no_refusal_is_fine() -> None:
    assert isinstance(pids_limit_hit.judge(replace(REFUSED, forks_refused=0)), Fine)


def test_the_explanation_says_that_the_hint_of_go_is_wrong() -> None:
    assert "ulimit -u" in pids_limit_hit.explanation
    assert "that hint is wrong here" in pids_limit_hit.explanation


@pytest.mark.parametrize(
    ("path", "unit", "command", "title"),
    [
        (f"/docker/{IDENTIFIER}", "", ("docker", "update", "--pids-limit=64", IDENTIFIER), "docker container 0123456789ab"),
        (
            f"/system.slice/docker-{IDENTIFIER}.scope", f"docker-{IDENTIFIER}.scope",
            ("docker", "update", "--pids-limit=64", IDENTIFIER), "docker container 0123456789ab",
        ),
        (
            f"/machine.slice/libpod-{IDENTIFIER}.scope", f"libpod-{IDENTIFIER}.scope",
            ("podman", "update", "--pids-limit=64", IDENTIFIER), "podman container",
        ),
        (f"/kubepods/burstable/pod{POD}/{IDENTIFIER}", "", None, f"raise podPidsLimit (kubelet) of pod {POD}"),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD.replace('-', '_')}.slice",
            f"kubepods-burstable-pod{POD.replace('-', '_')}.slice", None, f"raise podPidsLimit (kubelet) of pod {POD}",
        ),
        (f"/lxc/{IDENTIFIER}", "", None, "raise the limit of container 0123456789ab to 64, in its runtime"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", "x.service",
            ("systemctl", "--user", "set-property", "x.service", "TasksMax=64"), "typed by user 1000",
        ),
        ("/made/by/hand", "", None, "write 64 into /sys/fs/cgroup/made/by/hand/pids.max"),
    ],
)
def test_who_set_the_limit_decides_how_it_is_raised(path: str, unit: str, command: tuple[str, ...] | None, title: str) -> None:
    owner = limit(path, 10, 10, unit)
    (step,) = problem(pids_limit_hit.judge(replace(REFUSED, owner=owner))).fixes
    assert isinstance(step, ManualStep)
    assert title in step.title
    assert step.commands == ((command,) if command else ())


def test_a_user_slice_belongs_to_its_user_and_its_limit_to_the_system_manager() -> None:
    owner = limit("/user.slice/user-1000.slice", 10, 10, "user-1000.slice")
    verdict = problem(pids_limit_hit.judge(replace(REFUSED, owner=owner)))
    assert verdict.subject.owner_uid == 1000
    assert isinstance(verdict.fixes[0], SetUnitProperty)


def test_a_limit_that_could_not_be_read_gets_no_fix() -> None:
    unread = limit("/a", Unknown("gone"), Unknown("gone"))
    verdict = problem(pids_limit_hit.judge(replace(REFUSED, owner=unread)))
    assert verdict.fixes == ()
    assert "cgroup /a was full, counted in" in verdict.summary


def test_a_cgroup_path_cannot_write_on_a_terminal() -> None:
    facts = replace(REFUSED, owner=None, cgroup=CgroupId("/a\x1b[2J\n" + "b" * 5000))
    verdict = problem(pids_limit_hit.judge(facts))
    assert "\x1b" not in verdict.summary
    assert "\n" not in verdict.summary
    assert len(verdict.summary) < 600


# Memory

MEMORY = limit("/system.slice/ci.service", 100 << 20, 100 << 20, "ci.service", "memory.max")
OOM = OomFacts(
    LEAF.cgroup, 1, MEMORY, PROCESS, "/sys/fs/cgroup/system.slice/ci.service/job/memory.events",
    "oom-kill:constraint=CONSTRAINT_MEMCG", time_usec=42,
)


def test_an_oom_kill_names_the_victim_and_the_cgroup_whose_limit_was_hit() -> None:
    verdict = problem(cgroup_oom_kill.judge(OOM))
    assert verdict.summary == (
        "OOM killer ended pid 77 (go\\x1b): ci.service was at its limit of 104857600 bytes, "
        "the victim was in /system.slice/ci.service/job"
    )
    assert verdict.subject == CgroupSubject(MEMORY.cgroup)
    assert verdict.fixes[:2] == (
        SetUnitProperty("ci.service", "MemoryMax", "209715200"), SetUnitProperty("ci.service", "MemoryMax", "209715200", True)
    )
    assert "GOMEMLIMIT" in verdict.fixes[2].title
    assert isinstance(host_oom_kill.judge(OOM), Undecided)


def test_several_kills_are_counted_and_the_last_known_victim_named() -> None:
    verdict = problem(cgroup_oom_kill.judge(replace(OOM, kills=3)))
    assert verdict.summary.startswith("OOM killer ended 3 processes, one of them pid 77 (go\\x1b): ci.service was at its limit")
    assert verdict.occurrences == 3


def test_an_unknown_victim_is_not_invented() -> None:
    verdict = problem(cgroup_oom_kill.judge(replace(OOM, victim=None)))
    assert verdict.summary.startswith("OOM killer ended 1 process: ci.service")
    assert verdict.pid == 0


def test_an_unknown_owner_is_not_invented_either() -> None:
    verdict = problem(cgroup_oom_kill.judge(replace(OOM, owner=None)))
    assert "it is not decided whose memory limit was hit" in verdict.summary
    assert verdict.subject == CgroupSubject(LEAF.cgroup)
    assert [fix.type for fix in verdict.fixes] == ["manual"]


def test_a_limit_that_went_with_its_cgroup_has_no_number() -> None:
    gone = limit("/ci.slice/run.scope", 0, 0, "run.scope", "memory.max")
    verdict = problem(cgroup_oom_kill.judge(replace(OOM, owner=replace(gone, limit=Unknown("the cgroup was removed")))))
    assert verdict.summary.startswith("OOM killer ended pid 77 (go\\x1b): run.scope was at its limit, the victim was in ")
    pids = problem(pids_limit_hit.judge(replace(REFUSED, owner=replace(gone, limit=Unknown("the cgroup was removed")))))
    assert "run.scope was full, counted in" in pids.summary


def test_a_cgroup_that_no_record_names_is_not_said_to_be_the_root() -> None:
    verdict = problem(cgroup_oom_kill.judge(replace(OOM, cgroup=CgroupId(""), owner=None)))
    assert verdict.summary == (
        "OOM killer ended pid 77 (go\\x1b) in a cgroup that no record names; it is not decided whose memory limit was hit"
    )
    assert verdict.subject == CgroupSubject(CgroupId("/"))
    assert "victim's cgroup" not in {item.name for item in verdict.evidence}
    host = problem(host_oom_kill.judge(replace(OOM, cgroup=CgroupId(""), is_host_wide=True, owner=None)))
    assert host.summary == "OOM killer ended pid 77 (go\\x1b): the host was out of memory"


def test_a_container_s_memory_is_raised_by_its_runtime() -> None:
    owner = limit(f"/docker/{IDENTIFIER}", 1000, 1000, "", "memory.limit_in_bytes")
    step = problem(cgroup_oom_kill.judge(replace(OOM, owner=owner))).fixes[0]
    assert step.commands == (("docker", "update", "--memory=2000", "--memory-swap=4000", IDENTIFIER),)


def test_a_host_without_memory_is_no_cgroup_s_fault() -> None:
    facts = replace(OOM, is_host_wide=True, owner=None)
    assert isinstance(cgroup_oom_kill.judge(facts), Undecided)
    verdict = problem(host_oom_kill.judge(facts))
    assert verdict.subject == HostSubject()
    assert verdict.summary == "OOM killer ended pid 77 (go\\x1b) (cgroup /system.slice/ci.service/job): the host was out of memory"
    assert [fix.type for fix in verdict.fixes] == ["manual"]


def test_no_kill_is_fine() -> None:
    assert isinstance(cgroup_oom_kill.judge(replace(OOM, kills=0)), Fine)
    assert isinstance(host_oom_kill.judge(replace(OOM, kills=0, is_host_wide=True)), Fine)


REPORT = OomReport(
    100 << 20, 100 << 20, 19, 2 << 20, UNLIMITED,
    (OomTask(77, 1000, 90 << 20, 1 << 20, 0, "go\x1b"), OomTask(78, 1000, 5 << 20, 0, 0, "sh")), 3,
)
DETAIL = MemoryDetail(
    4096, 100 << 20, 19, Unknown("version 2 does not have it"), True, 0, 0, False, "/sys/fs/cgroup/system.slice/ci.service"
)
SAMPLES = tuple(MemorySample(30_000_000 - age * 1_000_000, (100 - age) << 20, 0) for age in range(29, 0, -1))


def test_the_moment_the_files_and_the_minute_before_are_evidence() -> None:
    facts = replace(OOM, report=REPORT, detail=DETAIL, samples=SAMPLES, time_usec=30_000_000)
    verdict = problem(cgroup_oom_kill.judge(facts))
    said = evidence(verdict)
    assert said["memory at that moment"] == "104857600 bytes in use of 104857600, failcnt 19"
    assert said["swap at that moment"] == "2097152 bytes in use, limit unlimited"
    assert said["tasks by memory"] == "go\\x1b[77] 90.0 MiB (+1.0 MiB swap), sh[78] 5.0 MiB and 3 smaller ones"
    assert said["peak"] == 100 << 20
    assert said["oom.group"] == "1: all processes of the cgroup are killed together"
    assert "under_oom" not in said
    assert str(said["memory in the minute before"]).endswith("-3 s 97.0 MiB, -1 s 99.0 MiB")
    assert str(said["memory in the minute before"]).count("MiB") <= 30
    assert said["last sample"] == f"1.00 s before: {99 << 20} bytes"
    assert {item.name for item in verdict.evidence if item.private} >= {"tasks by memory"}


def test_where_a_limit_comes_from_is_shown_beside_whose_it_is() -> None:
    owner = replace(MEMORY, origin="/etc/systemd/system/ci.service:7, MemoryMax=100M")
    verdict = problem(cgroup_oom_kill.judge(replace(OOM, owner=owner)))
    assert evidence(verdict)["limit comes from"] == "/etc/systemd/system/ci.service:7, MemoryMax=100M"
    assert [item.source for item in verdict.evidence if item.name == "limit comes from"] == ["/etc/systemd/system/ci.service"]


def test_other_limits_that_give_the_same_error_are_told_apart() -> None:
    others = (
        Usage("tasks", "kernel.threads-max", "host", 300, 15000, "/proc/loadavg", "/proc/sys/kernel/threads-max"),
        Usage("tasks", "RLIMIT_NPROC", "user 0", Unknown("not counted"), 7000, "", "/proc/77/limits", note="root is exempt"),
    )
    said = evidence(problem(pids_limit_hit.judge(replace(REFUSED, others=others))))
    assert said["not kernel.threads-max"] == "15000 for host, in use 300"
    assert said["not RLIMIT_NPROC"] == "7000 for user 0 (root is exempt)"
    assert "ulimit -u" in str(said["Go's hint"])
    assert "wrong here" in str(said["Go's hint"])
