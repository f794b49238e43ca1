# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from triaged.errors import Gone, KernelError
from triaged.kernel import parameters
from triaged.kernel.parameters import ParameterReader, parameter_path
from triaged.kernel.paths import KernelPaths


def write(root: Path, name: str, value: bytes) -> KernelPaths:
    path = root / "proc/sys" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value)
    return KernelPaths.below(str(root))


def read(paths: KernelPaths, key: str) -> str:
    reader = ParameterReader(paths)
    try:
        return reader.read(key)
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("kernel.pid_max", "kernel/pid_max"),
        ("kernel/pid_max", "kernel/pid_max"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("hostname", "hostname"),
    ],
)
def test_the_first_separator_says_what_dots_and_slashes_mean(key: str, path: str) -> None:
    assert parameter_path(KernelPaths(), key) == f"/proc/sys/{path}"


@pytest.mark.parametrize("key", ["", ".", "..", "kernel..pid_max", "/kernel/pid_max", "kernel/../pid_max", "a.b\n", "a.\0", "a."])
def test_what_could_leave_proc_sys_is_no_parameter(key: str) -> None:
    with pytest.raises(KernelError, match="not the name of a kernel parameter"):
        parameter_path(KernelPaths(), key)


def test_a_value_is_given_as_the_kernel_writes_it_without_its_newline(tmp_path: Path) -> None:
    paths = write(tmp_path, "net/ipv4/ip_local_port_range", b"32768\t60999\n")
    assert read(paths, "net.ipv4.ip_local_port_range") == "32768\t60999"


def test_bytes_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    assert os.fsencode(read(write(tmp_path, "kernel/hostname", b"h\xff\n"), "kernel.hostname")) == b"h\xff"


def test_a_parameter_that_this_kernel_lacks_is_missing_not_empty(tmp_path: Path) -> None:
    paths = write(tmp_path, "kernel/pid_max", b"1\n")
    for key in ("kernel.unprivileged_userns_clone", "kernel.pid_max.deeper", "kernel"):
        with pytest.raises(Gone):
            read(paths, key)


def test_capabilities_do_not_open_what_only_root_may_read() -> None:
    path = "/proc/sys/net/core/bpf_jit_harden"
    if os.geteuid() != 0 or not os.path.exists(path) or os.stat(path).st_mode & 0o044:
        pytest.skip(f"needs root and a kernel where only root may read {path}")
    code = f"import os; os.setresuid(65534, 65534, 65534); open({path!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"PermissionError" in done.stderr


def test_a_kept_descriptor_shows_the_value_of_now(tmp_path: Path) -> None:
    reader = ParameterReader(write(tmp_path, "kernel/pid_max", b"32768\n"))
    assert reader.read("kernel.pid_max") == "32768"
    write(tmp_path, "kernel/pid_max", b"4194304\n")
    assert reader.read("kernel.pid_max") == "4194304"
    reader.close()


def test_a_file_that_was_made_again_is_read_again(tmp_path: Path) -> None:
    reader = ParameterReader(write(tmp_path, "kernel/x", b"1\n"))
    assert reader.read("kernel.x") == "1"
    (descriptor,) = reader._open.values()
    os.dup2(os.open(tmp_path, os.O_RDONLY), descriptor)  # reading it fails, as that of an unloaded module's parameter does
    assert reader.read("kernel.x") == "1"
    reader.close()


def test_only_so_many_descriptors_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "_KEPT", 2)
    names = [f"kernel/p{number}" for number in range(6)]
    for name in names:
        paths = write(tmp_path, name, b"1\n")
    before = len(os.listdir("/proc/self/fd"))
    reader = ParameterReader(paths)
    assert [reader.read(name) for name in names] == ["1"] * 6
    assert len(os.listdir("/proc/self/fd")) == before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_every_parameter_of_this_kernel_is_read_or_its_refusal_named() -> None:
    paths, readable, refused = KernelPaths(), 0, 0
    reader = ParameterReader(paths)
    for directory, _, files in os.walk("/proc/sys"):
        for name in files:
            path = f"{directory}/{name}"
            key = path.removeprefix("/proc/sys/").translate(str.maketrans("./", "/."))
            assert parameter_path(paths, key) == path
            try:
                reader.read(key)
                readable += 1
            except KernelError:
                refused += 1
    reader.close()
    assert readable > 300
    assert refused < readable / 5
