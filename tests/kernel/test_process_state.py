# SPDX-License-Identifier: Apache-2.0
"""All that bounds a process, from made-up and from real /proc files."""
from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from triaged.errors import Gone, Malformed
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.kernel.process_state import (
    parse_cpu_mask,
    parse_credentials,
    parse_environment,
    parse_mountinfo,
    parse_status_fields,
    read_process_state,
)
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process import WorkloadMatch
from triaged.model.process_state import Credentials

MakeProc = Callable[..., KernelPaths]
PATHS = KernelPaths()
STATUS = b"""Name:\tworker\\nUid:\\t0
Umask:\t0027
Uid:\t1000\t1001\t1002\t1003
Gid:\t100\t101\t102\t103
Groups:\t4 27 1000 
VmSize:\t    2048 kB
VmLck:\t      64 kB
VmData:\t    1024 kB
Threads:\t9
SigQ:\t3/96365
CapInh:\t0000000000000000
CapPrm:\t0000000000000400
CapEff:\t0000000000000400
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
Cpus_allowed:\t00000001,0000000f
"""
LIMITS = "Limit                     Soft Limit           Hard Limit           Units     \n" + "".join(
    f"{name:<25} {soft:<20} {hard:<20} {unit:<10}\n"
    for name, soft, hard, unit in (
        ("Max open files", "64", "4096", "files"), ("Max processes", "unlimited", "unlimited", "processes"),
    )
)
MOUNTS = (
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"
    "30 22 0:25 / /tmp rw,nosuid,noexec - tmpfs tmpfs rw,size=10240k\n"
    "31 22 0:26 /in\\040side /with\\040space ro master:3 propagate_from:2 - tmpfs a\\011b rw\n"
)


def lay_out(paths: KernelPaths, pid: int = 100) -> Path:
    """Puts what `made_up_proc` does not write beside what it does."""
    directory = Path(paths.proc) / str(pid)
    (directory / "status").write_bytes(STATUS)
    (directory / "limits").write_text(LIMITS)
    (directory / "mountinfo").write_text(MOUNTS)
    (directory / "environ").write_bytes(b"HOME=/root\0GOFLAGS=-p=1\0no assignment\0HOME=/other\0=x\0")
    (directory / "uid_map").write_text("         0       1000          1\n")
    (directory / "maps").write_text("a\nb\nc\n")
    (directory / "attr").mkdir()
    (directory / "attr/current").write_bytes(b"docker-default (enforce)\n\0")
    (directory / "ns").mkdir()
    (directory / "ns/user").symlink_to("user:[4026532000]")
    (directory / "root").symlink_to("/srv/jail")
    (directory / "cwd").symlink_to("/work (deleted)")
    (directory / "fd").mkdir()
    return directory


def test_all_that_bounds_a_process_is_read(made_up_proc: MakeProc) -> None:
    paths = made_up_proc()
    lay_out(paths)
    state = read_process_state(paths, 100)
    assert (state.identity.pid, state.identity.start_ticks, state.identity.uid) == (100, 5000, 1000)
    assert state.identity.cgroup == "/system.slice/ci.service"
    assert isinstance(state.credentials, Credentials)
    assert state.credentials.uids == (1000, 1001, 1002, 1003)
    assert state.credentials.groups == (4, 27, 1000)
    assert state.credentials.has(10)
    assert not state.credentials.has(21)
    assert state.credentials.no_new_privileges
    assert (state.soft("NOFILE"), state.hard("NOFILE"), state.soft("NPROC")) == (64, 4096, UNLIMITED)
    assert isinstance(state.soft("AS"), Unknown)
    assert (state.umask, state.threads, state.pending_signals, state.cpus_allowed) == (0o027, 9, 3, 5)
    assert (state.address_space_bytes, state.locked_bytes, state.data_bytes) == (2 << 20, 64 << 10, 1 << 20)
    assert (state.mappings, state.seccomp_mode, state.lsm_label) == (3, "filter", "docker-default (enforce)")
    assert (state.root, state.directory) == ("/srv/jail", "/work")
    assert state.uid_map.split() == ["0", "1000", "1"]
    assert not state.has_initial_user_namespace
    assert state.environment == {"HOME": "/root", "GOFLAGS": "-p=1"}
    assert isinstance(state.filters, Unknown)
    mount = state.mount_of("/tmp/go-build1/a.test")
    assert mount is not None
    assert "noexec" in mount.options
    assert abs(state.time_usec / 1e6 - time.time()) < 60


def test_what_a_process_does_not_show_is_unknown_and_costs_nothing_else(made_up_proc: MakeProc) -> None:
    paths = made_up_proc()
    state = read_process_state(paths, 100, with_mappings=False)
    assert state.identity.comm == "worker"
    assert isinstance(state.credentials, Unknown)
    unknown = (state.mappings, state.open_files, state.address_space_bytes, state.threads, state.cpus_allowed, state.seccomp_mode)
    assert all(isinstance(value, Unknown) for value in unknown)
    assert (state.limits, state.mounts, state.namespaces, state.root) == ({}, (), {}, "/")


