# SPDX-License-Identifier: Apache-2.0
"""The state directory: one JSON file for each finding, and the counter baselines. All of it is blocking.

A file is written beside its place and renamed, so that it is always a whole one: what was published survives a `kill -9`
of the daemon (the data is in the page cache then). It is not fsynced: after a power cut the newest findings may be missing or
cut short, and a short file is moved aside at the next start.
"""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

from triaged.errors import StateError
from triaged.model.finding import Finding, State
from triaged.model.fix import Fix, fix_as_dict, fix_from_dict
from triaged.model.verdict import Evidence, Kind, Severity

VERSION = 1
MAX_FILE_BYTES = 1 << 20
_SUFFIX = ".json"
_BROKEN = ".broken"
_NEW = ".new"
_FIELD_KINDS = {"str": str, "int": int, "bool": bool}


class _Newer(Exception):
    """A file that a newer triaged wrote."""


def finding_as_dict(finding: Finding) -> dict[str, Any]:
    """The finding for the state file; `finding_from_dict` reads it back."""
    return {
        "version": VERSION,
        "id": finding.identifier,
        "rule": finding.rule,
        "kind": finding.kind.value,
        "severity": int(finding.severity),
        "state": finding.state.value,
        "subject_key": finding.subject_key,
        "subject": dict(finding.subject),
        "summary": finding.summary,
        "first_seen_usec": finding.first_seen_usec,
        "last_seen_usec": finding.last_seen_usec,
        "count": finding.count,
        "owner_uid": finding.owner_uid,
        "evidence": [
            {"name": item.name, "value": item.value, "source": item.source, "time_usec": item.time_usec, "private": item.private}
            for item in finding.evidence
        ],
        "fixes": [fix_as_dict(fix) for fix in finding.fixes],
        "references": list(finding.references),
        "reason": finding.reason,
        "pid": finding.pid,
        "expires_after_s": finding.expires_after_s,
        "extra": dict(finding.extra),
    }


def _typed(data: Mapping[str, Any], name: str, kind: type, default: object = None) -> Any:
    value = data.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name!r} is {'missing' if name not in data else type(value).__name__}, {kind.__name__} is needed")
    return value


def _fix(data: object) -> Fix:
    """The fix of a state file. Raises: ValueError."""
    if not isinstance(data, dict):
        raise ValueError("'fixes' holds something else")
    try:
        fix = fix_from_dict(data)
    except TypeError as error:
        raise ValueError(f"'fixes': {error}") from error
    for each in fields(fix):
        kind = _FIELD_KINDS.get(str(each.type))
        if kind is not None and type(getattr(fix, each.name)) is not kind:
            raise ValueError(f"{each.name!r} of a fix is not {each.type}")
    return fix


def finding_from_dict(data: Mapping[str, Any]) -> Finding:
    """The finding that `finding_as_dict` wrote. Raises: ValueError."""
    owner = data.get("owner_uid")
    if owner is not None and (not isinstance(owner, int) or isinstance(owner, bool)):
        raise ValueError("'owner_uid' is not a user")
    evidence = []
    for item in _typed(data, "evidence", list, []):
        if not isinstance(item, dict) or not isinstance(item.get("value"), (str, int, float, bool)):
            raise ValueError("'evidence' holds something else")
        evidence.append(
            Evidence(
                _typed(item, "name", str), item["value"], _typed(item, "source", str, ""), _typed(item, "time_usec", int, 0),
                _typed(item, "private", bool, True),
            )
        )
    return Finding(
        identifier=_typed(data, "id", str),
        rule=_typed(data, "rule", str),
        kind=Kind(data.get("kind")),
        severity=Severity(_typed(data, "severity", int)),
        state=State(data.get("state")),
        subject_key=_typed(data, "subject_key", str),
        subject=_typed(data, "subject", dict),
        summary=_typed(data, "summary", str),
        first_seen_usec=_typed(data, "first_seen_usec", int),
        last_seen_usec=_typed(data, "last_seen_usec", int),
        count=_typed(data, "count", int),
        owner_uid=owner,
        evidence=tuple(evidence),
        fixes=tuple(_fix(item) for item in _typed(data, "fixes", list, [])),
        references=tuple(str(item) for item in _typed(data, "references", list, [])),
        reason=_typed(data, "reason", str, ""),
        pid=_typed(data, "pid", int, 0),
        expires_after_s=_typed(data, "expires_after_s", int, 0),
        extra={str(key): str(value) for key, value in _typed(data, "extra", dict, {}).items()},
    )


