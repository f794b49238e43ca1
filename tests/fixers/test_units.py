# SPDX-License-Identifier: Apache-2.0
"""Unit fixes on a systemd that is made up, with real drop-ins in a fixture tree; the real one is asked in virtual machines."""
from __future__ import annotations

from pathlib import Path

import pytest

from triaged.errors import FixFailed, FixRefused, FixStale
from triaged.fixers.fixer import Caller, RecordState
from triaged.fixers.local import LocalFixer
from triaged.fixers.records import Records
from triaged.fixers.units import UnitPropertyFixer, UnitSettingFixer, check_unit
from triaged.kernel.paths import KernelPaths
from triaged.model.fix import Fix, SetUnitProperty, SetUnitSetting

CALLER = Caller(0)
INFINITY = (1 << 64) - 1


class Systemd:
    """One service, t.service, with the drop-ins that lie in the tree."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.own = {"TasksMax": 20, "MemoryMax": INFINITY, "LimitNOFILE": 512}
        self.live: dict[str, int] = {}
        self.reloads = 0
        self.is_read_only = False

    def drop_ins(self) -> list[Path]:
        found = [*self.tree.glob("etc/systemd/system.control/t.service.d/*.conf"),
                 *self.tree.glob("run/systemd/system.control/t.service.d/*.conf"),
                 *self.tree.glob("etc/systemd/system/t.service.d/*.conf")]  # fmt: skip
        return sorted(found, key=lambda path: path.name)

    async def read_property(self, unit: str, name: str) -> str | int | bool | list[str]:
        if name == "LoadState":
            return "loaded" if unit == "t.service" else "not-found"
        if name == "DropInPaths":
            return [str(path) for path in self.drop_ins()]
        if name in ("Transient", "ControlGroup"):
            return False if name == "Transient" else ""
        name = name.removesuffix("Soft")
        value = self.own.get(name, INFINITY)
        for path in self.drop_ins():
            for line in path.read_text().splitlines():
                if line.startswith(f"{name}="):
                    text = line.partition("=")[2]
                    value = INFINITY if text == "infinity" else int(text)
        return self.live.get(name, value)

    async def set_property(self, unit: str, name: str, signature: str, value: int | str | bool, *, runtime: bool) -> None:
        self.live[name] = int(value)
        if self.is_read_only:  # as the real one, which says nothing then
            return
        directory = self.tree / ("run" if runtime else "etc") / f"systemd/system.control/{unit}.d"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"50-{name}.conf").write_text(f"[Service]\n{name}={value}\n")

    async def reload(self) -> None:
        self.reloads += 1
        self.live.clear()


@pytest.fixture
def systemd(tree: Path) -> Systemd:
    for directory in ("etc/systemd/system", "run/systemd/system"):
        (tree / directory).mkdir(parents=True)
    return Systemd(tree)


@pytest.fixture
def units(tree: Path, systemd: Systemd) -> LocalFixer:
    paths = KernelPaths.below(str(tree))
    fixers = [UnitPropertyFixer(systemd, paths), UnitSettingFixer(systemd, paths)]
    return LocalFixer(fixers, Records(str(tree / "state")), paths, settle_s=0)


@pytest.mark.parametrize("lasting", [False, True])
async def test_a_property_is_set_and_no_drop_in_pins_it_after_undo(units: LocalFixer, systemd: Systemd, lasting: bool) -> None:
    fix = SetUnitProperty("t.service", "TasksMax", "100", lasting, seen="20")
    outcome = await units.apply("f", fix, CALLER)
    assert outcome.state is RecordState.APPLIED
    assert "nothing runs in it" in outcome.verification
    assert await systemd.read_property("t.service", "TasksMax") == 100
    assert (await units.undo("f", "", CALLER)).state is RecordState.UNDONE
    assert await systemd.read_property("t.service", "TasksMax") == 20
    assert systemd.drop_ins() == []


async def test_a_drop_in_that_was_there_before_stays(units: LocalFixer, systemd: Systemd) -> None:
    await systemd.set_property("t.service", "TasksMax", "t", 30, runtime=True)
    await units.apply("f", SetUnitProperty("t.service", "TasksMax", "100", seen="30"), CALLER)
    await units.undo("f", "", CALLER)
    assert [path.read_text() for path in systemd.drop_ins()] == ["[Service]\nTasksMax=30\n"]


async def test_a_drop_in_that_was_there_before_gets_its_own_text_back(units: LocalFixer, systemd: Systemd) -> None:
    text = "# by hand\n[Service]\nTasksMax=30\n"
    await systemd.set_property("t.service", "TasksMax", "t", 30, runtime=False)
    (path,) = systemd.drop_ins()
    path.write_text(text)
    path.chmod(0o644)
    path.parent.chmod(0o755)
    await units.apply("f", SetUnitProperty("t.service", "TasksMax", "100", True, seen="30"), CALLER)
    assert path.read_text() != text
    await units.undo("f", "", CALLER)
    assert path.read_text() == text
    assert systemd.reloads == 1


@pytest.mark.parametrize("lasting", [False, True])
async def test_a_property_that_systemd_could_not_write_down_is_taken_back(
    units: LocalFixer, systemd: Systemd, lasting: bool
) -> None:
    systemd.is_read_only = True
    with pytest.raises(FixFailed, match=r"systemd could not write .*50-TasksMax\.conf.*everything is as before"):
        await units.apply("f", SetUnitProperty("t.service", "TasksMax", "100", lasting, seen="20"), CALLER)
    assert await systemd.read_property("t.service", "TasksMax") == 20


async def test_a_drop_in_that_wins_is_named_and_nothing_lasting_is_promised(units: LocalFixer, systemd: Systemd) -> None:
    override = systemd.tree / "etc/systemd/system/t.service.d/override.conf"
    override.parent.mkdir()
    override.write_text("[Service]\nTasksMax=30\n")
    with pytest.raises(FixRefused, match=r"override\.conf sets it and wins"):
        await units.apply("f", SetUnitProperty("t.service", "TasksMax", "100", True, seen="30"), CALLER)
    fix = SetUnitProperty("t.service", "TasksMax", "100", seen="30")
    preview = await units.preview(fix)
    assert preview.notes == (f"holds until systemd reads its files again: then {override} wins",)
    assert preview.files == (str(systemd.tree / "run/systemd/system.control/t.service.d/50-TasksMax.conf"),)
    await units.apply("f", fix, CALLER)
    await systemd.reload()  # somebody's: the override wins, and the drop-in that systemd wrote still lies there
    assert await systemd.read_property("t.service", "TasksMax") == 30
    assert (await units.undo("f", "", CALLER)).state is RecordState.UNDONE
    assert systemd.drop_ins() == [override]


async def test_what_somebody_else_has_set_since_is_left_alone(units: LocalFixer, systemd: Systemd) -> None:
    await units.apply("f", SetUnitProperty("t.service", "TasksMax", "100", seen="20"), CALLER)
    await systemd.set_property("t.service", "TasksMax", "t", 77, runtime=True)
    with pytest.raises(FixStale, match="77 now, not 100"):
        await units.undo("f", "", CALLER)
    assert await systemd.read_property("t.service", "TasksMax") == 77


async def test_limits_are_not_lowered_and_a_missing_unit_is_named(units: LocalFixer) -> None:
    with pytest.raises(FixRefused, match="does not lower"):
        await units.apply("f", SetUnitProperty("t.service", "TasksMax", "10"), CALLER)
    with pytest.raises(FixRefused, match=r"nothing\.service is not a unit"):
        await units.apply("f", SetUnitProperty("nothing.service", "TasksMax", "10"), CALLER)


async def test_a_setting_is_a_drop_in_of_ours_that_comes_and_goes(units: LocalFixer, systemd: Systemd) -> None:
    fix = SetUnitSetting("t.service", "LimitNOFILE", "65536", seen="512")
    preview = await units.preview(fix)
    assert (preview.old, preview.new, preview.obstacle) == ("512", "65536", "")
    assert preview.diff.endswith("+[Service]\n+LimitNOFILE=65536\n")
    await units.apply("f", fix, CALLER)
    assert [path.name for path in systemd.drop_ins()] == ["zz-triaged-LimitNOFILE.conf"]
    await units.undo("f", "", CALLER)
    assert systemd.drop_ins() == []
    assert not (systemd.tree / "etc/systemd/system/t.service.d").exists()


async def test_a_setting_that_another_drop_in_beats_is_taken_back_and_says_by_which(units: LocalFixer, systemd: Systemd) -> None:
    rival = systemd.tree / "etc/systemd/system/t.service.d/zzz.conf"
    rival.parent.mkdir()
    rival.parent.chmod(0o755)
    rival.write_text("[Service]\nLimitNOFILE=600\n")
    with pytest.raises(FixFailed, match=r"is still 600: .*zzz\.conf sets it; everything is as before"):
        await units.apply("f", SetUnitSetting("t.service", "LimitNOFILE", "65536", seen="600"), CALLER)
    assert systemd.drop_ins() == [rival]


@pytest.mark.parametrize("unit", [
    "", "x", "../x.service", "a/b.service", "x.service\n", "x.timer", "x y.service", "x" * 300 + ".service",
])  # fmt: skip
def test_what_is_no_unit_with_limits_is_refused(unit: str) -> None:
    with pytest.raises(FixRefused):
        check_unit(unit)


@pytest.mark.parametrize("fix", [
    SetUnitProperty("t.service", "ExecStart", "/bin/sh"), SetUnitProperty("t.service", "TasksMax", "0"),
    SetUnitProperty("t.service", "TasksMax", "-1"), SetUnitProperty("t.service", "TasksMax", "10\nExecStart=x"),
    SetUnitProperty("t.service", "MemoryMax", "1"), SetUnitProperty("t.service", "MemoryMax", ""),
    SetUnitProperty("t.service", "CPUQuota", "x%"), SetUnitProperty("../t.service", "TasksMax", "10"),
    SetUnitSetting("t.service", "ExecStart", "/bin/sh"), SetUnitSetting("t.service", "LimitNOFILE", "1\nExecStart=x"),
    SetUnitSetting("t.scope", "LimitNOFILE", "10"), SetUnitSetting("t.service", "Slice", "../x.slice"),
    SetUnitSetting("t.service", "LimitNOFILE", "-1"),
])  # fmt: skip
async def test_what_is_not_on_the_closed_list_is_refused(units: LocalFixer, systemd: Systemd, fix: Fix) -> None:
    with pytest.raises(FixRefused):
        await units.apply("f", fix, CALLER)
    assert systemd.drop_ins() == []


async def test_memory_that_the_kernel_rounds_to_pages_is_still_what_the_finding_saw(units: LocalFixer, systemd: Systemd) -> None:
    systemd.own["MemoryMax"] = 100_000_001
    fix = SetUnitProperty("t.service", "MemoryMax", "200000000", seen="99999744")
    assert (await units.apply("f", fix, CALLER)).new == "200000000"
