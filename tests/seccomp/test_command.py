# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp` as it is typed."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from triaged.cli.seccomp import main
from triaged.cli.seccomp_data import default_names, read_default, recognise
from triaged.errors import ConfigError
from triaged.seccomp.oci import parse_profile, written
from triaged.workload_needs import measured_toolchains, nearest_toolchain, read_needs

EIGHT = ["mmap", "mprotect", "clone", "futex", "epoll_wait", "read", "write", "clock_gettime"]
Capture = pytest.CaptureFixture[str]


def profile(path: Path, *names: str, **fields: object) -> str:
    rules = [{"names": list(names), "action": "SCMP_ACT_ALLOW"}] if names else []
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules, **fields}))
    return str(path)


@pytest.mark.parametrize("toolchain", measured_toolchains())
@pytest.mark.parametrize("name", default_names())
def test_every_workload_works_under_the_default_profiles(name: str, toolchain: str, capsys: Capture) -> None:
    assert main(["check", name, "--workload", "all", "--kernel", "6.12", "--json", "--toolchain", toolchain]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["default_profile"] == {"name": name, "added": [], "removed": [], "rules": []}
    refused = {feature["name"]: feature for feature in document["features"]}
    assert ("user-namespace" in refused) is (not name.startswith("podman"))  # whose default lets everybody make namespaces
    if "user-namespace" in refused:
        assert "fork/exec PATH: operation not permitted" in refused["user-namespace"]["sentence"]
        assert refused["unshare"]["gates"] == ["allowed only with CAP_SYS_ADMIN"]
        assert refused["user-namespace"]["gates"] == ["allowed only with CAP_SYS_ADMIN"]  # and no word of s390
    assert len(document["workloads"]) == len(read_needs().workloads)
    assert all(workload["works"] and len(workload["calls"]) > 25 for workload in document["workloads"])


def test_each_measured_toolchain_is_complete_and_a_version_gets_the_nearest() -> None:
    measured = measured_toolchains()
    assert {"go1.19", "go1.24", "go1.27"} <= set(measured)
    for toolchain in measured:
        needs = read_needs(toolchain)
        assert needs.toolchain.startswith(toolchain + ".")
        assert needs.source
        for name in needs.workloads:
            assert {"execve", "futex", "mmap"} <= needs.required_by(name), (toolchain, name)
            assert len(needs.required_by(name)) < len(needs.calls_of(name))
    assert "wait4" in read_needs("go1.19").calls_of("go-exec-binary")  # waitid with a pidfd came later
    assert [nearest_toolchain(version) for version in ("go1.24.4", "go1.18", "go1.25.1", "go1.99", "devel", "")] == [
        "go1.24", "go1.19", measured[measured.index("go1.24") + 1], measured[-1], measured[-1], measured[-1]
    ]
    with pytest.raises(ConfigError, match=r"'go1\.2' was not measured"):
        read_needs("go1.2")


def test_a_check_may_be_for_an_older_toolchain(tmp_path: Path, capsys: Capture) -> None:
    path = profile(tmp_path / "new.json", *sorted(read_needs("go1.27").calls_of("go-exec-binary")))
    assert main(["check", path, "--workload", "go-exec-binary"]) == 0
    main(["check", path, "--workload", "go-exec-binary", "--toolchain", "go1.19", "--runtime", "podman"])
    said = capsys.readouterr().out
    assert "(go1.19." in said
    assert "pipe2" in said or "getrlimit" in said


def test_the_popular_list_of_eight_starts_nothing_and_what_is_missing_is_named(tmp_path: Path, capsys: Capture) -> None:
    assert main(["check", profile(tmp_path / "eight.json", *EIGHT), "--workload", "go-test-binary"]) == 1
    said = capsys.readouterr().out
    assert "go-test-binary does not work" in said
    for call in ("arch_prctl", "epoll_create1", "epoll_pwait", "eventfd2", "execve", "exit_group", "fcntl", "rt_sigaction",
                 "rt_sigprocmask", "sigaltstack"):
        assert f"\n    {call} " in said
    assert "fatal error: sigaction failed" in said
    assert "unconfined" not in said


def test_an_unneeded_call_may_be_denied(tmp_path: Path, capsys: Capture) -> None:
    needs = read_needs()
    required = sorted(needs.required_by("go-test-binary"))
    assert len(required) < len(needs.calls_of("go-test-binary"))
    # crun adds no ENOSYS rule: each denial here is an EPERM
    path = profile(tmp_path / "required.json", *required)
    assert main(["check", path, "--workload", "go-test-binary", "--runtime", "podman"]) == 0
    assert "denied, and the program does without" in capsys.readouterr().out


def test_a_gate_is_named_with_the_denial(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "gated.json"
    rules = [{"names": ["mmap"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}}]
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))
    assert main(["check", str(path), "--workload", "go-test-binary"]) == 1
    assert "allowed only with CAP_SYS_ADMIN" in capsys.readouterr().out
    main(["check", str(path), "--workload", "go-test-binary", "--caps", "SYS_ADMIN", "-v"])
    assert "allowed:\n    mmap" in capsys.readouterr().out


