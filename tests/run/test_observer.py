# SPDX-License-Identifier: Apache-2.0
"""What the observer makes of what is known of a process: here without a trace."""
from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import pytest
from situations import process

from triaged.kernel.failing_calls import CallEnded, CallEntered, Executed, NumberedCallEnded, TaskEnded, TaskMade, TraceEvent
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.symptom import Symptom, SymptomKind
from triaged.run.command import Remains
from triaged.run.observer import Observer, Surroundings

NOBODY = 1 << 22  # beyond the greatest pid_max
TOLD = Symptom(SymptomKind.CALL, "openat", "EACCES")


def began(label: str) -> ProcessState:
    """The run's command as it was when it began: triagectl's own, without a program."""
    state = process(pid=NOBODY)
    return replace(state, identity=replace(state.identity, exe=""), lsm_label=label)


def observed(
    *events: TraceEvent, last_label: str = "", first_label: str = "unconfined",
    cgroups: dict[str, str] | None = None,
) -> Observer:
    around = Surroundings(KernelPaths(), began(first_label), {}, dict, tuple)
    observer = Observer(around, NOBODY, None)
    observer._take(events)
    observer.finish(Remains(last_label, cgroups or {}))
    return observer


def refused(pid: int, at_ns: int) -> tuple[TraceEvent, TraceEvent]:
    return CallEntered(pid, "openat", (0, 0, 0), at_ns), CallEnded(pid, "openat", -13, at_ns)


def label_of_first(observer: Observer) -> str | Unknown:
    (incident,) = observer.incidents()
    assert incident.process is not None
    return incident.process.lsm_label


RELABELLED = (Executed(NOBODY, "/usr/bin/aa-exec", NOBODY, 10), Executed(NOBODY, "/tmp/a.test", NOBODY, 20))


def test_a_command_that_is_gone_has_the_label_that_it_ended_with() -> None:
    assert label_of_first(observed(*RELABELLED, *refused(NOBODY, 30), last_label="corpus (enforce)")) == "corpus (enforce)"


@pytest.mark.parametrize("last_label", ["", "corpus (enforce)"])
def test_what_it_was_refused_before_it_executed_its_program_is_not_that_labels(last_label: str) -> None:
    events = (RELABELLED[0], *refused(NOBODY, 15), RELABELLED[1])
    assert label_of_first(observed(*events, last_label=last_label)) == "unconfined"


def test_of_a_command_that_a_launcher_started_the_label_is_unknown_where_nothing_tells_it() -> None:
    assert isinstance(label_of_first(observed(*RELABELLED, *refused(NOBODY, 30))), Unknown)


def test_where_no_security_module_has_labels_nothing_is_unknown() -> None:
    assert label_of_first(observed(*RELABELLED, *refused(NOBODY, 30), first_label="")) == ""


def test_a_child_that_a_launcher_started_has_not_the_commands_label() -> None:
    child = NOBODY + 1
    events = (
        Executed(NOBODY, "/bin/sh", NOBODY, 10), TaskMade(NOBODY, child, False, 20), Executed(child, "/usr/bin/aa-exec", child, 30),
        Executed(child, "/tmp/a.test", child, 40), *refused(child, 50),
    )
    assert isinstance(label_of_first(observed(*events, last_label="unconfined")), Unknown)


def test_a_child_of_a_shell_has_the_label_of_the_shell() -> None:
    child = NOBODY + 1
    events = (
        Executed(NOBODY, "/bin/sh", NOBODY, 10), TaskMade(NOBODY, child, False, 20), Executed(child, "/tmp/a.test", child, 30),
        *refused(child, 40),
    )
    assert label_of_first(observed(*events)) == "unconfined"


def test_without_a_trace_the_last_label_is_the_commands() -> None:
    situation = observed(last_label="corpus (enforce)").situation_of(TOLD, "")
    assert situation.process is not None
    assert situation.process.lsm_label == "corpus (enforce)"


def test_a_command_that_was_not_read_in_time_is_in_the_cgroup_in_which_it_ended() -> None:
    observer = observed(*RELABELLED, *refused(NOBODY, 30), cgroups={"": "/system.slice/run.scope"})
    (incident,) = observer.incidents()
    assert incident.process is not None
    assert incident.process.identity.cgroup == "/system.slice/run.scope"
    before = observed(RELABELLED[0], *refused(NOBODY, 15), RELABELLED[1], cgroups={"": "/system.slice/run.scope"}).incidents()[0]
    assert before.process is not None
    assert before.process.identity.cgroup == "/ci.service"


# Programs of another architecture (the events of a real one: tests/corpus/cases/foreign)


class Trace:
    """A trace that tells nothing by itself, and keeps what it is asked for."""

    watches_seccomp = watches_other_architecture = sees_senders = False
    refusable: frozenset[str] = frozenset()

    def watch_other_architecture(self, again: Collection[int], multiplexed: Collection[int]) -> None:
        self.watches_other_architecture = True

    def events(self, cap: int = 0) -> Iterator[TraceEvent]:
        return iter(())

    def events_lost(self) -> int:
        return 0

    def stop(self) -> None:
        """Nothing to stop."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was not to be asked for")


EXECUTED = Executed(NOBODY, "/tmp/a.test", NOBODY, 10)
IS_NATIVE = CallEnded(NOBODY, "execve", 0, 11)
OPEN_OF_I386 = 5
REFUSED_BY_NUMBER = NumberedCallEnded(NOBODY, OPEN_OF_I386, -30, 12)
GONE = TaskEnded(NOBODY, 20)


def traced(*events: TraceEvent, is_watched: bool) -> tuple[Observer, Trace]:
    calls = Trace()
    calls.watches_other_architecture = is_watched
    observer = Observer(Surroundings(KernelPaths(), began("unconfined"), {}, dict, tuple), NOBODY, calls)
    observer._take(events)
    observer.finish(Remains())
    return observer, calls


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no other architecture here")
def test_a_program_whose_execve_is_not_told_to_end_is_none_of_this_architecture() -> None:
    observer, calls = traced(EXECUTED, GONE, is_watched=False)
    assert observer.was_deaf
    assert calls.watches_other_architecture
    observer, calls = traced(EXECUTED, IS_NATIVE, GONE, is_watched=False)
    assert not observer.was_deaf
    assert not calls.watches_other_architecture


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number is of i386")
def test_by_numbers_only_the_calls_of_the_other_architecture_are_told() -> None:
    observer, _ = traced(EXECUTED, REFUSED_BY_NUMBER, GONE, is_watched=True)
    (incident,) = observer.incidents()
    assert (incident.symptom.syscall, incident.symptom.errno) == ("open", "EROFS")
    assert not observer.was_deaf
    observer, _ = traced(EXECUTED, IS_NATIVE, REFUSED_BY_NUMBER, GONE, is_watched=True)
    assert observer.incidents() == []
