# SPDX-License-Identifier: Apache-2.0
"""Limits on what else the kernel keeps for a process: queued signals, asynchronous I/O, cgroups."""
from __future__ import annotations

from collections.abc import Iterator

from triaged.errors import KernelError
from triaged.explain.hypothesis import hypothesis
from triaged.explain.remedies import set_parameter
from triaged.explain.resource_limits import blame_resource, of_unread
from triaged.explain.situation import Situation
from triaged.explain.wording import count, free
from triaged.kernel.cgroup_states import read_descendants
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.fix import ManualStep
from triaged.model.limit import UNLIMITED
from triaged.model.quoting import shown
from triaged.model.verdict import Evidence
from triaged.rules.cgroup_limits import named


@hypothesis(
    "rlimit.SIGPENDING", errnos=("EAGAIN",),
    syscalls=("timer_create", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"),
)
def sigpending(situation: Situation) -> Outcome | None:
    """The user has RLIMIT_SIGPENDING signals queued (ulimit -i). Each timer of timer_create(2) takes one while it lives."""
    cause, process = "rlimit.SIGPENDING", situation.process
    if not situation.symptom.syscall:
        return None
    if process is None:
        return NotDecidable(cause, "it is each process's own; name one")
    limit, used = process.soft("SIGPENDING"), process.pending_signals
    if limit is UNLIMITED:
        return RuledOut(cause, "unlimited")
    if not isinstance(limit, int):
        return of_unread(situation, "SIGPENDING", limit, 16384)
    if situation.was_asked and isinstance(used, int) and used < limit:
        return RuledOut(cause, free(used, limit))
    if situation.symptom.syscall != "timer_create" and not (isinstance(used, int) and used >= limit):
        return NotDecidable(cause, f"{used} of {limit} were queued when it was read")
    # Nothing else makes timer_create fail so (kernel/time/posix-timers.c).
    evidence = (Evidence("signals queued", str(used), f"/proc/{process.identity.pid}/status SigQ", situation.time_usec),)
    summary = f"user {process.identity.uid} may have {count(limit)} signals queued (RLIMIT_SIGPENDING); timers take one each"
    return blame_resource(situation, "SIGPENDING", Status.PROVED, summary, evidence, max(limit * 2, 16384), 5)


@hypothesis("sysctl.fs.aio-max-nr", syscalls=("io_setup",), errnos=("EAGAIN",))
def aio_max_nr(situation: Situation) -> Outcome | None:
    """All contexts of asynchronous I/O together would have more than fs.aio-max-nr events."""
    key, cause = "fs.aio-max-nr", "sysctl.fs.aio-max-nr"
    if not situation.symptom.syscall:
        return None
    usage = situation.host_limit(key)
    if usage is None or not isinstance(usage.used, int) or not isinstance(usage.limit, int):
        return NotDecidable(cause, "fs.aio-max-nr or fs.aio-nr cannot be read")
    asked = situation.symptom.arguments[0] if situation.symptom.arguments else 0
    if situation.was_asked and usage.used < usage.limit:
        return RuledOut(cause, free(usage.used, usage.limit))
    # Nothing else makes io_setup fail so (fs/aio.c ioctx_alloc).
    words = f"; {count(asked)} more were asked for" if asked else ""
    evidence = (
        Evidence(key, usage.limit, usage.limit_from, situation.time_usec),
        Evidence("fs.aio-nr", usage.used, usage.used_from, situation.time_usec),
    )
    # The kernel makes room for twice what was asked for.
    wanted = max(usage.limit * 2, usage.used + asked * 2, 1048576)
    return Blamed(
        cause, Status.PROVED, "host", f"{key} is {count(usage.limit)}, and {count(usage.used)} events are in use{words}", evidence,
        set_parameter(key, wanted, usage.limit), "headroom.nearly-used-up", f"parameter:{key}",
    )


@hypothesis("cgroup.max.descendants", syscalls=("mkdir", "mkdirat"), errnos=("EAGAIN",))
def max_descendants(situation: Situation) -> Iterator[Outcome]:
    """A cgroup may not have more cgroups below it (cgroup.max.descendants, cgroup.max.depth); version 2 only."""
    cause = "cgroup.max.descendants"
    unified, path = situation.layout.unified, situation.symptom.path
    if not situation.symptom.syscall and not path:
        return
    if unified is None:
        yield RuledOut(cause, "no version 2 hierarchy is mounted")
        return
    if path.startswith(unified.mount + "/"):
        above = path[len(unified.mount) :].rsplit("/", 1)[0] or "/"
    elif situation.process is not None and not path:
        above = situation.process.identity.cgroups.get("", "/")
    else:
        yield RuledOut(cause, "the directory is no cgroup")
        return
    try:
        limits = list(read_descendants(situation.layout, above))
    except KernelError as error:
        yield NotDecidable(cause, str(error))
        return
    full = [
        (limit, usage) for limit, usage in limits
        if isinstance(limit.limit, int) and isinstance(usage.used, int) and usage.used >= limit.limit
    ]
    if not full:
        yield RuledOut(cause, f"no cgroup at or above {shown(above, 400)} is full")
        return
    limit, usage = full[0]
    number = limit.limit if isinstance(limit.limit, int) else 0
    step = ManualStep("cgroup-limit", f"write max into {shown(limit.file, 1000)}, or remove cgroups below it")
    yield Blamed(
        cause, Status.PROVED, named(limit), f"{named(limit)} may have {count(number)} cgroups below it and has {usage.used}",
        (Evidence("cgroup.max.descendants", number, limit.file, situation.time_usec),
         Evidence("nr_descendants", str(usage.used), usage.used_from, situation.time_usec)),
        (step,), weight=5,
    )


KERNEL_OBJECTS = (sigpending, aio_max_nr, max_descendants)
