# SPDX-License-Identifier: Apache-2.0
"""Limits on priorities.

Hard facts (kernel/sys.c, kernel/sched/syscalls.c): CAP_SYS_NICE is exempt. A nice value below 20 - RLIMIT_NICE gives EACCES, a
priority above RLIMIT_RTPRIO EPERM.
"""
from __future__ import annotations

from triaged.explain.capability import CAP_SYS_NICE, has_on_host
from triaged.explain.hypothesis import hypothesis
from triaged.explain.resource_limits import blame_resource, of_unread
from triaged.explain.situation import Situation
from triaged.explain.wording import who
from triaged.model.cause import NotDecidable, Outcome, RuledOut, Status
from triaged.model.limit import Unknown


def _priority(situation: Situation, resource: str, wanted: int, summary: str) -> Outcome:
    cause, process = f"rlimit.{resource}", situation.process
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    if has_on_host(situation, CAP_SYS_NICE):
        return RuledOut(cause, "it does not bind who has CAP_SYS_NICE")
    limit = process.soft(resource)
    if not isinstance(limit, int):
        return of_unread(situation, resource, limit, wanted) if isinstance(limit, Unknown) else RuledOut(cause, "unlimited")
    if limit >= wanted:
        return RuledOut(cause, f"it is {limit}, {wanted} is enough for what was asked")
    is_sure = bool(situation.symptom.arguments)
    text = f"{who(process)} {summary}; RLIMIT_{resource} is {limit}, {wanted} is needed (or CAP_SYS_NICE)"
    return blame_resource(situation, resource, Status.PROVED if is_sure else Status.LIKELY, text, (), wanted, 3)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value & 0x80000000 else value


@hypothesis("rlimit.NICE", syscalls=("setpriority",), errnos=("EACCES",))
def nice(situation: Situation) -> Outcome | None:
    """A nice value may not go below 20 - RLIMIT_NICE (LimitNICE=) without CAP_SYS_NICE."""
    arguments = situation.symptom.arguments
    if not situation.symptom.syscall:
        return None
    value = _signed(arguments[2]) if len(arguments) > 2 else -1
    return _priority(situation, "NICE", 20 - value, f"wanted the nice value {value}")


@hypothesis("rlimit.RTPRIO", syscalls=("sched_setscheduler", "sched_setattr", "sched_setparam"), errnos=("EPERM",))
def rtprio(situation: Situation) -> Outcome | None:
    """A real-time priority may not be above RLIMIT_RTPRIO (LimitRTPRIO=) without CAP_SYS_NICE. The usual limit is 0."""
    if not situation.symptom.syscall:
        return None
    return _priority(situation, "RTPRIO", 1, "wanted a real-time policy")


SCHEDULING = (nice, rtprio)
