# SPDX-License-Identifier: Apache-2.0
"""The drop-in of ours that sets kernel parameters at every boot."""
from __future__ import annotations

import asyncio
import os

from triaged.errors import KernelError
from triaged.fixers.own_file import OwnFile
from triaged.fixers.part import Original, Part
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.kernel.sysctl_order import Assignment, parse_assignments, read_assignments

# After every name that people are told to choose (99-..., 99-sysctl.conf, zz-local.conf is rare and is reported).
NAME = "zz-triaged.conf"
_HEADER = (
    "# Kernel parameters that triaged was told to keep over reboots. `triagectl undo` takes them out again;\n"
    "# a line that is edited by hand is left alone from then on.\n"
)


class SysctlDropIn(Part):
    """The line of one parameter in /etc/sysctl.d/zz-triaged.conf; the other lines are not touched."""

    def __init__(self, paths: KernelPaths, parameter: str, value: str) -> None:
        self._paths = paths
        self._own = OwnFile(f"{paths.etc}/sysctl.d", NAME)
        self._parameter = parameter
        self.file = self._own.path
        self.name = f"{self._own.path}: {parameter}"
        self.wanted = value

    async def read(self) -> str | None:
        text = await asyncio.to_thread(self._own.read)
        return parse_own_value(text or "", self._parameter)

    async def write(self) -> None:
        await asyncio.to_thread(self._set, self.wanted)

    async def restore(self, original: Original) -> None:
        await asyncio.to_thread(self._set, original.value)

    async def tidy(self) -> None:
        await asyncio.to_thread(self._own.tidy)

    async def diff(self) -> str:
        return await asyncio.to_thread(self._diff)

    async def holder(self) -> str:
        return f"the line in {self._own.path} was edited"

    def _diff(self) -> str:
        return self._own.diff(with_own_value(self._own.read(), self._parameter, self.wanted))

    def _set(self, value: str | None) -> None:
        self._own.write(with_own_value(self._own.read(), self._parameter, value))

    def beaten_by(self) -> Assignment | None:
        """The line of another file that will win over ours at boot, or None. Blocking."""
        others = read_assignments(self._paths, self._parameter, without=self._own.path)
        # Whatever its name, a glob yields to an explicit key.
        rivals = [other for other in others if not other.is_glob and os.path.basename(other.path) > NAME]
        return rivals[-1] if rivals else None

    def also_set_by_procps(self) -> bool:
        """Whether /etc/sysctl.conf, which `sysctl --system` (not systemd) reads after us, sets the parameter. Blocking."""
        try:
            text = read_text(f"{self._paths.etc}/sysctl.conf")
        except KernelError:
            return False
        return bool(parse_assignments("", text, self._parameter.replace(".", "/")))


def parse_own_value(text: str, parameter: str) -> str | None:
    """What our file gives the parameter; None if it does not name it."""
    value = None
    for line in text.splitlines():
        name, equals, rest = line.partition("=")
        if equals and name.strip() == parameter:
            value = " ".join(rest.split())
    return value


def with_own_value(text: str | None, parameter: str, value: str | None) -> str | None:
    """Our file's text with the parameter set to `value`, or without it (None); None where no parameter is left."""
    kept = [line for line in (text or _HEADER).splitlines() if line.partition("=")[0].strip() != parameter or "=" not in line]
    if value is not None:
        kept.append(f"{parameter} = {value}")
    if not any("=" in line and not line.lstrip().startswith(("#", ";")) for line in kept):
        return None
    return "".join(f"{line}\n" for line in kept)
