# SPDX-License-Identifier: Apache-2.0
"""GOMAXPROCS from outside: of processes made up, and of real Go test binaries that say what their runtime decided."""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from triaged.errors import Malformed
from triaged.kernel.build_info import GoBuildInfo, read_go_build_info
from triaged.kernel.go_runtime import GoRuntime, parse_cpu_flag, parse_cpu_list, parse_go_environment, parse_godebug
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process
from triaged.model.cgroup import CgroupId
from triaged.model.cpu import CpuQuota, GoProcess
from triaged.model.limit import UNLIMITED, Limit, Unknown

_TEST = """package spin

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"testing"
)

func TestSpin(t *testing.T) {
	fmt.Printf("GOMAXPROCS %d\\n", runtime.GOMAXPROCS(0))
	bufio.NewReader(os.Stdin).ReadString('\\n')
}
"""


def quota(usec: Limit, period: int = 100_000) -> CpuQuota:
    return CpuQuota(CgroupId("/ci.slice/run.scope"), "/sys/fs/cgroup/ci.slice/run.scope/cpu.max", usec, period)


@pytest.fixture
def decided(made_up_proc: Callable[..., KernelPaths]) -> Callable[..., GoProcess]:
    """What is made of a process with this environment, build info and leaf quota, on eight CPUs."""

    def decide(
        environment: bytes = b"", version: str = "go1.27.3", godebug: str | None = "", leaf: CpuQuota | None = None,
        argv: bytes = b"w.test\0-test.v\0", cpus: str = "0-7",
    ) -> GoProcess:
        paths = made_up_proc(exe="/tmp/b001/w.test", argv=argv, environment=environment)
        with open(f"{paths.proc}/100/status", "a", encoding="ascii") as status:
            status.write(f"Cpus_allowed_list:\t{cpus}\n")
        info = GoBuildInfo(version, "example.org/w.test", "example.org", godebug)
        return GoRuntime(paths, read_process(paths, 100), info).now(leaf)

    return decide


@pytest.mark.parametrize(("usec", "expected"), [(50_000, 2), (100_000, 2), (250_000, 3), (1_600_000, 8), (UNLIMITED, 8)])
def test_go_since_1_25_rounds_the_quota_of_its_own_cgroup_up_to_at_least_two(
    decided: Callable[..., GoProcess], usec: Limit, expected: int
) -> None:
    assert decided(leaf=quota(usec)).gomaxprocs == expected


def test_older_go_takes_the_cpus_of_its_affinity_mask(decided: Callable[..., GoProcess]) -> None:
    found = decided(version="go1.24.9", leaf=quota(50_000), cpus="0-1,6")
    assert (found.gomaxprocs, found.cpus) == (3, 3)
    assert "go1.24.9" in found.origin


def test_an_old_go_line_in_go_mod_switches_the_reading_of_quotas_off(decided: Callable[..., GoProcess]) -> None:
    assert decided(godebug="containermaxprocs=0,updatemaxprocs=0", leaf=quota(50_000)).gomaxprocs == 8


def test_godebug_of_the_environment_wins_over_the_go_line(decided: Callable[..., GoProcess]) -> None:
    found = decided(b"GODEBUG=containermaxprocs=1\0", godebug="containermaxprocs=0", leaf=quota(50_000))
    assert found.gomaxprocs == 2


def test_build_info_that_was_cut_leaves_it_unknown(decided: Callable[..., GoProcess]) -> None:
    found = decided(godebug=None, leaf=quota(50_000))
    assert isinstance(found.gomaxprocs, Unknown)
    assert "go line" in found.gomaxprocs.why


@pytest.mark.parametrize(("value", "expected"), [(b"3", 3), (b"0", 2), (b"many", 2), (b"-1", 2), (b"", 2)])
def test_gomaxprocs_of_the_environment_wins_if_it_is_a_positive_number(
    decided: Callable[..., GoProcess], value: bytes, expected: int
) -> None:
    assert decided(b"A=b\0GOMAXPROCS=" + value + b"\0", leaf=quota(50_000)).gomaxprocs == expected


