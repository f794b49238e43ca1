# SPDX-License-Identifier: Apache-2.0
"""Every parameter whose effect a fix can show: set low, found, repaired through the helper in its sandbox, shown, undone.

`test_fixes.py` takes nine limits through everything; this takes the rest through the part that a sandbox could break: the probe,
which becomes another user, makes namespaces, maps regions or listens, inside the unit that the package installs.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fixing import apply, finding_with, undo
from hardware import Snapshot
from image import SUITES
from machine import Machine, restore

RULES = ("sysctl.below-policy", "sysctl.user-namespaces-off")
POLICY = "/etc/triaged/policies.d/sweep.toml"
CONFIG = "/etc/triaged/triaged.toml.d/sweep.toml"


@dataclass(frozen=True)
class Parameter:
    """A parameter, the value that is too low (or too strict), and what a policy asks for."""

    name: str
    bad: str
    operator: str
    wanted: int | str

    @property
    def entry(self) -> str:
        """What the policy says of it."""
        wanted = f'"{self.wanted}"' if isinstance(self.wanted, str) else str(self.wanted)
        return (
            f'[[parameter]]\nkey = "{self.name}"\noperator = "{self.operator}"\nvalue = {wanted}\nwhy = "the sweep"\n'
            'references = ["man:sysctl(8)"]\nweakens = "nothing that this test is about"\n'
        )


NAMESPACES = tuple(
    Parameter(f"user.max_{kind}_namespaces", "0", "at-least", 1000)
    for kind in ("user", "net", "mnt", "pid", "ipc", "uts", "cgroup", "time")
)
PARAMETERS = (
    *NAMESPACES,
    Parameter("kernel.unprivileged_userns_clone", "0", "equals", 1),
    Parameter("kernel.io_uring_disabled", "1", "equals", 0),
    Parameter("kernel.perf_event_paranoid", "3", "at-most", 2),
    Parameter("kernel.yama.ptrace_scope", "1", "equals", 0),
    Parameter("vm.unprivileged_userfaultfd", "0", "equals", 1),
    Parameter("net.ipv4.ping_group_range", "1 0", "equals", "0 2147483647"),
    Parameter("net.core.somaxconn", "16", "at-least", 128),
    Parameter("net.ipv4.ip_unprivileged_port_start", "1024", "at-most", 80),
    Parameter("kernel.pid_max", "2000", "at-least", 32768),
    Parameter("kernel.threads-max", "400", "at-least", 4000),
    Parameter("fs.file-max", "4000", "at-least", 40000),
    Parameter("fs.nr_open", "600000", "at-least", 1048576),
    Parameter("vm.max_map_count", "2000", "at-least", 65530),
    Parameter("fs.inotify.max_user_instances", "8", "at-least", 128),
    Parameter("user.max_inotify_instances", "8", "at-least", 128),
    Parameter("fs.inotify.max_user_watches", "64", "at-least", 8192),
    Parameter("user.max_inotify_watches", "64", "at-least", 8192),
    Parameter("fs.aio-max-nr", "128", "at-least", 65536),
)


@pytest.fixture(scope="module")
def workshop(installed: Snapshot) -> Iterator[Machine]:
    """One machine for all: each parameter is as it was when its test is over."""
    with restore(installed) as machine:
        machine.write(POLICY, 'title = "The sweep"\n' + "".join(parameter.entry for parameter in PARAMETERS))
        machine.write(CONFIG, 'policies = ["sweep"]\n')
        machine.run("systemctl reload triaged")
        yield machine


# On Debian 12, whose systemd builds the sandbox otherwise, one of each kind of probe.
ON_BOTH = [
    parameter for parameter in PARAMETERS if parameter.name in (
        "user.max_net_namespaces", "kernel.perf_event_paranoid", "vm.unprivileged_userfaultfd", "net.core.somaxconn",
        "kernel.threads-max", "fs.file-max", "user.max_inotify_watches", "fs.aio-max-nr",
    )
]


@pytest.mark.parametrize("parameter", ON_BOTH, ids=lambda parameter: parameter.name)
def test_the_effect_of_a_parameter_is_shown_from_within_the_sandbox(workshop: Machine, parameter: Parameter) -> None:
    set_low_and_repair(workshop, parameter)


@pytest.mark.parametrize("booted", SUITES[:1], indirect=True)
@pytest.mark.parametrize(
    "parameter", [parameter for parameter in PARAMETERS if parameter not in ON_BOTH], ids=lambda parameter: parameter.name
)
def test_the_effect_of_another_parameter_is_shown_from_within_the_sandbox(workshop: Machine, parameter: Parameter) -> None:
    set_low_and_repair(workshop, parameter)


def set_low_and_repair(machine: Machine, parameter: Parameter) -> None:
    """The whole of it for one parameter."""
    name = parameter.name
    before = machine.run(["sysctl", "-n", name], check=False)
    if before.status:
        # Not every kernel has each: then nothing may be said of it.
        listed = machine.run("triagectl list --json").out
        assert f"set-parameter:{name}" not in listed
        return
    machine.run(["sysctl", "-q", "-w", f"{name}={parameter.bad}"])
    try:
        rule = RULES[1] if name in ("user.max_user_namespaces", "kernel.unprivileged_userns_clone") else RULES[0]
        finding = finding_with(machine, f"set-parameter:{name}", rule)
        outcome = apply(machine, finding["Id"], f"set-parameter:{name}")
        assert outcome["State"] == "verified", outcome
        assert outcome["Verification"].startswith("verified: "), outcome
        assert undo(machine, finding["Id"], f"set-parameter:{name}")["State"] == "undone"
        assert machine.run(["sysctl", "-n", name]).out.split() == parameter.bad.split()
    finally:
        machine.run(["sysctl", "-q", "-w", f"{name}={before.out.strip()}"])
