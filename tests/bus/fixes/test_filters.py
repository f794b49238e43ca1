# SPDX-License-Identifier: Apache-2.0
"""InspectSeccomp: real filters of real processes, read by the helper that the bus starts, for callers that polkit judges."""
from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from triaged.bus.authority import Authority
from triaged.bus.connection import BUS_NAME, BUS_PATH, Connection
from triaged.bus.helper_client import HelperFilters
from triaged.bus.helper_service import HELPER, HELPER_NAME, HELPER_PATH
from triaged.bus.inspections import Inspections
from triaged.bus.service import Service
from triaged.config import config_paths, load_workloads
from triaged.errors import BusError, Gone
from triaged.filter_inspection import FilterInspector
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process, read_start_ticks
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.seccomp_load import Command, LoadedFilter
from triaged.seccomp import bpf
from triaged.seccomp.action import ALLOW, EPERM, Action, ActionKind
from triaged.seccomp.bpf import Instruction, Program, parse_program
from triaged.seccomp.compiler import compiled
from triaged.seccomp.policy import ArchPolicy, Branch, Policy
from triaged.seccomp.syscalls import native_arch, number_of

PATHS = KernelPaths()
ARCH = native_arch()
USER = 65534


def refusing(**answers: Action) -> LoadedFilter:
    """A filter that gives these answers and allows the rest."""
    branches = {number_of(ARCH, name) or 0: (Branch(action),) for name, action in answers.items()}
    return LoadedFilter(compiled(Policy((ArchPolicy(ARCH, ALLOW, branches),), ALLOW)).packed())


@contextmanager
def sleeping(*filters: LoadedFilter, uid: int = 0) -> Iterator[int]:
    argv = ["sleep", "60"] if not uid else ["setpriv", f"--reuid={uid}", "--clear-groups", "sleep", "60"]
    with Command(argv, filters, number_of(ARCH, "seccomp") or 0) as command:
        command.start()
        try:
            for _ in range(100):
                if Path(f"/proc/{command.pid}/comm").read_text() == "sleep\n":
                    break
                time.sleep(0.05)
            yield command.pid
        finally:
            os.kill(command.pid, 9)
            command.wait()


DOCKER_LIKE = refusing(clone3=Action(ActionKind.ERRNO, 38), unshare=EPERM)


@pytest.fixture
async def service(serving: Any) -> AsyncIterator[Service]:
    """The service with the inspections only, filters through the helper."""

    def owner(pid: int) -> int | None:
        return read_process(PATHS, pid).uid if os.path.exists(f"/proc/{pid}") else None

    async def network(names: Any, pid: int) -> None:
        return None

    def methods_of(made: Service) -> Any:
        def link() -> Connection | None:
            return made.connection

        inspector = FilterInspector(PATHS, ProcessTable(PATHS, load_workloads(config_paths())), HelperFilters(link))

        async def inspect(pid: int, workloads: str, with_programs: bool) -> Any:
            found = await inspector.inspect(pid, workloads)
            return found.process_row(), found.filter_rows(with_programs), found.call_rows(), found.assessment.sentences()

        return Inspections(
            lambda names, pid, network: [], network, lambda pid: ({}, []), inspect, owner, Authority(link, time_limit_s=5)
        ).methods()

    async with serving(methods_of) as made:
        yield made


@pytest.fixture
def inspect(machine: Any, service: Service) -> Callable[..., Any]:
    """InspectSeccomp as a user calls it: what it answers, or [error, text]."""

    async def call(uid: int, pid: int, options: str = "{}") -> Any:
        code = f'result = await manager("InspectSeccomp", "ua{{sv}}", {pid}, {options})'
        return await machine.as_user_async(uid, code)

    return call


async def test_a_dump_by_the_helper_is_what_was_loaded(machine: Any, connection: Connection) -> None:
    filters = [DOCKER_LIKE, refusing(bpf=Action(ActionKind.KILL_PROCESS))]
    with sleeping(*filters) as pid:
        ticks = read_start_ticks(PATHS, pid)
        dump = await HelperFilters(lambda: connection).read(pid, ticks)
        assert [parse_program(one.instructions) for one in dump.filters] == [parse_program(f.instructions) for f in filters[::-1]]
        assert (dump.mode, dump.has_no_new_privileges) == ("filter", True)
        assert 0 < dump.stopped_ns < 1e9
        with pytest.raises(Gone):
            await HelperFilters(lambda: connection).read(pid, ticks + 1)  # another process that has the pid by now
    with pytest.raises(Gone):
        await HelperFilters(lambda: connection).read(pid, ticks)


async def test_a_helper_under_a_filter_of_its_own_says_why_it_cannot(machine: Any, connection: Connection) -> None:
    # What SystemCallFilter= in its unit would do.
    argv = ["env", *(f"{name}={value}" for name, value in machine.environment.items()), "python3", "-m", "triaged.helper",
            "--bus", machine.address, "--state-directory", str(machine.state)]
    with Command(argv, [refusing(bpf=EPERM)], number_of(ARCH, "seccomp") or 0) as command, sleeping(DOCKER_LIKE) as pid:
        command.start()
        try:
            for _ in range(200):
                (owned,) = await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "NameHasOwner", "s", [HELPER_NAME])
                if owned:
                    break
                await asyncio.sleep(0.05)
            with pytest.raises(Exception, match="this process has a seccomp filter itself"):
                await HelperFilters(lambda: connection).read(pid, read_start_ticks(PATHS, pid))
        finally:
            os.kill(command.pid, 15)
            command.wait()


