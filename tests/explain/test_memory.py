# SPDX-License-Identifier: Apache-2.0
"""ENOMEM of mmap, locked memory, arguments."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from situations import blamed, call, outcomes, own_fault, process, ruled_out, set_by, situated, undecided, with_limits

from triaged.explain.locked_memory import memlock, stack
from triaged.explain.memory import address_space, data, hugepages, max_map_count, overcommit_memory, parse_meminfo
from triaged.explain.situation import Situation
from triaged.model.cause import Status
from triaged.model.fix import SetParameter
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process_state import ProcessState
from triaged.model.symptom import SeenIn, Symptom

MB, GB = 1 << 20, 1 << 30
_FREE = {"AS": (UNLIMITED, UNLIMITED), "DATA": (UNLIMITED, UNLIMITED)}


def mapping(length: int = 64 * MB, protection: int = 3, flags: int = 0x22, **more: Any) -> Symptom:
    return call("mmap", "ENOMEM", arguments=(0, length, protection, flags, 0, 0), **more)


def mapped(symptom: Symptom, who: ProcessState | None, mode: int = 0, count: int = 65530, **sizes: int) -> Situation:
    known = {"MemTotal": 8 * GB, "SwapTotal": 0, **sizes}
    kept = {"parameter:vm.max_map_count": str(count), "parameter:vm.overcommit_memory": str(mode), "meminfo": known}
    return situated(symptom, who, kept=kept)


def a_process(mappings: int | Unknown = 60, space: int = 700 * MB, held: int = 100 * MB, **limits: Any) -> ProcessState:
    who = process(mappings=mappings, address_space_bytes=space, data_bytes=held, locked_bytes=0)
    return with_limits(who, **{**_FREE, **limits})


def test_a_small_address_space_is_blamed_when_what_was_asked_does_not_fit() -> None:
    who = a_process(space=200 * MB, AS=(500 * MB, 500 * MB))
    found = blamed(address_space, mapped(mapping(600 * MB, protection=0), who))
    assert found.status is Status.PROVED
    assert "has 200 MiB and asked for 600 MiB more; RLIMIT_AS allows 500 MiB" in found.summary


def test_an_address_space_in_which_it_fits_is_ruled_out() -> None:
    who = a_process(space=200 * MB, AS=(500 * MB, 500 * MB))
    assert ruled_out(address_space, mapped(mapping(64 * MB), who)) == "300 MiB free of 500 MiB"


def test_without_arguments_a_limit_below_what_go_reserves_is_likely() -> None:
    who = a_process(space=100 * MB, AS=(500 * MB, 500 * MB))
    assert blamed(address_space, mapped(call("mmap", "ENOMEM"), who)).status is Status.LIKELY


def test_a_test_that_set_its_address_space_is_to_blame_itself() -> None:
    who = a_process(space=200 * MB, AS=(500 * MB, UNLIMITED))
    situation = mapped(mapping(600 * MB), who)
    situation.at_start, situation.deeds = a_process(), (set_by(500, 9),)
    assert own_fault(address_space, situation)


def test_data_is_blamed_for_private_writable_memory_only() -> None:
    who = a_process(DATA=(300 * MB, 300 * MB), held=290 * MB)
    assert blamed(data, mapped(mapping(64 * MB), who)).status is Status.PROVED
    assert "which this is not" in ruled_out(data, mapped(mapping(64 * MB, protection=0), who))
    assert "which this is not" in ruled_out(data, mapped(mapping(64 * MB, flags=0x21), who))


def test_as_many_mappings_as_allowed_are_blamed() -> None:
    found = blamed(max_map_count, mapped(mapping(4096), a_process(mappings=65529)))
    assert (found.status, found.fixes[0]) == (Status.PROVED, SetParameter("vm.max_map_count", "1048576", seen="65530"))
    assert ruled_out(max_map_count, mapped(mapping(4096), a_process(mappings=61))) == "65,469 free"
    gone = a_process(mappings=Unknown("gone"))
    assert blamed(max_map_count, mapped(mapping(4096), gone)).status is Status.LIKELY  # nothing else is left
    assert undecided(max_map_count, mapped(mapping(4096, seen_in=SeenIn.OUTPUT), gone))


def test_mappings_are_likely_when_they_were_near_and_nothing_else_is_left() -> None:
    assert blamed(max_map_count, mapped(mapping(4096), a_process(mappings=64000))).status is Status.LIKELY


def test_a_commitment_that_does_not_fit_is_blamed_in_mode_2() -> None:
    sizes = {"CommitLimit": 250 * MB, "Committed_AS": 240 * MB}
    found = blamed(overcommit_memory, mapped(mapping(64 * MB), a_process(), mode=2, **sizes))
    assert (found.status, found.fixes[0]) == (Status.PROVED, SetParameter("vm.overcommit_memory", "0", seen="2"))


def test_the_kernels_line_proves_a_refused_commitment_that_was_given_back() -> None:
    sizes = {"CommitLimit": 250 * MB, "Committed_AS": 20 * MB}
    situation = mapped(mapping(64 * MB), a_process(), mode=2, **sizes)
    line = "__vm_enough_memory: pid: {pid}, comm: {comm}, bytes: 67108864 not enough memory for the allocation"
    situation.read_log = lambda: (line.format(pid=500, comm="a.test"),)
    assert blamed(overcommit_memory, situation).status is Status.PROVED
    unread = a_process()
    unread = replace(unread, identity=replace(unread.identity, pid=7, comm="", exe=""))  # gone: known by its arguments
    situation = mapped(mapping(64 * MB), unread, mode=2, **sizes)
    situation.read_log = lambda: (line.format(pid=500, comm="a.test"),)
    assert blamed(overcommit_memory, situation).status is Status.PROVED
    situation = mapped(mapping(64 * MB), a_process(), mode=2, **sizes)
    situation.read_log = lambda: (line.format(pid=9, comm="other"),)
    assert ruled_out(overcommit_memory, situation)


def test_more_than_all_memory_at_once_is_the_tests_own_wish() -> None:
    assert "8 GiB" in own_fault(overcommit_memory, mapped(mapping(64 * GB), a_process()))
    assert "only what is more" in ruled_out(overcommit_memory, mapped(mapping(64 * MB), a_process()))
    assert "all is allowed" in ruled_out(overcommit_memory, mapped(mapping(64 * GB), a_process(), mode=1))
    assert ruled_out(overcommit_memory, mapped(mapping(64 * GB, protection=0), a_process()))


@pytest.mark.parametrize("hypothesis", [address_space, data, max_map_count, overcommit_memory])
def test_huge_pages_have_one_cause_only(hypothesis: Any) -> None:
    sizes = {"HugePages_Total": 0, "HugePages_Free": 0, "HugePages_Rsvd": 0, "Hugepagesize": 2 * MB}
    symptom = mapping(8 * MB, flags=0x40022)
    found = blamed(hugepages, mapped(symptom, a_process(), **sizes))
    assert (found.status, found.fixes[0].title) == (Status.PROVED, "sets vm.nr_hugepages = 4 until the next boot")
    assert outcomes(hypothesis, mapped(symptom, a_process(mappings=65530), **sizes)) == []


def test_free_huge_pages_acquit_the_pool_and_other_memory_is_not_its() -> None:
    sizes = {"HugePages_Total": 8, "HugePages_Free": 8, "HugePages_Rsvd": 0, "Hugepagesize": 2 * MB}
    assert "8 of 8 are free" in undecided(hugepages, mapped(mapping(8 * MB, flags=0x40022), a_process(), **sizes))
    assert outcomes(hugepages, mapped(mapping(8 * MB), a_process(), **sizes)) == []
    gigantic = mapping(GB, flags=0x40022 | 30 << 26)
    assert "pool of their own" in undecided(hugepages, mapped(gigantic, a_process(), **sizes))


def test_meminfo_is_in_bytes_where_it_has_a_unit() -> None:
    assert parse_meminfo("MemTotal:  8 kB\nHugePages_Total:  3\nnonsense\nX: y\n") == {"MemTotal": 8192, "HugePages_Total": 3}


def test_locked_memory_beyond_its_limit_is_blamed() -> None:
    who = a_process(MEMLOCK=(64 << 10, 64 << 10))
    symptom = call("mlock", "ENOMEM", arguments=(0x1000, 1 << 20, 0, 0, 0, 0))
    assert blamed(memlock, situated(symptom, who)).status is Status.PROVED
    small = call("mlock", "ENOMEM", arguments=(0x1000, 4096, 0, 0, 0, 0))
    assert "free, 4 KiB asked for" in ruled_out(memlock, situated(small, who))
    assert outcomes(memlock, situated(call("mlock", "EAGAIN"), who)) == []
    exempt = with_limits(process(uid=0, effective=1 << 14), MEMLOCK=(1, 1))
    assert "CAP_IPC_LOCK" in ruled_out(memlock, situated(symptom, exempt))


def test_a_limit_of_nothing_gives_eperm() -> None:
    none = a_process(MEMLOCK=(0, 0))
    assert blamed(memlock, situated(call("mlock", "EPERM"), none)).status is Status.PROVED
    assert "not 0" in ruled_out(memlock, situated(call("mlock", "EPERM"), a_process(MEMLOCK=(4096, 4096))))


def test_mmap_says_eagain_for_locked_memory_only() -> None:
    who = a_process(MEMLOCK=(4096, 4096))
    locked = call("mmap", "EAGAIN", arguments=(0, 1 << 20, 3, 0x2022, 0, 0))
    assert blamed(memlock, situated(locked, who)).status is Status.PROVED
    assert outcomes(memlock, situated(call("mmap", "EAGAIN", arguments=(0, 1 << 20, 3, 0x22, 0, 0)), who)) == []
    assert outcomes(memlock, situated(mapping(), who)) == []


def test_arguments_that_no_machine_takes_are_not_the_stacks_fault() -> None:
    symptom = call("execve", "E2BIG")
    assert "any machine" in ruled_out(stack, situated(symptom, with_limits(process(), STACK=(8 * MB, UNLIMITED))))
    assert blamed(stack, situated(symptom, with_limits(process(), STACK=(256 << 10, UNLIMITED)))).status is Status.LIKELY


def test_when_asked_only_what_is_reached_is_blamed() -> None:
    who = a_process(space=200 * MB, AS=(500 * MB, 500 * MB))
    assert ruled_out(address_space, mapped(call("mmap", "ENOMEM", seen_in=SeenIn.ASKED), who)) == "300 MiB free of 500 MiB"
