# SPDX-License-Identifier: Apache-2.0
"""Cases of the corpus that change a whole machine: kernel parameters, units, AppArmor. Those of one release share a machine."""
from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hardware import Snapshot
from image import SUITES
from machine import MachineError, restore

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "corpus"))

from case import Case, read_cases
from runner import run_case
from vm_ground import TOP, Vm, built_for_machines

CASES = [case for case in read_cases() if case.where == "vm"]
EACH = [pytest.param(suite, case, id=f"{suite}-{case.title}") for suite in SUITES for case in CASES if suite in case.suites]


@pytest.fixture(scope="module")
def ground(installed: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    go = os.environ.get("TRIAGED_TEST_GO") or shutil.which("go")
    if not go:
        pytest.skip("needs a Go toolchain in PATH or TRIAGED_TEST_GO")
    built = built_for_machines(go, dict(os.environ), tmp_path_factory.mktemp("corpus") / "built")
    with Vm(lambda: restore(installed, is_patched=True), built) as vm:
        yield vm


@pytest.mark.parametrize(("booted", "case"), EACH, indirect=["booted"], scope="session")
def test_a_case_is_judged_right(case: Case, ground: Vm) -> None:
    try:
        outcome = run_case(case, ground, f"{TOP}/built")
    except MachineError:
        ground.renew()
        raise
    if case.gap and outcome.complaints and not outcome.wrong:
        pytest.xfail(f"{case.gap}: {'; '.join(outcome.complaints)}")
    assert not outcome.complaints, str(outcome)
