# SPDX-License-Identifier: Apache-2.0
"""What security modules wrote into the kernel's log about the process of a symptom."""
from __future__ import annotations

import re
from collections.abc import Iterable

from triaged.explain.replay import is_old
from triaged.explain.situation import Situation
from triaged.explain.view import pids_of

_APPARMOR = re.compile(r'apparmor="DENIED"')
_SELINUX = re.compile(r"\bavc:\s+denied\b")
_YAMA = re.compile(r'\bptrace (attach|of|traceme)?.*\bwas attempted by "(?P<who>.*)"\[(?P<pid>\d+)\]')
_PID = re.compile(r"\bpid=(\d+)\b")


def apparmor_denials(situation: Situation) -> tuple[str, ...]:
    """AppArmor's refusals of the process or what it inherited its profile from (type 1400)."""
    return _of_process(situation, _APPARMOR)


def selinux_denials(situation: Situation) -> tuple[str, ...]:
    """SELinux's refusals of the process (access vector cache messages)."""
    return _of_process(situation, _SELINUX)


def yama_denials(situation: Situation) -> tuple[str, ...]:
    """Yama's refusals of the process."""
    pids = _pids(situation)
    found = []
    for line in situation.log():
        match = _YAMA.search(line)
        if match and (not pids or int(match.group("pid")) in pids):
            found.append(line)
    return tuple(found)


def denial_in_log(situation: Situation) -> str:
    """The module that refused something to the process with the symptom's error, by the log: its name, or ""."""
    if apparmor_denials(situation):
        return "AppArmor"
    if selinux_denials(situation):
        return "SELinux"
    return "Yama" if situation.symptom.syscall in ("", "ptrace") and yama_denials(situation) else ""


def is_about_refusal(situation: Situation, lines: Iterable[str]) -> bool:
    """Whether one of these lines is a module's refusal of the process."""
    pids = _pids(situation)
    found = (_PID.search(line) for line in lines if _APPARMOR.search(line) or _SELINUX.search(line))
    return any(match is not None and int(match[1]) in pids for match in found)


def _pids(situation: Situation) -> set[int]:
    return set(pids_of(situation))


def _of_process(situation: Situation, pattern: re.Pattern[str]) -> tuple[str, ...]:
    process = situation.process
    pids = _pids(situation)
    found = []
    for line in situation.log():
        if not pattern.search(line):
            continue
        match = _PID.search(line)
        # A child that was not seen, perhaps; comm tells it apart from another program's. What stands for it has another's comm.
        comm = process.identity.comm if process is not None and not is_old(process) else ""
        by_name = comm != "" and f'comm="{comm}"' in line
        if match is None or not pids or int(match.group(1)) in pids or by_name:
            found.append(line)
    return tuple(found)
