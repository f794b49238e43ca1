# SPDX-License-Identifier: Apache-2.0
"""Queued signals, asynchronous I/O, cgroups, queues, shared memory, keys, priorities."""
from __future__ import annotations

from pathlib import Path

from situations import blamed, call, host, outcomes, own_fault, process, roomy, ruled_out, set_by, situated, undecided, with_limits

from triaged.explain.cgroup_moves import empty_cpuset, no_internal_processes
from triaged.explain.ipc import (
    keys,
    message_queues,
    msg_max,
    msgqueue,
    parse_key_users,
    queues_max,
    semaphores,
    shared_memory,
)
from triaged.explain.kernel_objects import aio_max_nr, max_descendants, sigpending
from triaged.explain.scheduling import nice, rtprio
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.model.cause import Status
from triaged.model.fix import SetParameter
from triaged.model.limit import UNLIMITED
from triaged.model.symptom import SeenIn

ELSEWHERE = {"user": "user:[4026531837]", "ipc": "ipc:[4026539999]"}
HERE: dict[str, object] = {"namespace:ipc": "ipc:[4026531839]"}


def test_timers_need_a_signal_each() -> None:
    who, create = with_limits(process(pending_signals=3), SIGPENDING=(3, 3)), call("timer_create", "EAGAIN")
    assert blamed(sigpending, situated(create, who)).status is Status.PROVED
    assert ruled_out(sigpending, situated(create, with_limits(process(), SIGPENDING=(UNLIMITED, UNLIMITED))))
    few = with_limits(process(pending_signals=1), SIGPENDING=(3, 3))
    assert undecided(sigpending, situated(call("rt_sigqueueinfo", "EAGAIN"), few))
    assert undecided(sigpending, situated(create))
    start = with_limits(process(pid=300), SIGPENDING=(100, 100))
    assert own_fault(sigpending, situated(create, who, at_start=start, deeds=(set_by(500, 11),)))


def test_asynchronous_io_is_bounded_for_the_whole_machine() -> None:
    symptom = call("io_setup", "EAGAIN", arguments=(100_000, 0, 0, 0, 0, 0))
    found = blamed(aio_max_nr, situated(symptom, process()))
    assert (found.status, found.subject_key) == (Status.PROVED, "parameter:fs.aio-max-nr")
    assert "100,000 more were asked for" in found.summary
    asked = call("io_setup", "EAGAIN", seen_in=SeenIn.ASKED)
    assert ruled_out(aio_max_nr, situated(asked, process())) == "65,536 free"
    full = {"usage:host": roomy(aio=host("fs.aio-max-nr", 65536, 65536))}
    assert blamed(aio_max_nr, situated(asked, process(), kept=full)).status is Status.PROVED


def cgroup_tree(root: Path, most: str, have: int) -> CgroupLayout:
    directory = root / "ci.service"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.max.descendants").write_text(f"{most}\n")
    (directory / "cgroup.stat").write_text(f"nr_descendants {have}\nnr_dying_descendants 0\n")
    return CgroupLayout((Hierarchy("", str(root)),))


def test_a_cgroup_with_all_its_descendants_refuses_one_more(tmp_path: Path) -> None:
    symptom = call("mkdirat", "EAGAIN", path=f"{tmp_path}/ci.service/new")
    full = {"layout": cgroup_tree(tmp_path, "2", 2)}
    assert blamed(max_descendants, situated(symptom, process(), kept=full)).subject == "ci.service"
    assert "full" in ruled_out(max_descendants, situated(symptom, process(), kept={"layout": cgroup_tree(tmp_path, "3", 2)}))
    elsewhere = call("mkdirat", "EAGAIN", path="/mnt/nfs/new")
    assert "no cgroup" in ruled_out(max_descendants, situated(elsewhere, process(), kept=full))


def test_a_cpuset_without_cpus_takes_nobody(tmp_path: Path) -> None:
    (tmp_path / "cpuset.cpus").write_text("\n")
    (tmp_path / "cpuset.mems").write_text("0\n")
    symptom = call("write", "ENOSPC", path=f"{tmp_path}/cgroup.procs")
    assert blamed(empty_cpuset, situated(symptom, process())).summary == f"cpuset.cpus of {tmp_path} is empty"
    (tmp_path / "cpuset.cpus").write_text("0-1\n")
    assert ruled_out(empty_cpuset, situated(symptom, process()))
    assert undecided(empty_cpuset, situated(call("write", "ENOSPC", path="/nonexistent/tasks"), process()))
    assert outcomes(empty_cpuset, situated(call("write", "ENOSPC", path="/tmp/file"), process())) == []


