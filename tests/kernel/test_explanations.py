# SPDX-License-Identifier: Apache-2.0
"""Real processes that are really refused something, read as they are and explained by all hypotheses at once.

Each runs in namespaces of its own where it has to; nothing of this machine is changed.
"""
from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from triaged.explain.hypotheses import HYPOTHESES
from triaged.explain.hypothesis import explain
from triaged.explain.situation import Situation
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_state import read_process_state
from triaged.model.cause import Blamed, Explanation, Status
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.seccomp.syscalls import native_arch

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces and drop capabilities")
PATHS = KernelPaths()
NOBODY = 65534
PYTHON = os.path.realpath(sys.executable)

# Does what it is told, says how it failed, and stays as it is until it is told to go.
_BODY = """
import ctypes, errno, json, os, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def raw(*arguments):
    if libc.syscall(*(ctypes.c_long(each) if isinstance(each, int) else each for each in arguments)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
try:
    exec(sys.argv[1])
    print(json.dumps(""), flush=True)
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]), flush=True)
sys.stdin.read(1)
"""
_FILTER = """
import struct
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, {answer}), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(317, 1, 0, program) == 0
"""


@dataclass
class Refused:
    """A process that failed with `errno` and waits."""

    process: subprocess.Popen[str]
    errno: str

    def situation(self, syscall: str, path: str = "", text: str = "", **more: object) -> Situation:
        state = read_process_state(PATHS, self.process.pid, with_filters=True)
        seen = SeenIn.OUTPUT if text and not syscall else SeenIn.TRACE
        symptom = Symptom(SymptomKind.CALL, syscall, self.errno, path=path, text=text, seen_in=seen, **more)  # type: ignore[arg-type]
        return Situation(symptom, state)

    def explained(self, syscall: str, path: str = "", text: str = "", **more: object) -> Explanation:
        return explain(self.situation(syscall, path, text, **more), HYPOTHESES)


