# SPDX-License-Identifier: Apache-2.0
"""Who a process is, from made-up and from real /proc files."""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import triaged
from triaged.errors import Gone, Malformed
from triaged.kernel.ci_environment import parse_ci_job
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import (
    parse_argv,
    parse_cgroups,
    parse_real_uid,
    parse_stat,
    pids,
    read_cgroup_record,
    read_ci_job,
    read_exe,
    read_exes,
    read_process,
    read_start_ticks,
)
from triaged.model.quoting import shown

MakeProc = Callable[..., KernelPaths]


def test_all_of_an_identity_is_read(made_up_proc: MakeProc) -> None:
    found = read_process(made_up_proc(), 100)
    assert (found.pid, found.start_ticks, found.ppid, found.uid) == (100, 5000, 1, 1000)
    assert (found.comm, found.exe, found.argv) == ("worker", "/usr/bin/worker", ("worker", "-v"))
    assert found.cgroup == "/system.slice/ci.service"


def test_this_very_process_is_read_right() -> None:
    found = read_process(KernelPaths(), os.getpid())
    assert found.exe == os.path.realpath("/proc/self/exe")
    assert found.uid == os.getuid()
    assert found.ppid == os.getppid()
    assert found.start_ticks == read_start_ticks(KernelPaths(), os.getpid()) > 0
    assert found.argv
    assert os.getpid() in pids(KernelPaths())


def test_a_comm_of_parentheses_control_characters_and_broken_utf8_is_kept_raw_and_shown_escaped(made_up_proc: MakeProc) -> None:
    found = read_process(made_up_proc(comm=b") R 1 (\x1b[2J\xff"), 100)
    assert found.comm == ") R 1 (\x1b[2J\udcff"
    assert found.ppid == 1
    assert found.start_ticks == 5000
    assert shown(found.comm) == ") R 1 (\\x1b[2J\\xff"


def test_the_kernel_own_rendering_of_a_wild_comm_is_read(filtered: Callable[..., Any]) -> None:
    child = filtered(0, comm="a)\\n\\x1b\\xff (")
    found = read_process(KernelPaths(), child.pid)
    assert found.comm == "a)\n\x1b\udcff ("
    assert found.uid == os.getuid()


def test_arguments_that_are_not_utf8_are_kept_raw() -> None:
    assert parse_argv(b"prog\0\xff\xfe\0\0") == ("prog", "\udcff\udcfe", "")
    assert parse_argv(b"") == ()


def test_a_long_command_line_is_cut_and_says_so() -> None:
    argv = parse_argv(b"x\0" * 3000)
    assert argv[-1] == "…"
    assert len(argv) < 1100


def test_a_program_deleted_while_it_runs_keeps_its_name(made_up_proc: MakeProc) -> None:
    paths = made_up_proc(exe="/tmp/go-build1/worker.test (deleted)")
    assert read_process(paths, 100).exe == "/tmp/go-build1/worker.test"
    assert read_exe(paths, 100) == "/tmp/go-build1/worker.test"


def test_a_kernel_thread_has_no_executable(made_up_proc: MakeProc) -> None:
    found = read_process(made_up_proc(exe=None, argv=b"", cgroup=b"0::/\n"), 100)
    assert (found.exe, found.argv, found.cgroup) == ("", (), "/")


def test_an_exiting_process_shows_no_version_1_cgroup(made_up_proc: MakeProc) -> None:
    version_1 = b"2:pids:/\n1:name=systemd:/\n0::/\n"
    assert read_process(made_up_proc(cgroup=version_1, flags=0x4), 100).cgroups == {}
    assert read_process(made_up_proc(cgroup=b"0::/ci.slice\n", flags=0x4), 100).cgroups == {"": "/ci.slice"}
    assert read_process(made_up_proc(cgroup=version_1), 100).cgroups["pids"] == "/"


def test_the_cgroup_alone_is_not_taken_from_an_exiting_process(made_up_proc: MakeProc) -> None:
    version_1, version_2 = b"2:pids:/\n1:name=systemd:/x.service\n0::/\n", b"0::/\n"
    assert read_cgroup_record(made_up_proc(cgroup=version_1), 100) == version_1
    with pytest.raises(Gone):
        read_cgroup_record(made_up_proc(cgroup=version_1, flags=0x4), 100)
    assert read_cgroup_record(made_up_proc(cgroup=version_2, flags=0x4), 100) == version_2


def test_of_a_storm_only_the_living_are_read() -> None:
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    zombie = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    found = read_exes(KernelPaths(), [child.pid, os.getpid(), zombie.pid])
    zombie.wait()
    assert found == ([(os.getpid(), os.path.realpath("/proc/self/exe"))], 0)


def test_in_a_made_up_proc_only_its_own_processes_count(made_up_proc: MakeProc) -> None:
    assert read_exes(made_up_proc(), [100, os.getpid()]) == ([(100, "/usr/bin/worker")], 0)


