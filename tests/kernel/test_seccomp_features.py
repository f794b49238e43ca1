# SPDX-License-Identifier: Apache-2.0
"""What Go prints where a call that only some packages make is refused: the data, held against a real Go program."""
from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from triaged.model.filters import FilterDump, InstalledFilter
from triaged.seccomp.action import ALLOW, Action, ActionKind
from triaged.seccomp.assessment import DeniedFeature
from triaged.seccomp.check import refusal_of
from triaged.seccomp.compiler import compiled
from triaged.seccomp.installed import installed
from triaged.seccomp.needs import Feature
from triaged.seccomp.policy import ArchPolicy, Branch, Condition, Policy
from triaged.seccomp.syscalls import native_arch, number_of
from triaged.workload_needs import read_needs

PROGRAM = Path(__file__).with_name("go_features")
FEATURES = {feature.name: feature for feature in read_needs().features}
pytestmark = [
    pytest.mark.skipif(shutil.which("go") is None, reason="go is not installed"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the program has the numbers of x86_64"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("features") / "features"
    environment = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", path, "."], cwd=PROGRAM, env=environment, check=True)
    return str(path)


def refusing(feature: Feature, error: int) -> bytes:
    """A filter that refuses exactly the calls that the data says the feature makes."""
    action = Action(ActionKind.ERRNO, error)
    ways = [tuple(Condition(at, "==", value) for at, value in enumerate(arguments)) for arguments in feature.arguments] or [()]
    branches = {number_of("x86_64", feature.call) or 0: tuple(Branch(action, conditions) for conditions in ways)}
    return compiled(Policy((ArchPolicy("x86_64", ALLOW, branches),), ALLOW)).packed()


def test_the_program_does_each_feature_and_nothing_else() -> None:
    text = (PROGRAM / "main.go").read_text()
    assert len(FEATURES) >= 14
    assert all(f'"{name}":' in text for name in FEATURES)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
@pytest.mark.parametrize("name", FEATURES)
def test_a_refused_feature_prints_what_the_data_says(program: str, name: str, error: int, tmp_path: Path) -> None:
    feature = FEATURES[name]
    instructions = refusing(feature, error)
    (tmp_path / "filter").write_bytes(instructions)
    load = (
        "import sys; from triaged.kernel.seccomp_load import Command, LoadedFilter; from pathlib import Path\n"
        "filters = [LoadedFilter(Path(sys.argv[1]).read_bytes())]\n"
        f"with Command(sys.argv[2:], filters, {number_of('x86_64', 'seccomp')}) as command:\n"
        "    command.start(); sys.exit(command.wait())\n"
    )
    argv = [sys.executable, "-c", load, tmp_path / "filter", program, name]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stdout == feature.prints(error).replace("PATH", "/bin/true") + "\n"

    found = installed(FilterDump(1, "filter", (InstalledFilter(instructions, False),)), native_arch())
    action = refusal_of(feature, native_arch(), found.decide)
    assert action == Action(ActionKind.ERRNO, error)
    assert feature.prints(error) in DeniedFeature(feature, action).sentence
    others = [other for other in FEATURES.values() if other.call != feature.call]
    assert [other.name for other in others if refusal_of(other, native_arch(), found.decide)] == []
