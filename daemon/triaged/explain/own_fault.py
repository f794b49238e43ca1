# SPDX-License-Identifier: Apache-2.0
"""What the program under test did to itself: then the machine is not to blame, whatever the error looks like."""
from __future__ import annotations

from triaged.explain import calls
from triaged.explain.access import access_of
from triaged.explain.calls import calls_of
from triaged.explain.hypothesis import hypothesis
from triaged.explain.mounts import EXPECTED
from triaged.explain.programs import umask
from triaged.explain.situation import Situation
from triaged.explain.view import credentials_of, file_facts, subject_path
from triaged.model.cause import Blamed, Outcome, SelfInflicted
from triaged.model.limit import Unknown
from triaged.model.quoting import shown
from triaged.model.symptom import SymptomKind

SIGKILL, SIGTERM, SIGABRT, SIGINT, SIGHUP, SIGQUIT, SIGPIPE, SIGSEGV = 9, 15, 6, 2, 1, 3, 13, 11
_SENT = (SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGQUIT)
_RAISED = (SIGABRT, SIGSEGV, SIGPIPE, 4, 5, 7, 8)
_KILLS = {"kill": 1, "tkill": 1, "tgkill": 2, "pidfd_send_signal": 1, "rt_sigqueueinfo": 1}


@hypothesis("file", errnos=("ENOENT", "ENOTDIR", "EISDIR", "EEXIST", "ENOTEMPTY", "ELOOP", "ENAMETOOLONG"))
def wrong_path(situation: Situation) -> Outcome | None:
    """The path does not exist, or is something else than the program takes it for; and it is none that machines have to have."""
    symptom, path = situation.symptom, subject_path(situation)
    meant = calls_of(symptom)
    if meant and not meant & (calls.ON_PATHS | {"getdents64", "bind", "connect"}):
        return None
    if symptom.errno != "ENOENT":
        return SelfInflicted("file", f"{shown(path) or 'the path'} is not what the program takes it for ({symptom.errno})")
    if not path:
        return SelfInflicted("file", "a file that does not exist") if meant else None
    if any(path == point or path.startswith(point + "/") for point in EXPECTED):
        return None  # what is missing there may be the machine's matter
    facts = file_facts(situation, path)
    if not isinstance(facts, Unknown) and facts.node is not None:
        interpreter = _missing_interpreter(situation, facts.head) if meant & calls.EXECS else ""
        if interpreter:
            return SelfInflicted("file", f"{shown(path)} asks for the interpreter {shown(interpreter)}, which does not exist")
        return SelfInflicted("file", f"{shown(path)} did not exist then, and does now")
    return SelfInflicted("file", f"there is no {shown(path)}")


def _missing_interpreter(situation: Situation, head: bytes) -> str:
    if not head.startswith(b"#!"):
        return ""
    words = head[2:].split(b"\n")[0].split()
    if not words:
        return ""
    interpreter = words[0].decode("utf-8", "surrogateescape")
    facts = file_facts(situation, interpreter) if interpreter.startswith("/") else Unknown("relative")
    return interpreter if not isinstance(facts, Unknown) and facts.node is None else ""


@hypothesis("file.mode", errnos=("EACCES", "EPERM"))
def closed_by_mode(situation: Situation) -> Outcome | None:
    """The mode or owner of a file or directory on the way forbids it, and it was never meant to be open: a file of somebody else, a
    program without the right to be executed."""
    symptom, who = situation.symptom, credentials_of(situation)
    if symptom.errno == "EPERM" and not calls_of(symptom) & (calls.CHMODS | calls.TIMES | calls.REMOVALS | calls.RENAMES):
        return None
    access = access_of(situation)
    if isinstance(access, Unknown) or who is None or who.uids[1] == 0:
        if isinstance(access, Unknown) or access.obstacle is None or not access.wanted & 1:
            return None
        # Root too may execute only what somebody may execute.
        mode = f"its mode is {access.obstacle.mode & 0o7777:04o}"
        return SelfInflicted("file.mode", f"{shown(access.obstacle.path)} is no program: {mode}")
    obstacle = access.obstacle
    if obstacle is None:
        return None
    if isinstance(umask.judge(situation), Blamed):
        return None
    mode = f"mode {obstacle.mode & 0o7777:04o}, user {obstacle.uid}, group {obstacle.gid}"
    return SelfInflicted("file.mode", f"{shown(obstacle.path)} has {mode}, which closes it to user {who.uids[3]}")


@hypothesis("signal", kinds=(SymptomKind.KILLED,), signals=_SENT)
def sent_by_the_run(situation: Situation) -> Outcome | None:
    """The signal came from the run itself: from the test, its parent, or the command that gave up waiting."""
    symptom, process = situation.symptom, situation.process
    pid = (process.stands_for or process.identity.pid) if process is not None else 0
    if _is_out_of_memory(situation, pid):
        return None
    sender = symptom.sender_pid
    for deed in situation.deeds:
        at = _KILLS.get(deed.syscall)
        if at is None or len(deed.arguments) <= at or deed.arguments[at] & 0xFFFFFFFF != symptom.signal:
            continue
        target = _signed(deed.arguments[0])
        is_for_it = target == pid or deed.syscall == "pidfd_send_signal" or target in (0, -1, -pid)
        if (sender and deed.pid == sender) or (not sender and pid and is_for_it):
            return SelfInflicted("signal", f"{shown(deed.comm)} (pid {deed.pid}) sent signal {symptom.signal} by {deed.syscall}()")
    if not sender:
        return None
    if sender == pid:
        return SelfInflicted("signal", f"the process sent itself signal {symptom.signal}")
    for each in situation.ancestors:
        if each.identity.pid == sender:
            name = shown(each.identity.comm) or "its ancestor"
            return SelfInflicted("signal", f"{name} (pid {sender}), which started it, sent signal {symptom.signal}")
    return None


def _signed(register: int) -> int:
    low = register & 0xFFFFFFFF
    return low - (1 << 32) if low & 0x80000000 else low


def _is_out_of_memory(situation: Situation, pid: int) -> bool:
    # An OOM kill is sent by the kernel in the name of whoever asked for memory: often the victim itself.
    if any(change.rise > 0 for change in situation.changes().values() if change.name in ("oom_kill", "oom_group_kill")):
        return True
    return any(f"Killed process {pid} " in line for line in situation.log())


@hypothesis("signal", kinds=(SymptomKind.KILLED,), signals=_RAISED)
def crashed(situation: Situation) -> Outcome | None:
    """The process crashed or aborted: a signal that a program raises by what it does."""
    symptom = situation.symptom
    names = {SIGABRT: "aborted (SIGABRT)", SIGSEGV: "crashed (SIGSEGV)", SIGPIPE: "wrote to a pipe without a reader (SIGPIPE)"}
    return SelfInflicted("signal", f"the process {names.get(symptom.signal, f'raised signal {symptom.signal}')}")


OWN_FAULTS = (wrong_path, closed_by_mode, sent_by_the_run, crashed)
