# SPDX-License-Identifier: Apache-2.0
"""The Go package of a directory."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from triaged.errors import Gone
from triaged.kernel.go_module import parse_module, read_package_in
from triaged.kernel.paths import KernelPaths


def at(tmp_path: Path, directory: Path) -> KernelPaths:
    directory.mkdir(parents=True, exist_ok=True)
    process = tmp_path / "root/proc/9"
    process.mkdir(parents=True)
    (process / "cwd").symlink_to(directory)
    return KernelPaths.below(str(tmp_path / "root"))


def test_the_package_is_the_module_and_the_way_down_from_it(tmp_path: Path) -> None:
    paths = at(tmp_path, tmp_path / "app/internal/worker")
    (tmp_path / "app/go.mod").write_text("// mine\nmodule example.org/app // here\n\ngo 1.22\n")
    assert read_package_in(paths, 9) == "example.org/app/internal/worker"


def test_the_module_own_directory_is_its_package(tmp_path: Path) -> None:
    paths = at(tmp_path, tmp_path / "app")
    (tmp_path / "app/go.mod").write_text('module (\n\t"example.org/app"\n)\n')
    assert read_package_in(paths, 9) == "example.org/app"


def test_without_a_go_mod_above_nothing_is_claimed() -> None:
    if any(os.path.exists(os.path.join(above, "go.mod")) for above in ("/", "/proc")):
        pytest.skip("this machine has a go.mod in its root directory")
    child = os.posix_spawn("/bin/sh", ["sh", "-c", "cd / && kill -STOP $$"], os.environ)
    try:
        os.waitpid(child, os.WUNTRACED)
        assert read_package_in(KernelPaths(), child) == ""
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_link_or_a_fifo_called_go_mod_is_passed_over(tmp_path: Path) -> None:
    paths = at(tmp_path, tmp_path / "app/a/b")
    (tmp_path / "secret").write_text("module example.org/secret\n")
    (tmp_path / "app/a/b/go.mod").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "app/a/go.mod")
    (tmp_path / "app/go.mod").write_text("module example.org/app\n")
    assert read_package_in(paths, 9) == "example.org/app/a/b"


def test_a_process_that_ended_is_gone(tmp_path: Path) -> None:
    with pytest.raises(Gone):
        read_package_in(KernelPaths.below(str(tmp_path)), 9)


@pytest.mark.parametrize(("text", "module"), [
    ("", ""), ("go 1.22\n", ""), ("module\n", ""), ("modulex y\n", ""), ("module `a/b`\n", "a/b"), ("module (\n)\n", ""),
])
def test_only_a_module_line_declares_one(text: str, module: str) -> None:
    assert parse_module(text) == module
