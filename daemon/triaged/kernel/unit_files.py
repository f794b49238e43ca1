# SPDX-License-Identifier: Apache-2.0
"""Where a slice comes from, by a plain look at systemd's unit files; no bus is asked."""
from __future__ import annotations

import os

from triaged.kernel.paths import KernelPaths
from triaged.model.cgroup import is_user_manager, slice_of

NO_UNIT_FILE = "no unit file: made by hand, by a runner, or implicitly"


def read_slice_origin(paths: KernelPaths, cgroup: str) -> str:
    """Which unit file defines the innermost slice of a cgroup path ("unit file PATH"), or that none does.

    Source: the unit load path in its order of precedence (systemd.unit(5)); the user's own ~/.config is not looked at.
    """
    name = slice_of(cgroup)
    manager = "user" if is_user_manager(cgroup) else "system"
    for directory in (f"{paths.etc}/systemd", f"{paths.run}/systemd", f"{paths.usr_lib}/systemd"):
        path = f"{directory}/{manager}/{name}"
        if os.path.lexists(path):
            return f"unit file {path}"
    return NO_UNIT_FILE
