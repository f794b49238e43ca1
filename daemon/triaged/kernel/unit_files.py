# SPDX-License-Identifier: Apache-2.0
"""Where a slice comes from, by a plain look at systemd's unit files and at the cgroup; no bus is asked.

Hard facts (systemd 252 and 257, version 2):
- systemd marks the cgroup of a slice that it started with the extended attribute user.invocation_id, also where no file defines the
  slice and another unit only names it. A cgroup that was made by hand has none. Neither have system.slice and init.scope.
- A cgroup whose unit systemd unloaded keeps its mark: by that a leftover cannot be told from a loaded unit.
- On version 1 there are only trusted attributes, which need CAP_SYS_ADMIN.
"""
from __future__ import annotations

import errno
import os

from triaged.errors import KernelError
from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.paths import KernelPaths
from triaged.model.cgroup import is_user_manager, slice_of

NO_UNIT_FILE = "no unit file: made by hand, by a runner, or implicitly"
TRANSIENT = "transient unit, made over D-Bus (systemd-run)"
IMPLICIT = "no unit file: systemd made it for a unit that names it, or it is a leftover of that (systemctl status tells)"
BY_HAND = "no unit: the cgroup was made by hand or by a runner, systemd did not start a slice of that name"
BUILT_IN = "built into systemd"
_BUILT_IN = frozenset({"-.slice", "system.slice"})
_MARK = "user.invocation_id"


def read_slice_origin(paths: KernelPaths, cgroup: str) -> str:
    """Which unit file defines the innermost slice of a cgroup path ("unit file PATH"), or where it comes from otherwise.

    Source: the unit load path in its order of precedence (systemd.unit(5)); the user's own ~/.config is not looked at. Without a
    file the extended attributes of the slice's cgroup, on version 2.
    """
    name = slice_of(cgroup)
    manager = "user" if is_user_manager(cgroup) else "system"
    for directory in (f"{paths.etc}/systemd", f"{paths.run}/systemd", f"{paths.usr_lib}/systemd"):
        path = f"{directory}/{manager}/{name}"
        if os.path.lexists(path):
            return f"unit file {path}"
    if os.path.lexists(f"{paths.run}/systemd/transient/{name}"):
        return TRANSIENT
    if name in _BUILT_IN:
        return BUILT_IN
    return _by_mark(paths, cgroup, name)


def _by_mark(paths: KernelPaths, cgroup: str, name: str) -> str:
    parts = cgroup.split("/")
    # systemd puts "_" before a name that would clash with a file of the kernel's.
    last = max((number for number, part in enumerate(parts) if part.removeprefix("_") == name), default=0)
    try:
        unified = read_layout(paths).unified
        if unified is None or not last or not unified.controllers:
            return NO_UNIT_FILE
        os.getxattr(unified.directory("/".join(parts[: last + 1])), _MARK)
        return IMPLICIT
    except KernelError:
        return NO_UNIT_FILE
    except OSError as error:
        return BY_HAND if error.errno == errno.ENODATA else NO_UNIT_FILE
