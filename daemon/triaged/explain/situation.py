# SPDX-License-Identifier: Apache-2.0
"""What a hypothesis is held against: the symptom, the process as it was, and the machine, read when it is asked for and then kept.

A situation is made at the moment of the symptom. What a hypothesis asks of it is read then, and stays so when it is explained
again at the end of a run; only what counts (counters, the kernel log) is read anew after `settle`.
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from triaged.errors import Gone, KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, read_layout
from triaged.kernel.cgroups import ancestry, read_cgroup_limit
from triaged.kernel.namespaces import read_namespace
from triaged.kernel.parameters import ParameterReader
from triaged.kernel.paths import KernelPaths
from triaged.kernel.usage import count_user_tasks, read_host_usage, read_process_usage, read_user_usage
from triaged.model.counter import READ_AT
from triaged.model.facts import CgroupLimit
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.symptom import Deed, SeenIn, Symptom
from triaged.model.usage import Usage

T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """A counter before and after: since the run began, or since its process was first seen."""

    file: str
    name: str
    before: int
    after: int

    @property
    def rise(self) -> int:
        return self.after - self.before


@dataclass
class Situation:
    """See the module. `process` is None where nobody asks about a certain process, or nothing is known of it any more.

    `at_start` is the process from whose environment everything was started (the run's own command when it began), `ancestors` the
    states of its ancestors nearest first, as far as they were kept: a limit that differs between them was set on the way.
    `baseline` gives counters by file and name as they were before, `log` the kernel's lines since then, `deeds` what the run's own
    processes did to their limits: a limit that the program under test set itself is no fault of the machine. `limits_then` gives,
    of a process's cgroups that have gone, the limits as they were last read, by the names of `of_cgroup`. `cpus_used`: how many
    CPUs the run used on the average.
    """

    symptom: Symptom
    process: ProcessState | None
    paths: KernelPaths = field(default_factory=KernelPaths)
    at_start: ProcessState | None = None
    ancestors: tuple[ProcessState, ...] = ()
    deeds: tuple[Deed, ...] = ()
    baseline: Mapping[tuple[str, str], int] = field(default_factory=dict)
    read_counters_now: Callable[[], Mapping[tuple[str, str], int]] = dict
    read_log: Callable[[], tuple[str, ...]] = tuple
    limits_then: Callable[[Mapping[str, str]], Mapping[str, object]] = lambda cgroups: {}
    cpus_used: float | None = None
    _kept: dict[str, object] = field(default_factory=dict)

    def kept(self, name: str, read: Callable[[], T]) -> T:
        """What `read` gives, read once."""
        if name not in self._kept:
            self._kept[name] = read()
        return self._kept[name]  # type: ignore[return-value]

    def settle(self) -> None:
        """From now on counters and the kernel log are those of the end."""
        for name in [name for name in self._kept if name.startswith("count:")]:
            del self._kept[name]

    def parameter(self, key: str) -> str | Unknown:
        """A kernel parameter's value as the kernel writes it."""

        def read() -> str | Unknown:
            try:
                return ParameterReader(self.paths).read(key)
            except KernelError as error:
                return Unknown(str(error))

        return self.kept(f"parameter:{key}", read)

    def number(self, key: str) -> int | Unknown:
        """A kernel parameter that is one number."""
        value = self.parameter(key)
        if isinstance(value, Unknown):
            return value
        try:
            return int(value.split()[0])
        except (ValueError, IndexError):
            return Unknown(f"{key} is {value!r}")

    @property
    def layout(self) -> CgroupLayout:
        """The cgroup hierarchies; none where they cannot be read."""

        def read() -> CgroupLayout:
            try:
                return read_layout(self.paths)
            except KernelError:
                return CgroupLayout(())

        return self.kept("layout", read)

    def cgroup_limits(self, controller: str) -> tuple[CgroupLimit, ...]:
        """The limits of "pids" or "memory" above the process, innermost first, with what was in use."""
        process = self.process
        if process is None:
            return ()

        def read() -> tuple[CgroupLimit, ...]:
            found = ancestry(self.layout, controller, process.identity.cgroup_for(controller))
            hierarchy = self.layout.holding(controller)
            # The root of the tree has no limit. One that has is the top of a cgroup namespace: a container's own cgroup.
            top = read_cgroup_limit(hierarchy, controller, "/") if hierarchy is not None else None
            return (*found, replace(top, unit="")) if top is not None and isinstance(top.limit, int) else found

        return self.of_cgroup(controller, controller, read)

    def of_cgroup(self, name: str, controller: str, read: Callable[[], T]) -> T:
        """What `read` gives of the process's cgroup for `controller`; where that has gone, what was last read of it."""

        def attempt() -> T:
            found = read()
            process = self.process
            if process is None or not self.has_lost_cgroup(controller):
                return found
            return self.limits_then(process.identity.cgroups).get(name, found)  # type: ignore[return-value]

        return self.kept(f"cgroup:{name}", attempt)

    def limits(self) -> Mapping[str, object]:
        """What `of_cgroup` has kept, by name."""
        return {name.partition(":")[2]: value for name, value in self._kept.items() if name.startswith("cgroup:")}

    def has_lost_cgroup(self, controller: str) -> bool:
        """Whether the process's cgroup for `controller` has gone: what can be read then is that of its ancestors."""
        process = self.process
        hierarchy = self.layout.holding(controller)
        path = process.identity.cgroup_for(controller) if process is not None else ""
        if hierarchy is None or not path:
            return False
        try:
            return not os.path.isdir(hierarchy.directory(path))
        except Gone:
            return False  # in a part of the tree that is not shown here

    def knows_limits(self, name: str, controller: str) -> bool:
        """Whether what `of_cgroup` gives of that name is of the process's own cgroup too: it is there, or was read before."""
        process = self.process
        if process is None or not self.has_lost_cgroup(controller):
            return True
        return name in self.limits_then(process.identity.cgroups)

    def host_usage(self) -> tuple[Usage, ...]:
        """What the host has in use."""
        return self.kept("usage:host", lambda: tuple(read_host_usage(self.paths)))

    @property
    def was_asked(self) -> bool:
        """Whether a person asks: nothing need have failed, and what counts is how the limits stand now."""
        return self.symptom.seen_in is SeenIn.ASKED

    def host_limit(self, key: str) -> Usage | None:
        """What the host has in use of one kernel parameter; None where that is not read."""
        return next((each for each in self.host_usage() if each.limit_name == key), None)

    def shares_namespace(self, kind: str) -> bool:
        """Whether the process is in the reader's namespace of `kind`: then what the reader's /proc/sys says holds for it.

        True where nothing is known of the process's: nothing says that it is elsewhere.
        """
        theirs = self.process.namespaces.get(kind) if self.process is not None else None
        return theirs is None or theirs == self.kept(f"namespace:{kind}", lambda: read_namespace(self.paths, kind))

    def user_tasks(self) -> int | Unknown:
        """The threads of the process's user over all its processes, which RLIMIT_NPROC bounds."""
        process = self.process
        if process is None:
            return Unknown("no process is asked about")

        def read() -> int | Unknown:
            try:
                return count_user_tasks(self.paths, process.identity.uid)
            except KernelError as error:
                return Unknown(str(error))

        return self.kept(self.name_of_user("usage:tasks"), read)

    @property
    def time_usec(self) -> int:
        """When the process was read, else when this was first asked (µs since the epoch)."""
        if self.process is not None and self.process.time_usec:
            return self.process.time_usec
        return self.kept("time", lambda: time.time_ns() // 1000)

    def name_of_user(self, name: str) -> str:
        """The name under which something of the process's user is kept: who that is, may become known only later."""
        process = self.process
        return f"{name}:{process.identity.uid}" if process is not None and process.stands_for else name

    def user_usage(self) -> tuple[Usage, ...]:
        """What the process's user has in use; nothing where the process is gone. Looks through all of /proc."""
        return self._usage("user", read_user_usage)

    def process_usage(self) -> tuple[Usage, ...]:
        """What the process has in use; nothing where it is gone."""
        return self._usage("process", read_process_usage)

    def _usage(self, what: str, read: Callable[..., object]) -> tuple[Usage, ...]:
        process = self.process

        def attempt() -> tuple[Usage, ...]:
            if process is None:
                return ()
            try:
                return tuple(read(self.paths, process.identity))  # type: ignore[arg-type]
            except KernelError:
                return ()

        return self.kept(f"usage:{what}", attempt)

    def changes(self) -> Mapping[tuple[str, str], Change]:
        """Every counter of the baseline, before and now."""

        def read() -> Mapping[tuple[str, str], Change]:
            now = self.read_counters_now()
            # What a file that was read did not count then, it counts from nothing (io.stat: a device that was not used yet).
            return {
                key: Change(key[0], key[1], self.baseline.get(key, 0), after) for key, after in now.items()
                if key in self.baseline or (key[0], READ_AT) in self.baseline
            }

        return self.kept("count:changes", read)

    def log(self) -> tuple[str, ...]:
        """The kernel's log lines since the beginning."""
        return self.kept("count:log", self.read_log)
