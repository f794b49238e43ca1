# SPDX-License-Identifier: Apache-2.0
"""Fixture trees have no kernel behind them: what the kernel does is shown in tests/kernel and tests/vm."""
from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from triaged.errors import FixBusy, FixFailed, FixRefused, FixRepeated, FixStale, FixUnknown
from triaged.fixers.fixer import Caller, RecordState
from triaged.fixers.local import LocalFixer
from triaged.fixers.parameters import ParameterFixer
from triaged.fixers.records import Records
from triaged.fixers.verification import CouldNot, Managed, Refused
from triaged.kernel.paths import KernelPaths
from triaged.model.fix import ManualStep, SetParameter, SetUnitProperty

CALLER = Caller(1000, ":1.7")
FIX = SetParameter("kernel.pid_max", "4194304", seen="400")
LASTING = SetParameter("kernel.pid_max", "4194304", lasting=True, seen="400")

def read(tree: Path, parameter: str) -> str:
    return (tree / "proc/sys" / parameter.replace(".", "/")).read_text().strip()


def write(tree: Path, parameter: str, value: str) -> None:
    (tree / "proc/sys" / parameter.replace(".", "/")).write_text(value + "\n")


def drop_in(tree: Path) -> Path:
    return tree / "etc/sysctl.d/zz-triaged.conf"


def times(tree: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in tree.rglob("*") if path.is_file()}


async def test_a_preview_says_all_and_changes_nothing(fixer: LocalFixer, tree: Path) -> None:
    preview = await fixer.preview(LASTING)
    assert (preview.target, preview.old, preview.new) == ("kernel.pid_max", "400", "4194304")
    assert preview.files == (str(drop_in(tree)),)
    assert "+kernel.pid_max = 4194304" in preview.diff
    assert preview.lasting
    assert preview.obstacle == ""
    assert preview.verification == "will get the process id 400, which was out of range"
    assert preview.commands[0] == ("sysctl", "-w", "kernel.pid_max=4194304")
    assert read(tree, "kernel.pid_max") == "400"
    assert not drop_in(tree).exists()
    assert not (tree / "state").exists()


async def test_a_preview_names_the_file_that_wins_over_ours(fixer: LocalFixer, tree: Path) -> None:
    (tree / "etc/sysctl.d/zzz.conf").write_text("kernel.pid_max = 500\n")
    preview = await fixer.preview(LASTING)
    assert preview.notes == (f"at boot {tree}/etc/sysctl.d/zzz.conf:1 wins over {drop_in(tree)} and sets 500",)


async def test_a_preview_says_what_stands_in_the_way(fixer: LocalFixer, tree: Path) -> None:
    write(tree, "kernel.pid_max", "1000")
    preview = await fixer.preview(FIX)
    assert "kernel.pid_max is 1000, not 400 as the finding saw" in preview.obstacle


async def test_applied_verified_and_undone(fixer: LocalFixer, tree: Path, probing: Any) -> None:
    probing.answers = [Managed("a process got the id 400")]
    outcome = await fixer.apply("f", LASTING, CALLER)
    assert outcome.state is RecordState.VERIFIED
    assert outcome.verification == "verified: a process got the id 400"
    assert outcome.caller == CALLER
    assert read(tree, "kernel.pid_max") == "4194304"
    assert "kernel.pid_max = 4194304\n" in drop_in(tree).read_text()
    outcome = await fixer.undo("f", LASTING.key, Caller(0))
    assert outcome.state is RecordState.UNDONE
    assert read(tree, "kernel.pid_max") == "400"
    assert not drop_in(tree).exists()


async def test_what_cannot_be_verified_is_applied_and_says_why(fixer: LocalFixer, probing: Any) -> None:
    probing.answers = [CouldNot("it is forbidden here")]
    outcome = await fixer.apply("f", FIX, CALLER)
    assert outcome.state is RecordState.APPLIED
    assert outcome.verification.startswith("not verified: ")
    assert "it is forbidden here" in outcome.verification


async def test_a_fix_that_did_not_help_is_undone_and_said_so(fixer: LocalFixer, tree: Path, probing: Any) -> None:
    probing.answers = [Refused("invalid argument")]
    with pytest.raises(FixFailed, match=r"did not help: still could not .*invalid argument; everything is as before \(400\)"):
        await fixer.apply("f", LASTING, CALLER)
    assert read(tree, "kernel.pid_max") == "400"
    assert not drop_in(tree).exists()
    assert [outcome.state for outcome in await fixer.outcomes()] == [RecordState.FAILED]


