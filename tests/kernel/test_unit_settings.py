# SPDX-License-Identifier: Apache-2.0
"""Which unit file set a limit: fixture trees of unit files."""
from __future__ import annotations

from pathlib import Path

import pytest

from triaged.kernel.paths import KernelPaths
from triaged.kernel.unit_settings import read_limit_origin, with_origin
from triaged.model.cgroup import CgroupId, own_unit_of
from triaged.model.facts import CgroupLimit
from triaged.model.limit import UNLIMITED, Limit

CONTAINER = "0123456789abcdef" * 4


def limit(path: str, file: str = "pids.max", value: Limit = 40) -> CgroupLimit:
    return CgroupLimit(CgroupId(path, 5), f"/sys/fs/cgroup{path}/{file}", value, 1, own_unit_of(path))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def write(root: Path, name: str, text: str) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def origin(root: Path, of: CgroupLimit) -> str:
    return read_limit_origin(KernelPaths.below(str(root)), of)


def test_the_unit_file_is_named_with_its_line(root: Path) -> None:
    path = write(root, "usr/lib/systemd/system/ci.slice", "[Slice]\n# TasksMax=1\nTasksMax=40\n")
    assert origin(root, limit("/ci.slice")) == f"{path}:3, TasksMax=40"


def test_a_drop_in_counts_after_the_unit_file_and_the_last_name_wins(root: Path) -> None:
    write(root, "etc/systemd/system/ci.slice", "[Slice]\nTasksMax=10\n")
    write(root, "etc/systemd/system/ci.slice.d/10-a.conf", "[Slice]\nTasksMax=20\n")
    last = write(root, "usr/lib/systemd/system/ci.slice.d/90-z.conf", "[Slice]\nTasksMax=40\n")
    assert origin(root, limit("/ci.slice")) == f"{last}:2, TasksMax=40"


def test_of_drop_ins_with_one_name_only_that_of_the_foremost_directory_counts(root: Path) -> None:
    foremost = write(root, "etc/systemd/system.control/ci.slice.d/50-TasksMax.conf", "[Slice]\nTasksMax=40\n")
    write(root, "run/systemd/system.control/ci.slice.d/50-TasksMax.conf", "[Slice]\nTasksMax=70\n")
    assert origin(root, limit("/ci.slice")).startswith(foremost)


def test_a_transient_scope_has_its_file_below_run(root: Path) -> None:
    path = write(root, "run/systemd/transient/run-tests.scope", "[Scope]\nMemoryMax=157286400\n")
    said = origin(root, limit("/system.slice/run-tests.scope", "memory.max", 157286400))
    assert said == f"{path}:2, MemoryMax=157286400"


def test_a_size_is_compared_in_pages_and_a_different_one_is_told(root: Path) -> None:
    write(root, "etc/systemd/system/ci.slice", "[Slice]\nMemoryMax=150M\n")
    assert "set otherwise" not in origin(root, limit("/ci.slice", "memory.max", 150 << 20))
    assert "the cgroup holds 1048576: set otherwise since" in origin(root, limit("/ci.slice", "memory.max", 1 << 20))


@pytest.mark.parametrize("value", ["33%", "infinity"])
def test_a_share_is_not_compared(root: Path, value: str) -> None:
    path = write(root, "usr/lib/systemd/system/user-.slice.d/10-defaults.conf", f"[Slice]\nTasksMax={value}\n")
    assert origin(root, limit("/user.slice/user-1000.slice")) == f"{path}:2, TasksMax={value}"


def test_an_instance_takes_the_files_of_its_template(root: Path) -> None:
    path = write(root, "etc/systemd/system/runner@.service.d/limit.conf", "[Service]\nMemoryMax=1G\n")
    write(root, "usr/lib/systemd/system/runner@.service", "[Service]\nExecStart=/bin/true\n")
    assert origin(root, limit("/system.slice/runner@1.service", "memory.max", 1 << 30)) == f"{path}:2, MemoryMax=1G"


def test_all_units_of_a_type_can_have_a_drop_in(root: Path) -> None:
    path = write(root, "etc/systemd/system/scope.d/all.conf", "[Scope]\nTasksMax=40\n")
    assert origin(root, limit("/system.slice/run-1.scope")) == f"{path}:2, TasksMax=40"


def test_an_empty_value_takes_back_what_was_said(root: Path) -> None:
    write(root, "usr/lib/systemd/system/ci.service", "[Service]\nTasksMax=20\n")
    write(root, "etc/systemd/system/ci.service.d/none.conf", "[Service]\nTasksMax=\n")
    assert "DefaultTasksMax=" in origin(root, limit("/system.slice/ci.service"))


def test_without_a_file_it_is_the_default_of_tasks_for_all_but_slices(root: Path) -> None:
    assert "DefaultTasksMax=" in origin(root, limit("/system.slice/ci.service"))
    assert "DefaultTasksMax=" not in origin(root, limit("/ci.slice"))
    assert "no unit file that exists now" in origin(root, limit("/system.slice/ci.service", "memory.max", 9))


def test_a_container_and_a_cgroup_of_nobodys_are_told_as_such(root: Path) -> None:
    assert "container's options" in origin(root, limit(f"/system.slice/docker-{CONTAINER}.scope"))
    assert "no unit's" in origin(root, limit("/made-by-hand"))


def test_of_a_user_manager_only_the_system_s_files_are_looked_at_and_it_says_so(root: Path) -> None:
    path = "/user.slice/user-1000.slice/user@1000.service/app.slice/ci.service"
    assert "files in the user's own directories are not looked at" in origin(root, limit(path))
    file = write(root, "etc/systemd/user/ci.service", "[Service]\nTasksMax=40\n")
    assert origin(root, limit(path)) == f"{file}:2, TasksMax=40"


def test_no_limit_has_no_origin(root: Path) -> None:
    assert with_origin(KernelPaths.below(str(root)), limit("/ci.slice", value=UNLIMITED)).origin == ""
