# SPDX-License-Identifier: Apache-2.0
"""Resource limits (RLIMIT_*) of workload processes against the policy. Nothing was hit: these are risks."""
from __future__ import annotations

from triaged.model.cgroup import CgroupId, container_of, is_user_manager
from triaged.model.facts import ResourceLimitFacts
from triaged.model.fix import Fix, ManualStep, SetResourceLimit, SetUnitSetting
from triaged.model.limit import Unknown, Unlimited
from triaged.model.process import ProcessIdentity
from triaged.model.quoting import shown
from triaged.model.subject import ProcessSubject
from triaged.model.verdict import Evidence, Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.rules.rule import rule

# limits.conf(5) has its own units: kB for what the kernel counts in bytes, minutes of CPU time.
_LOGIN_UNITS = {"AS": 1024, "CORE": 1024, "DATA": 1024, "FSIZE": 1024, "MEMLOCK": 1024, "STACK": 1024, "CPU": 60}


def lasting_fix(process: ProcessIdentity, resource: str, wanted: int | Unlimited) -> Fix:
    """How to raise a resource limit for good. Where it comes from decides where; the path of the cgroup tells most of it."""
    path = process.cgroup
    cgroup = CgroupId(path)
    container = container_of(path)
    if container:
        value = -1 if isinstance(wanted, Unlimited) else wanted
        option = f"--ulimit={resource.lower()}={value}:{value}"
        return ManualStep("container-ulimit", f"start the container with {option} (or set the runtime's default limits)")
    unit = cgroup.unit
    text = "infinity" if isinstance(wanted, Unlimited) else str(wanted)
    if unit.endswith(".service") and not is_user_manager(path):
        return SetUnitSetting(unit, f"Limit{resource}", text, "a restart of the unit ends what runs in it")
    if unit.endswith(".service"):
        title = f"put Limit{resource}={text} into the [Service] section of {shown(unit)} and restart it"
        return ManualStep("unit-limit", title, tuple(("systemctl", "--user", word, unit) for word in ("edit", "restart")))
    limits = f"\"* hard {resource.lower()} {_login_value(resource, wanted)}\""
    return ManualStep("login-limit", f"for login sessions put {limits} into a file of /etc/security/limits.d and log in again")


def _login_value(resource: str, wanted: int | Unlimited) -> str:
    if isinstance(wanted, Unlimited):
        return "unlimited"
    return str(-(-wanted // _LOGIN_UNITS.get(resource, 1)))


@rule(
    "rlimit.below-policy", on=ResourceLimitFacts, severity=Severity.WARNING, kind=Kind.RISK, expires_after_s=7 * 86400,
    references=("man:getrlimit(2)", "man:systemd.exec(5)", "https://github.com/golang/go/issues/46279"),
)
def below_policy(facts: ResourceLimitFacts) -> Verdict:
    """The hard resource limit of a workload's processes is below what a policy wants.

    The hard limit counts, not the soft one: a Go program raises its soft RLIMIT_NOFILE to the hard one when it starts (since
    Go 1.19), so "ulimit -Sn 1024" does no harm to it and a low hard limit does. Programs that it executes get the old soft
    limit back. Nothing has failed because of it as far as triaged knows.
    """
    subject = ProcessSubject(facts.process, by_workload=True, scope=facts.resource)
    wanted = facts.requirement
    name = f"RLIMIT_{facts.resource}"
    if isinstance(facts.hard, Unknown):
        return Undecided(subject, facts.hard.why)
    if isinstance(facts.hard, Unlimited) or facts.hard >= wanted.at_least:
        return Fine(subject, f"hard {name} is {facts.hard}, policy {wanted.policy} wants at least {wanted.at_least}")
    who, when = facts.process, facts.time_usec
    source = f"/proc/{who.pid}/limits"
    fixes: tuple[Fix, ...] = (lasting_fix(facts.process, facts.resource, wanted.at_least),)
    if who.start_ticks:  # without it the pid may be another process's by the time that somebody applies the fix
        risk = "only this process and what it starts from now on"
        seen = f"{facts.soft}:{facts.hard}"
        live = SetResourceLimit(who.pid, who.start_ticks, facts.resource, wanted.at_least, wanted.at_least, risk, seen)
        fixes = (live, *fixes)
    return Problem(
        subject,
        f"hard {name} of {shown(who.exe or who.comm)} is {facts.hard}, policy {wanted.policy} wants at least {wanted.at_least}",
        (
            Evidence(f"{name} hard", facts.hard, source, when),
            Evidence(f"{name} soft", str(facts.soft), source, when),
            Evidence(f"wanted by policy {wanted.policy}", f"at least {wanted.at_least}", wanted.origin, when),
            Evidence("why", wanted.why, wanted.origin, when),
        ),
        fixes,
        severity=wanted.severity, pid=who.pid, time_usec=when,
    )
