# SPDX-License-Identifier: Apache-2.0
"""Go build info, from ELF files written here in both formats and from a real `go test -c`."""
from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triaged.errors import Gone, KernelError, Malformed
from triaged.kernel.build_info import BuildInfoCache, GoBuildInfo, read_go_build_info

MAGIC = b"\xff Go buildinf:"
TEXT = b"s" * 16 + b"path\texample.org/app/worker.test\nmod\texample.org/app\t(devel)\t\ndep\tx\tv1\n" + b"e" * 16
EXPECTED = GoBuildInfo("go1.22.1", "example.org/app/worker.test", "example.org/app")
ADDRESS = 0x400000
SEGMENT_AT = 0x200


def uvarint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def inline_blob(version: bytes = b"go1.22.1", text: bytes = TEXT) -> bytes:
    head = MAGIC + bytes([8, 2])
    return head.ljust(32, b"\0") + uvarint(len(version)) + version + uvarint(len(text)) + text


def pointer_blob(order: str, size: int, version: bytes = b"go1.22.1", text: bytes = TEXT) -> bytes:
    word = order + ("Q" if size == 8 else "I")
    headers_at, version_at = 64, 64 + 4 * size
    text_at = version_at + len(version)
    blob = MAGIC + bytes([size, 1 if order == ">" else 0])
    blob += struct.pack(word, ADDRESS + headers_at) + struct.pack(word, ADDRESS + headers_at + 2 * size)
    blob = blob.ljust(headers_at, b"\0")
    for value in (ADDRESS + version_at, len(version), ADDRESS + text_at, len(text)):
        blob += struct.pack(word, value)
    return blob + version + text


def elf(content: bytes, order: str = "<", bits: int = 64, with_section: bool = True) -> bytes:
    """An ELF file with one writable segment that holds `content`, and a section header for it if wanted."""
    wide = bits == 64
    names = b"\0.go.buildinfo\0.shstrtab\0"
    names_at = SEGMENT_AT + len(content)
    sections_at = names_at + len(names) if with_section else 0
    phoff = 64
    head = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    head += struct.pack(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
                        2, 62, 1, ADDRESS, phoff, sections_at, 0, 64 if wide else 52, 56 if wide else 32, 1,
                        64 if wide else 40, 3 if with_section else 0, 2 if with_section else 0)
    if wide:
        program = struct.pack(order + "IIQQQQQQ", 1, 6, SEGMENT_AT, ADDRESS, ADDRESS, len(content), len(content), 4096)
    else:
        program = struct.pack(order + "IIIIIIII", 1, SEGMENT_AT, ADDRESS, ADDRESS, len(content), len(content), 6, 4096)
    out = head.ljust(phoff, b"\0") + program
    out = out.ljust(SEGMENT_AT, b"\0") + content + names
    if with_section:
        layout = order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
        for name, where, size in ((0, 0, 0), (1, SEGMENT_AT, len(content)), (15, names_at, len(names))):
            out += struct.pack(layout, name, 1, 3, ADDRESS, where, size, 0, 0, 16, 0)
    return out


