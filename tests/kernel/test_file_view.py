# SPDX-License-Identifier: Apache-2.0
"""Files below another process's root: links, what is missing, what is left of space, and a process that is gone."""
from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from triaged.errors import Gone, KernelError
from triaged.kernel.file_view import read_file_facts, read_open_file, read_open_paths, read_space
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import Unknown
from triaged.model.surroundings import Space


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root directory of a made-up process 100."""
    directory = tmp_path / "proc" / "100" / "root"
    (directory / "data" / "deep").mkdir(parents=True)
    (directory / "data" / "file").write_text("#!/bin/sh\n")
    return directory


@pytest.fixture
def paths(tmp_path: Path) -> KernelPaths:
    return KernelPaths.below(str(tmp_path))


def test_a_file_with_the_directories_that_lead_to_it(root: Path, paths: KernelPaths) -> None:
    (root / "data" / "file").chmod(0o640)
    found = read_file_facts(paths, 100, "/data/./deep/../file")
    assert found.path == "/data/file"
    assert found.node is not None
    assert found.node.mode & 0o7777 == 0o640
    assert [each.path for each in found.way] == ["/", "/data"]
    assert found.head == b"#!/bin/sh\n"
    assert isinstance(found.space, Space)


def test_what_is_missing_ends_in_the_deepest_directory(root: Path, paths: KernelPaths) -> None:
    found = read_file_facts(paths, 100, "/data/no/such/file")
    assert (found.node, found.path) == (None, "/data/no/such/file")
    assert [each.path for each in found.way] == ["/", "/data"]
    assert not found.is_reached
    assert read_file_facts(paths, 100, "/data/nothing").is_reached


def test_links_are_followed_below_the_root(root: Path, paths: KernelPaths) -> None:
    (root / "absolute").symlink_to("/data/file")
    (root / "data" / "relative").symlink_to("../absolute")
    found = read_file_facts(paths, 100, "/data/relative")
    assert found.path == "/data/file"
    assert [(link.path, at.path) for link, at in found.links] == [("/data/relative", "/data"), ("/absolute", "/")]
    (root / "loop").symlink_to("loop")
    with pytest.raises(KernelError, match="too many symbolic links"):
        read_file_facts(paths, 100, "/loop")


def test_a_link_that_leads_out_of_the_root_stays_in_it(root: Path, paths: KernelPaths) -> None:
    (root / "out").symlink_to("../../../../../../../../etc/passwd")
    assert read_file_facts(paths, 100, "/out").path == "/etc/passwd"
    assert read_file_facts(paths, 100, "/out").node is None


def test_a_file_where_a_directory_should_be(root: Path, paths: KernelPaths) -> None:
    found = read_file_facts(paths, 100, "/data/file/below/it")
    assert (found.path, found.node) == ("/data/file/below/it", None)
    assert [each.path for each in found.way] == ["/", "/data"]


def test_directories_and_the_root_itself(root: Path, paths: KernelPaths) -> None:
    found = read_file_facts(paths, 100, "/data/deep/..")
    assert (found.path, [each.path for each in found.way]) == ("/data", ["/"])
    found = read_file_facts(paths, 100, "/../..")
    assert (found.path, [each.path for each in found.way]) == ("/", ["/"])
    assert found.node is not None
    (root / "to").symlink_to("data/deep")
    assert read_file_facts(paths, 100, "/to/../file").path == "/data/file"


def test_a_process_that_is_gone_has_no_files(root: Path, paths: KernelPaths) -> None:
    with pytest.raises(Gone):
        read_file_facts(paths, 101, "/data/file")


def test_a_zombie_has_no_files() -> None:
    child = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(KernelError):
            read_file_facts(KernelPaths(), child.pid, "/etc/passwd")
    finally:
        child.wait()


def test_space_that_cannot_be_read_is_unknown() -> None:
    assert isinstance(read_space("/no/such/place"), Unknown)


def test_open_files_by_their_descriptors(tmp_path: Path) -> None:
    file = tmp_path / "open"
    with file.open("w") as open_file:
        assert read_open_file(KernelPaths(), os.getpid(), open_file.fileno()) == str(file)
        assert str(file) in set(read_open_paths(KernelPaths(), os.getpid()))
        file.unlink()
        assert read_open_file(KernelPaths(), os.getpid(), open_file.fileno()) == str(file)
    with pytest.raises(Gone):
        read_open_file(KernelPaths(), os.getpid(), 4000)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_another_mount_namespace_is_seen(tmp_path: Path, started: Callable[[list[str]], subprocess.Popen[str]]) -> None:
    script = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && echo x > {tmp_path}/inside && echo ready && exec sleep 60"
    child = started(["unshare", "--mount", "--propagation", "private", "sh", "-c", script])
    assert not (tmp_path / "inside").exists()
    found = read_file_facts(KernelPaths(), child.pid, f"{tmp_path}/inside")
    assert found.node is not None
    assert isinstance(found.space, Space)
    assert found.space.total_bytes == 1 << 20
