# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from triaged.errors import Gone, InterfaceMissing, Malformed
from triaged.kernel.cgroup_layout import LayoutKind, parse_hierarchies, read_layout
from triaged.kernel.paths import KernelPaths

UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
HYBRID = (
    "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    "33 31 0:30 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,name=systemd\n"
    "34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/pids rw shared:12 - cgroup cgroup rw,pids\n"
    "36 31 0:33 / /sys/fs/cgroup/memory rw shared:13 - cgroup cgroup rw,memory\n"
)


def machine(root: Path, mountinfo: str, controllers: str | None = None) -> KernelPaths:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    (root / "sys/fs/cgroup/unified").mkdir(parents=True)
    if controllers is not None:
        for directory in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
            (root / directory / "cgroup.controllers").write_text(controllers)
    return KernelPaths.below(str(root))


def test_version_2_holds_the_controllers_that_its_root_lists(tmp_path: Path) -> None:
    layout = read_layout(machine(tmp_path, UNIFIED, "cpuset cpu io memory pids\n"))
    assert layout.kind is LayoutKind.V2
    pids = layout.holding("pids")
    assert pids is not None
    assert pids.is_v2
    assert pids.mount == f"{tmp_path}/sys/fs/cgroup"
    assert "memory_recursiveprot" in pids.options
    assert layout.holding("hugetlb") is None


def test_on_the_hybrid_layout_each_controller_has_its_own_tree(tmp_path: Path) -> None:
    layout = read_layout(machine(tmp_path, HYBRID, "hugetlb\n"))
    assert layout.kind is LayoutKind.HYBRID
    names = {controller: getattr(layout.holding(controller), "name", None) for controller in ("pids", "memory", "cpu", "cpuacct")}
    assert names == {"pids": "pids", "memory": "memory", "cpu": "cpu", "cpuacct": "cpu"}
    assert layout.unified is not None
    assert layout.unified.mount == f"{tmp_path}/sys/fs/cgroup/unified"


def test_without_version_2_the_layout_is_version_1(tmp_path: Path) -> None:
    only_v1 = "".join(line for line in HYBRID.splitlines(keepends=True) if "cgroup2" not in line)
    layout = read_layout(machine(tmp_path, only_v1))
    assert layout.kind is LayoutKind.V1
    assert layout.unified is None


def test_no_cgroup_file_system_is_an_interface_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InterfaceMissing, match="no cgroup file system"):
        read_layout(machine(tmp_path, "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"))


def test_of_two_mounts_the_one_that_shows_the_whole_tree_is_taken() -> None:
    part = "40 23 0:26 /docker/abc /mnt/part rw - cgroup2 cgroup2 rw\n"
    (found,) = parse_hierarchies(part + UNIFIED)
    assert (found.mount, found.root) == ("/sys/fs/cgroup", "/")


def test_a_mount_of_a_part_of_the_tree_maps_paths_and_refuses_others() -> None:
    (found,) = parse_hierarchies("40 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n")
    assert found.directory("/docker/abc") == "/sys/fs/cgroup"
    assert found.directory("/docker/abc/leaf") == "/sys/fs/cgroup/leaf"
    for elsewhere in ("/docker/abcd", "/", "/docker"):
        with pytest.raises(Gone):
            found.directory(elsewhere)


def test_octal_escapes_in_a_mount_point_are_undone() -> None:
    (found,) = parse_hierarchies("40 23 0:26 / /mnt/my\\040cgroups rw - cgroup2 cgroup2 rw\n")
    assert found.mount == "/mnt/my cgroups"


@pytest.mark.parametrize("line", ["40 23 0:26 / /sys/fs/cgroup rw", "40 23 - cgroup2 cgroup2 rw", "40 23 0:26 / /x rw - cgroup2 c"])
def test_a_mountinfo_line_cut_short_names_the_line(line: str) -> None:
    with pytest.raises(Malformed, match="40 23"):
        parse_hierarchies(line + "\n")
