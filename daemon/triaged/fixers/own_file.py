# SPDX-License-Identifier: Apache-2.0
"""A file that triaged alone writes, in a directory that only its owner can change.

Facts that shape this module: whoever can write to the directory can put a symbolic link where the file should be, and
root would write through it; so the directory is opened without following links, must belong to us and to nobody else,
and everything happens relative to its descriptor. rename() replaces a link instead of following it.
"""
from __future__ import annotations

import difflib
import os
import stat
from contextlib import suppress

from triaged.errors import FixFailed, FixRefused

_CAP_BYTES = 1 << 20


class OwnFile:
    """One file of ours. `makes_directory`: its directory is ours as well, made when needed and removed when empty."""

    def __init__(self, directory: str, name: str, makes_directory: bool = False) -> None:
        self.directory = directory
        self.name = name
        self.makes_directory = makes_directory

    @property
    def path(self) -> str:
        return f"{self.directory}/{self.name}"

    @property
    def _fresh(self) -> str:
        # Not *.conf: nobody reads a half-written one.
        return f".{self.name}.new"

    def read(self) -> str | None:
        """The text, or None if there is no such file.

        Raises: FixRefused for a link, for what is not a plain file, or for a file or directory that others own or may change.
        """
        try:
            directory = _open_directory(self.directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FixFailed(_what(self.directory, error)) from error
        try:
            return self._read_in(directory)
        finally:
            os.close(directory)

    def write(self, text: str | None) -> None:
        """Replaces the file at one stroke, durably; None removes it.

        Raises: FixRefused as `read`; FixFailed where the file system refuses.
        """
        try:
            if text is not None and self.makes_directory:
                self._make_directory()
            directory = _open_directory(self.directory)
        except FileNotFoundError as error:
            if text is None:
                return
            raise FixFailed(_what(self.directory, error)) from error
        except OSError as error:
            raise FixFailed(_what(self.directory, error)) from error
        try:
            if self._read_in(directory) == text:
                return
            if text is None:
                os.unlink(self.name, dir_fd=directory)
            else:
                self._replace_in(directory, text)
            os.fsync(directory)
        except OSError as error:
            raise FixFailed(_what(self.path, error)) from error
        finally:
            os.close(directory)
        if text is None and self.makes_directory:
            self._remove_directory()

    def tidy(self) -> None:
        """Removes the unfinished copy that a killed process may have left. Raises: as `read`."""
        try:
            directory = _open_directory(self.directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise FixFailed(_what(self.directory, error)) from error
        try:
            os.unlink(self._fresh, dir_fd=directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise FixFailed(_what(self.path, error)) from error
        finally:
            os.close(directory)

    def diff(self, text: str | None) -> str:
        """A unified diff from the file as it is to `text`.

        Raises: as `read`.
        """
        old = self.read()
        return "".join(
            difflib.unified_diff(
                [] if old is None else old.splitlines(keepends=True),
                [] if text is None else text.splitlines(keepends=True),
                "/dev/null" if old is None else self.path,
                "/dev/null" if text is None else self.path,
            )
        )

    def _read_in(self, directory: int) -> str | None:
        try:
            descriptor = os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if _is_link(self.name, directory):
                raise FixRefused(f"{self.path} is a symbolic link, not a file of triaged's", "remove the link") from error
            raise FixFailed(_what(self.path, error)) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size > _CAP_BYTES:
                raise FixRefused(f"{self.path} is not a plain small file of one name", "move it away")
            _refuse_others(self.path, status)
            return os.read(descriptor, _CAP_BYTES).decode("utf-8", "surrogateescape")
        finally:
            os.close(descriptor)

    def _replace_in(self, directory: int, text: str) -> None:
        fresh = self._fresh  # ours alone (see the check of the directory), so a left-over may go
        with suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=directory)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=directory)
        try:
            try:
                os.fchmod(descriptor, 0o644)  # whatever the umask
                left = memoryview(text.encode("utf-8", "surrogateescape"))
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(fresh, self.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            os.unlink(fresh, dir_fd=directory)
            raise

    def _make_directory(self) -> None:
        above, name = os.path.split(self.directory)
        try:
            directory = _open_directory(above)
        except FileNotFoundError:
            # /etc/systemd and the like exist wherever systemd does; /run/systemd/system may not yet.
            os.makedirs(above, 0o755)
            directory = _open_directory(above)
        try:
            os.mkdir(name, 0o755, dir_fd=directory)
            made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.fchmod(made, 0o755)  # whatever the umask: `systemctl cat` is for everybody
            finally:
                os.close(made)
            os.fsync(directory)
        except FileExistsError:
            pass
        finally:
            os.close(directory)

    def _remove_directory(self) -> None:
        with suppress(OSError):  # others keep files there
            os.rmdir(self.directory)


def _open_directory(path: str) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if os.path.islink(path):
            raise FixRefused(f"{path} is a symbolic link, not a directory", "make it a directory") from error
        raise
    try:
        _refuse_others(path, os.fstat(descriptor))
    except FixRefused:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_others(path: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise FixRefused(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}", "correct its owner")
    if status.st_mode & 0o022:
        raise FixRefused(f"{path} may be changed by others (mode {status.st_mode & 0o7777:04o})", "chmod go-w")


def _is_link(name: str, directory: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _what(path: str, error: OSError) -> str:
    return f"{path}: {os.strerror(error.errno or 0).lower()}"
