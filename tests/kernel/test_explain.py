# SPDX-License-Identifier: Apache-2.0
"""The explainer held against this kernel: real processes run into real limits, and the right one is named."""
from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triaged.errors import KernelError
from triaged.explain.hypotheses import HYPOTHESES
from triaged.explain.hypothesis import explain
from triaged.explain.situation import Situation
from triaged.kernel.cgroup_layout import read_layout
from triaged.kernel.kernel_log import KernelLogReader
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_state import read_process_state
from triaged.model.cause import Blamed, Explanation, Status
from triaged.model.process_state import ProcessState
from triaged.model.symptom import SeenIn, Symptom, SymptomKind
from triaged.run.counters import counter_files, read_counters

PATHS = KernelPaths()
PYTHON = shutil.which("python3", path="/usr/bin:/bin")
USER = 61234

# Makes calls until one fails, says with which error, and waits. `last` holds the arguments of the call that failed.
PROLOGUE = """
import ctypes, json, mmap, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
last, kept = [], []
def call(number, *arguments):
    last[:] = [each if isinstance(each, int) else 0 for each in arguments]
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result
def end(error):
    print(json.dumps([error.errno, last]), flush=True)
    sys.stdin.read()
    os._exit(0)
try:
"""
EPILOGUE = """
except OSError as error:
    end(error)
print(json.dumps([0, last]), flush=True)
sys.stdin.read()
"""
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the calls' numbers are those of x86_64")


@contextlib.contextmanager
def running_into(
    body: str, uid: int = 0, prepare: Callable[[], None] = lambda: None, before: tuple[str, ...] = ()
) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """A process that does `body` until a call fails: its pid, the error and the arguments."""
    if os.geteuid() != 0 or PYTHON is None:
        pytest.skip("needs root, and a python3 in /usr/bin that other users may execute")

    def enter() -> None:
        prepare()
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)

    program = PROLOGUE + "".join(f"    {line}\n" for line in body.strip().splitlines()) + EPILOGUE
    child = subprocess.Popen(
        [*before, PYTHON, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=enter, cwd="/"
    )
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        assert line, "the program said nothing"
        number, arguments = json.loads(line)
        pid = child.pid
        if before:  # what stands before it may have forked
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(children[0]) if children else pid
        yield pid, errno.errorcode.get(number, ""), tuple(arguments)
    finally:
        child.communicate()


def explained(
    pid: int, syscall: str, error: str, arguments: tuple[int, ...] = (), seen: SeenIn = SeenIn.TRACE, **more: Any
) -> Explanation:
    symptom = Symptom(SymptomKind.CALL, syscall, error, arguments=arguments, seen_in=seen, path=more.pop("path", ""))
    return explain(Situation(symptom, read_process_state(PATHS, pid), PATHS, **more), HYPOTHESES)


def first(explanation: Explanation) -> tuple[str, Status]:
    assert explanation.causes, explanation
    return explanation.causes[0].cause, explanation.causes[0].status


def limit(name: str, soft: int, hard: int | None = None) -> Callable[[], None]:
    return lambda: resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, soft if hard is None else hard))


# -- resource limits


@pytest.mark.parametrize("body", ["while True: os.dup(0)", "import socket\nwhile True: kept.append(socket.socket())"])
def test_a_process_without_files_left(body: str) -> None:
    with running_into(body, prepare=limit("NOFILE", 40)) as (pid, error, _):
        assert error == "EMFILE"
        assert first(explained(pid, "dup", error)) == ("rlimit.NOFILE", Status.PROVED)


def test_a_process_with_files_left_is_told_so_when_asked() -> None:
    with running_into("pass", prepare=limit("NOFILE", 400)) as (pid, _, _):
        found = explained(pid, "openat", "EMFILE", seen=SeenIn.ASKED)
    assert found.causes == ()
    assert next(each.because for each in found.ruled_out if each.cause == "rlimit.NOFILE").endswith("free of 400")


FORKS = """
import time
while True:
    child = os.fork()
    if child == 0:
        sys.stdin.close(); sys.stdout.close(); time.sleep(60)
"""


