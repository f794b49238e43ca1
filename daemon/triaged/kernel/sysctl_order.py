# SPDX-License-Identifier: Apache-2.0
"""Which sysctl.d file has the last word on a kernel parameter.

Source: sysctl.d(5) and systemd's src/sysctl/sysctl.c: a file name in /etc hides the same name in /run, /usr/local/lib and
/usr/lib; the files are read in the order of their names whatever their directory; a later assignment replaces an earlier
one; an explicit key is left out of every glob's expansion, in whatever file it stands. procps' `sysctl --system` reads the
same files and then /etc/sysctl.conf, which systemd-sysctl does not.
"""
from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass

from triaged.errors import KernelError
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths


@dataclass(frozen=True)
class Assignment:
    """A line of a sysctl.d file that sets a parameter."""

    path: str
    line: int
    value: str
    is_glob: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def read_assignments(paths: KernelPaths, key: str, without: str = "") -> tuple[Assignment, ...]:
    """The lines that set `key` (dotted) at boot, in the order in which they take effect: the last one wins.

    `without` is the path of a file to leave out. A file that cannot be read is passed over.
    """
    explicit: list[Assignment] = []
    globs: list[Assignment] = []
    wanted = _with_slashes(key)
    is_left_out = False
    for path in read_order(paths):
        if path == without:
            continue
        try:
            text = read_text(path)
        except KernelError:
            continue
        is_left_out = is_left_out or leaves_out(text, wanted)
        for found in parse_assignments(path, text, wanted):
            (globs if found.is_glob else explicit).append(found)
    if is_left_out:
        globs.clear()
    return tuple(globs + explicit)


def read_order(paths: KernelPaths) -> tuple[str, ...]:
    """The sysctl.d files that count, in the order in which systemd-sysctl reads them."""
    by_name: dict[str, str] = {}
    local_lib = os.path.join(os.path.dirname(paths.usr_lib), "local/lib")
    for above in (paths.etc, paths.run, local_lib, paths.usr_lib):
        directory = f"{above}/sysctl.d"
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            if name.endswith(".conf"):
                by_name.setdefault(name, f"{directory}/{name}")
    # A link to /dev/null masks the name; reading it gives nothing, which is the same.
    return tuple(by_name[name] for name in sorted(by_name))


def parse_assignments(path: str, text: str, wanted: str) -> list[Assignment]:
    """The lines of one file that set `wanted` (with slashes), by name or by a glob."""
    out = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line[0] in "#;" or "=" not in line:
            continue
        name, _, value = line.partition("=")
        name = _with_slashes(name.strip().removeprefix("-").strip())
        value = " ".join(value.split())
        if name == wanted:
            out.append(Assignment(path, number, value))
        elif any(character in name for character in "*?[") and fnmatch.fnmatchcase(wanted, name) and _same_depth(name, wanted):
            out.append(Assignment(path, number, value, is_glob=True))
    return out


def leaves_out(text: str, wanted: str) -> bool:
    """Whether a file takes `wanted` (with slashes) out of every glob: a line of "-" and its name, without a value."""
    return any(
        line.startswith("-") and "=" not in line and _with_slashes(line[1:].strip()) == wanted
        for line in map(str.strip, text.split("\n"))
    )


def _with_slashes(name: str) -> str:
    # sysctl_normalize(): the first separator says which of the two the writer meant.
    first = next((character for character in name if character in "./"), "")
    return name.translate(str.maketrans("./", "/.")) if first == "." else name


def _same_depth(pattern: str, name: str) -> bool:
    # glob(3) does not let * match a slash; fnmatch does.
    return pattern.count("/") == name.count("/")