async def test_what_worked_before_the_change_is_not_called_verified(fixer: LocalFixer, tree: Path, probing: Any) -> None:
    (tree / "proc/sys/user").mkdir()
    write(tree, "user.max_user_namespaces", "0")
    probing.answers = [Managed("done"), Managed("done")]
    outcome = await fixer.apply("f", SetParameter("user.max_user_namespaces", "100"), CALLER, uid=1000)
    assert outcome.state is RecordState.APPLIED
    assert outcome.verification == "not verified: done, and could do so before the change"
    assert [probe.arguments["uid"] for probe in probing.asked] == [1000, 1000]


async def test_applying_twice_changes_nothing(fixer: LocalFixer, tree: Path) -> None:
    await fixer.apply("f", LASTING, CALLER)
    before = times(tree)
    with pytest.raises(FixRepeated, match="applied already"):
        await fixer.apply("f", LASTING, CALLER)
    assert times(tree) == before


async def test_a_value_that_is_another_one_by_now_is_left_alone(fixer: LocalFixer, tree: Path) -> None:
    write(tree, "kernel.pid_max", "1000")
    with pytest.raises(FixStale, match=r"kernel\.pid_max is 1000, not 400 as the finding saw"):
        await fixer.apply("f", FIX, CALLER)
    assert read(tree, "kernel.pid_max") == "1000"


async def test_a_value_that_is_the_wanted_one_already_needs_nothing(fixer: LocalFixer, tree: Path) -> None:
    write(tree, "kernel.pid_max", "4194304")
    with pytest.raises(FixStale, match="is 4194304 already"):
        await fixer.apply("f", FIX, CALLER)


async def test_undo_leaves_what_somebody_else_has_set_and_says_who(fixer: LocalFixer, tree: Path) -> None:
    await fixer.apply("f", FIX, CALLER)
    write(tree, "kernel.pid_max", "99999")
    (tree / "etc/sysctl.d/10-site.conf").write_text("kernel.pid_max = 99999\n")
    with pytest.raises(FixStale, match=r"99999 now, not 4194304: .*10-site.conf:1 sets that"):
        await fixer.undo("f", FIX.key, CALLER)
    assert read(tree, "kernel.pid_max") == "99999"
    assert (await fixer.outcomes())[-1].state is RecordState.SUPERSEDED


async def test_undo_takes_back_the_drop_in_although_the_running_value_is_somebody_elses(fixer: LocalFixer, tree: Path) -> None:
    await fixer.apply("f", LASTING, CALLER)
    write(tree, "kernel.pid_max", "99999")
    outcome = await fixer.undo("f", LASTING.key, CALLER)
    assert outcome.state is RecordState.UNDONE
    assert "kernel.pid_max is 99999 now, not 4194304" in outcome.message
    assert read(tree, "kernel.pid_max") == "99999"
    assert not drop_in(tree).exists()


async def test_a_line_of_ours_that_was_edited_is_left_alone(fixer: LocalFixer, tree: Path) -> None:
    await fixer.apply("f", LASTING, CALLER)
    drop_in(tree).write_text("kernel.pid_max = 70000\n")
    outcome = await fixer.undo("f", LASTING.key, CALLER)
    assert read(tree, "kernel.pid_max") == "400"
    assert drop_in(tree).read_text() == "kernel.pid_max = 70000\n"
    assert "was edited" in outcome.message


async def test_what_holds_for_now_can_be_made_to_last_and_is_undone_in_reverse(fixer: LocalFixer, tree: Path) -> None:
    await fixer.apply("f", FIX, CALLER)
    await fixer.apply("f", LASTING, CALLER)
    with pytest.raises(FixRefused, match="applied later and rests on this one"):
        await fixer.undo("f", FIX.key, CALLER)
    with pytest.raises(FixUnknown, match="more than one"):
        await fixer.undo("f", "", CALLER)
    await fixer.undo("f", LASTING.key, CALLER)
    assert read(tree, "kernel.pid_max") == "4194304"
    await fixer.undo("f", "", CALLER)
    assert read(tree, "kernel.pid_max") == "400"


async def test_undoing_what_was_never_applied_or_is_undone_is_an_error(fixer: LocalFixer) -> None:
    with pytest.raises(FixUnknown, match="no fix of finding f has been applied"):
        await fixer.undo("f", FIX.key, CALLER)
    await fixer.apply("f", FIX, CALLER)
    with pytest.raises(FixUnknown, match="no fix of finding other"):
        await fixer.undo("other", FIX.key, CALLER)
    await fixer.undo("f", FIX.key, CALLER)
    with pytest.raises(FixUnknown, match="nothing to undo, it is undone"):
        await fixer.undo("f", FIX.key, CALLER)


async def test_an_undone_fix_can_be_applied_again(fixer: LocalFixer, tree: Path) -> None:
    for _ in range(2):
        await fixer.apply("f", FIX, CALLER)
        await fixer.undo("f", FIX.key, CALLER)
    assert read(tree, "kernel.pid_max") == "400"


