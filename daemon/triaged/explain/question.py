# SPDX-License-Identifier: Apache-2.0
"""What a person asks of the explainer, and the answer: `triagectl explain` and D-Bus Explain.

Nothing need have failed. Each cause that gives the error is held against the process as it is now, or, without a process, against
the machine.
"""
from __future__ import annotations

import errno as errors
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from triaged.errors import ConfigError, Gone, KernelError
from triaged.explain.hypotheses import HYPOTHESES
from triaged.explain.hypothesis import Hypothesis, explain
from triaged.explain.situation import Situation
from triaged.kernel.kernel_log import KernelLogReader
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_state import read_process_state
from triaged.kernel.process_table import ProcessTable
from triaged.model.cause import Blamed, Explanation
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.output.error_texts import LONGEST_LINE, parse_mention
from triaged.seccomp.syscalls import native_arch, number_of

KILLED, TIMED_OUT = SymptomKind.KILLED.value, SymptomKind.TIMED_OUT.value
_ERROR = re.compile(r"E[A-Z0-9]{2,14}")
_CALL = re.compile(r"[a-z_][a-z0-9_]{0,39}")
_MOST_ARGUMENTS = 6


@dataclass(frozen=True)
class Answer:
    """The explanation of a symptom, in a process or (None) on this machine. `hypotheses` are those that were thought of."""

    symptom: Symptom
    process: ProcessState | None
    explanation: Explanation
    hypotheses: tuple[Hypothesis, ...]

    def others(self) -> tuple[Hypothesis, ...]:
        """Without a process: causes that give the error too and of which nothing can be said without one."""
        if self.process is not None:
            return ()
        found = self.explanation
        told = {each.cause for each in found.causes} | {each.cause for each in found.ruled_out}
        told |= {each.cause for each in found.not_decidable} | {each.what for each in found.self_inflicted}
        out: dict[str, Hypothesis] = {}
        for each in self.hypotheses:
            # Some are thought of for any error: they say nothing of this one.
            is_meant = bool(each.errnos) or self.symptom.kind is not SymptomKind.CALL or each.cause == "seccomp."
            if is_meant and not any(cause.startswith(each.cause) for cause in told):
                out.setdefault(each.cause, each)
        return tuple(out.values())

    def other_rows(self) -> list[tuple[str, str, str]]:
        """What is not to blame, as (cause, outcome, because)."""
        found = self.explanation
        out = [(each.what, "self-inflicted", each.because) for each in found.self_inflicted]
        out += [(each.cause, "ruled-out", each.because) for each in found.ruled_out]
        out += [(each.cause, "not-decidable", each.why) for each in found.not_decidable]
        return out + [(each.cause, "also", " ".join(each.explanation.split("\n\n")[0].split())) for each in self.others()]

    def as_json(self) -> dict[str, Any]:
        """The answer as `--json` prints it."""
        symptom, who, found = self.symptom, self.process, self.explanation
        return {
            "symptom": {
                "kind": symptom.kind.value, "syscall": symptom.syscall, "errno": symptom.errno, "signal": symptom.signal,
                "text": symptom.text, "path": symptom.path, "arguments": list(symptom.arguments),
            },
            "process": {"pid": who.identity.pid, "comm": who.identity.comm, "uid": who.identity.uid} if who else None,
            "causes": [{**cause.as_json(), "rule": cause.rule, "subject_key": cause.subject_key} for cause in found.causes],
            "ruled_out": [{"cause": each.cause, "because": each.because} for each in found.ruled_out],
            "not_decidable": [{"cause": each.cause, "why": each.why} for each in found.not_decidable],
            "self_inflicted": [{"what": each.what, "because": each.because} for each in found.self_inflicted],
            "others": [{"cause": each.cause, "explanation": each.explanation} for each in self.others()],
        }


