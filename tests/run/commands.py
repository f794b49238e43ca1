# SPDX-License-Identifier: Apache-2.0
"""`triagectl run` from this tree, as a command line."""
from __future__ import annotations

import os
import pathlib
import sys

DAEMON = str(pathlib.Path(__file__).parents[2] / "daemon")


def triagectl_run(*words: str) -> list[str]:
    """The command line of `triagectl run` with these options and words."""
    return [sys.executable, "-m", "triaged.cli", "run", *words]


def environment(**more: str) -> dict[str, str]:
    """This environment, with the tree's own package."""
    return {**os.environ, "PYTHONPATH": DAEMON, **more}
