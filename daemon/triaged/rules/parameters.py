# SPDX-License-Identifier: Apache-2.0
"""Kernel parameters that are not as the policy wants them. Nothing was hit: these are risks."""
from __future__ import annotations

from triaged.model.facts import ParameterFacts
from triaged.model.fix import Fix, ManualStep, SetParameter
from triaged.model.limit import Unknown
from triaged.model.quoting import shown
from triaged.model.requirement import Operator, ParameterRequirement, range_of
from triaged.model.subject import HostSubject
from triaged.model.verdict import Evidence, Fine, Kind, Problem, Severity, Undecided, Verdict
from triaged.rules.rule import rule

_MAX_USER_NAMESPACES = "user.max_user_namespaces"
_USERNS_CLONE = "kernel.unprivileged_userns_clone"
_FIRST_PORT = 1024  # ports below it are for servers (ip_unprivileged_port_start)
_APPARMOR_USERNS = "kernel.apparmor_restrict_unprivileged_userns"

# Values that the kernel does not take back while it runs. yama: measured on 6.12, EINVAL; bpf: admin-guide/sysctl/kernel.rst.
_UNTIL_THE_NEXT_BOOT = (("kernel.yama.ptrace_scope", "3"), ("kernel.unprivileged_bpf_disabled", "1"))


def _violated(wanted: ParameterRequirement, running: str) -> list[ParameterRequirement]:
    """The wishes that the running value does not grant (none of those that cannot be compared with it)."""
    return [each for each in wanted.includes or (wanted,) if each.is_granted_by(running) is False]


def _is_undecided(facts: ParameterFacts) -> Undecided | None:
    subject = HostSubject(facts.key)
    if facts.is_missing and facts.requirement.operator is not Operator.PRESENT:
        return Undecided(subject, "this kernel has no such parameter")
    if isinstance(facts.value, Unknown):
        return None if facts.is_missing else Undecided(subject, facts.value.why)
    if facts.requirement.is_granted_by(facts.value) is None:
        return Undecided(subject, f"{shown(facts.value)!r} cannot be compared with {facts.requirement.wish}")
    return None


def _wanted_value(wanted: ParameterRequirement, running: str) -> str:
    """The smallest change that grants the wish."""
    value = wanted.value
    span, have = range_of(value), range_of(running)
    if wanted.operator is Operator.AT_LEAST and span and have:
        return f"{min(span[0], have[0])} {max(span[1], have[1])}"
    if wanted.operator is Operator.AT_LEAST and isinstance(value, int) and have:
        low = max(min(have[0], _FIRST_PORT), have[1] - value + 1)
        return f"{low} {max(have[1], low + value - 1)}"
    if isinstance(value, tuple):
        if wanted.operator is Operator.BETWEEN and running.lstrip("-").isdigit() and int(running) > int(value[-1]):
            return str(value[-1])
        return str(value[0])
    return str(value)


def _fixes(facts: ParameterFacts, running: str) -> tuple[Fix, ...]:
    wanted = facts.requirement
    value = _wanted_value(wanted, running)
    if (facts.key, running) in _UNTIL_THE_NEXT_BOOT:
        step = f"set {facts.key} = {value} in a file of /etc/sysctl.d and restart the machine"
        return (ManualStep(f"at-boot:{facts.key}", step, risk=wanted.weakens),)
    return tuple(SetParameter(facts.key, value, lasting, wanted.weakens, seen=running) for lasting in (False, True))


def _evidence(facts: ParameterFacts, violated: list[ParameterRequirement]) -> tuple[Evidence, ...]:
    out = [Evidence(facts.key, shown(" ".join(str(facts.value).split())), facts.path, facts.time_usec)]
    if facts.origin:
        out.append(Evidence("where the value comes from", shown(facts.origin, 1000), "sysctl.d", facts.time_usec))
    for each in violated:
        out.append(Evidence(f"wanted by policy {each.policy}", each.wish, each.origin, facts.time_usec))
        out.append(Evidence(f"why ({each.policy})", each.why, each.origin, facts.time_usec))
        if each.workloads:
            out.append(Evidence(f"matters for ({each.policy})", ", ".join(each.workloads), each.origin, facts.time_usec))
        if each.weakens:
            out.append(Evidence(f"what gets weaker ({each.policy})", each.weakens, each.origin, facts.time_usec))
    return tuple(out)


