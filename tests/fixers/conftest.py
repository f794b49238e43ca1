# SPDX-License-Identifier: Apache-2.0
"""A fixture tree with a few kernel parameters, and a fixer on it."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from triaged.fixers.fixer import Probe
from triaged.fixers.local import LocalFixer
from triaged.fixers.parameters import ParameterFixer
from triaged.fixers.records import Records
from triaged.fixers.verification import CouldNot, ProbeResult
from triaged.kernel.paths import KernelPaths

PARAMETERS = {
    "kernel/pid_max": "400",
    "kernel/random/boot_id": "11111111-2222-3333-4444-555555555555",
    "net/core/somaxconn": "16",
    "net/ipv4/ip_local_port_range": "40000\t40009",
    "vm/max_map_count": "65530",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with proc/sys and an empty etc/sysctl.d."""
    for name, value in PARAMETERS.items():
        file = tmp_path / "proc/sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")
    for directory in ("etc/sysctl.d", "run/sysctl.d", "usr/lib/sysctl.d"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory).chmod(0o755)
    return tmp_path


class Probing:
    """Stands for the process that does the failing thing: gives the answers in turn and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[ProbeResult] = []
        self.asked: list[Probe] = []
        self.then: Callable[[], None] = lambda: None

    async def __call__(self, probe: Probe) -> ProbeResult:
        self.asked.append(probe)
        self.then()
        return self.answers.pop(0) if self.answers else CouldNot("a fixture tree runs nothing")


@pytest.fixture
def probing() -> Probing:
    return Probing()


@pytest.fixture
def fixer(tree: Path, probing: Probing) -> LocalFixer:
    paths = KernelPaths.below(str(tree))
    return LocalFixer([ParameterFixer(paths)], Records(str(tree / "state")), paths, settle_s=0, probe=probing)
