# SPDX-License-Identifier: Apache-2.0
"""Calls added to the SystemCallFilter= of a unit: drop-ins in a fixture tree, the probe's inner half on this kernel.

The real systemd is asked in virtual machines.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from triaged.errors import FixFailed, FixRefused, FixStale
from triaged.fixers import probes
from triaged.fixers.fixer import Caller, Probe, RecordState
from triaged.fixers.local import LocalFixer
from triaged.fixers.records import Records
from triaged.fixers.units import UnitSettingFixer
from triaged.fixers.verification import Managed, ProbeResult, Refused
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_load import Command, LoadedFilter
from triaged.model.fix import SetUnitSetting
from triaged.model.unit_filter import NEVER_ADDED, added_calls
from triaged.seccomp.action import ALLOW, EPERM, KILL_PROCESS, Action
from triaged.seccomp.compiler import compiled
from triaged.seccomp.policy import ArchPolicy, Branch, Policy
from triaged.seccomp.syscalls import native_arch, number_of
from triaged.seccomp.systemd_filter import parse_filter

CALLER = Caller(0)
UNIT = "ci.service"


class Systemd:
    """One service with a SystemCallFilter= in its unit file, and the drop-ins of ours that lie in the tree."""

    def __init__(self, tree: Path, lines: str) -> None:
        self.tree = tree
        self.lines = lines
        self.transient = False

    def drop_ins(self) -> list[Path]:
        return sorted(self.tree.glob(f"etc/systemd/system/{UNIT}.d/*.conf"))

    async def read_property(self, unit: str, name: str) -> str | int | bool | list[str]:
        known: dict[str, str | int | bool | list[str]] = {
            "LoadState": "loaded" if unit == UNIT else "not-found", "Transient": self.transient,
            "DropInPaths": [str(path) for path in self.drop_ins()],
        }
        return known[name]

    async def read_filter(self, unit: str) -> tuple[bool, tuple[str, ...]]:
        text = "\n".join([self.lines, *(path.read_text() for path in self.drop_ins())])
        if "SystemCallFilter=" not in text:
            return False, ()
        found = parse_filter(text, unit, {"@default": ("exit", "read"), "@io": ("read", "write")})
        return found.is_allow_list, tuple(found.calls)

    async def set_property(self, unit: str, name: str, signature: str, value: int | str | bool, *, runtime: bool) -> None:
        raise AssertionError("a filter is no resource property")

    async def reload(self) -> None:
        return None


def fixer_for(tree: Path, lines: str) -> tuple[Systemd, LocalFixer]:
    (tree / "etc/systemd/system").mkdir(parents=True)
    systemd, paths = Systemd(tree, lines), KernelPaths.below(str(tree))

    async def probe(plan: Probe) -> ProbeResult:
        _, entries = await systemd.read_filter(UNIT)
        refused = [call for call in plan.arguments["calls"] if (call in entries) is ("=~" in lines)]
        return Refused(f"{refused[0]}: operation not permitted") if refused else Managed("the filters let it through")

    fixer = UnitSettingFixer(systemd, paths)
    return systemd, LocalFixer([fixer], Records(str(tree / "state")), paths, settle_s=0, probe=probe)


def fix(value: str, unit: str = UNIT) -> SetUnitSetting:
    return SetUnitSetting(unit, "SystemCallFilter", value)


@pytest.mark.parametrize("lines", ["SystemCallFilter=@io", "SystemCallFilter=~unshare memfd_create\nSystemCallErrorNumber=EPERM"])
async def test_a_call_is_added_to_a_list_of_either_kind_and_taken_away_again(tree: Path, lines: str) -> None:
    systemd, local = fixer_for(tree, lines)
    preview = await local.preview(fix("memfd_create"))
    assert (preview.old, preview.new, preview.obstacle) == ("memfd_create refused", "memfd_create allowed", "")
    assert preview.diff.endswith("+[Service]\n+SystemCallFilter=memfd_create\n")
    assert preview.title == f"allows memfd_create in SystemCallFilter= of {UNIT} by a drop-in, from its next start on"
    assert "in a transient unit with the filters of ci.service" in preview.verification
    outcome = await local.apply("f", fix("memfd_create"), CALLER)
    assert outcome.state is RecordState.VERIFIED
    assert outcome.verification == "verified: the filters let it through (before: memfd_create: operation not permitted)"
    assert [path.name for path in systemd.drop_ins()] == ["zz-triaged-SystemCallFilter-memfd_create.conf"]
    assert (await local.undo("f", "", CALLER)).message == "memfd_create refused is back"
    assert systemd.drop_ins() == []


async def test_two_calls_of_one_unit_come_and_go_one_without_the_other(tree: Path) -> None:
    systemd, local = fixer_for(tree, "SystemCallFilter=@io")
    await local.apply("f1", fix("memfd_create"), CALLER)
    await local.apply("f2", fix("unshare clone3"), CALLER)
    assert len(systemd.drop_ins()) == 2
    await local.undo("f1", "", CALLER)
    assert [path.name for path in systemd.drop_ins()] == ["zz-triaged-SystemCallFilter-clone3-unshare.conf"]
    await local.undo("f2", "", CALLER)
    assert systemd.drop_ins() == []


async def test_a_unit_without_a_filter_does_not_get_one(tree: Path) -> None:
    # A first line would be the list of all that is allowed.
    systemd, local = fixer_for(tree, "RestrictNamespaces=yes")
    assert "sets no SystemCallFilter=" in (await local.preview(fix("unshare"))).obstacle
    with pytest.raises(FixRefused, match="refused by another filter"):
        await local.apply("f", fix("unshare"), CALLER)
    assert systemd.drop_ins() == []


async def test_a_call_that_the_list_lets_through_is_refused_by_something_else(tree: Path) -> None:
    systemd, local = fixer_for(tree, "SystemCallFilter=~memfd_create")
    with pytest.raises(FixRefused, match="lets unshare through already") as caught:
        await local.apply("f", fix("unshare"), CALLER)
    assert "RestrictNamespaces=" in caught.value.remedy
    assert systemd.drop_ins() == []


async def test_a_drop_in_that_counts_for_nothing_is_taken_back(tree: Path) -> None:
    systemd, local = fixer_for(tree, "SystemCallFilter=@io")
    rival = tree / f"etc/systemd/system/{UNIT}.d/zzz.conf"
    rival.parent.mkdir()
    rival.parent.chmod(0o755)
    rival.write_text("[Service]\nSystemCallFilter=~memfd_create\n")
    with pytest.raises(FixFailed, match=r"is still memfd_create refused: .*zzz\.conf sets it; everything is as before"):
        await local.apply("f", fix("memfd_create"), CALLER)
    assert systemd.drop_ins() == [rival]


async def test_what_was_edited_by_hand_is_left_alone(tree: Path) -> None:
    systemd, local = fixer_for(tree, "SystemCallFilter=@io")
    await local.apply("f", fix("memfd_create"), CALLER)
    (path,) = systemd.drop_ins()
    path.write_text("[Service]\nSystemCallFilter=unshare\n")
    with pytest.raises(FixStale, match="not undone"):
        await local.undo("f", "", CALLER)
    assert path.read_text() == "[Service]\nSystemCallFilter=unshare\n"


@pytest.mark.parametrize("value", [
    "", "~unshare", "@mount", "*", "a\nExecStart=x", "unshare  clone3", "Unshare", "unshare:EPERM", "x" * 65,
    " ".join(["read"] * 33),
    "reboot", "memfd_create init_module", "../x",
])  # fmt: skip
async def test_what_is_not_on_the_closed_list_is_refused(tree: Path, value: str) -> None:
    systemd, local = fixer_for(tree, "SystemCallFilter=@io")
    with pytest.raises(FixRefused):
        await local.apply("f", fix(value), CALLER)
    assert systemd.drop_ins() == []


async def test_a_transient_unit_is_left_to_whoever_starts_it(tree: Path) -> None:
    systemd, local = fixer_for(tree, "SystemCallFilter=@io")
    systemd.transient = True
    with pytest.raises(FixRefused, match="is transient"):
        await local.apply("f", fix("unshare"), CALLER)


def test_the_calls_that_are_never_added_are_calls() -> None:
    known = {name for name in NEVER_ADDED if number_of(native_arch(), name) is not None}
    assert {"reboot", "init_module", "kexec_load", "swapon", "settimeofday"} <= known
    assert added_calls("unshare clone3 clone3") == ("clone3", "unshare")


def tried(calls: list[str], action: Action | None) -> tuple[int, list[str]]:
    """The probe's inner half under a filter that answers memfd_create so: its wait status and what it printed."""
    arch = native_arch()
    filters = []
    if action is not None:
        branches = {number_of(arch, "memfd_create") or 0: (Branch(action),)}
        filters = [LoadedFilter(compiled(Policy((ArchPolicy(arch, ALLOW, branches),), ALLOW)).packed())]
    numbers = {call: number_of(arch, call) for call in calls}
    argv = [sys.executable, "-I", "-S", probes.__file__, "system-calls-here", json.dumps({"numbers": numbers})]
    reading, writing = os.pipe()
    saved = os.dup(1)
    os.dup2(writing, 1)
    try:
        with Command(argv, filters, number_of(arch, "seccomp") or 0) as command:
            command.start()
            status = command.wait()
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writing)
    with os.fdopen(reading) as file:
        return status, file.read().splitlines()


def test_the_probe_makes_no_call_and_tells_who_refused(capfd: pytest.CaptureFixture[str]) -> None:
    everything = ["memfd_create", "futex", "write", "exit_group", "unshare"]
    status, lines = tried(everything, None)
    assert (status, json.loads(lines[-1])["done"]) == (0, True)
    assert lines[:2] == ["ready", "memfd_create"]
    status, lines = tried(everything, EPERM)
    assert json.loads(lines[-1]) == {"done": False, "text": "memfd_create: operation not permitted"}
    status, lines = tried(["unshare", "memfd_create"], KILL_PROCESS)
    assert (os.WTERMSIG(status), lines[-1]) == (signal.SIGSYS, "memfd_create")


def test_a_probe_without_systemd_says_that_it_could_not() -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs here")
    argv = [sys.executable, "-I", "-S", probes.__file__, "system-call", json.dumps({"unit": UNIT, "calls": ["memfd_create"]})]
    answer = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert "cannot" in answer
