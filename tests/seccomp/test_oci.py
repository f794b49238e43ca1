# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triaged.errors import ConfigError
from triaged.seccomp import oci
from triaged.seccomp.action import ALLOW, ENOSYS, EPERM, KILL_THREAD, Action, ActionKind
from triaged.seccomp.oci import DEFAULT_CAPABILITIES, Setting, parse_profile, resolved, written
from triaged.seccomp.syscalls import number_of

DEFAULTS = sorted((Path(__file__).resolve().parents[2] / "config/seccomp/defaults").glob("*.json"))
NEWNS, NEWUSER = 0x20000, 0x10000000


def profile(**fields: object) -> oci.Profile:
    return parse_profile(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", **fields}), "p.json")


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", **fields: object) -> dict[str, object]:
    return {"names": list(names), "action": action, **fields}


def decide(found: oci.Profile, name: str, *arguments: int, arch: str = "x86_64", setting: Setting | None = None) -> Action:
    policy = resolved(found, setting or Setting(arch)).arch(arch)
    number = number_of(arch, name)
    assert policy is not None
    assert number is not None
    return policy.action(number, (*arguments, *(0,) * (6 - len(arguments))))


def test_a_denied_call_returns_the_profiles_errno() -> None:
    assert decide(profile(), "read") == EPERM
    assert decide(profile(defaultErrnoRet=38), "read") == ENOSYS
    assert decide(profile(defaultErrno="ENOSYS", defaultErrnoRet=1), "read") == ENOSYS
    assert decide(profile(syscalls=[rule("read", action="SCMP_ACT_ERRNO", errnoRet=13)]), "read") == Action(ActionKind.ERRNO, 13)
    assert decide(parse_profile('{"defaultAction": "SCMP_ACT_KILL"}', ""), "read") == KILL_THREAD


@pytest.mark.parametrize(
    ("op", "value", "second", "passing", "failing"),
    [
        ("EQ", 5, 0, [5], [4, 5 + (1 << 32)]), ("NE", 5, 0, [4, 5 + (1 << 32)], [5]), ("LT", 5, 0, [4], [5, 1 << 40]),
        ("LE", 5, 0, [5], [6]), ("GT", 5, 0, [6, 1 << 40], [5]), ("GE", 1 << 32, 0, [1 << 32], [0xFFFFFFFF]),
        ("MASKED_EQ", 0xF0, 0x10, [0x10, 0x1F], [0x20, 0]),
    ],
)
def test_every_operator_tests_an_argument(op: str, value: int, second: int, passing: list[int], failing: list[int]) -> None:
    args = [{"index": 1, "value": value, "valueTwo": second, "op": f"SCMP_CMP_{op}"}]
    found = profile(syscalls=[rule("ioctl", args=args)])
    assert {decide(found, "ioctl", 0, argument) for argument in passing} == {ALLOW}
    assert {decide(found, "ioctl", 0, argument) for argument in failing} == {EPERM}


def test_conditions_on_several_arguments_hold_together_and_on_one_argument_apart() -> None:
    one, two, again = ({"index": i, "value": v, "op": "SCMP_CMP_EQ"} for i, v in ((0, 1), (1, 2), (0, 3)))
    both = profile(syscalls=[rule("socket", args=[one, two])])
    assert decide(both, "socket", 1, 2) == ALLOW
    assert decide(both, "socket", 1, 0) == EPERM
    either = profile(syscalls=[rule("socket", args=[one, again])])
    assert decide(either, "socket", 1) == decide(either, "socket", 3) == ALLOW
    assert decide(either, "socket", 2) == EPERM


def test_a_rule_is_gated_by_capability_architecture_and_kernel() -> None:
    found = profile(archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}], syscalls=[
        rule("mount", includes={"caps": ["CAP_SYS_ADMIN"]}),
        rule("clone3", action="SCMP_ACT_ERRNO", errnoRet=38, excludes={"caps": ["CAP_SYS_ADMIN"]}),
        rule("ptrace", includes={"minKernel": "4.8"}),
        rule("bpf", includes={"arches": ["arm64"]}),
    ])
    admin = Setting(capabilities=frozenset({"CAP_SYS_ADMIN"}))
    assert decide(found, "mount") == EPERM
    assert decide(found, "mount", setting=admin) == ALLOW
    assert decide(found, "clone3") == ENOSYS
    assert decide(found, "clone3", setting=admin) == ENOSYS  # no rule names it any more, and it is newer than those that remain
    assert decide(found, "ptrace") == ALLOW
    assert decide(found, "ptrace", setting=Setting(kernel=(4, 4))) == EPERM
    assert decide(found, "ptrace", setting=Setting(kernel=(4, 10))) == ALLOW
    assert decide(found, "bpf") == EPERM
    assert decide(found, "bpf", setting=Setting(arch="aarch64"), arch="aarch64") == ALLOW
    assert decide(found, "ptrace", arch="i386", setting=Setting()) == ALLOW
    assert resolved(found, Setting()).arch("aarch64") is None


