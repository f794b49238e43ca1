# SPDX-License-Identifier: Apache-2.0
"""user.max_user_namespaces inside a user namespace of our own: low, fails; fixed, works; undone, fails again."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import triaged

SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from triaged.fixers.fixer import Caller, Probe
from triaged.fixers.local import LocalFixer
from triaged.fixers.parameters import ParameterFixer
from triaged.fixers.records import Records
from triaged.fixers.verification import run_probe
from triaged.kernel.paths import KernelPaths
from triaged.model.fix import SetParameter

async def main():
    low = Path("/proc/sys/user/max_user_namespaces")
    low.write_text("0")
    fixer = LocalFixer([ParameterFixer(KernelPaths())], Records(sys.argv[1]), KernelPaths())
    fix = SetParameter("user.max_user_namespaces", "1000", seen="0")
    probe = Probe("user-namespace", "", {"uid": 0})
    before = await run_probe(probe)
    outcome = await fixer.apply("f", fix, Caller(0), uid=0)
    applied = low.read_text().strip()
    undone = await fixer.undo("f", "", Caller(0))
    after = await run_probe(probe)
    value = low.read_text().strip()
    print(json.dumps([before.text, outcome.state.value, outcome.verification, applied, undone.state.value, value, after.text]))

asyncio.run(main())
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_low_fails_fixed_works_undone_fails_again(tmp_path: Path) -> None:
    host = Path("/proc/sys/user/max_user_namespaces").read_text()
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", SCRIPT, str(tmp_path / "state")],
        env={"PYTHONPATH": str(Path(triaged.__file__).parents[1])}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "unshare: unshare failed" in done.stderr or "unshare: write failed" in done.stderr:
        pytest.skip(f"user namespaces are forbidden here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    before, state, verification, applied, undone, value, after = json.loads(done.stdout)
    assert before == "No space left on device"
    assert state == "verified"
    assert verification == "verified: user 0 created a user namespace and was root in it (before: No space left on device)"
    assert applied == "1000"
    assert (undone, value) == ("undone", "0")
    assert after == "No space left on device"
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == host
