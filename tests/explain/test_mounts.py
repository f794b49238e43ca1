# SPDX-License-Identifier: Apache-2.0
"""noexec, read-only, missing, hidepid, nosuid, and too many mounts."""
from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from situations import blamed, call, outcomes, own_fault, ruled_out, undecided
from surroundings import ROOT_MOUNTS, deed, directory, facts, mount, regular, seeing, someone, told

from triaged.explain.mounts import hidepid, missing, mount_max, nodev, noexec, nosuid, read_only
from triaged.model.cause import Status
from triaged.model.surroundings import Node
from triaged.model.symptom import SymptomKind

NOEXEC = (mount("/"), mount("/tmp", "rw,noexec", "tmpfs"), mount("/var/tmp"))
BUILT = "/tmp/go-build1/b001/a.test"
PROGRAM = facts(BUILT, regular(BUILT, 0o755))


def test_a_test_binary_on_noexec_is_proved_and_gotmpdir_proposed() -> None:
    found = blamed(noexec, seeing(call("execve", "EACCES", path=BUILT), someone(mounts=NOEXEC), files=[PROGRAM]))
    assert (found.cause, found.status, found.subject) == ("mount.noexec", Status.PROVED, "/tmp")
    assert found.fixes[0].commands[0][1] == "GOTMPDIR=/var/tmp"


def test_the_text_alone_is_enough_and_a_file_that_is_gone_leaves_it_likely() -> None:
    symptom = told(f"fork/exec {BUILT}: permission denied", "EACCES", path=BUILT)
    assert blamed(noexec, seeing(symptom, someone(mounts=NOEXEC), files=[PROGRAM])).status is Status.PROVED
    assert blamed(noexec, seeing(symptom, someone(mounts=NOEXEC), files=[facts(BUILT, None)])).status is Status.LIKELY


def test_a_file_without_the_right_to_be_executed_is_not_the_mounts() -> None:
    data = facts(BUILT, regular(BUILT, 0o644))
    assert outcomes(noexec, seeing(call("execve", "EACCES", path=BUILT), someone(mounts=NOEXEC), files=[data])) == []


def test_a_mount_that_lets_execute_is_ruled_out() -> None:
    assert ruled_out(noexec, seeing(call("execve", "EACCES", path=BUILT), someone(mounts=ROOT_MOUNTS), files=[PROGRAM]))
    assert outcomes(noexec, seeing(call("openat", "EACCES", path=BUILT), someone(mounts=NOEXEC), files=[PROGRAM])) == []


def test_a_mapping_to_execute_on_noexec() -> None:
    symptom = call("mmap", "EPERM", path=BUILT, arguments=(0, 4096, 5, 2, 3, 0))
    assert blamed(noexec, seeing(symptom, someone(mounts=NOEXEC), files=[PROGRAM])).status is Status.PROVED
    data = call("mmap", "EPERM", path=BUILT, arguments=(0, 4096, 1, 2, 3, 0))
    assert outcomes(noexec, seeing(data, someone(mounts=NOEXEC), files=[PROGRAM])) == []


def test_a_test_that_mounts_noexec_did_it_itself() -> None:
    symptom, deeds = call("execve", "EACCES", path=BUILT), (deed("mount", 0, 0, 0, 8, 0),)
    assert own_fault(noexec, seeing(symptom, someone(mounts=NOEXEC), files=[PROGRAM], deeds=deeds))


def test_a_test_that_mounted_noexec_for_a_moment_did_it_itself() -> None:
    symptom = call("execve", "EACCES", path=BUILT, first_ns=200)
    unmounts = replace(deed("umount2", 0, 0), at_ns=300)
    for flags, judge in ((8, own_fault), (0, ruled_out)):
        mounts = replace(deed("mount", 0, 0, 0, flags, 0), at_ns=100)
        assert judge(noexec, seeing(symptom, someone(mounts=ROOT_MOUNTS), files=[PROGRAM], deeds=(mounts, unmounts)))