@contextlib.contextmanager
def without_children_left(pid_of: list[int]) -> Iterator[None]:
    """Ends the children of the processes at the end: they hold what was limited."""
    try:
        yield
    finally:
        for pid in pid_of:
            with contextlib.suppress(OSError):
                for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                    os.kill(int(word), signal.SIGKILL)


def test_a_user_without_tasks_left() -> None:
    pids: list[int] = []
    with running_into(FORKS, USER, limit("NPROC", 8)) as (pid, error, _), without_children_left(pids):
        pids.append(pid)
        assert error == "EAGAIN"
        found = explained(pid, "clone", error)
    assert first(found) == ("rlimit.NPROC", Status.PROVED)
    assert {"sysctl.kernel.threads-max", "sysctl.kernel.pid_max", "cgroup.pids.max"} <= {each.cause for each in found.ruled_out}


def test_root_is_not_bound_by_its_number_of_tasks() -> None:
    with running_into("for _ in range(4):\n    if os.fork() == 0: os._exit(0)", prepare=limit("NPROC", 2)) as (pid, error, _):
        assert error == ""
        found = explained(pid, "clone", "EAGAIN", seen=SeenIn.ASKED)
    assert [each.because for each in found.ruled_out if each.cause == "rlimit.NPROC"] == ["it does not bind root"]


def test_timers_take_a_signal_each() -> None:
    body = "timer = ctypes.c_int()\nwhile True: call(222, 1, None, ctypes.byref(timer))"
    with running_into(body, USER, limit("SIGPENDING", 5)) as (pid, error, _):
        assert error == "EAGAIN"
        assert first(explained(pid, "timer_create", error)) == ("rlimit.SIGPENDING", Status.PROVED)


def test_a_file_beyond_its_size() -> None:
    body = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nfile = os.open('/tmp', os.O_TMPFILE | os.O_RDWR)\n"
    with running_into(body + "while True: os.write(file, b'x' * 65536)", prepare=limit("FSIZE", 1 << 20)) as (pid, error, _):
        assert error == "EFBIG"
        assert first(explained(pid, "write", error)) == ("rlimit.FSIZE", Status.PROVED)


MAP = "while True: call(9, 0, {length}, {protection}, 0x22, -1, 0)"


def test_an_address_space_that_is_used_up() -> None:
    body = MAP.format(length=64 << 20, protection=0)
    with running_into(body, prepare=limit("AS", 1 << 30)) as (pid, error, arguments):
        assert error == "ENOMEM"
        assert first(explained(pid, "mmap", error, arguments)) == ("rlimit.AS", Status.PROVED)


def test_data_that_is_used_up() -> None:
    body = MAP.format(length=8 << 20, protection=3)
    with running_into(body, prepare=limit("DATA", 200 << 20)) as (pid, error, arguments):
        assert error == "ENOMEM"
        assert first(explained(pid, "mmap", error, arguments)) == ("rlimit.DATA", Status.PROVED)


def test_memory_that_may_not_be_locked() -> None:
    body = "memory = mmap.mmap(-1, 1 << 20)\nplace = ctypes.addressof(ctypes.c_char.from_buffer(memory))\ncall(149, place, 1 << 20)"
    with running_into(body, USER, limit("MEMLOCK", 65536)) as (pid, error, arguments):
        assert error == "ENOMEM"
        assert first(explained(pid, "mlock", error, arguments)) == ("rlimit.MEMLOCK", Status.PROVED)


def test_as_many_mappings_as_the_kernel_allows() -> None:
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most > 70_000:
        pytest.skip("vm.max_map_count is so large here that reaching it takes minutes")
    body = "for number in range(200_000): call(9, 0, 4096, number % 2 and 3 or 1, 0x22, -1, 0)"
    with running_into(body) as (pid, error, arguments):
        assert error == "ENOMEM"
        found = explained(pid, "mmap", error, arguments)
    assert first(found) == ("sysctl.vm.max_map_count", Status.PROVED)
    assert {"rlimit.AS", "rlimit.DATA"} <= {each.cause for each in found.ruled_out}


def test_more_memory_than_there_is_at_once_is_its_own_wish() -> None:
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "0":
        pytest.skip("vm.overcommit_memory is not 0 here")
    with running_into(MAP.format(length=1 << 45, protection=3)) as (pid, error, arguments):
        assert error == "ENOMEM"
        found = explained(pid, "mmap", error, arguments)
    assert found.causes == ()
    assert any("were asked for at once" in each.because for each in found.self_inflicted)


