# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from triaged.model.cgroup import (
    CgroupId,
    Container,
    ancestors_of,
    container_of,
    is_user_manager,
    own_unit_of,
    slice_of,
    uid_of,
    unit_of,
)

DOCKER = "a1" * 32


@pytest.mark.parametrize(
    ("path", "unit", "own", "slice_"),
    [
        ("/", "", "-.slice", "-.slice"),
        ("/system.slice/ci-runner.service", "ci-runner.service", "ci-runner.service", "system.slice"),
        ("/system.slice/ci-runner.service/payload", "ci-runner.service", "", "system.slice"),
        ("/ci.slice/ci-go.slice", "ci-go.slice", "ci-go.slice", "ci-go.slice"),
        ("/ci.slice/run-1.scope/a/b.slice", "run-1.scope", "b.slice", "b.slice"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/go.scope", "go.scope", "go.scope", "app.slice"),
        ("/made-by-hand", "", "", "-.slice"),
        ("/system.slice/_cgroup.procs.service", "cgroup.procs.service", "cgroup.procs.service", "system.slice"),
        ("/.service", "", "", "-.slice"),
        ("/a\n.service", "a\n.service", "a\n.service", "-.slice"),
    ],
)
def test_unit_and_slice_come_from_the_path(path: str, unit: str, own: str, slice_: str) -> None:
    assert (unit_of(path), own_unit_of(path), slice_of(path)) == (unit, own, slice_)
    assert (CgroupId(path).unit, CgroupId(path).slice) == (unit, slice_)


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/system.slice/docker-{DOCKER}.scope", Container("docker", DOCKER)),
        (f"/docker/{DOCKER}", Container("docker", DOCKER)),
        (f"/docker/{DOCKER}/inner.slice", Container("docker", DOCKER)),
        (f"/machine.slice/libpod-{DOCKER}.scope/container", Container("podman", DOCKER)),
        (
            f"/kubepods.slice/kubepods-pod0a1b2c3d_0000_1111_2222_333344445555.slice/cri-containerd-{DOCKER}.scope",
            Container("containerd", DOCKER, "0a1b2c3d-0000-1111-2222-333344445555"),
        ),
        (
            f"/kubepods/besteffort/pod0a1b2c3d-0000-1111-2222-333344445555/{DOCKER}",
            Container("containerd", DOCKER, "0a1b2c3d-0000-1111-2222-333344445555"),
        ),
        (f"/x/{DOCKER}", Container("", DOCKER)),
        (f"/x/{DOCKER[:-1]}", None),
        ("/system.slice/docker.service", None),
    ],
)
def test_containers_are_named_by_their_id_runtime_and_pod(path: str, container: Container | None) -> None:
    assert container_of(path) == container


def test_a_user_is_known_by_the_slice() -> None:
    path = "/user.slice/user-1000.slice/user@1000.service/app.slice/go.scope"
    assert uid_of(path) == 1000
    assert is_user_manager(path)
    assert not is_user_manager("/user.slice/user-1000.slice/user@1000.service")
    assert uid_of("/system.slice/user-x.slice") is None


def test_ancestors_go_from_the_inside_out_to_the_root() -> None:
    assert ancestors_of("/a/b/c") == ("/a/b/c", "/a/b", "/a", "/")
    assert ancestors_of("/") == ("/",)
