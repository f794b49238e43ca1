# SPDX-License-Identifier: Apache-2.0
"""lsm.apparmor, lsm.selinux, lsm.landlock and the devices of a cgroup: what refuses although mode, owner and capabilities allow.

Hard facts:
- AppArmor's refusals are audit records (1400), unless the rule is an explicit `deny` without `audit`: then there is none
  (measured on 6.12). Its label is in /proc/PID/attr/current: "docker-default (enforce)".
- Landlock shows nowhere in /proc that a process is restricted; its refusals are audit records since 6.15, with audit on only.
- Version 2 keeps the rules for devices in a BPF program that cannot be read like a file; version 1 has devices.list.
"""
from __future__ import annotations

import re
import stat

from triaged.errors import KernelError
from triaged.explain import calls
from triaged.explain.access import Access, access_of
from triaged.explain.calls import calls_of
from triaged.explain.capabilities import lacks_nothing, port_of
from triaged.explain.hypothesis import hypothesis
from triaged.explain.mounts import mounted_for_a_moment
from triaged.explain.replay import is_old
from triaged.explain.seccomp_answer import passed_by_seccomp
from triaged.explain.security_log import apparmor_denials, selinux_denials
from triaged.explain.situation import Situation
from triaged.explain.view import (
    credentials_of,
    inherited_deeds,
    label_of,
    network_number,
    own_deeds,
    owner_of,
    state_evidence,
    subject_of,
    subject_path,
)
from triaged.kernel.files import read_text
from triaged.model.capability import capability_number
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.cgroup import container_of, unit_of
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown
from triaged.model.surroundings import CAP_DAC_OVERRIDE, FileFacts
from triaged.model.verdict import Evidence

_REFUSALS = ("EACCES", "EPERM")
_FIELD = re.compile(r'\b(operation|profile|name|class|requested_mask|denied_mask|capname|target)="([^"]*)"')
_REFUSED_BY_MODULES = frozenset({"mount", "umount2", "pivot_root", "ptrace", "unshare", "clone", "socket", "bind", "connect"})
_LANDLOCK_CALLS = frozenset({"landlock_restrict_self"})


def _fields(line: str) -> dict[str, str]:
    return dict(_FIELD.findall(line))


def _is_allowed_otherwise(situation: Situation) -> bool | None:
    """Whether filters, mode, owner and mounts would have let the call pass; None where that cannot be told."""
    symptom = situation.symptom
    if passed_by_seccomp(situation, sorted(calls_of(symptom))) is not True:
        return None
    access = access_of(situation)
    if isinstance(access, Unknown):
        return None
    is_plain = _is_plain(access.facts, _passes_modes(situation))
    return access.obstacle is None and not access.facts.has_acl and _is_mount_open(access) and is_plain


def _passes_modes(situation: Situation) -> bool:
    """Whether the process is bound by no mode: then it does not matter that the file is gone."""
    who = credentials_of(situation)
    return who is not None and who.has(CAP_DAC_OVERRIDE)


def _is_plain(facts: FileFacts, passes_modes: bool) -> bool | None:
    """Whether the file is still as it was met, and the rules for shared directories (fs.protected_*) do not concern it."""
    if facts.node is None and not facts.is_reached and not passes_modes:
        return None
    if any(directory.is_shared() for _, directory in facts.links):
        return None
    return not (facts.node is not None and facts.directory is not None and facts.directory.is_shared()) or None


def _is_mount_open(access: Access) -> bool:
    mount = access.mount
    if mount is None:
        return True
    options = mount.options | mount.super_options
    if access.wanted & 1 and "noexec" in options:
        return False
    if access.facts.node is not None and access.facts.node.is_device and "nodev" in mount.options:
        return False
    # Pseudo file systems have rules of their own behind the mode.
    return mount.kind not in ("proc", "sysfs", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "fuse", "nfs", "nfs4", "9p")