def test_the_cpu_flag_of_a_test_binary_wins_over_all(decided: Callable[..., GoProcess]) -> None:
    found = decided(b"GOMAXPROCS=3\0", argv=b"w.test\0-test.v\0-test.cpu=1,4,2\0", leaf=quota(50_000))
    assert (found.gomaxprocs, found.origin) == (4, "-test.cpu=1,4,2")


def test_a_development_version_without_a_number_leaves_it_unknown(decided: Callable[..., GoProcess]) -> None:
    assert isinstance(decided(version="devel +0a1b2c").gomaxprocs, Unknown)
    assert decided(version="devel go1.26-abc123 Mon Jan 5", leaf=quota(50_000)).gomaxprocs == 2


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert parse_cpu_list(" 0-3,8\n") == {0, 1, 2, 3, 8}
    assert parse_cpu_list("\n") == frozenset()
    with pytest.raises(Malformed):
        parse_cpu_list("0-x")


def test_of_an_environment_only_what_go_reads_is_kept() -> None:
    assert parse_go_environment(b"PATH=/bin\0GOMAXPROCS=4\0GOMAXPROCS=5\0GODEBUG=a=1\0") == {"GOMAXPROCS": "4", "GODEBUG": "a=1"}
    assert parse_godebug("a=1,containermaxprocs=0,a=2") == {"a": "2", "containermaxprocs": "0"}
    assert parse_cpu_flag(("w.test", "-test.cpu", "2,x,4")) == (2, 4)
    assert parse_cpu_flag(("w.test", "test.cpu=3")) == ()


# Real ones


@dataclass
class Binaries:
    """The same test, built below a go.mod that says 1.27 and one that says 1.24."""

    paths: dict[str, Path] = field(default_factory=dict)


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Binaries:
    if shutil.which("go") is None:
        pytest.skip("needs a Go toolchain in PATH")
    built = Binaries()
    for line in ("1.25", "1.24"):
        directory = tmp_path_factory.mktemp("spin")
        (directory / "go.mod").write_text(f"module example.org/spin\n\ngo {line}\n")
        (directory / "spin_test.go").write_text(_TEST)
        built.paths[line] = directory / "spin.test"
        subprocess.run(
            ["go", "test", "-c", "-o", built.paths[line], "."], cwd=directory, check=True, capture_output=True,
            env={**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"},
        )
    return built


def said_and_found(
    binary: Path, environment: dict[str, str], *arguments: str, cpus: set[int] | None = None
) -> Iterator[int | Unknown]:
    """GOMAXPROCS as the runtime of a real process says, and as it is found from outside while it lives."""
    process = subprocess.Popen(
        [binary, "-test.run=Spin", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        preexec_fn=(lambda: os.sched_setaffinity(0, cpus)) if cpus else None,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield int(line.split()[1])
        paths = KernelPaths()
        info = read_go_build_info(f"/proc/{process.pid}/exe")
        yield GoRuntime(paths, read_process(paths, process.pid), info).now(None).gomaxprocs
    finally:
        process.communicate(b"\n")


def test_the_go_line_of_go_mod_shows_in_the_build_info(binaries: Binaries) -> None:
    new, old = (read_go_build_info(str(binaries.paths[line])) for line in ("1.25", "1.24"))
    assert new is not None
    assert old is not None
    assert new.default_godebug is not None
    assert "containermaxprocs" not in new.default_godebug
    assert old.default_godebug is not None
    assert parse_godebug(old.default_godebug)["containermaxprocs"] == "0"


@pytest.mark.parametrize(
    ("environment", "arguments", "cpus"),
    [({}, (), None), ({"GOMAXPROCS": "5"}, (), None), ({"GOMAXPROCS": "0"}, (), None), ({}, (), {0}), ({}, ("-test.cpu=7",), None)],
    ids=["default", "environment", "zero", "one-cpu", "cpu-flag"],
)
def test_what_is_found_is_what_the_runtime_says(
    binaries: Binaries, environment: dict[str, str], arguments: tuple[str, ...], cpus: set[int] | None
) -> None:
    for binary in binaries.paths.values():
        said, found = said_and_found(binary, environment, *arguments, cpus=cpus)
        assert said == found
