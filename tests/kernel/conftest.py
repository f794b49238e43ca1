# SPDX-License-Identifier: Apache-2.0
"""Processes to look at: a made-up /proc for readers, and real ones that do a certain thing once."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy, read_layout
from triaged.kernel.paths import KernelPaths
from triaged.model.process import ProcessIdentity

sys.path.insert(0, str(Path(__file__).parent))

from own_cgroups import remove

# Runs in a child: sets its comm, waits for a line on stdin, installs a seccomp filter that answers one call, makes it.
_CHILD = """
import ctypes, os, struct, sys
comm, number, action, times = sys.argv[1].encode().decode("unicode_escape").encode("latin-1"), *map(int, sys.argv[2:5])
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, action), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
libc = ctypes.CDLL(None, use_errno=True)
with open("/proc/self/comm", "wb") as own:
    own.write(comm)
os.write(1, b"ready\\n")
os.read(0, 1)
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(317, 1, int(sys.argv[5]), program):
    sys.exit(f"no filter: {os.strerror(ctypes.get_errno())}")
for _ in range(times):
    libc.syscall(number)
os.write(1, b"done\\n")
os.read(0, 1)
"""
KILL_PROCESS, KILL_THREAD, LOG, ERRNO = 0x80000000, 0x0, 0x7FFC0000, 0x00050000
FILTER_FLAG_LOG = 2
GETPID = 39  # x86_64; a call that Python does not need


@dataclass
class Filtered:
    """A real process that waits to be told to make the refused call."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def go(self) -> None:
        """Lets it install its filter and make its calls; back when it said that it is done, or was killed."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"x")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def end(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def filtered() -> Iterator[Callable[..., Filtered]]:
    """Starts a process whose filter answers getpid() with an action, `times` times."""
    if os.uname().machine != "x86_64":
        pytest.skip("the test's filter is written for x86_64")
    started: list[Filtered] = []

    def start(action: int, times: int = 1, comm: str = "filtered", flags: int = 0) -> Filtered:
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, comm, str(GETPID), str(action), str(times), str(flags)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        started.append(Filtered(child))
        return started[-1]

    yield start
    for child in started:
        child.end()


@pytest.fixture
def made_up_proc(tmp_path: Path) -> Callable[..., KernelPaths]:
    """Writes /proc/PID files below a root of the test's own; each call adds a process."""

    def add(
        pid: int = 100, comm: bytes = b"worker", exe: str | None = "/usr/bin/worker", argv: bytes = b"worker\0-v\0",
        cgroup: bytes = b"0::/system.slice/ci.service\n", start_ticks: int = 5000, uid: int = 1000, ppid: int = 1, flags: int = 0,
        environment: bytes = b"", limits: str = "",
    ) -> KernelPaths:
        directory = tmp_path / "proc" / str(pid)
        directory.mkdir(parents=True, exist_ok=True)
        after = f" S {ppid} 1 1 0 -1 {flags} " + " ".join(["0"] * 12) + f" {start_ticks} 0 0\n"
        (directory / "stat").write_bytes(b"%d (" % pid + comm + b")" + after.encode())
        (directory / "status").write_bytes(b"Name:\t" + comm + b"\nUmask:\t0022\nUid:\t%d\t0\t0\t0\n" % uid)
        (directory / "comm").write_bytes(comm + b"\n")
        (directory / "cmdline").write_bytes(argv)
        (directory / "cgroup").write_bytes(cgroup)
        (directory / "environ").write_bytes(environment)
        (directory / "limits").write_text(limits)
        (directory / "exe").unlink(missing_ok=True)
        if exe is not None:
            (directory / "exe").symlink_to(exe)
        return KernelPaths.below(str(tmp_path))

    return add


@pytest.fixture
def someone() -> ProcessIdentity:
    """Any process."""
    return ProcessIdentity(pid=7, start_ticks=70, comm="someone", exe="/bin/someone", cgroups={"": "/a.slice"})


@pytest.fixture(scope="session")
def layout() -> CgroupLayout:
    """How cgroups are mounted here."""
    try:
        return read_layout(KernelPaths())
    except KernelError as error:
        pytest.skip(f"no cgroups here: {error}")


@pytest.fixture
def own_cgroup(layout: CgroupLayout) -> Iterator[Callable[[str, str], tuple[Hierarchy, str, Path]]]:
    """Makes a cgroup of the test's own in a controller's hierarchy; gives the hierarchy, its path and its directory."""
    made: list[Path] = []

    def make(controller: str, name: str) -> tuple[Hierarchy, str, Path]:
        hierarchy = layout.holding(controller)
        if hierarchy is None:
            pytest.skip(f"no hierarchy here has the {controller} controller")
        path = f"/triaged-test-{os.getpid()}-{name}"
        directory = Path(hierarchy.directory(path))
        try:
            directory.mkdir()
        except PermissionError:
            pytest.skip("making cgroups needs root")
        made.append(directory)
        return hierarchy, path, directory

    yield make
    for directory in reversed(made):
        remove(directory)


@pytest.fixture
def started() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Starts a command and waits for its line "ready"."""
    children: list[subprocess.Popen[str]] = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()
