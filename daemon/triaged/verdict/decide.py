# SPDX-License-Identifier: Apache-2.0
"""Machine or code: for each failed thing, which of the kernel's incidents belongs to it, and what explains that.

A cause is claimed where three things come together: a call failed or a process was killed (the kernel tells, or, where nothing
could be traced, the output), the failed thing says so or died of it, and a hypothesis holds against the state of the machine. An
error that no call gave was made up by the test itself.
"""
from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from triaged.explain.calls import calls_behind, denied_calls
from triaged.explain.hypothesis import Hypothesis, explain
from triaged.explain.situation import Situation
from triaged.kernel.traced_calls import untraced
from triaged.model.cause import Explanation, RuledOut, Status
from triaged.model.mention import FailedStage, Failure, Mention, OutputReport
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.output.error_texts import trapped_syscall
from triaged.run.record import Incident, Role, RunRecord
from triaged.seccomp.syscalls import audit_arch_of, name_of, native_arch
from triaged.verdict.report import Charge, FailureVerdict, Report, Seen, Verdict, best, shell_status

_OF_FILES = "command-line-arguments"  # what go test calls a package that is given as a list of files
_SLACK_NS = 100_000_000
_MENTIONS = 40
_OF_TESTS = frozenset({Role.TEST, Role.CHILD})
# What can end a process from outside of it. Others (SIGSEGV, SIGABRT ...) are its own doing as far as nothing else is seen.
_DEADLY = frozenset({signal.SIGKILL, signal.SIGSYS, signal.SIGXCPU, signal.SIGXFSZ})
_OF_THE_WHOLE = frozenset({FailedStage.PACKAGE, FailedStage.COMMAND})
_GIVEN_BY_FILTERS = frozenset({"EPERM", "ENOSYS", "EACCES"})
_ONE_TEST = re.compile(r"^\^(\w+(?:\$/\^\w+)*)\$$")
# What lies in t.TempDir() was made by the test: that it cannot be used says nothing of the machine, unless it is proved.
_OWN_FILE = re.compile(r"/(?:Test|Fuzz|Benchmark)\w*\d+/\d{3}(?:/|$)")
# Calls whose refusal Go does not tell as an error: it crashes, panics on a nil pointer, hangs, or prints nothing (measured with
# Go 1.27; config/seccomp/go-workloads.toml).
_SWALLOWED = frozenset({
    "getsockname", "getpeername", "close", "exit_group", "futex", "arch_prctl", "rt_sigprocmask", "sigaltstack", "rt_sigreturn",
    "rt_sigaction", "write", "epoll_ctl", "epoll_pwait", "mmap", "fcntl", "munmap", "madvise", "sched_yield", "tgkill",
})


@dataclass
class _Sign:
    """A symptom of one failed thing, with where to explain it; `count` over all processes that showed it."""

    situation: Situation
    count: int
    mention: Mention | None = None


