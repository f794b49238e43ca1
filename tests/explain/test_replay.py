# SPDX-License-Identifier: Apache-2.0
"""What is known of a process that was gone too soon, brought up to date by its own later calls."""
from __future__ import annotations

import time
from dataclasses import replace

from situations import call
from surroundings import EVERYTHING, ROOT_MOUNTS, deed, seeing, someone

from triaged.explain.hypothesis import explain
from triaged.explain.namespaces import NAMESPACES
from triaged.explain.replay import after, is_old, replayed
from triaged.explain.view import own_deeds
from triaged.model.capability import capability_number
from triaged.model.limit import Unknown
from triaged.model.process_state import Credentials, ProcessState
from triaged.model.symptom import SeenIn

KEEP = 0xFFFFFFFF


def old(**more: object) -> ProcessState:
    return replace(someone(0, **more), stands_for=500, time_usec=0)


def who(state: ProcessState) -> Credentials:
    assert isinstance(state.credentials, Credentials)
    return state.credentials


def test_another_user_has_no_capabilities() -> None:
    changed = who(after(old(), (deed("setresgid", 7, 7, 7), deed("setgroups", 0, 0), deed("setresuid", 7, 7, 7))))
    assert (changed.uids, changed.gids, changed.groups, changed.effective) == ((7,) * 4, (7,) * 4, (), 0)
    assert changed.bounding == EVERYTHING


def test_a_part_of_the_ids_leaves_the_capabilities() -> None:
    changed = who(after(old(), (deed("setresuid", KEEP, 7, KEEP),)))
    assert changed.uids == (0, 7, 0, 7)
    assert who(after(old(), (deed("setreuid", KEEP, 7),))).uids == (0, 7, 7, 7)
    assert who(after(old(), (deed("setuid", 7),))).uids == (7, 7, 7, 7)


def test_what_left_the_bounding_set_is_not_had_again() -> None:
    number = capability_number("CHOWN")
    changed = who(after(old(), (deed("prctl", 24, number),)))
    assert not changed.has(number)
    assert not changed.bounding >> number & 1


def test_flags_namespaces_filters_and_the_umask() -> None:
    assert who(after(old(), (deed("prctl", 38, 1),))).no_new_privileges
    assert after(old(), (deed("umask", 0o77),)).umask == 0o077
    left = after(old(namespaces={"user": "user:[4026531837]", "net": "net:[1]"}), (deed("unshare", 0x50000000),))
    assert not left.has_initial_user_namespace
    assert left.namespaces["net"] != "net:[1]"
    filtered = after(old(), (deed("seccomp", 1, 0, 0),))
    assert filtered.seccomp_mode == "filter"
    assert isinstance(filtered.filters, Unknown)
    assert after(old(), (deed("chroot"),)).root != "/"
    unchanged = old()
    assert after(unchanged, (deed("kill", 1, 9), deed("prctl", 22 + 1000))) is unchanged


def test_only_what_came_before_the_symptom_and_of_its_own_processes_counts() -> None:
    read_ns = time.monotonic_ns() - 1_000_000_000
    read_usec = (time.time_ns() - 1_000_000_000) // 1000
    symptom = call("mount", "EPERM", first_ns=read_ns + 500_000_000)
    before, early, late = (
        replace(deed("setresuid", uid, uid, uid), at_ns=read_ns + shift)
        for uid, shift in ((6, -400_000_000), (7, 400_000_000), (8, 600_000_000))
    )
    process = replace(old(), time_usec=read_usec)
    changed = replayed(seeing(symptom, process, deeds=(before, early, late))).process
    assert changed is not None
    assert who(changed).uids == (7,) * 4
    for none_of_them in (before, replace(early, pid=4711)):
        unchanged = replayed(seeing(symptom, process, deeds=(none_of_them,))).process
        assert unchanged is not None
        assert unchanged.credentials == process.credentials


