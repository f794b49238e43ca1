# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from triaged.seccomp import oci, proposal
from triaged.seccomp.action import ALLOW, ENOSYS, EPERM, Action
from triaged.seccomp.oci import Profile, Rule, Setting
from triaged.seccomp.proposal import NAMESPACE_FLAGS, extended, merged, propose
from triaged.seccomp.recording import START_AND_EXIT, Recording, drop_in_of, expected_refusals, missing_from, profile_of
from triaged.seccomp.syscalls import number_of
from triaged.seccomp.systemd_filter import SystemdFilter

SETTING = Setting(low_level="crun")
NEWUSER = 0x10000000


def decide(profile: Profile, name: str, *arguments: int) -> Action:
    policy = oci.resolved(profile, SETTING).arch("x86_64")
    assert policy is not None
    return policy.action(number_of("x86_64", name) or 0, (*arguments, *(0,) * (6 - len(arguments))))


def recorded(*names: str) -> Recording:
    found = Recording("x86_64")
    for name in names:
        found.add("program", number_of("x86_64", name) or 0)
    return found


def test_what_was_recorded_is_allowed_and_nothing_else() -> None:
    profile = profile_of(recorded("read", "socket"), EPERM, "me")
    for name in ("read", "socket", *START_AND_EXIT):
        assert decide(profile, name) == ALLOW
    for name in ("write", "mount", "clone"):
        assert decide(profile, name) == EPERM
    assert missing_from(oci.resolved(profile, SETTING), recorded("read", "write")) == ("write",)


def test_clone_is_allowed_without_namespaces_unless_some_were_made() -> None:
    found = recorded("clone")
    profile = profile_of(found, EPERM, "me")
    assert decide(profile, "clone", 17) == ALLOW
    assert decide(profile, "clone", 17 | NEWUSER) == EPERM
    found.add("unshare", number_of("x86_64", "clone") or 0, (17 | NEWUSER, 0, 0, 0, 0, 0))
    assert missing_from(oci.resolved(profile, SETTING), found) == ("clone",)
    assert decide(profile_of(found, EPERM, "me"), "clone", 17 | NEWUSER) == ALLOW


def test_clone3_becomes_enosys_and_clone_unless_it_is_needed() -> None:
    found = recorded("clone3")
    profile = profile_of(found, EPERM, "me")
    assert decide(profile, "clone3") == ENOSYS
    assert decide(profile, "clone", 17) == ALLOW
    assert expected_refusals(profile, SETTING) == {"clone3"}
    assert missing_from(oci.resolved(profile, SETTING), found) == ()
    found.needs_clone3 = True
    assert decide(profile_of(found, EPERM, "me"), "clone3") == ALLOW


def test_the_same_calls_give_the_same_text_in_any_order() -> None:
    one, other = recorded("read", "write", "clone", "clone3"), recorded("clone3", "clone", "write", "read", "read")
    assert oci.written(profile_of(one, EPERM, "me")) == oci.written(profile_of(other, EPERM, "me"))
    assert drop_in_of(one, EPERM, "me") == drop_in_of(other, EPERM, "me")


def test_a_number_without_a_name_is_kept_apart() -> None:
    found = Recording("x86_64")
    found.add("program", 5000)
    assert found.unknown == {5000}
    assert "5000" not in found.names


def test_the_proposal_allows_the_calls_and_shows_just_the_change() -> None:
    base = Profile(EPERM, (Rule(("read",), ALLOW), Rule(("mount", "bpf"), Action.of(0x5000D))), origin="base.json")
    found = propose(base, ["bpf", "write"], SETTING, "new.json", ["go-test"])
    profile = oci.parse_profile(found.text, "new.json")
    assert decide(profile, "bpf") == decide(profile, "write") == decide(profile, "read") == ALLOW
    assert decide(profile, "mount") == Action.of(0x5000D)
    changed = [line for line in found.diff.splitlines() if line[:1] in "+-"]
    assert changed[:2] == ["--- base.json", "+++ new.json"]
    assert any("needed by go-test" in line for line in changed)
    assert not any('"read"' in line for line in changed)


def test_no_proposal_turns_the_filter_off() -> None:
    for runtime in ("docker", "podman", "containerd", "cri-o"):
        steps = propose(Profile(EPERM, ()), ["read"], Setting(runtime=runtime), "p.json", ["w"]).steps
        assert steps[0].name == ("kubernetes" if runtime in ("containerd", "cri-o") else runtime)
        assert not any("unconfined" in word for step in steps for argv in step.commands for word in argv)


def test_clone_is_proposed_without_namespaces_and_clone3_as_enosys() -> None:
    profile = extended(Profile(EPERM, ()), ["clone3"], SETTING, "w")
    assert decide(profile, "clone3") == ENOSYS
    assert decide(profile, "clone", 17) == ALLOW
    assert decide(profile, "clone", NAMESPACE_FLAGS) == EPERM
    on_s390 = extended(Profile(EPERM, ()), ["clone"], Setting("s390x"), "w")
    assert [condition.argument for rule in on_s390.rules for condition in rule.conditions] == [1]


def test_a_systemd_unit_gets_a_drop_in() -> None:
    found = propose(SystemdFilter(True, {}), ["write", "read"], SETTING, "", ["w"], "ci.service")
    assert found.text == "[Service]\nSystemCallFilter=read write\n"
    assert "+++ /etc/systemd/system/ci.service.d/50-seccomp.conf" in found.diff
    assert [argv[0] for argv in found.steps[0].commands] == ["systemctl", "systemctl"]


def test_merged_profiles_allow_what_either_allows_in_any_order() -> None:
    one = profile_of(recorded("read", "clone3", "clone"), EPERM, "a")
    other_recording = recorded("write", "clone3", "read")
    other_recording.needs_clone3 = True
    other = profile_of(other_recording, EPERM, "b")
    both = merged([one, other])
    assert oci.written(both) == oci.written(merged([other, one]))
    for name in ("read", "write", "clone3"):
        assert decide(both, name) == ALLOW
    assert decide(both, "clone", NEWUSER) == EPERM
    comments = {name: rule.comment for rule in both.rules for name in rule.names}
    assert comments["read"] == "a, b"
    assert comments["write"] == "b"
    assert oci.written(merged([both, one])) == oci.written(both)
    with pytest.raises(ValueError, match="differ"):
        merged([one, Profile(ENOSYS, ())])


def test_steps_name_the_file() -> None:
    docker, *_ = proposal.steps_for("/x/p.json", "docker")
    assert docker.commands == (("docker", "run", "--security-opt", "seccomp=/x/p.json", "IMAGE"),)
