# SPDX-License-Identifier: Apache-2.0
"""Full, without inodes, over quota; and what only looks like it."""
from __future__ import annotations

from dataclasses import replace

from situations import blamed, call, outcomes, own_fault, undecided
from surroundings import ROOMY, ROOT_MOUNTS, deed, facts, mount, regular, seeing, someone, told

from triaged.explain.disks import full, quota
from triaged.model.cause import Status
from triaged.model.surroundings import Space

FULL = Space(20 << 20, 0, 0, 5000, 4000)
NO_INODES = Space(20 << 20, 10 << 20, 10 << 20, 50, 0)
WHO = someone(mounts=(mount("/"), mount("/data", kind="tmpfs"), mount("/dev/shm", kind="tmpfs")))


def at(path: str, space: Space) -> list[object]:
    return [facts(path, regular(path), space=space)]


def test_a_full_file_system_is_proved() -> None:
    found = blamed(full, seeing(call("write", "ENOSPC", path="/data/x"), WHO, files=at("/data/x", FULL)))
    assert (found.cause, found.status, found.subject) == ("disk.full", Status.PROVED, "/data")
    assert "tmpfs" in found.fixes[0].title


def test_without_inodes_it_is_another_cause() -> None:
    found = blamed(full, seeing(call("openat", "ENOSPC", path="/data/x"), WHO, files=at("/data/x", NO_INODES)))
    assert (found.cause, found.status) == ("disk.inodes", Status.PROVED)


def test_few_inodes_are_likelier_to_have_run_out_than_much_space() -> None:
    few = Space(12 << 30, 12 << 30, 12 << 30, 100, 97)
    assert blamed(full, seeing(call("openat", "ENOSPC", path="/data/x"), WHO, files=at("/data/x", few))).cause == "disk.inodes"
    assert blamed(full, seeing(call("write", "ENOSPC", path="/data/x"), WHO, files=at("/data/x", few))).cause == "disk.full"


def test_what_was_asked_for_at_once_did_not_fit() -> None:
    symptom = call("fallocate", "ENOSPC", path="/data/x", arguments=(3, 0, 0, 30 << 20, 0, 0))
    space = Space(20 << 20, 15 << 20, 15 << 20)
    assert blamed(full, seeing(symptom, WHO, files=at("/data/x", space))).status is Status.PROVED


def test_room_now_leaves_the_kernels_word_likely() -> None:
    found = blamed(full, seeing(call("write", "ENOSPC", path="/data/x"), WHO, files=at("/data/x", ROOMY)))
    assert found.status is Status.LIKELY


def test_what_a_test_mounted_and_took_away_again_was_full_not_what_is_left_there() -> None:
    symptom = call("write", "ENOSPC", path="/data/x", first_ns=200)
    mounts, unmounts = replace(deed("mount", 0, 0, 0, 0, 0), at_ns=100), replace(deed("umount2", 0, 0), at_ns=300)
    assert own_fault(full, seeing(symptom, WHO, files=at("/data/x", ROOMY), deeds=(mounts, unmounts)))
    for only in (mounts, unmounts):
        assert blamed(full, seeing(symptom, WHO, files=at("/data/x", ROOMY), deeds=(only,))).status is Status.LIKELY


def test_without_a_path_the_places_where_it_writes_are_looked_at() -> None:
    who = someone(mounts=WHO.mounts, environment={"TMPDIR": "/data"}, directory="/src")
    files = [facts("/data", None, space=FULL), facts("/src", None), facts("/tmp", None), facts("/dev/shm", None)]
    linker = told("link: mapping output file failed: no space left on device", "ENOSPC", "fallocate")
    found = blamed(full, seeing(linker, who, files=files))
    assert (found.cause, found.status, found.subject) == ("disk.full", Status.LIKELY, "/data")
    roomy = [facts(each.path, None) for each in files]
    assert undecided(full, seeing(told("no space left on device", "ENOSPC"), who, files=roomy))


def test_root_may_use_what_is_kept_for_it() -> None:
    kept_back = Space(1 << 30, 50 << 20, 0)
    symptom = call("write", "ENOSPC", path="/data/x")
    assert blamed(full, seeing(symptom, WHO, files=at("/data/x", kept_back))).status is Status.PROVED
    root = someone(0, mounts=WHO.mounts)
    assert blamed(full, seeing(symptom, root, files=at("/data/x", kept_back))).status is Status.LIKELY


def test_other_calls_and_the_kernels_own_files_are_no_disk() -> None:
    assert outcomes(full, seeing(call("inotify_add_watch", "ENOSPC", path="/data/x"), WHO, files=at("/data/x", FULL))) == []
    assert outcomes(full, seeing(call("clone", "ENOSPC"), WHO)) == []
    text = told("fork/exec /bin/true: no space left on device", "ENOSPC", path="/bin/true")
    assert outcomes(full, seeing(text, WHO, files=at("/bin/true", FULL))) == []
    who = someone(mounts=ROOT_MOUNTS)
    assert outcomes(full, seeing(call("write", "ENOSPC", path="/proc/sys/x"), who, files=at("/proc/sys/x", FULL))) == []


def test_a_small_tmpfs_of_the_test_is_its_own_matter() -> None:
    before = someone(mounts=(mount("/"),))
    symptom, deeds = call("write", "ENOSPC", path="/data/x"), (deed("mount", 0, 0, 0, 0, 0),)
    situation = seeing(symptom, WHO, files=at("/data/x", FULL), at_start=before, deeds=deeds)
    assert own_fault(full, situation)


def test_without_a_process_it_is_open() -> None:
    assert undecided(full, seeing(call("write", "ENOSPC"), None))


def test_a_quota_says_so_itself() -> None:
    found = blamed(quota, seeing(call("write", "EDQUOT", path="/data/x"), WHO, files=at("/data/x", ROOMY)))
    assert (found.cause, found.status, found.subject) == ("disk.quota", Status.PROVED, "/data")
    assert outcomes(quota, seeing(call("add_key", "EDQUOT"), WHO)) == []
