# SPDX-License-Identifier: Apache-2.0
"""Whether mode, owner and mount explain that a file was refused (EACCES, EPERM): what is left then is a security module's."""
from __future__ import annotations

from dataclasses import dataclass

from triaged.explain import calls
from triaged.explain.calls import calls_of
from triaged.explain.situation import Situation
from triaged.explain.view import credentials_of, file_facts, subject_path
from triaged.model.limit import Unknown
from triaged.model.process_state import Mount
from triaged.model.surroundings import EXECUTE, READ, WRITE, FileFacts, Node

_O_ACCMODE, _O_CREAT, _O_TRUNC, _O_RDONLY, _O_WRONLY = 3, 0o100, 0o1000, 0, 1
_CHANGES_DIRECTORY = calls.DIRECTORIES | calls.NODES | calls.LINKS | calls.SYMLINKS | calls.RENAMES | calls.REMOVALS


@dataclass(frozen=True)
class Access:
    """A file that the symptom is about. `wanted` are READ, WRITE, EXECUTE as far as the call tells; `obstacle` is the first file on
    the way whose mode stops the process, None if none does. `is_certain` is False where the wanted rights were guessed."""

    facts: FileFacts
    wanted: int
    obstacle: Node | None
    is_certain: bool
    mount: Mount | None


def access_of(situation: Situation) -> Access | Unknown:
    """How the process stands to the file of the symptom."""
    path, who, process = subject_path(situation), credentials_of(situation), situation.process
    if not path or process is None:
        return Unknown("which file it was is not known")
    if who is None:
        return Unknown("who the process is could not be read")
    facts = file_facts(situation, path)
    if isinstance(facts, Unknown):
        return facts
    wanted, is_certain = _wanted(situation)
    changes = bool(calls_of(situation.symptom)) and calls_of(situation.symptom) <= _CHANGES_DIRECTORY
    if changes:
        obstacle = next((each for each in facts.way if not each.permits(who, EXECUTE)), None)
        if obstacle is None and facts.directory is not None and not facts.directory.permits(who, WRITE):
            obstacle = facts.directory
    else:
        obstacle = facts.obstacle(who, wanted)
        if obstacle is None and wanted & EXECUTE and facts.node is not None and not facts.node.is_regular:
            obstacle = facts.node  # execve() of a directory or a device is EACCES, whatever its mode
    return Access(facts, wanted, obstacle, is_certain, process.mount_of(facts.path))


def _wanted(situation: Situation) -> tuple[int, bool]:
    symptom = situation.symptom
    meant = calls_of(symptom)
    at = {"open": 1, "openat": 2}.get(symptom.syscall)
    if at is not None and len(symptom.arguments) > at:
        flags = symptom.arguments[at]
        mode = flags & _O_ACCMODE
        wanted = READ if mode == _O_RDONLY else WRITE if mode == _O_WRONLY else READ | WRITE
        return wanted | (WRITE if flags & (_O_CREAT | _O_TRUNC) else 0), True
    if meant & calls.EXECS:
        return EXECUTE, True
    if meant and meant <= calls.LOOKS:
        return 0, True
    if meant == {"chdir"}:
        return EXECUTE, True
    # What a text says of an open is not known: a mode that forbids writing explains it as well as one that forbids reading.
    return READ | WRITE, False
