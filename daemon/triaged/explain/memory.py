# SPDX-License-Identifier: Apache-2.0
"""Why memory could not be mapped: ENOMEM, the one error for half a dozen limits.

Hard facts (mm/mmap.c, mm/util.c, mm/mprotect.c):
- What is mapped PROT_NONE counts for RLIMIT_AS and for vm.max_map_count; Go reserves some 600 MiB so at its start. It counts
  neither for RLIMIT_DATA, which bounds private writable memory, nor for what may be committed.
- vm.overcommit_memory 0 refuses only what is more than all memory and swap at once, 2 what is above CommitLimit, 1 nothing.
- Nothing of this is counted. Of a refused commitment the kernel log tells (rate limited).
- Mappings that look alike are merged: their number is that of the lines of /proc/PID/maps.
"""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from triaged.errors import KernelError
from triaged.explain.hypothesis import hypothesis
from triaged.explain.remedies import set_parameter
from triaged.explain.resource_limits import blame_resource, of_unread, set_in_the_run
from triaged.explain.situation import Situation
from triaged.explain.standing import Standing, outcome
from triaged.explain.wording import count, free, size, who
from triaged.kernel.files import read_text
from triaged.model.cause import Blamed, NotDecidable, Outcome, SelfInflicted, Status
from triaged.model.limit import UNLIMITED, Limit, Unknown
from triaged.model.symptom import SeenIn
from triaged.model.verdict import Evidence

MAPPING_CALLS = ("mmap", "mmap2", "brk", "mremap", "mprotect", "pkey_mprotect", "munmap", "shmat")
_FORKS = ("clone", "clone3", "fork", "vfork")  # they copy what is committed
_PROT_WRITE, _MAP_SHARED, _MAP_HUGETLB, _MAP_NORESERVE = 0x2, 0x1, 0x40000, 0x4000
_GO_NEEDS = 1 << 30
_ANY = 1 << 62  # how much was asked for is not known: any limit may have been too small for it
_COMMIT_LINE = re.compile(r"__vm_enough_memory: pid: (\d+), comm: (.*?), (?:bytes|no enough)")


def asked_bytes(situation: Situation) -> int:
    """How much more memory the call asked for; 0 where that is not known."""
    arguments, syscall = situation.symptom.arguments, situation.symptom.syscall
    if len(arguments) < 4:
        return 0
    if syscall in ("mmap", "mmap2", "mprotect", "pkey_mprotect"):
        return arguments[1]
    return max(arguments[2] - arguments[1], 0) if syscall == "mremap" else 0


def _is_private_and_writable(situation: Situation) -> bool | None:
    """Whether the memory asked for is of the kind that is committed; None where that is not known."""
    arguments, syscall = situation.symptom.arguments, situation.symptom.syscall
    if len(arguments) < 4 or syscall not in ("mmap", "mmap2", "mprotect", "pkey_mprotect"):
        return True if syscall == "brk" else None
    is_shared = syscall in ("mmap", "mmap2") and bool(arguments[3] & _MAP_SHARED)
    return bool(arguments[2] & _PROT_WRITE) and not is_shared


def _is_huge(situation: Situation) -> bool:
    arguments = situation.symptom.arguments
    if situation.symptom.syscall in ("mmap", "mmap2") and len(arguments) > 3:
        return bool(arguments[3] & _MAP_HUGETLB)
    return "huge" in situation.symptom.text.lower()


def read_memory_sizes(situation: Situation) -> Mapping[str, int]:
    """/proc/meminfo: bytes where it gives kB, else numbers; empty where it cannot be read."""

    def read() -> Mapping[str, int]:
        try:
            return parse_meminfo(read_text(f"{situation.paths.proc}/meminfo", 1 << 16))
        except KernelError:
            return {}

    return situation.kept("meminfo", read)


