# SPDX-License-Identifier: Apache-2.0
"""Profiles that `triagectl seccomp record` makes for real Go tests: these run under them, ten times each, and nothing else does."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SHAPES = Path(__file__).with_name("go_shapes")
RUNS = 10


@dataclass(frozen=True)
class Shape:
    """A kind of test: its package, and arguments for building and for running it."""

    name: str
    package: str
    build: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    cgo: str = "1"


KINDS = (
    Shape("plain", "plain"), Shape("exec", "execs"), Shape("files", "files"), Shape("http", "httpd", cgo="0"),
    Shape("http-cgo", "httpd"), Shape("cgo", "cgo"), Shape("race", "plain", ("-race",)),
    Shape("cover", "plain", ("-cover",), ("-test.coverprofile=cover.out",)),
    Shape("fuzz", "fuzz", ("-fuzz=.",), ("-test.fuzz=.", "-test.fuzztime=50x", "-test.fuzzcachedir=fuzz", "-test.parallel=2")),
    Shape("pprof", "plain", (), ("-test.cpuprofile=cpu.out", "-test.memprofile=mem.out", "-test.trace=trace.out")),
)


@dataclass(frozen=True)
class Go:
    """A toolchain and a place to work in."""

    command: str
    directory: Path
    environment: dict[str, str]

    def built(self, shape: Shape) -> list[str]:
        """The command line of the shape's test binary."""
        output = self.directory / f"{shape.name}.test"
        if not output.exists():
            subprocess.run([self.command, "test", "-c", "-o", output, *shape.build, f"./{shape.package}"], check=True,
                           cwd=self.directory / "shapes", env={**self.environment, "CGO_ENABLED": shape.cgo})
        return [str(output), "-test.timeout=60s", *shape.run]

    def triagectl(self, *words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """`triagectl seccomp`, in the directory."""
        return subprocess.run([sys.executable, "-m", "triaged.cli.seccomp", *words], cwd=cwd or self.directory, capture_output=True,
                              text=True, env={**self.environment, **environment}, timeout=300, check=False)


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Go:
    found = os.environ.get("TRIAGED_TEST_GO") or shutil.which("go")
    if not found:
        pytest.skip("needs a Go toolchain in PATH or TRIAGED_TEST_GO")
    root = subprocess.run([found, "env", "GOROOT"], check=True, capture_output=True, text=True).stdout.strip()
    directory = tmp_path_factory.mktemp("go")
    shutil.copytree(SHAPES, directory / "shapes")
    environment = {
        **os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": "-mod=mod", "GOROOT": root,
        "GOPATH": str(directory / "gopath"), "PYTHONPATH": os.pathsep.join(sys.path),
    }
    # Not the wrapper that some packages of Go put in PATH: what it calls is not Go's.
    return Go(f"{root}/bin/go", directory, environment)


def recorded(go: Go, name: str, argv: Sequence[str], *options: str, cwd: Path | None = None) -> Path:
    path = go.directory / f"{name}.json"
    done = go.triagectl("record", "--runs", "3", "-o", str(path), *options, "--", *argv, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stderr
    return path


def allowed_by(path: Path) -> set[str]:
    document = json.loads(path.read_text())
    return {name for rule in document["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}


@pytest.mark.parametrize("shape", KINDS, ids=lambda shape: shape.name)
def test_a_recorded_profile_runs_the_shape_ten_times(shape: Shape, go: Go) -> None:
    argv = go.built(shape)
    path = recorded(go, shape.name, argv)
    for _ in range(RUNS):
        done = go.triagectl("run", "--profile", str(path), "--", *argv)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(allowed_by(path)) < 75  # with what container runtimes call before


@pytest.mark.parametrize("method", ["tracefs", "audit", "ptrace"])
def test_each_method_makes_a_profile_under_which_the_test_runs(method: str, go: Go) -> None:
    if method != "ptrace" and os.geteuid() != 0:
        pytest.skip("tracefs and audit need root")
    argv = go.built(KINDS[1])
    path = recorded(go, f"by-{method}", argv, "--method", method)
    for _ in range(RUNS):
        assert go.triagectl("run", "--profile", str(path), "--", *argv).returncode == 0


def test_a_call_that_is_not_in_the_profile_is_refused(go: Go) -> None:
    argv = go.built(KINDS[0])
    path = recorded(go, "plain-only", argv)
    assert "getpgid" not in allowed_by(path)
    free = subprocess.run([*argv, "-test.run=Getpgid", "-test.v"], env={**go.environment, "SHAPES_GETPGID": "1"},
                          capture_output=True, text=True, check=False)
    assert free.returncode == 0, free.stdout
    held = go.triagectl("run", "--profile", str(path), "--", *argv, "-test.run=Getpgid", "-test.v", SHAPES_GETPGID="1")
    assert held.returncode == 1
    assert "operation not permitted" in held.stdout
    again = recorded(go, "plain-and-getpgid", ["env", "SHAPES_GETPGID=1", *argv])
    assert "getpgid" in allowed_by(again)
    held = go.triagectl("run", "--profile", str(again), "--", *argv, "-test.run=Getpgid", SHAPES_GETPGID="1")
    assert held.returncode == 0


def test_the_whole_of_go_test_runs_ten_times_under_its_profile(go: Go) -> None:
    shapes = go.directory / "shapes"
    argv = [go.command, "test", "-count=1", "./plain", "./execs"]
    path = recorded(go, "whole", argv, cwd=shapes)
    assert "socket" not in allowed_by(path)
    for turn in range(RUNS):
        (shapes / "plain/salt_test.go").write_text(f"package plain\n\nconst salt = {os.getpid()}{turn}\n")
        done = go.triagectl("run", "--profile", str(path), "--", *argv, cwd=shapes)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("ok  ") == 2


def test_the_profile_of_systemd_runs_it_too(go: Go) -> None:
    argv = go.built(KINDS[1])
    path = go.directory / "drop-in.conf"
    done = go.triagectl("record", "--format", "systemd", "-o", str(path), "--", *argv)
    assert done.returncode == 0, done.stderr
    assert "SystemCallErrorNumber=EPERM" in path.read_text()
    assert go.triagectl("run", "--profile", str(path), "--", *argv).returncode == 0


def test_recording_twice_gives_the_same_file(go: Go) -> None:
    argv = go.built(KINDS[2])
    assert recorded(go, "one", argv, "--runs", "8").read_text() == recorded(go, "two", argv, "--runs", "8").read_text()


def test_no_go_program_starts_under_the_eight_calls_of_a_popular_list(go: Go) -> None:
    path = go.directory / "eight.json"
    names = ["mmap", "mprotect", "clone", "futex", "epoll_wait", "read", "write", "clock_gettime"]
    rules = [{"names": names, "action": "SCMP_ACT_ALLOW"}]
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))
    argv = go.built(KINDS[0])
    held = go.triagectl("run", "--profile", str(path), "--", *argv)
    assert held.returncode == 2
    assert "operation not permitted" in held.stderr
    rules[0]["names"] = [*names, "execve"]
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))
    assert go.triagectl("run", "--profile", str(path), "--", *argv).returncode == 128 + 11  # before it can print anything
    mended = str(go.directory / "mended.json")
    checked = go.triagectl("check", str(path), "--workload", "go-test-binary,go-http-binary", "--fix", mended, "--json")
    assert checked.returncode == 1
    plain, http = json.loads(checked.stdout)["workloads"]
    missing = {call["call"] for call in plain["calls"] if call["outcome"] == "breaks"}
    assert missing >= {"arch_prctl", "epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2", "exit_group", "fcntl", "rt_sigaction",
                       "rt_sigprocmask", "sigaltstack"}
    assert {"socket", "bind", "listen", "accept4"} <= {call["call"] for call in http["calls"] if call["outcome"] == "breaks"}
    for shape in (KINDS[0], KINDS[2], KINDS[3]):
        done = go.triagectl("run", "--profile", mended, "--", *go.built(shape))
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_difference_to_dockers_default_is_empty_for_an_ordinary_test(go: Go) -> None:
    done = go.triagectl("record", "--base", "docker-default", "--", *go.built(KINDS[1]))
    assert done.returncode == 0
    assert "docker-default allows all that was recorded" in done.stderr
    assert "+++" not in done.stdout


def test_the_difference_to_dockers_default_is_what_a_namespace_needs(go: Go) -> None:
    done = go.triagectl("record", "--base", "docker-default", "--", "unshare", "--uts", "true")
    if os.geteuid() != 0:
        pytest.skip("making a namespace needs root")
    assert done.returncode == 0, done.stderr
    assert "docker-default lacks unshare" in done.stderr
    added = [line for line in done.stdout.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert any('"unshare"' in line for line in added)
    assert len(added) < 10
