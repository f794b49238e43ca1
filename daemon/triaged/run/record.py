# SPDX-License-Identifier: Apache-2.0
"""What was seen of a run: what the kernel told (incidents, deeds, counters), and what could not be seen."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from triaged.explain.situation import Situation
from triaged.model.process_state import ProcessState
from triaged.model.symptom import Deed, Symptom


class Role(str, Enum):
    """command: what was typed (go test, a shell) and helpers of it; build: compilers, linkers and the like; test: a test binary (or
    a command that is no known workload: then all of it is under test); child: what a test started."""

    COMMAND = "command"
    BUILD = "build"
    TEST = "test"
    CHILD = "child"


@dataclass
class Incident:
    """A symptom that the kernel told of, in one process, made into a situation when it was first seen.

    `package` is what the test binary tests that it is or descends from ("": none known), `program` the file that the process ran.
    """

    symptom: Symptom
    process: ProcessState | None
    role: Role
    situation: Situation
    package: str = ""
    program: str = ""


@dataclass
class RunRecord:
    """A run that is over. `wait_status` as waitpid(2) gives it.

    `is_traced`: failing calls were seen as they happened, all of them; `blind` says what
    was not seen, why, and what it costs ("failing system calls: not root ..."). `situation_of` makes a situation for a symptom
    that only the output tells of, in a process of the package ("": in the command itself), from what was kept of it. `hidden`
    are the calls and errors ("newfstatat", "ENOENT") that the trace leaves out: that none was seen says nothing. `followed` are the
    packages whose test binary was seen to be executed: of the calls of others nothing is known. `was_deaf`: the first calls of some
    program (a 32-bit one) went untold. `cpus_used`: how many CPUs the run
    used on the average, as far as the command waited for what it started. `unwritten`: which of its output could not be written on
    and was lost, and why.
    """

    argv: tuple[str, ...]
    wait_status: int
    started_usec: int
    ended_usec: int
    situation_of: Callable[[Symptom, str], Situation]
    root: ProcessState | None = None
    incidents: list[Incident] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)
    is_traced: bool = False
    hidden: frozenset[tuple[str, str]] = frozenset()
    followed: frozenset[str] = frozenset()
    was_deaf: bool = False
    cpus_used: float | None = None
    unwritten: str = ""
    blind: tuple[str, ...] = ()