@hypothesis("lsm.apparmor", errnos=_REFUSALS)
def apparmor(situation: Situation) -> Outcome | None:
    """An AppArmor profile refuses it: EACCES for files, programs, mounts and sockets, the caller's own error for capabilities.

    Proved by a record in the kernel's log; a rule that says `deny` without `audit` leaves none. Containers run under
    docker-default.
    """
    process, symptom = situation.process, situation.symptom
    denials = apparmor_denials(situation)
    label = label_of(process)
    if denials:
        line = denials[-1]
        fields = _fields(line)
        profile = fields.get("profile") or label
        what = " ".join(each for each in (fields.get("operation", ""), fields.get("capname", ""), fields.get("name", "")) if each)
        summary = f"AppArmor's profile {shown(profile)} refused {shown(what)}"
        evidence: tuple[Evidence, ...] = (Evidence("kernel log", shown(line, 600), "audit record 1400"),)
        return Blamed("lsm.apparmor", Status.PROVED, shown(profile) or "host", summary, evidence, _for_profile(profile), weight=9)
    if process is None:
        return None
    if isinstance(process.lsm_label, Unknown):
        return NotDecidable("lsm.apparmor", process.lsm_label.why) if _has_profiles(situation) else None
    if not label or label.startswith("unconfined") or ":" in label:
        # SELinux writes its context into the same file, with colons.
        return RuledOut("lsm.apparmor", "the process runs without a profile") if label.startswith("unconfined") else None
    if "complain" in label:
        return RuledOut("lsm.apparmor", f"its profile {shown(label)} refuses nothing")
    evidence = (state_evidence(situation, "AppArmor profile", shown(label), "attr/current"),)
    if _is_capable_but_refused(situation) or (symptom.errno == "EACCES" and _is_allowed_otherwise(situation)):
        summary = f"the process runs under AppArmor's profile {shown(label)}, and nothing else forbids it"
        return Blamed("lsm.apparmor", Status.LIKELY, shown(label), summary, evidence, _for_profile(label.split()[0]), weight=3)
    return NotDecidable("lsm.apparmor", f"it runs under the profile {shown(label)}, and the log has no record of a refusal")


def _has_profiles(situation: Situation) -> bool:
    """Whether AppArmor is on and has profiles, as far as that may be read."""
    if _read(situation, f"{situation.paths.sys}/module/apparmor/parameters/enabled") != "Y":
        return False
    try:
        return bool(read_text(f"{situation.paths.sys}/kernel/security/apparmor/profiles", 65536).strip())
    except KernelError:
        return True


def _is_capable_but_refused(situation: Situation) -> bool:
    """Whether the call was refused to a process that has every capability which the kernel asks for."""
    who, symptom, process = credentials_of(situation), situation.symptom, situation.process
    if who is None or process is None or not process.has_initial_user_namespace:
        return False
    if passed_by_seccomp(situation, sorted(calls_of(symptom))) is not True:
        return False
    if symptom.errno == "EACCES" and symptom.syscall in _REFUSED_BY_MODULES:
        return who.has(capability_number("SYS_ADMIN"))
    if symptom.errno == "EACCES" and symptom.syscall in calls.MAKES_OR_CHANGES and not subject_path(situation):
        return who.has(CAP_DAC_OVERRIDE)
    return symptom.errno == "EPERM" and lacks_nothing(situation)


def _for_profile(profile: str) -> tuple[Fix, ...]:
    name = shown(profile.split(" ")[0])
    title = f"add the rule that is missing to AppArmor's profile {name} and load it again"
    return (ManualStep("apparmor-rule", title, (("aa-logprof",), ("apparmor_parser", "-r", f"/etc/apparmor.d/{name}"))),)


@hypothesis("lsm.selinux", errnos=_REFUSALS)
def selinux(situation: Situation) -> Outcome | None:
    """SELinux's policy refuses it (EACCES). Proved by an access vector record ("avc:  denied") about the process."""
    process = situation.process
    denials = selinux_denials(situation)
    if denials and "permissive=1" not in denials[-1]:
        line = denials[-1]
        step = ManualStep("selinux-rule", "label the file or extend the policy as audit2why says", (("audit2why", "-a"),))
        context = shown(label_of(process)) if process is not None else "host"
        return Blamed(
            "lsm.selinux", Status.PROVED, context or "host", "SELinux's policy refused it",
            (Evidence("kernel log", shown(line, 600), "audit record 1400"),), (step,), weight=9,
        )  # fmt: skip
    if process is None or label_of(process).count(":") < 2:
        return None
    enforcing = _read(situation, f"{situation.paths.sys}/fs/selinux/enforce")
    if enforcing == "0":
        return RuledOut("lsm.selinux", "SELinux is permissive")
    return NotDecidable("lsm.selinux", f"the process runs as {shown(label_of(process))}, and the log has no record of a refusal")


