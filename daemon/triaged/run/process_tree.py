# SPDX-License-Identifier: Apache-2.0
"""The processes of a run: who made whom, what each one runs, and whether that is under test."""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from triaged.model.process_state import ProcessState
from triaged.run.record import Role

TEST_ROLE = "test-binary"
_ENDED = 2048
# What executes another program and leaves it the security label that it has itself; of others that is not known.
_KEEP_LABEL = frozenset({
    "", "sh", "bash", "dash", "zsh", "busybox", "env", "prlimit", "unshare", "nsenter", "chroot", "capsh", "setsid", "nice",
    "ionice", "chrt", "taskset", "numactl", "timeout", "nohup", "stdbuf", "time", "setarch", "linux64", "linux32", "xargs", "make",
    "script", "choom", "triagectl",
})
_PREPARE = frozenset({
    "sh", "bash", "dash", "zsh", "busybox", "env", "prlimit", "setpriv", "unshare", "nsenter", "chroot", "capsh", "sudo", "su",
    "doas", "runuser", "setsid", "nice", "ionice", "chrt", "taskset", "numactl", "timeout", "nohup", "stdbuf", "time",
    "systemd-run", "bwrap", "setarch", "linux64", "linux32", "xargs", "script", "unbuffer", "choom", "aa-exec", "runcon",
    "triagectl",
})


@dataclass(eq=False)
class Process:
    """One process of a run. A child that has not executed anything yet runs what its parent runs.

    `workload_role` and `package` are what the workload definitions say of its program. `state` is what was last read of it,
    `is_state_old` whether it has executed another program since. `made_ns`: ns of CLOCK_MONOTONIC. `has_left`: it called
    exit_group(2) itself. `is_foreign`: its calls are those of another architecture;
    `is_unheard`: so it was, and the trace told nothing of those when it began. `filters` are its seccomp filters as they were
    when it had installed one: what it starts has them too; `is_filtered`: it, or who made it, was seen to install one.
    `executed_ns`: when it last executed a program; `may_be_relabelled`: since `state` was read, by one that may have given it
    another security label (aa-exec).
    """

    pid: int
    parent: Process | None
    made_ns: int = 0
    exe: str = ""
    workload_role: str = ""
    package: str = ""
    state: ProcessState | None = None
    is_state_old: bool = False
    filters: tuple[bytes, ...] = ()
    is_filtered: bool = False
    executed_ns: int = 0
    may_be_relabelled: bool = False
    has_executed: bool = False
    has_ended: bool = False
    is_foreign: bool = False
    is_unheard: bool = False
    has_left: bool = False
    threads: int = 1

    def know(self, state: ProcessState) -> None:
        """Takes note of what was read of it just now."""
        self.state, self.is_state_old, self.may_be_relabelled = state, False, False

    @property
    def name(self) -> str:
        """The base name of its program."""
        return os.path.basename(self.exe)

    def ancestors(self) -> Iterator[Process]:
        """Its parent, and so on up to the run's own command."""
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    def tested_package(self) -> str:
        """The package that it tests, or that the test tests that it descends from; ""."""
        return next((each.package for each in (self, *self.ancestors()) if each.package), "")


@dataclass
class ProcessTree:
    """Every task of a run that lives, by its number; processes that ended are kept as long as somebody holds them."""

    root: Process
    _tasks: dict[int, Process] = field(default_factory=dict)
    _ended: dict[int, Process] = field(default_factory=dict)
    has_workload: bool = False

    def __post_init__(self) -> None:
        self._tasks[self.root.pid] = self.root

    def of(self, tid: int) -> Process | None:
        """The process of a task; None if it is not the run's, or its making was missed."""
        return self._tasks.get(tid)

    def of_lately(self, tid: int) -> Process | None:
        """As `of`, also of a task that ended a moment ago."""
        return self._tasks.get(tid) or self._ended.get(tid)

    def made(self, tid: int, child: int, is_thread: bool, at_ns: int) -> Process | None:
        """A task made another one. Gives the new process, None for a thread."""
        process = self._tasks.get(tid)
        if process is None:
            process = self._tasks[tid] = Process(tid, self.root, at_ns)  # its own making was lost
        if is_thread:
            process.threads += 1
            self._tasks[child] = process
            return None
        made = Process(
            child, process, at_ns, process.exe, process.workload_role, process.package, is_filtered=process.is_filtered,
            is_foreign=process.is_foreign,
        )
        self._tasks[child] = made
        return made

    def executed(self, tid: int, path: str, at_ns: int) -> Process:
        """A process runs another program. (The tid is its pid: the kernel makes the thread that asks the leader.)"""
        process = self._tasks.get(tid)
        if process is None:
            process = self._tasks[tid] = Process(tid, self.root, at_ns)
        if process.name not in _KEEP_LABEL and not process.workload_role:
            process.may_be_relabelled = True
        process.exe, process.workload_role, process.package, process.has_executed = path, "", "", True
        process.executed_ns = at_ns
        return process

    def ended(self, tid: int) -> Process | None:
        """A task ended. Gives its process if that was the last one of it."""
        process = self._tasks.pop(tid, None)
        if process is not None:
            process.threads -= 1
            process.has_ended = process.has_ended or process.threads <= 0
            self._ended.pop(tid, None)
            self._ended[tid] = process
            if len(self._ended) > _ENDED:
                del self._ended[next(iter(self._ended))]
            return process if process.has_ended else None
        return None

    def label_is_of_root(self, process: Process) -> bool:
        """Whether a process has the security label of the run's own command: nothing in between may have changed it."""
        between = (each for each in (process, *process.ancestors()) if each is not self.root)
        return not any(each.may_be_relabelled for each in between)

    def recognise(self, process: Process, role: str, package: str) -> None:
        """Takes note of what a workload definition says of a process."""
        process.workload_role, process.package = role, package
        self.has_workload = True

    def role_of(self, process: Process) -> Role:
        """What a process is to the run. Only at its end is it known whether there is a workload in it."""
        if not self.has_workload:
            return Role.TEST
        above = tuple(process.ancestors())
        if process.workload_role == TEST_ROLE:
            return Role.TEST
        if any(each.workload_role == TEST_ROLE for each in above):
            return Role.CHILD
        if process.workload_role or not any(each.workload_role for each in above):
            return Role.COMMAND
        return Role.BUILD

    def is_under_test(self, process: Process) -> bool:
        """Whether what it does is the doing of what is tested: not of a shell, setpriv or the like that prepares the run."""
        if self.role_of(process) not in (Role.TEST, Role.CHILD):
            return False
        if any(each.workload_role == TEST_ROLE for each in (process, *process.ancestors())):
            return True
        return not all(each.name in _PREPARE for each in (process, *process.ancestors()))

    def is_of_test(self, process: Process, program: str) -> bool:
        """Whether what a process did while it ran `program` is the doing of what is tested.

        A launcher (setpriv, a sandbox in Python) prepares itself and then executes the test: the same process, another program. A
        child that a test forks runs the test's program until it executes its own, and what it does before is the test's; unless
        what it executes is the test.
        """
        if process.name != program:
            is_forked_by_it = process.parent is not None and process.parent.name == program
            if not is_forked_by_it or (process.name.endswith(".test") and not program.endswith(".test")):
                return False
        return self.is_under_test(process)
