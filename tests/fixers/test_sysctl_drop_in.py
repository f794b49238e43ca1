# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triaged.errors import FixRefused
from triaged.fixers.part import Original
from triaged.fixers.sysctl_drop_in import SysctlDropIn, parse_own_value, with_own_value
from triaged.kernel.paths import KernelPaths


def drop_in(tree: Path, parameter: str = "kernel.pid_max", value: str = "4194304") -> SysctlDropIn:
    return SysctlDropIn(KernelPaths.below(str(tree)), parameter, value)


async def test_the_line_comes_and_the_file_goes_with_the_last_line(tree: Path) -> None:
    first, second = drop_in(tree), drop_in(tree, "vm.max_map_count", "262144")
    await first.write()
    await second.write()
    assert (await first.read(), await second.read()) == ("4194304", "262144")
    await first.restore(Original(None))
    assert (await first.read(), await second.read()) == (None, "262144")
    await second.restore(Original(None))
    assert list((tree / "etc/sysctl.d").iterdir()) == []


async def test_what_a_person_added_to_our_file_stays(tree: Path) -> None:
    ours = tree / "etc/sysctl.d/zz-triaged.conf"
    await drop_in(tree).write()
    ours.write_text(ours.read_text() + "# mine\nkernel.dmesg_restrict = 1\n")
    await drop_in(tree).restore(Original(None))
    assert ours.read_text().endswith("# mine\nkernel.dmesg_restrict = 1\n")


async def test_a_symlink_in_place_of_the_drop_in_is_refused(tree: Path) -> None:
    target = tree / "etc/passwd"
    target.write_text("root\n")
    (tree / "etc/sysctl.d/zz-triaged.conf").symlink_to(target)
    with pytest.raises(FixRefused, match="symbolic link"):
        await drop_in(tree).write()
    assert target.read_text() == "root\n"


async def test_the_diff_shows_the_line(tree: Path) -> None:
    diff = await drop_in(tree).diff()
    assert diff.startswith(f"--- /dev/null\n+++ {tree}/etc/sysctl.d/zz-triaged.conf\n")
    assert "+kernel.pid_max = 4194304\n" in diff


def test_a_file_that_sorts_behind_ours_is_named(tree: Path) -> None:
    assert drop_in(tree).beaten_by() is None
    (tree / "etc/sysctl.d/zzz-last.conf").write_text("# x\nkernel.pid_max = 1000\n")
    rival = drop_in(tree).beaten_by()
    assert rival is not None
    assert (Path(rival.path).name, rival.line, rival.value) == ("zzz-last.conf", 2, "1000")


def test_files_that_sort_before_ours_and_globs_do_not_beat_it(tree: Path) -> None:
    (tree / "etc/sysctl.d/99-sysctl.conf").write_text("kernel.pid_max = 1000\n")
    (tree / "etc/sysctl.d/zzz-glob.conf").write_text("kernel.pid_* = 1000\n")
    assert drop_in(tree).beaten_by() is None


def test_sysctl_conf_is_read_last_by_procps(tree: Path) -> None:
    assert not drop_in(tree).also_set_by_procps()
    (tree / "etc/sysctl.conf").write_text("kernel/pid_max=1000\n")
    assert drop_in(tree).also_set_by_procps()


KEYS = st.sampled_from(["kernel.pid_max", "vm.max_map_count", "net.core.somaxconn"])
VALUES = st.integers(0, 1 << 40).map(str)


@given(st.lists(st.tuples(KEYS, st.one_of(st.none(), VALUES)), max_size=12))
def test_whatever_is_set_and_taken_out_the_text_says_what_a_dictionary_would(steps: list[tuple[str, str | None]]) -> None:
    text: str | None = None
    wanted: dict[str, str] = {}
    for key, value in steps:
        text = with_own_value(text, key, value)
        if value is None:
            wanted.pop(key, None)
        else:
            wanted[key] = value
        assert (text is None) == (not wanted)
        for name in ("kernel.pid_max", "vm.max_map_count", "net.core.somaxconn"):
            assert parse_own_value(text or "", name) == wanted.get(name)
