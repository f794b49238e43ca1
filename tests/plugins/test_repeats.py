# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent
# Fails as often as it is told, counted in a file beside it.
FAILS = """
import pathlib

import pytest


@pytest.mark.parametrize("number", range({tests}))
def test_it(number):
    tried = pathlib.Path(__file__).with_name(f"tried-{{number}}")
    times = int(tried.read_text()) if tried.exists() else 0
    tried.write_text(str(times + 1))
    assert times >= {times}, "so it was"
"""


def run(root: Path, place: str, times: int, tests: int = 1, ci: str = "true") -> subprocess.CompletedProcess[str]:
    """The tests of a made-up tree, each of which fails so many times before it passes."""
    directory = root / "tests" / place
    directory.mkdir(parents=True)
    (directory / "test_it.py").write_text(FAILS.format(times=times, tests=tests))
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"PYTHONPATH": str(PLUGINS)}
    command = [sys.executable, "-m", "pytest", "-p", "repeats", "-p", "no:cacheprovider", "--rootdir", root, "tests"]
    environment |= {"CI": ci} if ci else {}
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


def test_what_fails_once_on_a_real_kernel_passes_and_its_failure_is_shown(tmp_path: Path) -> None:
    done = run(tmp_path, "kernel", times=1)
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert "REPEATED: tests/kernel/test_it.py::test_it[0]" in done.stdout
    assert "AssertionError: so it was" in done.stdout
    assert "1 passed, 1 rerun" in done.stdout


def test_what_fails_twice_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "vm", times=2)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 1 rerun" in done.stdout


@pytest.mark.parametrize(("place", "ci"), [("rules", "true"), ("kernel", "")])
def test_what_asks_only_the_code_is_not_repeated_and_nothing_is_outside_of_ci(tmp_path: Path, place: str, ci: str) -> None:
    done = run(tmp_path, place, times=1, ci=ci)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 failed in" in done.stdout
    assert "REPEATED" not in done.stdout


def test_many_repeats_fail_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "bus", times=1, tests=5)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "FAILED: 5 tests had to be repeated, 4 may" in done.stdout
