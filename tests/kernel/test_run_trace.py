# SPDX-License-Identifier: Apache-2.0
"""What `triagectl run` sees of real commands on this kernel: failing calls, refusals by filters, deaths, deeds."""
from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence

import pytest

from triaged.kernel.failing_calls import FailingCalls
from triaged.kernel.paths import KernelPaths
from triaged.kernel.tracing import PREFIX, TraceFs
from triaged.model.symptom import Symptom, SymptomKind
from triaged.run.record import Incident, Role, RunRecord
from triaged.run.session import Options, Session

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="tracefs needs root")
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


def observed(argv: Sequence[str], options: Options | None = None) -> RunRecord:
    """The record of a run whose output goes to /dev/null."""
    keep = os.dup(1), os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    try:
        with Session(argv, lambda *_: None, options or Options()) as session:
            record = session.run()
        session.wait_for_removal()
    finally:
        for number, kept in zip((1, 2), keep, strict=True):
            os.dup2(kept, number)
            os.close(kept)
    assert record.is_traced or record.blind
    return record


def python(code: str) -> list[str]:
    return [PYTHON, "-c", textwrap.dedent(code)]


def of_call(record: RunRecord, call: str, errno: str) -> Incident:
    found = [each for each in record.incidents if (each.symptom.syscall, each.symptom.errno) == (call, errno)]
    assert len(found) == 1, [each.symptom for each in record.incidents]
    return found[0]


def instances() -> list[str]:
    tracefs = TraceFs(KernelPaths())
    try:
        return [name for name in os.listdir(f"{tracefs.path}/instances") if name.startswith(f"{PREFIX}{os.getpid()}-")]
    finally:
        tracefs.close()


def test_a_failing_call_has_its_errno_count_process_and_state() -> None:
    record = observed(python("""
        import os, resource, time
        resource.setrlimit(resource.RLIMIT_NOFILE, (30, 40))
        try:
            while True: os.dup(0)
        except OSError: pass
        for _ in range(4):
            try: os.open("/dev/null", 0)
            except OSError: pass
        time.sleep(0.5)
    """))
    incident = of_call(record, "openat", "EMFILE")
    assert incident.symptom.count == 4
    assert incident.symptom.entered is True
    assert incident.symptom.first_ns < incident.symptom.last_ns
    assert incident.role is Role.TEST
    assert incident.process is not None
    assert incident.process.limits["NOFILE"] == (30, 40)
    assert incident.process.open_files in range(30, 40)  # some were open before the limit
    assert incident.process.stands_for == 0
    assert incident.situation.symptom == incident.symptom
    (deed,) = [each for each in record.deeds if each.syscall == "prlimit64"]
    assert (deed.value, deed.is_test, deed.arguments[1]) == (30, True, 7)


def test_arguments_and_path_of_a_rare_call_are_kept() -> None:
    record = observed(python("""
        import os, time
        path = "/proc/self/no-directory-can-be-here"
        time.sleep(0.5)
        try: os.mkdir(path, 0o751)
        except OSError: pass
        try: os.chroot("/")
        except OSError: pass
        time.sleep(0.3)
        keep = path
    """))
    assert [each.symptom for each in record.incidents if each.symptom.syscall == "mkdir"] == []  # ENOENT says nothing
    assert [each for each in record.deeds if each.syscall == "chroot"]


def test_a_test_that_ends_before_it_can_be_read_is_known_by_its_name(tmp_path: pathlib.Path) -> None:
    shell = shutil.which("dash") or "/bin/sh"
    for name in ("go", "short.test"):
        shutil.copy(shell, tmp_path / name)
    (tmp_path / "test").write_text(f"{tmp_path}/short.test -c 'ulimit -n 3; : </dev/null' -test.v\nsleep 0.5\n")
    record = observed(["sh", "-c", f"cd {tmp_path} && ./go test; true"])
    assert of_call(record, "openat", "EMFILE").role is Role.TEST


def test_a_connection_is_told_with_its_address() -> None:
    record = observed(python("""
        import socket, time
        time.sleep(0.5)
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try: s.bind(("192.0.2.7", 4711))
        except OSError: pass
        time.sleep(0.3)
    """))
    symptom = of_call(record, "bind", "EADDRNOTAVAIL").symptom
    assert symptom.path in ("192.0.2.7:4711", "")  # the memory may be another's by now, and then nothing is said
    assert len(symptom.arguments) == 3


def test_a_process_that_is_gone_is_judged_by_what_it_inherited() -> None:
    program = "setpriv --bounding-set=-sys_chroot --inh-caps=-sys_chroot chroot / true"
    record = observed(["sh", "-c", f"ulimit -n 17; for i in 1 2 3; do {program}; done; sleep 0.3"])
    found = [each for each in record.incidents if each.symptom.syscall == "chroot"]
    assert len(found) == 3
    assert {each.process.limits["NOFILE"] for each in found if each.process is not None} == {(17, 17)}