_CHANGE_IDS = ("setuid", "setresuid", "setreuid", "setgid", "setresgid", "setregid", "setgroups", "capset")


def _may_be_otherwise(situation: Situation) -> bool:
    """Whether the test changed what it may do: a single thread's ids may be others than those that /proc tells of its process."""
    return bool(inherited_deeds(situation, *_CHANGE_IDS)) or mounted_for_a_moment(situation)


@hypothesis("lsm.landlock", errnos=("EACCES", "EPERM", "EXDEV"))
def landlock(situation: Situation) -> Outcome | None:
    """A Landlock ruleset of what started the process refuses it: EACCES although mode, owner, mount and profile allow it.

    The kernel shows nowhere that a process is restricted by Landlock: this is what is left when all else is ruled out.
    """
    symptom, process = situation.symptom, situation.process
    own = [each for each in situation.deeds if each.syscall in _LANDLOCK_CALLS]
    if process is None or (symptom.errno != "EACCES" and not own):
        return None
    if own and len(own_deeds(situation, *_LANDLOCK_CALLS)) == len(own):
        return SelfInflicted("lsm.landlock", "the program under test restricted itself (landlock_restrict_self)")
    if not calls_of(symptom) & (calls.ON_PATHS | {"bind", "connect"}) and not symptom.path:
        return None
    if not own and not _has_landlock(situation):
        return RuledOut("lsm.landlock", "this kernel runs without Landlock")
    if (label := label_of(process)) and not label.startswith("unconfined"):
        return NotDecidable("lsm.landlock", "a security module with a label of its own may be the one that refused it")
    if not own and (is_old(process) or _may_be_otherwise(situation)):
        return None  # what is left when all else is ruled out must be known to be so
    allowed = _is_port_allowed(situation) if calls_of(symptom) & {"bind", "connect"} else _is_allowed_otherwise(situation)
    if not allowed and not own:
        return None
    access = access_of(situation)
    is_gone = not isinstance(access, Unknown) and access.facts.node is None and not access.is_certain
    if not own and is_gone and not _passes_modes(situation):
        why = "the file is gone, so whether its mode was the reason cannot be told any more"
        return NotDecidable("lsm.landlock", why) if situation.was_asked else None
    summary = "mode, owner, capabilities and mount allow it, no security module with a label is at work: a Landlock ruleset is left"
    evidence = (state_evidence(situation, "NoNewPrivs", _has_no_new_privileges(situation), "status"),)
    step = ManualStep("landlock", "extend the Landlock ruleset of the sandbox or supervisor that started the command")
    return Blamed("lsm.landlock", Status.LIKELY, owner_of(process), summary, evidence, (step,), weight=2 if not own else 6)


def _is_port_allowed(situation: Situation) -> bool:
    """Whether binding or connecting with EACCES has no other reason: Landlock knows TCP ports since 6.7."""
    who, port = credentials_of(situation), port_of(situation)
    start = network_number(situation, "net.ipv4.ip_unprivileged_port_start")
    if who is None or port is None or isinstance(start, Unknown):
        return False
    if passed_by_seccomp(situation, [situation.symptom.syscall]) is not True:
        return False
    return situation.symptom.syscall == "connect" or port >= start or who.has(capability_number("NET_BIND_SERVICE"))


def _has_landlock(situation: Situation) -> bool:
    # Without CAP_SYS_ADMIN nobody restricts himself by Landlock but with no_new_privs: an unlabelled process without both has none.
    modules = _read(situation, f"{situation.paths.sys}/kernel/security/lsm")
    return ("landlock" in modules.split(",") if modules else True) and (
        _has_no_new_privileges(situation) or (who := credentials_of(situation)) is None or who.has(capability_number("SYS_ADMIN"))
    )


