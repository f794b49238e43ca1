# SPDX-License-Identifier: Apache-2.0
"""Cgroups that may not read or write faster, or may not have more huge pages."""
from __future__ import annotations

from triaged.model.cgroup import CgroupId, container_of, is_user_manager
from triaged.model.facts import CgroupLimit, HugePagesFacts, IoFacts
from triaged.model.fix import ManualStep
from triaged.model.io import IoLimit
from triaged.model.limit import Unknown
from triaged.model.quoting import shown
from triaged.model.verdict import Evidence, Fine, Problem, Severity, Undecided, Verdict
from triaged.rules.cgroup_limits import cgroup_subject, limit_evidence, named, owner_evidence, process_evidence
from triaged.rules.rule import rule

_RATE_AT_THE_LIMIT = 0.9
_STALL_THAT_HURTS = 0.10
_PROPERTIES = {
    "rbps": "IOReadBandwidthMax", "wbps": "IOWriteBandwidthMax", "riops": "IOReadIOPSMax", "wiops": "IOWriteIOPSMax",
}
_OPTIONS = {
    "rbps": "--device-read-bps", "wbps": "--device-write-bps", "riops": "--device-read-iops", "wiops": "--device-write-iops",
}


@rule(
    "cgroup.io.throttled", on=IoFacts, severity=Severity.WARNING, expires_after_s=86400,
    references=(
        "man:systemd.resource-control(5)", "https://docs.kernel.org/admin-guide/cgroup-v2.html#io",
        "https://docs.kernel.org/accounting/psi.html",
    ),
)
def io_throttled(facts: IoFacts) -> Verdict:
    """A cgroup read or wrote as fast as its io.max allows, and its tasks stood still for it.

    The limit is a rate for one device; who goes beyond it sleeps until the time is made good. Nothing fails at once: builds, fsync
    and reads of test data become slow, and time-outs follow. Nothing counts the waiting as such, so the finding rests on two
    things: a rate at the limit, and the time in which all tasks waited for a device (io.pressure; on version 1 the rate alone). The
    limit may be an ancestor's. systemd calls it IOReadBandwidthMax= and so on, Docker and Podman --device-write-bps and so on.
    """
    subject = cgroup_subject(facts.cgroup)
    if not facts.limits:
        return Fine(subject, "there is no I/O limit any more")
    limit = max(facts.limits, key=lambda each: each.share(facts.interval_usec))
    share = limit.share(facts.interval_usec)
    if share < _RATE_AT_THE_LIMIT:
        return Undecided(subject, f"{share:.0%} of the rate that is allowed was used")
    stalled = None if isinstance(facts.stalled_usec, Unknown) else facts.stalled_usec / facts.interval_usec
    if stalled is not None and stalled < _STALL_THAT_HURTS:
        return Undecided(subject, f"all tasks waited for a device for {stalled:.0%} of the time: too little to be a harm")
    now, seconds = facts.time_usec, facts.interval_usec / 1_000_000
    place = named(_as_limit(facts))
    evidence = [
        Evidence("done", f"{limit.done} in {seconds:.1f} s: {share:.0%} of what {limit.what} allows", facts.counter_file, now),
        Evidence(
            "no task could run", str(facts.stalled_usec) if stalled is None else f"{stalled:.0%} of {seconds:.1f} s",
            facts.counter_file.replace("io.stat", "io.pressure"), now,
        ),
        *(Evidence(f"{each.what} of {shown(each.device)}", each.words, facts.file, now) for each in facts.limits),
        *owner_evidence(_as_limit(facts), now),
    ]
    for number, process in enumerate(facts.processes[:8], 1):
        evidence += process_evidence(process, f"process {number}" if len(facts.processes) > 1 else "process", now)
    still = "" if stalled is None else f"; its tasks stood still {stalled:.0%} of the time"
    return Problem(
        subject, f"{place} was at its limit of {limit.words} on {shown(limit.device)}{still}", tuple(evidence),
        (faster(facts.cgroup, facts.unit, facts.file, limit),), pid=facts.processes[0].pid if facts.processes else 0, time_usec=now,
    )


def _as_limit(facts: IoFacts) -> CgroupLimit:
    return CgroupLimit(facts.cgroup, facts.file, Unknown("a rate"), Unknown("a rate"), facts.unit, facts.origin)


def faster(cgroup: CgroupId, unit: str, file: str, limit: IoLimit) -> ManualStep:
    """What raises one I/O limit, where it was set."""
    path, wanted = cgroup.path, limit.per_s * 4
    container = container_of(path)
    if container is not None:
        option = _OPTIONS[limit.what]
        who = f"pod {container.pod}" if container.pod else f"container {container.identifier[:12]}"
        return ManualStep("container-io", f"make {who} anew with a larger {option}: a running one keeps it, or leave it out")
    if unit:
        scope = ("--user",) if is_user_manager(path) else ()
        value = f"{_PROPERTIES[limit.what]}={limit.device} {wanted}"
        command = ("systemctl", *scope, "set-property", "--runtime", unit, value)
        return ManualStep("unit-io", f"gives {shown(unit)} four times as much", (command,))
    return ManualStep("cgroup-io", f"write a larger rate into {shown(file, 1000)}, or where the cgroup is made")


@rule(
    "cgroup.hugetlb.limit-hit", on=HugePagesFacts, severity=Severity.ERROR, expires_after_s=7 * 86400,
    references=("https://docs.kernel.org/admin-guide/cgroup-v2.html#hugetlb", "https://docs.kernel.org/admin-guide/mm/hugetlbpage.html"),
)
def huge_pages_refused(facts: HugePagesFacts) -> Verdict:
    """The kernel refused huge pages because a cgroup already had as many as its hugetlb limit allows.

    mmap(MAP_HUGETLB) succeeds or fails with ENOMEM by what the machine has left; the cgroup's limit is held against the first
    touch of each page, which ends the program with SIGBUS: Go prints "unexpected fault address". Free huge pages of the machine do
    not help. systemd has no property for it: a container runtime or a person wrote the file.
    """
    limit = facts.owner
    subject = cgroup_subject(limit.cgroup)
    if facts.refused <= 0:
        return Fine(subject, "no huge page was refused")
    now = facts.time_usec
    times = "once" if facts.refused == 1 else f"{facts.refused} times"
    evidence = [
        Evidence("refused since the last look", facts.refused, facts.counter_file, now),
        *limit_evidence((limit,), now), Evidence("limit set by", named(limit), limit.file, now),
    ]
    for number, process in enumerate(facts.processes[:8], 1):
        evidence += process_evidence(process, f"process {number}" if len(facts.processes) > 1 else "process", now)
    container = container_of(limit.cgroup.path)
    if container is not None and container.pod:
        step = ManualStep("pod-limit", f"raise resources.limits.hugepages-{facts.page_size[:-1]}i of pod {container.pod}")
    elif container is not None:
        step = ManualStep("container-limit", f"raise the hugetlb limit of container {container.identifier[:12]} in its runtime")
    else:
        step = ManualStep("cgroup-limit", f"write a larger number of bytes, or max, into {shown(limit.file, 1000)}")
    return Problem(
        subject, f"{named(limit)} was refused huge pages of {facts.page_size} {times}: its limit is {limit.limit} bytes",
        tuple(evidence), (step,), occurrences=facts.refused, pid=facts.processes[0].pid if facts.processes else 0, time_usec=now,
    )
