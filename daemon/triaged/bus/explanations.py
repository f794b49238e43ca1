# SPDX-License-Identifier: Apache-2.0
"""The Manager's method Explain: which limits give an error, each held against a process or the machine.

One look at a time, in a thread: a caller who asks for many waits for many.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from triaged.bus.authority import Action
from triaged.bus.codec import cause_row, text
from triaged.bus.inspections import ERROR, INVALID_ARGS, NO_SUCH_PROCESS, Demands
from triaged.bus.objects import Caller, Handler, Result
from triaged.bus.seam import Variant, plain, signature_of
from triaged.errors import BusError, ConfigError, KernelError
from triaged.model.cause import Blamed

CHARACTERS = 4096
_WAITING_AT_MOST = 64
_OPTIONS = {"arguments": "at", "path": "s"}
Other = tuple[str, str, str]  # cause, outcome, because


class Explains(Protocol):
    """Explains `what` with `error` in a process (0: none). Blocks. Raises: ConfigError for what cannot be asked, KernelError."""

    def __call__(
        self, what: str, error: str, pid: int, arguments: Sequence[int], path: str
    ) -> tuple[Sequence[Blamed], Sequence[Other]]: ...


class Explanations:
    """Answers Explain (`methods`, for `Service.provide`). `owner` gives the user of a process or None."""

    def __init__(self, explain: Explains, owner: Callable[[int], int | None], authority: Demands) -> None:
        self._explain = explain
        self._owner = owner
        self._authority = authority
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    def methods(self) -> Mapping[str, Handler]:
        """The handlers by the names of the methods."""
        return {"Explain": self._answer}

    async def _answer(self, caller: Caller, what: str, error: str, pid: int, options: Mapping[str, Any]) -> Result:
        arguments, path = _given(options)
        if max(len(what), len(error), len(path)) > CHARACTERS:
            raise BusError(INVALID_ARGS, f"at most {CHARACTERS} characters")
        if pid:
            owner = self._owner(pid)
            if owner is None:
                raise BusError(NO_SUCH_PROCESS, f"there is no process {pid}")
            if caller.uid is None or caller.uid not in (0, owner):
                await self._authority.demand(Action.INSPECT_PROCESS, caller)
        if self._waiting >= _WAITING_AT_MOST:
            raise BusError(f"{ERROR}.LimitsExceeded", "too many wait for such an answer; ask again later")
        self._waiting += 1
        try:
            async with self._one_at_a_time:
                causes, others = await asyncio.get_running_loop().run_in_executor(
                    None, lambda: self._explain(what, error, pid, arguments, path)
                )
        except ConfigError as wrong:
            raise BusError(INVALID_ARGS, wrong.shown()) from wrong
        except KernelError as gone:
            raise BusError(NO_SUCH_PROCESS, gone.shown()) from gone
        finally:
            self._waiting -= 1
        return ([cause_row(cause) for cause in causes], [_other_row(other) for other in others])


def _other_row(other: Other) -> dict[str, Variant]:
    return {name: Variant("s", text(value)) for name, value in zip(("Cause", "Outcome", "Because"), other, strict=True)}


def _given(options: Mapping[str, Any]) -> tuple[tuple[int, ...], str]:
    for name, value in options.items():
        wanted = _OPTIONS.get(name)
        if wanted is None:
            raise BusError(INVALID_ARGS, f"option {name[:100]!r} is not known; there are arguments and path")
        if signature_of(value) != wanted:
            raise BusError(INVALID_ARGS, f"option {name}: {wanted} is wanted, not {signature_of(value)[:20]}")
    arguments, path = (plain(options[name]) if name in options else None for name in _OPTIONS)
    return tuple(int(each) for each in arguments or ()), str(path or "")
