# SPDX-License-Identifier: Apache-2.0
"""Namespaces that cannot be made, and what a user namespace closes."""
from __future__ import annotations

from dataclasses import replace

import pytest
from situations import blamed, call, outcomes, own_fault, ruled_out, undecided
from surroundings import ROOT_MOUNTS, deed, filter_of, mount, seeing, someone, told

from triaged.explain.hypothesis import Hypothesis
from triaged.explain.namespaces import (
    NAMESPACES,
    apparmor_restrict_unprivileged_userns,
    chrooted,
    in_chroot,
    is_mapped,
    unprivileged_userns_clone,
    user_namespace,
)
from triaged.model.cause import Status
from triaged.model.fix import SetParameter
from triaged.model.process import WorkloadMatch
from triaged.model.process_state import ProcessState
from triaged.seccomp.syscalls import native_arch, number_of

NEWUSER, NEWNET = 0x10000000, 0x40000000
PLENTY = {f"user.max_{kind}_namespaces": "96365" for kind in ("user", "pid", "net", "mnt", "uts", "ipc", "cgroup", "time")}
OTHER_USER = {"user": "user:[4026532000]", "net": "net:[4026531840]"}


def limit_of(kind: str) -> Hypothesis:
    return next(each for each in NAMESPACES if each.cause == f"sysctl.user.max_{kind}_namespaces")


def clone(flags: int, errno: str = "ENOSPC") -> object:
    return call("clone", errno, arguments=(flags | 17, 0, 0, 0, 0, 0))


def with_limits(**values: str) -> dict[str, str]:
    return {**PLENTY, **{f"user.max_{kind}_namespaces": value for kind, value in values.items()}}


@pytest.mark.parametrize("uid", [0, 1000])
def test_no_namespaces_at_all_is_proved_for_root_too(uid: int) -> None:
    situation = seeing(clone(NEWUSER), someone(uid), parameters=with_limits(user="0"))
    found = blamed(limit_of("user"), situation)
    assert (found.cause, found.status) == ("sysctl.user.max_user_namespaces", Status.PROVED)
    assert isinstance(found.fixes[0], SetParameter)
    assert found.fixes[0].parameter == "user.max_user_namespaces"
    assert found.rule == "sysctl.user-namespaces-off"


def test_the_text_of_go_says_no_space_and_the_parameter_is_blamed() -> None:
    symptom = told("fork/exec /bin/true: no space left on device", "ENOSPC", path="/bin/true")
    assert blamed(limit_of("user"), seeing(symptom, someone(), parameters=with_limits(user="0"))).status is Status.PROVED
    for kind in ("net", "pid", "mnt"):
        because = ruled_out(limit_of(kind), seeing(symptom, someone(), parameters=with_limits(user="0")))
        assert because == f"user.max_{kind}_namespaces is 96,365"


def test_a_disk_that_is_full_is_no_namespace() -> None:
    symptom = told("write /tmp/x: no space left on device", "ENOSPC", "write", "/tmp/x")
    assert outcomes(limit_of("user"), seeing(symptom, someone(), parameters=with_limits(user="0"))) == []


def test_only_the_kinds_that_were_asked_for_are_spoken_of() -> None:
    situation = seeing(clone(NEWNET), someone(0), parameters=with_limits(user="0", net="3"))
    assert outcomes(limit_of("user"), situation) == []
    assert blamed(limit_of("net"), situation).status is Status.PROVED


def test_two_low_limits_are_both_likely() -> None:
    situation = seeing(clone(NEWUSER | NEWNET), someone(), parameters=with_limits(user="0", net="0"))
    assert blamed(limit_of("user"), situation).status is Status.LIKELY
    assert blamed(limit_of("net"), situation).status is Status.LIKELY


def test_a_low_limit_of_which_the_use_is_not_known_is_likely() -> None:
    situation = seeing(clone(NEWUSER | NEWNET), someone(), parameters=with_limits(user="5"))
    assert blamed(limit_of("user"), situation).status is Status.LIKELY
    assert "96,365" in ruled_out(limit_of("net"), situation)


def test_inside_of_a_container_the_limit_that_binds_cannot_be_seen() -> None:
    situation = seeing(clone(NEWUSER | NEWNET), someone(namespaces=OTHER_USER), parameters=PLENTY)
    assert "from outside" in undecided(limit_of("user"), situation)


def test_unprivileged_userns_clone_binds_all_but_root() -> None:
    off = {"kernel.unprivileged_userns_clone": "0"}
    found = blamed(unprivileged_userns_clone, seeing(clone(NEWUSER, "EPERM"), someone(), parameters=off))
    assert (found.status, found.rule) == (Status.PROVED, "sysctl.user-namespaces-off")
    assert "CAP_SYS_ADMIN" in ruled_out(unprivileged_userns_clone, seeing(clone(NEWUSER, "EPERM"), someone(0), parameters=off))
    on = {"kernel.unprivileged_userns_clone": "1"}
    assert ruled_out(unprivileged_userns_clone, seeing(clone(NEWUSER, "EPERM"), someone(), parameters=on))
    assert "does not have" in ruled_out(unprivileged_userns_clone, seeing(clone(NEWUSER, "EPERM"), someone()))
    assert outcomes(unprivileged_userns_clone, seeing(clone(0, "EPERM"), someone(), parameters=off)) == []
    text = told("fork/exec /bin/true: operation not permitted", "EPERM")
    assert blamed(unprivileged_userns_clone, seeing(text, someone(), parameters=off)).status is Status.LIKELY