def test_huge_pages_that_nobody_reserved() -> None:
    if "HugePages_Free:        0" not in Path("/proc/meminfo").read_text():
        pytest.skip("there are free huge pages here, or none at all")
    with running_into(f"call(9, 0, {2 << 20}, 3, 0x40022, -1, 0)") as (pid, error, arguments):
        assert error == "ENOMEM"
        assert first(explained(pid, "mmap", error, arguments)) == ("sysctl.vm.nr_hugepages", Status.PROVED)


def test_a_priority_that_needs_a_limit_or_a_capability() -> None:
    with running_into("call(141, 0, 0, -5)", USER, limit("NICE", 0)) as (pid, error, arguments):
        assert error == "EACCES"
        causes = {each.cause: each.status for each in explained(pid, "setpriority", error, arguments).causes}
    assert causes["rlimit.NICE"] is Status.PROVED


# -- parameters of the kernel


def test_asynchronous_io_beyond_what_all_may_have() -> None:
    asked = int(Path("/proc/sys/fs/aio-max-nr").read_text()) + 1
    if asked > 0x10000000 // 32:
        pytest.skip("fs.aio-max-nr is larger here than what one process may ask for")
    with running_into(f"context = ctypes.c_long(0)\ncall(206, {asked}, ctypes.byref(context))") as (pid, error, arguments):
        assert error == "EAGAIN"
        assert first(explained(pid, "io_setup", error, arguments)) == ("sysctl.fs.aio-max-nr", Status.PROVED)


def test_a_user_without_inotify_instances_left() -> None:
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    if most > 1024:
        pytest.skip("fs.inotify.max_user_instances is large here")
    body = "while True: kept.append(call(294, 0))"
    with running_into(body, USER, limit("NOFILE", most + 100)) as (pid, error, _):
        assert error == "EMFILE"
        found = explained(pid, "inotify_init1", error)
    assert first(found) == ("sysctl.fs.inotify.max_user_instances", Status.PROVED)
    used = next(item.value for item in found.causes[0].evidence if "at least" in item.name)
    assert used == most
    assert "rlimit.NOFILE" in {each.cause for each in found.ruled_out}


def test_a_pipe_larger_than_users_may_have() -> None:
    most = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    with running_into(f"reader, _ = os.pipe()\ncall(72, reader, 1031, {most * 2})", USER) as (pid, error, arguments):
        assert error == "EPERM"
        assert first(explained(pid, "fcntl", error, arguments)) == ("sysctl.fs.pipe-max-size", Status.PROVED)


def test_a_user_without_keys_left() -> None:
    if not Path("/proc/key-users").exists():
        pytest.skip("this kernel has no keys")
    body = "for number in range(5000): call(248, b'user', b'k%d' % number, b'x', 1, -2)"
    with running_into(body, USER) as (pid, error, _):
        assert error == "EDQUOT"
        cause, status = first(explained(pid, "add_key", error))
    assert cause.startswith("sysctl.kernel.keys.max")
    assert status is Status.PROVED


IN_OWN_IPC = """
import ctypes, json, os, subprocess, sys
open("/proc/sys/kernel/{name}", "w").write("{value}")
libc = ctypes.CDLL(None, use_errno=True)
while libc.{call} != -1: pass
error = __import__("errno").errorcode[ctypes.get_errno()]
words = [sys.argv[1], "-m", "triaged.cli", "explain", "{syscall}", error, "--json", "--pid", str(os.getpid()), *sys.argv[2:]]
done = subprocess.run(words, capture_output=True, text=True)
print(done.stdout or json.dumps({{"failed": done.stderr}}))
"""


