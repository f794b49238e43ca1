# SPDX-License-Identifier: Apache-2.0
"""Parameters that decide who may: closed, open, exempt, not there, and behind a filter."""
from __future__ import annotations

from dataclasses import replace

import pytest
from situations import blamed, call, outcomes, own_fault, ruled_out, undecided
from surroundings import deed, directory, facts, filter_of, regular, seeing, someone, told

from triaged.explain.capabilities import CAPABILITY_HYPOTHESES
from triaged.explain.gates import (
    dmesg_restrict,
    io_uring_disabled,
    perf_event_paranoid,
    ping_group_range,
    protected_fifos,
    protected_hardlinks,
    protected_regular,
    protected_symlinks,
    unprivileged_bpf_disabled,
    unprivileged_port_start,
    unprivileged_userfaultfd,
    yama,
)
from triaged.explain.hypothesis import Hypothesis, explain
from triaged.explain.situation import Situation
from triaged.model.cause import Status
from triaged.model.fix import ManualStep, SetParameter
from triaged.model.limit import Unknown
from triaged.model.surroundings import Node
from triaged.model.symptom import Symptom
from triaged.seccomp.syscalls import native_arch, number_of

PERF, BPF, URING = "kernel.perf_event_paranoid", "kernel.unprivileged_bpf_disabled", "kernel.io_uring_disabled"
UFFD, PORTS, PING = "vm.unprivileged_userfaultfd", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"
YAMA, DMESG = "kernel.yama.ptrace_scope", "kernel.dmesg_restrict"

CLOSED = (
    (perf_event_paranoid, call("perf_event_open", "EACCES"), PERF, "3", "-1", ["PERFMON"]),
    (unprivileged_bpf_disabled, call("bpf", "EPERM"), BPF, "2", "0", ["BPF"]),
    (io_uring_disabled, call("io_uring_setup", "EPERM"), URING, "1", "0", ["SYS_ADMIN"]),
    (unprivileged_userfaultfd, call("userfaultfd", "EPERM", arguments=(0,) * 6), UFFD, "0", "1", ["SYS_PTRACE"]),
    (unprivileged_port_start, call("bind", "EACCES", path=":80"), PORTS, "1024", "80", ["NET_BIND_SERVICE"]),
    (dmesg_restrict, call("openat", "EPERM", path="/dev/kmsg"), DMESG, "1", "0", ["SYSLOG"]),
    (yama, call("ptrace", "EPERM", arguments=(16, 77, 0, 0, 0, 0)), YAMA, "1", "0", ["SYS_PTRACE"]),
)


@pytest.mark.parametrize(("gate", "symptom", "key", "closed", "opened", "exempt"), CLOSED)
def test_closed_open_and_exempt(
    gate: Hypothesis, symptom: Symptom, key: str, closed: str, opened: str, exempt: list[str]
) -> None:
    found = blamed(gate, seeing(symptom, someone(), parameters={key: closed}))
    assert found.status is Status.PROVED
    assert found.cause in (f"sysctl.{key}", "lsm.yama")
    fix = found.fixes[0]
    assert isinstance(fix, SetParameter)
    assert (fix.parameter, fix.seen) == (key, closed)
    assert ruled_out(gate, seeing(symptom, someone(), parameters={key: opened}))
    assert ruled_out(gate, seeing(symptom, someone(has=exempt), parameters={key: closed}))


@pytest.mark.parametrize(("gate", "symptom", "key", "closed"), [each[:4] for each in CLOSED])
def test_a_filter_that_refused_comes_first(gate: Hypothesis, symptom: Symptom, key: str, closed: str) -> None:
    number = number_of(native_arch(), symptom.syscall) or 0
    error = 0x0005000D if symptom.errno == "EACCES" else 0x00050001
    who = someone(seccomp_mode="filter", filters=(filter_of((number, error)),))
    assert "seccomp" in ruled_out(gate, seeing(symptom, who, parameters={key: closed}))


@pytest.mark.parametrize(("gate", "symptom", "key", "closed"), [each[:4] for each in CLOSED])
def test_filters_that_are_not_known_leave_it_likely(gate: Hypothesis, symptom: Symptom, key: str, closed: str) -> None:
    who = someone(seccomp_mode="filter", filters=Unknown("not permitted"))
    assert blamed(gate, seeing(symptom, who, parameters={key: closed})).status is Status.LIKELY


