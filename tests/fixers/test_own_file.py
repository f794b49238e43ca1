# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from triaged.errors import FixFailed, FixRefused
from triaged.fixers.own_file import OwnFile


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "d"
    path.mkdir(mode=0o755)
    return path


def test_what_was_written_is_read_back_and_removed_again(directory: Path) -> None:
    own = OwnFile(str(directory), "a.conf")
    assert own.read() is None
    own.write("x = 1\n")
    assert own.read() == "x = 1\n"
    assert (directory / "a.conf").stat().st_mode & 0o7777 == 0o644
    own.write(None)
    assert list(directory.iterdir()) == []


def test_a_symlink_where_the_file_should_be_is_refused_and_its_target_left_alone(directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "shadow"
    target.write_text("secret")
    (directory / "a.conf").symlink_to(target)
    own = OwnFile(str(directory), "a.conf")
    with pytest.raises(FixRefused, match="symbolic link"):
        own.read()
    with pytest.raises(FixRefused, match="symbolic link"):
        own.write("x = 1\n")
    with pytest.raises(FixRefused, match="symbolic link"):
        own.write(None)
    assert target.read_text() == "secret"
    assert (directory / "a.conf").is_symlink()


def test_a_symlink_where_the_directory_should_be_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(FixRefused, match="symbolic link"):
        OwnFile(str(tmp_path / "link"), "a.conf").write("x = 1\n")
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_directory_that_others_may_change_is_refused(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    with pytest.raises(FixRefused, match="others"):
        OwnFile(str(directory), "a.conf").write("x = 1\n")
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_directory_or_file_of_another_user_is_refused(directory: Path) -> None:
    own = OwnFile(str(directory), "a.conf")
    own.write("x = 1\n")
    os.chown(directory / "a.conf", 65534, 65534)
    with pytest.raises(FixRefused, match="belongs to user 65534"):
        own.write("x = 2\n")
    os.chown(directory, 65534, 65534)
    with pytest.raises(FixRefused, match="belongs to user 65534"):
        own.read()


def test_a_file_with_a_second_name_is_refused(directory: Path, tmp_path: Path) -> None:
    own = OwnFile(str(directory), "a.conf")
    own.write("x = 1\n")
    os.link(directory / "a.conf", tmp_path / "second")
    with pytest.raises(FixRefused, match="one name"):
        own.write("x = 2\n")
    assert (tmp_path / "second").read_text() == "x = 1\n"


def test_a_fifo_where_the_file_should_be_is_refused_without_waiting(directory: Path) -> None:
    os.mkfifo(directory / "a.conf")
    with pytest.raises(FixRefused, match="plain"):
        OwnFile(str(directory), "a.conf").read()


def test_a_left_over_of_a_killed_process_is_overwritten_and_tidied(directory: Path) -> None:
    (directory / ".a.conf.new").write_text("half")
    own = OwnFile(str(directory), "a.conf")
    own.write("x = 1\n")
    assert [path.name for path in directory.iterdir()] == ["a.conf"]
    (directory / ".a.conf.new").write_text("half")
    own.tidy()
    assert [path.name for path in directory.iterdir()] == ["a.conf"]


def test_a_directory_of_our_own_comes_and_goes_with_the_file(directory: Path) -> None:
    own = OwnFile(str(directory / "x.service.d"), "a.conf", makes_directory=True)
    own.write("x = 1\n")
    assert (directory / "x.service.d/a.conf").read_text() == "x = 1\n"
    own.write(None)
    assert list(directory.iterdir()) == []


def test_a_directory_in_which_others_keep_files_stays(directory: Path) -> None:
    own = OwnFile(str(directory / "x.service.d"), "a.conf", makes_directory=True)
    own.write("x = 1\n")
    (directory / "x.service.d/other.conf").write_text("")
    own.write(None)
    assert (directory / "x.service.d/other.conf").exists()


def test_without_its_directory_nothing_is_read_and_writing_fails(tmp_path: Path) -> None:
    own = OwnFile(str(tmp_path / "missing"), "a.conf")
    assert own.read() is None
    own.write(None)
    with pytest.raises(FixFailed, match="no such file"):
        own.write("x = 1\n")


def test_the_diff_of_a_new_file_comes_from_dev_null(directory: Path) -> None:
    own = OwnFile(str(directory), "a.conf")
    assert own.diff("x = 1\n") == f"--- /dev/null\n+++ {directory}/a.conf\n@@ -0,0 +1 @@\n+x = 1\n"
    own.write("x = 1\n")
    assert own.diff("x = 2\n").splitlines()[-2:] == ["-x = 1", "+x = 2"]