@pytest.mark.parametrize(("name", "value", "call", "syscall", "wanted"), [
    ("shmmni", "3", "shmget(0, 4096, 0o1600)", "shmget", "sysctl.kernel.shmmni"),
    ("msgmni", "2", "msgget(0, 0o1600)", "msgget", "sysctl.kernel.msgmni"),
    ("sem", "250 32000 32 2", "semget(0, 1, 0o1600)", "semget", "sysctl.kernel.sem"),
])  # fmt: skip
def test_system_v_objects_in_a_namespace_of_their_own(name: str, value: str, call: str, syscall: str, wanted: str) -> None:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare")
    program = IN_OWN_IPC.format(name=name, value=value, call=call, syscall=syscall)
    argv = ["unshare", "--ipc", "--mount-proc", "--fork", "--pid", sys.executable, "-c", program, sys.executable]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    document = json.loads(done.stdout)
    assert [(each["cause"], each["status"]) for each in document["causes"]] == [(wanted, "proved")], document


def test_a_limit_of_the_process_s_own_ipc_namespace_is_not_decided_from_outside() -> None:
    body = "call(29, 0, 4096, 0o1600)"
    with running_into(body, before=("unshare", "--ipc", "--fork")) as (pid, _, _):
        found = explained(pid, "shmget", "ENOSPC")
    assert "another IPC namespace" in next(each.why for each in found.not_decidable if each.cause == "sysctl.kernel.shmmni")


# -- cgroups


@pytest.fixture
def cgroups() -> Iterator[Callable[..., Path]]:
    """Makes cgroups of our own in the hierarchy of a controller; gives the directory."""
    made: list[Path] = []

    def make(controller: str, name: str) -> Path:
        try:
            hierarchy = read_layout(PATHS).holding(controller)
        except KernelError as error:
            pytest.skip(f"no cgroups here: {error}")
        if hierarchy is None:
            pytest.skip(f"no hierarchy here has the {controller} controller")
        directory = Path(hierarchy.mount) / f"triaged-explain-{os.getpid()}{name}"
        try:
            directory.mkdir()
        except OSError as error:
            pytest.skip(f"no cgroup can be made here: {error}")
        made.append(directory)
        if not (directory / ("pids.max" if controller == "pids" else "cgroup.procs")).exists():
            pytest.skip(f"the {controller} controller is not handed on here")
        return directory

    yield make
    for directory in reversed(made):
        for _ in range(100):
            with contextlib.suppress(OSError):
                directory.rmdir()
                break
            time.sleep(0.05)


def entering(directory: Path, then: Callable[[], None] = lambda: None) -> Callable[[], None]:
    def enter() -> None:
        (directory / "cgroup.procs").write_text(str(os.getpid()))
        then()

    return enter


def settled(symptom: Symptom, state: ProcessState, before: dict[tuple[str, str], int], **more: Any) -> Explanation:
    files = sorted({file for file, _ in before})
    situation = Situation(symptom, state, PATHS, baseline=before, read_counters_now=lambda: read_counters(files), **more)
    return explain(situation, HYPOTHESES)


@pytest.mark.parametrize("is_ancestors", [False, True], ids=["own", "ancestor"])
def test_a_cgroup_without_tasks_left_is_named_though_the_limit_be_an_ancestors(cgroups: Any, is_ancestors: bool) -> None:
    outer = cgroups("pids", "")
    inner = cgroups("pids", "/inner")
    (outer if is_ancestors else inner).joinpath("pids.max").write_text("6")
    layout = read_layout(PATHS)
    hierarchy = layout.holding("pids")
    assert hierarchy is not None
    path = "/" + str(inner.relative_to(hierarchy.mount))
    before = read_counters(counter_files(PATHS, layout, {"" if hierarchy.is_v2 else hierarchy.name: path}))
    pids: list[int] = []
    with running_into(FORKS, prepare=entering(inner)) as (pid, error, _), without_children_left(pids):
        pids.append(pid)
        assert error == "EAGAIN"
        symptom = Symptom(SymptomKind.CALL, "clone", error, seen_in=SeenIn.TRACE)
        found = settled(symptom, read_process_state(PATHS, pid), before)
        asked = explained(pid, "clone", error, seen=SeenIn.ASKED)
    cause = found.causes[0]
    assert (cause.cause, cause.status) == ("cgroup.pids.max", Status.PROVED)
    assert cause.subject == f"cgroup {path.rsplit('/', 1)[0] if is_ancestors else path}"
    assert "pids.max=6 and was full (pids.events max +1)" in cause.summary
    assert first(asked) == ("cgroup.pids.max", Status.PROVED)


