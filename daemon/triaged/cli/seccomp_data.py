# SPDX-License-Identifier: Apache-2.0
"""The installed data about seccomp, and profiles from files or by name, read for `triagectl seccomp`."""
from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, replace

from triaged.errors import ConfigError
from triaged.seccomp import oci, systemd_filter
from triaged.seccomp.policy import Policy
from triaged.workload_needs import data_directory

MAX_PROFILE_BYTES = 4 << 20
CAPABILITIES_NONE, CAPABILITIES_DEFAULT, CAPABILITIES_ALL = "none", "default", "all"


def read_groups() -> systemd_filter.Groups:
    """systemd's groups: those of the systemd that is installed here, otherwise of the one that the data came from."""
    if shutil.which("systemd-analyze"):
        try:
            done = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            pass
        else:
            groups = systemd_filter.parse_groups(done.stdout)
            if "@default" in groups:
                return groups
    with open(os.path.join(data_directory(), "systemd-252.groups"), encoding="ascii") as file:
        return systemd_filter.parse_groups(file.read())


def default_names() -> tuple[str, ...]:
    """The default profiles that ship with triaged: docker-26.1, podman-0.62, ..."""
    files = os.listdir(os.path.join(data_directory(), "defaults"))
    names = (name.removesuffix(".json") for name in files if name.endswith(".json"))
    return tuple(sorted(names, key=lambda name: (name.split("-")[0], [int(part) for part in re.findall(r"\d+", name)])))


def read_default(name: str) -> oci.Profile:
    """A default profile by its name, or the newest of a runtime ("docker", "docker-default"). Raises: ConfigError."""
    wanted = name.removesuffix("-default")
    found = [each for each in default_names() if each == wanted or each.split("-")[0] == wanted]
    if not found:
        raise ConfigError(name, 0, "is no file and no default profile", f"known are {', '.join(default_names())}")
    path = os.path.join(data_directory(), "defaults", f"{found[-1]}.json")
    with open(path, encoding="utf-8") as file:
        return replace(oci.parse_profile(file.read(), path), origin=found[-1])


def read_profile(name: str) -> oci.Profile | systemd_filter.SystemdFilter:
    """A profile: a file of OCI JSON, a systemd unit, drop-in or list, or a default by its name. Raises: ConfigError."""
    if not os.path.exists(name) and "/" not in name:
        return read_default(name)
    try:
        with open(name, "rb") as file:
            content = file.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(name, 0, f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_PROFILE_BYTES:
        raise ConfigError(name, 0, f"is larger than {MAX_PROFILE_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(name, 0, "is not UTF-8") from error
    if text.lstrip().startswith("{") or name.endswith(".json"):
        return oci.parse_profile(text, name)
    return systemd_filter.parse_filter(text, name, read_groups())


@dataclass(frozen=True)
class Recognised:
    """The default profile that a profile is, or comes near to. `added` and `removed` are the calls of rules that differ.

    `rules` says of each such call what the rules are that only this profile ("+") or only the default ("-") has, with what they
    depend on: arguments, capabilities, kernel versions.
    """

    name: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    rules: tuple[tuple[str, str, str], ...] = ()


def recognise(profile: oci.Profile) -> Recognised | None:
    """Which default profile this one is by its content, or was made from (nine tenths of its rules' calls are the same)."""
    own = _fingerprint(profile)
    best: Recognised | None = None
    for name in default_names():
        default = read_default(name)
        theirs = _fingerprint(default)
        if profile.default != default.default or len(own & theirs) < 0.9 * max(len(own), len(theirs)):
            continue
        rules = (*_told("+", own - theirs), *_told("-", theirs - own))
        found = Recognised(name, _names(own - theirs), _names(theirs - own), rules)
        if best is None or len(found.added) + len(found.removed) <= len(best.added) + len(best.removed):
            best = found
    return best


def _fingerprint(profile: oci.Profile) -> set[tuple[str, oci.Rule]]:
    return {(name, replace(rule, names=(), comment="")) for rule in profile.rules for name in rule.names}


def _told(sign: str, rules: set[tuple[str, oci.Rule]]) -> tuple[tuple[str, str, str], ...]:
    """Each differing rule as (sign, call, what it does and when)."""
    out = []
    for name, rule in sorted(rules, key=lambda item: (item[0], str(item[1]))):
        conditions = " and ".join(str(condition) for condition in rule.conditions)
        gate = oci.gate_text(rule)
        out.append((sign, name, rule.action.effect + (f" if {conditions}" if conditions else "") + (f", {gate}" if gate else "")))
    return tuple(out)


def _names(rules: set[tuple[str, oci.Rule]]) -> tuple[str, ...]:
    return tuple(sorted({name for name, _ in rules}))


def every_capability() -> frozenset[str]:
    """The names of all capabilities."""
    return frozenset({"CAP_" + word for word in _CAPABILITIES})


def setting_for(arch: str, capabilities: str, kernel: str, runtime: str) -> oci.Setting:
    """The setting that options describe. Raises: ConfigError."""
    match = re.match(r"(\d+)\.(\d+)", kernel or platform.release())
    if not match:
        raise ConfigError("--kernel", 0, f"is no kernel version: {kernel!r}", "give it as 6.12")
    held: frozenset[str]
    if capabilities == CAPABILITIES_DEFAULT:
        held = oci.DEFAULT_CAPABILITIES
    elif capabilities == CAPABILITIES_ALL:
        held = every_capability()
    elif capabilities == CAPABILITIES_NONE:
        held = frozenset()
    else:
        words = [word.strip().upper().removeprefix("CAP_") for word in capabilities.split(",") if word.strip()]
        unknown = [word for word in words if word not in _CAPABILITIES]
        if unknown:
            remedy = "give none, default, all, or a list: SYS_ADMIN,BPF"
            raise ConfigError("--caps", 0, f"unknown capability {unknown[0]!r}", remedy)
        held = frozenset("CAP_" + word for word in words)
    return oci.Setting(arch, held, (int(match[1]), int(match[2])), runtime, "crun" if runtime == "podman" else "runc")


def resolved(profile: oci.Profile | systemd_filter.SystemdFilter, setting: oci.Setting) -> Policy:
    """What a profile of either kind comes to."""
    if isinstance(profile, oci.Profile):
        return oci.resolved(profile, setting)
    return systemd_filter.resolved(profile, setting.arch)


_CAPABILITIES = frozenset({
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
})
