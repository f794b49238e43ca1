# SPDX-License-Identifier: Apache-2.0
"""Filters dumped from real processes."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from triaged.errors import Gone, KernelError, NotPermitted
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_dump import read_filters, read_seccomp_status
from triaged.kernel.seccomp_load import Command, LoadedFilter
from triaged.seccomp import bpf
from triaged.seccomp.action import EPERM, Action, ActionKind
from triaged.seccomp.bpf import Instruction, Program, SeccompData, parse_program, run_stacked
from triaged.seccomp.compiler import compiled
from triaged.seccomp.policy import ArchPolicy, Branch, Policy
from triaged.seccomp.syscalls import audit_arch_of, native_arch, number_of

PATHS = KernelPaths()
ARCH = native_arch()
ALLOW_ALL = Program([Instruction(bpf.RET_K, 0, 0, ActionKind.ALLOW)])

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reading filters needs CAP_SYS_ADMIN")


def refusing(name: str, action: Action) -> Program:
    number = number_of(ARCH, name)
    assert number is not None
    return compiled(Policy((ArchPolicy(ARCH, Action(ActionKind.ALLOW), {number: (Branch(action),)}),), Action(ActionKind.ALLOW)))


@contextmanager
def sleeping(*filters: LoadedFilter) -> Iterator[int]:
    with Command(["sleep", "60"], filters, number_of(ARCH, "seccomp") or 0) as command:
        command.start()
        try:
            yield command.pid
        finally:
            os.kill(command.pid, 9)
            command.wait()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_stacked_filters_come_newest_first_with_their_log_flags() -> None:
    programs = [ALLOW_ALL, refusing("bpf", EPERM), refusing("bpf", Action(ActionKind.KILL_PROCESS))]
    filters = [LoadedFilter(program.packed(), at == 1) for at, program in enumerate(programs)]
    with sleeping(*filters) as pid:
        assert read_seccomp_status(PATHS, pid) == ("filter", 3, True)
        dump = read_filters(PATHS, pid)
        assert [parse_program(one.instructions) for one in dump.filters] == programs[::-1]
        assert [one.is_logged for one in dump.filters] == [False, True, False]
        found = [parse_program(one.instructions) for one in dump.filters]
        data = SeccompData(number_of(ARCH, "bpf") or 0, audit_arch_of(ARCH))
        assert run_stacked(found, data).kind is ActionKind.KILL_PROCESS
        assert 0 < dump.stopped_ns < 1_000_000_000


def test_the_process_sleeps_on_as_before_and_is_traced_by_nobody() -> None:
    with sleeping(LoadedFilter(ALLOW_ALL.packed())) as pid:
        while state(pid) != "S":
            time.sleep(0.01)
        for _ in range(20):
            read_filters(PATHS, pid)
        deadline = time.monotonic() + 2
        while state(pid) != "S" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state(pid) == "S"
        assert "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()


def test_a_stopped_process_stays_stopped() -> None:
    with sleeping(LoadedFilter(ALLOW_ALL.packed())) as pid:
        os.kill(pid, 19)
        while state(pid) != "T":
            time.sleep(0.01)
        assert len(read_filters(PATHS, pid).filters) == 1
        time.sleep(0.05)
        assert state(pid) == "T"


def test_a_filter_of_4096_instructions_is_dumped_whole() -> None:
    longest = Program([Instruction(bpf.LD_ABS, 0, 0, 0)] * 4095 + [Instruction(bpf.RET_K, 0, 0, ActionKind.ALLOW)])
    with sleeping(LoadedFilter(longest.packed())) as pid:
        only, = read_filters(PATHS, pid).filters
        assert parse_program(only.instructions) == longest


def test_a_process_without_a_filter_is_not_stopped() -> None:
    with sleeping() as pid:
        dump = read_filters(PATHS, pid)
    assert (dump.mode, dump.filters, dump.stopped_ns) == ("none", (), 0)


def test_a_process_that_is_gone_is_said_to_be() -> None:
    with sleeping() as pid:
        pass
    with pytest.raises(Gone):
        read_filters(PATHS, pid)


def test_a_process_that_somebody_traces_names_the_tracer() -> None:
    code = (
        "import sys, time; sys.path[:0] = sys.argv[2:]; from triaged.kernel import ptrace;"
        "ptrace.request(ptrace.SEIZE, int(sys.argv[1])); print('on', flush=True); time.sleep(60)"
    )
    with sleeping(LoadedFilter(ALLOW_ALL.packed())) as pid:
        other = subprocess.Popen([sys.executable, "-c", code, str(pid), *sys.path], stdout=subprocess.PIPE)
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"on\n"
            with pytest.raises(NotPermitted) as caught:
                read_filters(PATHS, pid)
            assert f"process {other.pid} traces it already" in caught.value.remedy
        finally:
            other.kill()
            other.communicate()


@pytest.mark.parametrize(("how", "text"), [("filtered", "has a seccomp filter itself"), ("unprivileged", "may not be")])
def test_a_reader_that_may_not_is_told_why(how: str, text: str) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from triaged.kernel.paths import KernelPaths\n"
        "from triaged.kernel.seccomp_dump import read_filters\n"
        "from triaged.errors import NotPermitted\n"
        "try: read_filters(KernelPaths(), int(sys.argv[1]))\n"
        "except NotPermitted as error: print(error.shown())\n"
    )
    argv = [sys.executable, "-c", code]
    with sleeping(LoadedFilter(ALLOW_ALL.packed())) as pid:
        argv += [str(pid), *sys.path]
        if how == "filtered":
            read, write = os.pipe()
            saved = os.dup(1)
            os.dup2(write, 1)
            try:
                with Command(argv, [LoadedFilter(ALLOW_ALL.packed())], number_of(ARCH, "seccomp") or 0) as command:
                    command.start()
                    command.wait()
            finally:
                os.dup2(saved, 1)
                os.close(saved)
                os.close(write)
            with os.fdopen(read) as file:
                said = file.read()
        else:
            without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
            said = subprocess.run([*without, *argv], capture_output=True, text=True, check=True).stdout
    assert text in said


def test_a_process_that_does_not_stop_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with sleeping(LoadedFilter(ALLOW_ALL.packed())) as pid:
        from triaged.kernel import ptrace

        monkeypatch.setattr(ptrace.os, "waitid", lambda *_: None)
        with pytest.raises(KernelError, match="did not stop"):
            read_filters(PATHS, pid, timeout_s=0.05)
        monkeypatch.undo()
        time.sleep(0.05)
        assert "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text()
        assert state(pid) in "SR"
