# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp dump` as an ordinary user types it: the daemon reads the filters for the owner of a process."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from triaged.kernel.seccomp_load import Command, LoadedFilter
from triaged.seccomp.action import ALLOW, ENOSYS, EPERM, Action
from triaged.seccomp.compiler import compiled
from triaged.seccomp.policy import ArchPolicy, Branch, Policy
from triaged.seccomp.syscalls import native_arch, number_of

USER = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to run processes as others")


@contextmanager
def sleeping(uid: int, **answers: Action) -> Iterator[str]:
    """The pid of a process of that user under a filter with these answers."""
    arch = native_arch()
    branches = {number_of(arch, name) or 0: (Branch(action),) for name, action in answers.items()}
    filters = [LoadedFilter(compiled(Policy((ArchPolicy(arch, ALLOW, branches),), ALLOW)).packed())]
    argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "sleep", "60"]
    with Command(argv, filters, number_of(arch, "seccomp") or 0) as command:
        command.start()
        try:
            deadline = time.monotonic() + 10
            while Path(f"/proc/{command.pid}/comm").read_text() != "sleep\n":
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield str(command.pid)
        finally:
            os.kill(command.pid, 9)
            command.wait()


def test_the_owner_of_a_process_is_told_what_its_filters_do(daemon: Any) -> None:
    with sleeping(USER, clone3=ENOSYS, unshare=EPERM, epoll_create1=EPERM) as pid:
        done = daemon.machine.triagectl("seccomp", "dump", pid, "--workload", "go-test-binary", uid=USER)
        document = daemon.machine.triagectl("seccomp", "dump", pid, "--json", uid=USER)
    assert done.returncode == 1, done.stderr
    assert "1 filters, read by triaged" in done.stdout
    assert "go-test-binary (needs of go1." in done.stdout
    assert "does not work under these filters" in done.stdout
    assert "epoll_create1" in done.stdout
    assert "unshare(CLONE_NEWUSER) returns EPERM: a package that uses SysProcAttr.Unshareflags" in done.stdout
    told = json.loads(document.stdout)
    assert (told["process"]["Uid"], told["process"]["Workload"], told["process"]["Works"]) == (USER, "go-test", False)


def test_of_others_processes_polkit_decides(daemon: Any) -> None:
    with sleeping(0, unshare=EPERM) as pid:
        done = daemon.machine.triagectl("seccomp", "dump", pid, uid=USER)
    assert done.returncode not in (0, 1)
    assert "org.triaged.inspect-process" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_daemon_it_is_said_what_helps(machine: Any) -> None:
    with sleeping(USER, unshare=EPERM) as pid:
        done = machine.triagectl("seccomp", "dump", pid, uid=USER)
        raw = machine.triagectl("seccomp", "dump", pid, "--call", "unshare", uid=USER)
    assert done.returncode == raw.returncode == 2
    assert "run as root" in done.stderr
    assert "or start triaged" in done.stderr
    assert "run as root" in raw.stderr
