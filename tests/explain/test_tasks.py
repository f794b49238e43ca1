# SPDX-License-Identifier: Apache-2.0
"""EAGAIN of clone: which of five limits it was."""
from __future__ import annotations

from situations import (
    TEST,
    blamed,
    call,
    host,
    limit_at,
    outcomes,
    own_fault,
    process,
    roomy,
    ruled_out,
    set_by,
    situated,
    undecided,
    with_limits,
)

from triaged.explain.tasks import nproc, pid_max, pids_max, threads_max
from triaged.model.cause import Status
from triaged.model.fix import SetParameter, SetUnitProperty, SetUnitSetting
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.symptom import SeenIn, Symptom, SymptomKind

CLONE = call("clone", "EAGAIN", count=13)
EVENTS = "/sys/fs/cgroup/ci.service/pids.events"
LOCAL = "/sys/fs/cgroup/ci.service/pids.events.local"
FULL = (limit_at("/ci.service", 64, 64),)


def test_a_pids_max_that_counted_the_refusals_is_proved() -> None:
    situation = situated(CLONE, process(), kept={"cgroup:pids": FULL}, before={(EVENTS, "max"): 2}, after={(EVENTS, "max"): 15})
    found = blamed(pids_max, situation)
    assert found.status is Status.PROVED
    assert found.summary == "ci.service has TasksMax=64 and was full (pids.events max +13)"
    assert (found.rule, found.subject_key) == ("cgroup.pids.limit-hit", "cgroup:/ci.service")
    assert found.fixes[0] == SetUnitProperty("ci.service", "TasksMax", "128", seen="64")


def test_the_ancestor_whose_local_counter_rose_is_blamed() -> None:
    limits = (limit_at("/ci.service/job", 500, 3), limit_at("/ci.service", 64, 60))
    job = "/sys/fs/cgroup/ci.service/job/pids.events.local"
    situation = situated(
        CLONE, process(cgroup="/ci.service/job"), kept={"cgroup:pids": limits}, before={(LOCAL, "max"): 0, (job, "max"): 0},
        after={(LOCAL, "max"): 1, (job, "max"): 0},
    )
    assert blamed(pids_max, situation).subject == "ci.service"


def test_before_6_11_the_counter_is_the_tasks_and_the_full_ancestor_is_blamed() -> None:
    limits = (limit_at("/ci.service/job", 500, 3), limit_at("/ci.service", 64, 64))
    job = "/sys/fs/cgroup/ci.service/job/pids.events"
    situation = situated(
        CLONE, process(cgroup="/ci.service/job"), kept={"cgroup:pids": limits}, before={(EVENTS, "max"): 0, (job, "max"): 0},
        after={(EVENTS, "max"): 0, (job, "max"): 4},
    )
    assert blamed(pids_max, situation).subject == "ci.service"


def test_a_counter_that_did_not_rise_rules_it_out() -> None:
    limits = (limit_at("/ci.service", 64, 60),)
    situation = situated(CLONE, process(), kept={"cgroup:pids": limits}, before={(EVENTS, "max"): 7})
    assert ruled_out(pids_max, situation) == "no pids.events above it rose, 4 free"


def test_no_limit_above_rules_it_out() -> None:
    situation = situated(CLONE, process(), kept={"cgroup:pids": (limit_at("/ci.service", UNLIMITED, 60),)})
    assert "no cgroup above it" in ruled_out(pids_max, situation)


def test_a_cgroup_that_was_gone_decides_nothing() -> None:
    gone = limit_at("/ci.service", Unknown("the cgroup was removed"), 0)
    assert "gone" in undecided(pids_max, situated(CLONE, process(), kept={"cgroup:pids": (gone,)}))


def test_a_cgroup_that_is_full_now_is_proved_when_asked() -> None:
    asked = call("clone", "EAGAIN", seen_in=SeenIn.ASKED)
    assert blamed(pids_max, situated(asked, process(), kept={"cgroup:pids": FULL})).status is Status.PROVED
    assert "60 free" in ruled_out(pids_max, situated(asked, process(), kept={"cgroup:pids": (limit_at("/ci.service", 64, 4),)}))


def test_a_cgroup_that_a_test_put_itself_into_is_its_own_fault() -> None:
    within = process(cgroup="/ci.service/own", workload=TEST)
    start = process(pid=300, comm="go")
    limits = (limit_at("/ci.service/own", 8, 8), limit_at("/ci.service", UNLIMITED, 20))
    situation = situated(CLONE, within, kept={"cgroup:pids": limits}, at_start=start, ancestors=(start,))
    assert "under test" in own_fault(pids_max, situation)


def test_a_cgroup_that_the_command_was_put_into_is_the_machines() -> None:
    within, start = process(cgroup="/ci.service/own", workload=TEST), process(pid=300, comm="sh")
    go = process(pid=301, comm="go", cgroup="/ci.service/own")
    limits = (limit_at("/ci.service/own", 8, 8),)
    situation = situated(CLONE, within, kept={"cgroup:pids": limits}, at_start=start, ancestors=(go, start))
    assert blamed(pids_max, situation).subject == "cgroup /ci.service/own"


def test_what_seccomp_refused_came_to_no_limit() -> None:
    situation = situated(call("clone", "EAGAIN", entered=False), process(), kept={"cgroup:pids": FULL})
    assert [outcomes(each, situation) for each in (pids_max, nproc, threads_max, pid_max)] == [[]] * 4