def parse_meminfo(text: str) -> Mapping[str, int]:
    """The text of a /proc/meminfo; lines that are none of its kind are passed over."""
    out = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            out[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return out


# -- how each limit stands


def _bytes_standing(cause: str, limit: Limit, used: int | Unknown, asked: int, near_below: int, by: str) -> Standing:
    if limit is UNLIMITED:
        return Standing(cause, "unlimited")
    if not isinstance(limit, int):
        return Standing(cause, f"{by} set it" if by else "", unknown=str(limit), is_marked=bool(by))
    if not isinstance(used, int) and by:
        return Standing(cause, f"{by} set it to {size(limit)}", unknown=used.why, is_marked=True)
    if not isinstance(used, int):
        # A process that could not even start has nothing to show.
        is_small = limit < min(near_below, _GO_NEEDS)
        return Standing(cause, f"{size(limit)} allowed", is_near=is_small, unknown="" if is_small else used.why)
    because = f"{free(used, limit, is_bytes=True)} of {size(limit)}"
    if asked:
        return Standing(cause, because, is_full=used + asked > limit)
    return Standing(cause, because, is_full=used >= limit, is_near=limit - used < min(near_below, max(used, _GO_NEEDS)))


def _address_space(situation: Situation) -> Standing:
    cause, process = "rlimit.AS", situation.process
    if process is None:
        return Standing(cause, unknown="it is each process's own; name one")
    if situation.symptom.syscall in ("mprotect", "pkey_mprotect", "munmap"):
        return Standing(cause, "the call takes no more address space")
    near, by = 0 if situation.was_asked else _ANY, set_in_the_run(situation, "AS")
    return _bytes_standing(cause, process.soft("AS"), process.address_space_bytes, asked_bytes(situation), near, by)


def _data(situation: Situation) -> Standing:
    cause, process = "rlimit.DATA", situation.process
    if process is None:
        return Standing(cause, unknown="it is each process's own; name one")
    if _is_private_and_writable(situation) is False:
        return Standing(cause, "it bounds private writable memory, which this is not")
    near, by = 0 if situation.was_asked else _ANY, set_in_the_run(situation, "DATA")
    return _bytes_standing(cause, process.soft("DATA"), process.data_bytes, asked_bytes(situation), near, by)


def _map_count(situation: Situation) -> Standing:
    cause, process = "sysctl.vm.max_map_count", situation.process
    limit = situation.number("vm.max_map_count")
    if not isinstance(limit, int):
        return Standing(cause, unknown=limit.why)
    if process is None:
        return Standing(cause, unknown=f"vm.max_map_count is {count(limit)}, for each process; name one")
    if not isinstance(process.mappings, int):
        why = f"its mappings were not counted: {process.mappings.why}"
        if situation.symptom.seen_in is SeenIn.TRACE and asked_bytes(situation) < _GO_NEEDS:
            return Standing(cause, why, is_near=True)  # of a usual mapping nothing else is left to fail, where it is the only one
        return Standing(cause, unknown=why)
    # One line of maps ([vsyscall]) is no mapping of the process; munmap and mprotect need up to two more.
    left = limit - process.mappings
    return Standing(
        cause, free(process.mappings, limit), is_full=left <= 3, is_near=not situation.was_asked and process.mappings > limit * 0.9
    )


def commit_line(situation: Situation) -> str:
    """The kernel's line that it refused memory to this process, or ""."""
    process = situation.process
    if process is None:
        return ""
    # The kernel names the thread. Of a command that was not read in time the program's name is known by its arguments.
    identity = process.identity
    name = (identity.comm or os.path.basename(next(iter(identity.argv), "")))[:15]
    for line in situation.log():
        match = _COMMIT_LINE.search(line)
        if match and (int(match[1]) == identity.pid or (name and match[2] == name)):
            return line
    return ""


def _overcommit(situation: Situation) -> Standing:
    cause = "sysctl.vm.overcommit_memory"
    mode = situation.number("vm.overcommit_memory")
    if not isinstance(mode, int):
        return Standing(cause, unknown=mode.why)
    if mode == 1:
        return Standing(cause, "it is 1: all is allowed")
    if _is_private_and_writable(situation) is False:
        return Standing(cause, "what is not private and writable is not committed")
    sizes, asked = read_memory_sizes(situation), asked_bytes(situation)
    if mode == 0:
        everything = sizes.get("MemTotal", 0) + sizes.get("SwapTotal", 0)
        arguments = situation.symptom.arguments
        is_reserved = len(arguments) < 4 or not arguments[3] & _MAP_NORESERVE
        is_too_much = bool(asked and everything and is_reserved and asked > everything)
        return Standing(cause, "it is 0: only what is more than all memory at once is refused", is_full=is_too_much)
    limit, used = sizes.get("CommitLimit"), sizes.get("Committed_AS")
    if limit is None or used is None:
        return Standing(cause, unknown="/proc/meminfo has no CommitLimit")
    because = f"it is {mode}: {free(used, limit, is_bytes=True)} of {size(limit)} may be committed"
    # What the refused process had is committed no longer once it has ended.
    is_near = not situation.was_asked and (not asked or limit - used < max(asked * 2, limit // 4))
    return Standing(cause, because, bool(commit_line(situation)), used + asked > limit, is_near)


def _mappings(situation: Situation) -> dict[str, Standing]:
    def judge() -> dict[str, Standing]:
        found = (_address_space(situation), _data(situation), _map_count(situation), _overcommit(situation))
        return {each.cause: each for each in found}

    return situation.kept("count:mappings", judge)


def _judged(situation: Situation, cause: str, blame: Callable[[Status], Outcome]) -> Outcome | None:
    if _is_huge(situation):
        return None  # huge pages are reserved elsewhere: `hugepages`
    everything = _mappings(situation)
    return outcome(everything[cause], tuple(each for each in everything.values() if each.cause != cause), blame)


def _blame_size(
    situation: Situation, resource: str, used: int | Unknown, of_what: str, evidence: Evidence, status: Status
) -> Outcome:
    """RLIMIT_AS or RLIMIT_DATA, which bound a size of the process: `used` bytes."""
    process = situation.process
    limit = process.soft(resource) if process is not None else Unknown("")
    if isinstance(limit, Unknown):
        return of_unread(situation, resource, limit, UNLIMITED)
    has = f" has {size(used)}{of_what}" if isinstance(used, int) else ""
    bound = size(limit) if isinstance(limit, int) else str(limit)
    summary = f"{who(process)}{has}{_asked_for(situation)}; RLIMIT_{resource} allows {bound}"
    return blame_resource(situation, resource, status, summary, (evidence,), UNLIMITED, 5)


def _asked_for(situation: Situation) -> str:
    asked = asked_bytes(situation)
    return f" and asked for {size(asked)} more" if asked else ""


@hypothesis("rlimit.AS", syscalls=MAPPING_CALLS, errnos=("ENOMEM",))
def address_space(situation: Situation) -> Outcome | None:
    """The address space may not grow beyond RLIMIT_AS (ulimit -v, LimitAS=).

    It counts what is only reserved: a Go program reserves some 600 MiB before it begins. A cgroup's memory.max bounds what is used.
    """

    def blame(status: Status) -> Outcome:
        used = situation.process.address_space_bytes if situation.process is not None else Unknown("")
        evidence = Evidence("address space", str(used), "/proc/PID/status VmSize", situation.time_usec)
        return _blame_size(situation, "AS", used, "", evidence, status)

    return _judged(situation, "rlimit.AS", blame)


@hypothesis("rlimit.DATA", syscalls=MAPPING_CALLS, errnos=("ENOMEM",))
def data(situation: Situation) -> Outcome | None:
    """Private writable memory may not grow beyond RLIMIT_DATA (ulimit -d, LimitDATA=)."""

    def blame(status: Status) -> Outcome:
        used = situation.process.data_bytes if situation.process is not None else Unknown("")
        evidence = Evidence("data", str(used), "/proc/PID/status VmData", situation.time_usec)
        return _blame_size(situation, "DATA", used, " of data", evidence, status)

    return _judged(situation, "rlimit.DATA", blame)


@hypothesis("sysctl.vm.max_map_count", syscalls=MAPPING_CALLS, errnos=("ENOMEM",))
def max_map_count(situation: Situation) -> Outcome | None:
    """The process has vm.max_map_count mappings. Mappings that look alike are one; it takes many different ones."""
    key = "vm.max_map_count"

    def blame(status: Status) -> Outcome:
        process, limit = situation.process, situation.number(key)
        mappings = process.mappings if process is not None else Unknown("")
        number = limit if isinstance(limit, int) else 0
        evidence = (
            Evidence(key, number, "/proc/sys/vm/max_map_count", situation.time_usec),
            Evidence("mappings", str(mappings), "/proc/PID/maps", situation.time_usec),
        )
        has = f"{who(process)} has {count(mappings)} mappings" if isinstance(mappings, int) else "no other limit was near"
        return Blamed(
            f"sysctl.{key}", status, who(process), f"{has}, and {key} allows {count(number)} mappings", evidence,
            set_parameter(key, max(number * 2, 1048576), number), weight=5,
        )

    return _judged(situation, f"sysctl.{key}", blame)


@hypothesis("sysctl.vm.overcommit_memory", syscalls=(*MAPPING_CALLS, *_FORKS), errnos=("ENOMEM",))
def overcommit_memory(situation: Situation) -> Outcome | None:
    """The kernel promises no more memory than CommitLimit (vm.overcommit_memory = 2), also for memory that is never touched.

    At 0 it refuses only what is more than all memory and swap at once.
    """
    key, cause = "vm.overcommit_memory", "sysctl.vm.overcommit_memory"

    def blame(status: Status) -> Outcome:
        sizes, mode, asked = read_memory_sizes(situation), situation.number(key), asked_bytes(situation)
        if mode == 0:
            everything = sizes.get("MemTotal", 0) + sizes.get("SwapTotal", 0)
            return SelfInflicted(cause, f"{size(asked)} were asked for at once; the machine has {size(everything)}")
        limit, used, line = sizes.get("CommitLimit", 0), sizes.get("Committed_AS", 0), commit_line(situation)
        evidence = [
            Evidence(key, str(mode), "/proc/sys/vm/overcommit_memory", situation.time_usec),
            Evidence("CommitLimit", limit, "/proc/meminfo", situation.time_usec),
            Evidence("Committed_AS", used, "/proc/meminfo", situation.time_usec),
        ]
        if line:
            evidence.append(Evidence("kernel log", line, "kernel log", situation.time_usec))
        summary = f"{key} is {mode}: no more than {size(limit)} may be committed, and {size(used)} are"
        return Blamed(cause, status, "host", summary, tuple(evidence), set_parameter(key, 0, str(mode)), weight=4)

    return _judged(situation, cause, blame)


@hypothesis("sysctl.vm.nr_hugepages", syscalls=("mmap", "mmap2", "shmget"), errnos=("ENOMEM",))
def hugepages(situation: Situation) -> Outcome | None:
    """Huge pages (MAP_HUGETLB) come from a pool that somebody must fill beforehand: vm.nr_hugepages."""
    key, cause = "vm.nr_hugepages", "sysctl.vm.nr_hugepages"
    arguments, syscall = situation.symptom.arguments, situation.symptom.syscall
    is_segment = syscall == "shmget" and len(arguments) > 2 and bool(arguments[2] & 0o4000)
    if not is_segment and not _is_huge(situation):
        return None
    sizes = read_memory_sizes(situation)
    total, left = sizes.get("HugePages_Total"), sizes.get("HugePages_Free", 0) - sizes.get("HugePages_Rsvd", 0)
    page = sizes.get("Hugepagesize", 2 << 20)
    if total is None:
        return NotDecidable(cause, "/proc/meminfo says nothing of huge pages")
    order = arguments[3] >> 26 & 0x3F if len(arguments) > 3 and syscall != "shmget" else 0
    if order and 1 << order != page:
        where = "/sys/kernel/mm/hugepages"
        return NotDecidable(cause, f"pages of {size(1 << order)} were asked for, which have a pool of their own in {where}")
    asked = arguments[1] if len(arguments) > 1 else page
    needed = -(-asked // page)
    if needed <= left:
        return NotDecidable(cause, f"{count(left)} of {count(total)} are free")
    evidence = (
        Evidence("HugePages_Total", total, "/proc/meminfo", situation.time_usec),
        Evidence("HugePages_Free", left, "/proc/meminfo, without reserved ones", situation.time_usec),
        Evidence("asked for", needed, "", situation.time_usec),
    )
    summary = f"{key} is {count(total)}: {count(left)} huge pages of {size(page)} are free, {count(needed)} were asked for"
    risk = "memory in the pool is lost for everything else"
    return Blamed(cause, Status.PROVED, "host", summary, evidence, set_parameter(key, total + needed - left, total, risk), weight=8)


MEMORY = (address_space, data, max_map_count, overcommit_memory, hugepages)
