# SPDX-License-Identifier: Apache-2.0
"""What a process sees around it: files with their modes, the space of file systems, its network."""
from __future__ import annotations

import stat
from dataclasses import dataclass, field

from triaged.model.limit import Unknown
from triaged.model.process_state import Credentials

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
READ, WRITE, EXECUTE = 4, 2, 1


@dataclass(frozen=True)
class Node:
    """A file as lstat(2) gives it; ids as the reader's user namespace has them. `has_acl`: the mode is not the whole truth.

    `device` is which one a device file stands for ("c 1:3"), or "".
    """

    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    has_acl: bool = False
    device: str = ""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_fifo(self) -> bool:
        return stat.S_ISFIFO(self.mode)

    @property
    def is_device(self) -> bool:
        return stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode)

    @property
    def is_setid(self) -> bool:
        """Whether executing it is meant to change the user or group."""
        return self.is_regular and bool(self.mode & stat.S_ISUID or (self.mode & stat.S_ISGID and self.mode & stat.S_IXGRP))

    def is_shared(self) -> bool:
        """Whether this is a sticky directory that others may write to, as /tmp is."""
        return self.is_directory and bool(self.mode & stat.S_ISVTX) and bool(self.mode & (stat.S_IWOTH | stat.S_IWGRP))

    def permits(self, who: Credentials, wanted: int) -> bool:
        """Whether mode, owner and capabilities let `who` do it (READ, WRITE and EXECUTE together); ACLs left out."""
        if who.has(CAP_DAC_OVERRIDE) and (not wanted & EXECUTE or self.is_directory or self.mode & 0o111):
            return True
        if who.has(CAP_DAC_READ_SEARCH) and not wanted & WRITE and (not wanted & EXECUTE or self.is_directory):
            return True
        if who.uids[3] == self.uid:
            bits = self.mode >> 6
        elif self.gid == who.gids[3] or self.gid in who.groups:
            bits = self.mode >> 3
        else:
            bits = self.mode
        return wanted & bits & 7 == wanted


@dataclass(frozen=True)
class Space:
    """What is left on a file system, as statvfs(3) gives it. `available_bytes` is for everybody, `free_bytes` for root too.

    `inodes` is 0 where the file system does not count them.
    """

    total_bytes: int
    free_bytes: int
    available_bytes: int
    inodes: int = 0
    free_inodes: int = 0

    @property
    def has_no_inodes(self) -> bool:
        return self.inodes > 0 and self.free_inodes == 0


@dataclass(frozen=True)
class FileFacts:
    """A path as a process sees it. `node` is the file at its end, None if there is none (any more); `way` the directories that
    led to it, outermost first, so the last is the one that holds it, or the deepest that there is; `links` the symbolic links on
    the way, each with the directory that it is in. `head` is the beginning of a regular file. `space` is that of the file system.
    """

    path: str
    node: Node | None
    way: tuple[Node, ...] = ()
    links: tuple[tuple[Node, Node], ...] = ()
    head: bytes = b""
    has_capabilities: bool = False
    space: Space | Unknown = field(default_factory=lambda: Unknown("not read"))

    @property
    def directory(self) -> Node | None:
        """The deepest directory that there is."""
        return self.way[-1] if self.way else None

    @property
    def is_reached(self) -> bool:
        """Whether the directory that should hold the file exists."""
        deepest = self.directory
        return deepest is not None and deepest.path == (self.path.rsplit("/", 1)[0] or "/")

    @property
    def has_acl(self) -> bool:
        """Whether an access control list stands anywhere on the way."""
        return any(node.has_acl for node in (*self.way, *((self.node,) if self.node else ())))

    def obstacle(self, who: Credentials, wanted: int) -> Node | None:
        """The first file on the way whose mode stops `who`; None if none does. `wanted` is of the file itself, or (to make it,
        where there is none) of its directory."""
        for node in self.way:
            if not node.permits(who, EXECUTE):
                return node
        if self.node is not None:
            return None if self.node.permits(who, wanted) else self.node
        last = self.directory
        return last if last is not None and wanted & WRITE and not last.permits(who, WRITE) else None


@dataclass(frozen=True)
class NetworkFacts:
    """A network namespace. `local` are the IPv4 addresses that are up, `local6` the IPv6 ones (as the kernel writes them,
    32 hexadecimal digits) with their interfaces; Unknown `local6`: this kernel runs without IPv6."""

    local: frozenset[str]
    local6: tuple[tuple[str, str], ...] | Unknown
    tcp_ports: tuple[tuple[int, str], ...] = ()

    @property
    def is_loopback_up(self) -> bool:
        """Whether 127.0.0.1 is there: the kernel adds it when lo is set up, and takes it away when lo is set down."""
        return "127.0.0.1" in self.local

    @property
    def has_loopback6(self) -> bool:
        """Whether ::1 is there."""
        return not isinstance(self.local6, Unknown) and any(address == "0" * 31 + "1" for address, _ in self.local6)
