# SPDX-License-Identifier: Apache-2.0
"""AppArmor, SELinux, Landlock and the devices of a cgroup."""
from __future__ import annotations

import stat
from dataclasses import replace

from situations import blamed, call, outcomes, own_fault, ruled_out, undecided
from surroundings import ROOT_MOUNTS, deed, directory, facts, mount, regular, seeing, someone

from triaged.explain.security_log import is_about_refusal
from triaged.explain.security_modules import apparmor, devices, is_listed, landlock, selinux
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.model.cause import Status
from triaged.model.limit import Unknown
from triaged.model.process_state import ProcessState
from triaged.model.surroundings import Node
from triaged.model.symptom import SeenIn

DENIED = (
    'audit: type=1400 audit(1:2): apparmor="DENIED" operation="exec" class="file" profile="corpus" name="/bin/echo" pid=500 '
    'comm="a.test" requested_mask="x" denied_mask="x" fsuid=0 ouid=0'
)
OPEN = facts("/data/x", regular("/data/x", 0o666))


def test_apparmors_record_proves() -> None:
    found = blamed(apparmor, seeing(call("execve", "EACCES"), someone(), log=[DENIED]))
    assert (found.cause, found.status, found.subject) == ("lsm.apparmor", Status.PROVED, "corpus")
    assert "/bin/echo" in found.summary


def test_a_record_of_another_process_does_not() -> None:
    line = DENIED.replace("pid=500", "pid=501").replace("a.test", "other")
    assert outcomes(apparmor, seeing(call("execve", "EACCES"), someone(), log=[line])) == []


def test_without_a_record_a_profile_is_likely_where_nothing_else_forbids_it() -> None:
    who = someone(lsm_label="docker-default (enforce)", mounts=ROOT_MOUNTS)
    assert blamed(apparmor, seeing(call("openat", "EACCES", path="/data/x"), who, files=[OPEN])).status is Status.LIKELY
    shut = facts("/data/x", regular("/data/x", 0o600))
    assert "no record" in undecided(apparmor, seeing(call("openat", "EACCES", path="/data/x"), who, files=[shut]))
    assert ruled_out(apparmor, seeing(call("openat", "EACCES"), someone(lsm_label="unconfined")))
    assert ruled_out(apparmor, seeing(call("openat", "EACCES"), someone(lsm_label="x (complain)")))


def test_a_mount_that_root_may_not_make_is_likely_apparmors() -> None:
    who = someone(0, lsm_label="docker-default (enforce)")
    assert blamed(apparmor, seeing(call("mount", "EACCES"), who)).status is Status.LIKELY


def test_a_capability_that_the_process_has_is_refused_by_the_profile() -> None:
    who = someone(0, lsm_label="corpus (enforce)")
    assert blamed(apparmor, seeing(call("fchownat", "EPERM"), who)).status is Status.LIKELY
    lacks = someone(0, lacks=["CHOWN"], lsm_label="corpus (enforce)")
    assert undecided(apparmor, seeing(call("fchownat", "EPERM"), lacks))


GONE = Unknown("it had gone")


def test_an_unknown_label_rules_nothing_out_where_apparmor_may_be_at_work() -> None:
    is_on = {"/nonexistent/sys/module/apparmor/parameters/enabled": "Y"}
    who = someone(lsm_label=GONE)
    assert undecided(apparmor, seeing(call("openat", "EACCES"), who, texts=is_on)) == "it had gone"
    assert outcomes(apparmor, seeing(call("openat", "EACCES"), who)) == []
    assert blamed(apparmor, seeing(call("execve", "EACCES"), who, log=[DENIED], texts=is_on)).status is Status.PROVED


def test_the_name_of_what_stands_for_a_process_is_not_its_own() -> None:
    line = DENIED.replace("pid=500", "pid=777")
    assert blamed(apparmor, seeing(call("execve", "EACCES"), someone(), log=[line])).status is Status.PROVED
    assert outcomes(apparmor, seeing(call("execve", "EACCES"), replace(someone(), stands_for=600), log=[line])) == []


