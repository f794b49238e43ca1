# SPDX-License-Identifier: Apache-2.0
"""A command under `triagectl run`, compared with the same command without it."""
from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

import pytest
from commands import environment, triagectl_run

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.mark.parametrize("script", ["exit 0", "exit 7", "kill -9 $$", "kill -SEGV $$", "kill -INT $$", "kill -PIPE $$", "exit 255"])
def test_the_status_is_what_it_is_without(run: Run, script: str) -> None:
    argv = ["sh", "-c", script]
    assert run(*argv).returncode == subprocess.run(argv, check=False).returncode


@pytest.mark.parametrize(
    ("argv", "status"), [(["no-such-command"], 127), (["/does/not/exist"], 127), (["/etc/passwd"], 126), (["/"], 126)]
)
def test_what_cannot_be_executed_has_a_shells_status_and_says_so(run: Run, argv: list[str], status: int) -> None:
    answer = run(*argv)
    assert (answer.returncode, answer.stdout) == (status, b"")
    assert answer.stderr.startswith(b"triagectl: " + argv[0].encode())


def test_a_command_that_passes_waits_for_no_judge_unless_a_report_is_asked_for(run: Run, tmp_path: pathlib.Path) -> None:
    loud = environment(PYTHONVERBOSE="1")
    quick = subprocess.run(triagectl_run("--", "true"), env=loud, capture_output=True, text=True, check=True)
    assert "triaged.run.session" in quick.stderr
    assert "triaged.verdict.decide" not in quick.stderr
    command = triagectl_run("--report", str(tmp_path / "report"), "--", "true")
    asked = subprocess.run(command, env=loud, capture_output=True, text=True, check=True)
    assert "triaged.verdict.decide" in asked.stderr


def test_output_that_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        for option in ([], ["--report", "/dev/null"]):
            command = triagectl_run(*option, "--", "sh", "-c", "echo lost; sleep 0.2")
            done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert (done.returncode, done.stderr) == (
                2, "triagectl: run: the command's output was lost: standard output: no space left on device\n"
            )