def test_a_kernel_without_the_parameter_is_not_to_blame() -> None:
    for gate, symptom in ((io_uring_disabled, call("io_uring_setup", "EPERM")), (yama, call("ptrace", "EPERM")),
                          (unprivileged_userfaultfd, call("userfaultfd", "EPERM"))):
        assert ruled_out(gate, seeing(symptom, someone()))
    assert undecided(perf_event_paranoid, seeing(call("perf_event_open", "EACCES"), someone()))


def ranked(situation: Situation, *more: Hypothesis) -> list[str]:
    return [each.cause for each in explain(situation, (*more, *CAPABILITY_HYPOTHESES)).causes]


def test_for_a_user_the_parameter_comes_first_and_for_root_the_capability() -> None:
    bind = call("bind", "EACCES", path=":80")
    user = seeing(bind, someone(), parameters={PORTS: "1024"})
    assert ranked(user, unprivileged_port_start)[0] == f"sysctl.{PORTS}"
    root = seeing(bind, someone(0, lacks=["NET_BIND_SERVICE"]), parameters={PORTS: "1024"})
    assert ranked(root, unprivileged_port_start)[0] == "capability.CAP_NET_BIND_SERVICE"
    bpf = call("bpf", "EPERM")
    assert ranked(seeing(bpf, someone(), parameters={BPF: "2"}), unprivileged_bpf_disabled)[0] == f"sysctl.{BPF}"
    root = seeing(bpf, someone(0, lacks=["BPF", "SYS_ADMIN"]), parameters={BPF: "2"})
    assert ranked(root, unprivileged_bpf_disabled)[0] == "capability.CAP_BPF"


def test_a_port_that_is_not_low_is_not_closed() -> None:
    high = call("bind", "EACCES", path=":8080")
    assert "not below" in ruled_out(unprivileged_port_start, seeing(high, someone(), parameters={PORTS: "1024"}))
    text = told("listen tcp :80: bind: permission denied", "EACCES", "bind", ":80")
    assert blamed(unprivileged_port_start, seeing(text, someone(), parameters={PORTS: "1024"})).status is Status.PROVED


def test_a_test_that_gave_up_its_rights_closed_the_port_itself() -> None:
    low, user = call("bind", "EACCES", path=":81"), someone(65534)
    drops = deed("setresuid", 0xFFFFFFFF, 65534, 0xFFFFFFFF)
    given = {"parameters": {PORTS: "1024"}, "at_start": someone(0, pid=300)}
    assert "gave it up itself" in own_fault(unprivileged_port_start, seeing(low, user, deeds=(drops,), **given))
    by_a_child = replace(drops, pid=501)
    assert blamed(unprivileged_port_start, seeing(low, user, deeds=(by_a_child,), **given)).status is Status.PROVED


def test_bpf_that_is_off_until_the_next_boot_is_not_set_back() -> None:
    found = blamed(unprivileged_bpf_disabled, seeing(call("bpf", "EPERM"), someone(), parameters={BPF: "1"}))
    assert isinstance(found.fixes[0], ManualStep)
    assert "restart" in found.fixes[0].title


def test_io_uring_that_is_off_for_all_binds_root() -> None:
    situation = seeing(call("io_uring_setup", "EPERM"), someone(0), parameters={URING: "2"})
    assert blamed(io_uring_disabled, situation).status is Status.PROVED
    group = seeing(call("io_uring_setup", "EPERM"), someone(), parameters={URING: "1", "kernel.io_uring_group": "1000"})
    assert "io_uring_group" in ruled_out(io_uring_disabled, group)


def test_a_userfaultfd_for_user_mode_is_open_to_all() -> None:
    symptom = call("userfaultfd", "EPERM", arguments=(1, 0, 0, 0, 0, 0))
    assert "USER_MODE_ONLY" in ruled_out(unprivileged_userfaultfd, seeing(symptom, someone(), parameters={UFFD: "0"}))


def test_yama_3_binds_root_and_stays() -> None:
    symptom = call("ptrace", "EPERM", arguments=(0, 0, 0, 0, 0, 0))
    found = blamed(yama, seeing(symptom, someone(0), parameters={YAMA: "3"}))
    assert found.status is Status.PROVED
    assert "restart" in found.fixes[0].title
    assert "TRACEME" in ruled_out(yama, seeing(symptom, someone(), parameters={YAMA: "1"}))


