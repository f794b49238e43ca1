# SPDX-License-Identifier: Apache-2.0
"""Dumps of seccomp filters, and the errors of reading them, as D-Bus values: between triaged and its helper."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triaged.bus.codec import variant
from triaged.bus.seam import Variant, plain
from triaged.errors import BusError, Gone, KernelError, TriagedError
from triaged.model.filters import FilterDump, InstalledFilter

NO_SUCH_PROCESS = "NoSuchProcess"
NOT_READABLE = "FiltersNotReadable"


def dump_to_bus(dump: FilterDump) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A dump as a{sv} and aa{sv}."""
    head = {
        "Mode": variant(dump.mode), "NoNewPrivileges": variant(dump.has_no_new_privileges), "StoppedNsec": variant(dump.stopped_ns),
    }
    filters = [{"Instructions": Variant("ay", one.instructions), "Logged": variant(one.is_logged)} for one in dump.filters]
    return head, filters


def dump_from_bus(pid: int, head: Mapping[str, Any], filters: Sequence[Mapping[str, Any]]) -> FilterDump:
    """The dump that `dump_to_bus` wrote. Raises: BusError."""
    try:
        found = tuple(InstalledFilter(bytes(plain(one["Instructions"])), bool(plain(one["Logged"]))) for one in filters)
        return FilterDump(
            pid, str(plain(head["Mode"])), found, bool(plain(head["NoNewPrivileges"])), int(plain(head["StoppedNsec"]))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BusError("", f"triaged-helper answered what is no dump: {error!r}", "are both of the same version?") from error


def dump_error(prefix: str, error: KernelError) -> BusError:
    """The D-Bus error `prefix`.NAME for an error of reading filters."""
    if isinstance(error, Gone):
        return BusError(f"{prefix}.{NO_SUCH_PROCESS}", f"{error.path}: there is no such process (any more)")
    return BusError(f"{prefix}.{NOT_READABLE}", error.shown())


def kernel_error(pid: int, error: BusError) -> TriagedError:
    """The error of reading filters that a D-Bus error of the helper stands for; itself if it stands for none."""
    last = error.name.rsplit(".", 1)[-1]
    if last == NO_SUCH_PROCESS:
        return Gone(f"/proc/{pid}")
    return KernelError(f"/proc/{pid}", str(error).removeprefix(f"/proc/{pid}: "), error.remedy) if last == NOT_READABLE else error
