# SPDX-License-Identifier: Apache-2.0
"""Every error that triaged raises on purpose.

TriagedError
├── KernelError            a kernel interface did not give what was asked
│   ├── Gone               the object went away (a process, a cgroup): normal
│   ├── NotPermitted       the kernel refused the caller
│   ├── InterfaceMissing   this kernel or this machine does not have it
│   ├── Exhausted          triaged itself ran into a limit of the kernel (watches, descriptors)
│   └── Malformed          the text or record cannot be parsed
├── ConfigError            a file that a person wrote is wrong
├── StateError             a file in the state directory is wrong
├── BusError               the message bus or a service on it did not answer as needed
└── FixError               a repair was not made
    ├── FixUnknown         no such finding or fix
    ├── FixRefused         not allowed, or not one of the closed list
    ├── FixStale           the value is no longer the one that the finding saw, or that triaged left
    ├── FixRepeated        it has been applied already
    ├── FixBusy            another fix is being applied or undone at this moment
    └── FixFailed          it was tried; the text says what state the host is in now
"""
from __future__ import annotations


class TriagedError(Exception):
    """Base of the tree. `remedy` says what a person can do next; it may be empty."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def shown(self) -> str:
        """What failed and what to do next, for a person."""
        return f"{self}; {self.remedy}" if self.remedy else str(self)


class KernelError(TriagedError):
    """A kernel interface did not give what was asked. Carries the path or interface it is about."""

    def __init__(self, path: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{path}: {message}", remedy)
        self.path = path


class Gone(KernelError):
    """The process or cgroup went away between the event and the read (ENOENT, ENODEV, ESRCH)."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "gone")


class NotPermitted(KernelError):
    """The kernel refused the caller (EACCES, EPERM)."""

    def __init__(self, path: str, message: str = "permission denied", remedy: str = "") -> None:
        super().__init__(path, message, remedy)


class InterfaceMissing(KernelError):
    """This kernel, or this machine's set-up, does not have the interface."""

    def __init__(self, path: str, message: str = "not on this kernel", remedy: str = "") -> None:
        super().__init__(path, message, remedy)


class Exhausted(KernelError):
    """triaged itself ran into a limit of the kernel: inotify watches or instances, open files."""


class Malformed(KernelError):
    """A kernel text or record that cannot be parsed. `record` is its escaped beginning."""

    def __init__(self, path: str, record: str, message: str = "cannot be parsed") -> None:
        super().__init__(path, f"{message}: {record[:200]!r}")
        self.record = record


class ConfigError(TriagedError):
    """A file that a person wrote is wrong. Carries the file and, where known, the line (0: the whole file)."""

    def __init__(self, path: str, line: int, message: str, remedy: str = "") -> None:
        where = f"{path}:{line}" if line else path
        super().__init__(f"{where}: {message}", remedy)
        self.path = path
        self.line = line


class StateError(TriagedError):
    """A file in the state directory is wrong. Carries the file."""

    def __init__(self, path: str, message: str, remedy: str = "") -> None:
        super().__init__(f"{path}: {message}", remedy)
        self.path = path


class BusError(TriagedError):
    """The message bus, or a service on it, did not answer as needed. Carries the D-Bus error name, or ''."""

    def __init__(self, name: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.name = name


class FixError(TriagedError):
    """A repair was not made."""


class FixUnknown(FixError):
    """There is no such finding, or the finding has no such fix."""


class FixRefused(FixError):
    """The caller may not, or the request is not one of the closed list of fix types, keys and ranges."""


class FixStale(FixError):
    """The value is no longer the one that the finding saw; somebody else changed it."""


class FixRepeated(FixError):
    """The fix has been applied already and still holds; nothing was changed."""


class FixBusy(FixError):
    """Another fix is being applied or undone at this moment; nothing was changed."""


class FixFailed(FixError):
    """The repair was tried and did not work; the text says what state the host is in now."""