def test_a_script_without_a_first_line_is_executed_by_sh(run: Run, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$1"')
    script.chmod(0o755)
    assert run(str(script), "word").stdout == b"word\n"


def test_bytes_pass_as_they_are_on_both_streams(run: Run, tmp_path: pathlib.Path) -> None:
    data = os.urandom(1 << 21)
    (tmp_path / "data").write_bytes(data)
    answer = run("sh", "-c", 'cat "$0"; cat "$0" >&2; cat', str(tmp_path / "data"), input=data[:999])
    assert answer.stdout == data + data[:999]
    assert answer.stderr == data


def test_one_pipe_for_both_keeps_their_order(run: Run) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do echo $i; echo e$i >&2; done"
    answer = run("sh", "-c", script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert answer.stdout.split() == [word for i in range(1, 10) for word in (b"%d" % i, b"e%d" % i)]


def test_what_is_printed_is_passed_on_at_once() -> None:
    argv = triagectl_run("--no-trace", "--", "sh", "-c", "printf begun; read line; echo $line")
    with subprocess.Popen(argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.read(5) == b"begun"  # no newline, and the command goes on
        process.stdin.write(b"answer\n")
        assert process.stdout.read(7) == b"answer\n"
        assert process.wait(30) == 0


def test_a_reader_that_leaves_ends_the_writer(run: Run) -> None:
    argv = triagectl_run("--no-trace", "--", "yes")
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        assert process.wait(30) == -signal.SIGPIPE


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "2>/dev/full"])
@pytest.mark.parametrize(("script", "status"), [("exit 4", 4), ("exit 0", 0), ("no-such-command", 127)])
def test_a_standard_error_that_cannot_be_written_changes_no_status(closed: str, script: str, status: int) -> None:
    words = ["sh", "-c", script] if script.startswith("exit") else [script]
    shell = f"{' '.join(map(_quoted, triagectl_run('--no-trace', '--', *words)))} {closed}"
    answer = subprocess.run(["sh", "-c", shell], env=environment(), stdout=subprocess.PIPE, check=False, timeout=60)
    assert (answer.returncode, answer.stdout) == (status, b"")


def test_a_reader_of_standard_error_that_leaves_changes_no_status() -> None:
    argv = triagectl_run("--no-trace", "--", "sh", "-c", "read line; exit 4")
    with subprocess.Popen(argv, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stderr
        process.stderr.close()
        process.stdin.close()
        assert process.wait(60) == 4


@pytest.mark.parametrize("option", ["--report", "--junit"])
@pytest.mark.parametrize(("script", "status"), [("exit 4", 4), ("exit 0", 2)])
def test_a_file_that_cannot_be_written_is_told_with_the_verdict_and_never_taken_for_success(
    run: Run, option: str, script: str, status: int
) -> None:
    answer = run("sh", "-c", script, options=("--no-trace", option, "/does/not/exist"))
    assert answer.returncode == status
    first, *rest = answer.stderr.decode().splitlines()
    assert first == "triagectl: run: /does/not/exist: no such file or directory"
    assert ("triaged: the command failed" in "\n".join(rest)) == (status == 4)


def test_an_annotation_begins_a_line_of_its_own(run: Run) -> None:
    answer = run("sh", "-c", "printf unfinished >&2; exit 1", options=("--no-trace", "--annotate", "github"))
    assert answer.stderr.startswith(b"unfinished\n::notice ")


def test_what_a_background_child_prints_later_still_arrives(run: Run) -> None:
    began = time.monotonic()
    argv = triagectl_run("--no-trace", "--", "sh", "-c", "exec 3<&0; (read x <&3; echo late) & echo early")
    with subprocess.Popen(argv, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.wait(30) == 0  # the command itself has ended
        assert time.monotonic() - began < 30
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stdout.read() == b"early\nlate\n"


def test_closed_and_inherited_descriptors_stay_so(run: Run) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    script = f"echo through >&{write}; for n in 0 1 2; do [ -e /proc/self/fd/$n ] && echo $n >&{write}; done"
    try:
        shell = f"exec {' '.join(map(_quoted, triagectl_run('--no-trace', '--', 'bash', '-c', script)))} >&-"
        subprocess.run(["sh", "-c", shell], env=environment(), pass_fds=[write], stdin=subprocess.DEVNULL, check=False, timeout=60)
        os.close(write)
        assert os.read(read, 100).split() == [b"through", b"0", b"2"]
    finally:
        os.close(read)


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def test_the_command_has_the_same_surroundings() -> None:
    code = (
        "import os, signal, resource, json; s = open('/proc/self/status').read();"
        "print(json.dumps([dict(os.environ), os.getcwd(), os.getpgrp() == int(os.environ['GROUP']), os.getsid(0), os.nice(0),"
        "[l for l in s.splitlines() if l.split(':')[0] in ('SigBlk', 'SigIgn', 'Umask', 'CapEff', 'Groups')],"
        "resource.getrlimit(resource.RLIMIT_NOFILE), sorted(os.listdir('/proc/self/fd'))]))"
    )
    argv = [sys.executable, "-c", code]
    more = environment(GROUP=str(os.getpgrp()))
    with_, without = (
        subprocess.run(each, env=more, capture_output=True, check=True, timeout=60).stdout
        for each in (triagectl_run("--no-trace", "--", *argv), argv)
    )
    assert with_ == without


# Signals


def heed_signals() -> None:
    """In a child: nohup and a shell's & have these ignored, and what they start has too."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def started(*argv: str, own_group: bool = False, **more: object) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        heed_signals()
        if own_group:
            os.setpgrp()

    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        triagectl_run("--no-trace", "--", *argv), env=environment(), stdout=subprocess.PIPE, preexec_fn=prepare, **more
    )


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_is_sent_on_once(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f'trap "echo got {name}" {name}; echo ready; read x; read x; exit 3'
    with started("bash", "-c", script, stdin=subprocess.PIPE) as process:
        assert line_of(process) == b"ready\n"
        process.send_signal(number)
        assert line_of(process) == f"got {name}\n".encode()
        assert process.stdin
        process.stdin.write(b"\n\n")
        process.stdin.close()
        assert process.wait(30) == 3
        assert line_of(process) == b""


def test_who_is_ended_by_the_signal_takes_triagectl_with_him() -> None:
    with started("sh", "-c", "echo ready; exec sleep 60") as process:
        assert line_of(process) == b"ready\n"
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM


def test_killed_triagectl_leaves_no_command_behind() -> None:
    with started("sh", "-c", "echo $$; exec sleep 60") as process:
        pid = int(line_of(process))
        with open(f"/proc/{pid}/stat") as file:
            assert file.read()
        descriptor = os.pidfd_open(pid)
        process.kill()
        process.wait(30)
        assert select.select([descriptor], [], [], 30)[0]  # it has ended
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN])
def test_a_stop_of_the_command_stops_triagectl_by_the_same_signal_and_going_on_goes_on(number: signal.Signals) -> None:
    # In a process group of its own: in an orphaned one, as CI may start this in, the kernel ignores all stops but SIGSTOP.
    with started("bash", "-c", f"echo ready; kill -{int(number)} $$; echo again", own_group=True) as process:
        assert line_of(process) == b"ready\n"
        result = os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert result is not None
        assert result.si_status == number
        process.send_signal(signal.SIGCONT)
        assert line_of(process) == b"again\n"
        assert process.wait(30) == 0


def test_ignored_signals_stay_ignored() -> None:
    words = triagectl_run("--no-trace", "--", "grep", "SigIgn", "/proc/self/status")
    script = "trap '' INT HUP; exec " + " ".join(map(_quoted, words))
    answer = subprocess.run(["sh", "-c", script], env=environment(), capture_output=True, check=True, timeout=60)
    assert int(answer.stdout.split()[1], 16) & 3 == 3


# Terminals


class Screen:
    """A command on a terminal of its own, as a person has it."""

    def __init__(self, argv: list[str]) -> None:
        self.seen = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            heed_signals()
            os.execvpe(argv[0], argv, environment(TERM="xterm"))
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))

    def until(self, mark: bytes) -> bytes:
        while mark not in self.seen:
            assert select.select([self.terminal], [], [], 30)[0], f"no {mark!r} after 30 s in {self.seen!r}"
            self.seen += os.read(self.terminal, 65536)
        before, _, self.seen = self.seen.partition(mark)
        return before

    def rest(self) -> bytes:
        """All to the end."""
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while piece := os.read(self.terminal, 65536):
                self.seen += piece
        return self.seen

    def type(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def end(self) -> int:
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(status)


def test_on_a_terminal_the_command_has_a_terminal_of_the_same_size() -> None:
    code = (
        "import os, sys; input('go? '); print([os.isatty(n) for n in range(3)], os.get_terminal_size(1), os.get_terminal_size(2));"
        "open('/dev/tty', 'w').write('by the terminal itself\\n')"
    )
    screen = Screen(triagectl_run("--no-trace", "--", sys.executable, "-c", code))
    screen.until(b"go? ")
    screen.type(b"\n")
    shown = screen.rest()
    assert b"[True, True, True] os.terminal_size(columns=101, lines=33) os.terminal_size(columns=101, lines=33)\r\n" in shown
    assert b"by the terminal itself\r\n" in shown
    assert screen.end() == 0


def test_a_new_size_reaches_the_command() -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGWINCH, lambda *_: print('size', os.get_terminal_size(1).columns, flush=True))\n"
        "print('ready', flush=True)\ninput()\n"
    )
    screen = Screen(triagectl_run("--no-trace", "--", sys.executable, "-c", code))
    screen.until(b"ready")
    fcntl.ioctl(screen.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 66, 0, 0))
    screen.until(b"size 66")
    screen.type(b"\n")
    assert screen.end() == 0


def settings_of(terminal: int) -> object:
    return termios.tcgetattr(terminal)


def test_less_gets_its_keys_and_leaves_the_terminal_as_it_was(tmp_path: pathlib.Path) -> None:
    if shutil.which("less") is None:
        pytest.skip("less is not installed")
    (tmp_path / "text").write_text("".join(f"line {number}.\n" for number in range(200)))
    screen = Screen(triagectl_run("--no-trace", "--", "less", str(tmp_path / "text")))
    before = settings_of(screen.terminal)
    screen.until(b"line 20.")
    screen.until(b"text")  # the name of the file, in its prompt
    screen.type(b"G")
    screen.until(b"line 199.")
    screen.type(b"q")
    screen.rest()
    assert settings_of(screen.terminal) == before
    assert screen.end() == 0


def test_a_program_that_sets_the_mode_through_its_output_has_every_key_at_once() -> None:
    code = (
        "import os, tty, termios; old = termios.tcgetattr(1); tty.setcbreak(1); print('ready', flush=True); key = os.read(0, 1);"
        "termios.tcsetattr(1, termios.TCSANOW, old); print('got', key, flush=True); print('line', input(), flush=True)"
    )
    screen = Screen(triagectl_run("--no-trace", "--", sys.executable, "-c", code))
    before = settings_of(screen.terminal)
    screen.until(b"ready")
    screen.type(b"k")  # and no end of line
    screen.until(b"got b'k'")
    screen.type(b"words\n")
    screen.until(b"line words")
    screen.rest()
    assert settings_of(screen.terminal) == before
    assert screen.end() == 0


def test_ctrl_c_reaches_the_command_once() -> None:
    script = "trap 'echo caught' INT; echo ready; read x; echo went on; read x; exit 4"
    screen = Screen(triagectl_run("--no-trace", "--", "bash", "-c", script))
    screen.until(b"ready")
    screen.type(b"\x03")
    screen.until(b"caught")
    screen.type(b"\n\n")
    assert b"caught" not in screen.until(b"went on")
    assert screen.end() == 4


def test_ctrl_c_that_ends_the_command_ends_triagectl_by_the_same_signal() -> None:
    screen = Screen(triagectl_run("--no-trace", "--", "sh", "-c", "echo ready; exec sleep 60"))
    screen.until(b"ready")
    screen.type(b"\x03")
    assert b"triaged:" not in screen.rest()
    assert screen.end() == -signal.SIGINT


def test_ctrl_z_and_fg_work_in_a_shell() -> None:
    command = " ".join(map(_quoted, triagectl_run("--no-trace", "--", "sh", "-c", "echo rea''dy; read x; echo got $x")))
    screen = Screen(["bash", "--norc", "--noprofile", "-i"])
    screen.type(b"PS1=pro''mpt:\n")
    screen.until(b"prompt:")
    screen.type(command.encode() + b"\n")
    screen.until(b"ready\r\n")
    screen.type(b"\x1a")
    screen.until(b"Stopped")
    screen.until(b"prompt:")
    time.sleep(0.3)  # a key lost once on a busy machine: bash may not have taken the terminal back when its prompt is there
    screen.type(b"echo ended with''=$?\n")
    screen.until(b"ended with=148")  # 128 and SIGTSTP, as for the command alone
    screen.until(b"prompt:")
    screen.type(b"fg\n")
    screen.until(b"triaged.cli")
    screen.type(b"word\n")
    screen.until(b"got word")
    screen.type(b"exit 5\n")
    assert screen.end() == 5


def test_what_is_typed_ahead_is_left_for_the_shell() -> None:
    command = " ".join(map(_quoted, triagectl_run("--no-trace", "--", "sh", "-c", "echo rea''dy; exec sleep 1")))
    screen = Screen(["bash", "--norc", "--noprofile", "-i"])
    screen.type(command.encode() + b"\n")
    screen.until(b"ready\r\n")
    screen.type(b"echo typed a''head\nexit 6\n")
    screen.until(b"typed ahead\r\n")
    assert screen.end() == 6