def parse_question(words: Sequence[str], arguments: Sequence[int] = (), path: str = "") -> Symptom:
    """The symptom in a person's words: a call and an error ("clone EAGAIN"), an error alone, "killed" (with a signal), "timed-out",
    or a line of output.

    Raises: ConfigError for words in which there is none.
    """
    if len(arguments) > _MOST_ARGUMENTS:
        raise ConfigError("arguments", 0, f"a call has at most {_MOST_ARGUMENTS} arguments, not {len(arguments)}")
    first = words[0] if words else ""
    symptom: Symptom
    if first == KILLED and len(words) <= 2:
        symptom = Symptom(SymptomKind.KILLED, signal=_signal(words[1] if len(words) == 2 and words[1] else "SIGKILL"))
    elif first == TIMED_OUT and not any(words[1:]):
        symptom = Symptom(SymptomKind.TIMED_OUT)
    elif len(words) == 1 and _ERROR.fullmatch(first):
        symptom = Symptom(SymptomKind.CALL, "", _error(first))
    elif len(words) == 2 and (_ERROR.fullmatch(words[1]) or words[1].isdecimal()) and _CALL.fullmatch(first):
        if number_of(native_arch(), first) is None:
            raise ConfigError("the question", 0, f"{shown(first)} is no system call", "ausyscall --dump lists them")
        symptom = Symptom(SymptomKind.CALL, first, _error(words[1]))
    else:
        symptom = _told(" ".join(words))
    return replace(symptom, arguments=tuple(arguments), path=path or symptom.path, seen_in=SeenIn.ASKED)


def _told(text: str) -> Symptom:
    if len(text) > LONGEST_LINE:
        raise ConfigError("the question", 0, f"a line of at most {LONGEST_LINE} characters, please")
    mention = parse_mention(text)
    if mention is None:
        remedy = "ask 'clone EAGAIN', 'killed', 'timed-out', or give the line that the test printed"
        raise ConfigError("the question", 0, f"no error of the operating system is in {shown(text)!r}", remedy)
    return mention.as_symptom()


def _error(name: str) -> str:
    """The error's name, also where its number is given, as strace and audit records have it."""
    if name.isdecimal():
        name = errors.errorcode.get(int(name), name)
    if not hasattr(errors, name):
        raise ConfigError("the question", 0, f"{name} is no error of this system", "see errno(3)")
    return "EAGAIN" if name == "EWOULDBLOCK" else name


def _signal(name: str) -> int:
    if name.isdecimal() and 0 < int(name) < signal.NSIG:
        return int(name)
    full = name if name.startswith("SIG") else f"SIG{name}"
    if full not in signal.Signals.__members__:
        raise ConfigError("the question", 0, f"{shown(name)} is no signal", "see signal(7)")
    return int(signal.Signals[full])


def answer(
    paths: KernelPaths, symptom: Symptom, hypotheses: Sequence[Hypothesis], pid: int = 0, *,
    identity: ProcessIdentity | None = None, with_filters: bool = False,
) -> Answer:
    """The explanation of a symptom, held against the process (0: the machine alone) as it is now. Looks through all of /proc.

    `with_filters`: reads the process's seccomp filters, which only root may. A process that was killed may be gone: of it the
    kernel log is asked.
    Raises: Gone, NotPermitted, Malformed where the process cannot be read.
    """
    state = None
    if pid:
        try:
            state = read_process_state(paths, pid, identity=identity, with_filters=with_filters)
        except Gone as error:
            if symptom.kind is not SymptomKind.KILLED:
                raise
            state = ProcessState(ProcessIdentity(pid), Unknown(str(error)))
    situation = Situation(symptom, state, paths, read_log=lambda: _log_lines(paths))
    concerned = tuple(each for each in hypotheses if each.concerns(symptom))
    return Answer(symptom, state, explain(situation, concerned), concerned)


def causes_and_others(
    paths: KernelPaths, table: ProcessTable, what: str, error: str, pid: int, arguments: Sequence[int], path: str
) -> tuple[Sequence[Blamed], Sequence[tuple[str, str, str]]]:
    """The answer as D-Bus gives it: the causes, and (cause, outcome, because) of the others. Raises: as the functions above."""
    symptom = parse_question([what, error] if error else [what], arguments, path)
    identity = table.identify(pid) if pid else None
    given = answer(paths, symptom, HYPOTHESES, pid, identity=identity)
    return given.explanation.causes, given.other_rows()


def _log_lines(paths: KernelPaths) -> tuple[str, ...]:
    """What the kernel log holds, back to the boot or as far as it goes; nothing where it may not be read."""
    try:
        reader = KernelLogReader(paths, from_start=True)
    except KernelError:
        return ()
    lines: list[str] = []
    try:
        while records := reader.read(4096):
            lines += [record.text for record in records]
    except KernelError:
        return tuple(lines)
    finally:
        reader.close()
    return tuple(lines)
