# SPDX-License-Identifier: Apache-2.0
"""Files as another process sees them: below its root directory, in its mount namespace.

Hard facts:
- /proc/PID/root leads into the mount namespace of the process (proc(5)); an absolute symbolic link below it would lead out again,
  so links are followed here, each from that root.
- The mode that a process meets is the file's own; whoever looks needs the right to look (CAP_SYS_PTRACE for other users' roots).
"""
from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from triaged.errors import KernelError
from triaged.kernel.files import read_bytes, read_text, translated
from triaged.kernel.paths import KernelPaths
from triaged.model.limit import Unknown
from triaged.model.surroundings import FileFacts, Node, Space

_MOST_LINKS = 40  # the kernel's own bound (linux/namei.h, MAXSYMLINKS)
_MOST_PARTS = 256
_HEAD_BYTES = 256


def read_file_facts(paths: KernelPaths, pid: int | str, path: str) -> FileFacts:
    """An absolute path as process `pid` ("self": the caller) sees it.

    Source: lstat, readlink and statvfs below /proc/PID/root. Raises: NotPermitted, Gone (the process), KernelError.
    """
    root = f"{paths.proc}/{pid}/root"
    parts = [part for part in path.split("/") if part]
    if parts[:2] == ["proc", "self"] and pid != "self":
        parts[1] = str(pid)
    entered = [_read_root(root)]  # the directories from the root to where the walk stands
    links: list[tuple[Node, Node]] = []
    node: Node | None = entered[0]
    at = "/"
    steps = 0
    while parts and node is not None:
        steps += 1
        if steps > _MOST_PARTS:
            raise KernelError(path, "leads through too many directories")
        part = parts.pop(0)
        if node is entered[-1] and part == ".":
            continue
        if node is entered[-1] and part == "..":
            entered = entered[:-1] or entered
            node = entered[-1]
            continue
        at = f"{node.path.rstrip('/')}/{part}"
        if node is not entered[-1]:
            node = None  # a file where a directory should be
            break
        node = _read_node(root, at)
        if node is not None and stat.S_ISLNK(node.mode):
            if len(links) >= _MOST_LINKS:
                raise KernelError(path, "leads through too many symbolic links")
            links.append((node, entered[-1]))
            target = _readlink(root + at)
            entered = entered[:1] if target.startswith("/") else entered
            node = entered[-1]
            parts = [each for each in target.split("/") if each] + parts
        elif node is not None and node.is_directory:
            entered.append(node)
    if node is None:
        _read_root(root)  # a process that ended meanwhile has no files at all
        found, way = "/".join([at, *parts]), entered
    else:
        found, way = node.path, entered[:-1] if node is entered[-1] and len(entered) > 1 else entered
    last = root + (node or way[-1]).path
    return FileFacts(
        found, node, tuple(way), tuple(links), _head(last, node), _has_capabilities(last, node), read_space(last),
    )


def _read_node(root: str, at: str) -> Node | None:
    try:
        return _node(root, at)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise translated(error, root + at) from error


def _read_root(root: str) -> Node:
    try:
        return _node(root, "/")
    except OSError as error:
        raise translated(error, root) from error


def _node(root: str, at: str) -> Node:
    whole = root + at
    found = os.lstat(whole)
    has_acl = not stat.S_ISLNK(found.st_mode) and _has(whole, "system.posix_acl_access")
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b" if stat.S_ISBLK(found.st_mode) else ""
    device = f"{kind} {os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if kind else ""
    return Node(at, found.st_mode, found.st_uid, found.st_gid, has_acl, device)


def _has(path: str, attribute: str) -> bool:
    try:
        os.getxattr(path, attribute, follow_symlinks=False)
    except OSError:
        return False
    return True


def _has_capabilities(path: str, node: Node | None) -> bool:
    return node is not None and node.is_regular and _has(path, "security.capability")


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError as error:
        raise translated(error, path) from error


def _head(path: str, node: Node | None) -> bytes:
    if node is None or not node.is_regular:
        return b""
    try:
        return read_bytes(path, _HEAD_BYTES)
    except KernelError:
        return b""  # it may be executed and not read


def read_open_paths(paths: KernelPaths, pid: int, most: int = 256) -> Iterator[str]:
    """The absolute paths of the files that a process has open, each once; of at most `most` descriptors.

    Source: /proc/PID/fd. Raises: Gone, NotPermitted.
    """
    directory = f"{paths.proc}/{pid}/fd"
    try:
        descriptors = os.listdir(directory)[:most]
    except OSError as error:
        raise translated(error, directory) from error
    seen = set()
    for descriptor in descriptors:
        try:
            path = os.readlink(f"{directory}/{descriptor}").removesuffix(" (deleted)")
        except OSError:
            continue  # closed meanwhile
        if path.startswith("/") and path not in seen:
            seen.add(path)
            yield path


def read_text_of(paths: KernelPaths, pid: int | str, path: str, cap: int = 65536) -> str:
    """The text of a file as process `pid` sees it; `path` without symbolic links (`FileFacts.path`).

    Raises: Gone, NotPermitted, KernelError.
    """
    return read_text(f"{paths.proc}/{pid}/root{path}", cap)


def read_space(path: str) -> Space | Unknown:
    """What is left on the file system of a path. Source: statvfs(3)."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        return Unknown(f"{path}: {error.strerror}")
    unit = found.f_frsize
    return Space(found.f_blocks * unit, found.f_bfree * unit, found.f_bavail * unit, found.f_files, found.f_ffree)


def read_open_file(paths: KernelPaths, pid: int, descriptor: int) -> str:
    """What a file descriptor of a process stands for: an absolute path, or "socket:[N]" and the like; without " (deleted)".

    Source: /proc/PID/fd. Raises: Gone, NotPermitted.
    """
    link = f"{paths.proc}/{pid}/fd/{descriptor}"
    return _readlink(link).removesuffix(" (deleted)")