def test_a_cgroup_that_hands_controllers_on_takes_nobody(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("pids memory\n")
    symptom = call("write", "EBUSY", path=f"{tmp_path}/cgroup.procs")
    assert "hands pids memory on" in blamed(no_internal_processes, situated(symptom, process())).summary
    (tmp_path / "cgroup.subtree_control").write_text("\n")
    assert ruled_out(no_internal_processes, situated(symptom, process()))


def test_message_queues_of_a_user_take_their_limit() -> None:
    symptom = call("mq_open", "EMFILE")
    who = with_limits(process(open_files=3), MSGQUEUE=(819200, 819200), NOFILE=(64, 64))
    assert blamed(msgqueue, situated(symptom, who)).status is Status.PROVED
    assert "files" in undecided(msgqueue, situated(symptom, with_limits(who, NOFILE=(3, 3))))


def test_a_queue_is_bounded_by_its_namespaces_parameters() -> None:
    names = {"msg_max": "10", "msgsize_max": "8192", "queues_max": "1"}
    kept = {**HERE, **{f"parameter:fs.mqueue.{name}": value for name, value in names.items()}}
    found = blamed(msg_max, situated(call("mq_open", "EINVAL"), process(), kept=kept))
    assert (found.status, found.fixes[0]) == (Status.LIKELY, SetParameter("fs.mqueue.msg_max", "1024", seen="10"))
    assert ruled_out(msg_max, situated(call("mq_open", "EINVAL"), process(effective=1 << 24), kept=kept))
    assert blamed(queues_max, situated(call("mq_open", "ENOSPC"), process(), kept=kept)).status is Status.PROVED
    assert "namespace" in undecided(queues_max, situated(call("mq_open", "ENOSPC"), process(namespaces=ELSEWHERE), kept=kept))


def sysv(**values: object) -> dict[str, object]:
    known = {"shmmax": 1000000, "shmmni": 4, "shmall": 1000, "sem": "32000\t1024000000\t500\t4", "msgmni": 4, "msgmax": 8192}
    kept = {f"parameter:kernel.{name}": str(value) for name, value in {**known, **values}.items()}
    return {**HERE, **kept, "sysvipc:shm": 1, "sysvipc:sem": 1, "sysvipc:msg": 1}


def test_each_limit_of_shared_memory_is_told_from_the_others() -> None:
    large = call("shmget", "EINVAL", arguments=(0, 2_000_000, 0o1600, 0, 0, 0))
    assert blamed(shared_memory, situated(large, process(), kept=sysv())).cause == "sysctl.kernel.shmmax"
    assert ruled_out(shared_memory, situated(call("shmget", "EINVAL", arguments=(0, 10, 0, 0, 0, 0)), process(), kept=sysv()))
    one_more = call("shmget", "ENOSPC", arguments=(0, 10, 0o1600, 0, 0, 0))
    found = blamed(shared_memory, situated(one_more, process(), kept={**sysv(), "sysvipc:shm": 4}))
    assert (found.cause, found.status) == ("sysctl.kernel.shmmni", Status.PROVED)
    assert blamed(shared_memory, situated(one_more, process(), kept=sysv())).cause == "sysctl.kernel.shmall"
    removed = situated(one_more, process(), kept=sysv(shmall=(1 << 64) - 1))  # the test has cleaned up since
    assert blamed(shared_memory, removed).cause == "sysctl.kernel.shmmni"
    assert undecided(shared_memory, situated(one_more, process(namespaces=ELSEWHERE), kept=sysv()))


def test_each_number_of_kernel_sem_is_told_from_the_others() -> None:
    many = call("semget", "EINVAL", arguments=(0, 40_000, 0, 0, 0, 0))
    assert "first number" in blamed(semaphores, situated(many, process(), kept=sysv())).summary
    sets = call("semget", "ENOSPC", arguments=(0, 1, 0, 0, 0, 0))
    assert "fourth number" in blamed(semaphores, situated(sets, process(), kept={**sysv(), "sysvipc:sem": 4})).summary
    at_once = call("semop", "E2BIG", arguments=(0, 0, 600, 0))
    assert "third number" in blamed(semaphores, situated(at_once, process(), kept=sysv())).summary
    assert ruled_out(semaphores, situated(call("semop", "E2BIG", arguments=(0, 0, 5, 0)), process(), kept=sysv()))
    assert outcomes(semaphores, situated(call("semop", "EINVAL"), process(), kept=sysv())) == []
    assert outcomes(semaphores, situated(call("semget", "E2BIG"), process(), kept=sysv())) == []


def test_queues_and_messages_have_limits_of_their_own() -> None:
    one_more = call("msgget", "ENOSPC")
    assert blamed(message_queues, situated(one_more, process(), kept={**sysv(), "sysvipc:msg": 4})).cause == "sysctl.kernel.msgmni"
    assert blamed(message_queues, situated(one_more, process(), kept=sysv())).status is Status.PROVED  # removed since
    asked = call("msgget", "ENOSPC", seen_in=SeenIn.ASKED)
    assert ruled_out(message_queues, situated(asked, process(), kept=sysv())) == "3 free"
    long_one = call("msgsnd", "EINVAL", arguments=(0, 0, 9000, 0, 0, 0))
    assert blamed(message_queues, situated(long_one, process(), kept=sysv())).cause == "sysctl.kernel.msgmax"


def test_keys_are_bounded_by_number_and_by_bytes() -> None:
    symptom = call("add_key", "EDQUOT")
    found = blamed(keys, situated(symptom, process(), kept={"key-users": (200, 200, 900, 20000)}))
    assert found.cause == "sysctl.kernel.keys.maxkeys"
    bytes_gone = situated(symptom, process(), kept={"key-users": (9, 200, 19990, 20000)})
    assert blamed(keys, bytes_gone).cause == "sysctl.kernel.keys.maxbytes"
    root = blamed(keys, situated(symptom, process(uid=0), kept={"key-users": (9, 9, 1, 20000)}))
    assert root.cause == "sysctl.kernel.keys.root_maxkeys"
    asked = call("add_key", "EDQUOT", seen_in=SeenIn.ASKED)
    assert undecided(keys, situated(asked, process(), kept={"key-users": None}))
    gone = situated(symptom, process(), kept={"key-users": None, "parameter:kernel.keys.maxkeys": "200"})
    assert blamed(keys, gone).status is Status.LIKELY
    assert "191 free" in ruled_out(keys, situated(asked, process(), kept={"key-users": (9, 200, 900, 20000)}))


def test_key_users_is_read_as_the_kernel_writes_it() -> None:
    text = "    0:   117 116/116 111/1000000 2106/25000000\n 1000:     2 2/2 2/200 40/20000\nbroken\n  7: 1 2/2 x/3 4/5\n"
    assert parse_key_users(text) == {0: (111, 1000000, 2106, 25000000), 1000: (2, 200, 40, 20000)}


def test_a_nice_value_below_the_limit_is_refused() -> None:
    symptom = call("setpriority", "EACCES", arguments=(0, 0, 0xFFFFFFFB, 0, 0, 0))  # -5
    who = with_limits(process(), NICE=(0, 0))
    found = blamed(nice, situated(symptom, who))
    assert (found.status, "25 is needed" in found.summary) == (Status.PROVED, True)
    assert "it is 40" in ruled_out(nice, situated(symptom, with_limits(process(), NICE=(40, 40))))
    assert "CAP_SYS_NICE" in ruled_out(nice, situated(symptom, with_limits(process(effective=1 << 23), NICE=(0, 0))))


def test_a_real_time_policy_needs_a_limit_above_zero() -> None:
    symptom = call("sched_setscheduler", "EPERM", arguments=(0, 1, 0x1000, 0, 0, 0))
    assert blamed(rtprio, situated(symptom, with_limits(process(), RTPRIO=(0, 0)))).cause == "rlimit.RTPRIO"
    assert ruled_out(rtprio, situated(symptom, with_limits(process(), RTPRIO=(99, 99))))