@pytest.fixture
def refusing(tmp_path: pathlib.Path) -> pathlib.Path:
    """A program that runs its arguments under a filter: refusing ACTION NUMBER -- COMMAND."""
    source = tmp_path / "refusing.c"
    source.write_text(r"""
        #include <linux/filter.h>
        #include <linux/seccomp.h>
        #include <stddef.h>
        #include <stdlib.h>
        #include <sys/prctl.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int main(int count, char **words) {
            struct sock_filter code[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(words[2]), 0, 1),
                BPF_STMT(BPF_RET | BPF_K, strtoul(words[1], 0, 0)),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
            };
            struct sock_fprog program = {4, code};
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) return 9;
            execvp(words[3], words + 3);
            return 8;
        }
    """)
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    subprocess.run(["cc", "-o", tmp_path / "refusing", source], check=True)
    return tmp_path / "refusing"


CALL = """
import ctypes, os, time
time.sleep(0.3)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall({number}, *{arguments}))
time.sleep(0.3)
"""
MOUNT, GETPPID = 165, 110  # x86_64
ERRNO_EPERM, ERRNO_ENOSYS, TRAP, KILL_THREAD, KILL_PROCESS = "0x50001", "0x50026", "0x30000", "0", "0x80000000"
needs_x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")


def refused(refusing: pathlib.Path, action: str, number: int, arguments: str = "()") -> RunRecord:
    return observed([str(refusing), action, str(number), *python(CALL.format(number=number, arguments=arguments))])


@needs_x86
@pytest.mark.parametrize(("action", "errno"), [(ERRNO_EPERM, "EPERM"), (ERRNO_ENOSYS, "ENOSYS")])
@pytest.mark.parametrize(("number", "call"), [(MOUNT, "mount"), (GETPPID, "getppid")])
def test_a_call_that_a_filter_refused_was_not_entered(
    refusing: pathlib.Path, action: str, errno: str, number: int, call: str
) -> None:
    record = refused(refusing, action, number)
    incident = of_call(record, call, errno)
    assert incident.symptom.count == 1
    if call == "mount":
        assert incident.symptom.entered is False
        assert incident.process is not None
        assert isinstance(incident.process.filters, tuple)
        assert len(incident.process.filters) == 1
    else:
        assert incident.symptom.entered is not True  # a call that asks only: its beginning is not recorded


@needs_x86
def test_a_call_that_the_kernel_itself_refused_was_entered(refusing: pathlib.Path) -> None:
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    record = observed([str(refusing), ERRNO_EPERM, str(GETPPID), *without, "unshare", "-m", "true"])
    assert of_call(record, "unshare", "EPERM").symptom.entered is True


@needs_x86
@pytest.mark.parametrize("action", [TRAP, KILL_THREAD, KILL_PROCESS])
def test_a_call_that_a_filter_killed_for_is_named(refusing: pathlib.Path, action: str) -> None:
    record = refused(refusing, action, MOUNT)
    assert os.WTERMSIG(record.wait_status) == signal.SIGSYS
    (symptom,) = [each.symptom for each in record.incidents if each.symptom.kind is SymptomKind.KILLED]
    assert (symptom.syscall, symptom.signal, symptom.entered) == ("mount", signal.SIGSYS, False)


def deaths(record: RunRecord) -> list[Symptom]:
    return [each.symptom for each in record.incidents if each.symptom.kind is SymptomKind.KILLED]


def test_who_sent_a_deadly_signal_is_known() -> None:
    record = observed(["bash", "-c", "sleep 60 & kill -9 $!; wait $!; kill -TERM $$"])
    found = deaths(record)
    assert [each.signal for each in found] == [9, 15]
    killed, ended = found
    assert killed.sender_pid == ended.sender_pid == record.incidents[-1].process.identity.pid  # type: ignore[union-attr]


def test_a_signal_from_outside_is_told_with_its_sender() -> None:
    outside = subprocess.Popen([PYTHON, "-c", "import os, sys, time; time.sleep(1.5); os.kill(int(open(sys.argv[1]).read()), 9)",
                                "/tmp/triaged-test-pid"])
    try:
        record = observed(["sh", "-c", "echo $$ > /tmp/triaged-test-pid; exec sleep 60"])
    finally:
        outside.wait()
        os.unlink("/tmp/triaged-test-pid")
    (killed,) = deaths(record)
    assert (killed.signal, killed.sender_pid) == (9, outside.pid)


def test_a_signal_to_the_whole_group_reaches_the_command_once() -> None:
    script = "trap 'echo got it' TERM; echo ready; read x; read x; exit 3"
    argv = [sys.executable, "-m", "triaged.cli", "run", "-q", "--", "bash", "-c", script]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        time.sleep(1)  # until the senders of signals are looked at
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout.readline() == b"got it\n"
        time.sleep(0.3)
        process.stdin.write(b"\n\n")
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(30) == 3


