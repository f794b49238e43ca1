# SPDX-License-Identifier: Apache-2.0
"""Why a process or thread could not be made: EAGAIN, the one error for five limits.

Hard facts (kernel/fork.c copy_process, kernel/pid.c):
- The order is RLIMIT_NPROC, threads-max, pid numbers, pids.max. A pids.events that rose proves that the others let it pass.
- RLIMIT_NPROC does not bind user 0 of the machine, nor CAP_SYS_RESOURCE or CAP_SYS_ADMIN of the first user namespace.
- Of all but pids.max nothing is counted. They can be seen only while they are full; a moment later the test may have let go. What
  was near its limit and is the only one left is then likely, not proved.
- Once numbers have gone round, those below 300 are not given out again (RESERVED_PIDS).
"""
from __future__ import annotations

from collections.abc import Callable

from triaged.errors import KernelError
from triaged.explain.hypothesis import hypothesis
from triaged.explain.own_cgroups import made_by_test
from triaged.explain.refused_forks import owner_of, pids_standing, refusals_of
from triaged.explain.remedies import set_parameter
from triaged.explain.resource_limits import blame_resource, set_in_the_run
from triaged.explain.situation import Situation
from triaged.explain.standing import Standing, outcome
from triaged.explain.wording import bound, count, free
from triaged.kernel.namespaces import is_initial_namespace
from triaged.kernel.process import pids
from triaged.model.cause import Blamed, NotDecidable, Outcome, SelfInflicted, Status
from triaged.model.fix import ManualStep
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process_state import Credentials
from triaged.model.verdict import Evidence
from triaged.rules.cgroup_limits import cgroup_subject, limit_evidence, named, raise_limit

FORKS = ("clone", "clone3", "fork", "vfork")
_RESERVED_PIDS = 300
_NEAR = 256
_CAP_SYS_ADMIN, _CAP_SYS_RESOURCE = 21, 24
_AT_LEAST = 64


def _forks(situation: Situation) -> dict[str, Standing]:
    """How each limit on tasks stands, by cause."""

    def judge() -> dict[str, Standing]:
        found = (pids_standing(situation), _nproc(situation), _threads_max(situation), _pid_max(situation))
        return {each.cause: each for each in found}

    return situation.kept("count:forks", judge)


def _judged(situation: Situation, cause: str, blame: Callable[[Status], Outcome]) -> Outcome:
    everything = _forks(situation)
    is_fork = situation.symptom.syscall in ("", *FORKS)
    return outcome(everything[cause], tuple(each for each in everything.values() if is_fork and each.cause != cause), blame)


@hypothesis("cgroup.pids.max", syscalls=FORKS, errnos=("EAGAIN",))
def pids_max(situation: Situation) -> Outcome | None:
    """A cgroup above the process already holds pids.max tasks (TasksMax=, --pids-limit, podPidsLimit).

    It counts threads and binds root too; the limit may be an ancestor's.
    """

    def blame(status: Status) -> Outcome:
        owner, refusals = owner_of(situation), refusals_of(situation)
        rise = max((change.rise for change in refusals.risen), default=0)
        counted = f" (pids.events max +{rise})" if rise else ""
        evidence = [
            Evidence(f"{each.file.rsplit('/', 1)[-1]} max", f"{each.before} -> {each.after}", each.file, situation.time_usec)
            for each in refusals.risen
        ]
        evidence += limit_evidence(situation.cgroup_limits("pids"), situation.time_usec)
        if owner is None or not isinstance(owner.limit, int):
            summary = f"a pids.max above it was full{counted}; whose, is not known any more"
            return Blamed("cgroup.pids.max", status, "", summary, tuple(evidence))
        own = made_by_test(situation, "pids", owner.cgroup.path)
        if own:
            return SelfInflicted("cgroup.pids.max", own)
        limit = owner.limit
        has = f"TasksMax={limit}" if owner.unit else f"pids.max={limit}"
        was = "was full" if rise or status is Status.PROVED else "may have been full"
        return Blamed(
            "cgroup.pids.max", status, named(owner), f"{named(owner)} has {has} and {was}{counted}", tuple(evidence),
            raise_limit(owner, "TasksMax", max(limit * 2, _AT_LEAST), "--pids-limit", "podPidsLimit (kubelet)"),
            "cgroup.pids.limit-hit", cgroup_subject(owner.cgroup).key, weight=10,
        )

    return _judged(situation, "cgroup.pids.max", blame)


