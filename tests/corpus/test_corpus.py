# SPDX-License-Identifier: Apache-2.0
"""Every case that needs no machine of its own: injected on this kernel, run under `triagectl run`, its report judged."""
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from case import CASES, Case, read_cases
from needs import missing
from runner import Here, run_case

ALL = read_cases()
NATIVE = [case for case in ALL if case.where == "native"]


@pytest.fixture(scope="module")
def ground() -> Iterator[Here]:
    go = os.environ.get("TRIAGED_TEST_GO") or shutil.which("go")
    if not go:
        pytest.skip("needs a Go toolchain in PATH or TRIAGED_TEST_GO")
    if os.geteuid() != 0:
        pytest.skip("needs root: cgroups, namespaces and other users")
    if os.uname().machine != "x86_64":
        pytest.skip("the corpus's tests name system calls by their numbers on x86_64")
    # Not below pytest's directory, which it closes to other users: they run what is in there.
    with tempfile.TemporaryDirectory(prefix="triaged-corpus-") as top:
        os.chmod(top, 0o755)
        here = Here(Path(top), go)
        here.warm()
        yield here


@pytest.mark.parametrize("case", NATIVE, ids=lambda case: case.title)
def test_a_case_is_judged_right(case: Case, ground: Here) -> None:
    why = missing(case.needs)
    if why:
        pytest.skip(why)
    outcome = run_case(case, ground, str(ground.top / "built"))
    if case.gap and outcome.complaints and not outcome.wrong:
        pytest.xfail(f"{case.gap}: {'; '.join(outcome.complaints)}")
    assert not outcome.complaints, str(outcome)


def test_the_corpus_is_as_large_as_promised() -> None:
    assert sum(case.is_fault for case in ALL) >= 60
    assert sum(not case.is_fault for case in ALL) >= 40
    assert len(ALL) == len(list(CASES.glob("*/*.toml")))
