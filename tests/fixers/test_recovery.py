# SPDX-License-Identifier: Apache-2.0
"""A process is killed with SIGKILL after each step of applying and undoing; the next one tells the truth."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import triaged
from triaged.errors import FixUnknown
from triaged.fixers.fixer import Caller, RecordState
from triaged.fixers.local import LocalFixer
from triaged.model.fix import SetParameter

FIX = SetParameter("kernel.pid_max", "4194304", lasting=True, seen="400")
CALLER = Caller(1000, ":1.7")
VICTIM = """
import asyncio, os, signal, sys
from triaged.fixers.fixer import Caller
from triaged.fixers.local import LocalFixer
from triaged.fixers.parameters import ParameterFixer
from triaged.fixers.records import Records
from triaged.fixers.verification import Managed
from triaged.kernel.paths import KernelPaths
from triaged.model.fix import SetParameter

tree, what, wanted_step, count = sys.argv[1:5]
left = int(count)

def on_step(step):
    global left
    if step == wanted_step:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

async def probe(_):
    return Managed("done")

async def main():
    paths = KernelPaths.below(tree)
    fixer = LocalFixer([ParameterFixer(paths)], Records(tree + "/state"), paths, settle_s=0, probe=probe, on_step=on_step)
    fix = SetParameter("kernel.pid_max", "4194304", lasting=True, seen="400")
    if what == "apply":
        await fixer.apply("f", fix, Caller(1000, ":1.7"))
    else:
        await fixer.undo("f", fix.key, Caller(1000, ":1.7"))