def test_seccomp_comes_before_the_gate() -> None:
    who = someone(seccomp_mode="filter", filters=(filter_of((number_of(native_arch(), "clone") or 0, 0x00050001)),))
    situation = seeing(clone(NEWUSER, "EPERM"), who, parameters={"kernel.unprivileged_userns_clone": "0"})
    assert "seccomp" in ruled_out(unprivileged_userns_clone, situation)


def test_ubuntus_restriction_is_proved_by_the_log_or_the_label() -> None:
    on = {"kernel.apparmor_restrict_unprivileged_userns": "1"}
    line = 'audit: type=1400 apparmor="DENIED" operation="userns_create" profile="unconfined" pid=500 comm="a.test"'
    assert blamed(apparmor_restrict_unprivileged_userns, seeing(call("mount", "EPERM"), someone(), parameters=on, log=[line]))
    labelled = someone(lsm_label="unprivileged_userns (enforce)")
    assert blamed(apparmor_restrict_unprivileged_userns, seeing(call("mount", "EACCES"), labelled, parameters=on))
    assert outcomes(apparmor_restrict_unprivileged_userns, seeing(call("mount", "EPERM"), someone(), parameters=on)) == []


def test_in_a_chroot_no_user_namespace_is_made() -> None:
    inside = someone(0, mounts=(mount("/proc", kind="proc"),))
    assert blamed(in_chroot, seeing(clone(NEWUSER, "EPERM"), inside)).status is Status.PROVED
    assert blamed(in_chroot, seeing(clone(NEWUSER, "EPERM"), someone(0, root="/srv/jail", mounts=ROOT_MOUNTS)))
    text = told("fork/exec /bin/true: operation not permitted", "EPERM")
    assert "root directory" in ruled_out(in_chroot, seeing(text, someone(0, mounts=ROOT_MOUNTS)))
    assert undecided(in_chroot, seeing(text, someone(0)))
    assert own_fault(in_chroot, seeing(clone(NEWUSER, "EPERM"), inside, deeds=(deed("chroot"),)))
    assert chrooted(someone(mounts=ROOT_MOUNTS)) is False


def test_a_chroot_onto_a_mount_is_what_is_left() -> None:
    seen = clone(NEWUSER, "EPERM")
    assert blamed(in_chroot, seeing(seen, someone(0, mounts=ROOT_MOUNTS))).status is Status.LIKELY
    closed = {"kernel.unprivileged_userns_clone": "0"}
    assert ruled_out(in_chroot, seeing(seen, someone(mounts=ROOT_MOUNTS), parameters=closed))
    assert ruled_out(in_chroot, seeing(seen, someone(0, mounts=ROOT_MOUNTS, lsm_label="x (enforce)")))
    restricted = {"kernel.apparmor_restrict_unprivileged_userns": "1"}
    assert ruled_out(in_chroot, seeing(seen, someone(mounts=ROOT_MOUNTS), parameters=restricted))


def rootless(**more: object) -> ProcessState:
    return someone(0, namespaces=OTHER_USER, uid_map="0 1000 1\n", gid_map="0 1000 1\n", **more)


def test_an_id_without_a_mapping_is_proved() -> None:
    symptom = call("fchownat", "EINVAL", arguments=(0xFFFFFF9C, 0, 12, 0, 0, 0))
    found = blamed(user_namespace, seeing(symptom, rootless()))
    assert (found.cause, found.status) == ("process.user-namespace", Status.PROVED)
    mapped = call("fchownat", "EINVAL", arguments=(0xFFFFFF9C, 0, 0, 0, 0, 0))
    assert outcomes(user_namespace, seeing(mapped, rootless())) == []
    assert "own user namespace" in ruled_out(user_namespace, seeing(symptom, someone(0)))
    text = told("chown /x: invalid argument", "EINVAL", "chown", "/x")
    assert blamed(user_namespace, seeing(text, rootless())).status is Status.LIKELY


def test_setgroups_ports_and_mounts_of_the_host_are_closed_to_root_of_a_namespace() -> None:
    assert blamed(user_namespace, seeing(call("setgroups", "EPERM"), rootless())).status is Status.PROVED
    start = {"net.ipv4.ip_unprivileged_port_start": "1024"}
    assert blamed(user_namespace, seeing(call("bind", "EACCES", path=":80"), rootless(), parameters=start)).status is Status.PROVED
    assert outcomes(user_namespace, seeing(call("bind", "EACCES", path=":8080"), rootless(), parameters=start)) == []
    assert blamed(user_namespace, seeing(call("mount", "EPERM"), rootless())).status is Status.PROVED


def test_a_namespace_that_the_test_made_is_its_own_matter() -> None:
    symptom = call("setgroups", "EPERM")
    assert own_fault(user_namespace, seeing(symptom, rootless(), deeds=(deed("unshare", NEWUSER),)))
    outside = someone(workload=WorkloadMatch("go-test", "test-binary"), namespaces={"user": "user:[4026531837]"})
    unmatched = someone(namespaces={"user": "user:[4026531837]"})
    by_name = replace(unmatched, identity=replace(unmatched.identity, argv=("/tmp/a.test", "-test.timeout=10m0s")))
    for ancestor in (outside, by_name):
        assert own_fault(user_namespace, seeing(symptom, rootless(), ancestors=(ancestor,)))
    assert blamed(user_namespace, seeing(symptom, rootless(), ancestors=(unmatched,))).status is Status.PROVED


def test_maps() -> None:
    assert is_mapped("0 1000 1\n1 100000 65536\n", 65536)
    assert not is_mapped("0 1000 1\n", 1)
    assert not is_mapped("", 0)