def written(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "worker.test"
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize(("order", "bits"), [("<", 64), (">", 64), ("<", 32), (">", 32)])
@pytest.mark.parametrize("with_section", [True, False])
@pytest.mark.parametrize("is_inline", [True, False])
def test_the_package_is_found_in_every_format(tmp_path: Path, order: str, bits: int, with_section: bool, is_inline: bool) -> None:
    blob = inline_blob() if is_inline else pointer_blob(order, bits // 8)
    found = read_go_build_info(written(tmp_path, elf(blob, order, bits, with_section)))
    assert found == EXPECTED
    assert found.tested_package == "example.org/app/worker"


def test_the_blob_is_found_behind_other_data_where_the_sections_are_gone(tmp_path: Path) -> None:
    unaligned = b"x" * 5 + MAGIC + b"y" * (4096 - 5 - len(MAGIC))
    assert read_go_build_info(written(tmp_path, elf(unaligned + inline_blob(), with_section=False))) == EXPECTED


def test_a_long_list_of_modules_does_not_hide_the_package(tmp_path: Path) -> None:
    text = TEXT[:-16] + b"dep\tm\tv1\n" * 20000 + b"e" * 16
    assert read_go_build_info(written(tmp_path, elf(inline_blob(text=text)))) == replace(EXPECTED, default_godebug=None)


def test_a_binary_from_a_list_of_files_names_no_package() -> None:
    assert GoBuildInfo("go1.22.1", "command-line-arguments.test").tested_package == ""
    assert GoBuildInfo("go1.22.1", "example.org/app/cmd").tested_package == ""


def test_what_is_no_go_program_has_no_build_info(tmp_path: Path) -> None:
    assert read_go_build_info(written(tmp_path, b"#!/bin/sh\n")) is None
    assert read_go_build_info(written(tmp_path, b"")) is None
    assert read_go_build_info(written(tmp_path, elf(b"x" * 64))) is None
    assert read_go_build_info("/proc/self/exe") is None


@pytest.mark.parametrize("data", [
    b"\x7fELF",
    b"\x7fELF\x02\x01" + b"\xff" * 58,
    elf(inline_blob())[: SEGMENT_AT + 20],
    elf(inline_blob()[:33] + b"\xff" * 20),
    elf(inline_blob(version=b"")),
    elf(MAGIC + bytes([3, 0]) + bytes(48)),
])
def test_a_broken_elf_file_is_malformed_and_named(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path, data)
    with pytest.raises(Malformed) as caught:
        read_go_build_info(path)
    assert caught.value.path == path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.sampled_from([elf(inline_blob()), elf(pointer_blob("<", 8)), elf(pointer_blob("<", 8), with_section=False)]),
       st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=8)), max_size=4), st.integers(0, 1200))
def test_no_damage_to_a_file_raises_anything_else(tmp_path: Path, whole: bytes, damage: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(whole)
    for at, patch in damage:
        data[at : at + len(patch)] = patch
    try:
        found = read_go_build_info(written(tmp_path, bytes(data[: cut or None])))
    except KernelError:
        return
    assert found is None or found.go_version


def test_a_fifo_named_like_a_test_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.test")
    with pytest.raises(KernelError, match="not a regular file"):
        read_go_build_info(str(tmp_path / "x.test"))


def test_a_binary_is_read_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = BuildInfoCache(cap=2)
    path = written(tmp_path, elf(inline_blob()))
    assert cache.read(path) == EXPECTED
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", None)  # a second look at the content would fail
        assert cache.read(path) == EXPECTED
    written(tmp_path, elf(inline_blob(version=b"go1.23.45")))
    found = cache.read(path)
    assert found is not None
    assert found.go_version == "go1.23.45"


def test_a_malformed_binary_is_told_once(tmp_path: Path) -> None:
    cache = BuildInfoCache()
    path = written(tmp_path, elf(inline_blob(version=b"")))
    with pytest.raises(Malformed):
        cache.read(path)
    assert cache.read(path) is None


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    cache = BuildInfoCache(cap=2)
    for name in "abc":
        (tmp_path / name).write_bytes(elf(inline_blob()))
        cache.read(str(tmp_path / name))
    assert len(cache._known) == 2


def test_a_binary_that_went_away_is_gone(tmp_path: Path) -> None:
    with pytest.raises(Gone):
        read_go_build_info(str(tmp_path / "none"))


@pytest.mark.parametrize("link", ["", "-s -w"])
def test_a_real_go_test_binary_names_its_package(tmp_path: Path, link: str) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("needs a Go toolchain in PATH")
    (tmp_path / "go.mod").write_text("module example.org/app\n\ngo 1.18\n")
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker/worker_test.go").write_text('package worker\nimport "testing"\nfunc TestNothing(t *testing.T) {}\n')
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOPROXY": "off"}
    environment.setdefault("GOCACHE", str(tmp_path / "cache"))
    subprocess.run(
        [go, "test", "-c", f"-ldflags={link}", "-o", "w.test", "./worker"], cwd=tmp_path, env=environment, check=True,
    )
    found = read_go_build_info(str(tmp_path / "w.test"))
    assert found is not None
    assert found.tested_package == "example.org/app/worker"
    assert found.module == "example.org/app"
    assert found.go_version == subprocess.run(
        [go, "env", "GOVERSION"], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_settings_that_the_go_line_brought_are_read(tmp_path: Path) -> None:
    text = TEXT[:-16] + b"build\t-compiler=gc\nbuild\tDefaultGODEBUG=containermaxprocs=0,x=1\nbuild\tGOOS=linux\n" + b"e" * 16
    info = read_go_build_info(written(tmp_path, elf(inline_blob(text=text))))
    assert info == replace(EXPECTED, default_godebug="containermaxprocs=0,x=1")
