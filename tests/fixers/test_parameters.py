# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triaged.config import config_paths
from triaged.errors import FixRefused, KernelError
from triaged.fixers.fixer import Probe, Unverifiable
from triaged.fixers.parameters import PARAMETERS, KernelParameter, ParameterFixer, parse_value
from triaged.kernel.paths import KernelPaths
from triaged.model.facts import ParameterFacts
from triaged.model.fix import SetParameter
from triaged.model.requirement import Operator
from triaged.model.verdict import Problem
from triaged.policy import load_policies, policy_names
from triaged.rules.parameters import below_policy


@pytest.mark.parametrize("parameter", [
    "../../etc/passwd", "kernel/pid_max", "kernel.pid_max\n", "kernel.pid_max\0", "kernel..pid_max", "", ".",
    "kernel.core_uses_pid",
    "kernel.modprobe", "KERNEL.PID_MAX", "kernel.pid_max ", "net.ipv4.conf.eth0/../../../kernel/core_pattern", "x" * 1_000_000,
])  # fmt: skip
def test_a_parameter_that_is_not_on_the_list_is_refused(parameter: str) -> None:
    with pytest.raises(FixRefused) as refusal:
        parse_value(parameter, "1")
    assert len(str(refusal.value)) < 300


@given(st.text(max_size=60))
def test_only_names_of_the_list_pass(parameter: str) -> None:
    if parameter not in PARAMETERS:
        with pytest.raises(FixRefused):
            parse_value(parameter, "1")


@pytest.mark.parametrize("value", [
    "", "abc", "1 2", "0", "4194305", "-5", "1e6", "0x1000", "١٢٣٤", "1000\n2000", "1000;reboot", " 1000", "9" * 1_000_000,
])  # fmt: skip
def test_a_pid_max_that_is_no_number_in_range_is_refused(value: str) -> None:
    with pytest.raises(FixRefused):
        parse_value("kernel.pid_max", value)


def test_a_pair_must_be_two_rising_numbers() -> None:
    assert parse_value("net.ipv4.ip_local_port_range", "1024 65535") == "1024 65535"
    for wrong in ("1024", "65535 1024", "1024  65535", "1 2 3", "0 65536"):
        with pytest.raises(FixRefused):
            parse_value("net.ipv4.ip_local_port_range", wrong)


def test_what_cannot_be_taken_back_is_refused() -> None:
    for parameter, value in (("kernel.unprivileged_bpf_disabled", "1"), ("kernel.yama.ptrace_scope", "3")):
        with pytest.raises(FixRefused):
            parse_value(parameter, value)


@pytest.mark.parametrize("value", ["|/tmp/x", "|/bin/sh -c id", "/tmp/core", "core\n", "../core", "|/bin/false ", "1"])
def test_a_core_pattern_of_ones_own_choice_is_refused(value: str) -> None:
    with pytest.raises(FixRefused, match="triaged sets core, "):
        parse_value("kernel.core_pattern", value)
    assert parse_value("kernel.core_pattern", "core.%p") == "core.%p"


def test_what_the_shipped_policies_want_can_be_set_but_for_what_cannot_be_taken_back() -> None:
    paths = config_paths({})
    seen, refused = 0, set()
    for name in policy_names(paths):
        for combined in load_policies(paths, [name]).parameters:
            for wanted in combined.includes or (combined,):
                values = wanted.value if isinstance(wanted.value, tuple) else (wanted.value,)
                known = PARAMETERS.get(wanted.key)
                assert known is not None, f"{wanted.key} of policy {name} is not on the list"
                if wanted.operator is Operator.PRESENT or (known.numbers == 2 and isinstance(wanted.value, int)):
                    continue  # nothing to set; or a width of a range, from which the rule makes one
                for value in map(str, values):
                    seen += 1
                    try:
                        parse_value(wanted.key, value)
                    except FixRefused:
                        refused.add((wanted.key, value))
    assert seen > 50
    assert refused == {("kernel.unprivileged_bpf_disabled", "1")}


def test_every_fix_that_a_shipped_policy_brings_is_on_the_closed_list() -> None:
    paths, checked = config_paths({}), 0
    for name in policy_names(paths):
        for wanted in load_policies(paths, [name]).parameters:
            numbers = ("-1", "0", "1", "2", "3", "4", "20", "9000000000", "|/x")
            for running in ("40000 40009", "1 0") if PARAMETERS[wanted.key].numbers == 2 else numbers:
                verdict = below_policy.judge(ParameterFacts(wanted.key, "", running, wanted))
                if isinstance(verdict, Problem):
                    for fix in verdict.fixes:
                        if isinstance(fix, SetParameter):
                            ParameterFixer(KernelPaths()).check(fix)
                            checked += 1
    assert checked > 400