async def test_a_drop_in_that_cannot_be_written_takes_the_running_value_back(fixer: LocalFixer, tree: Path) -> None:
    drop_in(tree).mkdir()
    with pytest.raises(FixRefused, match="plain"):
        await fixer.apply("f", LASTING, CALLER)
    assert read(tree, "kernel.pid_max") == "400"


async def test_a_directory_that_vanishes_between_save_and_write_leaves_nothing_half_done(tree: Path, probing: Any) -> None:
    def sabotage(step: str) -> None:
        if step == "saved":
            (tree / "etc/sysctl.d").rmdir()
            (tree / "etc/sysctl.d").write_text("not a directory")

    paths = KernelPaths.below(str(tree))
    fixer = LocalFixer([ParameterFixer(paths)], Records(str(tree / "state")), paths, settle_s=0, probe=probing, on_step=sabotage)
    with pytest.raises(FixFailed, match="not a directory"):
        await fixer.apply("f", LASTING, CALLER)
    assert read(tree, "kernel.pid_max") == "400"
    assert (await fixer.outcomes())[-1].state is RecordState.FAILED


async def test_another_process_that_resets_the_value_at_once_is_reported(fixer: LocalFixer, tree: Path, probing: Any) -> None:
    probing.then = lambda: write(tree, "kernel.pid_max", "777")
    probing.answers = [Managed("a process got the id 400")]
    with pytest.raises(FixFailed, match=r"is 777 although 4194304 was written.*kernel.pid_max is 777 now"):
        await fixer.apply("f", LASTING, CALLER)
    assert read(tree, "kernel.pid_max") == "777"
    assert not drop_in(tree).exists()


async def test_a_fixer_that_dies_puts_back(fixer: LocalFixer, tree: Path, probing: Any) -> None:
    def die() -> None:
        raise ZeroDivisionError("a mistake in a probe")

    probing.then = die
    with pytest.raises(FixFailed, match="a mistake in a probe; everything is as before"):
        await fixer.apply("f", LASTING, CALLER)
    assert read(tree, "kernel.pid_max") == "400"
    assert not drop_in(tree).exists()


class SlowProbe:
    """A probe that lasts until it is released."""

    def __init__(self) -> None:
        self.under_way, self.release = asyncio.Event(), asyncio.Event()

    async def __call__(self, probe: object) -> Managed:
        self.under_way.set()
        await self.release.wait()
        return Managed("done")


async def test_two_callers_at_once_are_served_one_and_refused_one(tree: Path) -> None:
    slow, paths = SlowProbe(), KernelPaths.below(str(tree))
    fixer = LocalFixer([ParameterFixer(paths)], Records(str(tree / "state")), paths, settle_s=0, probe=slow)
    first = asyncio.create_task(fixer.apply("f", FIX, CALLER))
    await slow.under_way.wait()
    with pytest.raises(FixBusy):
        await fixer.apply("f", SetParameter("vm.max_map_count", "262144"), CALLER)
    with pytest.raises(FixBusy):
        await fixer.undo("f", FIX.key, CALLER)
    other_process = LocalFixer([ParameterFixer(paths)], Records(str(tree / "state")), paths)
    with pytest.raises(FixBusy, match="another process"):
        await other_process.apply("f", SetParameter("vm.max_map_count", "262144"), CALLER)
    slow.release.set()
    assert (await first).state is RecordState.VERIFIED
    assert read(tree, "vm.max_map_count") == "65530"


async def test_a_caller_that_gives_up_does_not_leave_a_change_half_made(tree: Path) -> None:
    slow, paths = SlowProbe(), KernelPaths.below(str(tree))
    fixer = LocalFixer([ParameterFixer(paths)], Records(str(tree / "state")), paths, settle_s=0, probe=slow)
    call = asyncio.create_task(fixer.apply("f", FIX, CALLER))
    await slow.under_way.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    slow.release.set()
    await fixer.close()
    assert [outcome.state for outcome in await fixer.outcomes()] == [RecordState.VERIFIED]


async def test_what_is_for_people_or_needs_systemd_is_refused(fixer: LocalFixer) -> None:
    with pytest.raises(FixRefused, match="triaged does not do this itself"):
        await fixer.apply("f", ManualStep("docker", "raises --pids-limit"), CALLER)
    with pytest.raises(FixRefused, match="systemd is not running"):
        await fixer.apply("f", SetUnitProperty("a.service", "TasksMax", "100"), CALLER)


async def test_a_parameter_that_this_kernel_does_not_have_is_stale(fixer: LocalFixer) -> None:
    with pytest.raises(FixStale, match=r"there is no kernel\.unprivileged_userns_clone here"):
        await fixer.apply("f", SetParameter("kernel.unprivileged_userns_clone", "1"), CALLER)
