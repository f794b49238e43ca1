# SPDX-License-Identifier: Apache-2.0
"""The daemon as a command sees it: a connection, and errors that say what to do when there is none."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from triaged.cli.style import safe
from triaged.errors import BusError

if TYPE_CHECKING:
    from triaged.bus.client import BlockingClient

NO_SUCH_FINDING = "org.triaged.Triage1.Error.NoSuchFinding"
# Errors that mean that nobody is there, by the last part of their names. Those of activation come from the bus or from systemd.
_NOBODY = {"ServiceUnknown", "NameHasNoOwner", "NoServer", "FileNotFound", "Disconnected", "NoReply"}
_NOT_STARTED = ("org.freedesktop.DBus.Error.Spawn.", "org.freedesktop.systemd1.")
REMEDY = "start it with 'systemctl start triaged', name its bus with --bus, or look without it: 'triagectl scan'"


def bus_name(where: str) -> str:
    """The bus in words."""
    return f"the {where} bus" if where in ("system", "session") else f"the bus at {safe(where)}"


def is_nobody_there(error: BusError) -> bool:
    """Whether the error means that the bus or the daemon is not there, and not that it refused."""
    return not error.name or error.name.rsplit(".", 1)[-1] in _NOBODY or error.name.startswith(_NOT_STARTED)


def unreachable(where: str, error: BusError) -> BusError:
    """The error as a person should read it."""
    if is_nobody_there(error):
        return BusError(error.name, f"the daemon does not answer on {bus_name(where)}: {error}", REMEDY)
    return error


@contextmanager
def daemon(where: str) -> Iterator[BlockingClient]:
    """A connection to the daemon. Raises BusError, with what to do, where it does not answer."""
    # asyncio and the D-Bus library are most of the start; commands that need no daemon do without.
    from triaged.bus.client import BlockingClient

    try:
        with BlockingClient(where) as client:
            yield client
    except BusError as error:
        raise unreachable(where, error) from error
