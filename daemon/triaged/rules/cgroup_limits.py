# SPDX-License-Identifier: Apache-2.0
"""What the rules about cgroup limits share: who owns the limit in words, what was in use, and who can raise it."""
from __future__ import annotations

from collections.abc import Sequence

from triaged.model.cgroup import CgroupId, container_of, is_user_manager, pod_of, uid_of
from triaged.model.facts import CgroupLimit
from triaged.model.fix import Fix, ManualStep, SetUnitProperty
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.quoting import shown
from triaged.model.subject import CgroupSubject
from triaged.model.verdict import Evidence


def cgroup_subject(cgroup: CgroupId) -> CgroupSubject:
    """The cgroup as a subject; the private matter of a user if it lies in that user's slice."""
    return CgroupSubject(cgroup, uid_of(cgroup.path))


def named(limit: CgroupLimit) -> str:
    """What to call the place that holds the limit: its unit if it is one's, else its path."""
    return shown(limit.unit) if limit.unit else f"cgroup {shown(limit.cgroup.path, 400)}"


def limit_evidence(limits: Sequence[CgroupLimit], time_usec: int) -> list[Evidence]:
    """Limit and use of each cgroup, innermost first, as read; names are told apart by the path."""
    out = []
    for limit in limits:
        file = limit.file.rsplit("/", 1)[-1] or "limit"
        at = shown(limit.cgroup.path, 400)
        value = str(limit.limit)
        used = "" if isinstance(limit.used, Unknown) else f", in use {limit.used}"
        out.append(Evidence(f"{file} at {at}", f"{value}{used}", limit.file, time_usec))
    return out


def owner_evidence(limit: CgroupLimit, time_usec: int) -> list[Evidence]:
    """Whose limit it is, and what set it where that was found out."""
    out = [Evidence("limit set by", named(limit), limit.file, time_usec)]
    if limit.origin:
        out.append(Evidence("limit comes from", shown(limit.origin, 1000), limit.origin.partition(":")[0], time_usec))
    return out


def process_evidence(process: ProcessIdentity | None, role: str, time_usec: int) -> list[Evidence]:
    """Who the process is. The executable is its owner's matter."""
    if process is None or not process.pid:
        return []
    name = shown(process.comm or process.exe.rsplit("/", 1)[-1])
    out = [Evidence(f"{role} pid", process.pid, "", time_usec)]
    if name:
        out.append(Evidence(f"{role} comm", name, "", time_usec))
    if process.exe:
        out.append(Evidence(f"{role} exe", shown(process.exe, 1000), f"/proc/{process.pid}/exe", time_usec, private=True))
    if process.workload:
        out.append(Evidence(f"{role} workload", f"{process.workload.workload} {process.workload.role}", "", time_usec))
        if process.workload.package:
            out.append(Evidence(f"{role} package", shown(process.workload.package, 1000), "", time_usec, private=True))
    if process.ci_job:
        out.append(Evidence(f"{role} CI job", shown(process.ci_job, 1000), f"/proc/{process.pid}/environ", time_usec, private=True))
    return out


def raise_limit(owner: CgroupLimit, unit_property: str, value: int, container_option: str, pod_limit: str) -> tuple[Fix, ...]:
    """How to raise the limit to `value`, by whoever set it. Units: tasks or bytes.

    `container_option` is the option of docker and podman (--pids-limit), `pod_limit` what Kubernetes calls it.
    """
    path = owner.cgroup.path
    container, pod = container_of(path), pod_of(path)
    if pod:
        # The limit is a container's or the whole pod's, which is the sum of its containers'. The kubelet brings the old one back.
        return (ManualStep("pod-limit", f"raise {pod_limit} of pod {pod}; the limit in force is {owner.limit}"),)
    if container:
        # systemd would take a new value for the scope, but the runtime's own configuration brings the old one back.
        runtime = container.runtime if container.runtime in ("docker", "podman") else ""
        if runtime:
            options = [f"{container_option}={value}"]
            if container_option == "--memory":
                options.append(f"--memory-swap={value * 2}")  # a limit above the old one of memory and swap is refused
            argv = (runtime, "update", *options, container.identifier)
            title = f"raises the limit of {runtime} container {container.identifier[:12]} to {value}"
            return (ManualStep("container-limit", title, (argv,)),)
        title = f"raise the limit of container {container.identifier[:12]} to {value}, in its runtime"
        return (ManualStep("container-limit", title),)
    if owner.unit and is_user_manager(path):
        command = ("systemctl", "--user", "set-property", owner.unit, f"{unit_property}={value}")
        uid = uid_of(path)
        title = f"sets {unit_property}={value} of {shown(owner.unit)}, typed by " + ("its user" if uid is None else f"user {uid}")
        return (ManualStep("user-unit-limit", title, (command,)),)
    if owner.unit:
        # memory.max is rounded to pages: what systemd says may differ from what was seen there.
        seen = str(owner.limit) if unit_property == "TasksMax" else ""
        return tuple(SetUnitProperty(owner.unit, unit_property, str(value), lasting, seen=seen) for lasting in (False, True))
    return (ManualStep("cgroup-limit", f"write {value} into {shown(owner.file, 1000)}, or raise it where the cgroup is made"),)