asyncio.run(main())
"""


def read(tree: Path, parameter: str) -> str:
    return (tree / "proc/sys" / parameter.replace(".", "/")).read_text().strip()


def write(tree: Path, parameter: str, value: str) -> None:
    (tree / "proc/sys" / parameter.replace(".", "/")).write_text(value + "\n")


def kill_at(tree: Path, what: str, step: str, count: int = 1) -> None:
    """Runs apply or undo in another process, which ends by SIGKILL when it has done the step for the `count`-th time."""
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(tree), what, step, str(count)],
        env={"PYTHONPATH": str(Path(triaged.__file__).parents[1])}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def drop_in(tree: Path) -> Path:
    return tree / "etc/sysctl.d/zz-triaged.conf"


async def test_killed_before_the_change_nothing_was_applied(tree: Path, fixer: LocalFixer) -> None:
    kill_at(tree, "apply", "saved")
    assert [outcome.state for outcome in await fixer.recover()] == [RecordState.FAILED]
    assert (await fixer.outcomes())[-1].message == "interrupted before anything was changed"
    assert read(tree, "kernel.pid_max") == "400"
    with pytest.raises(FixUnknown, match="interrupted before anything was changed"):
        await fixer.undo("f", FIX.key, CALLER)


async def test_killed_halfway_the_half_is_put_back(tree: Path, fixer: LocalFixer) -> None:
    kill_at(tree, "apply", "written")
    assert read(tree, "kernel.pid_max") == "4194304"
    assert not drop_in(tree).exists()
    assert [outcome.state for outcome in await fixer.recover()] == [RecordState.FAILED]
    assert read(tree, "kernel.pid_max") == "400"
    assert "interrupted halfway; put back" in (await fixer.outcomes())[-1].message


@pytest.mark.parametrize(("step", "count"), [("written", 2), ("changed", 1), ("applied", 1)])
async def test_killed_between_change_and_verification_it_holds_and_is_called_unverified(
    tree: Path, fixer: LocalFixer, step: str, count: int
) -> None:
    kill_at(tree, "apply", step, count)
    assert [outcome.state for outcome in await fixer.recover()] == [RecordState.APPLIED]
    assert read(tree, "kernel.pid_max") == "4194304"
    assert drop_in(tree).exists()
    assert (await fixer.outcomes())[-1].verification == "not verified: interrupted"
    assert (await fixer.undo("f", FIX.key, CALLER)).state is RecordState.UNDONE
    assert read(tree, "kernel.pid_max") == "400"
    assert not drop_in(tree).exists()


async def test_killed_after_verification_nothing_is_lost(tree: Path, fixer: LocalFixer) -> None:
    kill_at(tree, "apply", "verified")
    assert await fixer.recover() == ()
    assert [outcome.state for outcome in await fixer.outcomes()] == [RecordState.VERIFIED]


@pytest.mark.parametrize("step", ["undoing", "put-back"])
async def test_killed_while_undoing_it_is_undone(tree: Path, fixer: LocalFixer, step: str) -> None:
    await fixer.apply("f", FIX, CALLER)
    kill_at(tree, "undo", step)
    assert [outcome.state for outcome in await fixer.recover()] == [RecordState.UNDONE]
    assert read(tree, "kernel.pid_max") == "400"
    assert not drop_in(tree).exists()


async def test_after_a_kill_a_value_that_somebody_set_meanwhile_is_left_alone(tree: Path, fixer: LocalFixer) -> None:
    kill_at(tree, "apply", "applied")
    write(tree, "kernel.pid_max", "5555")
    drop_in(tree).write_text("kernel.pid_max = 6666\n")
    assert [outcome.state for outcome in await fixer.recover()] == [RecordState.SUPERSEDED]
    assert read(tree, "kernel.pid_max") == "5555"
    assert drop_in(tree).read_text() == "kernel.pid_max = 6666\n"
    assert "5555 now, not 4194304" in (await fixer.outcomes())[-1].message


async def test_a_reboot_ends_what_was_set_for_one_boot(tree: Path, fixer: LocalFixer) -> None:
    await fixer.apply("f", SetParameter("kernel.pid_max", "4194304"), CALLER)
    write(tree, "kernel.random.boot_id", "99999999-2222-3333-4444-555555555555")
    write(tree, "kernel.pid_max", "32768")
    assert [outcome.state for outcome in await fixer.recover()] == [RecordState.ENDED]
    assert read(tree, "kernel.pid_max") == "32768"


async def test_a_reboot_leaves_what_lasts(tree: Path, fixer: LocalFixer) -> None:
    await fixer.apply("f", FIX, CALLER)
    write(tree, "kernel.random.boot_id", "99999999-2222-3333-4444-555555555555")
    assert await fixer.recover() == ()
    assert (await fixer.undo("f", FIX.key, CALLER)).state is RecordState.UNDONE


async def test_recovering_twice_changes_nothing_more(tree: Path, fixer: LocalFixer) -> None:
    kill_at(tree, "apply", "written")
    assert len(await fixer.recover()) == 1
    assert await fixer.recover() == ()


async def test_the_lock_of_a_killed_process_is_free(tree: Path, fixer: LocalFixer) -> None:
    kill_at(tree, "apply", "saved")
    await fixer.recover()
    await fixer.apply("f", FIX, CALLER)


async def test_a_broken_record_is_kept_told_and_does_not_hide_the_others(tree: Path, fixer: LocalFixer) -> None:
    await fixer.apply("f", FIX, CALLER)
    (tree / "state/0000000000000001-broken.json").write_text('{"version": 1,')
    assert [outcome.state for outcome in await fixer.outcomes()] == [RecordState.APPLIED]
    assert (tree / "state/0000000000000001-broken.json").exists()


async def test_the_record_holds_the_original_before_anything_is_changed(tree: Path) -> None:
    kill_at(tree, "apply", "saved")
    (record,) = (tree / "state").glob("*.json")
    data = json.loads(record.read_text())
    assert data["originals"]["kernel.pid_max"]["value"] == "400"
    assert data["state"] == "saved"
    assert data["caller"] == {"uid": 1000, "bus_name": ":1.7"}
    assert (tree / "state").stat().st_mode & 0o777 == 0o700
