# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import select
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from triaged.errors import Exhausted, Gone, KernelError, Malformed
from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.inotify import IN_CREATE, IN_DELETE, IN_ISDIR, IN_MODIFY, Inotify, InotifyEvent, parse_events, read_watch_limit
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import Unknown

MASK = IN_MODIFY | IN_CREATE | IN_DELETE


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    instance = Inotify()
    yield instance
    instance.close()


def event(watch: int, mask: int, name: bytes = b"", length: int | None = None) -> bytes:
    length = len(name) if length is None else length
    return struct.pack("iIII", watch, mask, 0, length) + name.ljust(length, b"\0")


def test_events_are_read_with_their_names() -> None:
    data = event(1, IN_MODIFY) + event(2, IN_CREATE | IN_ISDIR, b"a\xff b", 16)
    assert parse_events(data) == [InotifyEvent(1, IN_MODIFY, ""), InotifyEvent(2, IN_CREATE | IN_ISDIR, "a\udcff b")]


@pytest.mark.parametrize("cut", [1, 15, 17, 31])
def test_an_event_cut_short_is_malformed(cut: int) -> None:
    with pytest.raises(Malformed):
        parse_events(event(2, IN_CREATE, b"name", 16)[:cut])


def test_changes_of_a_directory_are_told_and_nothing_after_unwatch(inotify: Inotify, tmp_path: Path) -> None:
    watch = inotify.watch(str(tmp_path), MASK)
    assert inotify.read() == []
    (tmp_path / "child").mkdir()
    assert inotify.read() == [InotifyEvent(watch, IN_CREATE | IN_ISDIR, "child")]
    inotify.unwatch(watch)
    inotify.read()
    (tmp_path / "child").rmdir()
    assert inotify.read() == []


def test_watching_what_is_not_there_says_that_it_is_gone(inotify: Inotify, tmp_path: Path) -> None:
    with pytest.raises(Gone):
        inotify.watch(str(tmp_path / "none"), MASK)


@pytest.fixture
def own_cgroup() -> Iterator[Path]:
    """A cgroup of the test's own in version 2's hierarchy."""
    try:
        unified = read_layout(KernelPaths()).unified
    except KernelError as error:
        pytest.skip(f"no cgroups here: {error}")
    if unified is None:
        pytest.skip("version 2 is not mounted here")
    directory = Path(unified.mount) / f"triaged-test-{os.getpid()}-inotify"
    try:
        directory.mkdir()
    except PermissionError:
        pytest.skip("making cgroups needs root")
    yield directory
    directory.rmdir()


def attach_and_leave(directory: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    (directory / "cgroup.procs").write_text(str(child.pid))
    child.kill()
    child.wait()


def names(inotify: Inotify, seconds: float = 0.3) -> set[str]:
    found: set[str] = set()
    while select.select([inotify], [], [], seconds)[0]:
        found |= {event.name for event in inotify.read()}
    return found


def test_a_directory_watch_is_silent_about_a_kernel_file_that_nobody_looked_up(inotify: Inotify, own_cgroup: Path) -> None:
    inotify.watch(str(own_cgroup), MASK)
    attach_and_leave(own_cgroup)
    assert "cgroup.events" not in names(inotify)
    os.stat(own_cgroup / "cgroup.events")
    attach_and_leave(own_cgroup)
    assert "cgroup.events" in names(inotify)


def test_a_watch_on_the_file_itself_is_told(inotify: Inotify, own_cgroup: Path) -> None:
    inotify.watch(str(own_cgroup / "cgroup.events"), IN_MODIFY)
    attach_and_leave(own_cgroup)
    assert names(inotify) == {""}


def test_a_removed_cgroup_is_told_at_its_parent_only(inotify: Inotify, own_cgroup: Path) -> None:
    parent, child = inotify.watch(str(own_cgroup), MASK), own_cgroup / "child"
    child.mkdir()
    inotify.watch(str(child), MASK)
    child.rmdir()
    assert inotify.read() == [
        InotifyEvent(parent, IN_CREATE | IN_ISDIR, "child"), InotifyEvent(parent, IN_DELETE | IN_ISDIR, "child")
    ]


def test_no_more_watches_are_taken_than_allowed_and_one_that_ended_makes_room(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    instance = Inotify(most=2)
    try:
        first = instance.watch(str(tmp_path / "a"), MASK)
        instance.watch(str(tmp_path / "b"), MASK)
        with pytest.raises(Exhausted, match="the 2 watches"):
            instance.watch(str(tmp_path / "c"), MASK)
        assert len(instance) == 2
        instance.unwatch(first)
        instance.watch(str(tmp_path / "c"), MASK)
    finally:
        instance.close()


def test_the_limit_of_the_user_is_read(tmp_path: Path) -> None:
    assert read_watch_limit(KernelPaths()) == int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    assert isinstance(read_watch_limit(KernelPaths.below(str(tmp_path))), Unknown)
