# SPDX-License-Identifier: Apache-2.0
"""Asks polkit whether a caller may do something.

Facts that shape this module (polkit's D-Bus API, org.freedesktop.PolicyKit1.Authority):
- The subject is the caller's unique bus name: polkit asks the bus itself who that is, so nothing can be forged and no pid can be
  reused in between.
- Only root, and the user whom the action's annotation org.freedesktop.policykit.owner names, may ask about others.
- With AllowUserInteraction the answer takes as long as a person needs; CancelCheckAuthorization takes the question back.
"""
from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import Callable
from enum import Enum

from triaged.bus.connection import BUS_NAME, BUS_PATH, Connection
from triaged.bus.objects import Caller
from triaged.bus.seam import Variant
from triaged.errors import BusError

log = logging.getLogger(__name__)

POLKIT = "org.freedesktop.PolicyKit1"
POLKIT_PATH = "/org/freedesktop/PolicyKit1/Authority"
POLKIT_AUTHORITY = "org.freedesktop.PolicyKit1.Authority"
NOT_AUTHORIZED = "org.triaged.Triage1.Error.NotAuthorized"

ALLOW_USER_INTERACTION = 1
TIME_LIMIT_S = 10.0
INTERACTIVE_TIME_LIMIT_S = 90.0
# What the bus answers where nobody has polkit's name and nobody can be started for it.
_ABSENT = frozenset({"ServiceUnknown", "NameHasNoOwner"})


class Action(str, Enum):
    """What polkit is asked about; dbus/org.triaged.policy describes each."""

    APPLY_FIX = "org.triaged.apply-fix"
    UNDO_FIX = "org.triaged.undo-fix"
    DISMISS = "org.triaged.dismiss"
    INSPECT_PROCESS = "org.triaged.inspect-process"
    TRACE = "org.triaged.trace"


class Authority:
    """polkit, on the connection that `link` gives (None: there is none now).

    Where polkit is not there at all (no system bus, a container), root and the user as whom this process runs are allowed,
    since they could do it without us; nobody else is.
    """

    def __init__(
        self,
        link: Callable[[], Connection | None],
        *,
        time_limit_s: float = TIME_LIMIT_S,
        interactive_time_limit_s: float = INTERACTIVE_TIME_LIMIT_S,
    ) -> None:
        self._link = link
        self._time_limit_s = time_limit_s
        self._interactive_time_limit_s = interactive_time_limit_s
        self._serial = itertools.count(1)

    async def demand(self, action: Action, caller: Caller) -> None:
        """Returns if the caller may.

        Raises: BusError org.triaged.Triage1.Error.NotAuthorized, whose text says what would help.
        """
        link = self._link()
        if link is None:
            raise BusError(NOT_AUTHORIZED, "the connection to the bus is lost", "try again")
        limit_s = self._interactive_time_limit_s if caller.may_interact else self._time_limit_s
        # Unique per connection, and a connection of ours is polkit's caller.
        question = f"triaged-{os.getpid()}-{next(self._serial)}"
        try:
            reply = await link.call(
                POLKIT, POLKIT_PATH, POLKIT_AUTHORITY, "CheckAuthorization", "(sa{sv})sa{ss}us",
                [["system-bus-name", {"name": Variant("s", caller.name)}], action.value, {},
                 ALLOW_USER_INTERACTION if caller.may_interact else 0, question],
                timeout_s=limit_s,
            )  # fmt: skip
        except asyncio.CancelledError:
            await self._take_back(link, question)
            raise
        except BusError as error:
            await self._judge_failure(link, action, caller, question, error, limit_s)
            return
        is_authorized, is_challenge, details = reply[0]
        if is_authorized:
            return
        if details.get("polkit.dismissed"):
            raise BusError(NOT_AUTHORIZED, f"{action.value}: the authentication was dismissed")
        if is_challenge and not caller.may_interact:
            raise BusError(NOT_AUTHORIZED, f"{action.value} needs authentication, and the call does not allow to ask for it "
                           "(busctl --allow-interactive-authorization=yes; triagectl in a terminal; or as root)")  # fmt: skip
        if is_challenge:
            raise BusError(NOT_AUTHORIZED, f"{action.value} needs authentication, and there is no agent that could ask for it "
                           "(run pkttyagent, or do it as root)")  # fmt: skip
        raise BusError(NOT_AUTHORIZED, f"{action.value}: polkit does not allow it to user {_user(caller)}")

    async def allows(self, action: Action, caller: Caller) -> bool:
        """Whether the caller may, without asking anybody."""
        try:
            await self.demand(action, Caller(caller.name, caller.uid, caller.gids))
        except BusError:
            return False
        return True

    async def _judge_failure(
        self, link: Connection, action: Action, caller: Caller, question: str, error: BusError, limit_s: float
    ) -> None:
        last = error.name.rsplit(".", 1)[-1]
        if (last in _ABSENT or ".Spawn." in error.name) and not await _is_running(link):
            if caller.uid is not None and caller.uid in (0, os.getuid()):
                log.info("polkit is not running; %s allowed to user %d", action.value, caller.uid)
                return
            raise BusError(NOT_AUTHORIZED, f"{action.value}: polkit is not running, so only root may (user {_user(caller)} asked)")
        if last == "NoReply":
            await self._take_back(link, question)
            raise BusError(NOT_AUTHORIZED, f"{action.value}: no authentication within {limit_s:g} s")
        # An answer that is no answer (the action is not installed, polkit fails) allows nothing.
        raise BusError(NOT_AUTHORIZED, f"{action.value}: polkit cannot say ({error})")

    async def _take_back(self, link: Connection, question: str) -> None:
        with contextlib.suppress(BusError):
            await link.call(
                POLKIT, POLKIT_PATH, POLKIT_AUTHORITY, "CancelCheckAuthorization", "s", [question], timeout_s=self._time_limit_s
            )


async def _is_running(link: Connection) -> bool:
    # polkit answers NameHasNoOwner, too: about a caller that has gone.
    try:
        (has_owner,) = await link.call(BUS_NAME, BUS_PATH, BUS_NAME, "NameHasOwner", "s", [POLKIT])
    except BusError:
        return True
    return bool(has_owner)


def _user(caller: Caller) -> str:
    return "unknown" if caller.uid is None else str(caller.uid)
