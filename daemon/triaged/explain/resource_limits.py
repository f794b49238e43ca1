# SPDX-License-Identifier: Apache-2.0
"""What hypotheses about RLIMIT_* share: who set the limit, and the outcome that blames it.

Hard facts:
- A limit is inherited over fork and exec. So one that differs from that of the run's own command was changed on the way.
- A Go program raises its soft RLIMIT_NOFILE to the hard one when it starts, and gives what it executes the old one back: both are
  calls of prlimit64 that a test makes and that lower nothing.
- What a limit was at a moment is told by no record of the call that set it: its argument lies in memory, and is read too late.
"""
from __future__ import annotations

from triaged.explain.remedies import raise_resource
from triaged.explain.replay import set_resource
from triaged.explain.situation import Situation
from triaged.explain.wording import who
from triaged.model.cause import Blamed, NotDecidable, SelfInflicted, Status
from triaged.model.limit import UNLIMITED, Limit, Unknown, Unlimited
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown
from triaged.model.symptom import Deed, SeenIn
from triaged.model.verdict import Evidence


def is_lower(limit: Limit, other: Limit) -> bool:
    """Whether `limit` is known to be below `other`."""
    if not isinstance(limit, int):
        return False
    return other is UNLIMITED or (isinstance(other, int) and limit < other)


def _was_lowered(process: ProcessState, before: ProcessState, resource: str) -> bool:
    soft, hard = process.soft(resource), process.hard(resource)
    if is_lower(hard, before.hard(resource)):
        return True
    if resource == "NOFILE":  # it may go up to the hard limit and back to where it was without anybody's will
        return soft != before.soft(resource) and is_lower(soft, before.hard(resource))
    return is_lower(soft, before.soft(resource))


def _family(situation: Situation, process: ProcessState) -> set[int]:
    """The pids of those whose limits the process has: its own, its ancestors'."""
    family = {process.identity.pid, process.identity.ppid, process.stands_for, *(each.identity.pid for each in situation.ancestors)}
    return family - {0}


def set_in_the_run(situation: Situation, resource: str) -> str:
    """Who set the limit within the run and is not under test (prlimit, a shell's ulimit), or ""."""
    process = situation.process
    if process is None:
        return ""
    family = _family(situation, process)
    for deed in reversed(situation.deeds):
        if _sets(deed, resource, family) and not deed.is_test:
            return f"{shown(deed.comm)} (pid {deed.pid})"
    return ""


def of_unread(
    situation: Situation, resource: str, limit: Unknown, wanted: int | Unlimited
) -> Blamed | SelfInflicted | NotDecidable:
    """The outcome where the limit itself was not seen: likely to blame if somebody set it within the run (nothing else can be)."""
    by = set_in_the_run(situation, resource)
    if not by:
        own = lowered_by_test(situation, resource)
        return SelfInflicted(f"rlimit.{resource}", own) if own else NotDecidable(f"rlimit.{resource}", limit.why)
    summary = f"{by} set RLIMIT_{resource} for {who(situation.process)}; how low, was not seen"
    return blame_resource(situation, resource, Status.LIKELY, summary, (), wanted, 5)


def lowered_by_test(situation: Situation, resource: str) -> str:
    """What says that the program under test set the limit itself; "" where nothing does."""
    process, start, at_ns = situation.process, situation.at_start, situation.symptom.first_ns
    if process is None or (start is None and resource == "NOFILE"):
        return ""
    family = _family(situation, process)
    own = [deed for deed in situation.deeds if deed.is_test and _sets(deed, resource, family)]
    if own and (start is None or _was_lowered(process, start, resource)):
        return f"{shown(own[0].comm)} (pid {own[0].pid}) set RLIMIT_{resource} itself, to {process.soft(resource)}"
    meant = _meant([deed for deed in own if not at_ns or deed.at_ns <= at_ns], resource, start)
    if not meant:
        return ""
    # The process was read later than this, or had gone; whoever lowers a limit for a moment puts it back.
    by = f"{shown(meant[-1].comm)} (pid {meant[-1].pid}) set RLIMIT_{resource} itself before that"
    if meant[-1].value < 0:
        return f"{by}; to what, was not seen"
    return f"{by}, and again afterwards" if any(deed.at_ns > at_ns for deed in own) else ""


def _meant(deeds: list[Deed], resource: str, start: ProcessState | None) -> list[Deed]:
    """Those of a test's calls that set a limit which are not Go's own: of each process the first, up to the hard limit or back."""
    if resource != "NOFILE" or start is None or start.soft(resource) == start.hard(resource):
        return deeds
    first = {deed.pid: deed for deed in reversed(deeds)}
    return [deed for deed in deeds if first[deed.pid] is not deed]


def _sets(deed: Deed, resource: str, family: set[int]) -> bool:
    found, target = set_resource(deed)
    return found == resource and target in family


def blame_resource(
    situation: Situation, resource: str, status: Status, summary: str, evidence: tuple[Evidence, ...], wanted: int | Unlimited,
    weight: int = 0, subject: str = "",
) -> Blamed | SelfInflicted:
    """The limit is to blame, or the test that lowered it is."""
    process, cause = situation.process, f"rlimit.{resource}"
    own = lowered_by_test(situation, resource)
    if own:
        return SelfInflicted(cause, own)
    start = situation.at_start
    was_traced = bool(situation.deeds) or situation.symptom.seen_in is SeenIn.TRACE
    if process is not None and start is not None and not was_traced and _was_lowered(process, start, resource):
        status = Status.POSSIBLE  # within the run, by whom was not seen
    if start is not None and isinstance(wanted, int) and set_in_the_run(situation, resource):
        allowed = start.hard(resource)
        # As much as the command itself had can be had again by anybody.
        if isinstance(allowed, int) and process is not None and not is_lower(allowed, process.soft(resource)):
            wanted = min(wanted, allowed)
    limits = Evidence(f"RLIMIT_{resource}", limits_of(process, resource), limits_file(situation), situation.time_usec)
    return Blamed(
        cause, status, subject or who(process), summary, (limits, *evidence), raise_resource(situation, resource, wanted),
        weight=weight,
    )


def limits_of(process: ProcessState | None, resource: str) -> str:
    """Soft and hard limit as "64 soft, 4096 hard"."""
    return "" if process is None else f"{process.soft(resource)} soft, {process.hard(resource)} hard"


def limits_file(situation: Situation) -> str:
    """Where the limits were read."""
    return f"/proc/{situation.process.identity.pid}/limits" if situation.process else ""