def test_a_real_zombie_is_no_claim_about_a_version_1_cgroup() -> None:
    child = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    found = read_process(KernelPaths(), child.pid)
    child.wait()
    assert found.exe == ""
    assert not any(hierarchy for hierarchy in found.cgroups)


def test_a_process_that_ended_is_gone() -> None:
    child = subprocess.Popen(["/bin/true"])
    child.wait()
    for read in (read_process, read_exe, read_start_ticks, read_ci_job):
        with pytest.raises(Gone):
            read(KernelPaths(), child.pid)


def test_a_process_that_ends_between_two_reads_is_gone(made_up_proc: MakeProc) -> None:
    paths = made_up_proc()
    os.unlink(f"{paths.proc}/100/cgroup")
    with pytest.raises(Gone, match="100/cgroup"):
        read_process(paths, 100)


@pytest.mark.parametrize("file", ["stat", "status", "cgroup"])
def test_nonsense_in_a_file_names_the_file(made_up_proc: MakeProc, file: str) -> None:
    paths = made_up_proc()
    with open(f"{paths.proc}/100/{file}", "w", encoding="ascii") as broken:
        broken.write("nonsense\n")
    with pytest.raises(Malformed, match=f"100/{file}.*nonsense"):
        read_process(paths, 100)


def test_every_hierarchy_of_a_hybrid_layout_is_read() -> None:
    found = parse_cgroups(b"4:cpu,cpuacct:/b\n3:pids:/a\n1:name=systemd:/system.slice/x.service\n0::/\n")
    assert found == {"cpu": "/b", "cpuacct": "/b", "pids": "/a", "name=systemd": "/system.slice/x.service", "": "/"}


def test_a_cgroup_path_of_4000_bytes_with_colons_and_returns_is_read() -> None:
    path = "/" + "a:b\r" * 1000
    assert parse_cgroups(b"0::" + path.encode() + b"\n") == {"": path}


def test_a_removed_cgroup_keeps_its_name() -> None:
    assert parse_cgroups(b"0::/x.scope (deleted)\n") == {"": "/x.scope"}


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers(record: bytes) -> None:
    for parse in (parse_stat, parse_real_uid, parse_cgroups):
        try:
            parse(record)
        except Malformed:
            continue
    parse_argv(record)
    parse_ci_job(record)


@given(st.binary(min_size=1, max_size=15).filter(lambda comm: b"\0" not in comm))
def test_any_comm_is_told_from_the_fields_behind_it(comm: bytes) -> None:
    stat = parse_stat(b"7 (" + comm + b") S 3 " + b"0 " * 4 + b"0 " + b"0 " * 12 + b"99 0\n")
    assert os.fsencode(stat.comm) == comm
    assert (stat.ppid, stat.start_ticks, stat.is_exiting) == (3, 99, False)


@pytest.mark.parametrize(("environment", "job"), [
    (b"GITHUB_RUN_ID=7\0GITHUB_JOB=unit\0GITHUB_REPOSITORY=o/r\0", "github repository=o/r run=7 job=unit"),
    (b"FORGEJO_ACTIONS=true\0GITHUB_RUN_ID=7\0", "forgejo run=7"),
    (b"GITLAB_CI=true\0CI_JOB_ID=4\0CI_JOB_NAME=go test\0", "gitlab job=4 name=go test"),
    (b"BUILD_TAG=jenkins-app-12\0", "jenkins tag=jenkins-app-12"),
    (b"BUILDKITE_JOB_ID=a-b\0BUILDKITE_BUILD_NUMBER=3\0", "buildkite build=3 job=a-b"),
    (b"PATH=/bin\0CI=true\0", ""),
    (b"GITHUB_RUN_ID=\0", ""),
    (b"", ""),
])
def test_the_ci_system_own_variables_name_the_job(environment: bytes, job: str, made_up_proc: MakeProc) -> None:
    assert parse_ci_job(environment) == job
    assert read_ci_job(made_up_proc(environment=environment), 100) == job


def test_the_first_of_two_variables_counts_as_for_getenv() -> None:
    assert parse_ci_job(b"BUILD_TAG=first\0BUILD_TAG=second\0") == "jenkins tag=first"


def test_an_environment_that_may_not_be_read_names_no_job() -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")  # one that any user may run
    if os.geteuid() != 0 or shutil.which("setpriv") is None or python is None:
        pytest.skip("needs root, setpriv and a python3 in /usr/bin, to become a user that may not read")
    probe = "from triaged.kernel.paths import KernelPaths; from triaged.kernel.process import read_ci_job; " \
        f"print(repr(read_ci_job(KernelPaths(), {os.getpid()})))"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", probe],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(Path(triaged.__file__).parents[1])},
    )
    if "No module named 'triaged'" in done.stderr:
        pytest.skip("the checkout may not be read by other users")
    assert done.stdout.strip() == "''", done.stderr
