# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from triaged.model.symptom import SymptomKind
from triaged.output.error_texts import may_mention, parse_mention, trapped_syscall

ERRORS = (
    # line, errno, call, operation, what it is about
    ("    w_test.go:12: worker 8: fork/exec /bin/sleep: resource temporarily unavailable", "EAGAIN", "", "fork/exec", "/bin/sleep"),
    ("runtime: failed to create new OS thread (have 2 already; errno=11)", "EAGAIN", "clone", "", ""),
    ("runtime/cgo: pthread_create failed: Operation not permitted", "EPERM", "clone3", "", ""),
    ("RuntimeError: can't start new thread", "EAGAIN", "clone3", "", ""),
    ("open /etc/passwd: too many open files", "EMFILE", "openat", "open", "/etc/passwd"),
    ("dial tcp 127.0.0.1:3: socket: too many open files in system", "ENFILE", "socket", "socket", "127.0.0.1:3"),
    ("listen tcp6 [::1]:0: bind: cannot assign requested address", "EADDRNOTAVAIL", "bind", "bind", "[::1]:0"),
    ("fork/exec /tmp/go-build1/b001/c.test: permission denied", "EACCES", "", "fork/exec", "/tmp/go-build1/b001/c.test"),
    ("runtime: epollcreate failed with 1", "EPERM", "epoll_create1", "", ""),
    ("runtime: epollwait on fd 3 failed with 38", "ENOSYS", "epoll_pwait", "", ""),
    ("E   OSError: [Errno 24] Too many open files: '/tmp/x'", "EMFILE", "", "", "/tmp/x"),
    ("thread 'main' panicked: Too many open files (os error 24)", "EMFILE", "", "", ""),
    ("mmap page 65506: cannot allocate memory", "ENOMEM", "mmap", "mmap", ""),
    ("fatal error: failed to reserve page summary memory", "ENOMEM", "mmap", "", ""),
    ("link: mapping output file failed: no space left on device", "ENOSPC", "fallocate", "", ""),
    ("mkdir /c/00: read-only file system", "EROFS", "mkdirat", "mkdir", "/c/00"),
    ("chown /tmp/a: operation not permitted", "EPERM", "chown", "chown", "/tmp/a"),
    ("lookup foo.invalid: no such host", "EAI_NONAME", "", "", ""),
    ("    x_test.go:9: got EPERM, want nil", "EPERM", "", "", ""),
)
DEATHS = (
    ("    a_test.go:6: signal: killed", 9),
    ("signal: bad system call (core dumped)", 31),
    ("SIGSYS: bad system call", 31),
    ("Killed", 9),
    ("bash: line 1:  1234 Killed                  ./x", 9),
    ("error: test failed (signal: 9, SIGKILL: kill)", 9),
    ("subprocess.CalledProcessError: Command 'x' died with <Signals.SIGKILL: 9>.", 9),
)
TIME_OUTS = (
    "panic: test timed out after 12s", "dial tcp 127.0.0.1:8080: i/o timeout", "context deadline exceeded",
)
NOTHING = (
    "FAIL\texample.org/app\t0.000s", "--- FAIL: TestX (0.00s)", "    x_test.go:3: got 3, want 4", "", "./x.go:3:2: undefined: y",
    "ok  \texample.org/app\t0.1s", "PASS", "the service was killed in action by the reviewer", "E = 3",
)


@pytest.mark.parametrize(("line", "errno", "call", "operation", "about"), ERRORS)
def test_an_error_is_named_with_its_call_and_what_it_was_about(
    line: str, errno: str, call: str, operation: str, about: str
) -> None:
    mention = parse_mention(line, 7)
    assert mention is not None
    assert (mention.kind, mention.at_ns) == (SymptomKind.CALL, 7)
    assert (mention.errno, mention.syscall, mention.operation, mention.path) == (errno, call, operation, about)


@pytest.mark.parametrize(("line", "number"), DEATHS)
def test_a_death_is_named_with_its_signal(line: str, number: int) -> None:
    mention = parse_mention(line)
    assert mention is not None
    assert (mention.kind, mention.signal) == (SymptomKind.KILLED, number)


@pytest.mark.parametrize("line", TIME_OUTS)
def test_a_time_out_is_recognised(line: str) -> None:
    mention = parse_mention(line)
    assert mention is not None
    assert mention.kind is SymptomKind.TIMED_OUT


@pytest.mark.parametrize("line", NOTHING)
def test_an_everyday_line_names_nothing(line: str) -> None:
    assert parse_mention(line) is None


@pytest.mark.parametrize("line", [*(row[0] for row in ERRORS), *(row[0] for row in DEATHS), *TIME_OUTS])
def test_the_quick_look_lets_every_such_line_through(line: str) -> None:
    assert may_mention(line)


def test_a_trap_of_seccomp_gives_the_call_in_the_first_frame() -> None:
    text = "SIGSYS: bad system call\nPC=0x1 m=0 sigcode=1\n\ngoroutine 7 [syscall]:\nsyscall.Syscall(0x110, 0x0, 0x0, 0x0)\n"
    assert trapped_syscall(text) == 0x110
    assert trapped_syscall(text.replace("SIGSYS", "SIGSEGV")) is None
