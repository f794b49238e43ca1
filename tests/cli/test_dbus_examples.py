# SPDX-License-Identifier: Apache-2.0
"""Every example of docs/dbus-api.md, run against a real daemon."""
import os
import pathlib
import re
import select
import shutil
import subprocess
import sys
from typing import Any

import pytest

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "dbus-api.md"
BLOCKS = re.findall(r"^```(sh monitor|sh|python)\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
PROGRAMS = ("busctl", "gdbus", "jq")


def examples(kind: str) -> list[Any]:
    return [pytest.param(text, id=f"{kind}-{number}") for number, (found, text) in enumerate(BLOCKS) if found == kind]


def need_programs(text: str) -> None:
    missing = [program for program in PROGRAMS if re.search(rf"\b{program}\b", text) and shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture
def bin_directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with the triagectl under test."""
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "triagectl"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m triaged.cli "$@"\n')
    program.chmod(0o755)
    return directory


def environment_of(daemon: Any, bin_directory: pathlib.Path) -> dict[str, str]:
    environment: dict[str, str] = daemon.machine.environment
    return {**environment, "PATH": f"{bin_directory}:{environment['PATH']}"}


def test_the_document_has_examples_of_each_sort() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert (kinds.count("sh") >= 8, kinds.count("sh monitor"), kinds.count("python")) == (True, 2, 1)


@pytest.mark.parametrize("text", examples("sh"))
def test_a_command_gives_an_answer_and_no_error(daemon: Any, bin_directory: pathlib.Path, text: str) -> None:
    need_programs(text)
    if "below-policy" in text:
        daemon.machine.want_the_impossible()
        daemon.reload()
        daemon.wait_for_findings(3)
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, check=False, timeout=60,
        env=environment_of(daemon, bin_directory), cwd="/",
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    if "Refresh" not in text and "ListFixes" not in text:
        assert answer.stdout.strip()
    if "c4078caa" in text or "actions.runner" in text or "ListFindings" in text:
        assert "c4078caa" in answer.stdout or "13 forks refused" in answer.stdout


@pytest.mark.parametrize("text", examples("sh monitor"))
def test_a_monitor_sees_a_finding_that_is_opened(daemon: Any, bin_directory: pathlib.Path, text: str) -> None:
    need_programs(text)
    environment = environment_of(daemon, bin_directory)
    argv = ["bash", "-c", f"exec {text}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd="/")
    assert process.stdout is not None
    try:
        shown = read_until(process.stdout.fileno(), b"onitor")  # both say so when they listen
        daemon.machine.want_the_impossible()
        daemon.reload()
        shown += read_until(process.stdout.fileno(), b"sysctl.below-policy")
        assert b"FindingOpened" in shown
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def read_until(descriptor: int, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        ready, _, _ = select.select([descriptor], [], [], 30)
        assert ready, f"no {mark!r} after 30 s in {data!r}"
        part = os.read(descriptor, 65536)
        assert part, data
        data += part
    return data


@pytest.mark.parametrize("text", examples("python"))
def test_the_python_program_prints_the_findings(daemon: Any, text: str) -> None:
    argv, environment = [sys.executable, "-c", text], daemon.machine.environment
    answer = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, env=environment, cwd="/")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "cgroup.pids.limit-hit-c4078caa 13 forks refused at 64 tasks" in answer.stdout


def test_every_error_that_the_code_names_is_in_the_document() -> None:
    root = DOCUMENT.parents[1]
    sources = (root / "daemon" / "triaged" / "bus").glob("*.py")
    found = {name for path in sources for name in re.findall(r'(?:_ERROR \+ "|Triage1\.Error\.)([A-Z]\w+)', path.read_text())}
    # Those of fixes and of looks are put together from parts; the contract lists them.
    contract = (root / "dbus" / "org.triaged.Triage1.xml").read_text()
    parts = r"\b(NoSuchFix|Fix(?:Refused|Stale|AlreadyApplied|Busy|Failed)|NoSuchProcess|FiltersNotReadable)\b"
    found |= set(re.findall(parts, contract))
    assert {"NoSuchFinding", "InvalidArgs"} <= found
    told = set(re.findall(r"^\| `org\.triaged\.Triage1\.Error\.(\w+)`", DOCUMENT.read_text(), re.MULTILINE))
    assert found == told
