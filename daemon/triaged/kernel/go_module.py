# SPDX-License-Identifier: Apache-2.0
"""The Go package of a directory, by the go.mod above it: for a test binary that was built from a list of files."""
from __future__ import annotations

import os
import stat

from triaged.kernel.files import translated
from triaged.kernel.paths import KernelPaths

_DEPTH = 64
_GO_MOD_CAP = 1 << 16


def read_package_in(paths: KernelPaths, pid: int) -> str:
    """The import path of the package in a process's current directory, or '' where no go.mod is above it.

    `go test` runs a test binary in its package's directory. Walks up by descriptor, so that it is right in another
    mount namespace too. Source: /proc/PID/cwd; the `module` line of go.mod (go.dev/ref/mod).
    Raises: Gone, NotPermitted.
    """
    link = f"{paths.proc}/{pid}/cwd"
    try:
        names = [name for name in os.readlink(link).split("/") if name]
        here = os.open(link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise translated(error, link) from error
    try:
        below: list[str] = []
        for _ in range(_DEPTH):
            module = _read_module(here)
            if module or not names:
                return "/".join([module, *reversed(below)]) if module else ""
            below.append(names.pop())
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = above
        return ""
    except OSError as error:
        raise translated(error, link) from error
    finally:
        os.close(here)


def parse_module(text: str) -> str:
    """The module path that a go.mod declares, or ''."""
    in_block = False
    for line in text.splitlines():
        words = line.partition("//")[0].split()
        if in_block and words and words[0] != ")":
            return words[0].strip('"`')
        if words[:1] == ["module"] and len(words) > 1:
            if words[1] != "(":
                return words[1].strip('"`')
            in_block = True
    return ""


def _read_module(directory: int) -> str:
    try:
        # The directory is the user's: no link is followed, and no FIFO can hold the reader up.
        descriptor = os.open("go.mod", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return parse_module(os.read(descriptor, _GO_MOD_CAP).decode("utf-8", "replace"))
    finally:
        os.close(descriptor)
