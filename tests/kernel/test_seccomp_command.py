# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp run`, `dump` and `record` on real processes."""
from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="reading filters and tracefs need root")


def triagectl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "triaged.cli.seccomp", *words], capture_output=True, text=True, env=ENVIRONMENT,
                          timeout=120, check=False)


@pytest.fixture
def contained() -> Iterator[int]:
    """A process under Docker's default profile and a second filter above it; its pid."""
    argv = [sys.executable, "-m", "triaged.cli.seccomp", "run", "--profile", "docker", "--profile", "podman", "--", "sleep", "60"]
    process = subprocess.Popen(argv, env=ENVIRONMENT, start_new_session=True)
    try:
        deadline = time.monotonic() + 20
        pid = 0
        while time.monotonic() < deadline and not pid:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text() == "sleep\n":
                pid = int(children[0])
            time.sleep(0.02)
        assert pid
        yield pid
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@needs_root
def test_dump_says_what_a_container_refuses_and_what_that_does_to_a_workload(contained: int) -> None:
    done = triagectl("dump", str(contained), "--workload", "go-test,go-cgo-binary")
    assert done.returncode == 0, done.stderr
    assert "2 filters, newest first" in done.stdout
    assert "ERRNO(EPERM) (returns EPERM)" in done.stdout
    assert "args[0] & 0x7e020000 == 0x0" in done.stdout
    assert "go-test: works, as far as is known" in done.stdout
    document = json.loads(triagectl("dump", str(contained), "--json").stdout)
    assert document["calls"]["clone3"] == [{"action": "ERRNO(ENOSYS)", "condition": ""}]
    assert document["calls"]["bpf"] == [{"action": "ERRNO(EPERM)", "condition": ""}]
    assert document["calls"]["read"] == [{"action": "ALLOW", "condition": ""}]
    assert [one["logged"] for one in document["filters"]] == [False, False]
    assert len(document["calls"]) > 350


@needs_root
def test_dump_asks_about_one_call_and_writes_the_filters(contained: int, tmp_path: Path) -> None:
    done = triagectl("dump", str(contained), "--call", "unshare", "-o", str(tmp_path / "f"))
    assert "unshare" in done.stdout
    assert "ERRNO(EPERM)" in done.stdout
    shown = triagectl("disasm", str(tmp_path / "f.0"))
    whole = triagectl("disasm", str(contained))
    assert shown.returncode == whole.returncode == 0
    assert shown.stdout in whole.stdout
    assert "# filter 1" in whole.stdout


@needs_root
def test_a_process_without_a_filter_is_said_to_have_none() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        done = triagectl("dump", str(process.pid))
        assert done.returncode == 0
        assert "has no seccomp filter" in done.stdout
    finally:
        process.kill()
        process.wait()


def test_run_gives_the_commands_status_and_names_sigsys(tmp_path: Path) -> None:
    assert triagectl("run", "--profile", "docker", "--", "sh", "-c", "exit 7").returncode == 7
    assert triagectl("run", "--profile", "docker", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    path = tmp_path / "kill.json"
    path.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getppid"], "action": "SCMP_ACT_KILL_PROCESS"}]}')
    done = triagectl("run", "--profile", str(path), "--", sys.executable, "-c", "import os; os.getppid()")
    assert done.returncode == 128 + 31
    assert "ended by SIGSYS" in done.stderr


def test_stacked_profiles_all_hold() -> None:
    done = triagectl("run", "--profile", "podman", "--profile", "docker", "--", "unshare", "-U", "true")
    assert done.returncode == 1
    assert "unshare failed: Operation not permitted" in done.stderr
    assert triagectl("run", "--profile", "docker", "--", "cat", "/proc/self/status").stdout.count("Seccomp_filters:\t1") == 1


@needs_root
def test_record_adds_what_a_second_run_needs(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    script = f"import os\nif os.path.exists({str(flag)!r}): os.getpgid(0)\nopen({str(flag)!r}, 'w').close()"
    out = tmp_path / "p.json"
    done = triagectl("record", "-o", str(out), "--", sys.executable, "-c", script)
    assert done.returncode == 1 or "added getpgid: refused to" in done.stderr, done.stderr
    assert "getpgid" in out.read_text()
    assert triagectl("run", "--profile", str(out), "--", sys.executable, "-c", script).returncode == 0


def test_record_says_when_the_command_fails_without_a_profile(tmp_path: Path) -> None:
    done = triagectl("record", "--method", "ptrace", "-o", str(tmp_path / "p.json"), "--", "sh", "-c", "exit 3")
    assert "fails without any profile: exit status 3" in done.stderr
    assert done.returncode == 0


def test_record_ends_a_command_that_hangs(tmp_path: Path) -> None:
    done = triagectl("record", "--method", "ptrace", "--timeout", "1", "--", "sleep", "60")
    assert done.returncode == 2
    assert "was ended after 1 s" in done.stderr


def processes_of(words: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command == words:
                    found.append(entry.name)
    return found


@pytest.mark.parametrize("method", ["auto", "ptrace", "audit"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_record_takes_its_command_with_it_when_it_is_told_to_end(method: str, number: int) -> None:
    seconds = 10_000 + os.getpid() % 10_000 + number
    argv = [sys.executable, "-m", "triaged.cli.seccomp", "record", "--method", method, "--", "sh", "-c", f"sleep {seconds}; true"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env=ENVIRONMENT)
    try:
        wait_for(lambda: bool(processes_of(f"sleep {seconds}")))
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode != 0
        wait_for(lambda: not processes_of(f"sleep {seconds}"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_record_ends_all_that_a_command_started_when_its_time_is_over() -> None:
    seconds = 20_000 + os.getpid() % 10_000
    argv = [sys.executable, "-m", "triaged.cli.seccomp", "record", "--timeout", "1", "--", "sh", "-c", f"sleep {seconds}; true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)
    assert "was ended after 1 s" in done.stderr
    wait_for(lambda: not processes_of(f"sleep {seconds}"))


def test_run_hands_on_what_tells_it_to_end() -> None:
    seconds = 30_000 + os.getpid() % 10_000
    argv = [sys.executable, "-m", "triaged.cli.seccomp", "run", "--profile", "docker", "--", "sleep", str(seconds)]
    process = subprocess.Popen(argv, env=ENVIRONMENT)
    wait_for(lambda: bool(processes_of(f"sleep {seconds}")))
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert processes_of(f"sleep {seconds}") == []


def wait_for(what: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("words", [
    ["record", "-o", "/does/not/exist/profile.json", "--", "sh", "-c", "touch {}"], ["record", "-o", "/tmp", "--", "touch", "{}"],
    ["record", "--runs", "0", "--", "touch", "{}"], ["record", "--timeout", "-1", "--", "touch", "{}"],
    ["record", "--timeout", "nan", "--", "touch", "{}"], ["dump", "0"], ["dump", "-5"], ["dump", "999999999"], ["dump", "x"],
])  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_runs(words: list[str], tmp_path: Path) -> None:
    made = tmp_path / "made"
    argv = [sys.executable, "-m", "triaged.cli.seccomp", *(word.format(made) for word in words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert not made.exists()
