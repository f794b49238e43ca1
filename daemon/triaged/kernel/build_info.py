# SPDX-License-Identifier: Apache-2.0
"""What a Go executable says about itself: the package, the module and the Go version that built it.

The linker leaves a blob that starts with a magic, in the section .go.buildinfo or, where the section headers were removed,
somewhere in the first writable segment (cmd/link, debug/buildinfo). Since Go 1.18 the blob holds the two strings; before,
it points to Go string headers. A binary of `go test` carries "path example.org/app/worker.test" (seen with 1.27, also with -s -w).
"""
from __future__ import annotations

import os
import stat
import struct
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from triaged.errors import KernelError, Malformed
from triaged.kernel.files import translated

_MAGIC = b"\xff Go buildinf:"
_ALIGN = 16
_INLINE = 2
_BIG_ENDIAN = 1
_VERSION_CAP = 256
_MODULE_TEXT_CAP = 1 << 16  # "path" and "mod" are its first lines; the many "dep" lines are not wanted
_SENTINEL = 16  # bytes before and after the module text
_SEARCH_CAP = 1 << 20  # of the writable segment, where there is no section header to follow
_HEADERS_CAP = 1 << 16
_PT_LOAD = 1
_WRITABLE = 2


@dataclass(frozen=True)
class GoBuildInfo:
    """What the linker wrote. `path` is the main package's import path; `module` is "" where it was built outside of one.

    `default_godebug` are the settings that the main module's go line made differ from the toolchain's own ("name=value,..."); None
    where the text was too long to be read to its end.
    """

    go_version: str
    path: str = ""
    module: str = ""
    default_godebug: str | None = ""

    @property
    def tested_package(self) -> str:
        """The package that a test binary tests; '' if this is no test binary or it was built from a list of files."""
        package = self.path.removesuffix(".test")
        return "" if package == self.path or package == "command-line-arguments" else package


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    address: int
    file_size: int


