# SPDX-License-Identifier: Apache-2.0
"""Limits that give one and the same error, and what each of them is to be blamed for beside the others."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from triaged.model.cause import NotDecidable, Outcome, RuledOut, Status


@dataclass(frozen=True)
class Standing:
    """How one of several limits with the same error stands.

    `is_marked`: somebody set it within the run, and how low was not seen.
    `is_counted`: the kernel counted the refusal. `is_full`: nothing was left when it was read. `is_near`: something was left, and a
    moment before there may have been nothing. `because` says what is left, or why it does not bind, `unknown` why nothing can be
    told.
    """

    cause: str
    because: str = ""
    is_counted: bool = False
    is_full: bool = False
    is_near: bool = False
    unknown: str = ""
    is_marked: bool = False


def outcome(standing: Standing, others: tuple[Standing, ...], blame: Callable[[Status], Outcome]) -> Outcome:
    """The outcome for one limit, seen beside the others that give the same error."""
    if standing.is_counted:
        return blame(Status.PROVED)
    if standing.is_full:
        return blame(Status.POSSIBLE if any(each.is_counted for each in others) else Status.PROVED)
    if standing.is_marked:
        others_did_it = any(each.is_counted or each.is_full for each in others)
        return RuledOut(standing.cause, standing.because) if others_did_it else blame(Status.LIKELY)
    if standing.unknown:
        return NotDecidable(standing.cause, standing.unknown)
    if not standing.is_near or any(each.is_counted or each.is_full for each in others):
        return RuledOut(standing.cause, standing.because)
    if any(each.is_marked for each in others):
        return NotDecidable(standing.cause, standing.because)
    is_alone = not any(each.is_near or each.unknown for each in others)
    return blame(Status.LIKELY if is_alone else Status.POSSIBLE)