def test_a_cgroup_with_room_is_ruled_out(cgroups: Any) -> None:
    directory = cgroups("pids", "")
    (directory / "pids.max").write_text("100")
    pids: list[int] = []
    prepare = entering(directory, limit("NPROC", 8))
    with running_into(FORKS, USER, prepare) as (pid, error, _), without_children_left(pids):
        pids.append(pid)
        found = explained(pid, "clone", error)
    assert first(found) == ("rlimit.NPROC", Status.PROVED)
    assert any(each.cause == "cgroup.pids.max" and "free" in each.because for each in found.ruled_out)


EATS = "import sys\nprint(1, flush=True)\nsys.stdin.readline()\nkept = bytearray(256 << 20)\nsys.stdin.read()"


@contextlib.contextmanager
def unreaped(program: str, prepare: Callable[[], None]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says when it is ready."""
    argv = [sys.executable, "-S", "-c", program]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=prepare)
    assert child.stdout is not None
    child.stdout.readline()
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def killed(state: ProcessState, before: dict[tuple[str, str], int], **more: Any) -> dict[str, Any]:
    symptom = Symptom(SymptomKind.KILLED, signal=9, seen_in=SeenIn.TRACE)
    found = settled(symptom, state, before, **more)
    by_cause: dict[str, Any] = {each.cause: each.status for each in found.causes}
    return {**{each.cause: "ruled out" for each in found.ruled_out}, **by_cause}


def test_a_process_that_the_oom_killer_took_and_one_that_it_did_not(cgroups: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a memory cgroup")
    directory = cgroups("memory", "")
    file = directory / "memory.max" if (directory / "memory.max").exists() else directory / "memory.limit_in_bytes"
    file.write_text(str(64 << 20))
    try:
        log: KernelLogReader | None = KernelLogReader(PATHS)
    except KernelError:
        log = None
    layout = read_layout(PATHS)
    for is_oom in (True, False):
        with unreaped(EATS, entering(directory)) as child:
            assert child.stdin is not None
            state = read_process_state(PATHS, child.pid)
            before = read_counters(counter_files(PATHS, layout, state.identity.cgroups))
            if is_oom:
                child.stdin.write(b"\n")
                child.stdin.flush()
            else:
                child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            found = killed(state, before)
            if is_oom:
                assert found["cgroup.memory.max"] is Status.PROVED
                assert found["host.memory"] == "ruled out"
            else:
                assert found["cgroup.memory.max"] == "ruled out"
                assert not any(isinstance(each, Status) for each in found.values())
            if is_oom and log is not None:
                lines = tuple(record.text for record in log.read(100_000))
                by_log = killed(state, {}, read_log=lambda lines=lines: lines)
                assert by_log["cgroup.memory.max"] is Status.PROVED
    if log is not None:
        log.close()


def test_a_process_that_used_up_its_cpu_time() -> None:
    with unreaped("print(1, flush=True)\nwhile True: pass", limit("CPU", 1)) as child:
        before = read_counters([f"{PATHS.proc}/vmstat"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        found = killed(read_process_state(PATHS, child.pid), before)
    # Under load the kernel charges ticks that the process did not run for: then it is named by what is left.
    assert found["rlimit.CPU"] in (Status.PROVED, Status.LIKELY)
    assert found["host.memory"] == "ruled out"


def test_every_cause_of_a_live_process_is_judged_within_a_moment() -> None:
    """What a run does at the first failing call: no hypothesis may raise, none may take long."""
    state = read_process_state(PATHS, os.getpid(), with_filters=False)
    slowest: dict[str, float] = {}
    for name in ("EAGAIN", "EMFILE", "ENOMEM", "EPERM", "EACCES", "ENOSPC", "EINVAL"):
        situation = Situation(Symptom(SymptomKind.CALL, "", name, seen_in=SeenIn.TRACE), state, PATHS)
        for each in HYPOTHESES:
            if each.concerns(situation.symptom):
                begun = time.perf_counter()
                each.judge(situation)
                slowest[each.cause] = max(slowest.get(each.cause, 0.0), time.perf_counter() - begun)
    assert len(slowest) > 20
    assert all(isinstance(cause, Blamed) for cause in explain(situation, HYPOTHESES).causes)
    assert max(slowest.values()) < 2.0, slowest
