# SPDX-License-Identifier: Apache-2.0
"""What holds for every hypothesis."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from situations import call, outcomes, process, situated

import triaged
from triaged.explain.cgroup_moves import CGROUP_MOVES
from triaged.explain.files import FILES
from triaged.explain.hypotheses import HYPOTHESES
from triaged.explain.hypothesis import Hypothesis, explain
from triaged.explain.ipc import IPC
from triaged.explain.kernel_objects import KERNEL_OBJECTS
from triaged.explain.locked_memory import LOCKED_MEMORY
from triaged.explain.memory import MEMORY
from triaged.explain.pipes import PIPES
from triaged.explain.replay import RESOURCE_NUMBERS
from triaged.explain.scheduling import SCHEDULING
from triaged.explain.standing import Standing, outcome
from triaged.explain.tasks import TASKS
from triaged.explain.watches import WATCHES
from triaged.fixers.parameters import PARAMETERS
from triaged.model.cause import Blamed, NotDecidable, RuledOut, Status
from triaged.model.symptom import SeenIn, Symptom, SymptomKind

_FORM = re.compile(r"[a-z]+(\.[A-Za-z0-9_.<>-]*)?")
# Errors that nothing else gives.
_SAY_IT_THEMSELVES = {"disk.quota"}


@pytest.mark.parametrize("hypothesis", HYPOTHESES, ids=lambda each: f"{each.cause}/{each.judge.__name__}")
def test_a_hypothesis_has_a_cause_of_the_common_form(hypothesis: Hypothesis) -> None:
    assert _FORM.fullmatch(hypothesis.cause)
    assert hypothesis.explanation
    assert all(errno.isupper() for errno in hypothesis.errnos if errno)


def test_no_two_hypotheses_are_the_same_function() -> None:
    assert len({each.judge for each in HYPOTHESES}) == len(HYPOTHESES)


def symptoms_of(hypothesis: Hypothesis) -> list[Symptom]:
    kind = next(iter(hypothesis.kinds))
    if kind is not SymptomKind.CALL:
        return [Symptom(kind, signal=signal, text="core") for signal in hypothesis.signals or (0,)]
    names = sorted(hypothesis.syscalls) or [""]
    return [Symptom(kind, name, errno) for name in names for errno in sorted(hypothesis.errnos) or [""]]


@pytest.mark.parametrize("hypothesis", HYPOTHESES, ids=lambda each: f"{each.cause}/{each.judge.__name__}")
@pytest.mark.parametrize("seen", [SeenIn.ASKED, SeenIn.OUTPUT, SeenIn.TRACE])
def test_a_hypothesis_judges_also_where_nothing_can_be_read(hypothesis: Hypothesis, seen: SeenIn) -> None:
    """No process, or one of which nothing is known, on a machine that shows nothing: it may not raise, and it proves little."""
    for symptom in symptoms_of(hypothesis):
        again = Symptom(symptom.kind, symptom.syscall, symptom.errno, symptom.signal, text=symptom.text, seen_in=seen)
        for who in (None, process(limits={})):
            for found in outcomes(hypothesis, situated(again, who, kept={"usage:host": ()})):
                if isinstance(found, Blamed) and found.cause not in _SAY_IT_THEMSELVES:
                    assert found.status is not Status.PROVED or symptom.kind is not SymptomKind.CALL, found


def test_parameters_that_hypotheses_set_are_among_those_that_the_helper_sets() -> None:
    directory = Path(triaged.__file__).parent / "explain"
    text = "".join(file.read_text() for file in sorted(directory.glob("*.py")))
    keys = set(re.findall(r'set_parameter\(\s*"([a-z0-9_.-]+)"', text))
    keys |= set(re.findall(r'key(?:, \w+)? = "((?:fs|vm|kernel|user|net)\.[a-z0-9_.-]+)"', text))
    assert len(keys) > 10
    by_hand = {"vm.mmap_min_addr"}
    assert {key for key in keys - by_hand if key not in PARAMETERS} == set()


def test_what_is_counted_comes_first_and_clears_what_only_might_have_been() -> None:
    def blame(cause: str) -> object:
        return lambda status: Blamed(cause, status, "", "")

    counted, near, alone = Standing("a", is_counted=True), Standing("b", "9 free", is_near=True), Standing("c", is_near=True)
    full, unknown, roomy = Standing("d", "0 free", is_full=True), Standing("e", unknown="gone"), Standing("f", "many free")

    def status(standing: Standing, *others: Standing) -> object:
        found = outcome(standing, others, blame(standing.cause))  # type: ignore[arg-type]
        return found.status if isinstance(found, Blamed) else type(found)

    assert status(counted, near, full) is Status.PROVED
    assert status(full, near, roomy) is Status.PROVED
    assert status(full, counted) is Status.POSSIBLE
    assert status(near, counted) is RuledOut
    assert status(near, full) is RuledOut
    assert status(near, roomy) is Status.LIKELY
    assert status(near, alone) is Status.POSSIBLE
    assert status(near, unknown) is Status.POSSIBLE
    assert status(roomy) is RuledOut
    assert status(unknown, counted) is NotDecidable


def test_causes_are_ranked_by_status_then_by_weight() -> None:
    def gives(cause: str, status: Status, weight: int = 0) -> Hypothesis:
        return Hypothesis(cause, lambda situation: Blamed(cause, status, "", "", weight=weight), "x")

    known = (gives("a", Status.POSSIBLE, 9), gives("b", Status.PROVED, 1), gives("c", Status.PROVED, 5), gives("d", Status.LIKELY))
    found = explain(situated(call("clone", "EAGAIN"), process()), known)
    assert [each.cause for each in found.causes] == ["c", "b", "d", "a"]


def test_a_call_that_did_not_begin_is_no_limits() -> None:
    refused = call("clone", "EAGAIN", entered=False)
    assert [each.cause for each in HYPOTHESES if each.concerns(refused) and not each.cause.startswith("seccomp")] == []


OWN = (*TASKS, *FILES, *MEMORY, *LOCKED_MEMORY, *PIPES, *WATCHES, *KERNEL_OBJECTS, *IPC, *SCHEDULING, *CGROUP_MOVES)
_ROOMY = {
    "vm.max_map_count": "65530", "vm.overcommit_memory": "0", "fs.nr_open": "1048576", "fs.pipe-max-size": "1048576",
    "fs.pipe-user-pages-hard": "0", "fs.pipe-user-pages-soft": "16384", "kernel.pty.max": "4096", "kernel.pty.nr": "1",
    "fs.inotify.max_user_instances": "128", "fs.inotify.max_user_watches": "65536", "fs.mqueue.msg_max": "10",
    "fs.mqueue.msgsize_max": "8192", "fs.mqueue.queues_max": "256", "kernel.shmmni": "4096", "kernel.shmmax": "1000000000",
    "kernel.shmall": "1000000000", "kernel.sem": "32000 1024000000 500 32000", "kernel.msgmni": "32000",
    "kernel.msgmax": "8192", "vm.mmap_min_addr": "65536", "fs.epoll.max_user_watches": "100000",
}


@pytest.mark.parametrize("hypothesis", OWN, ids=lambda each: f"{each.cause}/{each.judge.__name__}")
def test_a_text_alone_accuses_no_limit_that_has_room(hypothesis: Hypothesis) -> None:
    """What a test prints by itself ("resource temporarily unavailable") is no proof against a machine with room for everything."""
    who = process(
        open_files=9, mappings=60, address_space_bytes=1 << 28, data_bytes=1 << 26, locked_bytes=0, pending_signals=0,
        limits={name: (1 << 40, 1 << 40) for name in RESOURCE_NUMBERS},
    )
    kept: dict[str, object] = {f"parameter:{key}": value for key, value in _ROOMY.items()}
    kept |= {"meminfo": {"MemTotal": 8 << 30}, "usage:user": (), "key-users": (1, 200, 10, 20000)}
    kept |= {"sysvipc:shm": 0, "sysvipc:sem": 0, "sysvipc:msg": 0}
    for errno in hypothesis.errnos:
        told = Symptom(SymptomKind.CALL, "", errno, text=f"worker 3: {errno}", seen_in=SeenIn.OUTPUT)
        found = [each for each in outcomes(hypothesis, situated(told, who, kept=kept)) if isinstance(each, Blamed)]
        assert [each for each in found if each.status is not Status.POSSIBLE] == [], found
