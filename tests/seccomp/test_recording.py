# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from triaged.seccomp.action import Action, ActionKind
from triaged.seccomp.recording import Recording, profile_of
from triaged.seccomp.syscalls import number_of


def test_what_a_go_runtime_does_only_in_some_runs_is_allowed_and_said() -> None:
    recording = Recording("x86_64")
    for name in ("epoll_create1", "eventfd2", "rt_sigprocmask", "sigaltstack", "write"):
        number = number_of("x86_64", name)
        assert number is not None
        recording.add("plain.test", number)
    profile = profile_of(recording, Action(ActionKind.ERRNO, 1), "plain")
    runtime = next(rule for rule in profile.rules if "not in every run" in rule.comment and "Go" in rule.comment)
    assert {"epoll_pwait", "epoll_ctl", "tgkill", "sched_yield"} <= set(runtime.names)
    futex = number_of("x86_64", "futex")
    assert futex is not None
    recording.add("plain.test", futex)  # a run in which one of them was seen gives the same profile
    assert profile_of(recording, Action(ActionKind.ERRNO, 1), "plain") == profile


def test_a_program_without_the_marks_of_go_gets_nothing_added() -> None:
    recording = Recording("x86_64")
    number = number_of("x86_64", "epoll_create1")
    assert number is not None
    recording.add("server", number)
    assert "epoll_pwait" not in recording.names
