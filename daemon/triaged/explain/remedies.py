# SPDX-License-Identifier: Apache-2.0
"""What can be done about a limit that was to blame, as the fixes that the helper knows, or as steps for a person."""
from __future__ import annotations

from triaged.explain.situation import Situation
from triaged.model.fix import Fix, ManualStep, SetParameter, SetResourceLimit
from triaged.model.limit import UNLIMITED, Unlimited
from triaged.model.symptom import SeenIn
from triaged.rules.resource_limits import lasting_fix

_TOO_LONG = "…"  # what ends a command line that was cut


def set_parameter(key: str, value: int | str, seen: int | str, risk: str = "") -> tuple[Fix, ...]:
    """Sets a kernel parameter: until the next boot, or for good. `seen` is what it is now."""
    return tuple(SetParameter(key, str(value), lasting, risk, seen=str(seen)) for lasting in (False, True))


def raise_resource(situation: Situation, resource: str, wanted: int | Unlimited) -> tuple[Fix, ...]:
    """Raises RLIMIT_`resource` where the process has it from: its unit, its container, its session; and in itself if it lives.

    A process of a run is gone when somebody reads of it; what is raised for it then is the run's own command, started again.
    """
    process = situation.process
    if process is None:
        return ()
    who = process.identity
    fixes: list[Fix] = []
    if situation.symptom.seen_in is SeenIn.ASKED and not process.stands_for and who.start_ticks and isinstance(wanted, int):
        soft, hard = process.soft(resource), process.hard(resource)
        seen = f"{soft}:{hard}" if resource in process.limits else ""
        highest = hard if isinstance(hard, int) else wanted
        risk = "only this process and what it starts from now on"
        if hard is not UNLIMITED:
            fixes.append(SetResourceLimit(who.pid, who.start_ticks, resource, wanted, max(wanted, highest), risk, seen))
    fixes.append(lasting_fix(who, resource, wanted))
    command = _command_again(situation)
    if command:
        value = "unlimited" if isinstance(wanted, Unlimited) else str(wanted)
        argv = ("prlimit", f"--{resource.lower()}={value}:{value}", *command)
        title = f"or run it with RLIMIT_{resource} {value}; above the hard limit only root may"
        fixes.append(ManualStep("run-with-limit", title, (argv,)))
    return tuple(fixes)


def _command_again(situation: Situation) -> tuple[str, ...]:
    """What to type to do it again: the run's command, or, where something in it changed limits on the way, the program itself."""
    process, start = situation.process, situation.at_start
    if process is None or start is None:
        return ()
    is_same = process.limits == start.limits or not start.limits
    command = start.identity.argv if is_same else process.identity.argv
    return command if command and command[-1] != _TOO_LONG else ()