@pytest.mark.parametrize("mounted", [mount("/data", "ro"), mount("/data", "rw", super_options="ro")])
def test_read_only_by_mount_or_by_file_system_is_proved(mounted: object) -> None:
    who = someone(mounts=(mount("/"), mounted))
    found = blamed(read_only, seeing(call("openat", "EROFS", path="/data/x"), who, files=[facts("/data/x", None)]))
    assert (found.cause, found.status, found.subject) == ("mount.read-only", Status.PROVED, "/data")


def test_a_relative_path_lies_in_the_directory_of_the_process() -> None:
    who = someone(mounts=(mount("/"), mount("/src", "ro")), directory="/src/pkg")
    symptom = told("open testdata.out: read-only file system", "EROFS", "openat", "testdata.out")
    assert blamed(read_only, seeing(symptom, who, files=[facts("/src/pkg/testdata.out", None)])).subject == "/src"


def test_without_a_path_the_only_one_that_is_read_only_is_likely() -> None:
    who = someone(mounts=(mount("/"), mount("/data", "ro"), mount("/sys", "ro", "sysfs")))
    found = blamed(read_only, seeing(call("mkdirat", "EROFS"), who))
    assert (found.status, found.subject) == (Status.LIKELY, "/data")


def test_writable_now_and_made_by_the_test() -> None:
    who = someone(mounts=ROOT_MOUNTS)
    assert "writable now" in undecided(read_only, seeing(call("openat", "EROFS", path="/x"), who, files=[facts("/x", None)]))
    assert own_fault(read_only, seeing(call("openat", "EROFS"), who, deeds=(deed("mount", 0, 0, 0, 1, 0),)))
    assert undecided(read_only, seeing(call("openat", "EROFS"), None))


def test_what_is_not_mounted_is_missing() -> None:
    who = someone(mounts=(mount("/"), mount("/proc", kind="proc")))
    symptom = told("open /dev/shm/gt-1: no such file or directory", "ENOENT", "openat", "/dev/shm/gt-1")
    found = blamed(missing, seeing(symptom, who, files=[facts("/dev/shm/gt-1", None, directory("/"), directory("/dev"))]))
    assert (found.cause, found.status, found.subject) == ("mount.missing", Status.PROVED, "/dev/shm")
    assert [command[0] for command in found.fixes[0].commands] == ["mkdir", "mount"]


def test_a_tmpfs_over_proc_hides_it() -> None:
    who = someone(mounts=(mount("/"), mount("/proc", kind="proc"), mount("/proc", kind="tmpfs")))
    situation = seeing(call("openat", "ENOENT", path="/proc/self/status"), who, files=[facts("/proc/self/status", None)])
    assert blamed(missing, situation).subject == "/proc"


def test_what_is_mounted_is_not_missing_and_other_paths_do_not_matter() -> None:
    symptom = call("openat", "ENOENT", path="/proc/self/nothing")
    assert ruled_out(missing, seeing(symptom, someone(mounts=ROOT_MOUNTS), files=[facts("/proc/self/nothing", None)]))
    assert outcomes(missing, seeing(call("openat", "ENOENT", path="/etc/x"), someone(mounts=ROOT_MOUNTS))) == []
    plain = facts("/dev/shm/x", None, directory("/"), directory("/dev"), directory("/dev/shm", 0o1777))
    bare = someone(mounts=(mount("/"),))
    assert outcomes(missing, seeing(call("openat", "ENOENT", path="/dev/shm/x"), bare, files=[plain])) == []


def test_hidepid_hides_other_users_processes() -> None:
    proc = mount("/proc", kind="proc", super_options="rw,hidepid=invisible")
    who = someone(mounts=(mount("/"), proc))
    init = facts("/proc/1", directory("/proc/1", uid=0))
    found = blamed(hidepid, seeing(call("openat", "ENOENT", path="/proc/1/status"), who, files=[init]))
    assert (found.cause, found.status) == ("mount.hidepid", Status.PROVED)
    privileged = someone(0, mounts=(mount("/"), proc))
    assert ruled_out(hidepid, seeing(call("openat", "ENOENT", path="/proc/1/status"), privileged, files=[init]))
    assert ruled_out(hidepid, seeing(call("openat", "ENOENT", path="/proc/1/status"), someone(mounts=ROOT_MOUNTS), files=[init]))
    gone = facts("/proc/4711", None)
    assert undecided(hidepid, seeing(call("openat", "ENOENT", path="/proc/4711/status"), who, files=[gone]))


