# SPDX-License-Identifier: Apache-2.0
"""What was there before a fix, written down durably before anything is changed.

One JSON file per fix in a directory of root's own. Files of fixes that hold are kept for ever, of the others the last hundred.
"""
from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triaged.errors import FixBusy, FixRefused, StateError
from triaged.fixers.fixer import Caller, Outcome, RecordState
from triaged.fixers.own_file import OwnFile
from triaged.fixers.part import Original
from triaged.model.fix import Fix, fix_as_dict, fix_from_dict

log = logging.getLogger(__name__)

VERSION = 1
KEPT_CLOSED = 100


@dataclass(frozen=True)
class Record:
    """One fix, from before it was applied. Times in µs since the epoch; `originals` by the name of the part."""

    identifier: str
    finding: str
    fix: Fix
    state: RecordState
    originals: Mapping[str, Original]
    caller: Caller
    boot_id: str
    saved_usec: int
    changed_usec: int
    old: str = ""
    new: str = ""
    message: str = ""
    verification: str = ""

    def outcome(self) -> Outcome:
        """The record as the callers see it."""
        return Outcome(
            self.identifier, self.finding, self.fix.key, self.fix.title, self.state, self.message, self.old, self.new,
            self.verification, self.caller, self.changed_usec,
        )


def record_id(key: str, saved_usec: int) -> str:
    """The name of a record: it sorts by time and differs per fix."""
    return f"{saved_usec:016d}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


class Records:
    """The records in `directory`, which is made (mode 0700) if it is not there. All methods block."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.broken: dict[str, str] = {}

    def open(self) -> None:
        """Makes the directory.

        Raises: StateError.
        """
        try:
            os.makedirs(self.directory, 0o700, exist_ok=True)
        except OSError as error:
            raise StateError(self.directory, os.strerror(error.errno or 0).lower()) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the directory against other processes.

        Raises: FixBusy if another one holds it; StateError.
        """
        self.open()
        path = f"{self.directory}/lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(path, os.strerror(error.errno or 0).lower()) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FixBusy("another process is applying or undoing a fix", "try again in a moment") from error
            yield
        finally:
            os.close(descriptor)

    def all(self) -> tuple[Record, ...]:
        """Every record, oldest first. One that cannot be read is logged once and kept in `broken`.

        Raises: StateError.
        """
        try:
            names = sorted(name for name in os.listdir(self.directory) if name.endswith(".json") and name[0] != ".")
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StateError(self.directory, os.strerror(error.errno or 0).lower()) from error
        out = []
        for name in names:
            try:
                text = OwnFile(self.directory, name).read()
                if text is not None:
                    out.append(_parse(text))
            except (ValueError, KeyError, TypeError, FixRefused) as error:
                if name not in self.broken:
                    log.warning("record %s/%s cannot be read (%s), ignoring it", self.directory, name, error)
                self.broken[name] = str(error)
        return tuple(out)

    def put(self, record: Record) -> None:
        """Writes the record so that it survives a crash of the machine, then drops the oldest closed ones.

        Raises: FixFailed, FixRefused.
        """
        OwnFile(self.directory, f"{record.identifier}.json").write(json.dumps(_as_dict(record), indent=1) + "\n")
        if not record.state.is_open:
            closed = [other for other in self.all() if not other.state.is_open]
            for old in closed[: max(0, len(closed) - KEPT_CLOSED)]:
                OwnFile(self.directory, f"{old.identifier}.json").write(None)


def _as_dict(record: Record) -> dict[str, Any]:
    return {
        "version": VERSION,
        "id": record.identifier,
        "finding": record.finding,
        "fix": fix_as_dict(record.fix),
        "state": record.state.value,
        "originals": {name: {"value": item.value, "more": dict(item.more)} for name, item in record.originals.items()},
        "caller": {"uid": record.caller.uid, "bus_name": record.caller.bus_name},
        "boot_id": record.boot_id,
        "saved_usec": record.saved_usec,
        "changed_usec": record.changed_usec,
        "old": record.old,
        "new": record.new,
        "message": record.message,
        "verification": record.verification,
    }


def _parse(text: str) -> Record:
    data = json.loads(text)
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']}, not {VERSION}")
    return Record(
        identifier=data["id"],
        finding=data["finding"],
        fix=fix_from_dict(data["fix"]),
        state=RecordState(data["state"]),
        originals={name: Original(item["value"], item["more"]) for name, item in data["originals"].items()},
        caller=Caller(data["caller"]["uid"], data["caller"]["bus_name"]),
        boot_id=data["boot_id"],
        saved_usec=data["saved_usec"],
        changed_usec=data["changed_usec"],
        old=data["old"],
        new=data["new"],
        message=data["message"],
        verification=data["verification"],
    )