def test_a_process_that_is_gone_or_another_one_is_gone(made_up_proc: MakeProc) -> None:
    paths = made_up_proc(start_ticks=5000)
    with pytest.raises(Gone):
        read_process_state(paths, 101)
    who = read_process(paths, 100)
    assert read_process_state(paths, 100, identity=who).identity == who
    with pytest.raises(Gone):
        read_process_state(paths, 100, identity=replace(who, start_ticks=4999))


def test_what_is_known_of_it_already_is_kept(made_up_proc: MakeProc) -> None:
    paths = made_up_proc(exe=None)
    workload = WorkloadMatch("go-test", "test-binary", "example.org/a")
    known = replace(read_process(paths, 100), exe="/tmp/a.test", workload=workload, ci_job="7")
    found = read_process_state(paths, 100, identity=known).identity
    assert (found.workload, found.ci_job, found.exe) == (known.workload, "7", "/tmp/a.test")


@pytest.mark.parametrize("line", ["Uid:\t1 2 3", "Uid:\t1 2 3 x", "Uid:\t"])
def test_ids_that_cannot_be_parsed_are_malformed(line: str) -> None:
    fields = parse_status_fields(STATUS.replace(b"Uid:\t1000\t1001\t1002\t1003", line.encode()))
    with pytest.raises(Malformed):
        parse_credentials(fields, "/proc/1/status")


def test_a_comm_forges_no_field() -> None:
    assert parse_status_fields(STATUS)["Uid"] == "1000\t1001\t1002\t1003"


def test_mount_points_are_unescaped() -> None:
    mount = parse_mountinfo(MOUNTS)[2]
    assert (mount.point, mount.root, mount.source, mount.kind) == ("/with space", "/in side", "a\tb", "tmpfs")
    assert "ro" in mount.options


@pytest.mark.parametrize(
    "text", ["22 1 8:1 / / rw\n", "x 1 8:1 / / rw - ext4 a rw\n", "22 1 8:1 / - ext4 a rw\n", "22 1 8:1 / / rw - ext4\n"]
)
def test_a_broken_mountinfo_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_mountinfo(text)


def test_a_mask_that_is_none_is_malformed() -> None:
    assert parse_cpu_mask("f") == 4
    with pytest.raises(Malformed):
        parse_cpu_mask("0-3")


def test_an_empty_environment_has_no_variables() -> None:
    assert parse_environment(b"") == {}


def test_this_very_process_is_read_right() -> None:
    state = read_process_state(PATHS, os.getpid())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = [UNLIMITED if each == resource.RLIM_INFINITY else each for each in (soft, hard)]
    assert [state.soft("NOFILE"), state.hard("NOFILE")] == wanted
    assert isinstance(state.credentials, Credentials)
    assert state.credentials.uids[:3] == os.getresuid()
    assert state.directory == os.getcwd()
    assert state.namespaces["user"] == os.readlink("/proc/self/ns/user")
    assert state.cpus_allowed == len(os.sched_getaffinity(0))
    assert isinstance(state.mappings, int)
    assert state.mappings > 10
    mount = state.mount_of("/proc/self/status")
    assert mount is not None
    assert mount.kind == "proc"


def test_open_files_are_counted() -> None:
    before = read_process_state(PATHS, os.getpid()).open_files
    files = [os.dup(0) for _ in range(7)]
    try:
        after = read_process_state(PATHS, os.getpid()).open_files
    finally:
        for file in files:
            os.close(file)
    assert isinstance(before, int)
    assert after == before + 7


def test_a_zombie_still_shows_its_limits_and_time() -> None:
    child = subprocess.Popen([sys.executable, "-c", "sum(range(3_000_000))"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        state = read_process_state(PATHS, child.pid)
    finally:
        child.wait()
    assert state.limits
    assert isinstance(state.cpu_time_s, float)
    assert state.cpu_time_s > 0
    assert isinstance(state.mappings, int | Unknown)
    assert isinstance(state.address_space_bytes, Unknown)


def test_a_namespace_of_its_own_is_seen() -> None:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-c", "print('ready', flush=True); input()"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        if child.stdout.readline() != b"ready\n":
            pytest.skip("user namespaces cannot be made here")
        state = read_process_state(PATHS, child.pid)
    finally:
        child.communicate(b"\n")
    assert not state.has_initial_user_namespace
    assert state.uid_map.split() == ["0", "0", "1"]


def test_filters_are_read_on_request(filtered: Callable[..., object]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to read filters")
    child = filtered(0x00050001)
    child.go()  # type: ignore[attr-defined]
    pid: int = child.pid  # type: ignore[attr-defined]
    assert isinstance(read_process_state(PATHS, pid).filters, Unknown)
    state = read_process_state(PATHS, pid, with_filters=True)
    assert state.seccomp_mode == "filter"
    assert isinstance(state.filters, tuple)
    assert [len(each) for each in state.filters] == [4 * 8]