class Judge:
    """Judges one run."""

    def __init__(self, record: RunRecord, hypotheses: Sequence[Hypothesis]) -> None:
        self._record = record
        self._hypotheses = hypotheses
        self._explained: dict[int, Explanation] = {}
        self._told: dict[tuple[int, str, str], Situation] = {}
        self._has_tests = any(incident.role in _OF_TESTS for incident in record.incidents)
        self._has_filter = any(
            process is not None and process.seccomp_mode == "filter"
            for process in (record.root, *(incident.process for incident in record.incidents))
        ) or any(deed.syscall == "seccomp" or (deed.syscall == "prctl" and deed.arguments[:1] == (22,)) for deed in record.deeds)
        for incident in record.incidents:
            incident.situation.deeds = tuple(record.deeds)
            incident.situation.cpus_used = record.cpus_used
            incident.situation.settle()

    def judge(self, output: OutputReport) -> Report:
        """The report of the run."""
        record = self._record
        status = shell_status(record.wait_status)
        verdicts: tuple[FailureVerdict, ...] = ()
        if status:
            only = _only_test(record.argv)
            failures = [replace(each, test=only) if _lacks_test(each) else each for each in output.failures]
            verdicts = _ranked([self._failure(failure) for failure in failures])
        words = {each.verdict for each in verdicts}
        if not status:
            verdict = Verdict.PASSED
        else:
            order = (Verdict.MACHINE, Verdict.UNDECIDED, Verdict.CODE)
            verdict = next((word for word in order if word in words), Verdict.CODE)
        seen = tuple(Seen(each.symptom, each.program, each.package, each.role) for each in record.incidents)
        return Report(
            verdict, status, record.argv, verdicts, output.results, seen, record.blind, record.started_usec, record.ended_usec
        )

    def _failure(self, failure: Failure) -> FailureVerdict:
        trial = _Trial(failure)
        for mention in failure.mentions[:_MENTIONS]:
            found = self._signs_of(mention, failure)
            if found is None:
                trial.reasons.append(f"no system call of it gave {mention.errno}: the text is the program's own")
            for sign in found or ():
                trial.hear(sign, self._explain(sign.situation))
        if not trial.charges and not trial.reasons:
            for sign in self._unspoken(failure):
                trial.hear(sign, self._explain(sign.situation))
        return trial.verdict()

    def _explain(self, situation: Situation) -> Explanation:
        key = id(situation)
        if key not in self._explained:
            self._explained[key] = explain(situation, self._hypotheses)
        return self._explained[key]

    # Which incidents belong to a line of output

    def _signs_of(self, mention: Mention, failure: Failure) -> list[_Sign] | None:
        """The signs that a line tells of; None where the kernel says that there was no such thing."""
        matching = self._matching(mention, failure)
        if matching:
            return [self._named(sign) for sign in _by_call(matching, mention)]
        symptom = mention.as_symptom()
        if mention.kind is SymptomKind.KILLED and mention.signal == signal.SIGSYS and not symptom.syscall:
            number = trapped_syscall(failure.text)
            name = name_of(audit_arch_of(native_arch()), number) if number is not None else None
            symptom = replace(symptom, syscall=name or "")
        if self._was_followed(failure) and self._was_not(mention):
            return None
        return [self._sign(symptom, failure, mention)]

    def _named(self, sign: _Sign) -> _Sign:
        """The sign with its line, and with the path in it where the trace has none: of most calls it tells no arguments."""
        situation, mention = sign.situation, sign.mention
        if mention is None or (situation.symptom.text and (situation.symptom.path or not mention.path)):
            return sign
        key = (id(situation), mention.path, mention.text)
        if key not in self._told:
            before = situation.symptom
            symptom = replace(before, path=before.path or mention.path, text=before.text or mention.text)
            self._told[key] = replace(situation, symptom=symptom)
        return replace(sign, situation=self._told[key])

    def _was_followed(self, failure: Failure) -> bool:
        """Whether what failed ran under the trace, as far as its package says which process that was."""
        if failure.stage is not FailedStage.TEST or failure.package in ("", _OF_FILES):
            return not self._record.was_deaf
        return failure.package in self._record.followed

    def _was_not(self, mention: Mention) -> bool:
        """Whether the trace says that no call gave this error."""
        if not self._record.is_traced or mention.kind is not SymptomKind.CALL or not mention.errno.startswith("E"):
            return False
        if mention.errno.startswith("EAI_"):
            return False
        if mention.errno == "EAGAIN":
            return True  # of the calls that are left out it says "nothing there yet", which nobody prints
        behind = calls_behind(mention.operation, mention.syscall)
        if self._has_filter and mention.errno in _GIVEN_BY_FILTERS and behind & untraced():
            return False  # those are traced only from a moment after a filter was installed
        return not any(
            errno == mention.errno and (not behind or call in behind or not call) for call, errno in self._record.hidden
        )

    def _matching(self, mention: Mention, failure: Failure) -> list[Incident]:
        found = [incident for incident in self._of(failure) if _tells_of(mention, incident.symptom)]
        behind = calls_behind(mention.operation, mention.syscall)
        if behind:
            found = [each for each in found if each.symptom.syscall in behind or not each.symptom.syscall] or found
        if mention.path:
            same = [each for each in found if each.symptom.path == mention.path]
            found = same or [each for each in found if not each.symptom.path] or found
        return found

    def _of(self, failure: Failure) -> Iterable[Incident]:
        """The incidents in processes that the failed thing may be about."""
        only_tests = failure.stage is FailedStage.TEST and self._has_tests
        for incident in self._record.incidents:
            if only_tests and incident.role not in _OF_TESTS:
                continue
            if failure.package and incident.package and incident.package != failure.package:
                continue
            yield incident

    def _unspoken(self, failure: Failure) -> list[_Sign]:
        """What a failed thing does not speak of: what killed its processes, calls that seccomp refused where Go does not say so."""
        found = [incident for incident in self._of(failure) if _goes_without_saying(incident, failure)]
        if found:
            return _by_call(found, None)
        if self._has_filter and failure.stage is not FailedStage.TEST:
            # What was refused may have gone by before the trace told of it; Go's own words for it, and the filter, still tell.
            text = failure.text
            told = [
                Symptom(SymptomKind.CALL, call, "EPERM", text=text, seen_in=SeenIn.OUTPUT, last_ns=failure.at_ns)
                for call in denied_calls(text) if call in _SWALLOWED
            ]
            if told:
                return [self._sign(symptom, failure, None) for symptom in told]
        if failure.mentions:
            return []
        killer = os.WTERMSIG(self._record.wait_status) if os.WIFSIGNALED(self._record.wait_status) else 0
        if killer in _DEADLY and not self._record.is_traced and failure.stage in _OF_THE_WHOLE:
            # Of the command's own death nothing else tells: a test's is told by go test.
            symptom = Symptom(SymptomKind.KILLED, signal=killer, seen_in=SeenIn.EXIT, last_ns=failure.at_ns)
            return [self._sign(symptom, failure, None)]
        symptom = Symptom(SymptomKind.SILENT, text=failure.text, seen_in=SeenIn.OUTPUT, last_ns=failure.at_ns)
        return [self._sign(symptom, failure, None)]

    def _sign(self, symptom: Symptom, failure: Failure, mention: Mention | None) -> _Sign:
        situation = self._record.situation_of(symptom, failure.package)
        situation.deeds = tuple(self._record.deeds)
        situation.cpus_used = self._record.cpus_used
        return _Sign(situation, 1, mention)


