# SPDX-License-Identifier: Apache-2.0
"""Who reads the seccomp filters of a process: the helper (it runs as root, without a filter), or this process."""
from __future__ import annotations

import asyncio
import os
from typing import Protocol

from triaged.errors import KernelError
from triaged.kernel.capabilities import CAP_SYS_ADMIN, has_capability
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_dump import read_filters, read_seccomp_status
from triaged.model.filters import FilterDump

_REMEDY = "run triaged as a service: triaged-helper reads them for it"


class FilterReader(Protocol):
    """Who reads the filters of a process: this process, or the helper for it."""

    async def read(self, pid: int, start_ticks: int) -> FilterDump:
        """The filters of exactly that process, newest first. Raises: Gone, KernelError, BusError."""

    def obstacle(self) -> tuple[str, str]:
        """Why it cannot read any, and what to do; two empty texts where nothing is known to keep it from that."""


class LocalFilters:
    """Reads filters in this process, as far as its privileges and its own filters let it."""

    def __init__(self, paths: KernelPaths) -> None:
        self._paths = paths

    async def read(self, pid: int, start_ticks: int) -> FilterDump:
        """See `FilterReader.read`."""
        return await asyncio.to_thread(lambda: read_filters(self._paths, pid, start_ticks=start_ticks))

    def obstacle(self) -> tuple[str, str]:
        """See `FilterReader.obstacle`."""
        try:
            if read_seccomp_status(self._paths, os.getpid())[0] != "none":
                return "this process has a seccomp filter itself, so the kernel gives it no others'", _REMEDY
            if not has_capability(self._paths, CAP_SYS_ADMIN):
                return "reading the filters of processes needs CAP_SYS_ADMIN", _REMEDY
        except KernelError as error:
            return str(error), error.remedy
        return "", ""


class ChosenFilters:
    """Reads through whichever reader was chosen last: where the bus is, decides itself after the sources are made."""

    def __init__(self, reader: FilterReader) -> None:
        self.reader = reader

    async def read(self, pid: int, start_ticks: int) -> FilterDump:
        """See `FilterReader.read`."""
        return await self.reader.read(pid, start_ticks)

    def obstacle(self) -> tuple[str, str]:
        """See `FilterReader.obstacle`."""
        return self.reader.obstacle()