class _Elf:
    """As much of an ELF file as is needed, each read bounded."""

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor = descriptor
        self.path = path
        head = os.pread(descriptor, 64, 0)
        if len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise Malformed(path, head[:16].hex(), "no ELF header")
        self.is_64 = head[4] == 2
        self.order = "<" if head[5] == 1 else ">"
        if self.is_64:
            if len(head) < 64:
                raise Malformed(path, head.hex(), "ELF header cut short")
            phoff, shoff = struct.unpack_from(self.order + "QQ", head, 32)
            sizes = struct.unpack_from(self.order + "HHHHH", head, 54)
        else:
            phoff, shoff = struct.unpack_from(self.order + "II", head, 28)
            sizes = struct.unpack_from(self.order + "HHHHH", head, 42)
        self._programs = (phoff, sizes[0], sizes[1])
        self._sections = (shoff, sizes[2], sizes[3])
        self._names_index = sizes[4]

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes at a file offset."""
        if offset < 0 or offset > 1 << 62 or size < 0:
            raise Malformed(self.path, f"offset {offset}, size {size}", "ELF offset out of range")
        return os.pread(self.descriptor, size, offset)

    def _table(self, where: tuple[int, int, int], layout: struct.Struct) -> Iterator[tuple[int, ...]]:
        offset, size, number = where
        if not offset or not number:
            return
        if size < layout.size:
            raise Malformed(self.path, f"entry size {size}", "ELF header table")
        data = self.read(offset, min(size * number, _HEADERS_CAP))
        for at in range(0, len(data) - layout.size + 1, size):
            yield layout.unpack_from(data, at)

    def segments(self) -> Iterator[_Segment]:
        """The program headers."""
        if self.is_64:
            for kind, flags, offset, address, _, file_size in self._table(self._programs, struct.Struct(self.order + "IIQQQQ")):
                yield _Segment(kind, flags, offset, address, file_size)
        else:
            for kind, offset, address, _, file_size, _, flags in self._table(
                self._programs, struct.Struct(self.order + "IIIIIII")
            ):
                yield _Segment(kind, flags, offset, address, file_size)

    def section(self, name: bytes) -> tuple[int, int] | None:
        """Offset and size in the file of a section, or None."""
        layout = struct.Struct(self.order + ("IIQQQQ" if self.is_64 else "IIIIII"))
        headers = list(self._table(self._sections, layout))
        if self._names_index >= len(headers):
            return None
        names = self.read(headers[self._names_index][4], min(headers[self._names_index][5], _HEADERS_CAP))
        for header in headers:
            if names[header[0] : header[0] + len(name) + 1] == name + b"\0":
                return header[4], header[5]
        return None

    def at_address(self, address: int, size: int) -> bytes:
        """At most `size` bytes of what is mapped at an address; b"" if nothing of the file is."""
        for segment in self.segments():
            into = address - segment.address
            if segment.kind == _PT_LOAD and 0 <= into < segment.file_size:
                return self.read(segment.offset + into, min(size, segment.file_size - into))
        return b""


def read_go_build_info(path: str) -> GoBuildInfo | None:
    """What a Go executable says about itself; None if the file is no Go program.

    `path` is best /proc/PID/exe, which works across mount namespaces and after the file was removed.
    Raises: Gone, NotPermitted, KernelError; Malformed for an ELF file whose headers or strings contradict each other.
    """
    descriptor = _open(path)
    try:
        return _from_descriptor(descriptor, path)
    except OSError as error:
        raise translated(error, path) from error
    finally:
        os.close(descriptor)


class BuildInfoCache:
    """Build infos by (device, inode, time of change), at most `cap` of them: one binary is read once."""

    def __init__(self, cap: int = 256) -> None:
        self._cap = cap
        self._known: OrderedDict[tuple[int, int, int, int], GoBuildInfo | None] = OrderedDict()

    def read(self, path: str) -> GoBuildInfo | None:
        """As `read_go_build_info`; what cannot be parsed is remembered as no Go program after it was raised once.

        Raises: as `read_go_build_info`.
        """
        descriptor = _open(path)
        try:
            about = os.fstat(descriptor)
            key = (about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size)
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            self._known[key] = None
            if len(self._known) > self._cap:
                self._known.popitem(last=False)
            self._known[key] = _from_descriptor(descriptor, path)
            return self._known[key]
        except OSError as error:
            raise translated(error, path) from error
        finally:
            os.close(descriptor)


def _open(path: str) -> int:
    try:
        # Never block on a FIFO that somebody named like a test binary.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise translated(error, path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise KernelError(path, "not a regular file")
    return descriptor


def _from_descriptor(descriptor: int, path: str) -> GoBuildInfo | None:
    if os.pread(descriptor, 4, 0) != b"\x7fELF":
        return None
    elf = _Elf(descriptor, path)
    offset = _find_blob(elf)
    if offset is None:
        return None
    head = elf.read(offset, 32)
    if len(head) < 32:
        raise Malformed(path, head.hex(), "Go build info cut short")
    pointer_size, flags = head[14], head[15]
    if flags & _INLINE:
        data = elf.read(offset + 32, _VERSION_CAP + _MODULE_TEXT_CAP + 16)
        version, rest = _inline_string(data, path)
        module_text, _ = _inline_string(rest, path, may_be_cut=True)
    else:
        version = _pointed_string(elf, head, 16, pointer_size, flags)
        module_text = _pointed_string(elf, head, 16 + pointer_size, pointer_size, flags)
    if not version or len(version) > _VERSION_CAP:
        raise Malformed(path, version[:64].hex(), "Go version in the build info")
    main_path, module = _parse_module_text(module_text)
    return GoBuildInfo(_text(version), main_path, module, _default_godebug(module_text))


def _find_blob(elf: _Elf) -> int | None:
    place = elf.section(b".go.buildinfo")
    if place is None:
        place = next(
            ((segment.offset, segment.file_size) for segment in elf.segments()
             if segment.kind == _PT_LOAD and segment.flags & _WRITABLE),
            None,
        )
    if place is None:
        return None
    offset, size = place
    data = elf.read(offset, min(size, _SEARCH_CAP))
    at = data.find(_MAGIC)
    while at >= 0:
        if at % _ALIGN == 0:
            return offset + at
        at = data.find(_MAGIC, at + 1)
    return None


def _inline_string(data: bytes, path: str, may_be_cut: bool = False) -> tuple[bytes, bytes]:
    length = used = 0
    while used == 0 or data[used - 1] >= 0x80:  # encoding/binary, Uvarint
        if used >= min(len(data), 10):
            raise Malformed(path, data[:16].hex(), "string length in the Go build info")
        length |= (data[used] & 0x7F) << 7 * used
        used += 1
    if used + length > len(data) and not may_be_cut:
        raise Malformed(path, data[:16].hex(), "string in the Go build info cut short")
    return data[used : used + length], data[used + length :]


def _pointed_string(elf: _Elf, head: bytes, at: int, pointer_size: int, flags: int) -> bytes:
    if pointer_size not in (4, 8):
        raise Malformed(elf.path, head.hex(), "pointer size in the Go build info")
    layout = (">" if flags & _BIG_ENDIAN else "<") + ("Q" if pointer_size == 8 else "I")
    (address,) = struct.unpack_from(layout, head, at)
    header = elf.at_address(address, 2 * pointer_size)
    if len(header) < 2 * pointer_size:
        return b""
    (start,) = struct.unpack_from(layout, header, 0)
    (length,) = struct.unpack_from(layout, header, pointer_size)
    return elf.at_address(start, min(length, _MODULE_TEXT_CAP))


def _parse_module_text(text: bytes) -> tuple[str, str]:
    path = module = b""
    for line in text[_SENTINEL:].split(b"\n"):
        kind, _, rest = line.partition(b"\t")
        if kind == b"path":
            path = path or rest
        elif kind == b"mod":
            module = module or rest.partition(b"\t")[0]
        elif kind in (b"dep", b"build"):
            break
    return _text(path), _text(module)


def _default_godebug(text: bytes) -> str | None:
    _, found, rest = text.partition(b"\nbuild\tDefaultGODEBUG=")
    if found:
        return _text(rest.partition(b"\n")[0])
    # The text ends in a newline before its sentinel; one that was cut does not.
    is_whole = not text or text[-_SENTINEL - 1 : -_SENTINEL] == b"\n"
    return "" if is_whole else None


def _text(value: bytes) -> str:
    return value[:1024].decode("utf-8", "surrogateescape")