SUDO = facts("/usr/bin/sudo", regular("/usr/bin/sudo", 0o4755))


def test_where_mounts_are_not_known_some_files_tell_by_their_absence() -> None:
    for path, wanted in (("/proc/self/status", "/proc"), ("/proc/meminfo", "/proc")):
        assert blamed(missing, seeing(call("openat", "ENOENT", path=path), someone())).subject == wanted
    assert outcomes(missing, seeing(call("openat", "ENOENT", path="/proc/self/nothing"), someone())) == []
    assert outcomes(missing, seeing(call("openat", "ENOENT", path="/proc/77/status"), someone())) == []
    assert blamed(hidepid, seeing(call("openat", "ENOENT", path="/proc/1/status"), someone())).status is Status.LIKELY
    assert outcomes(hidepid, seeing(call("openat", "ENOENT", path="/proc/1/status"), someone(0))) == []


def test_sudo_on_nosuid_says_so_itself() -> None:
    who = someone(mounts=(mount("/"), mount("/usr", "rw,nosuid")))
    text = "sudo: effective uid is not 0, is /usr/bin/sudo on a file system with the 'nosuid' option set"
    assert blamed(nosuid, seeing(told(text, kind=SymptomKind.SILENT), who, files=[SUDO])).status is Status.PROVED
    assert ruled_out(nosuid, seeing(told(text, kind=SymptomKind.SILENT), someone(mounts=ROOT_MOUNTS), files=[SUDO]))
    assert outcomes(nosuid, seeing(told("assertion failed", kind=SymptomKind.SILENT), who, files=[SUDO])) == []


def test_a_helper_that_a_variable_names_is_likely() -> None:
    mounts = (mount("/"), mount("/data", "rw,nosuid"))
    helper = facts("/data/id", regular("/data/id", 0o4755))
    text = told("x_test.go:9: the set-user-id helper runs as user 65534, not as root", kind=SymptomKind.SILENT)
    who = someone(mounts=mounts, environment={"HELPER": "/data/id"})
    assert blamed(nosuid, seeing(text, who, files=[helper])).status is Status.LIKELY
    plain = facts("/data/id", regular("/data/id", 0o755))
    assert outcomes(nosuid, seeing(text, who, files=[plain])) == []


def test_a_device_on_nodev() -> None:
    mounts = (mount("/"), mount("/tmp", "rw,nodev", "tmpfs"))
    here = facts("/tmp/null", Node("/tmp/null", stat.S_IFCHR | 0o666))
    symptom = call("openat", "EACCES", path="/tmp/null")
    assert blamed(nodev, seeing(symptom, someone(0, mounts=mounts), files=[here])).status is Status.PROVED
    assert ruled_out(nodev, seeing(symptom, someone(0, mounts=(mount("/"),)), files=[here]))
    gone = facts("/tmp/null", None)
    made = (deed("mknodat", 0xFFFFFF9C, 0, stat.S_IFCHR | 0o600, 0x103),)
    assert blamed(nodev, seeing(symptom, someone(0, mounts=mounts), files=[gone], deeds=made)).status is Status.LIKELY
    assert outcomes(nodev, seeing(symptom, someone(0, mounts=mounts), files=[gone])) == []


def test_as_many_mounts_as_there_may_be() -> None:
    who = someone(mounts=ROOT_MOUNTS)
    assert blamed(mount_max, seeing(call("mount", "ENOSPC"), who, parameters={"fs.mount-max": "4"})).status is Status.PROVED
    assert ruled_out(mount_max, seeing(call("mount", "ENOSPC"), who, parameters={"fs.mount-max": "100000"}))
    assert undecided(mount_max, seeing(call("mount", "ENOSPC"), someone(), parameters={"fs.mount-max": "4"}))
