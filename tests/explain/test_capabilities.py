# SPDX-License-Identifier: Apache-2.0
"""capability.CAP_X: who lacks it, since when, and what else would have refused."""
from __future__ import annotations

import pytest
from situations import blamed, call, outcomes, own_fault, ruled_out, undecided
from surroundings import deed, facts, filter_of, regular, seeing, someone, told

from triaged.explain.capabilities import CAPABILITY_HYPOTHESES, NEEDS
from triaged.explain.hypothesis import Hypothesis
from triaged.model.cause import Blamed, Status
from triaged.seccomp.syscalls import native_arch, number_of

PORT_START = {"net.ipv4.ip_unprivileged_port_start": "1024"}


def of(name: str) -> Hypothesis:
    return next(each for each in CAPABILITY_HYPOTHESES if each.cause == f"capability.CAP_{name}")


@pytest.mark.parametrize(("name", "syscall", "errno", "arguments"), [
    ("SYS_ADMIN", "mount", "EPERM", ()),
    ("SYS_ADMIN", "sethostname", "EPERM", ()),
    ("SYS_ADMIN", "unshare", "EPERM", (0x40000000,)),
    ("SYS_ADMIN", "setns", "EPERM", ()),
    ("SYS_ADMIN", "fanotify_init", "EPERM", ()),
    ("SYS_ADMIN", "clone", "EPERM", (0x20000011, 0, 0, 0, 0, 0)),
    ("CHOWN", "fchownat", "EPERM", ()),
    ("SETUID", "setresuid", "EPERM", ()),
    ("SETGID", "setgroups", "EPERM", ()),
    ("SYS_CHROOT", "chroot", "EPERM", ()),
    ("NET_RAW", "socket", "EPERM", (2, 3, 1)),
    ("NET_RAW", "socket", "EPERM", (17, 3, 768)),
    ("SYS_NICE", "setpriority", "EACCES", ()),
    ("SYS_NICE", "sched_setscheduler", "EPERM", ()),
    ("MKNOD", "mknodat", "EPERM", ()),
    ("SYS_TIME", "clock_settime", "EPERM", ()),
    ("SYS_BOOT", "reboot", "EPERM", ()),
    ("BPF", "bpf", "EPERM", ()),
    ("SYSLOG", "syslog", "EPERM", ()),
    ("KILL", "kill", "EPERM", ()),
    ("SYS_MODULE", "finit_module", "EPERM", ()),
])
def test_root_without_it_is_proved_and_the_ordinary_user_likely(
    name: str, syscall: str, errno: str, arguments: tuple[int, ...]
) -> None:
    symptom = call(syscall, errno, arguments=arguments)
    found = blamed(of(name), seeing(symptom, someone(uid=0, lacks=[name])))
    assert (found.cause, found.status) == (f"capability.CAP_{name}", Status.PROVED)
    assert name in found.fixes[0].title
    assert blamed(of(name), seeing(symptom, someone())).status is Status.LIKELY
    assert f"has CAP_{name}" in ruled_out(of(name), seeing(symptom, someone(uid=0)))


def test_a_low_port_needs_it_and_a_high_one_does_not() -> None:
    who = someone(uid=0, lacks=["NET_BIND_SERVICE"])
    low = seeing(call("bind", "EACCES", path=":80"), who, parameters=PORT_START)
    assert blamed(of("NET_BIND_SERVICE"), low).status is Status.PROVED
    assert outcomes(of("NET_BIND_SERVICE"), seeing(call("bind", "EACCES", path=":8080"), who, parameters=PORT_START)) == []
    assert outcomes(of("NET_BIND_SERVICE"), seeing(call("bind", "EACCES", path="/run/x.sock"), who, parameters=PORT_START)) == []
    text = told("listen tcp :80: bind: permission denied", "EACCES", "bind")
    assert blamed(of("NET_BIND_SERVICE"), seeing(text, who, parameters=PORT_START)).cause == "capability.CAP_NET_BIND_SERVICE"


def test_an_ordinary_socket_needs_no_raw_rights() -> None:
    symptom = call("socket", "EPERM", arguments=(2, 1, 0))
    assert outcomes(of("NET_RAW"), seeing(symptom, someone())) == []


def test_namespaces_made_with_a_user_namespace_need_none() -> None:
    symptom = call("clone", "EPERM", arguments=(0x50000011, 0, 0, 0, 0, 0))
    assert outcomes(of("SYS_ADMIN"), seeing(symptom, someone())) == []


def test_the_group_of_an_own_file_may_be_changed_without_it() -> None:
    mine = facts("/tmp/x", regular("/tmp/x", uid=1000))
    keeps = call("fchownat", "EPERM", path="/tmp/x", arguments=(0xFFFFFF9C, 0, 0xFFFFFFFF, 1000, 0, 0))
    assert outcomes(of("CHOWN"), seeing(keeps, someone(), files=[mine])) == []
    away = call("fchownat", "EPERM", path="/tmp/x", arguments=(0xFFFFFF9C, 0, 0, 0, 0, 0))
    assert blamed(of("CHOWN"), seeing(away, someone(), files=[mine])).cause == "capability.CAP_CHOWN"