def test_what_the_parent_was_read_after_is_still_the_childs_own() -> None:
    # The child was gone, its parent was read instead, and later than the child became somebody else.
    read_ns = time.monotonic_ns() - 1_000_000_000
    parent = replace(old(), identity=replace(old().identity, pid=499), time_usec=(time.time_ns() - 1_000_000_000) // 1000)
    by_child = replace(deed("setresuid", 7, 7, 7), pid=500, at_ns=read_ns - 400_000_000)
    symptom = call("mount", "EPERM", first_ns=read_ns + 500_000_000)
    changed = replayed(seeing(symptom, parent, deeds=(by_child,))).process
    assert changed is not None
    assert who(changed).uids == (7,) * 4
    by_parent = replace(by_child, pid=499)
    unchanged = replayed(seeing(symptom, parent, deeds=(by_parent,))).process
    assert unchanged is not None
    assert unchanged.credentials == parent.credentials


def test_a_mount_by_whomever_makes_the_mounts_unknown() -> None:
    process = old(mounts=ROOT_MOUNTS)
    by_mount = replace(deed("mount", 0, 0, 0, 0, 0), pid=4711, at_ns=50)
    changed = replayed(seeing(call("openat", "EACCES"), process, deeds=(by_mount,))).process
    assert changed is not None
    assert changed.mounts == ()


def test_a_process_that_was_read_itself_needs_no_replay() -> None:
    situation = seeing(call("mount", "EPERM"), someone(0), deeds=(deed("setresuid", 7, 7, 7),))
    assert not is_old(someone(0))
    assert replayed(situation) is situation


def test_rights_that_were_given_up_for_a_moment_are_missing_then() -> None:
    now, root = someone(0), someone(0, pid=300)
    read_ns = now.time_usec * 1000 - time.time_ns() + time.monotonic_ns()
    gives_up = replace(deed("setresuid", 0xFFFFFFFF, 65534, 0xFFFFFFFF), at_ns=read_ns - 3000)
    takes_back = replace(deed("setresuid", 0xFFFFFFFF, 0, 0xFFFFFFFF), at_ns=read_ns - 1000)
    deeds = (gives_up, takes_back)
    for at_ns, euid, effective in ((-4000, 0, EVERYTHING), (-2000, 65534, 0), (-500, 0, EVERYTHING)):
        symptom = call("openat", "EACCES", first_ns=read_ns + at_ns)
        then = replayed(seeing(symptom, now, at_start=root, deeds=deeds)).process
        assert then is not None
        assert (who(then).uids[1], who(then).effective) == (euid, effective)
    unknown = replayed(seeing(call("openat", "EACCES", first_ns=read_ns - 2000), now, deeds=deeds)).process
    assert unknown is not None
    assert isinstance(unknown.credentials, Unknown)


def test_who_asks_is_told_of_the_process_as_it_is_though_its_program_cannot_be_read() -> None:
    nameless = replace(someone(open_files=7), identity=replace(someone().identity, exe=""))
    asked = seeing(call("openat", "EMFILE", seen_in=SeenIn.ASKED), nameless)
    assert replayed(asked) is asked


def test_explanations_see_the_process_as_it_came_to_be() -> None:
    symptom = call("setgroups", "EPERM", first_ns=100)
    unshared = replace(deed("unshare", 0x10000000, is_test=False), at_ns=50)
    found = explain(seeing(symptom, old(), deeds=(unshared,)), NAMESPACES)
    assert [each.cause for each in found.causes] == ["process.user-namespace"]


def test_a_launcher_that_became_the_test_did_not_do_it_for_the_test() -> None:
    launched = someone()
    by_launcher = replace(deed("landlock_restrict_self"), comm="sandbox.py")
    assert own_deeds(seeing(call("openat", "EACCES"), launched, deeds=(by_launcher,)), "landlock_restrict_self") == ()
    by_itself = deed("landlock_restrict_self")
    assert own_deeds(seeing(call("openat", "EACCES"), launched, deeds=(by_itself,)), "landlock_restrict_self") == (by_itself,)
    by_child = replace(by_launcher, pid=501)
    assert own_deeds(seeing(call("openat", "EACCES"), launched, deeds=(by_child,)), "landlock_restrict_self") == (by_child,)
