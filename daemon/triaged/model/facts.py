# SPDX-License-Identifier: Apache-2.0
"""Facts: what the sources saw. A rule judges one fact at a time; differences are made by the source.

Every fact carries `time_usec` (µs since the epoch). Where a fact is about something that a policy wishes
otherwise, the wish is part of it, so that rules stay pure functions of one argument.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from triaged.model.cgroup import CgroupId
from triaged.model.cpu import CpuQuota, GoProcess
from triaged.model.io import IoLimit
from triaged.model.killed import KillEvidence
from triaged.model.limit import Limit, Unknown
from triaged.model.memory import MemoryDetail, MemorySample, OomReport
from triaged.model.process import ProcessIdentity
from triaged.model.requirement import ParameterRequirement, PlacementRequirement, ResourceLimitRequirement
from triaged.model.usage import Usage
from triaged.model.way import Way


@dataclass(frozen=True)
class ParameterFacts:
    """One kernel parameter and what a policy wants of it. `path` is its file below /proc/sys.

    `is_missing`: this kernel has no such parameter (`value` is then Unknown, as it is where it may not be read). `origin` says
    where the running value comes from (the sysctl.d file and line that wins, or that none does), or is "".
    """

    key: str
    path: str
    value: str | Unknown
    requirement: ParameterRequirement
    is_missing: bool = False
    origin: str = ""
    time_usec: int = 0


@dataclass(frozen=True)
class ResourceLimitFacts:
    """One resource limit of one process (/proc/PID/limits) and what a policy wants of it."""

    process: ProcessIdentity
    resource: str
    soft: Limit
    hard: Limit
    requirement: ResourceLimitRequirement
    time_usec: int = 0


@dataclass(frozen=True)
class CgroupLimit:
    """A limit at one cgroup: the file that holds it, its value, and what is in use there. Units: tasks or bytes.

    `unit` is the systemd unit of exactly this cgroup ("" if it is none's). `origin` says what set it (a unit file and line),
    or is "" where nobody looked.
    """

    cgroup: CgroupId
    file: str
    limit: Limit
    used: int | Unknown
    unit: str = ""
    origin: str = ""


@dataclass(frozen=True)
class PidsFacts:
    """Forks that a pids.max refused in a cgroup since the last look (`forks_refused`; `forks_refused_total` since it was made).

    `cgroup` is where the refusals were counted. `owner` is the cgroup whose limit was full: itself or an ancestor; None where the
    evidence does not decide. `record` is the kernel log line, if one was seen. `process` is a process that lives there or
    below, if one is known: the kernel does not say which one was refused. `others` are the other limits on tasks as they stood
    then, which give the same error.
    """

    cgroup: CgroupId
    forks_refused: int
    forks_refused_total: int
    owner: CgroupLimit | None
    ancestry: tuple[CgroupLimit, ...] = ()
    counter_file: str = ""
    record: str = ""
    process: ProcessIdentity | None = None
    before_start: bool = False
    others: tuple[Usage, ...] = ()
    time_usec: int = 0


@dataclass(frozen=True)
class OomFacts:
    """Tasks that the OOM killer ended. `owner` is the cgroup whose memory limit was hit; None for a host-wide OOM.

    `cgroup` is the victim's; where `is_place_known` is false it was somewhere below. `kills` counts them since the last look.
    `record` is the kernel log line, if it was seen; `victim` is the killed process as far as it is known. `is_host_wide`: no
    cgroup limit was involved. `report` is what the kernel wrote at that moment, `detail` what the owner's files said afterwards,
    `samples` its memory in the minute before, where it was being watched, oldest first. `candidates` are the cgroups that vanished
    at about that time, where the place is not known otherwise; `unit_result` is what systemd says, where that told the place.
    """

    cgroup: CgroupId
    kills: int
    owner: CgroupLimit | None
    victim: ProcessIdentity | None = None
    counter_file: str = ""
    record: str = ""
    is_host_wide: bool = False
    is_place_known: bool = True
    before_start: bool = False
    report: OomReport | None = None
    detail: MemoryDetail | None = None
    samples: tuple[MemorySample, ...] = ()
    candidates: tuple[str, ...] = ()
    unit_result: str = ""
    time_usec: int = 0


@dataclass(frozen=True)
class SeccompFacts:
    """Audit records (type 1326) of one (exe, syscall, action, cgroup) since the last look.

    `action` is the kernel's name of the filter's return value: KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, USER_NOTIF, TRACE, LOG.
    `syscall` is its name, or its number as text where the table has no name. `arch` is as in "x86_64".
    `errno` is the ERRNO action's value, else 0. `record` is the first record's text. `interval_usec` is the time in which they
    came, where they were part of a stream, else 0.
    """

    process: ProcessIdentity
    syscall: str
    syscall_number: int
    arch: str
    action: str
    records: int
    signal: int = 0
    errno: int = 0
    record: str = ""
    time_usec: int = 0
    interval_usec: int = 0


@dataclass(frozen=True)
class PlacementFacts:
    """Where a process of a known workload runs, judged against one placement requirement.

    `slice_origin` says where the slice comes from, as far as it could be read (a unit file, none). `way` is read where the place is
    forbidden, and `slice_unit` is what systemd says of the slice, where it was asked.
    """

    process: ProcessIdentity
    requirement: PlacementRequirement
    slice_origin: str = ""
    way: Way | None = None
    slice_unit: str = ""
    time_usec: int = 0


@dataclass(frozen=True)
class ExitFacts:
    """A process of a workload that a signal ended, whoever sent it. `dumped_core` is the kernel's word for it.

    `evidence` is what speaks for and against the causes of a SIGKILL; None where its beginning was not seen.
    """

    process: ProcessIdentity
    signal: int
    dumped_core: bool = False
    time_usec: int = 0
    evidence: KillEvidence | None = None


@dataclass(frozen=True)
class CpuFacts:
    """How often a cgroup's CPU quota was used up during the last look, and the Go processes that live below it.

    `quota` is where the periods were counted; `chain` are the quotas from the first process's own cgroup to the root, innermost
    first. Units: periods; µs. `throttled_usec` is summed over the CPUs on which tasks had to wait, `stalled_usec` is the time
    in which no task of the cgroup could run (PSI cpu full; Unknown on version 1). `origin` says what set the quota, or is "".
    """

    quota: CpuQuota
    chain: tuple[CpuQuota, ...]
    processes: tuple[GoProcess, ...]
    interval_usec: int
    periods: int
    throttled_periods: int
    throttled_usec: int
    stalled_usec: int | Unknown
    counter_file: str = ""
    origin: str = ""
    time_usec: int = 0


@dataclass(frozen=True)
class MemoryHighFacts:
    """How often tasks were slowed down since the last look because a cgroup was above its memory.high (`owner`, version 2 only).

    `throttled` counts at that very cgroup; `stalled_usec` is the time in which none of its tasks could run for lack of memory
    (PSI memory full), of `interval_usec`. `processes` are those of workloads that live below it.
    """

    owner: CgroupLimit
    throttled: int
    stalled_usec: int | Unknown
    interval_usec: int
    processes: tuple[ProcessIdentity, ...] = ()
    counter_file: str = ""
    time_usec: int = 0


@dataclass(frozen=True)
class PressureFacts:
    """For how long tasks of a workload's cgroup waited for `resource` ("memory" or "io") since the last look.

    Units: µs. `limits` are the limits of that resource that apply, as "FILE at PATH" and value.
    """

    cgroup: CgroupId
    resource: str
    some_usec: int
    full_usec: int
    interval_usec: int
    file: str
    limits: tuple[tuple[str, str], ...] = ()
    processes: tuple[ProcessIdentity, ...] = ()
    time_usec: int = 0


@dataclass(frozen=True)
class IoFacts:
    """What a cgroup with I/O limits read and wrote since the last look.

    `stalled_usec` is how long all its tasks waited for a device (PSI io full). `limits` is empty where there is none any more.
    `origin` says what set them, or is "".
    """

    cgroup: CgroupId
    limits: tuple[IoLimit, ...]
    stalled_usec: int | Unknown
    interval_usec: int
    file: str
    counter_file: str
    unit: str = ""
    origin: str = ""
    processes: tuple[ProcessIdentity, ...] = ()
    time_usec: int = 0


@dataclass(frozen=True)
class HugePagesFacts:
    """Huge pages of one size that a cgroup's limit refused since the last look (`owner`; version 1 counts them as failcnt)."""

    owner: CgroupLimit
    page_size: str
    refused: int
    counter_file: str
    processes: tuple[ProcessIdentity, ...] = ()
    time_usec: int = 0


@dataclass(frozen=True)
class CpusetFacts:
    """A Go process, and the cpuset that bounds it: `cpus` of `host_cpus` CPUs. `cpus` is Unknown where a mask of its own does."""

    cgroup: CgroupId
    file: str
    cpus: int | Unknown
    host_cpus: int
    process: GoProcess
    unit: str = ""
    time_usec: int = 0


@dataclass(frozen=True)
class FrozenFacts:
    """Whether a cgroup with processes of workloads in or below it is frozen: `file` of exactly this cgroup says so."""

    cgroup: CgroupId
    file: str
    is_frozen: bool
    unit: str = ""
    processes: tuple[ProcessIdentity, ...] = ()
    time_usec: int = 0


@dataclass(frozen=True)
class HeadroomFacts:
    """How much of one limit is in use: of the cgroup that holds it, of a process, or (neither given) of the host."""

    usage: Usage
    cgroup: CgroupLimit | None = None
    process: ProcessIdentity | None = None
    time_usec: int = 0


@dataclass(frozen=True)
class RefusedCall:
    """A call that a workload makes and that filters refuse. `answer` as ERRNO(EPERM); `shows` is what the program prints.

    `workloads` are those that do not work without the call.
    """

    call: str
    answer: str
    shows: str = ""
    workloads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusals:
    """What filters refuse of what is known to be needed: calls that `breaks` a workload, those that all of them do without
    (`harmless`), and sentences about what only some packages do (`features`). `measured` says where the needs come from.
    """

    breaks: tuple[RefusedCall, ...] = ()
    harmless: tuple[RefusedCall, ...] = ()
    features: tuple[str, ...] = ()
    toolchain: str = ""
    measured: str = ""


@dataclass(frozen=True)
class FilterFacts:
    """The seccomp filters of a workload's process that failed (`ending`: "exit status 1"), read from its living parent `heir`.

    `filters_then` is how many the failed one had when it was executed (-1: not known), `filters` how many were read, `logged` of
    how many of these every refusal is recorded.
    """

    process: ProcessIdentity
    ending: str
    filters_then: int
    heir: ProcessIdentity
    filters: int
    logged: int
    refusals: Refusals
    time_usec: int = 0


@dataclass(frozen=True)
class SubjectGone:
    """A cgroup (`cgroup`) or process (`process`) that findings may be about no longer exists."""

    cgroup: CgroupId | None = None
    process: ProcessIdentity | None = None
    time_usec: int = 0


Fact = Union[
    ParameterFacts, ResourceLimitFacts, PidsFacts, OomFacts, SeccompFacts, PlacementFacts, ExitFacts, CpuFacts,
    MemoryHighFacts, PressureFacts, IoFacts, HugePagesFacts, CpusetFacts, FrozenFacts, HeadroomFacts, FilterFacts,
    SubjectGone,
]
