# SPDX-License-Identifier: Apache-2.0
"""On this kernel: own children, own cgroups where the controller can be had."""
from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.cgroups import read_finite_limits
from triaged.kernel.inotify import Inotify
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.kernel.process_table import ProcessTable
from triaged.kernel.usage import (
    parse_destinations,
    parse_threads,
    read_cgroup_usage,
    read_host_usage,
    read_port_usage,
    read_process_usage,
    read_task_limits,
    read_user_usage,
)
from triaged.model.facts import HeadroomFacts
from triaged.model.verdict import Problem
from triaged.model.workload import ProcessPattern, WorkloadDefinition
from triaged.rules.headroom import nearly_used_up
from triaged.sources.headroom import Headroom
from triaged.sources.source import SourceState

PATHS = KernelPaths()
HOLD = """
import mmap, resource, sys
files = [open('/dev/null') for _ in range({files})]
kept = [mmap.mmap(-1, 8192) for _ in range({mappings})]
for number, each in enumerate(kept):
    each[0] = 1
print('ready', flush=True); sys.stdin.read()
"""


class Child:
    """A process that holds files and mappings until it is closed."""

    def __init__(self, files: int = 0, mappings: int = 0, nofile: int = 0) -> None:
        def limit() -> None:
            if nofile:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", HOLD.format(files=files, mappings=mappings), "hold"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=limit,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self) -> int:
        return self.process.pid

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def test_open_files_of_a_process_are_counted_against_its_own_limit() -> None:
    with Child(files=50, nofile=64) as pid:
        usages = {usage.limit_name: usage for usage in read_process_usage(PATHS, read_process(PATHS, pid))}
    files = usages["RLIMIT_NOFILE"]
    assert (files.used, files.limit) == (53, 64)
    assert usages["vm.max_map_count"].limit == int(Path("/proc/sys/vm/max_map_count").read_text())


def test_every_mapping_is_counted() -> None:
    with Child() as pid:
        usages = read_process_usage(PATHS, read_process(PATHS, pid))
        used = next(usage.used for usage in usages if usage.limit_name == "vm.max_map_count")
        assert used == len(Path(f"/proc/{pid}/maps").read_text().splitlines())


def test_the_host_has_threads_and_files_in_use() -> None:
    usages = {usage.limit_name: usage for usage in read_host_usage(PATHS)}
    for name in ("kernel.threads-max", "kernel.pid_max", "fs.file-max"):
        share = usages[name].share
        assert share is not None
        assert 0 < share < 1


def test_inotify_instances_of_a_user_are_counted() -> None:
    me = read_process(PATHS, os.getpid())
    before = next(usage.used for usage in read_user_usage(PATHS, me) if usage.resource == "inotify instances")
    own = [Inotify() for _ in range(20)]
    try:
        usages = {usage.limit_name: usage for usage in read_user_usage(PATHS, me)}
    finally:
        for each in own:
            each.close()
    used = usages["fs.inotify.max_user_instances"].used
    assert isinstance(before, int)
    assert isinstance(used, int)
    assert used - before >= 15  # others of the same user come and go
    assert isinstance(usages["RLIMIT_NPROC"].used, int)


def test_ports_towards_the_busiest_destination_are_counted() -> None:
    usage = next(read_port_usage(PATHS, read_process(PATHS, os.getpid())))
    assert usage.limit_name == "net.ipv4.ip_local_port_range"
    assert isinstance(usage.used, int)


def test_only_connections_from_ephemeral_ports_count() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 0100007F:8000 0100007F:1F90 01 0:0\n"  # 32768
        "   1: 0100007F:8001 0100007F:1F90 06 0:0\n"
        "   2: 0100007F:0050 0100007F:1F90 01 0:0\n"  # 80
        "   3: 0100007F:9000 00000000:0000 0A 0:0\n"  # listening
        "   4: broken\n"
    )
    assert list(parse_destinations(text, 32768, 60999)) == ["0100007F:1F90"] * 2


def test_a_loadavg_without_its_fourth_field_is_malformed() -> None:
    from triaged.errors import Malformed

    assert parse_threads("0.1 0.2 0.3 2/345 999\n") == 345
    with pytest.raises(Malformed):
        parse_threads("0.1 0.2 0.3 x 999\n")


def test_a_workload_process_near_its_limit_is_told_and_told_again_when_it_is_well() -> None:
    definition = WorkloadDefinition("held", "held", (ProcessPattern("holder", ("python*",), arguments=("hold",)),))
    table = ProcessTable(PATHS, (definition,))
    source = Headroom(PATHS, table)
    with Child(files=55, nofile=64) as pid:
        table.rescan()
        assert pid in {process.pid for process in table.workload_processes()}
        near = [fact for fact in source.snapshot() if isinstance(fact, HeadroomFacts) and fact.process is not None]
        assert [(fact.process.pid, fact.usage.limit_name) for fact in near if fact.process] == [(pid, "RLIMIT_NOFILE")]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (60, 60))
        assert any(fact.usage.limit == 60 for fact in source.snapshot() if isinstance(fact, HeadroomFacts))
    assert source.status.state in (SourceState.ACTIVE, SourceState.DEGRADED)