def test_yamas_own_log_proves_it_without_arguments() -> None:
    line = 'ptrace attach of "sleep 5"[823] was attempted by "/tmp/a.test"[500]'
    text = told("ptrace attach pid: operation not permitted", "EPERM", "ptrace")
    assert blamed(yama, seeing(text, someone(), parameters={YAMA: "1"}, log=[line])).status is Status.PROVED
    assert blamed(yama, seeing(text, someone(), parameters={YAMA: "1"})).status is Status.LIKELY
    assert outcomes(yama, seeing(call("openat", "EACCES", path="/etc/shadow"), someone(), parameters={YAMA: "1"})) == []


def test_ping_needs_a_group_of_the_range() -> None:
    symptom = call("socket", "EACCES", arguments=(2, 2, 1, 0, 0, 0))
    assert blamed(ping_group_range, seeing(symptom, someone(0), parameters={PING: "1\t0"})).status is Status.PROVED
    assert ruled_out(ping_group_range, seeing(symptom, someone(), parameters={PING: "0\t2147483647"}))
    stream = call("socket", "EACCES", arguments=(2, 1, 6, 0, 0, 0))
    assert outcomes(ping_group_range, seeing(stream, someone(), parameters={PING: "1 0"})) == []


SHARED = (directory("/"), directory("/tmp", 0o1777))


def test_a_hard_link_to_somebody_elses_file() -> None:
    on = {"fs.protected_hardlinks": "1"}
    symptom = call("linkat", "EPERM", path="/tmp/x")
    theirs = facts("/tmp/x", regular("/tmp/x", 0o644, 7), *SHARED)
    assert blamed(protected_hardlinks, seeing(symptom, someone(), files=[theirs], parameters=on)).status is Status.PROVED
    mine = facts("/tmp/x", regular("/tmp/x", 0o644, 1000), *SHARED)
    assert "belongs" in ruled_out(protected_hardlinks, seeing(symptom, someone(), files=[mine], parameters=on))
    writable = facts("/tmp/x", regular("/tmp/x", 0o666, 7), *SHARED)
    assert "read and write" in ruled_out(protected_hardlinks, seeing(symptom, someone(), files=[writable], parameters=on))
    assert ruled_out(protected_hardlinks, seeing(symptom, someone(), files=[theirs], parameters={"fs.protected_hardlinks": "0"}))
    assert "FOWNER" in ruled_out(protected_hardlinks, seeing(symptom, someone(has=["FOWNER"]), files=[theirs], parameters=on))


def test_a_symbolic_link_of_somebody_else_in_a_shared_directory_binds_root() -> None:
    link = (Node("/tmp/l", 0o120777, 7, 7), SHARED[1])
    met = facts("/etc/hosts", regular("/etc/hosts"), links=(link,))
    symptom = call("openat", "EACCES", path="/tmp/l")
    kept = {"file:/tmp/l": met}
    on = {"fs.protected_symlinks": "1"}
    assert blamed(protected_symlinks, seeing(symptom, someone(0), kept=kept, parameters=on)).status is Status.PROVED
    assert outcomes(protected_symlinks, seeing(symptom, someone(7), kept=kept, parameters=on)) == []
    assert outcomes(protected_symlinks, seeing(symptom, someone(0), kept=kept, parameters={"fs.protected_symlinks": "0"})) == []


def test_a_file_of_somebody_else_in_a_shared_directory_is_not_opened_to_make_it() -> None:
    theirs = facts("/tmp/x", regular("/tmp/x", 0o666, 7), *SHARED)
    creat = call("openat", "EACCES", path="/tmp/x", arguments=(0xFFFFFF9C, 0, 0o102, 0o600, 0, 0))
    on = {"fs.protected_regular": "2"}
    assert blamed(protected_regular, seeing(creat, someone(), files=[theirs], parameters=on)).status is Status.PROVED
    plain = call("openat", "EACCES", path="/tmp/x", arguments=(0xFFFFFF9C, 0, 2, 0, 0, 0))
    assert "O_CREAT" in ruled_out(protected_regular, seeing(plain, someone(), files=[theirs], parameters=on))
    assert outcomes(protected_fifos, seeing(creat, someone(), files=[theirs], parameters={"fs.protected_fifos": "1"})) == []
