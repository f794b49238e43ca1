# SPDX-License-Identifier: Apache-2.0
"""What the filters of a process do to workloads: the calls that those need, and what some packages do besides."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triaged.seccomp.action import Action, ActionKind
from triaged.seccomp.check import Answer, CheckResult, Outcome, check_workload, refusal_of
from triaged.seccomp.installed import Installed
from triaged.seccomp.needs import Feature, Needs


@dataclass(frozen=True)
class DeniedFeature:
    """What some packages do, and what the filters answer to it."""

    feature: Feature
    action: Action

    @property
    def sentence(self) -> str:
        """clone(CLONE_NEWUSER) returns EPERM: a package that ... fails with "..."."""
        text = f"{self.feature.written} {self.action.effect}: {self.feature.title}"
        if self.action.kind is ActionKind.ERRNO and self.action.data:
            return f'{text} fails with "{self.feature.prints(self.action.data)}"'
        return text + (" ends with SIGSYS" if self.action.is_fatal else " depends on it")


@dataclass(frozen=True)
class Assessment:
    """The workloads, each with all its calls, and the features that are refused. `needs` says what was measured, and where."""

    needs: Needs
    results: tuple[CheckResult, ...]
    features: tuple[DeniedFeature, ...]

    @property
    def works(self) -> bool:
        """Whether nothing is known that breaks a workload."""
        return all(result.works for result in self.results)

    def sentences(self) -> tuple[str, ...]:
        """What a person should know: what breaks, what is refused and does not matter to these workloads, what packages lose."""
        out: list[str] = []
        for outcome in (Outcome.BREAKS, Outcome.HARMLESS):
            told: dict[str, list[str]] = {}
            for result in self.results:
                for verdict in result.of(outcome):
                    effect = "; ".join(action.effect for action, _ in verdict.answers if not action.is_allowed)
                    shows = f' ("{verdict.shows}")' if verdict.shows else ""
                    told.setdefault(f"{verdict.call} {effect}{shows}", []).append(result.workload)
            end = "does not work" if outcome is Outcome.BREAKS else "does without"
            out += [f"{what}: {', '.join(names)} {end}" for what, names in told.items()]
        return (*out, *(denied.sentence for denied in self.features))


def assess(found: Installed, needs: Needs, workloads: Sequence[str]) -> Assessment:
    """Asks the filters about each call of the workloads (of `needs.workloads`) and about every feature."""
    known: dict[str, tuple[Answer, ...] | None] = {}

    def answers(call: str) -> tuple[Answer, ...] | None:
        if call not in known:
            known[call] = found.answers(call)
        return known[call]

    results = tuple(check_workload(answers, needs, name, decide=found.decide) for name in workloads)
    return Assessment(needs, results, denied_features(needs, found.arch, found.decide))


def denied_features(needs: Needs, arch: str, decide: Callable[[str, tuple[int, ...]], Action]) -> tuple[DeniedFeature, ...]:
    """The features that are refused; `decide` gives the answer to a call with certain arguments."""
    asked = ((feature, refusal_of(feature, arch, decide)) for feature in needs.features)
    return tuple(DeniedFeature(feature, action) for feature, action in asked if action is not None)
