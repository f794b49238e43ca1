# SPDX-License-Identifier: Apache-2.0
"""The Manager's method StartTrace: the failing calls of one of the caller's own processes, by way of triaged-helper."""
from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from triaged.bus.authority import Action
from triaged.bus.inspections import ERROR, NO_SUCH_PROCESS, Demands
from triaged.bus.objects import Caller, Handler, Result
from triaged.errors import BusError, Gone, KernelError

NOT_OWN = f"{ERROR}.NotAuthorized"
NOT_TRACED = f"{ERROR}.CannotTrace"
TRACE_ERRORS = ("NoSuchProcess", "CannotTrace")


class Traces:
    """Answers StartTrace (`methods`, for `Service.provide`).

    `start` begins the trace of a process (pid, start ticks) for its user, and gives the path of the socket where he reads it.
    `owner` gives the user of a process or None.
    """

    def __init__(
        self, start: Callable[[int, int, int], Awaitable[str]], owner: Callable[[int], int | None], authority: Demands
    ) -> None:
        self._start_trace = start
        self._owner = owner
        self._authority = authority

    def methods(self) -> Mapping[str, Handler]:
        """The handlers by the names of the methods."""
        return {"StartTrace": self._start}

    async def _start(self, caller: Caller, pid: int, start_ticks: int) -> Result:
        owner = self._owner(pid)
        if owner is None:
            raise BusError(NO_SUCH_PROCESS, f"there is no process {pid}")
        if caller.uid is None or caller.uid != owner:
            raise BusError(NOT_OWN, f"process {pid} is another user's: only one's own are traced")
        if owner != 0:
            await self._authority.demand(Action.TRACE, caller)
        try:
            return (await self._start_trace(pid, start_ticks, owner),)
        except Gone as error:
            raise BusError(NO_SUCH_PROCESS, f"there is no process {pid} (any more)") from error
        except KernelError as error:
            raise BusError(NOT_TRACED, error.shown()) from error
        except BusError as error:
            raise BusError(NOT_TRACED, error.shown()) from error


def trace_error(prefix: str, error: KernelError) -> BusError:
    """The D-Bus error `prefix`.NAME for an error of starting a trace."""
    if isinstance(error, Gone):
        return BusError(f"{prefix}.{TRACE_ERRORS[0]}", f"{error.path}: there is no such process (any more)")
    return BusError(f"{prefix}.{TRACE_ERRORS[1]}", error.shown())


def error_of_trace(pid: int, error: BusError) -> KernelError | BusError:
    """The error of starting a trace that a D-Bus error of the helper stands for; itself if it stands for none."""
    last = error.name.rsplit(".", 1)[-1]
    if last == TRACE_ERRORS[0]:
        return Gone(f"/proc/{pid}")
    return KernelError(f"/proc/{pid}", str(error)) if last == TRACE_ERRORS[1] else error