@dataclass
class _Trial:
    """What speaks for and against the machine, of one failed thing."""

    failure: Failure
    charges: list[Charge] = field(default_factory=list)
    ruled_out: list[RuledOut] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)

    def hear(self, sign: _Sign, explanation: Explanation) -> None:
        """Takes the explanation of one sign."""
        self.ruled_out += explanation.ruled_out
        self.reasons += [each.because for each in explanation.self_inflicted]
        claimed = best(explanation.causes)
        if explanation.self_inflicted and not any(cause.status is Status.PROVED for cause in claimed):
            return
        symptom, process = sign.situation.symptom, sign.situation.process
        self.charges += [Charge(cause, symptom, self.failure, process, max(sign.count, 1)) for cause in claimed]
        if not claimed and symptom.kind is SymptomKind.CALL and not _OWN_FILE.search(symptom.path):
            self.undecided += [f"{each.cause}: {each.why}" for each in explanation.not_decidable]

    def verdict(self) -> FailureVerdict:
        """Whose fault it is. Possible causes are told only where nothing better is, and decide nothing."""
        charges, reasons = _merged(self.charges), self.reasons
        sure = [charge for charge in charges if charge.blamed.status is not Status.POSSIBLE]
        if sure:
            charges, verdict = sure, Verdict.MACHINE
        elif charges or (self.undecided and not reasons):
            reasons, verdict = [*self.undecided, *reasons], Verdict.UNDECIDED
        else:
            verdict = Verdict.CODE
        return FailureVerdict(self.failure, verdict, tuple(charges), tuple(self.ruled_out), tuple(dict.fromkeys(reasons)))


