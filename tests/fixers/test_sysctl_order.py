# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from triaged.kernel.paths import KernelPaths
from triaged.kernel.sysctl_order import parse_assignments, read_assignments, read_order


def put(tree: Path, path: str, text: str) -> None:
    file = tree / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def winner(tree: Path, key: str) -> str:
    found = read_assignments(KernelPaths.below(str(tree)), key)
    return f"{os.path.relpath(found[-1].path, tree)}:{found[-1].line}={found[-1].value}" if found else ""


def test_nobody_sets_it(tree: Path) -> None:
    assert winner(tree, "kernel.pid_max") == ""


def test_the_later_name_wins_whatever_its_directory(tree: Path) -> None:
    put(tree, "usr/lib/sysctl.d/50-pid-max.conf", "kernel.pid_max = 4194304\n")
    put(tree, "etc/sysctl.d/10-first.conf", "kernel.pid_max = 1000\n")
    assert winner(tree, "kernel.pid_max") == "usr/lib/sysctl.d/50-pid-max.conf:1=4194304"


def test_a_name_in_etc_hides_the_same_name_elsewhere(tree: Path) -> None:
    put(tree, "usr/lib/sysctl.d/50-pid-max.conf", "kernel.pid_max = 4194304\n")
    put(tree, "etc/sysctl.d/50-pid-max.conf", "# nothing\n")
    assert winner(tree, "kernel.pid_max") == ""


def test_a_link_to_dev_null_masks_a_file(tree: Path) -> None:
    put(tree, "usr/lib/sysctl.d/50-pid-max.conf", "kernel.pid_max = 4194304\n")
    (tree / "etc/sysctl.d/50-pid-max.conf").symlink_to("/dev/null")
    assert winner(tree, "kernel.pid_max") == ""


def test_an_explicit_key_beats_a_glob_of_a_later_file(tree: Path) -> None:
    put(tree, "etc/sysctl.d/10-a.conf", "net.ipv6.conf.lo.disable_ipv6 = 0\n")
    put(tree, "etc/sysctl.d/90-b.conf", "net.ipv6.conf.*.disable_ipv6 = 1\n")
    assert winner(tree, "net.ipv6.conf.lo.disable_ipv6") == "etc/sysctl.d/10-a.conf:1=0"
    assert winner(tree, "net.ipv6.conf.all.disable_ipv6") == "etc/sysctl.d/90-b.conf:1=1"


def test_files_that_do_not_end_in_conf_do_not_count(tree: Path) -> None:
    put(tree, "etc/sysctl.d/99-a.conf.bak", "kernel.pid_max = 1\n")
    assert read_order(KernelPaths.below(str(tree))) == ()


@pytest.mark.parametrize("line", [
    "kernel.pid_max=5", "kernel/pid_max = 5", "-kernel.pid_max = 5", "  kernel.pid_max\t=  5 ", "- kernel.pid_max=5",
])  # fmt: skip
def test_spellings_of_one_assignment(line: str) -> None:
    assert [found.value for found in parse_assignments("f", line, "kernel/pid_max")] == ["5"]


@pytest.mark.parametrize("line", ["# kernel.pid_max=5", "; kernel.pid_max=5", "kernel.pid_max", "", "-kernel.pid_max", "k.*=5"])
def test_what_assigns_nothing(line: str) -> None:
    assert [found for found in parse_assignments("f", line, "kernel/pid_max") if not found.is_glob] == []


def test_a_star_does_not_span_a_slash() -> None:
    assert parse_assignments("f", "net.*.disable_ipv6 = 1", "net/ipv6/conf/lo/disable_ipv6") == []


def test_a_dot_within_an_interface_name_is_written_as_a_slash() -> None:
    found = parse_assignments("f", "net.ipv4.conf.eth0/100.rp_filter = 1", "net/ipv4/conf/eth0.100/rp_filter")
    assert [item.value for item in found] == ["1"]


def test_the_order_is_the_one_that_systemd_prints(tree: Path) -> None:
    """systemd-sysctl --cat-config lists the files in the order in which it reads them."""
    program = "/usr/lib/systemd/systemd-sysctl"
    if not os.access(program, os.X_OK):
        pytest.skip("systemd is not installed")
    for name in ("etc/10-a", "run/20-b", "usr/lib/15-c", "usr/lib/20-b", "usr/local/lib/30-d", "etc/9-e", "etc/zz-f", "etc/A"):
        directory, _, base = name.rpartition("/")
        put(tree, f"{directory}/sysctl.d/{base}.conf", "kernel.pid_max = 1\n")
    out = subprocess.run([program, "--cat-config", f"--root={tree}"], capture_output=True, text=True)
    if "unrecognized option" in out.stderr:
        # No --root in this systemd: look through its eyes in a mount namespace of our own.
        hide = "mount -t tmpfs none /run && mount -t tmpfs none /usr/local/lib && mkdir /run/sysctl.d /usr/local/lib/sysctl.d"
        binds = " && ".join(f"mount --bind {tree}/{name} /{name}" for name in (
            "etc/sysctl.d", "run/sysctl.d", "usr/lib/sysctl.d", "usr/local/lib/sysctl.d"))  # fmt: skip
        if os.geteuid() != 0:
            pytest.skip("needs root for a mount namespace")
        script = f"{hide} && {binds} && {program} --cat-config"
        out = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
        expected = [f"/{os.path.relpath(path, tree)}" for path in read_order(KernelPaths.below(str(tree)))]
    else:
        expected = list(read_order(KernelPaths.below(str(tree))))
    printed = [line[2:] for line in out.stdout.splitlines() if line.startswith("# /")]
    assert printed == expected
    assert len(printed) == 7


def test_a_name_after_a_dash_without_a_value_is_left_out_of_every_glob(tree: Path) -> None:
    put(tree, "etc/sysctl.d/10-a.conf", "net.ipv4.conf.*.rp_filter = 2\n")
    put(tree, "usr/lib/sysctl.d/50-b.conf", "-net.ipv4.conf.all.rp_filter\n")
    assert winner(tree, "net.ipv4.conf.all.rp_filter") == ""
    assert winner(tree, "net.ipv4.conf.lo.rp_filter") == "etc/sysctl.d/10-a.conf:1=2"


def test_a_dot_inside_an_interface_name_is_written_as_a_slash(tree: Path) -> None:
    put(tree, "etc/sysctl.d/10-a.conf", "net/ipv4/conf/eth0.1/rp_filter = 2\n")
    assert winner(tree, "net.ipv4.conf.eth0/1.rp_filter") == "etc/sysctl.d/10-a.conf:1=2"
