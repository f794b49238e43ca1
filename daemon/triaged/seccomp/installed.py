# SPDX-License-Identifier: Apache-2.0
"""The filters of a process, decoded and ready to be asked: per call, for certain arguments, for a workload."""
from __future__ import annotations

from dataclasses import dataclass, field

from triaged.model.filters import FilterDump
from triaged.seccomp import bpf
from triaged.seccomp.action import ALLOW, KILL_PROCESS, Action, strictness
from triaged.seccomp.bpf import Program, SeccompData, parse_program, run_stacked
from triaged.seccomp.check import Answer
from triaged.seccomp.outcomes import Outcomes, demands_text, outcomes_of
from triaged.seccomp.syscalls import audit_arch_of, number_of

_STRICT = "strict"  # no filter, but SIGKILL for every call but these (kernel/seccomp.c, mode1_syscalls)
_ALLOWED_IN_STRICT = frozenset({"read", "write", "exit", "rt_sigreturn", "sigreturn"})


@dataclass(frozen=True)
class Installed:
    """The filters of a process, decoded, newest first, and the architecture that they are asked about."""

    dump: FilterDump
    programs: tuple[Program, ...]
    arch: str
    _gave_up: list[int] = field(default_factory=list, compare=False)

    def answers(self, call: str) -> tuple[Answer, ...] | None:
        """All that the filters can answer to a call, strictest first; None where the architecture has no such call."""
        number = number_of(self.arch, call)
        if number is None:
            return None
        if self.dump.mode == _STRICT:
            return ((self.decide(call, ()), ""),)
        audit_arch = audit_arch_of(self.arch)
        found = Outcomes((), False, False) if self._gave_up else outcomes_of(self.programs, number, audit_arch)
        if not found.is_complete:  # every answer that stands in a filter at all may be this call's
            self._gave_up.append(number)  # one such call is enough: whoever wrote that filter may have meant to keep us busy
            values = {i.k for program in self.programs for i in program.instructions if i.code == bpf.RET_K}
            possible = sorted({Action.of(value) for value in values}, key=lambda action: strictness(action.value))
            return tuple((action, "too many cases to tell") for action in possible)
        conditions: dict[Action, list[str]] = {action: [] for action in found.actions}
        for outcome in found.outcomes:
            conditions[outcome.action].append(demands_text(outcome.demands, audit_arch))
        return tuple(
            (action, "" if len(conditions) == 1 else " or ".join(texts) if len(texts) <= 4 else f"{len(texts)} cases")
            for action, texts in conditions.items()
        )

    def decide(self, call: str, arguments: tuple[int, ...]) -> Action:
        """The answer for certain arguments."""
        if self.dump.mode == _STRICT:
            return ALLOW if call in _ALLOWED_IN_STRICT else KILL_PROCESS
        return run_stacked(self.programs, SeccompData(number_of(self.arch, call) or 0, audit_arch_of(self.arch), arguments))


def installed(dump: FilterDump, arch: str) -> Installed:
    """The filters of a dump. Raises: Malformed for a filter that the kernel would not have taken."""
    return Installed(dump, tuple(parse_program(one.instructions) for one in dump.filters), arch)