Start = Callable[..., Refused]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that does `code`, below `launcher`."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, *launcher: str, python: str = PYTHON) -> Refused:
        child = subprocess.Popen(
            [*launcher, python, "-I", "-S", "-c", _BODY, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout
        line = child.stdout.readline()
        assert line, "it died before it could be refused anything"
        return Refused(child, json.loads(line))

    yield run
    for child in started:
        child.communicate("x")


def only(found: Explanation) -> Blamed:
    """The first cause; no other one is claimed as surely."""
    assert found.causes, found
    first, rest = found.causes[0], found.causes[1:]
    assert not [each.cause for each in rest if each.status is Status.PROVED], found.causes
    return first


def without(name: str) -> tuple[str, ...]:
    return ("setpriv", f"--bounding-set=-{name}")


def as_nobody(*more: str) -> tuple[str, ...]:
    return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *more)


def in_mounts(script: str) -> tuple[str, ...]:
    """Below mounts of its own, made by a shell script."""
    return ("unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{script}\nexec "$@"', "sh")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers are those of x86_64")
@pytest.mark.parametrize(("number", "name"), [
    (319, "memfd_create"), (425, "io_uring_setup"), (298, "perf_event_open"), (250, "keyctl"),
])
def test_a_filter_that_refuses_is_proved_by_itself(start: Start, number: int, name: str) -> None:
    assert native_arch() == "x86_64"
    refused = start(_FILTER.format(number=number, answer=0x00050001) + f"raw({number}, 0, 0, 0, 0, 0)")
    assert refused.errno == "EPERM"
    for entered in (None, False):
        found = only(refused.explained(name, entered=entered))
        assert (found.cause, found.status) == (f"seccomp.{name}", Status.PROVED)


@pytest.mark.parametrize(("capability", "name", "code", "syscall", "refusal"), [
    ("chown", "CHOWN", "os.chown('/proc/self/fd/0', 12, 12)", "fchownat", "EPERM"),
    ("sys_admin", "SYS_ADMIN", "raw(165, None, b'/tmp', None, 0x40000, None)", "mount", "EPERM"),
    ("sys_admin", "SYS_ADMIN", "raw(170, b'x', 1)", "sethostname", "EPERM"),
    ("sys_admin", "SYS_ADMIN", "raw(272, 0x04000000)", "unshare", "EPERM"),
    ("sys_chroot", "SYS_CHROOT", "os.chroot('/')", "chroot", "EPERM"),
    ("setuid", "SETUID", "os.setresuid(5, 5, 5)", "setresuid", "EPERM"),
    ("setgid", "SETGID", "os.setgroups([5])", "setgroups", "EPERM"),
    ("net_raw", "NET_RAW", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "socket", "EPERM"),
    ("sys_nice", "SYS_NICE", "os.setpriority(os.PRIO_PROCESS, 0, -5)", "setpriority", "EACCES"),
    ("sys_nice", "SYS_NICE", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))", "sched_setscheduler", "EPERM"),
    ("mknod", "MKNOD", "os.mknod('/tmp/triaged-no-such-device', 0o020600, os.makedev(1, 3))", "mknodat", "EPERM"),
    ("kill", "KILL", "os.setresuid(0, 0, 0); raw(62, 1, 0)", "kill", ""),
])
def test_a_capability_that_was_taken_from_root_is_proved(
    start: Start, capability: str, name: str, code: str, syscall: str, refusal: str
) -> None:
    if os.uname().machine != "x86_64" and "raw(" in code:
        pytest.skip("the call's number is that of x86_64")
    refused = start(code, *without(capability))
    assert refused.errno == refusal
    if not refusal:
        return  # root may signal its own without it: the control
    arguments = {"unshare": (0x04000000, 0, 0, 0, 0, 0), "socket": (2, 3, 1, 0, 0, 0)}.get(syscall, ())
    found = only(refused.explained(syscall, arguments=arguments))
    assert (found.cause, found.status) == (f"capability.CAP_{name}", Status.PROVED)


def test_a_low_port_is_the_parameters_for_a_user_and_the_capabilitys_for_root(start: Start) -> None:
    start_at = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip()
    if start_at == "0":
        pytest.skip("every port is open to everybody here")
    code = "socket.socket().bind(('127.0.0.1', 80))"
    user = start(code, *as_nobody())
    assert user.errno == "EACCES"
    found = user.explained("bind", path="127.0.0.1:80").causes
    assert [each.cause for each in found][:2] == ["sysctl.net.ipv4.ip_unprivileged_port_start", "capability.CAP_NET_BIND_SERVICE"]
    root = start(code, *without("net_bind_service"))
    assert root.errno == "EACCES"
    assert root.explained("bind", path="127.0.0.1:80").causes[0].cause == "capability.CAP_NET_BIND_SERVICE"


