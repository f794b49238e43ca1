# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from skips import read_allowed

ONE_SKIP = "import pytest\n\n\ndef test_passes():\n    pass\n\n\ndef test_skips():\n    pytest.skip('no such machine')\n"


def run_one_skip(directory: Path, ci: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_it.py").write_text(ONE_SKIP)
    environment = {key: value for key, value in os.environ.items() if key != "CI"} | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider", "--rootdir", directory, directory]
    return subprocess.run(command, env=environment | ({"CI": ci} if ci else {}), capture_output=True, text=True, check=False)


def test_a_skip_without_a_reason_in_the_list_fails_ci(tmp_path: Path) -> None:
    done = run_one_skip(tmp_path, "true")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "no line in tests/allowed-skips for test_it.py::test_skips: no such machine" in done.stdout


def test_a_skip_elsewhere_is_counted_by_its_reason(tmp_path: Path) -> None:
    done = run_one_skip(tmp_path, "")
    assert done.returncode == pytest.ExitCode.OK
    assert "   1 no such machine" in done.stdout


def test_every_line_of_the_list_has_a_reason(tmp_path: Path) -> None:
    read_allowed()
    (tmp_path / "list").write_text("# comment\n\ntests/test_x.py::*\n")
    with pytest.raises(ValueError, match=r"list:3: .* has no reason"):
        read_allowed(tmp_path / "list")