def test_containerd_ignores_gates_and_archmap_of_a_localhost_profile() -> None:
    found = profile(archMap=[{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
                    syscalls=[rule("mount", includes={"caps": ["CAP_SYS_ADMIN"]})])
    setting = Setting(runtime="containerd")
    assert decide(found, "mount", setting=setting) == ALLOW
    assert resolved(found, setting).arch("i386") is None


def test_under_runc_calls_newer_than_the_profile_return_enosys() -> None:
    found = profile(syscalls=[rule("clone3")])
    assert decide(found, "faccessat2") == ENOSYS
    assert decide(found, "pidfd_open") == EPERM
    assert decide(found, "faccessat2", setting=Setting(low_level="crun")) == EPERM
    assert decide(profile(defaultErrnoRet=38, syscalls=[rule("read")]), "write") == ENOSYS
    killing = parse_profile('{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}', "")
    assert decide(killing, "write") == ENOSYS


@pytest.mark.parametrize("path", DEFAULTS, ids=lambda path: path.stem)
def test_default_profiles_gate_what_the_documentation_says(path: Path) -> None:
    found = parse_profile(path.read_text(), str(path))
    ordinary = Setting(capabilities=DEFAULT_CAPABILITIES, low_level="crun")
    assert decide(found, "clone", 17, setting=ordinary) == ALLOW
    assert decide(found, "ptrace", setting=ordinary) == ALLOW
    assert not decide(found, "bpf", setting=ordinary).is_allowed
    assert not decide(found, "perf_event_open", setting=ordinary).is_allowed
    if "podman" in path.stem:  # containers/common allows user namespaces
        assert decide(found, "unshare", NEWUSER, setting=ordinary) == ALLOW
    else:
        assert decide(found, "clone", NEWUSER | 17, setting=ordinary) == EPERM
        assert decide(found, "clone3", setting=ordinary) == ENOSYS
        assert decide(found, "unshare", NEWNS, setting=ordinary) == EPERM
        admin = Setting(capabilities=frozenset({"CAP_SYS_ADMIN"}))
        assert decide(found, "clone", NEWUSER | 17, setting=admin) == decide(found, "clone3", setting=admin) == ALLOW
    assert decide(found, "personality", 0x40000, setting=ordinary) == EPERM if "podman" not in path.stem else True


@pytest.mark.parametrize("path", DEFAULTS, ids=lambda path: path.stem)
def test_a_written_profile_reads_back_the_same(path: Path) -> None:
    text = path.read_text()
    assert written(parse_profile(text, "x")) == text


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "not valid JSON"), ("[]", "must be an object"), ("{}", "defaultAction"),
        ('{"defaultAction": "ALLOW"}', "unknown action"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscals": []}', "unknown field 'syscals'"),
        ('{"defaultAction": "SCMP_ACT_ALLOW",\n "syscalls": [}', "p.json:2"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}', r"syscalls\[0\]: names no"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1}', "from 0 to 65535"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "args": [{"index": 6,'
         ' "op": "SCMP_CMP_EQ"}]}]}', r"args\[0\].index"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_ARM"}]}',
         "both"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["amd64"]}', "unknown architecture"),
        ("[" * 100000, "not valid JSON"), ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": ' + "9" * 5000 + "}", "p.json"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_place(text: str, where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        parse_profile(text, "p.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    | st.sampled_from(["SCMP_ACT_ERRNO", "SCMP_CMP_EQ", "read", "4.8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["names", "action", "args", "index", "op", "value", "includes", "caps", "x"]), inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(sorted(oci._FIELDS)), JSON, max_size=6))
def test_any_document_gives_a_profile_or_a_clear_error(document: dict[str, object]) -> None:
    try:
        found = parse_profile(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", **document}), "p.json")
    except ConfigError:
        return
    assert parse_profile(written(found), "p.json").default == found.default


@given(st.text(max_size=200))
def test_any_text_gives_a_clear_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_profile(text, "p.json")
