# SPDX-License-Identifier: Apache-2.0
"""RLIMIT_NOFILE of a process of our own, by prlimit."""
from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from triaged.errors import FixRefused, FixStale
from triaged.fixers.fixer import Caller, RecordState
from triaged.fixers.local import LocalFixer
from triaged.fixers.records import Records
from triaged.fixers.resource_limits import ResourceLimitFixer
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks
from triaged.model.fix import SetResourceLimit

PATHS = KernelPaths()
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sh", "-c", "ulimit -S -n 64 && echo ready && exec sleep 600"], stdout=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    yield started
    started.kill()
    started.communicate()


@pytest.fixture
def fixer(tmp_path: Path) -> LocalFixer:
    return LocalFixer([ResourceLimitFixer(PATHS)], Records(str(tmp_path / "state")), PATHS)


def fix_for(pid: int, soft: int, seen: str = "", resource_name: str = "NOFILE", hard: int = HARD) -> SetResourceLimit:
    return SetResourceLimit(pid, read_start_ticks(PATHS, pid), resource_name, soft, hard, seen=seen)


async def test_raised_verified_by_opening_files_and_undone(process: subprocess.Popen[bytes], fixer: LocalFixer) -> None:
    fix = fix_for(process.pid, 2000, seen=f"64:{HARD}")
    preview = await fixer.preview(fix)
    assert (preview.old, preview.new, preview.lasting) == (f"64:{HARD}", f"2000:{HARD}", False)
    outcome = await fixer.apply("f", fix, Caller(0))
    assert outcome.verification == "verified: a process with the same limit held 72 files open"
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (2000, HARD)
    await fixer.undo("f", "", Caller(0))
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (64, HARD)


async def test_limits_are_not_lowered(process: subprocess.Popen[bytes], fixer: LocalFixer) -> None:
    for fix in (fix_for(process.pid, 10), fix_for(process.pid, 64, hard=64)):
        with pytest.raises(FixRefused, match="does not lower"):
            await fixer.apply("f", fix, Caller(0))
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (64, HARD)


async def test_more_files_than_the_kernel_allows_are_refused_before_anything_is_written(
    process: subprocess.Popen[bytes], fixer: LocalFixer
) -> None:
    with pytest.raises(FixRefused, match=r"fs\.nr_open"):
        await fixer.apply("f", fix_for(process.pid, 100, hard=1 << 40), Caller(0))
    assert await fixer.outcomes() == ()


async def test_a_reused_pid_is_not_touched(process: subprocess.Popen[bytes], fixer: LocalFixer) -> None:
    other = SetResourceLimit(process.pid, read_start_ticks(PATHS, process.pid) + 1, "NOFILE", 2000, HARD)
    with pytest.raises(FixStale, match=f"there is no RLIMIT_NOFILE of process {process.pid}"):
        await fixer.apply("f", other, Caller(0))
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (64, HARD)


async def test_what_the_process_set_itself_meanwhile_stays(process: subprocess.Popen[bytes], fixer: LocalFixer) -> None:
    await fixer.apply("f", fix_for(process.pid, 2000), Caller(0))
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1500, HARD))
    with pytest.raises(FixStale, match="1500"):
        await fixer.undo("f", "", Caller(0))
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (1500, HARD)


async def test_the_end_of_the_process_ends_the_fix(process: subprocess.Popen[bytes], fixer: LocalFixer) -> None:
    await fixer.apply("f", fix_for(process.pid, 2000), Caller(0))
    process.kill()
    process.wait()
    with pytest.raises(FixStale):
        await fixer.undo("f", "", Caller(0))
    assert [outcome.state for outcome in await fixer.outcomes()] == [RecordState.ENDED]


@pytest.mark.parametrize("fix", [
    SetResourceLimit(1, 5, "NOFILE", 10, 10), SetResourceLimit(0, 5, "NOFILE", 10, 10), SetResourceLimit(-5, 5, "NOFILE", 10, 10),
    SetResourceLimit(500, 0, "NOFILE", 10, 10), SetResourceLimit(500, 5, "NICE", 10, 10),
    SetResourceLimit(500, 5, "nofile", 10, 10), SetResourceLimit(500, 5, "NOFILE", 11, 10),
    SetResourceLimit(500, 5, "NOFILE", -1, 10), SetResourceLimit(500, 5, "NOFILE", -2, -2),
    SetResourceLimit(500, 5, "../NOFILE", 1, 1), SetResourceLimit(500, 5, "NOFILE", 1, 1 << 64),
])  # fmt: skip
def test_what_names_no_process_no_resource_or_no_limit_is_refused(fix: SetResourceLimit) -> None:
    with pytest.raises(FixRefused):
        ResourceLimitFixer(PATHS).check(fix)
