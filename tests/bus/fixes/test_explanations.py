# SPDX-License-Identifier: Apache-2.0
"""Explain: real processes at real limits, for callers that polkit judges."""
from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from triaged.bus.authority import Authority
from triaged.bus.explanations import Explanations
from triaged.bus.service import Service
from triaged.config import config_paths, load_workloads
from triaged.explain.question import causes_and_others
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.kernel.process_table import ProcessTable

PATHS = KernelPaths()
USER = 65534
HOLD = "import os, sys\nwhile True:\n    try: os.dup(0)\n    except OSError: break\nprint(1, flush=True); sys.stdin.read()"


@contextmanager
def full_of_files(uid: int = 0) -> Iterator[int]:
    """A process that has all the files open that it may."""

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)

    python = shutil.which("python3", path="/usr/bin:/bin") if uid else sys.executable
    if python is None:
        pytest.skip("needs a python3 in /usr/bin that other users may execute")
    child = subprocess.Popen([python, "-S", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=prepare)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        yield child.pid
    finally:
        child.communicate()


@pytest.fixture
async def service(serving: Any) -> AsyncIterator[Service]:
    """The service with Explain only."""
    table = ProcessTable(PATHS, load_workloads(config_paths()))

    def explain(what: str, error: str, pid: int, arguments: Any, path: str) -> Any:
        return causes_and_others(PATHS, table, what, error, pid, arguments, path)

    def owner(pid: int) -> int | None:
        return read_process(PATHS, pid).uid if os.path.exists(f"/proc/{pid}") else None

    def methods_of(made: Service) -> Any:
        return Explanations(explain, owner, Authority(lambda: made.connection, time_limit_s=5)).methods()

    async with serving(methods_of) as made:
        yield made


@pytest.fixture
def explain(machine: Any, service: Service) -> Callable[..., Any]:
    """Explain as a user calls it: what it answers, or [error, text]."""

    async def call(uid: int, what: str, error: str, pid: object, options: str = "{}") -> Any:
        code = f'result = await manager("Explain", "ssua{{sv}}", {what!r}, {error!r}, {pid}, {options})'
        return await machine.as_user_async(uid, code)

    return call


async def test_the_limit_that_is_reached_comes_with_its_evidence_and_fixes(explain: Callable[..., Any]) -> None:
    with full_of_files() as pid:
        causes, others = await explain(0, "openat", "EMFILE", pid)
    (cause,) = causes
    assert (cause["Cause"], cause["Status"]) == ("rlimit.NOFILE", "proved")
    assert cause["Evidence"]["open files"] == "32"
    assert cause["EvidenceSources"]["open files"][0] == f"/proc/{pid}/fd"
    assert cause["Fixes"][0]["Type"] == "set-resource-limit"
    assert all(row["Outcome"] in ("ruled-out", "not-decidable", "self-inflicted") for row in others)


async def test_a_line_of_text_is_a_question_too(explain: Callable[..., Any]) -> None:
    with full_of_files() as pid:
        causes, _ = await explain(0, "open /etc/passwd: too many open files", "", pid)
    assert [cause["Cause"] for cause in causes] == ["rlimit.NOFILE"]


async def test_without_a_process_the_machines_limits_are_told(explain: Callable[..., Any]) -> None:
    causes, others = await explain(USER, "clone", "EAGAIN", 0)
    assert causes == []
    told = {row["Cause"]: (row["Outcome"], row["Because"]) for row in others}
    assert told["sysctl.kernel.threads-max"][0] == "ruled-out"
    assert "free" in told["sysctl.kernel.threads-max"][1]
    assert told["rlimit.NPROC"][0] == "not-decidable"


async def test_everybody_may_ask_about_their_own_processes_but_polkit_decides_about_others(
    polkit: Any, explain: Callable[..., Any]
) -> None:
    with full_of_files(USER) as own, full_of_files() as other:
        causes, _ = await explain(USER, "openat", "EMFILE", own)
        assert [cause["Cause"] for cause in causes] == ["rlimit.NOFILE"]
        name, text = await explain(USER, "openat", "EMFILE", other)
    assert (name, "org.triaged.inspect-process" in text) == ("org.triaged.Triage1.Error.NotAuthorized", True)


async def test_what_the_call_asked_for_counts(explain: Callable[..., Any]) -> None:
    _, others = await explain(0, "mlock", "ENOMEM", 0)
    assert {row["Cause"]: row["Outcome"] for row in others}["rlimit.MEMLOCK"] == "not-decidable"
    options = '{"arguments": Variant("at", [0, 4096, 3, 0x32]), "path": Variant("s", "/x")}'
    causes, others = await explain(0, "mmap", "EPERM", 0, options)
    assert [cause["Cause"] for cause in causes] == ["sysctl.vm.mmap_min_addr"]


@pytest.mark.parametrize(("what", "error", "pid", "options", "wanted"), [
    ("clone", "EAGAIN", "4194303", "{}", "NoSuchProcess"),
    ("clonk", "EAGAIN", "0", "{}", "InvalidArgs"),
    ("clone", "ENOTHING", "0", "{}", "InvalidArgs"),
    ("all is well", "", "0", "{}", "InvalidArgs"),
    ("killed", "SIGNOTHING", "0", "{}", "InvalidArgs"),
    ("clone", "EAGAIN", "0", '{"pid": Variant("u", 1)}', "InvalidArgs"),
    ("clone", "EAGAIN", "0", '{"arguments": Variant("s", "1")}', "InvalidArgs"),
    ("clone", "EAGAIN", "0", '{"arguments": Variant("at", [1] * 7)}', "InvalidArgs"),
    ("x" * 5000, "", "0", "{}", "InvalidArgs"),
])  # fmt: skip
async def test_what_makes_no_sense_is_answered_with_an_error(
    explain: Callable[..., Any], what: str, error: str, pid: str, options: str, wanted: str
) -> None:
    answer = await explain(0, what, error, pid, options)
    assert answer[0] == f"org.triaged.Triage1.Error.{wanted}", answer
