# SPDX-License-Identifier: Apache-2.0
"""The system's systemd on the bus: what `fixers.units` needs of it (org.freedesktop.systemd1(5))."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from triaged.bus.connection import Connection
from triaged.bus.seam import Variant, plain
from triaged.errors import BusError

SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD_PATH = "/org/freedesktop/systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
UNIT = "org.freedesktop.systemd1.Unit"
PROPERTIES = "org.freedesktop.DBus.Properties"
RELOAD_TIMEOUT_S = 90.0
# These are properties of every unit; the others belong to the interface of the unit's type.
_OF_ALL = frozenset({"LoadState", "ActiveState", "DropInPaths", "FragmentPath", "Transient", "Id", "Names", "NeedDaemonReload"})


class Systemd1:
    """See `fixers.units.UnitManager`. `link` gives the connection to the system bus (None: there is none now)."""

    def __init__(self, link: Callable[[], Connection | None]) -> None:
        self._link = link

    async def read_property(self, unit: str, name: str) -> str | int | bool | list[str]:
        """A property of the unit; the unit is loaded where it is not."""
        (path,) = await self._call("LoadUnit", "s", unit)
        interface = UNIT if name in _OF_ALL else f"{SYSTEMD}.{unit.rsplit('.', 1)[1].capitalize()}"
        reply = await self._connection().call(SYSTEMD, str(path), PROPERTIES, "Get", "ss", [interface, name])
        value = plain(reply[0])
        if not isinstance(value, (str, int, list)):
            raise BusError("", f"systemd gave {name} of {unit} as {type(value).__name__}")
        return value

    async def read_filter(self, unit: str) -> tuple[bool, tuple[str, ...]]:
        """SystemCallFilter= as it is loaded: whether it is a list of what is allowed, and its entries."""
        value = await self.read_property(unit, "SystemCallFilter")
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], list):
            raise BusError("", f"systemd gave SystemCallFilter of {unit} as {str(value)[:80]!r}")
        return bool(value[0]), tuple(str(entry) for entry in value[1])

    async def set_property(self, unit: str, name: str, signature: str, value: int | str | bool, *, runtime: bool) -> None:
        """SetUnitProperties with one property."""
        await self._call("SetUnitProperties", "sba(sv)", unit, runtime, [[name, Variant(signature, value)]])

    async def reload(self) -> None:
        """daemon-reload. It waits for a Reload that is under way."""
        await self._call("Reload", timeout_s=RELOAD_TIMEOUT_S)

    async def start_scope(self, name: str, slice_name: str, pids: Sequence[int], limits: Mapping[str, int]) -> None:
        """StartTransientUnit of a scope that takes the processes; returns when its job is queued, not when it is done."""
        # Delegate=: newer versions (seen: 257.13) attach processes to no other unit.
        properties = [
            ["Description", Variant("s", "Processes that triaged moved")], ["Slice", Variant("s", slice_name)],
            ["PIDs", Variant("au", list(pids))], ["Delegate", Variant("b", True)],
            *([name, Variant("t", value)] for name, value in limits.items()),
        ]
        await self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail", properties, [])

    async def attach(self, unit: str, pids: Sequence[int]) -> None:
        """AttachProcessesToUnit: processes into the cgroup of a unit that runs. Those that are in it already stay."""
        await self._call("AttachProcessesToUnit", "ssau", unit, "", list(pids))

    async def _call(self, member: str, signature: str = "", *values: object, timeout_s: float = 25.0) -> list[object]:
        return await self._connection().call(SYSTEMD, SYSTEMD_PATH, MANAGER, member, signature, values, timeout_s=timeout_s)

    def _connection(self) -> Connection:
        link = self._link()
        if link is None:
            raise BusError("", "the connection to the system bus is lost", "try again")
        return link