def test_a_user_with_all_its_tasks_is_blamed_and_the_unit_that_sets_the_limit_named() -> None:
    who = with_limits(process(cgroup="/system.slice/ci.service"), NPROC=(40, 40))
    situation = situated(CLONE, who, kept={"usage:tasks": 40})
    found = blamed(nproc, situation)
    assert (found.status, found.subject) == (Status.PROVED, "user 1000")
    assert isinstance(found.fixes[0], SetUnitSetting)
    assert (found.fixes[0].name, found.fixes[0].value) == ("LimitNPROC", "4096")
    assert "free" in ruled_out(threads_max, situation)


def test_a_user_that_had_let_go_when_it_was_read_is_likely_if_nothing_else_is_left() -> None:
    who = with_limits(process(), NPROC=(40, 40))
    assert blamed(nproc, situated(CLONE, who, kept={"usage:tasks": 20})).status is Status.LIKELY


def test_it_is_ruled_out_where_another_limit_counted_the_refusal() -> None:
    who = with_limits(process(), NPROC=(40, 40))
    kept = {"usage:tasks": 20, "cgroup:pids": FULL}
    situation = situated(CLONE, who, kept=kept, before={(EVENTS, "max"): 0}, after={(EVENTS, "max"): 13})
    assert ruled_out(nproc, situation) == "20 free of 40 for user 1000"


def test_many_free_tasks_rule_it_out() -> None:
    who = with_limits(process(), NPROC=(63_522, 63_522))
    assert ruled_out(nproc, situated(CLONE, who)) == "63,512 free of 63,522 for user 1000"


def test_capabilities_exempt_from_it() -> None:
    who = with_limits(process(effective=1 << 24), NPROC=(4, 4))
    assert "CAP_SYS_RESOURCE" in ruled_out(nproc, situated(CLONE, who))


def test_root_of_a_user_namespace_is_not_exempt() -> None:
    who = with_limits(process(effective=1 << 24, namespaces={"user": "user:[4026532000]"}), NPROC=(10, 10))
    assert blamed(nproc, situated(CLONE, who)).status is Status.LIKELY  # what the kernel counts in there is not shown


def test_a_test_that_lowered_the_limit_itself_is_to_blame() -> None:
    who, start = with_limits(process(), NPROC=(10, 10)), process(pid=300)
    situation = situated(CLONE, who, at_start=start, deeds=(set_by(500, 6),))
    assert "set RLIMIT_NPROC itself" in own_fault(nproc, situation)
    by_shell = situated(CLONE, who, at_start=start, deeds=(set_by(400, 6, is_test=False),))
    assert blamed(nproc, by_shell).status is Status.PROVED


def test_who_lowered_it_unseen_is_only_possible() -> None:
    who, start = with_limits(process(), NPROC=(10, 10)), process(pid=300)
    symptom = call("clone", "EAGAIN", seen_in=SeenIn.OUTPUT)
    assert blamed(nproc, situated(symptom, who, at_start=start)).status is Status.POSSIBLE


def test_execve_fails_so_for_this_limit_only() -> None:
    who = with_limits(process(), NPROC=(10, 10))
    situation = situated(call("execve", "EAGAIN"), who)
    assert blamed(nproc, situation).status is Status.PROVED
    assert outcomes(pids_max, situation) == []


def test_a_machine_with_all_its_threads_is_blamed_also_for_root() -> None:
    full = roomy(threads=host("kernel.threads-max", 410, 410))
    found = blamed(threads_max, situated(CLONE, process(uid=0), kept={"usage:host": full}))
    assert found.status is Status.PROVED
    assert found.fixes[0] == SetParameter("kernel.threads-max", "4096", seen="410")
    assert found.subject_key == "parameter:kernel.threads-max"


def test_threads_that_had_just_ended_make_it_likely() -> None:
    near = roomy(threads=host("kernel.threads-max", 380, 410))
    assert blamed(threads_max, situated(CLONE, process(), kept={"usage:host": near})).status is Status.LIKELY
    asked = call("clone", "EAGAIN", seen_in=SeenIn.ASKED)
    assert ruled_out(threads_max, situated(asked, process(), kept={"usage:host": near})) == "30 free"


def test_process_numbers_that_ran_out_are_blamed() -> None:
    full = roomy(pids=host("kernel.pid_max", 200, 400, True))
    situation = situated(CLONE, process(uid=0), kept={"usage:host": full, "usage:pids-left": 0})
    assert blamed(pid_max, situation).status is Status.PROVED
    assert ruled_out(pid_max, situated(CLONE, process())) == "4,000,000 free"


def test_a_pid_namespace_may_have_a_maximum_of_its_own() -> None:
    who = process(namespaces={"user": "user:[4026531837]", "pid": "pid:[4026532222]"})
    here = {"namespace:pid": "pid:[4026531836]"}
    asked = call("clone", "EAGAIN", seen_in=SeenIn.ASKED)
    assert "pid namespace" in undecided(pid_max, situated(asked, who, kept=here))
    found = blamed(pid_max, situated(CLONE, who, kept=here))  # no other limit is near
    assert (found.status, found.subject) == (Status.LIKELY, "pid namespace")
    limited = with_limits(who, NPROC=(40, 40))
    assert "own" in ruled_out(pid_max, situated(CLONE, limited, kept={**here, "usage:tasks": 40}))


def test_without_a_process_the_hosts_limits_stand_and_the_others_are_not_decided() -> None:
    situation = situated(Symptom(SymptomKind.CALL, "clone", "EAGAIN"))
    assert "free" in ruled_out(threads_max, situation)
    assert "name one" in undecided(nproc, situation)
    assert undecided(pids_max, situation)