def test_a_refusal_in_the_log_is_told_by_its_pid() -> None:
    situation = seeing(call("execve", "EACCES"), someone())
    assert is_about_refusal(situation, [DENIED])
    assert not is_about_refusal(situation, [DENIED.replace("pid=500", "pid=501"), DENIED.replace("DENIED", "ALLOWED"), ""])


def test_selinux() -> None:
    label = "system_u:system_r:container_t:s0:c1,c2"
    line = 'audit: type=1400 audit(1:2): avc:  denied  { read } for  pid=500 comm="a.test" name="x" permissive=0'
    assert blamed(selinux, seeing(call("openat", "EACCES"), someone(lsm_label=label), log=[line])).status is Status.PROVED
    assert undecided(selinux, seeing(call("openat", "EACCES"), someone(lsm_label=label)))
    permissive = line.replace("permissive=0", "permissive=1")
    enforcing = {"/nonexistent/sys/fs/selinux/enforce": "0"}
    assert ruled_out(selinux, seeing(call("openat", "EACCES"), someone(lsm_label=label), log=[permissive], texts=enforcing))
    assert outcomes(selinux, seeing(call("openat", "EACCES"), someone())) == []


def landlocked(uid: int = 1000, **more: object) -> ProcessState:
    return someone(uid, no_new_privileges=True, mounts=ROOT_MOUNTS, **more)


def test_landlock_is_what_is_left() -> None:
    symptom = call("openat", "EACCES", path="/data/x", arguments=(0, 0, 2, 0, 0, 0))
    found = blamed(landlock, seeing(symptom, landlocked(), files=[OPEN]))
    assert (found.cause, found.status) == ("lsm.landlock", Status.LIKELY)
    shut = facts("/data/x", regular("/data/x", 0o600))
    assert outcomes(landlock, seeing(symptom, landlocked(), files=[shut])) == []


def test_landlock_is_not_thought_of_where_the_test_changed_who_it_is() -> None:
    symptom = call("openat", "EACCES", path="/data/x", arguments=(0, 0, 2, 0, 0, 0))
    drops = deed("setresuid", 0xFFFFFFFF, 65534, 0xFFFFFFFF)
    assert outcomes(landlock, seeing(symptom, landlocked(), files=[OPEN], deeds=(drops,))) == []
    of_another = replace(drops, pid=77)
    assert blamed(landlock, seeing(symptom, landlocked(), files=[OPEN], deeds=(of_another,))).status is Status.LIKELY


def test_a_process_that_nobody_could_restrict_is_not_restricted() -> None:
    symptom = call("openat", "EACCES", path="/data/x", arguments=(0, 0, 2, 0, 0, 0))
    assert ruled_out(landlock, seeing(symptom, someone(mounts=ROOT_MOUNTS), files=[OPEN]))


def test_to_root_modes_are_nothing_so_a_file_that_is_gone_does_not_matter() -> None:
    gone = facts("/tmp/T/001/x", None, directory("/"), directory("/tmp", 0o1777))
    symptom = call("openat", "EACCES", path="/tmp/T/001/x")
    assert blamed(landlock, seeing(symptom, someone(0, mounts=ROOT_MOUNTS), files=[gone])).status is Status.LIKELY


def test_a_port_that_nothing_else_forbids() -> None:
    start = {"net.ipv4.ip_unprivileged_port_start": "1024"}
    symptom = call("bind", "EACCES", path="127.0.0.1:80")
    assert blamed(landlock, seeing(symptom, someone(0), parameters=start)).status is Status.LIKELY
    assert outcomes(landlock, seeing(symptom, landlocked(), parameters=start)) == []


