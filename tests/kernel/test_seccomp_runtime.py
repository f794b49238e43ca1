# SPDX-License-Identifier: Apache-2.0
"""Profiles that `record` makes, applied by a real container runtime: what it calls itself before the command has to be in them."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from triaged.cli.seccomp import main
from triaged.seccomp.syscalls import native_arch
from triaged.workload_needs import read_runtime_calls

SOURCE = """
#include <unistd.h>
int main(void) { write(1, "in the container\\n", 17); return getppid() < 0; }
"""
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="starting containers needs root"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container's directory with one static program in it."""
    directory = tmp_path_factory.mktemp("bundle")
    (directory / "rootfs/bin").mkdir(parents=True)
    (directory / "rootfs/proc").mkdir()
    (directory / "main.c").write_text(SOURCE)
    subprocess.run(["gcc", "-static", "-o", directory / "rootfs/bin/hello", directory / "main.c"], check=True)
    for path in (directory, directory.parent):
        path.chmod(0o755)
    return directory


def started(bundle: Path, profile: Path, has_no_new_privileges: bool, user: int = 0) -> subprocess.CompletedProcess[str]:
    """The container with that profile, as an engine would hand it to runc."""
    document = json.loads(profile.read_text())
    architectures = [one["architecture"] for one in document.pop("archMap", [])] or document.pop("architectures", [])
    seccomp = {**{key: value for key, value in document.items() if not key.startswith("$")}, "architectures": architectures}
    seccomp["syscalls"] = [{key: value for key, value in rule.items() if key != "comment"} for rule in seccomp["syscalls"]]
    configuration = {
        "ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": True},
        "process": {"terminal": False, "user": {"uid": user, "gid": user}, "args": ["/bin/hello"], "env": ["PATH=/bin"], "cwd": "/",
                    "noNewPrivileges": has_no_new_privileges, "capabilities": {"bounding": ["CAP_CHOWN"]}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")], "seccomp": seccomp},
    }  # fmt: skip
    (bundle / "config.json").write_text(json.dumps(configuration))
    argv = ["runc", "--root", str(bundle / "state"), "run", f"triaged-{os.getpid()}"]
    return subprocess.run(argv, cwd=bundle, capture_output=True, text=True, timeout=60, check=False)


def recorded(bundle: Path, *options: str) -> Path:
    path = bundle / "profile.json"
    assert main(["record", "-o", str(path), "--method", "ptrace", *options, "--", str(bundle / "rootfs/bin/hello")]) == 0
    return path


@pytest.mark.parametrize(("user", "has_no_new_privileges"), [(0, True), (0, False), (1000, True), (1000, False)])
def test_a_recorded_profile_starts_a_container(bundle: Path, user: int, has_no_new_privileges: bool) -> None:
    done = started(bundle, recorded(bundle), has_no_new_privileges, user)
    assert (done.stdout, done.returncode) == ("in the container\n", 0), done.stderr


def test_without_what_the_runtime_calls_it_does_not(bundle: Path) -> None:
    done = started(bundle, recorded(bundle, "--bare"), False)
    assert done.returncode != 0
    assert "in the container" not in done.stdout


def test_what_was_measured_names_both_runtimes_and_is_noted_in_the_profile(bundle: Path) -> None:
    calls = read_runtime_calls(native_arch())
    assert {name.split()[0] for name in calls} == {"runc", "crun"}
    assert all("execve" in found and len(found) > 5 for found in calls.values())
    text = recorded(bundle).read_text()
    assert "what a container runtime calls before it starts the command (crun " in text
