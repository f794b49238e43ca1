# SPDX-License-Identifier: Apache-2.0
"""On which mount a path lies."""
from __future__ import annotations

from surroundings import mount, someone


def test_the_innermost_mount_holds_a_path() -> None:
    who = someone(mounts=(mount("/"), mount("/dev", kind="devtmpfs"), mount("/dev/shm", kind="tmpfs")))
    assert [who.mount_of(path).kind for path in ("/dev/shm/x", "/dev/null", "/device", "/")] == [  # type: ignore[union-attr]
        "tmpfs", "devtmpfs", "ext4", "ext4",
    ]  # fmt: skip


def test_a_later_mount_over_a_directory_hides_what_was_mounted_in_it() -> None:
    mounts = (
        mount("/", identifier=2, parent=1), mount("/dev", kind="devtmpfs", identifier=3, parent=2),
        mount("/dev/shm", kind="tmpfs", identifier=4, parent=3), mount("/dev", kind="ramfs", identifier=5, parent=3),
    )  # fmt: skip
    for ordered in (mounts, mounts[::-1]):  # moved mounts stand in any order
        found = [someone(mounts=ordered).mount_of(path) for path in ("/dev/shm/x", "/dev/null", "/etc/x")]
        assert [each.kind for each in found if each is not None] == ["ramfs", "ramfs", "ext4"]


def test_a_mount_over_the_root_of_another_hides_it() -> None:
    mounts = (mount("/", kind="rootfs", identifier=1, parent=1), mount("/", identifier=2, parent=1))
    for ordered in (mounts, mounts[::-1]):
        found = someone(mounts=ordered).mount_of("/x")
        assert found is not None
        assert found.kind == "ext4"


def test_without_mounts_nothing_is_known() -> None:
    assert someone().mount_of("/x") is None