def test_a_file_that_is_gone_leaves_landlock_open() -> None:
    gone = facts("/data/x", None)
    assert outcomes(landlock, seeing(call("openat", "EACCES", path="/data/x"), landlocked(), files=[gone])) == []
    asked = call("openat", "EACCES", path="/data/x", seen_in=SeenIn.ASKED)
    assert "is gone" in undecided(landlock, seeing(asked, landlocked(), files=[gone]))
    stale = replace(landlocked(0), stands_for=500)
    assert outcomes(landlock, seeing(call("openat", "EACCES", path="/data/x"), stale, files=[OPEN])) == []


def test_a_test_that_restricts_itself_did_it_itself() -> None:
    symptom = call("openat", "EACCES", path="/data/x")
    assert own_fault(landlock, seeing(symptom, landlocked(), files=[OPEN], deeds=(deed("landlock_restrict_self"),)))
    by_supervisor = (deed("landlock_restrict_self", is_test=False),)
    assert blamed(landlock, seeing(symptom, landlocked(), files=[OPEN], deeds=by_supervisor)).weight > 2


def test_noexec_and_pseudo_file_systems_are_not_taken_for_landlock() -> None:
    program = facts("/tmp/x", regular("/tmp/x", 0o755))
    who = someone(no_new_privileges=True, mounts=(mount("/"), mount("/tmp", "rw,noexec", "tmpfs")))
    assert outcomes(landlock, seeing(call("execve", "EACCES", path="/tmp/x"), who, files=[program])) == []
    knob = facts("/proc/sys/x", regular("/proc/sys/x", 0o666))
    assert outcomes(landlock, seeing(call("openat", "EACCES", path="/proc/sys/x"), landlocked(), files=[knob])) == []


DEVICE = Node("/dev/fuse", stat.S_IFCHR | 0o666)


def test_a_device_that_mode_and_owner_allow_is_the_cgroups() -> None:
    here = facts("/dev/fuse", DEVICE, directory("/"), directory("/dev"))
    found = blamed(devices, seeing(call("openat", "EPERM", path="/dev/fuse"), someone(cgroup="/docker/" + "c" * 64), files=[here]))
    assert (found.cause, found.status) == ("cgroup.devices", Status.LIKELY)
    assert "--device=/dev/fuse" in found.fixes[0].title


def test_the_list_of_version_1_proves_unless_it_is_of_everything() -> None:
    assert is_listed("c 1:3 rwm\nb *:* m\n", "c 1:3")
    assert is_listed("c 1:* rwm", "c 1:7")
    assert not is_listed("c 1:3 rwm", "c 1:7")
    node = replace(DEVICE, device="c 10:229")
    here = facts("/dev/fuse", node, directory("/"), directory("/dev"))
    who = someone(cgroup="/x")
    who = replace(who, identity=replace(who.identity, cgroups={"devices": "/x"}))
    layout = CgroupLayout((Hierarchy("devices", "/cg/devices", controllers=frozenset({"devices"})),))
    symptom = call("openat", "EPERM", path="/dev/fuse")
    for text, wanted in (("c 1:3 rwm", Status.PROVED), ("a *:* rwm", Status.LIKELY)):
        kept = {"layout": layout, "text:/cg/devices/x/devices.list": text}
        assert blamed(devices, seeing(symptom, who, files=[here], kept=kept)).status is wanted
    kept = {"layout": layout, "text:/cg/devices/x/devices.list": "c 10:229 rw"}
    assert ruled_out(devices, seeing(symptom, who, files=[here], kept=kept))


def test_a_plain_file_is_no_device() -> None:
    assert outcomes(devices, seeing(call("openat", "EPERM", path="/data/x"), someone(), files=[OPEN])) == []


def test_mknod_by_root_is_the_cgroups_and_by_others_a_capability() -> None:
    made = facts("/tmp/d", None)
    assert blamed(devices, seeing(call("mknodat", "EPERM", path="/tmp/d"), someone(0), files=[made])).status is Status.LIKELY
    assert outcomes(devices, seeing(call("mknodat", "EPERM", path="/tmp/d"), someone(), files=[made])) == []
