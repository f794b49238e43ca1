# SPDX-License-Identifier: Apache-2.0
"""Workload processes that run in a part of the cgroup tree where the policy does not want them."""
from __future__ import annotations

from triaged.model.cgroup import CgroupId, container_of, is_user_manager
from triaged.model.facts import PlacementFacts
from triaged.model.fix import Fix, ManualStep, MoveProcesses, SetUnitSetting
from triaged.model.quoting import shown
from triaged.model.subject import ProcessSubject
from triaged.model.verdict import Evidence, Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.model.way import Arrival, Way, words
from triaged.rules.rule import rule

_ARRIVALS = {
    Arrival.INHERITED: "inherited: no process above it is elsewhere",
    Arrival.STARTED: "started in a unit of its own, from outside",
    Arrival.LEFT: "it, or a process above it, left the unit of its parent",
    Arrival.MOVED: "moved after it was executed",
    Arrival.UNKNOWN: "unknown: the process that started it is gone, or may not be read",
}


@rule(
    "placement.forbidden-slice", on=PlacementFacts, severity=Severity.WARNING, kind=Kind.RISK, expires_after_s=86400,
    references=("man:systemd.slice(5)", "man:systemd-run(1)", "man:systemd.special(7)"),
)
def forbidden_slice(facts: PlacementFacts) -> Verdict:
    """A workload's process runs in a slice that the policy forbids for it.

    Tests in the root slice, in init.scope or among the system's services share their limits and their fate with them: they
    can starve a service, or be starved by its limits, and nobody accounts for them. systemd has no default.slice of its own:
    where there is one, a unit file, a runner or a person made it. A process inherits the cgroup of the process that started it;
    starting the run in a scope of its own (systemd-run --scope --slice=...) puts all of it where it belongs.
    """
    subject = ProcessSubject(facts.process, by_workload=True)
    path = facts.process.cgroup
    if not path:
        return Undecided(subject, "the process's cgroup is not known")
    wanted = facts.requirement
    cgroup = CgroupId(path)
    if container_of(path):
        return Fine(subject, "it runs in a container of its own")
    if cgroup.slice == "-.slice" and not cgroup.unit and path != "/":
        # A container runtime's (/docker/buildkit/...), or made by hand: not a place in systemd's tree.
        return Undecided(subject, f"no unit of systemd owns {shown(path, 400)}")
    where = shown(cgroup.unit) if cgroup.unit == "init.scope" else shown(cgroup.slice)
    if not wanted.forbids(cgroup):
        return Fine(subject, f"policy {wanted.policy} does not mind {shown(cgroup.unit) or where}")
    who, when = facts.process, facts.time_usec
    workload = who.workload.workload if who.workload else ", ".join(wanted.workloads)
    unit = f", unit {shown(cgroup.unit)}" if cgroup.unit and cgroup.unit not in (cgroup.slice, where) else ""
    better = f"; policy {wanted.policy} wants it in {wanted.preferred_slice}" if wanted.preferred_slice else ""
    evidence = [
        Evidence("cgroup", shown(path, 400), f"/proc/{who.pid}/cgroup", when),
        Evidence("slice", shown(cgroup.slice), f"/proc/{who.pid}/cgroup", when),
        Evidence("forbidden by policy " + wanted.policy, ", ".join(wanted.forbidden_slices), wanted.origin, when),
        Evidence("why", wanted.why, wanted.origin, when),
    ]
    if facts.way is not None:
        evidence += _way_evidence(facts.way, when)
    if facts.slice_origin:
        evidence.append(Evidence("slice comes from", shown(facts.slice_origin, 1000), facts.slice_origin, when))
    if facts.slice_unit:
        evidence.append(Evidence("slice, says systemd", shown(facts.slice_unit, 1000), "org.freedesktop.systemd1", when))
    fixes: tuple[Fix, ...] = ()
    if wanted.preferred_slice and facts.way is not None and facts.way.is_in_container:
        fixes = (_own_container(wanted.preferred_slice),)
    elif wanted.preferred_slice:
        slice_option = f"--slice={wanted.preferred_slice}"
        fixes = (
            ManualStep(
                "own-scope", f"start the next run in a scope of its own in {wanted.preferred_slice}",
                (("systemd-run", "--scope", slice_option, *(tuple(who.argv[:1]) or ("go",)), "..."),),
            ),
        )
        fixes = (*_move(facts, wanted.preferred_slice), *fixes)
        if cgroup.unit.endswith(".service") and not is_user_manager(path):
            risk = "the unit's next start brings it; a restart ends what runs in it"
            fixes += (SetUnitSetting(cgroup.unit, "Slice", wanted.preferred_slice, risk),)
    return Problem(
        subject, f"{workload} runs in {where}{unit}, which policy {wanted.policy} forbids{better}", tuple(evidence), fixes,
        severity=wanted.severity, pid=who.pid, time_usec=when,
    )


def _move(facts: PlacementFacts, slice_name: str) -> tuple[Fix, ...]:
    if facts.way is None or is_user_manager(facts.process.cgroup):
        return ()
    top = facts.way.topmost
    if not top.start_ticks:
        return ()
    risk = "limits of the new place hold from then on; memory that it has stays charged to the old one"
    return (MoveProcesses(top.pid, top.start_ticks, slice_name, risk, top.cgroup),)


def _own_container(slice_name: str) -> Fix:
    # Its runtime knows the container by its cgroup: moved out of it, it could be neither limited nor ended any more.
    text = f"start the next container in {slice_name}: by the runtime's option, or by linux.cgroupsPath in the config.json of runc"
    option = f"--cgroup-parent={slice_name}"
    return ManualStep("own-container", text, (("docker", "run", option, "..."), ("podman", "run", option, "...")))


def _way_evidence(way: Way, when: int) -> list[Evidence]:
    out = [
        # The names of ancestors are their owners' matter: a person's shell may be among them.
        Evidence("way", shown(words(way.steps), 2000), "/proc/PID/cgroup of each ancestor", when, private=True),
        Evidence("how it got there", _ARRIVALS[way.arrival], "/proc/PID/cgroup of each ancestor", when),
    ]
    origin = way.elsewhere
    if origin is not None:
        out.append(Evidence("the path changed below", shown(origin.cgroup, 400), f"/proc/{origin.pid}/cgroup", when))
        if origin.unit:
            out.append(Evidence("unit that it came from", shown(origin.unit), f"/proc/{origin.pid}/cgroup", when))
    if way.arrival is Arrival.MOVED:
        out.append(Evidence("executed in", shown(way.executed_in, 400), f"/proc/{way.steps[0].pid}/cgroup", when))
    if way.started_by:
        out.append(Evidence("started by", shown(way.started_by, 400), "", when))
    return out