def test_every_parameter_of_the_list_that_this_kernel_has_is_a_file_of_numbers() -> None:
    found = 0
    for parameter, known in PARAMETERS.items():
        path = f"/proc/sys/{parameter.replace('.', '/')}"
        if os.path.exists(path):
            with open(path) as file:
                words = file.read().split()
            if known.minimum < known.maximum:
                assert len(words) == known.numbers, parameter
                assert all(word.lstrip("-").isdigit() for word in words), parameter
            found += 1
    assert found > 30


@pytest.mark.parametrize(("fix", "why"), [
    (SetParameter("kernel.pid_max", "4194304", netns_pid=5, netns_start_ticks=5), "network namespace"),
    (SetParameter("net.core.somaxconn", "4096", lasting=True, netns_pid=5, netns_start_ticks=5), "nothing in it lasts"),
    (SetParameter("net.core.somaxconn", "4096", netns_pid=5), "start time"),
    (SetParameter("net.core.somaxconn", "4096", netns_pid=-1, netns_start_ticks=5), "start time"),
])  # fmt: skip
def test_a_network_namespace_that_makes_no_sense_is_refused(fix: SetParameter, why: str) -> None:
    with pytest.raises(FixRefused, match=why):
        ParameterFixer(KernelPaths()).check(fix)


async def test_tabs_of_the_kernel_are_spaces_in_a_value(tree: Path) -> None:
    part = KernelParameter(KernelPaths.below(str(tree)), "net.ipv4.ip_local_port_range", "1024 65535")
    assert await part.read() == "40000 40009"
    await part.write()
    assert (tree / "proc/sys/net/ipv4/ip_local_port_range").read_text() == "1024 65535\n"


async def test_a_link_where_a_parameter_should_be_is_not_followed(tree: Path) -> None:
    file = tree / "proc/sys/kernel/pid_max"
    file.unlink()
    file.symlink_to(tree / "etc/victim")
    with pytest.raises(KernelError):
        await KernelParameter(KernelPaths.below(str(tree)), "kernel.pid_max", "1000").write()
    assert not (tree / "etc/victim").exists()


async def test_the_holder_of_a_value_is_the_file_that_sets_it_or_somebody_at_run_time(tree: Path) -> None:
    part = KernelParameter(KernelPaths.below(str(tree)), "kernel.pid_max", "1000")
    assert "somebody set it at run time" in await part.holder()
    (tree / "etc/sysctl.d/10-x.conf").write_text("kernel.pid_max = 400\n")
    assert await part.holder() == f"{tree}/etc/sysctl.d/10-x.conf:1 sets that"


@pytest.mark.parametrize(("parameter", "old", "new", "name"), [
    ("kernel.pid_max", "400", "4194304", "process-id"),
    ("fs.file-max", "2000", "9223372036854775807", "open-files"),
    ("net.core.somaxconn", "16", "4096", "listen"),
    ("vm.max_map_count", "65530", "262144", "map-regions"),
    ("user.max_user_namespaces", "0", "10000", "user-namespace"),
    ("kernel.unprivileged_userns_clone", "0", "1", "user-namespace"),
    ("fs.inotify.max_user_instances", "128", "8192", "inotify-instances"),
    ("kernel.threads-max", "500", "100000", "tasks"),
])  # fmt: skip
async def test_the_parameters_of_the_failures_have_a_test_of_their_own(parameter: str, old: str, new: str, name: str) -> None:
    probe = await ParameterFixer(KernelPaths()).probe(SetParameter(parameter, new), old, 1000)
    assert isinstance(probe, Probe)
    assert probe.name == name


async def test_a_value_that_allows_no_more_than_before_has_no_test() -> None:
    probe = await ParameterFixer(KernelPaths()).probe(SetParameter("vm.max_map_count", "65530"), "262144", None)
    assert isinstance(probe, Unverifiable)


async def test_root_is_not_asked_where_root_is_exempt() -> None:
    fixer = ParameterFixer(KernelPaths())
    files = await fixer.probe(SetParameter("fs.file-max", "100000"), "2000", 0)
    uring = await fixer.probe(SetParameter("kernel.io_uring_disabled", "0"), "1", 0)
    assert isinstance(files, Probe)
    assert isinstance(uring, Probe)
    assert files.arguments["uid"] == uring.arguments["uid"] == 65534