def _nproc_exempt(situation: Situation) -> str:
    process = situation.process
    if process is None or isinstance(process.credentials, Unknown):
        return ""
    who: Credentials = process.credentials
    if who.uids[0] == 0 and is_initial_namespace(situation.paths, "user"):
        return "it does not bind root"
    if process.has_initial_user_namespace:
        for number, name in ((_CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE"), (_CAP_SYS_ADMIN, "CAP_SYS_ADMIN")):
            if who.has(number):
                return f"it does not bind who has {name}"
    return ""


def _nproc(situation: Situation) -> Standing:
    cause, process = "rlimit.NPROC", situation.process
    if process is None:
        return Standing(cause, unknown="it is each process's own; name one")
    exempt = _nproc_exempt(situation)
    if exempt:
        return Standing(cause, exempt)
    limit = process.soft("NPROC")
    if limit is UNLIMITED:
        return Standing(cause, "unlimited")
    if not isinstance(limit, int):
        by = set_in_the_run(situation, "NPROC")
        return Standing(cause, f"{by} set it" if by else "", unknown=str(limit), is_marked=bool(by))
    used = situation.user_tasks()
    if not isinstance(used, int):
        return Standing(cause, unknown=str(used))
    because = f"{free(used, limit)} of {count(limit)} for user {process.identity.uid}"
    if used >= limit:
        # In a user namespace the kernel counts only the tasks in there; /proc shows more of the user's.
        return Standing(cause, because, is_full=process.has_initial_user_namespace, is_near=True)
    was_seen = not situation.was_asked
    return Standing(cause, because, is_near=was_seen and used * 4 + _AT_LEAST >= limit)


@hypothesis("rlimit.NPROC", syscalls=(*FORKS, "execve", "execveat"), errnos=("EAGAIN",))
def nproc(situation: Situation) -> Outcome | None:
    """The user has RLIMIT_NPROC tasks already (ulimit -u, LimitNPROC=).

    Threads count, and those of all the user's processes. It never binds root; after setuid it is held against execve.
    """

    def blame(status: Status) -> Outcome:
        process, used = situation.process, situation.user_tasks()
        limit = process.soft("NPROC") if process is not None else Unknown("no process")
        uid = process.identity.uid if process is not None else -1
        number = limit if isinstance(limit, int) else 0
        if not number:
            summary = f"{set_in_the_run(situation, 'NPROC')} set RLIMIT_NPROC for user {uid}; how low, was not seen"
            return blame_resource(situation, "NPROC", status, summary, (), 4096, 5, f"user {uid}")
        evidence = (Evidence(f"tasks of user {uid}", str(used), "/proc/*/status", situation.time_usec),)
        was = "had" if status is Status.PROVED else "had, a moment later,"
        summary = f"user {uid} {was} {used} of the {number} tasks that RLIMIT_NPROC allows"
        return blame_resource(situation, "NPROC", status, summary, evidence, max(number * 2, 4096), 5, f"user {uid}")

    return _judged(situation, "rlimit.NPROC", blame)


def _threads_max(situation: Situation) -> Standing:
    cause, usage = "sysctl.kernel.threads-max", situation.host_limit("kernel.threads-max")
    if usage is None or not isinstance(usage.used, int) or not isinstance(usage.limit, int):
        return Standing(cause, unknown="kernel.threads-max or the number of threads cannot be read")
    because = free(usage.used, usage.limit)
    is_full = usage.used >= usage.limit
    was_seen = not situation.was_asked
    return Standing(cause, because, is_full=is_full, is_near=was_seen and usage.limit - usage.used < _NEAR)


def _pids_left(situation: Situation) -> int | Unknown:
    """Numbers that can still be given out in the reader's pid namespace, at least."""

    def read() -> int | Unknown:
        usage = situation.host_limit("kernel.pid_max")
        if usage is None or not isinstance(usage.used, int) or not isinstance(usage.limit, int):
            return Unknown("kernel.pid_max or the number of threads cannot be read")
        try:
            low = sum(1 for pid in pids(situation.paths) if pid < _RESERVED_PIDS)
        except KernelError as error:
            return Unknown(str(error))
        return usage.limit - _RESERVED_PIDS - (usage.used - low)

    return situation.kept("usage:pids-left", read)


def _pid_max(situation: Situation) -> Standing:
    cause, left = "sysctl.kernel.pid_max", _pids_left(situation)
    if isinstance(left, Unknown):
        return Standing(cause, unknown=left.why)
    process = situation.process
    if process is not None and left > 0 and not situation.shares_namespace("pid"):
        why = "it is in a pid namespace, which may have a pid_max of its own (since 6.14)"
        if situation.was_asked:
            return Standing(cause, unknown=why)
        return Standing(cause, why, is_near=True)  # which cannot be read from here: what is left where nothing else is
    was_seen = not situation.was_asked
    return Standing(cause, f"{count(max(left, 0))} free", is_full=left <= 0, is_near=was_seen and left < _NEAR)


def _host_limit(situation: Situation, key: str, what: str, wanted: int) -> Callable[[Status], Outcome]:
    def blame(status: Status) -> Outcome:
        usage = situation.host_limit(key)
        if usage is None:
            return NotDecidable(f"sysctl.{key}", "it cannot be read")
        was = "are in use" if status is Status.PROVED else "were in use, a moment later"
        at_least = "at least " if usage.is_lower_bound else ""
        evidence = (
            Evidence(key, str(usage.limit), usage.limit_from, situation.time_usec),
            Evidence(what, f"{at_least}{usage.used}", usage.used_from, situation.time_usec),
        )
        return Blamed(
            f"sysctl.{key}", status, "host", f"{key} is {bound(usage.limit)}, and {bound(usage.used)} {what} {was}", evidence,
            set_parameter(key, wanted, str(usage.limit)), "headroom.nearly-used-up", f"parameter:{key}",
        )

    return blame


@hypothesis("sysctl.kernel.threads-max", syscalls=FORKS, errnos=("EAGAIN",))
def threads_max(situation: Situation) -> Outcome | None:
    """The machine has kernel.threads-max threads already. It binds root too."""
    limit = situation.number("kernel.threads-max")
    wanted = max(limit * 2, 4096) if isinstance(limit, int) else 4096
    return _judged(situation, "sysctl.kernel.threads-max", _host_limit(situation, "kernel.threads-max", "threads", wanted))


@hypothesis("sysctl.kernel.pid_max", syscalls=FORKS, errnos=("EAGAIN",))
def pid_max(situation: Situation) -> Outcome | None:
    """No process number below kernel.pid_max is left. Threads take one each; since 6.14 each pid namespace may have its own."""
    blame = _host_limit(situation, "kernel.pid_max", "threads with a number", 4194304)
    process = situation.process
    if process is not None and not situation.shares_namespace("pid"):

        def blame_inner(status: Status) -> Outcome:
            if status is Status.PROVED:
                return blame(status)
            command = ("nsenter", f"--pid=/proc/{process.identity.pid}/ns/pid", "sysctl", "-w", "kernel.pid_max=4194304")
            step = ManualStep("in-the-namespace", "raises kernel.pid_max in the process's pid namespace", (command,))
            evidence = (Evidence("pid namespace", process.namespaces.get("pid", ""), f"/proc/{process.identity.pid}/ns/pid"),)
            summary = "its pid namespace has a kernel.pid_max of its own, and no other limit was near"
            return Blamed("sysctl.kernel.pid_max", status, "pid namespace", summary, evidence, (step,))

        return _judged(situation, "sysctl.kernel.pid_max", blame_inner)
    return _judged(situation, "sysctl.kernel.pid_max", blame)


TASKS = (pids_max, nproc, threads_max, pid_max)
