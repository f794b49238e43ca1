# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters against what the policies want. They do not notify: read at the start, on request and once a minute."""
from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import ClassVar

from triaged.errors import Gone, KernelError
from triaged.kernel.parameters import ParameterReader, parameter_path, read_origin
from triaged.kernel.paths import KernelPaths
from triaged.model.facts import Fact, ParameterFacts
from triaged.model.limit import Unknown
from triaged.model.requirement import ParameterRequirement
from triaged.sources.source import Source, SourceState

LOOK_EVERY_S = 60.0


class KernelParameters(Source):
    """One fact for each requirement at first, then only where the value is another one. Values are read through files kept open."""

    name: ClassVar[str] = "kernel-parameters"
    is_cheap_to_read: ClassVar[bool] = True

    def __init__(self, paths: KernelPaths, requirements: Sequence[ParameterRequirement]) -> None:
        super().__init__()
        self._paths = paths
        self._requirements = tuple(requirements)
        self._reader = ParameterReader(paths)
        self._seen: dict[str, str | Unknown] = {}
        self._wake = asyncio.Event()

    def refresh(self) -> None:
        self._wake.set()

    async def facts(self) -> AsyncIterator[Fact]:
        self._wake = asyncio.Event()
        while True:
            self._wake.clear()
            for fact in self._read(only_changed=True):
                yield fact
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the wake-up.
            timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    def snapshot(self) -> Iterator[Fact]:
        return self._read(only_changed=False)

    def _read(self, only_changed: bool) -> Iterator[Fact]:
        refused: list[str] = []
        missing = 0
        for requirement in self._requirements:
            key = requirement.key
            value: str | Unknown
            path, is_missing = "", False
            try:
                path = parameter_path(self._paths, key)
                value = self._reader.read(key)
            except Gone:
                value, is_missing = Unknown("this kernel has no such parameter"), True
                missing += 1
            except KernelError as error:
                value = Unknown(str(error))
                refused.append(key)
            if only_changed and self._seen.get(key) == value:
                continue
            self._seen[key] = value
            self.count("values read")
            origin = read_origin(self._paths, key, value) if isinstance(value, str) else ""
            yield ParameterFacts(key, path, value, requirement, is_missing, origin, time.time_ns() // 1000)
        self._tell_status(refused, missing)

    def _tell_status(self, refused: list[str], missing: int) -> None:
        if missing and missing == len(self._requirements) and not os.path.isdir(f"{self._paths.proc}/sys/kernel"):
            self.set_status(
                SourceState.UNAVAILABLE, f"{self._paths.proc}/sys shows no kernel parameter", f"mount proc at {self._paths.proc}"
            )
        elif not refused:
            self.set_status(SourceState.ACTIVE)
        elif len(refused) == len(self._requirements):
            self.set_status(SourceState.UNAVAILABLE, "no kernel parameter can be read", f"mount proc at {self._paths.proc}")
        else:
            named = ", ".join(refused[:5]) + (" ..." if len(refused) > 5 else "")
            reason = f"cannot read {named}: they are not judged"
            self.set_status(SourceState.DEGRADED, reason, "run triaged as a service or as root")
