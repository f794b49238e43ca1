# SPDX-License-Identifier: Apache-2.0
"""What a filter answers: an action and 16 bits of data (linux/seccomp.h, SECCOMP_RET_*)."""
from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum

MAX_ERRNO = 4095


class ActionKind(IntEnum):
    """The upper half of a filter's return value, strictest first as the kernel orders them (as signed numbers)."""

    KILL_PROCESS = 0x80000000
    KILL_THREAD = 0x00000000
    TRAP = 0x00030000
    ERRNO = 0x00050000
    USER_NOTIF = 0x7FC00000
    TRACE = 0x7FF00000
    LOG = 0x7FFC0000
    ALLOW = 0x7FFF0000


def strictness(value: int) -> int:
    """The order of return values: the smaller, the stricter (kernel/seccomp.c, ACTION_ONLY: the upper half as a signed number)."""
    action = value & 0xFFFF0000
    return action - (1 << 32) if action & 0x80000000 else action


def errno_name(number: int) -> str:
    """"EPERM" for 1; the number as text where it has no name."""
    return errno.errorcode.get(number, str(number))


@dataclass(frozen=True)
class Action:
    """One answer of a filter. `data` is the errno of ERRNO, what a TRAP handler or tracer is told, else of no effect."""

    kind: ActionKind
    data: int = 0

    @staticmethod
    def of(value: int) -> Action:
        """What the kernel does for a return value: an unknown action kills the process, an errno is capped at 4095."""
        try:
            kind = ActionKind(value & 0xFFFF0000)
        except ValueError:
            return Action(ActionKind.KILL_PROCESS, value & 0xFFFF)
        data = value & 0xFFFF
        return Action(kind, min(data, MAX_ERRNO) if kind is ActionKind.ERRNO else data)

    @property
    def value(self) -> int:
        return self.kind | self.data

    @property
    def is_allowed(self) -> bool:
        """Whether the call is made as if no filter were there (LOG allows, and writes an audit record)."""
        return self.kind in (ActionKind.ALLOW, ActionKind.LOG)

    @property
    def is_fatal(self) -> bool:
        """Whether the call ends the thread or process; a TRAP does unless the program handles SIGSYS."""
        return self.kind in (ActionKind.KILL_PROCESS, ActionKind.KILL_THREAD, ActionKind.TRAP)

    @property
    def effect(self) -> str:
        """What the program sees, for a person."""
        texts = {
            ActionKind.KILL_PROCESS: "kills the process (SIGSYS)",
            ActionKind.KILL_THREAD: "kills the thread (SIGSYS)",
            ActionKind.TRAP: "raises SIGSYS",
            ActionKind.ERRNO: f"returns {errno_name(self.data)}",
            ActionKind.USER_NOTIF: "asks the supervisor (ENOSYS without one)",
            ActionKind.TRACE: "asks the tracer (ENOSYS without one)",
            ActionKind.LOG: "is allowed and logged",
            ActionKind.ALLOW: "is allowed",
        }
        if self.kind is ActionKind.ERRNO and self.data == 0:
            return "is skipped and returns 0"
        return texts[self.kind]

    def __str__(self) -> str:
        if self.kind is ActionKind.ERRNO:
            return f"ERRNO({errno_name(self.data)})"
        return f"{self.kind.name}({self.data})" if self.data else self.kind.name


ALLOW = Action(ActionKind.ALLOW)
EPERM = Action(ActionKind.ERRNO, errno.EPERM)
KILL_PROCESS = Action(ActionKind.KILL_PROCESS)
KILL_THREAD = Action(ActionKind.KILL_THREAD)
ENOSYS = Action(ActionKind.ERRNO, errno.ENOSYS)