def _is_user_namespaces_off(key: str, running: str) -> str:
    """What fails at this value, if user namespaces fail altogether; else ''. Texts measured on 6.12 and 6.18."""
    if key == _MAX_USER_NAMESPACES and running == "0":
        return "no user namespace can be made, also by root: clone() fails with ENOSPC, which prints as \"no space left on device\""
    if key == _USERNS_CLONE and running == "0":
        return "only root can make user namespaces: for others clone() fails with EPERM, \"operation not permitted\""
    if key == _APPARMOR_USERNS and running not in ("", "0"):
        return (
            "a program without CAP_SYS_ADMIN and without an AppArmor profile that allows it can make a user namespace but gets no "
            "capabilities in it: what needs them (uid maps, mounts) then fails with EPERM or EACCES"
        )
    return ""


@rule(
    "sysctl.below-policy", on=ParameterFacts, severity=Severity.WARNING, kind=Kind.RISK,
    references=("man:sysctl.d(5)", "man:proc_sys(5)"),
)
def below_policy(facts: ParameterFacts) -> Verdict:
    """A kernel parameter is not as a policy wants it.

    Nothing has failed because of it as far as triaged knows. The policy's reason stands in the evidence; the
    severity is the policy's. A parameter that this kernel does not have is no finding.
    """
    subject = HostSubject(facts.key)
    undecided = _is_undecided(facts)
    if undecided:
        return undecided
    if facts.is_missing:
        wanted = facts.requirement
        return Problem(
            subject, f"{facts.key} does not exist on this kernel, policy {wanted.policy} wants it",
            (Evidence(facts.key, str(facts.value), facts.path, facts.time_usec), Evidence("why", wanted.why, wanted.origin)),
            (), severity=wanted.severity, time_usec=facts.time_usec,
        )
    running = " ".join(str(facts.value).split())
    violated = _violated(facts.requirement, running)
    if not violated:
        return Fine(subject, f"{facts.key} is {shown(running)}, as policy {facts.requirement.policy} wants it")
    if _is_user_namespaces_off(facts.key, running):
        return Fine(subject, "reported by sysctl.user-namespaces-off instead")
    wishes = " and ".join(f"policy {each.policy} wants {each.wish}" for each in violated)
    return Problem(
        subject, f"{facts.key} is {shown(running)}, {wishes}", _evidence(facts, violated), _fixes(facts, running),
        severity=min(each.severity for each in violated), time_usec=facts.time_usec,
    )


@rule(
    "sysctl.user-namespaces-off", on=ParameterFacts, severity=Severity.WARNING, kind=Kind.RISK,
    references=("man:user_namespaces(7)", "man:namespaces(7)"),
)
def user_namespaces_off(facts: ParameterFacts) -> Verdict:
    """A kernel parameter makes user namespaces fail, and a policy wants them to work.

    Go's os/exec makes none by itself; tests that set SysProcAttr.Cloneflags, rootless containers and sandboxes
    do. The three parameters fail in three ways: user.max_user_namespaces=0 with ENOSPC (the text says "no space left on
    device", no disk is full), kernel.unprivileged_userns_clone=0 (Debian and Ubuntu kernels only) with EPERM, and
    kernel.apparmor_restrict_unprivileged_userns=1 (Ubuntu) only afterwards, when the namespace is used.
    """
    subject = HostSubject(facts.key)
    if facts.key not in (_MAX_USER_NAMESPACES, _USERNS_CLONE, _APPARMOR_USERNS):
        return Undecided(subject, "not about user namespaces")
    undecided = _is_undecided(facts)
    if undecided or facts.is_missing:
        return undecided or Undecided(subject, "this kernel has no such parameter")
    running = " ".join(str(facts.value).split())
    consequence = _is_user_namespaces_off(facts.key, running)
    violated = _violated(facts.requirement, running)
    if not consequence or not violated:
        return Fine(subject, f"{facts.key} is {shown(running)}")
    return Problem(
        subject, f"{facts.key} is {shown(running)}: {consequence}", _evidence(facts, violated), _fixes(facts, running),
        severity=min(each.severity for each in violated), time_usec=facts.time_usec,
    )
