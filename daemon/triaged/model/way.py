# SPDX-License-Identifier: Apache-2.0
"""The way by which a process got into its cgroup: its ancestors up to the first one that is elsewhere."""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from triaged.model.cgroup import container_of, unit_of

_RUN_UNIT = re.compile(r"^run-(?:u|r|p)[0-9a-f]+(?:-i\d+)?\.(scope|service)$")
_SESSION = re.compile(r"^session-[0-9c]+\.scope$")
_CONTAINER_RUNTIME = "container runtime"
_STARTERS = (
    ("sudo", ("sudo", "sudo-rs")),
    ("su", ("su", "runuser", "setpriv", "doas", "pkexec", "run0")),
    ("systemd-run", ("systemd-run",)),
    ("cron", ("cron", "crond", "anacron", "atd", "fcron")),
    ("ssh", ("sshd", "sshd-session", "dropbear")),
    (_CONTAINER_RUNTIME, ("containerd-shim", "containerd-shim-runc-v2", "conmon", "runc", "crun", "docker-init", "buildkitd")),
    ("CI runner", (
        "Runner.Listener", "Runner.Worker", "gitlab-runner", "buildkite-agent", "act_runner", "forgejo-runner", "drone-runner-exec",
        "circleci-agent", "agent.listener", "agent.worker", "woodpecker-agent",
    )),
)  # fmt: skip
_COMM_LENGTH = 15  # TASK_COMM_LEN without its NUL: longer names are cut


class Arrival(str, Enum):
    """inherited: no ancestor that lives is elsewhere; started: it was put into a unit of its own; left: its parent is in a scope or
    service, and it is outside; moved: it was elsewhere itself when it was executed; unknown: its parent is gone."""

    INHERITED = "inherited"
    STARTED = "started"
    LEFT = "left"
    MOVED = "moved"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Step:
    """One process of the way. `is_remembered`: it ended, and this is what was known of it."""

    pid: int
    comm: str
    exe: str
    cgroup: str
    is_remembered: bool = False
    start_ticks: int = 0
    is_workload: bool = False

    @property
    def unit(self) -> str:
        return unit_of(self.cgroup)

    @property
    def starter(self) -> str:
        """What kind of program this is, if it is one that starts others elsewhere: "sudo", "cron", "CI runner"; else ''."""
        names = {self.comm, self.exe.rsplit("/", 1)[-1]}
        for kind, programs in _STARTERS:
            if any(program in names or program[:_COMM_LENGTH] == self.comm for program in programs):
                return kind
        return ""


@dataclass(frozen=True)
class Way:
    """The process itself first, then its ancestors, up to the first in another cgroup (the last one, if there is one).

    `executed_in` is the cgroup in which the process was first seen, "" if that was not noted.
    """

    steps: tuple[Step, ...]
    executed_in: str = ""

    @property
    def elsewhere(self) -> Step | None:
        """The nearest ancestor in another cgroup, if one is known."""
        last = self.steps[-1]
        return last if last.cgroup and last.cgroup != self.steps[0].cgroup else None

    @property
    def topmost(self) -> Step:
        """The process of a workload nearest to the root that is in the same cgroup: with it all the others move."""
        here = [step for step in self.steps if step.cgroup == self.steps[0].cgroup and not step.is_remembered]
        return next((step for step in reversed(here) if step.is_workload and step.start_ticks), self.steps[0])

    @property
    def is_in_container(self) -> bool:
        """Whether a container runtime is among the ancestors: what it starts is in a container, whatever its cgroup is called."""
        return any(step.starter == _CONTAINER_RUNTIME for step in self.steps[1:])

    @property
    def arrival(self) -> Arrival:
        """How the process came to be where it is."""
        here = self.steps[0].cgroup
        if self.executed_in and self.executed_in != here:
            return Arrival.MOVED
        origin = self.elsewhere
        if origin is None:
            return Arrival.INHERITED if self.steps[-1].pid == 1 else Arrival.UNKNOWN
        is_manager = origin.pid == 1 or origin.comm == "systemd"
        # Only a manager starts a service; a scope is made for a process that runs already, by whoever asks for it.
        if here.endswith(".scope") or container_of(here) or (here.endswith(".service") and is_manager):
            return Arrival.STARTED
        if is_manager:
            return Arrival.UNKNOWN  # an orphan: the one that started it is gone
        return Arrival.LEFT if origin.cgroup.endswith((".scope", ".service")) else Arrival.STARTED

    @property
    def started_by(self) -> str:
        """What started it, by the programs on the way and the unit ("cron, sudo", "systemd-run --scope"), or nothing."""
        found = list(dict.fromkeys(step.starter for step in self.steps[1:] if step.starter))
        unit = self.steps[0].unit
        match = _RUN_UNIT.match(unit)
        if match:
            found.append("systemd-run --scope" if match.group(1) == "scope" else "systemd-run")
        elif _SESSION.match(unit):
            found.append("a login session")
        elif unit.endswith(".service"):
            found.append(f"service {unit}")
        elif container_of(self.steps[0].cgroup):
            found.append("a container runtime")
        elif unit.endswith(".scope") and unit != "init.scope" and not found:
            # systemd-run executes the command in its own place: nothing of it is left among the ancestors.
            found.append("systemd-run --scope, or another that asked systemd for a scope")
        return ", ".join(dict.fromkeys(found))


def words(steps: Sequence[Step]) -> str:
    """The way for people, outermost first: "systemd (init.scope) > cron (cron.service)". Names are raw."""
    return " > ".join(f"{step.comm or '?'}[{step.pid}] in {step.cgroup or '?'}" for step in reversed(steps))
