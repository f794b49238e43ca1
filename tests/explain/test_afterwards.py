# SPDX-License-Identifier: Apache-2.0
"""A process that had gone before it could be read, and what it is known to have done."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from situations import TEST, blamed, call, own_fault, process, set_by, situated, undecided, with_limits

from triaged.explain.files import fsize, nofile
from triaged.explain.hypotheses import HYPOTHESES
from triaged.explain.hypothesis import explain
from triaged.explain.locked_memory import memlock
from triaged.explain.memory import address_space
from triaged.explain.replay import brought_up_to_date as brought_up
from triaged.explain.replay import replayed
from triaged.model.cause import Status
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process_state import Credentials, ProcessState
from triaged.model.symptom import Deed

ALL = (1 << 41) - 1


def brought_up_to_date(state: ProcessState, deeds: Iterable[Deed], until_ns: int = 0) -> ProcessState:
    return brought_up(state, deeds, {500}, until_ns)


def root(**more: object) -> ProcessState:
    """A shell of root, read before it became the test."""
    who = replace(process(pid=500, uid=0, effective=ALL, comm="setpriv"), stands_for=500)
    found = with_limits(who, MEMLOCK=(8 << 20, 8 << 20), NOFILE=(1024, 4096), AS=(UNLIMITED, UNLIMITED))
    return replace(found, **more)  # type: ignore[arg-type]


def did(syscall: str, *arguments: int, value: int = 0, is_test: bool = False, at_ns: int = 0) -> Deed:
    return Deed(500, "setpriv", syscall, arguments, value, is_test, at_ns)


def credentials(state: ProcessState) -> Credentials:
    assert isinstance(state.credentials, Credentials)
    return state.credentials


@pytest.mark.parametrize("deed", [did("setresuid", 1000, 1000, 1000), did("setuid", 1000), did("setreuid", 1000, 1000)])
def test_another_user_has_no_capabilities(deed: Deed) -> None:
    found = credentials(brought_up_to_date(root(), (deed,)))
    assert (found.uids, found.effective, found.permitted) == ((1000, 1000, 1000, 1000), 0, 0)


def test_an_id_of_minus_one_stays() -> None:
    who = replace(root(), credentials=replace(credentials(root()), permitted=ALL))
    found = credentials(brought_up_to_date(who, (did("setresuid", 0xFFFFFFFF, 1000, 0xFFFFFFFFFFFFFFFF),)))
    assert (found.uids[0], found.uids[1], found.effective) == (0, 1000, 0)
    assert found.permitted == ALL  # root in its real id: they may come back


def test_a_capability_that_was_dropped_from_the_bounding_set_is_gone() -> None:
    found = credentials(brought_up_to_date(root(), (did("prctl", 24, 14), did("prctl", 38, 1))))
    assert not found.has(14)
    assert found.has(21)
    assert found.no_new_privileges


def test_a_limit_that_was_set_is_what_it_was_set_to() -> None:
    known = brought_up_to_date(root(), (did("prlimit64", 0, 8, 0x1000, 0, value=65536),))
    assert known.soft("MEMLOCK") == 65536
    unread = brought_up_to_date(root(), (did("prlimit64", 0, 8, 0x1000, 0, value=-1),))
    assert isinstance(unread.soft("MEMLOCK"), Unknown)
    asked = brought_up_to_date(root(), (did("prlimit64", 0, 8, 0, 0x2000, value=-1),))
    assert asked.soft("MEMLOCK") == 8 << 20
    another = brought_up_to_date(root(), (did("prlimit64", 77, 8, 0x1000, 0, value=1),))
    assert another.soft("MEMLOCK") == 8 << 20


def test_what_go_does_to_its_files_is_known() -> None:
    found = brought_up_to_date(root(), (did("prlimit64", 0, 7, 0x1000, 0, value=-1, is_test=True),))
    assert (found.soft("NOFILE"), found.hard("NOFILE")) == (4096, 4096)


def test_namespaces_umask_and_filters_are_followed() -> None:
    deeds = (did("unshare", 0x10000000 | 0x08000000), did("umask", 0o077), did("seccomp", 1))
    found = brought_up_to_date(root(), deeds)
    assert not found.has_initial_user_namespace
    assert found.namespaces["ipc"] != root().namespaces.get("ipc")
    assert (found.umask, found.seccomp_mode) == (0o077, "filter")


def test_what_another_program_had_in_use_is_unknown() -> None:
    found = brought_up_to_date(root(open_files=7, mappings=60), ())
    assert isinstance(found.open_files, Unknown)
    assert isinstance(found.mappings, Unknown)


def test_deeds_from_before_the_reading_and_after_the_symptom_do_not_count() -> None:
    state = replace(root(), time_usec=2_000_000_000_000_000)  # in the far future: everything was before it
    assert credentials(brought_up_to_date(state, (did("setuid", 1000, at_ns=5),))).uids[0] == 0
    late = did("setuid", 1000, at_ns=10**18)
    assert credentials(brought_up_to_date(root(), (late,), until_ns=10**17)).uids[0] == 0


SET = (did("setresuid", 1000, 1000, 1000), did("prlimit64", 0, 8, 0x1000, 0, value=65536))
LOCK = call("mlock", "ENOMEM", arguments=(0x1000, 1 << 20, 0, 0, 0, 0))


def test_a_limit_that_a_wrapper_set_is_blamed_though_the_process_had_gone() -> None:
    situation = situated(LOCK, root(), deeds=SET)
    found = explain(situation, (memlock,))
    assert [(each.cause, each.status) for each in found.causes] == [("rlimit.MEMLOCK", Status.PROVED)]


def test_a_limit_whose_value_was_not_seen_is_likely() -> None:
    unread = (SET[0], did("prlimit64", 0, 8, 0x1000, 0, value=-1))
    situation = situated(LOCK, root(), deeds=unread)
    situation = replayed(situation)
    assert blamed(memlock, situation).status is Status.LIKELY


@pytest.mark.parametrize(("hypothesis", "resource", "symptom"), [
    (nofile, 7, call("openat", "EMFILE")), (fsize, 1, call("write", "EFBIG")), (address_space, 9, call("mmap", "ENOMEM")),
])  # fmt: skip
def test_the_same_holds_for_other_limits(hypothesis: object, resource: int, symptom: object) -> None:
    who = with_limits(root(), FSIZE=(UNLIMITED, UNLIMITED), DATA=(UNLIMITED, UNLIMITED))
    situation = situated(symptom, who, deeds=(did("prlimit64", 0, resource, 0x1000, 0, value=-1),))  # type: ignore[arg-type]
    situation = replayed(situation)
    found = blamed(hypothesis, situation)  # type: ignore[arg-type]
    assert found.status is Status.LIKELY
    assert "setpriv (pid 500)" in found.summary or "setpriv (pid 500)" in str(found.evidence)


def test_a_limit_that_the_test_itself_set_stays_its_own_fault() -> None:
    start = replace(root(), stands_for=0)
    who = replace(root(), identity=replace(root().identity, workload=TEST))
    situation = situated(call("openat", "EMFILE"), who, at_start=start, deeds=(replace(set_by(500, 7), value=64),))
    situation = replayed(situation)
    assert own_fault(nofile, situation)


def test_a_limit_of_which_nothing_is_known_decides_nothing() -> None:
    who = replace(root(), limits={})
    assert undecided(nofile, situated(call("openat", "EMFILE"), who))


def test_a_process_that_was_read_itself_is_left_as_it_is() -> None:
    who = replace(root(), stands_for=0, open_files=7)
    situation = situated(call("clone", "EAGAIN"), who, deeds=SET)
    explain(situation, HYPOTHESES[:4])
    assert situation.process is who
