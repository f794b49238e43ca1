# SPDX-License-Identifier: Apache-2.0
"""Open files, pipes, terminals, file sizes, and what watches files."""
from __future__ import annotations

from dataclasses import replace

import pytest
from situations import (
    blamed,
    call,
    host,
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

from triaged.explain.files import file_max, fsize, locks, nofile, nr_open, pty_max
from triaged.explain.pipes import pipe_pages, pipe_size
from triaged.explain.watches import epoll_watches, fanotify, inotify_instances, inotify_watches
from triaged.model.cause import Status
from triaged.model.fix import ManualStep, SetParameter, SetResourceLimit, SetUnitSetting
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.symptom import SeenIn
from triaged.model.usage import Usage

OPEN = call("openat", "EMFILE")
INSTANCES, WATCHES = "fs.inotify.max_user_instances", "fs.inotify.max_user_watches"


@pytest.mark.parametrize("syscall", ["openat", "socket", "accept4", "pipe2", "dup", "epoll_create1", "eventfd2"])
def test_a_process_with_all_its_files_is_blamed_and_the_hard_limit_named(syscall: str) -> None:
    who = with_limits(process(open_files=64, cgroup="/system.slice/ci.service"), NOFILE=(64, 64))
    found = blamed(nofile, situated(call(syscall, "EMFILE"), who))
    assert (found.cause, found.status, found.subject) == ("rlimit.NOFILE", Status.PROVED, "process 500 (a.test)")
    assert "64 files open (hard RLIMIT_NOFILE)" in found.summary
    assert isinstance(found.fixes[0], SetUnitSetting)
    assert (found.fixes[0].name, found.fixes[0].value) == ("LimitNOFILE", "65536")


def test_files_that_were_closed_meanwhile_do_not_acquit_it() -> None:
    who = with_limits(process(open_files=9), NOFILE=(64, 64))
    assert blamed(nofile, situated(OPEN, who)).status is Status.PROVED


def test_a_soft_limit_below_the_hard_one_is_raised_to_it() -> None:
    who = with_limits(process(open_files=1024), NOFILE=(1024, 524288))
    found = blamed(nofile, situated(OPEN, who))
    assert "hard: 524,288" in found.summary
    assert any("524288" in fix.title for fix in found.fixes)


def test_a_text_alone_may_be_of_another_call() -> None:
    who = with_limits(process(open_files=9), NOFILE=(64, 64))
    assert blamed(nofile, situated(call("", "EMFILE", seen_in=SeenIn.OUTPUT), who)).status is Status.POSSIBLE


def test_free_files_rule_it_out_where_inotify_has_another_reason() -> None:
    who = with_limits(process(open_files=9), NOFILE=(64, 64))
    assert ruled_out(nofile, situated(call("inotify_init1", "EMFILE"), who)) == "55 free of 64"


def test_no_limit_rules_it_out_and_no_process_decides_nothing() -> None:
    assert ruled_out(nofile, situated(OPEN, process(open_files=9))) == "unlimited"
    assert undecided(nofile, situated(OPEN))


def test_a_test_that_lowered_its_files_is_to_blame_itself() -> None:
    start = with_limits(process(pid=300), NOFILE=(1024, 4096))
    who = with_limits(process(open_files=64), NOFILE=(64, 4096))
    assert own_fault(nofile, situated(OPEN, who, at_start=start, deeds=(set_by(500, 7),)))


def test_go_that_raises_and_gives_back_its_soft_limit_lowers_nothing() -> None:
    start = with_limits(process(pid=300), NOFILE=(1024, 4096))
    given_back = with_limits(process(open_files=1024), NOFILE=(1024, 4096))
    raised = with_limits(process(open_files=4096), NOFILE=(4096, 4096))
    for who in (given_back, raised):
        assert blamed(nofile, situated(OPEN, who, at_start=start, deeds=(set_by(500, 7),))).status is Status.PROVED


def test_a_limit_that_a_test_lowered_for_a_moment_and_put_back_is_its_own() -> None:
    start = with_limits(process(pid=300), NOFILE=(4096, 4096))
    put_back = with_limits(process(open_files=9), NOFILE=(4096, 4096))
    lowers, restores = (replace(set_by(500, 7), value=4096, at_ns=at_ns) for at_ns in (100, 300))
    symptom = call("openat", "EMFILE", first_ns=200)
    both = situated(symptom, put_back, at_start=start, deeds=(lowers, restores))
    assert "before that, and again afterwards" in own_fault(nofile, both)
    for only in (lowers, restores):
        assert blamed(nofile, situated(symptom, put_back, at_start=start, deeds=(only,))).status is Status.PROVED
    was_gone = replace(lowers, value=-1)
    assert "to what, was not seen" in own_fault(nofile, situated(symptom, put_back, at_start=start, deeds=(was_gone,)))


def test_gos_own_raise_before_and_a_tests_after_it_failed_is_no_lowering() -> None:
    start = with_limits(process(pid=300), NOFILE=(1024, 4096))
    who = with_limits(process(open_files=4096), NOFILE=(4096, 4096))
    by_go, lowers, after = (replace(set_by(500, 7), value=4096, at_ns=at_ns) for at_ns in (100, 150, 300))
    symptom = call("openat", "EMFILE", first_ns=200)
    assert blamed(nofile, situated(symptom, who, at_start=start, deeds=(by_go, after))).status is Status.PROVED
    assert own_fault(nofile, situated(symptom, who, at_start=start, deeds=(by_go, lowers, after)))


def test_where_only_the_output_tells_a_high_limit_is_not_likely_to_have_been_reached() -> None:
    told = call("", "EMFILE", text="[Errno 24] Too many open files: '/dev/null'", seen_in=SeenIn.OUTPUT)
    for limit, status in ((1024, Status.LIKELY), (20_000, Status.POSSIBLE)):
        found = blamed(nofile, situated(told, with_limits(process(), NOFILE=(limit, limit))))
        assert found.status is status
        assert "was not seen" in found.summary


def test_a_live_process_that_is_asked_about_can_be_helped_at_once() -> None:
    who = with_limits(process(open_files=64), NOFILE=(64, 64))
    found = blamed(nofile, situated(call("openat", "EMFILE", seen_in=SeenIn.ASKED), who))
    assert isinstance(found.fixes[0], SetResourceLimit)
    assert (found.fixes[0].pid, found.fixes[0].soft, found.fixes[0].seen) == (500, 65536, "64:64")
    fine = with_limits(process(open_files=8), NOFILE=(64, 64))
    assert ruled_out(nofile, situated(call("openat", "EMFILE", seen_in=SeenIn.ASKED), fine)) == "56 free of 64"


def test_who_asks_about_a_process_whose_files_cannot_be_counted_is_told_so() -> None:
    hidden = with_limits(process(open_files=Unknown("not permitted")), NOFILE=(64, 64))
    assert undecided(nofile, situated(call("openat", "EMFILE", seen_in=SeenIn.ASKED), hidden)) == "not permitted"


def test_a_run_is_told_how_to_start_its_command_again() -> None:
    start = process(pid=300)
    who = with_limits(process(open_files=64), NOFILE=(64, 64))
    step = blamed(nofile, situated(OPEN, who, at_start=start, deeds=(set_by(300, 7, is_test=False),))).fixes[-1]
    assert isinstance(step, ManualStep)
    assert step.commands[0][:2] == ("prlimit", "--nofile=65536:65536")


def test_the_machines_files_are_blamed_by_the_kernels_own_line() -> None:
    usage = {"usage:host": roomy(files=host("fs.file-max", 900, 2000))}
    symptom = call("openat", "ENFILE")
    line = situated(symptom, process(), kept=usage, read_log=lambda: ("VFS: file-max limit 2000 reached",))
    assert blamed(file_max, line).status is Status.PROVED
    assert ruled_out(file_max, situated(symptom, process(), kept=usage)) == "1,100 free"
    near = {"usage:host": roomy(files=host("fs.file-max", 1900, 2000))}
    assert blamed(file_max, situated(symptom, process(), kept=near)).status is Status.LIKELY


def test_root_is_exempt_from_the_machines_files() -> None:
    full = {"usage:host": roomy(files=host("fs.file-max", 2000, 2000))}
    assert "CAP_SYS_ADMIN" in ruled_out(file_max, situated(call("openat", "ENFILE"), process(uid=0, effective=1 << 21), kept=full))
    assert blamed(file_max, situated(call("openat", "ENFILE"), process(), kept=full)).status is Status.PROVED


def test_more_files_than_nr_open_are_refused_to_root_too() -> None:
    kept = {"parameter:fs.nr_open": "4096"}
    symptom = call("prlimit64", "EPERM", arguments=(0, 7, 1, 0, 0, 0))
    root = process(uid=0, effective=1 << 24)
    assert blamed(nr_open, situated(symptom, root, kept=kept)).fixes[0] == SetParameter(
        "fs.nr_open", "1073741816", seen="4096"
    )
    assert "CAP_SYS_RESOURCE" in undecided(nr_open, situated(symptom, process(), kept=kept))
    other = call("prlimit64", "EPERM", arguments=(0, 6, 1, 0, 0, 0))
    assert outcomes(nr_open, situated(other, root, kept=kept)) == []


def pipes(hard: int, soft: int = 16384, largest: int = 1 << 20) -> dict[str, object]:
    names = {"user-pages-hard": hard, "user-pages-soft": soft, "max-size": largest}
    return {f"parameter:fs.pipe-{name}": str(value) for name, value in names.items()}


def test_a_larger_pipe_is_refused_by_what_the_users_pipes_may_hold() -> None:
    symptom = call("fcntl", "EPERM", arguments=(3, 1031, 1 << 19, 0, 0, 0))
    assert blamed(pipe_size, situated(symptom, process(), kept=pipes(64))).cause == "sysctl.fs.pipe-user-pages-hard"
    assert blamed(pipe_size, situated(symptom, process(), kept=pipes(0))).cause == "sysctl.fs.pipe-user-pages-soft"
    assert blamed(pipe_size, situated(symptom, process(), kept=pipes(0, largest=4096))).cause == "sysctl.fs.pipe-max-size"
    assert "no limit" in ruled_out(pipe_size, situated(symptom, process(), kept=pipes(0, soft=0)))
    assert ruled_out(pipe_size, situated(symptom, process(uid=0, effective=1 << 24), kept=pipes(64)))
    told = call("", "EPERM", seen_in=SeenIn.OUTPUT, text="a pipe of 4 MiB: operation not permitted")
    found = blamed(pipe_size, situated(told, process(), kept=pipes(0)))
    assert (found.cause, found.status) == ("sysctl.fs.pipe-max-size", Status.LIKELY)
    another = call("", "EPERM", seen_in=SeenIn.OUTPUT, text="chown /x: operation not permitted")
    assert outcomes(pipe_size, situated(another, process(), kept=pipes(0))) == []
    other = call("fcntl", "EPERM", arguments=(3, 4, 0, 0, 0, 0))
    assert outcomes(pipe_size, situated(other, process(), kept=pipes(64))) == []


def test_no_more_pipes_are_made_beyond_the_hard_limit() -> None:
    symptom = call("pipe2", "ENFILE")
    assert blamed(pipe_pages, situated(symptom, process(), kept=pipes(64))).status is Status.PROVED
    assert ruled_out(pipe_pages, situated(symptom, process(), kept=pipes(0))) == "there is no hard limit"


def test_inotify_instances_are_blamed_where_files_are_left() -> None:
    symptom = call("inotify_init1", "EMFILE")
    used = Usage("inotify instances", INSTANCES, "user 1000", 128, 128)
    kept = {f"parameter:{INSTANCES}": "128", "usage:user": (used,)}
    who = with_limits(process(open_files=140), NOFILE=(1024, 1024))
    found = blamed(inotify_instances, situated(symptom, who, kept=kept))
    assert (found.status, found.fixes[0]) == (Status.PROVED, SetParameter(INSTANCES, "1024", seen="128"))
    full = with_limits(process(open_files=140), NOFILE=(140, 140))
    assert "run out" in undecided(inotify_instances, situated(symptom, full, kept=kept))


def test_a_user_namespace_has_a_limit_of_its_own() -> None:
    kept = {f"parameter:{INSTANCES}": "128", "usage:user": (Usage("inotify instances", INSTANCES, "user 1000", 2, 128),)}
    inside = with_limits(process(open_files=9, namespaces={"user": "user:[4026532000]"}), NOFILE=(1024, 1024))
    found = blamed(inotify_instances, situated(call("inotify_init1", "EMFILE"), inside, kept=kept))
    assert (found.cause, found.status) == ("sysctl.user.max_inotify_instances", Status.LIKELY)


def test_inotify_watches_are_the_only_reason_for_its_enospc() -> None:
    kept: dict[str, object] = {f"parameter:{WATCHES}": "50", "usage:user": ()}
    found = blamed(inotify_watches, situated(call("inotify_add_watch", "ENOSPC"), process(), kept=kept))
    assert (found.status, found.fixes[0]) == (Status.PROVED, SetParameter(WATCHES, "524288", seen="50"))
    assert outcomes(inotify_watches, situated(call("", "ENOSPC", text="write /tmp/a: no space left on device"), process())) == []


def test_what_is_asked_is_answered_by_what_is_free() -> None:
    used = Usage("inotify watches", WATCHES, "user 1000", 20, 50)
    asked = call("inotify_add_watch", "ENOSPC", seen_in=SeenIn.ASKED)
    kept = {f"parameter:{WATCHES}": "50", "usage:user": (used,)}
    assert ruled_out(inotify_watches, situated(asked, process(), kept=kept)) == "30 free"
    assert "name a process" in undecided(inotify_watches, situated(asked, kept=kept))


def test_what_epoll_and_fanotify_watch_is_bounded_too() -> None:
    epoll = {"parameter:fs.epoll.max_user_watches": "100"}
    assert blamed(epoll_watches, situated(call("epoll_ctl", "ENOSPC"), process(), kept=epoll)).status is Status.PROVED
    told = call("", "ENOSPC", seen_in=SeenIn.OUTPUT, text="epoll watch 50: no space left on device")
    assert blamed(epoll_watches, situated(told, process(), kept=epoll)).status is Status.LIKELY
    assert outcomes(inotify_watches, situated(told, process(), kept=epoll)) == []
    groups = {"parameter:fs.fanotify.max_user_groups": "2"}
    found = blamed(fanotify, situated(call("fanotify_init", "EMFILE"), process(open_files=3), kept=groups))
    assert found.cause == "sysctl.fs.fanotify.max_user_groups"
    assert outcomes(fanotify, situated(call("fanotify_init", "ENOSPC"), process(), kept=groups)) == []
    unknown = {"parameter:fs.fanotify.max_user_groups": Unknown("not on this kernel")}
    assert undecided(fanotify, situated(call("fanotify_init", "EMFILE"), process(open_files=3), kept=unknown))


def test_a_machine_without_a_free_terminal_is_told_from_a_full_disk() -> None:
    kept = {"parameter:kernel.pty.max": "8", "parameter:kernel.pty.nr": "8"}
    assert blamed(pty_max, situated(call("openat", "ENOSPC", path="/dev/ptmx"), process(), kept=kept)).status is Status.PROVED
    assert outcomes(pty_max, situated(call("openat", "ENOSPC", path="/tmp/x"), process(), kept=kept)) == []
    roomy_one = {"parameter:kernel.pty.max": "4096", "parameter:kernel.pty.nr": "8"}
    assert ruled_out(pty_max, situated(call("openat", "ENOSPC", path="/dev/ptmx"), process(), kept=roomy_one)) == "4,088 free"


def test_a_file_beyond_its_size_is_blamed_on_the_limit() -> None:
    who = with_limits(process(), FSIZE=(20 << 20, UNLIMITED))
    found = blamed(fsize, situated(call("write", "EFBIG"), who))
    assert (found.status, "20 MiB" in found.summary) == (Status.PROVED, True)
    assert ruled_out(fsize, situated(call("write", "EFBIG"), with_limits(process(), FSIZE=(UNLIMITED, UNLIMITED)))) == "unlimited"
    start = with_limits(process(pid=300), FSIZE=(UNLIMITED, UNLIMITED))
    assert own_fault(fsize, situated(call("write", "EFBIG"), who, at_start=start, deeds=(set_by(500, 1),)))


def test_file_locks_are_never_to_blame() -> None:
    assert "not enforced" in ruled_out(locks, situated(call("flock", "ENOLCK"), process()))