def test_the_mode_of_a_file_is_a_matter_of_root_only() -> None:
    shut = facts("/data/x", regular("/data/x", 0o600, uid=7))
    symptom = call("openat", "EACCES", path="/data/x")
    found = blamed(of("DAC_OVERRIDE"), seeing(symptom, someone(uid=0, lacks=["DAC_OVERRIDE", "DAC_READ_SEARCH"]), files=[shut]))
    assert found.status is Status.PROVED
    assert outcomes(of("DAC_OVERRIDE"), seeing(symptom, someone(), files=[shut])) == []
    open_to_all = facts("/data/x", regular("/data/x", 0o666, uid=7))
    root = someone(uid=0, lacks=["DAC_OVERRIDE"])
    assert outcomes(of("DAC_OVERRIDE"), seeing(symptom, root, files=[open_to_all])) == []


def test_somebody_elses_file_is_changed_by_root_with_it() -> None:
    theirs = facts("/data/x", regular("/data/x", uid=7))
    symptom = call("fchmodat", "EPERM", path="/data/x")
    assert blamed(of("FOWNER"), seeing(symptom, someone(uid=0, lacks=["FOWNER"]), files=[theirs])).status is Status.PROVED
    assert outcomes(of("FOWNER"), seeing(symptom, someone(), files=[theirs])) == []


def test_seccomp_comes_before_capabilities() -> None:
    number = number_of(native_arch(), "mount") or 0
    who = someone(seccomp_mode="filter", filters=(filter_of((number, 0x00050001)),))
    assert "seccomp" in ruled_out(of("SYS_ADMIN"), seeing(call("mount", "EPERM"), who))


def test_a_capability_that_apparmor_refused_is_not_missing() -> None:
    line = 'audit: type=1400 apparmor="DENIED" operation="capable" profile="p" pid=500 comm="a.test" capability=0 capname="chown"'
    assert "AppArmor" in ruled_out(of("CHOWN"), seeing(call("fchownat", "EPERM"), someone(), log=[line]))


def test_what_the_test_gave_up_itself_is_its_own_matter() -> None:
    who = someone(uid=0, lacks=["CHOWN"])
    situation = seeing(call("fchownat", "EPERM"), who, at_start=someone(uid=0), deeds=(deed("prctl", 24, 0),))
    assert "gave it up itself" in own_fault(of("CHOWN"), situation)
    by_others = seeing(call("fchownat", "EPERM"), who, at_start=someone(uid=0), deeds=(deed("prctl", 24, 0, is_test=False),))
    assert blamed(of("CHOWN"), by_others).status is Status.PROVED


def test_without_a_process_it_is_open() -> None:
    assert undecided(of("CHOWN"), seeing(call("fchownat", "EPERM"), None)) == "no process was named"


def test_a_fork_exec_of_the_output_is_blamed_on_the_only_one_that_is_missing() -> None:
    symptom = told("fork/exec /bin/true: operation not permitted", "EPERM")
    found = blamed(of("SETUID"), seeing(symptom, someone(uid=0, lacks=["SETUID"])))
    assert found.status is Status.LIKELY
    two = seeing(symptom, someone(uid=0, lacks=["SETUID", "SYS_ADMIN"]))
    assert blamed(of("SETUID"), two).status is Status.POSSIBLE
    assert blamed(of("SETUID"), seeing(symptom, someone())).status is Status.POSSIBLE


def test_text_names_the_call() -> None:
    who = someone(uid=0, lacks=["CHOWN"])
    assert blamed(of("CHOWN"), seeing(told("chown /x: operation not permitted", "EPERM"), who)).cause == "capability.CAP_CHOWN"
    mine = [each for each in CAPABILITY_HYPOTHESES for _ in outcomes(each, seeing(told("operation not permitted", "EPERM"), who))]
    assert mine == []


@pytest.mark.parametrize(("cgroup", "wanted"), [
    ("/docker/" + "b" * 64, "--cap-add=CHOWN"), ("/system.slice/ci.service", "CapabilityBoundingSet="),
    ("/user.slice/x", "bounding set"),
])
def test_who_took_it_away_is_who_gives_it_back(cgroup: str, wanted: str) -> None:
    found = blamed(of("CHOWN"), seeing(call("chown", "EPERM"), someone(uid=0, lacks=["CHOWN"], cgroup=cgroup)))
    assert wanted in found.fixes[0].title


def test_every_need_has_a_known_capability_and_its_own_calls() -> None:
    for need in NEEDS:
        assert need.number >= 0
        assert need.calls
    assert len({need.capability for need in NEEDS}) == len(NEEDS)


def test_one_call_is_blamed_on_one_capability() -> None:
    for syscall in ("mount", "chroot", "setuid", "setgroups", "mknod", "bpf", "kill", "reboot"):
        situation = seeing(call(syscall, "EPERM"), someone(uid=0, lacks=[each.capability for each in NEEDS]))
        found = [each for one in CAPABILITY_HYPOTHESES for each in outcomes(one, situation)]
        assert len([each for each in found if isinstance(each, Blamed) and each.status is Status.PROVED]) == 1, syscall
