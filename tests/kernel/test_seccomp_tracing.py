# SPDX-License-Identifier: Apache-2.0
"""Real commands observed on this kernel, and the proof that a filter refused a call."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from triaged.errors import KernelError
from triaged.kernel.call_observers import Call, Method, Observation, observe
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_load import Command, LoadedFilter
from triaged.kernel.tracing import Entered, Executed, Exited, Forked, RefusedCalls, TraceFs, TraceInstance, parse_event
from triaged.seccomp.action import ENOSYS, EPERM, Action, ActionKind
from triaged.seccomp.compiler import compiled
from triaged.seccomp.policy import ArchPolicy, Branch, Policy
from triaged.seccomp.syscalls import audit_arch_of, name_of, native_arch, number_of

PATHS = KernelPaths()
ARCH = native_arch()
ALLOW = Action(ActionKind.ALLOW)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="tracefs and audit need root")


def refusing(action: Action, *names: str) -> LoadedFilter:
    numbers = [number_of(ARCH, name) for name in names]
    branches = {number: (Branch(action),) for number in numbers if number is not None}
    return LoadedFilter(compiled(Policy((ArchPolicy(ARCH, ALLOW, branches),), ALLOW)).packed())


def watched(method: Method, argv: list[str], *filters: LoadedFilter) -> tuple[Observation, list[Call]]:
    calls: list[Call] = []
    load_number = number_of(ARCH, "seccomp") or 0
    observation = observe(method, PATHS, argv, calls.append, filters=filters, load_number=load_number, timeout_s=60)
    return observation, calls


def names(calls: list[Call]) -> set[str]:
    return {name_of(audit_arch_of(ARCH), call.number) for call in calls}


SCRIPT = ["sh", "-c", "ls / >/dev/null; /bin/echo hello >/dev/null & wait; exit 3"]


@needs_root
def test_three_methods_see_the_same_calls_of_a_process_tree() -> None:
    found = {}
    for method in Method:
        observation, calls = watched(method, SCRIPT)
        assert os.waitstatus_to_exitcode(observation.status) == 3
        assert observation.events_lost == 0
        found[method] = names(calls)
        assert {os.path.basename(call.program) for call in calls} >= {"ls", "echo"}
    assert found[Method.TRACEFS] == found[Method.AUDIT] == found[Method.PTRACE]
    assert {"execve", "getdents64", "write", "wait4", "exit_group"} <= found[Method.TRACEFS]


def test_ptrace_follows_threads_and_needs_no_privilege() -> None:
    code = "import threading, os\nt = threading.Thread(target=os.getppid)\nt.start()\nt.join()"
    observation, calls = watched(Method.PTRACE, [sys.executable, "-c", code])
    assert observation.status == 0
    assert {"getppid", "execve"} <= names(calls)
    assert {call.arch for call in calls} <= {0, audit_arch_of(ARCH)}


@needs_root
@pytest.mark.parametrize(
    ("action", "value"),
    [(EPERM, -1), (ENOSYS, -38), (Action(ActionKind.TRAP), None), (Action(ActionKind.KILL_THREAD), None),
     (Action(ActionKind.KILL_PROCESS), None)],
    ids=str,
)
def test_a_call_that_seccomp_refused_has_an_end_and_no_beginning(action: Action, value: int | None) -> None:
    number = number_of(ARCH, "getppid")
    assert number is not None
    _, calls = watched(Method.TRACEFS, [sys.executable, "-c", "import os; os.getppid()"], refusing(action, "getppid"))
    refused = [call for call in calls if call.value is not None]
    assert [(call.number, call.value) for call in refused] == [(number, number if value is None else value)]
    assert not [call for call in calls if call.number == number and call.value is None]


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that makes a task in the way that it is told."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    path = tmp_path_factory.mktemp("children") / "children"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", path, Path(__file__).with_name("children.c")], check=True)
    return str(path)


@needs_root
@pytest.mark.parametrize("way", ["fork", "vfork", "clone-vfork", "clone3", "clone3-vfork", "thread"])
@pytest.mark.parametrize(
    "action", [EPERM, ENOSYS, Action(ActionKind.TRAP), Action(ActionKind.KILL_THREAD), Action(ActionKind.KILL_PROCESS)], ids=str
)
def test_the_refused_first_call_of_a_new_task_is_told_however_the_task_was_made(children: str, way: str, action: Action) -> None:
    number = number_of(ARCH, "getppid")
    assert number is not None
    observation, calls = watched(Method.TRACEFS, [children, way], refusing(action, "getppid"))
    if way == "thread" and action.kind in (ActionKind.KILL_PROCESS, ActionKind.TRAP):
        assert os.WTERMSIG(observation.status) == signal.SIGSYS  # the whole process
    else:
        assert observation.status == 0
    value = -action.data if action.kind is ActionKind.ERRNO else number
    assert [(call.number, call.value) for call in calls if call.value is not None] == [(number, value)]
    assert not [call for call in calls if call.number == number and call.value is None]
    _, calls = watched(Method.TRACEFS, [children, way], refusing(action, "bpf"))
    assert [call for call in calls if call.value is not None] == []
    assert [call.number for call in calls].count(number) == 1


@needs_root
def test_a_call_that_a_capability_refused_is_no_refusal_of_seccomp() -> None:
    code = "import os\ntry: os.chroot('/')\nexcept PermissionError: pass"
    argv = ["setpriv", "--bounding-set=-sys_chroot", "--inh-caps=-sys_chroot", sys.executable, "-c", code]
    observation, calls = watched(Method.TRACEFS, argv, refusing(EPERM, "bpf"))
    assert observation.status == 0
    assert "chroot" in names(calls)
    assert [call for call in calls if call.value is not None] == []


@needs_root
def test_threads_and_signals_are_not_taken_for_refusals() -> None:
    code = (
        "import os, signal, threading, subprocess, time\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\n"
        "ts = [threading.Thread(target=time.sleep, args=(0.05,)) for _ in range(4)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "subprocess.run(['true'])\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    observation, calls = watched(Method.TRACEFS, [sys.executable, "-c", code], refusing(EPERM, "bpf"))
    assert observation.status == 0
    assert {"rt_sigreturn"} <= names(calls)
    assert [call for call in calls if call.value is not None] == []


@needs_root
def test_an_instance_is_gone_afterwards_also_when_the_body_fails() -> None:
    tracefs = TraceFs(PATHS)
    try:
        with pytest.raises(RuntimeError), TraceInstance(PATHS, os.getpid()):
            assert any(name.startswith(f"triaged-{os.getpid()}-") for name in os.listdir(f"{tracefs.path}/instances"))
            raise RuntimeError
        assert not any(name.startswith(f"triaged-{os.getpid()}-") for name in os.listdir(f"{tracefs.path}/instances"))
    finally:
        tracefs.close()


@needs_root
def test_what_a_killed_triaged_left_is_removed_by_the_next() -> None:
    tracefs = TraceFs(PATHS)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    stale = f"{tracefs.path}/instances/triaged-{pid}-{pid}"
    os.mkdir(stale)
    try:
        with TraceInstance(PATHS, os.getpid()):
            assert not os.path.exists(stale)
    finally:
        tracefs.close()


def test_lines_of_the_trace_are_read() -> None:
    assert parse_event(b"     sh-1234    [001] .....  100.1: sys_enter: NR 59 (55d0, 1f, 0, 0, 0, ff)") == Entered(
        1234, 59, (0x55D0, 0x1F, 0, 0, 0, 0xFF))
    assert parse_event(b" a-b -c-7       [000] .....  100.1: sys_exit: NR 435 = -38") == Exited(7, 435, -38)
    assert parse_event(b" sh-1234 [001] ..... 1.1: sched_process_exec: filename=/bin/a b pid=1234 old_pid=1234") == Executed(
        1234, "/bin/a b")
    assert parse_event(b" sh-12 [001] ..... 1.1: sched_process_fork: comm=a pid=12 child_comm=b child_pid=13") == Forked(12, 13)
    assert parse_event(b" sh-1 [001] ..... 1.1: sys_enter: NR 59 ()") == Entered(1, 59, ())
    # Found by scripts/fuzz-seccomp: registers that are no hexadecimal numbers.
    assert parse_event(b" sh-1 [001] ..... 1.1: sys_enter: NR 59 (55d0, 00 0, 0)") is None
    for line in (b"", b"CPU:0 [LOST 123 EVENTS]", b"\xff\x00", b"# tracer: nop", b" x-1 [0] : sys_enter: NR x ()"):
        assert parse_event(line) is None


def test_the_first_end_of_a_new_task_is_that_of_the_call_that_made_it() -> None:
    refused = RefusedCalls(1)
    assert refused.add(Exited(1, 0, 1)) is None  # the read that the root slept in when the trace began
    assert refused.add(Entered(1, 56, ())) is None
    assert refused.add(Forked(1, 2)) is None
    assert refused.add(Exited(2, 56, 0)) is None
    assert refused.add(Exited(1, 56, 2)) is None
    assert refused.add(Exited(2, 321, -1)) == Exited(2, 321, -1)
    assert refused.add(Entered(2, 15, ())) is None
    assert refused.add(Exited(2, -1, 5)) is None


def test_a_command_that_cannot_be_executed_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/does/not/exist\n")
    broken.chmod(0o755)
    with Command([str(broken)]) as command, pytest.raises(KernelError, match="could not be executed: no such file"):
        command.start()
    with pytest.raises(KernelError, match="command not found"):
        Command(["no-such-command-here"])


def test_a_command_that_is_never_started_leaves() -> None:
    with Command(["sleep", "60"]) as command:
        pass
    assert command.wait() == 0


@pytest.mark.parametrize(
    ("action", "code"),
    [(Action(ActionKind.KILL_PROCESS), -signal.SIGSYS), (Action(ActionKind.KILL_THREAD), -signal.SIGSYS),
     (Action(ActionKind.TRAP), -signal.SIGSYS), (EPERM, 1), (Action(ActionKind.ERRNO, 0), 0), (ENOSYS, 38),
     (Action(ActionKind.TRACE), 38), (Action(ActionKind.USER_NOTIF), 38), (Action(ActionKind.LOG), 0), (ALLOW, 0)],
    ids=str,
)
def test_every_action_has_its_effect(action: Action, code: int) -> None:
    check = "import ctypes, sys; l = ctypes.CDLL(None, use_errno=True); sys.exit(ctypes.get_errno() if l.syscall({}) < 0 else 0)"
    argv = [sys.executable, "-c", check.format(number_of(ARCH, "getppid"))]
    with Command(argv, [refusing(action, "getppid")], number_of(ARCH, "seccomp") or 0) as command:
        command.start()
        assert os.waitstatus_to_exitcode(command.wait()) == code