def test_root_of_a_user_namespace_meets_its_bounds(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("")
    inside = ("unshare", "--user", "--map-root-user")
    unmapped = start(f"os.chown({str(file)!r}, 12, 12)", *inside)
    assert unmapped.errno == "EINVAL"
    found = only(unmapped.explained("fchownat", path=str(file), arguments=(0xFFFFFF9C, 0, 12, 12, 0, 0)))
    assert (found.cause, found.status) == ("process.user-namespace", Status.PROVED)
    groups = start("os.setgroups([0])", *inside)
    assert groups.errno == "EPERM"
    assert only(groups.explained("setgroups")).cause == "process.user-namespace"
    port = start("socket.socket().bind(('127.0.0.1', 80))", *inside)
    if port.errno:
        assert port.errno == "EACCES"
        assert port.explained("bind", path="127.0.0.1:80").causes[0].cause == "process.user-namespace"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers are those of x86_64")
def test_no_user_namespace_more_in_a_user_namespace(start: Start) -> None:
    inside = ("unshare", "--user", "--map-root-user", "sh", "-ec", 'echo 0 > /proc/sys/user/max_user_namespaces\nexec "$@"', "sh")
    refused = start("raw(272, 0x10000000)", *inside)
    assert refused.errno == "ENOSPC"
    found = only(refused.explained("unshare", arguments=(0x10000000, 0, 0, 0, 0, 0)))
    assert (found.cause, found.status) == ("sysctl.user.max_user_namespaces", Status.LIKELY)  # its own value is out of sight


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers are those of x86_64")
def test_a_user_namespace_in_a_chroot(start: Start, tmp_path: Path) -> None:
    refused = start(f"os.chroot({str(tmp_path)!r}); os.chdir('/'); raw(272, 0x10000000)")
    assert refused.errno == "EPERM"
    found = only(refused.explained("unshare", arguments=(0x10000000, 0, 0, 0, 0, 0)))
    assert (found.cause, found.status) == ("process.chroot", Status.PROVED)


def test_a_program_on_noexec(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "go-build1" / "a.test"
    script = f"mount -t tmpfs -o noexec tmpfs {tmp_path}; mkdir {program.parent}; cp /bin/true {program}; chmod 755 {program}"
    refused = start(f"os.execv({str(program)!r}, ['x'])", *in_mounts(script))
    assert refused.errno == "EACCES"
    found = only(refused.explained("execve", path=str(program)))
    assert (found.cause, found.status, found.subject) == ("mount.noexec", Status.PROVED, str(tmp_path))
    by_text = only(refused.explained("", path=str(program), text=f"fork/exec {program}: permission denied"))
    assert by_text.cause == "mount.noexec"


def test_a_place_that_is_read_only(start: Start, tmp_path: Path) -> None:
    refused = start(f"open('{tmp_path}/x', 'w')", *in_mounts(f"mount -t tmpfs -o ro tmpfs {tmp_path}"))
    assert refused.errno == "EROFS"
    found = only(refused.explained("openat", path=f"{tmp_path}/x"))
    assert (found.cause, found.status, found.subject) == ("mount.read-only", Status.PROVED, str(tmp_path))


def test_a_disk_that_is_full_and_one_without_inodes(start: Start, tmp_path: Path) -> None:
    code = f"file = open('{tmp_path}/x', 'wb', 0)\nwhile True: file.write(b'x' * 65536)"
    refused = start(code, *in_mounts(f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"))
    assert refused.errno == "ENOSPC"
    found = only(refused.explained("write", path=f"{tmp_path}/x"))
    assert (found.cause, found.status) == ("disk.full", Status.PROVED)
    descriptor = only(refused.explained("write", arguments=(3, 0, 65536, 0, 0, 0)))  # the open file tells the path
    assert (descriptor.cause, descriptor.subject) == ("disk.full", str(tmp_path))
    code = f"for number in range(99): open(f'{tmp_path}/{{number}}', 'w')"
    refused = start(code, *in_mounts(f"mount -t tmpfs -o nr_inodes=9 tmpfs {tmp_path}"))
    assert refused.errno == "ENOSPC"
    assert only(refused.explained("openat", path=f"{tmp_path}/8")).cause == "disk.inodes"


def test_no_dev_shm_and_no_proc(start: Start) -> None:
    refused = start("open('/dev/shm/gt-1', 'w')", *in_mounts("mount -t tmpfs tmpfs /dev"))
    assert refused.errno == "ENOENT"
    found = only(refused.explained("openat", path="/dev/shm/gt-1"))
    assert (found.cause, found.subject) == ("mount.missing", "/dev/shm")
    refused = start("open('/proc/self/status')", *in_mounts("mount -t tmpfs tmpfs /proc"))
    assert refused.errno == "ENOENT"
    found = only(refused.explained("openat", path="/proc/self/status"))
    assert (found.cause, found.subject) == ("mount.missing", "/proc")


def test_processes_that_are_hidden(start: Start) -> None:
    launcher = (*in_mounts("mount -t proc -o hidepid=2 proc /proc"), *as_nobody())
    refused = start("open('/proc/1/status')", *launcher)
    assert refused.errno == "ENOENT"
    found = only(refused.explained("openat", path="/proc/1/status"))
    assert (found.cause, found.status) == ("mount.hidepid", Status.PROVED)


def test_a_loopback_that_is_down(start: Start) -> None:
    dial = start("socket.create_connection(('127.0.0.1', 9))", "unshare", "--net")
    assert dial.errno == "ENETUNREACH"
    found = only(dial.explained("connect", path="127.0.0.1:9"))
    assert (found.cause, found.status) == ("network.loopback-down", Status.PROVED)
    assert start("socket.socket().bind(('127.0.0.1', 0))", "unshare", "--net").errno == ""
    listen = start("socket.socket(socket.AF_INET6).bind(('::1', 0))", "unshare", "--net")
    assert listen.errno == "EADDRNOTAVAIL"
    text = "listen tcp [::1]:0: bind: cannot assign requested address"
    assert only(listen.explained("", path="[::1]:0", text=text)).cause == "network.loopback-down"


def in_network(script: str) -> tuple[str, ...]:
    return ("unshare", "--net", "sh", "-ec", f'ip link set lo up\n{script}\nexec "$@"', "sh")


def test_no_ipv6_in_a_network_namespace(start: Start) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel runs without IPv6")
    off = in_network("echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6")
    refused = start("socket.socket(socket.AF_INET6).bind(('::1', 0))", *off)
    assert refused.errno == "EADDRNOTAVAIL"
    found = only(refused.explained("bind", path="[::1]:0"))
    assert (found.cause, found.status) == ("network.ipv6-disabled", Status.PROVED)
    assert "is 1" in found.summary
    assert found.fixes[0].netns_pid == refused.process.pid  # type: ignore[union-attr]


def test_ports_that_run_out(start: Start) -> None:
    code = """
server = socket.create_server(('127.0.0.1', 9000), backlog=100)
kept = []
while True: kept.append(socket.create_connection(('127.0.0.1', 9000)))
"""
    refused = start(code, *in_network("echo 40000 40009 > /proc/sys/net/ipv4/ip_local_port_range"))
    assert refused.errno == "EADDRNOTAVAIL"
    found = only(refused.explained("connect", path="127.0.0.1:9000"))
    assert (found.cause, found.status) == ("sysctl.net.ipv4.ip_local_port_range", Status.PROVED)


def test_names_without_a_server(start: Start, tmp_path: Path) -> None:
    empty = tmp_path / "resolv.conf"
    empty.write_text("# nothing\n")
    target = os.path.realpath("/etc/resolv.conf")
    if not Path(target).exists():
        pytest.skip("there is no /etc/resolv.conf to mount over")
    waiting = start("pass", *in_mounts(f"mount --bind {empty} {target}"))
    found = only(waiting.explained("", text="dial tcp: lookup example.org: no such host"))
    assert (found.cause, found.status) == ("network.resolver", Status.PROVED)


def test_a_program_for_another_machine(start: Start, tmp_path: Path) -> None:
    program = tmp_path / "a.test"
    head = bytearray(Path(PYTHON).read_bytes()[:64])
    head[18:20] = (22).to_bytes(2, "big" if head[5] == 2 else "little")  # s390x
    program.write_bytes(bytes(head))
    program.chmod(0o755)
    refused = start(f"os.execv({str(program)!r}, ['x'])")
    assert refused.errno == "ENOEXEC"
    found = only(refused.explained("execve", path=str(program)))
    assert (found.cause, found.status) == ("binfmt.missing", Status.PROVED)
    program.write_text("echo hello\n")
    text = start(f"os.execv({str(program)!r}, ['x'])").explained("execve", path=str(program))
    assert not text.causes
    assert text.self_inflicted


@pytest.fixture
def setuid_python(tmp_path: Path) -> str:
    """An interpreter that is set-user-id root, in a directory that everybody may enter."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    copy = tmp_path / "python3"
    shutil.copy(PYTHON, copy)
    copy.chmod(0o4755)
    return str(copy)


def test_set_user_id_under_no_new_privileges(start: Start, setuid_python: str) -> None:
    refused = start("os.setresuid(0, 0, 0)", *as_nobody("--no-new-privs"), python=setuid_python)
    assert refused.errno == "EPERM"
    found = refused.explained("setresuid").causes[0]
    assert (found.cause, found.status) == ("process.no-new-privileges", Status.PROVED)


def test_set_user_id_on_nosuid(start: Start, setuid_python: str) -> None:
    directory = os.path.dirname(setuid_python)
    script = f"mount --bind {directory} {directory}; mount -o remount,bind,nosuid {directory}"
    refused = start("os.setresuid(0, 0, 0)", *in_mounts(script), *as_nobody(), python=setuid_python)
    assert refused.errno == "EPERM"
    found = refused.explained("setresuid").causes[0]
    assert (found.cause, found.status, found.subject) == ("mount.nosuid", Status.PROVED, directory)


def test_a_umask_that_shuts_the_owner_out(start: Start, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o777)
    code = f"os.umask(0o777); os.mkdir('{tmp_path}/d', 0o755); open('{tmp_path}/d/x', 'w')"
    refused = start(code, *as_nobody())
    assert refused.errno == "EACCES"
    assert only(refused.explained("openat", path=f"{tmp_path}/d/x")).cause == "process.umask"
    (tmp_path / "d").chmod(0o755)


def test_a_hard_link_to_roots_file(start: Start, tmp_path: Path) -> None:
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("fs.protected_hardlinks is off here")
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o777)
    (tmp_path / "x").write_text("")
    refused = start(f"os.link('{tmp_path}/x', '{tmp_path}/y')", *as_nobody())
    assert refused.errno == "EPERM"
    found = only(refused.explained("linkat", path=f"{tmp_path}/x"))
    assert (found.cause, found.status) == ("sysctl.fs.protected_hardlinks", Status.PROVED)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers are those of x86_64")
@pytest.mark.parametrize(("key", "is_closed", "code", "syscall", "refusal"), [
    ("kernel.perf_event_paranoid", lambda value: value >= 2,
     "raw(298, ctypes.create_string_buffer(b'\\1\\0\\0\\0\\x70\\0\\0\\0', 120), 0, -1, -1, 0)", "perf_event_open", "EACCES"),
    ("kernel.unprivileged_bpf_disabled", lambda value: value > 0,
     "raw(321, 0, ctypes.create_string_buffer(b'\\2\\0\\0\\0\\4\\0\\0\\0\\4\\0\\0\\0\\1', 128), 128)", "bpf", "EPERM"),
    ("vm.unprivileged_userfaultfd", lambda value: value == 0, "raw(323, 0)", "userfaultfd", "EPERM"),
])
def test_gates_as_they_stand_on_this_machine(
    start: Start, key: str, is_closed: Callable[[int], bool], code: str, syscall: str, refusal: str
) -> None:
    file = Path("/proc/sys") / key.replace(".", "/")
    if not file.exists():
        pytest.skip(f"this kernel has no {key}")
    refused = start(code, *as_nobody())
    if not is_closed(int(file.read_text())):
        assert refused.errno != refusal
        return
    assert refused.errno == refusal
    found = refused.explained(syscall, arguments=(0,) * 6 if syscall == "userfaultfd" else ()).causes[0]
    assert (found.cause, found.status) == (f"sysctl.{key}", Status.PROVED)


_LANDLOCK = """
class Attributes(ctypes.Structure):
    _fields_ = [('handled', ctypes.c_uint64)]
libc.prctl(38, 1, 0, 0, 0)
ruleset = libc.syscall(444, ctypes.byref(Attributes(1 << 2)), 8, 0)
assert ruleset >= 0
raw(446, ruleset, 0)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers are those of x86_64")
def test_landlock_is_what_is_left(start: Start, tmp_path: Path) -> None:
    probe = start("raw(444, 0, 0, 1)")
    if probe.errno:
        pytest.skip(f"this kernel runs without Landlock ({probe.errno})")
    file = tmp_path / "x"
    file.write_text("")
    refused = start(_LANDLOCK + f"os.open({str(file)!r}, os.O_RDONLY)")
    assert refused.errno == "EACCES"
    found = only(refused.explained("openat", path=str(file), arguments=(0xFFFFFF9C, 0, 0, 0, 0, 0)))
    assert (found.cause, found.status) == ("lsm.landlock", Status.LIKELY)


@pytest.mark.parametrize(("code", "syscall", "path", "refusal"), [
    ("open('/no/such/file')", "openat", "/no/such/file", "ENOENT"),
    ("os.execv('/no/such/program', ['x'])", "execve", "/no/such/program", "ENOENT"),
    ("os.mkdir('/etc/triaged-no')", "mkdirat", "/etc/triaged-no", "EACCES"),
    ("open('/etc/shadow')", "openat", "/etc/shadow", "EACCES"),
    ("os.execv('/etc/passwd', ['x'])", "execve", "/etc/passwd", "EACCES"),
    ("os.unlink('/etc/passwd')", "unlink", "/etc/passwd", "EACCES"),
    ("os.rmdir('/etc')", "rmdir", "/etc", ""),
    ("open('/etc', 'w')", "openat", "/etc", "EISDIR"),
    ("socket.create_connection(('127.0.0.1', 1))", "connect", "127.0.0.1:1", "ECONNREFUSED"),
    ("a = socket.create_server(('127.0.0.1', 0)); socket.create_server(a.getsockname())", "bind", "127.0.0.1:4711", "EADDRINUSE"),
    ("os.chmod('/etc/passwd', 0o777)", "fchmodat", "/etc/passwd", "EPERM"),
])
def test_what_is_the_programs_own_fault_has_no_cause(start: Start, code: str, syscall: str, path: str, refusal: str) -> None:
    refused = start(code, *as_nobody())
    assert refused.errno in ((refusal,) if refusal else ("EACCES", "EBUSY", "EPERM"))
    found = refused.explained(syscall, path=path)
    assert [each.cause for each in found.causes if each.status is not Status.POSSIBLE] == []
    assert found.self_inflicted or refused.errno == "EBUSY"


def test_every_error_can_be_explained_without_anything_known() -> None:
    for number in errno.errorcode.values():
        for kind in SymptomKind:
            for syscall in ("", "openat", "clone", "mount", "connect", "execve"):
                explain(Situation(Symptom(kind, syscall, number, signal=9), None), HYPOTHESES)


def test_every_error_of_a_healthy_process_can_be_explained(start: Start) -> None:
    state = start("pass").situation("openat").process
    for syscall in ("openat", "clone", "mount", "connect", "execve", "write", "ptrace", "socket", "bind"):
        for number in errno.errorcode.values():
            situation = Situation(Symptom(SymptomKind.CALL, syscall, number, path="/etc/passwd", seen_in=SeenIn.TRACE), state)
            explain(situation, HYPOTHESES)
        for number in ("EPERM", "EACCES", "ENOSYS", "EROFS", "ENOENT", "ENOSPC", "EINVAL", "ENETUNREACH", "EADDRNOTAVAIL"):
            situation = Situation(Symptom(SymptomKind.CALL, syscall, number, path="/etc/passwd", seen_in=SeenIn.TRACE), state)
            proved = [each.cause for each in explain(situation, HYPOTHESES).causes if each.status is Status.PROVED]
            assert proved == [], (syscall, number)