def _has_no_new_privileges(situation: Situation) -> bool:
    who = credentials_of(situation)
    return who is not None and who.no_new_privileges


@hypothesis("cgroup.devices", syscalls=calls.OPENS | calls.NODES, errnos=("EPERM",))
def devices(situation: Situation) -> Outcome | None:
    """The devices of the cgroup (DeviceAllow=, DevicePolicy=, --device) do not include this one: open() and mknod() give EPERM."""
    process, who, symptom = situation.process, credentials_of(situation), situation.symptom
    if process is None or who is None:
        return None
    meant = calls_of(symptom)
    access = access_of(situation)
    if isinstance(access, Unknown):
        return None
    makes = bool(meant) and meant <= calls.NODES
    if makes and not who.has(capability_number("MKNOD")):
        return None
    if not makes and (access.facts.node is None or not access.facts.node.is_device or access.facts.path == "/dev/kmsg"):
        return None
    if passed_by_seccomp(situation, sorted(meant)) is False:
        return RuledOut("cgroup.devices", "a seccomp filter refused the call before")
    allowed = _devices_of_version_1(situation, process)
    # A list of everything has exceptions that it does not show (measured on 6.18: devices.deny leaves "a *:* rwm").
    is_whole = allowed is None or allowed.startswith("a *:*")
    device = access.facts.node.device if access.facts.node is not None else ""
    if not is_whole and device and is_listed(allowed or "", device):
        return RuledOut("cgroup.devices", f"its cgroup allows the device {device}")
    status = Status.PROVED if not is_whole and device else Status.LIKELY
    name = shown(access.facts.path)
    evidence = (
        Evidence("cgroup", shown(process.identity.cgroup), f"/proc/{process.identity.pid}/cgroup", process.time_usec),
        *((Evidence("devices.list", shown(" ".join(allowed.split()), 400), "cgroup version 1"),) if allowed is not None else ()),
    )
    kind = "c" if access.facts.node is None or stat.S_ISCHR(access.facts.node.mode) else "b"
    summary = f"the cgroup of {subject_of(process)} does not allow the device {name}"
    return Blamed("cgroup.devices", status, owner_of(process), summary, evidence, _for_devices(process, name, kind), weight=6)


def is_listed(allowed: str, device: str) -> bool:
    """Whether a devices.list ("c 1:3 rwm") holds a device ("c 1:3"), with whatever rights."""
    kind, _, number = device.partition(" ")
    major, _, minor = number.partition(":")
    for line in allowed.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] in (kind, "a"):
            listed_major, _, listed_minor = words[1].partition(":")
            if listed_major in ("*", major) and listed_minor in ("*", minor):
                return True
    return False


def _devices_of_version_1(situation: Situation, process: ProcessState) -> str | None:
    path = process.identity.cgroups.get("devices")
    hierarchy = situation.layout.holding("devices") if path is not None else None
    if path is None or hierarchy is None:
        return None
    return _read(situation, f"{hierarchy.mount}{path.rstrip('/')}/devices.list") or None


def _for_devices(process: ProcessState, name: str, kind: str) -> tuple[Fix, ...]:
    path = process.identity.cgroup
    container, unit = container_of(path), unit_of(path)
    if container:
        title = f"start container {container.identifier[:12]} with --device={name}"
        return (ManualStep("container-device", title, risk="the container gets the device"),)
    if unit.endswith((".service", ".scope")):
        title = f"add DeviceAllow={name} rwm to {shown(unit)} (PrivateDevices= and DevicePolicy= close what is not named)"
        show = ("systemctl", "show", "--property=DevicePolicy,DeviceAllow,PrivateDevices", unit)
        return (ManualStep("unit-device", title, (show, ("systemctl", "edit", unit))),)
    return (ManualStep("devices", f"allow the device ({kind}) in the cgroup {shown(path)}"),)


def _read(situation: Situation, path: str) -> str:
    def read() -> str:
        try:
            return read_text(path, 65536).strip()
        except KernelError:
            return ""

    return situation.kept(f"text:{path}", read)


SECURITY_MODULES = (apparmor, selinux, landlock, devices)