def _goes_without_saying(incident: Incident, failure: Failure) -> bool:
    symptom = incident.symptom
    if symptom.kind is SymptomKind.KILLED:
        # Who could still say that it failed, was not killed itself; that a child of it was, it would have to say.
        return symptom.signal in _DEADLY and failure.stage is not FailedStage.TEST
    if symptom.kind is not SymptomKind.CALL or symptom.entered is not False or failure.stage is FailedStage.TEST:
        return False
    return not symptom.errno or (symptom.errno != "ENOSYS" and symptom.syscall in _SWALLOWED)


def _lacks_test(failure: Failure) -> bool:
    return not failure.test and failure.stage is FailedStage.PACKAGE


def _only_test(argv: Sequence[str]) -> str:
    """The test that `go test -run '^TestX$'` names, if it can be but one; ""."""
    found = ""
    for word, following in zip(argv, (*argv[1:], ""), strict=True):
        name, sign, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in ("run", "test.run"):
            found = value if sign else following
    match = _ONE_TEST.match(found)
    return match[1] if match else ""


def _tells_of(mention: Mention, symptom: Symptom) -> bool:
    if mention.at_ns and symptom.first_ns and symptom.first_ns > mention.at_ns + _SLACK_NS:
        return False
    if mention.kind is SymptomKind.KILLED:
        if symptom.kind is SymptomKind.KILLED:
            return symptom.signal == mention.signal
        return mention.signal == signal.SIGSYS and symptom.kind is SymptomKind.CALL and symptom.entered is False
    if mention.kind is not symptom.kind:
        return False
    if mention.errno:
        return symptom.errno == mention.errno
    return mention.kind is SymptomKind.CALL and symptom.syscall in calls_behind(mention.operation, mention.syscall)


def _by_call(incidents: Iterable[Incident], mention: Mention | None) -> list[_Sign]:
    """One sign for each call and error: the first incident's situation stands for all of its kind."""
    signs: dict[tuple[str, str, int], _Sign] = {}
    for incident in sorted(incidents, key=lambda each: each.symptom.first_ns):
        symptom = incident.symptom
        key = (symptom.syscall, symptom.errno, symptom.signal)
        sign = signs.get(key)
        if sign is None:
            signs[key] = _Sign(incident.situation, symptom.count, mention)
        else:
            sign.count += symptom.count
    return list(signs.values())


def _merged(charges: Iterable[Charge]) -> list[Charge]:
    """Each cause at each subject once; the first symptom stands for it, and the greatest count."""
    found: dict[tuple[str, str], Charge] = {}
    for charge in charges:
        key = (charge.blamed.cause, charge.blamed.subject)
        known = found.get(key)
        if known is None:
            found[key] = charge
        elif charge.blamed.status.order < known.blamed.status.order or charge.count > known.count:
            better = charge if charge.blamed.status.order < known.blamed.status.order else known
            found[key] = replace(better, count=max(charge.count, known.count))
    return list(found.values())


def _ranked(failures: list[FailureVerdict]) -> tuple[FailureVerdict, ...]:
    """Ranks over the whole run: proved before likely, then what explains more failures, then what came first."""
    seen: dict[str, list[Charge]] = {}
    for each in failures:
        for charge in each.charges:
            seen.setdefault(charge.blamed.cause, []).append(charge)
    order = sorted(
        seen.items(),
        key=lambda item: (min(charge.blamed.status.order for charge in item[1]), -max(charge.blamed.weight for charge in item[1]),
                          -len(item[1])),
    )
    ranks = {cause: number for number, (cause, _) in enumerate(order, 1)}
    return tuple(
        replace(each, charges=tuple(
            sorted((replace(charge, rank=ranks[charge.blamed.cause]) for charge in each.charges), key=lambda charge: charge.rank)
        ))
        for each in failures
    )


def judge(record: RunRecord, output: OutputReport, hypotheses: Sequence[Hypothesis]) -> Report:
    """The report of a run that is over."""
    return Judge(record, hypotheses).judge(output)
