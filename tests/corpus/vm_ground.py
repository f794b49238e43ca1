# SPDX-License-Identifier: Apache-2.0
"""Cases in a virtual machine with triaged installed: test binaries are built outside, at native speed, and copied in."""
from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from case import HERE, MODULE, Case
from layers import Place
from runner import KEPT_OUTPUT, Ended, build

sys.path.insert(0, str(HERE.parent / "vm"))

from machine import Machine

TOP = "/srv/corpus"


class Vm:
    """One machine that all its cases share; every case puts back what it changed."""

    def __init__(self, start: Callable[[], Machine], built: Path) -> None:
        """`start` gives a machine with triaged on it; `built`: a directory with the test binaries."""
        self._start, self._built = start, built
        self._fill(start())

    def __enter__(self) -> Vm:
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()

    def renew(self) -> None:
        """Another machine, where this one failed: its end is one case's, not that of all which follow."""
        self.machine.close()
        self._fill(self._start())

    def _fill(self, machine: Machine) -> None:
        built = self._built
        self.machine = machine
        self.name = machine.snapshot.suite
        self.kernel = machine.run(["uname", "-r"]).out.strip()
        for binary in sorted(built.iterdir()):  # together they are more than the machine takes in one request
            machine.put(binary, f"{TOP}/built/{binary.name}")
        machine.put(MODULE, f"{TOP}/module")
        machine.put(HERE / "landlock.py", f"{TOP}/landlock.py")
        machine.run(f"chmod -R a+rX {TOP}")

    def place(self, case: Case) -> Place:
        scratch = f"{TOP}/{case.title.replace('/', '-')}"
        self.machine.run(f"mkdir -p {scratch}/tmp {scratch}/home && chmod 1777 {scratch} {scratch}/tmp {scratch}/home")
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": f"{scratch}/home", "LANG": "C.UTF-8",
            "CORPUS": scratch, "TMPDIR": f"{scratch}/tmp", "BUILT": f"{TOP}/built", "MODULE": f"{TOP}/module",
            "PYTHON": "/usr/bin/python3",
            **{name: value.replace("$CORPUS", scratch) for name, value in case.environment.items()},
        }
        directory = f"{TOP}/module/{case.package}" if case.binary else TOP
        return Place(("triagectl",), scratch, directory, environment, "/usr/bin/python3", f"{TOP}/landlock.py")

    def run(self, words: tuple[str, ...], place: Place, timeout_s: int) -> Ended:
        done = self.machine.run(
            ["sh", "-c", shlex.join(words) + " 2>&1"], cwd=place.directory, env=dict(place.environment), timeout=timeout_s,
            check=False,
        )
        return Ended(-1 if done.timed_out else done.status, done.out[-KEPT_OUTPUT:], done.seconds)

    def read(self, path: str) -> str:
        return self.machine.run(["cat", path], check=False).out

    def clear(self, place: Place) -> None:
        self.machine.run(["rm", "-rf", place.scratch], check=False)


def built_for_machines(go: str, environment: dict[str, str], target: Path) -> Path:
    """The directory with every test binary, and a file system with user quotas: there are no tools to make one inside."""
    target.mkdir()
    build(go, environment, target)
    image = target / "quota.ext4"
    make = ("mke2fs", "-q", "-t", "ext4", "-O", "quota,^has_journal", "-E", "quotatype=usrquota", image, "8M")
    subprocess.run(make, check=True, stdin=subprocess.DEVNULL, env=environment)
    return target
