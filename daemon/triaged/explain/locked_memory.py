# SPDX-License-Identifier: Apache-2.0
"""Limits on memory that is locked, fixed to an address, or taken by arguments.

Hard facts:
- Who has CAP_IPC_LOCK (of the first user namespace) is exempt from RLIMIT_MEMLOCK (mm/mlock.c).
- mlock gives ENOMEM beyond the limit and for a hole in the range, EPERM where the limit is 0; mmap with MAP_LOCKED gives EAGAIN.
- The arguments of a program may take a quarter of RLIMIT_STACK, at least 128 KiB and at most 6 MiB (fs/exec.c).
"""
from __future__ import annotations

from triaged.explain.capability import CAP_IPC_LOCK, CAP_SYS_RAWIO, has_on_host
from triaged.explain.hypothesis import hypothesis
from triaged.explain.resource_limits import blame_resource, of_unread
from triaged.explain.situation import Situation
from triaged.explain.wording import size, who
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.fix import ManualStep
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.verdict import Evidence

_MAP_FIXED, _MAP_FIXED_NOREPLACE, _MAP_LOCKED = 0x10, 0x100000, 0x2000
_USUAL_STACK = 8 << 20


@hypothesis(
    "rlimit.MEMLOCK", errnos=("ENOMEM", "EPERM", "EAGAIN"),
    syscalls=("mlock", "mlock2", "mlockall", "mmap", "mmap2", "io_uring_register", "io_uring_setup", "shmctl"),
)
def memlock(situation: Situation) -> Outcome | None:
    """The process may not lock more than RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=). CAP_IPC_LOCK is exempt."""
    cause, process, symptom = "rlimit.MEMLOCK", situation.process, situation.symptom
    arguments = symptom.arguments
    if not symptom.syscall:
        return None
    if symptom.syscall in ("mmap", "mmap2"):
        if symptom.errno != "EAGAIN" or (len(arguments) > 3 and not arguments[3] & _MAP_LOCKED):
            return None
    elif symptom.errno == "EAGAIN":
        return None  # memory that could not be paged in
    if symptom.syscall in ("io_uring_setup", "io_uring_register", "shmctl") and symptom.errno != "ENOMEM":
        return None
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    limit, used = process.soft("MEMLOCK"), process.locked_bytes
    if has_on_host(situation, CAP_IPC_LOCK):
        return RuledOut(cause, "it does not bind who has CAP_IPC_LOCK")
    if not isinstance(limit, int):
        return of_unread(situation, "MEMLOCK", limit, 8 << 20) if isinstance(limit, Unknown) else RuledOut(cause, "unlimited")
    if symptom.errno == "EPERM" and limit > 0:
        return RuledOut(cause, f"it is {size(limit)}, not 0")
    asked = arguments[1] if len(arguments) > 1 and symptom.syscall in ("mlock", "mlock2", "mmap", "mmap2") else 0
    if symptom.syscall == "mlockall" and isinstance(process.address_space_bytes, int):
        asked = process.address_space_bytes
    in_use = used if isinstance(used, int) else 0
    if asked and in_use + asked <= limit:
        return RuledOut(cause, f"{size(limit - in_use)} free, {size(asked)} asked for")
    if situation.was_asked and not asked and in_use < limit:
        return RuledOut(cause, f"{size(limit - in_use)} free of {size(limit)}")
    is_sure = symptom.syscall in ("mlock", "mlock2", "mlockall", "mmap", "mmap2") and (asked or limit == 0)
    what = f" and asked for {size(asked)} more" if asked else ""
    summary = f"{who(process)} had {size(in_use)} locked{what}; RLIMIT_MEMLOCK allows {size(limit)}"
    evidence = (Evidence("locked", str(used), f"/proc/{process.identity.pid}/status VmLck", situation.time_usec),)
    status = Status.PROVED if is_sure else Status.LIKELY
    return blame_resource(situation, "MEMLOCK", status, summary, evidence, max(limit * 2, (in_use + asked) * 2, 8 << 20), 5)


@hypothesis("sysctl.vm.mmap_min_addr", syscalls=("mmap", "mmap2"), errnos=("EPERM",))
def mmap_min_addr(situation: Situation) -> Outcome | None:
    """Nothing may be mapped below vm.mmap_min_addr, so that a null pointer in the kernel leads nowhere. CAP_SYS_RAWIO is exempt."""
    key, cause = "vm.mmap_min_addr", "sysctl.vm.mmap_min_addr"
    arguments = situation.symptom.arguments
    lowest = situation.number(key)
    if isinstance(lowest, Unknown):
        return NotDecidable(cause, lowest.why)
    if len(arguments) > 3:
        if not arguments[3] & (_MAP_FIXED | _MAP_FIXED_NOREPLACE):
            return RuledOut(cause, "no fixed address was asked for")
        if arguments[0] >= lowest:
            return RuledOut(cause, f"the address, {arguments[0]:#x}, is not below {lowest:#x}")
    elif not situation.symptom.syscall:
        return None
    if has_on_host(situation, CAP_SYS_RAWIO):
        return RuledOut(cause, "it does not bind who has CAP_SYS_RAWIO")
    if situation.was_asked and not arguments:
        return NotDecidable(cause, f"nothing may be mapped below {lowest:#x}; which address was asked for is not known")
    address = f"{arguments[0]:#x}" if arguments else "an address"
    evidence = (Evidence(key, lowest, "/proc/sys/vm/mmap_min_addr", situation.time_usec),)
    risk = "a null pointer in the kernel becomes something that programs can use"
    step = ManualStep("mmap-min-addr", "lower it for the test only, on a machine of its own", (("sysctl", "-w", f"{key}=0"),), risk)
    status = Status.PROVED if arguments else Status.LIKELY
    return Blamed(cause, status, "host", f"{address} is below {key}, {lowest:#x}", evidence, (step,), weight=5)


@hypothesis("rlimit.STACK", syscalls=("execve", "execveat"), errnos=("E2BIG",))
def stack(situation: Situation) -> Outcome | None:
    """Arguments and environment may take a quarter of RLIMIT_STACK (ulimit -s, LimitSTACK=), 6 MiB at most.

    One argument may have 128 KiB, whatever the limit is. Goroutines do not care for it: their stacks lie elsewhere.
    """
    cause, process = "rlimit.STACK", situation.process
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    limit = process.soft("STACK")
    if limit is UNLIMITED or (isinstance(limit, int) and limit >= _USUAL_STACK):
        return RuledOut(cause, "it is not below the usual 8 MiB: the arguments are too long for any machine")
    if not isinstance(limit, int):
        return NotDecidable(cause, str(limit))
    room = max(limit // 4, 128 << 10)
    summary = f"{who(process)} may give what it executes {size(room)} of arguments, a quarter of RLIMIT_STACK, {size(limit)}"
    return blame_resource(situation, "STACK", Status.LIKELY, summary, (), _USUAL_STACK, 3)


LOCKED_MEMORY = (memlock, mmap_min_addr, stack)