def test_a_systemd_unit_is_checked(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "ci.service"
    path.write_text("[Service]\nExecStart=/bin/ci\nSystemCallFilter=~@process\nSystemCallErrorNumber=EPERM\n")
    assert main(["check", str(path), "--workload", "go-exec-binary"]) == 1
    said = capsys.readouterr().out
    assert "pidfd_open" in said or "waitid" in said
    assert "systemctl edit" in said


def test_a_changed_default_is_recognised_with_its_difference(tmp_path: Path, capsys: Capture) -> None:
    text = written(read_default("docker-26.1")).replace('"bind", ', "")
    path = tmp_path / "mine.json"
    path.write_text(text)
    found = recognise(parse_profile(text, "mine"))
    assert found is not None
    assert (found.name, found.added, found.removed) == ("docker-26.1", (), ("bind",))
    assert main(["check", str(path), "--workload", "go-http-binary"]) == 1
    assert "default profile of docker 26.1 with differences:\n  - bind: is allowed\n" in capsys.readouterr().out


def test_the_difference_says_what_the_defaults_rules_depend_on(tmp_path: Path, capsys: Capture) -> None:
    profile = read_default("docker-26.1")
    without = tuple(rule for rule in profile.rules if not {"clone", "ptrace"} & set(rule.names) or len(rule.names) > 20)
    path = tmp_path / "mine.json"
    path.write_text(written(replace(profile, rules=without)))
    main(["check", str(path), "--workload", "go-test-binary"])
    said = capsys.readouterr().out
    assert "  - clone: is allowed if args[0] & 0x7e020000 == 0x0, not with CAP_SYS_ADMIN" in said.replace("\n      ", " ")
    assert "  - ptrace: is allowed, only with CAP_SYS_PTRACE" in said or "  - ptrace: is allowed, only with" in said



def test_a_fix_is_written_that_makes_it_work(tmp_path: Path, capsys: Capture) -> None:
    mended = tmp_path / "mended.json"
    path = profile(tmp_path / "eight.json", *EIGHT)
    assert main(["check", path, "--workload", "go-test,go-http", "--fix", str(mended)]) == 1
    said = capsys.readouterr().out
    assert f"docker run --security-opt seccomp={mended} IMAGE" in said
    assert "needed by go-test, go-http" in said
    assert main(["check", str(mended), "--workload", "go-test,go-http"]) == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["check", "/does/not/exist.json"], "cannot be read"), (["check", "no-such-default"], "known are containerd-1.6"),
        (["check", "docker", "--workload", "go-tset"], "unknown workload"),
        (["check", "docker", "--caps", "SYS_ADMN"], "capability"),
        (["check", "docker", "--kernel", "new"], "kernel version"), (["check", "docker", "--arch", "z80"], "unknown architecture"),
        (["run", "--profile", "docker"], "no command"), (["record", "--"], "no command"),
        (["record", "--deny", "EWHAT", "--", "true"], "unknown errno"),
        (["run", "--profile", "docker", "--", "/no/such"], "not found"),
        (["dump", "999999999"], "there is none"),
    ],
)
def test_what_cannot_be_done_is_said_with_status_2(words: list[str], text: str, capsys: Capture) -> None:
    assert main(words) == 2
    assert text in capsys.readouterr().err


def test_disasm_shows_names_of_calls_arguments_and_actions(capsys: Capture) -> None:
    assert main(["disasm", "docker", "--arch", "x86_64", "--caps", "none"]) == 0
    said = capsys.readouterr().out
    assert "if arch == x86_64 goto" in said or "if not arch == x86_64 goto" in said
    assert "(args[0] & 0x7e020000) == 0x0" in said
    assert "return ERRNO(ENOSYS)" in said
    assert "nr >= clone3(435)" in said
    assert "KILL_THREAD" in said


def test_disasm_reads_a_file_of_raw_instructions(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes.fromhex("2000000000000000" "1500000127000000" "0600000001000500" "060000000000ff7f"))
    assert main(["disasm", str(path), "--arch", "x86_64"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0000: A = nr", "0001: if not nr == getpid(39) goto 0003", "0002: return ERRNO(EPERM)", "0003: return ALLOW",
    ]
    path.write_bytes(b"\x06\0\0")
    assert main(["disasm", str(path)]) == 2
    assert "not a whole number of 8-byte instructions" in capsys.readouterr().err


def test_merge_gives_what_either_allows(tmp_path: Path, capsys: Capture) -> None:
    one, other = profile(tmp_path / "1.json", "read", "open"), profile(tmp_path / "2.json", "read", "write")
    assert main(["merge", one, other]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert [rule["names"] for rule in merged["syscalls"]] == [["open", "read", "write"]]
    assert main(["merge", one, profile(tmp_path / "3.json", "read", defaultErrnoRet=38)]) == 2