def test_a_cgroup_near_its_pids_max_is_told(own_pids_cgroup: Path) -> None:
    (own_pids_cgroup / "pids.max").write_text("3")
    children = [subprocess.Popen(["sleep", "30"]) for _ in range(3)]
    try:
        for child in children:
            (own_pids_cgroup / "cgroup.procs").write_text(str(child.pid))
        layout = read_layout(PATHS)
        hierarchy = layout.holding("pids")
        assert hierarchy is not None
        path = str(own_pids_cgroup).removeprefix(hierarchy.mount)
        usage = next(read_cgroup_usage(layout, "pids", path))
        assert (usage.used, usage.limit, usage.free) == (3, 3, 0)
        facts = Headroom(PATHS, ProcessTable(PATHS, ())).snapshot()
        assert path in {fact.usage.where for fact in facts if isinstance(fact, HeadroomFacts)}
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_only_cgroups_with_a_limit_are_read_further(own_pids_cgroup: Path) -> None:
    hierarchy = read_layout(PATHS).holding("pids")
    assert hierarchy is not None
    path = str(own_pids_cgroup).removeprefix(hierarchy.mount)

    def found() -> list[tuple[str, object, object, int]]:
        limits = [(controller, limit) for controller, limit in read_finite_limits(hierarchy, ["pids"]) if limit.cgroup.path == path]
        return [(controller, limit.limit, limit.used, limit.cgroup.inode) for controller, limit in limits]

    assert found() == []
    (own_pids_cgroup / "pids.max").write_text("7")
    assert found() == [("pids", 7, 0, own_pids_cgroup.stat().st_ino)]


def test_a_cgroup_may_vanish_at_any_moment(own_pids_cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one, before each look at its files in turn: the others are looked at all the same."""
    (own_pids_cgroup / "pids.max").write_text("1")
    child = subprocess.Popen(["sleep", "30"])
    (own_pids_cgroup / "cgroup.procs").write_text(str(child.pid))
    doomed = own_pids_cgroup / "doomed"
    source = Headroom(PATHS, ProcessTable(PATHS, ()))
    moments = 0
    try:
        for moment in range(50):
            doomed.mkdir()
            (doomed / "pids.max").write_text("5")
            looks = 0

            def look(real: Callable[..., Any], moment: int = moment) -> Callable[..., Any]:
                def wrapped(path: Any, *arguments: Any, **more: Any) -> Any:
                    nonlocal looks
                    if str(path).startswith(str(doomed)) and looks <= moment:
                        looks += 1
                        if looks == moment + 1:
                            doomed.rmdir()
                    return real(path, *arguments, **more)

                return wrapped

            with monkeypatch.context() as patched:
                for name in ("open", "stat", "scandir"):
                    patched.setattr(os, name, look(getattr(os, name)))
                where = {fact.usage.where.rsplit("/", 1)[-1] for fact in source.snapshot() if isinstance(fact, HeadroomFacts)}
            assert own_pids_cgroup.name in where
            if looks <= moment:
                break
            moments += 1
        assert moments >= 2
    finally:
        with contextlib.suppress(FileNotFoundError):
            doomed.rmdir()
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("took_s", "pauses_s"), [(0.0, [60.0]), (0.2, [4.0, 60.0]), (1.0, [20.0, 300.0])]
)
async def test_looks_take_a_bounded_share_of_a_core(
    monkeypatch: pytest.MonkeyPatch, took_s: float, pauses_s: list[float]
) -> None:
    """A rest first, in which nobody's request counts; then until the next look is due, or somebody asks."""
    source = Headroom(PATHS, ProcessTable(PATHS, ()))
    monkeypatch.setattr(source, "_look", lambda: ([], took_s))
    loop = asyncio.get_running_loop()
    pauses: list[float] = []
    has_paused = asyncio.Event()
    real = loop.call_later

    def call_later(delay: float, *arguments: Any) -> asyncio.TimerHandle:
        pauses.append(delay)
        if delay >= 60.0:
            has_paused.set()
        return real(0.0 if delay < 60.0 else delay, *arguments)

    monkeypatch.setattr(loop, "call_later", call_later)
    task = asyncio.ensure_future(anext(source.facts()))
    await has_paused.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert pauses == pauses_s


@pytest.fixture
def own_pids_cgroup(tmp_path: Path):  # type: ignore[no-untyped-def]
    hierarchy = read_layout(PATHS).holding("pids")
    if hierarchy is None:
        pytest.skip("no pids controller here")
    directory = Path(hierarchy.mount) / f"triaged-test-headroom-{os.getpid()}"
    try:
        directory.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    if not (directory / "pids.max").exists():
        directory.rmdir()
        pytest.skip("the pids controller is not delegated here")
    yield directory
    directory.rmdir()


def test_the_tasks_of_a_user_are_held_against_the_limit_of_its_processes(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    uid = 100_000 + os.getpid() % 100_000  # nobody's: only the test's processes count

    def become() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (4, 4))
        os.setgid(uid)
        os.setuid(uid)

    sleepers = [subprocess.Popen(["sleep", "60"], preexec_fn=become) for _ in range(4)]
    try:
        who = read_process(PATHS, sleepers[0].pid)
        ((process, usage),) = read_task_limits(PATHS, [who, read_process(PATHS, os.getpid())])
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    assert process.pid == who.pid
    assert (usage.limit_name, usage.where, usage.used, usage.limit) == ("RLIMIT_NPROC", f"user {uid}", 4, 4)
    verdict = nearly_used_up.judge(HeadroomFacts(usage, process=process))
    assert isinstance(verdict, Problem)
    assert "100% of RLIMIT_NPROC" in verdict.summary


def test_of_root_alone_nothing_is_counted() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root is exempt")
    assert list(read_task_limits(PATHS, [read_process(PATHS, os.getpid())])) == []
