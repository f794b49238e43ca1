# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for commands.py

from commands import environment, triagectl_run


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs a command under triagectl to its end. What it prints is captured."""

    def start(*argv: str, options: tuple[str, ...] = ("--no-trace",), **more: object) -> subprocess.CompletedProcess[bytes]:
        if "stdout" not in more:
            more["capture_output"] = True
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            triagectl_run(*options, "--", *argv), env=environment(), timeout=60, check=False, **more
        )

    return start