def counter_bytes(key: str) -> int:
    """How much of the counters' file a baseline takes at most."""
    return (len(key) if key.isascii() and key.isprintable() else 6 * len(key)) + 2 * key.count('"') + 2 * key.count("\\") + 24


@dataclass
class Loaded:
    """What was found at the start. `reserved` are ids whose files are left alone; `complaints` are for a person."""

    findings: list[Finding] = field(default_factory=list)
    reserved: set[str] = field(default_factory=set)
    complaints: list[StateError] = field(default_factory=list)


class FindingFiles:
    """The files below one state directory. Every method raises OSError where the directory fails it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._findings = os.path.join(directory, "findings")
        self._counters = os.path.join(directory, "counters.json")

    def prepare(self) -> None:
        """Makes the directories (command lines stand in the files: they are their owner's only)."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        os.makedirs(self._findings, mode=0o700, exist_ok=True)

    def path(self, identifier: str) -> str:
        """The file of a finding."""
        return os.path.join(self._findings, identifier + _SUFFIX)

    def write(self, finding: Finding) -> None:
        """Writes a finding's file in the place of the one before."""
        self._replace(self.path(finding.identifier), finding_as_dict(finding))

    def remove(self, identifier: str) -> None:
        """Removes a finding's file, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(self.path(identifier))

    def _replace(self, path: str, data: Mapping[str, Any]) -> None:
        # Surrogates (names that are not UTF-8) become \udcNN escapes of ASCII and come back as they were.
        content = json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode("ascii")
        new = path + _NEW
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
        finally:
            os.close(descriptor)
        os.replace(new, path)

    def load(self) -> Loaded:
        """All findings. A file that cannot be read as one is moved aside; one that a newer version wrote is left alone."""
        out = Loaded()
        for name in sorted(os.listdir(self._findings)):
            path = os.path.join(self._findings, name)
            if name.endswith(_NEW):
                with suppress(OSError):
                    os.unlink(path)  # what the last run did not finish; the whole file is beside it
            if not name.endswith(_SUFFIX):
                continue
            identifier = name.removesuffix(_SUFFIX)
            try:
                finding = finding_from_dict(self._read(path))
                if finding.identifier != identifier:
                    raise ValueError(f"it holds finding {finding.identifier[:80]!r}")
                out.findings.append(finding)
            except _Newer as error:
                out.reserved.add(identifier)
                out.complaints.append(StateError(path, f"{error}, leaving it alone"))
            except OSError as error:
                out.reserved.add(identifier)
                out.complaints.append(StateError(path, f"cannot be read ({error.strerror}), leaving it alone"))
            except ValueError as error:
                complaint = self._put_aside(path, error)
                out.complaints.append(complaint)
                if os.path.lexists(path):
                    out.reserved.add(identifier)
        return out

    def _read(self, path: str) -> Mapping[str, Any]:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        if not content:
            raise ValueError("empty")
        try:
            data = json.loads(content)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(data, dict):
            raise ValueError("not an object")
        version = data.get("version")
        if isinstance(version, int) and version > VERSION:
            raise _Newer(f"written by a newer version of triaged (format {version}, this one knows {VERSION})")
        if version != VERSION:
            raise ValueError(f"unknown format {version!r}")
        return data

    def _put_aside(self, path: str, error: ValueError) -> StateError:
        aside = path + _BROKEN
        try:
            os.replace(path, aside)
        except OSError as failure:
            return StateError(path, f"broken ({error}), ignoring it", f"it could not be moved aside: {failure.strerror}")
        return StateError(path, f"broken ({error}), ignoring it", f"it was moved to {aside}")

    def load_counters(self, boot: str) -> tuple[dict[str, int], list[StateError]]:
        """The counter baselines of this boot. Those of another boot say nothing any more."""
        try:
            data = self._read(self._counters)
            counters = _typed(data, "counters", dict)
            if not all(isinstance(value, int) for value in counters.values()):
                raise ValueError("'counters' holds something else")
            return (dict(counters) if data.get("boot") == boot else {}), []
        except FileNotFoundError:
            return {}, []
        except _Newer as error:
            return {}, [StateError(self._counters, f"{error}, starting with none")]
        except ValueError as error:
            return {}, [self._put_aside(self._counters, error)]

    def write_counters(self, boot: str, counters: Mapping[str, int]) -> None:
        """Writes the counter baselines."""
        self._replace(self._counters, {"version": VERSION, "boot": boot, "counters": dict(counters)})