I386 = r"""
.globl _start
.section .rodata
path: .asciz "/sys/not-for-mkdir"
.text
_start:
    movl $39, %eax
    movl $path, %ebx
    movl $0755, %ecx
    int $0x80
    decl count
    jnz _start
    movl $1, %eax
    xorl %ebx, %ebx
    int $0x80
.data
count: .long 20000
"""


@needs_x86
def test_a_32_bit_program_is_seen_by_its_own_calls(tmp_path: pathlib.Path) -> None:
    source, program = tmp_path / "x.s", tmp_path / "x"
    source.write_text(I386)
    if shutil.which("as") is None or subprocess.run(["as", "--32", "-o", tmp_path / "x.o", source], check=False).returncode:
        pytest.skip("no assembler for i386")
    subprocess.run(["ld", "-m", "elf_i386", "-o", program, tmp_path / "x.o"], check=True)
    if subprocess.run([program], check=False).returncode:
        pytest.skip("this kernel runs no 32-bit programs")
    record = observed(["sh", "-c", f"sleep 0.3; {program}; sleep 1; {program}; sleep 0.2"])
    found = [each for each in record.incidents if each.symptom.syscall == "mkdir"]
    assert {each.symptom.errno for each in found} == {"EPERM"}
    assert sum(each.symptom.count for each in found) >= 20000  # the second is seen from its beginning
    assert record.was_deaf  # and the first is not


def test_threads_that_end_with_their_process_were_not_killed() -> None:
    record = observed(python("""
        import os, threading, time
        for _ in range(4): threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        time.sleep(0.2)
        os._exit(0)
    """))
    assert deaths(record) == []


def test_what_ordinary_programs_try_and_fail_is_no_incident(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.py").write_text("import json, socket, tempfile, subprocess\nsubprocess.run(['ls', '/nonexistent'])\n")
    record = observed(["sh", "-c", f"{PYTHON} {tmp_path}/x.py; find {tmp_path} | sort; cat /nonexistent; true"])
    assert [each.symptom for each in record.incidents] == []


def test_every_call_is_watched_for_a_moment_only_whatever_is_asked_for_meanwhile() -> None:
    calls = FailingCalls(KernelPaths(), os.getpid())
    try:
        def state(event: str) -> str:
            tracefs = TraceFs(KernelPaths())
            try:
                path = pathlib.Path(tracefs.path, f"instances/{PREFIX}{os.getpid()}-calls/events/raw_syscalls/{event}/enable")
                return path.read_text().strip()
            finally:
                tracefs.close()

        assert calls.watch_every_call(True)
        assert (state("sys_enter"), state("sys_exit")) == ("1", "1")
        calls.watch_every_call(False)
        assert (state("sys_enter"), state("sys_exit")) == ("0", "0")
        calls.watch_every_call(True)
        calls.watch_other_architecture({120}, {102})
        calls.watch_every_call(False)
        assert (state("sys_enter"), state("sys_exit")) == ("1", "1")
        calls.watch_other_architecture({120}, ())
        assert (state("sys_enter"), state("sys_exit")) == ("0", "1")
    finally:
        calls.close()


def test_nothing_is_left_behind() -> None:
    before = {name for name in os.listdir("/proc") if name.isdecimal()}
    observed(["sh", "-c", "true & true; wait"])
    assert instances() == []
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert set(children) <= before


def test_two_runs_at_once_see_only_their_own(tmp_path: pathlib.Path) -> None:
    argv = [sys.executable, __file__, "inner"]
    record = observed(["sh", "-c", f"unshare --mount-proc true; {' '.join(argv)}"])
    assert record.wait_status == 0


def test_many_failing_calls_cost_little_and_are_counted() -> None:
    record = observed(python("""
        import os
        fd = os.open("/dev/full", os.O_WRONLY)
        for _ in range(20000):
            try: os.write(fd, b"x")
            except OSError: pass
    """))
    incident = of_call(record, "write", "ENOSPC")
    lost = [text for text in record.blind if "lost" in text]
    assert (incident.symptom.count, record.is_traced) == (20000, True) or (lost and not record.is_traced)


def test_thousands_of_processes_are_followed() -> None:
    record = observed(["bash", "-c", "for i in {1..1500}; do /bin/true; done; ulimit -n 5; exec 9</dev/null; chroot / true"])
    assert record.is_traced
    assert not [text for text in record.blind if "lost" in text]


if __name__ == "__main__":
    with Session(["sh", "-c", "setpriv --bounding-set=-sys_chroot chroot / true"], lambda *_: None) as session:
        inner = session.run()
    session.wait_for_removal()
    sys.exit(0 if [each for each in inner.incidents if each.symptom.syscall == "chroot"] else 1)
