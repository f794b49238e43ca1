# SPDX-License-Identifier: Apache-2.0
"""What is kept of processes."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.process import ProcessIdentity
from triaged.model.workload import PackageFrom, ProcessPattern, WorkloadDefinition

MakeProc = Callable[..., KernelPaths]
GO_TEST = WorkloadDefinition("go-test", "Go tests", (
    ProcessPattern("command", ("go",), subcommand="test", options_with_value=("-C",)),
    ProcessPattern("test-binary", ("*.test",), arguments=("-test.*",), package_from=PackageFrom.GO_BUILD_INFO),
))
TEST_ARGV = b"/tmp/worker.test\0-test.v=true\0"


def add_test(made_up_proc: MakeProc, pid: int = 100, **more: object) -> KernelPaths:
    return made_up_proc(pid=pid, exe="/tmp/worker.test", argv=TEST_ARGV, comm=b"worker.test", **more)


def test_a_process_of_a_workload_is_recognised_with_its_ci_job(made_up_proc: MakeProc) -> None:
    paths = add_test(made_up_proc, environment=b"GITHUB_RUN_ID=7\0")
    found = ProcessTable(paths, [GO_TEST]).identify(100)
    assert found is not None
    assert found.workload is not None
    assert (found.workload.workload, found.workload.role) == ("go-test", "test-binary")
    assert found.ci_job == "github run=7"


def test_the_environment_of_other_processes_is_not_looked_at(made_up_proc: MakeProc) -> None:
    found = ProcessTable(made_up_proc(environment=b"GITHUB_RUN_ID=7\0"), [GO_TEST]).identify(100)
    assert found is not None
    assert (found.workload, found.ci_job) == (None, "")


def test_go_build_is_no_test(made_up_proc: MakeProc) -> None:
    for pid, argv in enumerate((b"go\0build\0test\0", b"go\0-C\0test\0vet\0", b"go\0-C\0x\0test\0./...\0"), 1):
        paths = made_up_proc(pid=pid, exe="/usr/local/go/bin/go", argv=argv)
    assert [found.pid for found in ProcessTable(paths, [GO_TEST]).rescan()] == [3]


def test_a_test_from_a_list_of_files_takes_its_package_from_go_mod(made_up_proc: MakeProc, tmp_path: Path) -> None:
    binary = tmp_path / "worker.test"
    blob = (b"\xff Go buildinf:" + bytes([8, 2])).ljust(32, b"\0") + bytes([6]) + b"go1.22" + bytes([80])
    blob += b"s" * 16 + b"path\tcommand-line-arguments.test\n"
    head = bytearray(b"\x7fELF\x02\x01\x01".ljust(64, b"\0"))
    head[32], head[54], head[56] = 64, 56, 1  # one program header of 56 bytes, at 64
    program = bytes([1, 0, 0, 0, 6, 0, 0, 0, 128]).ljust(32, b"\0") + len(blob).to_bytes(8, "little")
    binary.write_bytes((bytes(head) + program).ljust(128, b"\0") + blob)
    (tmp_path / "app/worker").mkdir(parents=True)
    (tmp_path / "app/go.mod").write_text("module example.org/app\n")
    paths = made_up_proc(exe=str(binary), argv=TEST_ARGV)
    os.symlink(tmp_path / "app/worker", f"{paths.proc}/100/cwd")
    found = ProcessTable(paths, [GO_TEST]).identify(100)
    assert found is not None
    assert found.workload is not None
    assert (found.workload.package, found.workload.toolchain) == ("example.org/app/worker", "go1.22")


def test_a_test_binary_that_is_no_sound_elf_file_is_still_a_test(made_up_proc: MakeProc, tmp_path: Path) -> None:
    (tmp_path / "worker.test").write_bytes(b"\x7fELF broken")
    table = ProcessTable(made_up_proc(exe=str(tmp_path / "worker.test"), argv=TEST_ARGV), [GO_TEST])
    found = table.identify(100)
    assert found is not None
    assert found.workload is not None
    assert found.workload.package == ""
    assert table.unreadable_programs == 1


def test_a_test_that_ended_before_its_binary_was_read_is_kept(made_up_proc: MakeProc) -> None:
    paths = add_test(made_up_proc)
    os.unlink(f"{paths.proc}/100/environ")
    found = ProcessTable(paths, [GO_TEST]).identify(100)
    assert found is not None
    assert found.workload is not None
    assert (found.workload.package, found.ci_job) == ("", "")


def test_what_was_known_of_a_process_outlives_it(made_up_proc: MakeProc) -> None:
    paths = add_test(made_up_proc)
    table = ProcessTable(paths, [GO_TEST])
    before = table.identify(100)
    assert before is not None
    shutil.rmtree(f"{paths.proc}/100")
    assert table.identify(100) == before
    assert table.last_known(100) == before
    assert table.identify(101) is None


def test_a_reused_pid_is_another_process(made_up_proc: MakeProc) -> None:
    table = ProcessTable(add_test(made_up_proc), [GO_TEST])
    first = table.identify(100)
    assert first is not None
    made_up_proc(pid=100, start_ticks=6000, exe="/bin/other", argv=b"other\0")
    second = table.identify(100)
    assert second is not None
    assert (second.exe, second.start_ticks) == ("/bin/other", 6000)
    assert not table.is_alive(first)
    assert table.is_alive(second)
    assert table.workload_processes() == []


def test_a_zombie_keeps_what_was_known_of_it(made_up_proc: MakeProc) -> None:
    table = ProcessTable(add_test(made_up_proc), [GO_TEST])
    before = table.identify(100)
    assert before is not None
    made_up_proc(pid=100, exe=None, argv=b"", flags=4)
    assert table.identify(100) == before


def test_of_a_process_of_no_workload_the_cgroup_is_kept_until_more_is_wanted(made_up_proc: MakeProc) -> None:
    table = ProcessTable(made_up_proc(exe="/bin/worker"), [GO_TEST], cap=4)
    table.remember_executed(100, "/bin/worker")
    brief = table.last_known(100)
    assert brief is not None
    assert (brief.exe, brief.cgroup, brief.start_ticks) == ("/bin/worker", "/system.slice/ci.service", 0)
    for pid in range(200, 206):
        made_up_proc(pid=pid)
        table.remember_executed(pid, "/bin/other")
    assert table.forgotten == 3
    assert table.last_known(100) is None
    table.look_again(100)
    full = table.last_known(100)
    assert full is not None
    assert (full.start_ticks, full.argv) == (5000, ("worker", "-v"))


def test_a_look_through_proc_finds_only_workloads_and_forgets_the_dead(made_up_proc: MakeProc) -> None:
    add_test(made_up_proc, pid=100)
    add_test(made_up_proc, pid=101)
    paths = made_up_proc(pid=102)
    table = ProcessTable(paths, [GO_TEST])
    assert sorted(found.pid for found in table.rescan()) == [100, 101]
    assert table.last_known(102) is None
    shutil.rmtree(f"{paths.proc}/101")
    assert [ended.pid for ended in table.forget_dead()] == [101]
    assert [alive.pid for alive in table.workload_processes()] == [100]


def test_the_table_is_bounded_and_counts_what_it_forgot(made_up_proc: MakeProc) -> None:
    table = ProcessTable(made_up_proc(), [GO_TEST], cap=10)
    for pid in range(1, 26):
        table.remember(ProcessIdentity(pid=pid, start_ticks=pid))
    assert table.forgotten == 15
    assert table.last_known(15) is None
    assert table.last_known(16) is not None


def test_a_killed_process_that_was_never_read_is_in_its_parent_cgroup(made_up_proc: MakeProc) -> None:
    table = ProcessTable(made_up_proc(pid=100, cgroup=b"0::/ci.slice/job.service\n"), [GO_TEST])
    table.remember_killed(777, parent=100)
    found = table.last_known(777)
    assert found is not None
    assert (found.ppid, found.cgroup, found.exe) == (100, "/ci.slice/job.service", "")
    assert table.is_inherited(777)
    assert not table.is_inherited(100)


def test_an_inherited_cgroup_is_none_any_more_when_the_process_is_read(made_up_proc: MakeProc) -> None:
    table = ProcessTable(made_up_proc(pid=100, cgroup=b"0::/ci.slice/job.service\n"), [GO_TEST])
    for read in (table.read, lambda pid: table.remember_executed(pid, "/bin/sh")):
        table.remember(ProcessIdentity(pid=50, cgroups={"": "/other.service"}))
        table.remember(ProcessIdentity(pid=100))
        table.remember_killed(100, parent=50)
        assert table.is_inherited(100)
        read(100)
        assert not table.is_inherited(100)


def test_what_is_known_of_a_killed_process_is_not_replaced_by_its_parent(made_up_proc: MakeProc) -> None:
    made_up_proc(pid=100, cgroup=b"0::/parent.service\n")
    table = ProcessTable(made_up_proc(pid=101, cgroup=b"0::/child.service\n", ppid=100), [GO_TEST])
    own = table.identify(101)
    assert own is not None
    table.remember_killed(101, parent=100)
    assert table.last_known(101) == own


def test_a_killed_process_of_an_unknown_parent_stays_unknown(made_up_proc: MakeProc) -> None:
    table = ProcessTable(made_up_proc(), [GO_TEST])
    table.remember_killed(777, parent=776)
    table.remember_killed(778, parent=100, may_look=False)
    assert table.last_known(777) is table.last_known(778) is None


def test_a_process_that_executed_something_else_is_read_again(made_up_proc: MakeProc) -> None:
    table = ProcessTable(made_up_proc(exe="/bin/sh"), [GO_TEST])
    table.look_again(100)
    made_up_proc(exe="/bin/worker")
    table.look_again(100)
    found = table.last_known(100)
    assert found is not None
    assert found.exe == "/bin/worker"
    table.look_again(4242)
    assert table.last_known(4242) is None


def test_a_real_process_is_found_by_a_look_through_the_real_proc() -> None:
    name = os.path.basename(os.path.realpath(sys.executable))
    mine = WorkloadDefinition("mine", "Mine", (ProcessPattern("sleeper", (name,), arguments=("this-very-test",)),))
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", "this-very-test"], stdin=subprocess.PIPE)
    try:
        table = ProcessTable(KernelPaths(), [mine])
        assert [found.pid for found in table.rescan()] == [child.pid]
    finally:
        child.communicate()
    assert [ended.pid for ended in table.forget_dead()] == [child.pid]