async def test_others_than_triaged_and_root_are_not_served(machine: Any) -> None:
    with sleeping(DOCKER_LIKE) as pid:
        ticks = read_start_ticks(PATHS, pid)
        name, text = await machine.as_user_async(USER, f"""
            try:
                await connection.call(HELPER_NAME, HELPER_PATH, HELPER, "DumpFilters", "ut", [{pid}, {ticks}])
                result = ["served", ""]
            except BusError as error:
                result = [error.name, str(error)]
        """)
    assert name == "org.freedesktop.DBus.Error.AccessDenied"
    assert text == "triaged-helper serves triaged and root only"


@pytest.mark.parametrize("arguments", [(0, 5), (1, 0)])
async def test_a_dump_of_no_certain_process_is_refused(machine: Any, connection: Connection, arguments: tuple[int, int]) -> None:
    with pytest.raises(BusError, match="wants the process's pid and start ticks"):
        await connection.call(HELPER_NAME, HELPER_PATH, HELPER, "DumpFilters", "ut", list(arguments))


async def test_the_answer_says_what_is_refused_and_what_that_breaks(inspect: Callable[..., Any]) -> None:
    with sleeping(DOCKER_LIKE, refusing(epoll_create1=EPERM)) as pid:
        process, filters, calls, consequences = await inspect(0, pid, '{"workload": Variant("s", "go-test-binary,go-cgo-binary")}')
    assert (process["Pid"], process["Mode"], process["NoNewPrivileges"], process["Works"]) == (pid, "filter", True, False)
    assert process["Toolchain"].startswith("go1.")
    assert [one["Logged"] for one in filters] == [False, False]
    assert all("Program" not in one for one in filters)
    (epoll,) = (call for call in calls if call["Call"] == "epoll_create1" and call["Workload"] == "go-test-binary")
    assert (epoll["Outcome"], epoll["Answers"], epoll["Required"]) == ("breaks", ["ERRNO(EPERM)"], True)
    assert "epollcreate failed" in epoll["Shows"]
    (clone3,) = (call for call in calls if call["Call"] == "clone3")
    assert (clone3["Outcome"], clone3["Answers"]) == ("harmless", ["ERRNO(ENOSYS)"])
    assert any(call["Call"] == "futex" and call["Outcome"] == "allowed" and call["Answers"] == ["ALLOW"] for call in calls)
    assert any(line.startswith("epoll_create1 returns EPERM") for line in consequences)
    assert "clone3 returns ENOSYS: go-cgo-binary does without" in consequences
    assert ('unshare(CLONE_NEWUSER) returns EPERM: a package that uses SysProcAttr.Unshareflags with CLONE_NEWUSER fails with '
            '"fork/exec PATH: operation not permitted"') in consequences


async def test_all_workloads_and_large_filters_fit_into_an_answer(inspect: Callable[..., Any]) -> None:
    chain = [Instruction(bpf.LD_IMM, 0, 0, 0)] * 4095
    large = LoadedFilter(Program([*chain, Instruction(bpf.RET_K, 0, 0, ActionKind.ALLOW)]).packed())
    with sleeping(*[large] * 7) as pid:  # 7 x 4096 and their overhead: about what the kernel takes of one task
        process, filters, calls, _ = await inspect(0, pid, '{"workload": Variant("s", "all"), "programs": Variant("b", True)}')
    assert (process["Works"], len(filters), len(filters[0]["Program"])) == (True, 7, 8 * 4096)
    assert len({call["Workload"] for call in calls}) > 15
    assert len(calls) > 500


async def test_a_process_without_a_filter_is_refused_nothing(inspect: Callable[..., Any]) -> None:
    with sleeping() as pid:
        process, filters, calls, consequences = await inspect(0, pid, '{"workload": Variant("s", "go-test")}')
    assert (process["Mode"], process["Works"], filters, consequences) == ("none", True, [], [])
    assert {call["Outcome"] for call in calls} == {"allowed"}


async def test_everybody_may_ask_about_their_own_processes_but_polkit_decides_about_others(
    polkit: Any, inspect: Callable[..., Any]
) -> None:
    with sleeping(DOCKER_LIKE, uid=USER) as own, sleeping(DOCKER_LIKE) as other:
        process, filters, _, consequences = await inspect(USER, own)
        assert (process["Uid"], len(filters)) == (USER, 1)
        assert any("CLONE_NEWUSER" in line for line in consequences)
        name, text = await inspect(USER, other)
        assert (name, "org.triaged.inspect-process" in text) == ("org.triaged.Triage1.Error.NotAuthorized", True)
        name, text = await inspect(USER, own, '{"programs": Variant("b", True)}')  # what the kernel gives to root only
        assert name == "org.triaged.Triage1.Error.NotAuthorized"
        _, filters, _, _ = await inspect(0, own, '{"programs": Variant("b", True)}')
        assert parse_program(bytes(filters[0]["Program"])) == parse_program(DOCKER_LIKE.instructions)


@pytest.mark.parametrize(("pid", "options", "error"), [
    ("4194303", "{}", "NoSuchProcess"), ("0", "{}", "NoSuchProcess"),
    ("os.getpid()", '{"workload": Variant("s", "rust-test")}', "InvalidArgs"),
    ("os.getpid()", '{"workload": Variant("u", 1)}', "InvalidArgs"),
    ("os.getpid()", '{"verbose": Variant("b", True)}', "InvalidArgs"),
    ("os.getpid()", '{"workload": Variant("s", "x" * 2000)}', "InvalidArgs"),
])  # fmt: skip
async def test_what_makes_no_sense_is_answered_with_an_error(
    inspect: Callable[..., Any], pid: str, options: str, error: str
) -> None:
    answer = await inspect(0, pid, options)
    assert answer[0] == f"org.triaged.Triage1.Error.{error}", answer
