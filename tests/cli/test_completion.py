# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import textwrap

import pytest

from triaged.cli.commands import COMMANDS, build_parser
from triaged.cli.completion import SHELLS, script, tree

PACKAGING = pathlib.Path(__file__).parents[2] / "packaging" / "completions"
FINDING = "cgroup.pids.limit-hit-3f2a9c10"


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.fixture
def bin_directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with a triagectl that knows one finding and one rule, and a systemctl that knows two units."""
    programs = {
        "triagectl": f'case "$1" in list) echo {FINDING};; rules) echo cgroup.pids.limit-hit;; esac',
        "systemctl": r"printf '%s loaded active running x\n' 'dev-disk-by\x2dlabel.swap' runner.service",
    }
    for name, text in programs.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("shell", SHELLS)
def test_the_packaged_script_is_what_the_parser_gives(shell: str) -> None:
    path = PACKAGING / f"triagectl.{shell}"
    assert path.read_text() == script(shell), f"run scripts/make-manual to write {path.name} anew"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_finds_no_error_in_its_script(shell: str, tmp_path: pathlib.Path) -> None:
    need(shell)
    path = tmp_path / "script"
    path.write_text(script(shell))
    subprocess.run([shell, "-n", str(path)], check=True)


def test_the_tree_has_every_command_with_its_summary() -> None:
    root = tree(build_parser())
    assert [(child.path[0], child.summary) for child in root.children] == [(each.name, each.summary) for each in COMMANDS]


def bash_completes(line: str, directory: pathlib.Path) -> list[str]:
    """What bash offers at the end of the line: its own word splitting, as at a prompt."""
    need("bash")
    program = textwrap.dedent(
        f"""
        source {PACKAGING}/triagectl.bash
        COMP_LINE=$1 COMP_POINT=${{#1}}
        # As readline splits: blanks separate, and = is a word of its own.
        read -r -a COMP_WORDS <<<"${{1//=/ = }}"
        [[ $1 == *[\\ =] ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _triagectl
        printf '%s\\n' "${{COMPREPLY[@]}}"
        """
    )
    environment = {"PATH": f"{directory}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    answer = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", line], capture_output=True, text=True, check=True, env=environment, cwd=directory
    )
    assert answer.stderr == ""
    return sorted(answer.stdout.split())


CASES = [
    ("triagectl sc", {"scan"}, {"status"}),
    ("triagectl ", {"scan", "list", "rules"}, {"--json"}),
    ("triagectl list --st", {"--state"}, {"--since"}),
    ("triagectl list --state res", {"resolved"}, {"open"}),
    ("triagectl --bus se", {"session"}, {"system"}),
    ("triagectl --bus session li", {"list"}, {"scan"}),
    ("triagectl show ", {FINDING}, {"scan"}),
    ("triagectl rules cgr", {"cgroup.pids.limit-hit"}, set()),
    ("triagectl log run", {"runner.service"}, {FINDING}),
    ("triagectl completion ", {"bash", "zsh", "fish"}, set()),
]


@pytest.mark.parametrize(("line", "offered", "missing"), [*CASES, ("triagectl list --state=op", {"open"}, {"resolved"})])
def test_bash_offers_what_fits(line: str, offered: set[str], missing: set[str], bin_directory: pathlib.Path) -> None:
    found = set(bash_completes(line, bin_directory))
    assert offered <= found
    assert not missing & found


def test_bash_offers_nothing_after_the_last_place(bin_directory: pathlib.Path) -> None:
    assert bash_completes(f"triagectl show {FINDING} ", bin_directory) == []


def test_bash_quotes_what_a_shell_would_read_otherwise(bin_directory: pathlib.Path) -> None:
    assert bash_completes("triagectl log dev", bin_directory) == ["dev-disk-by\\\\x2dlabel.swap"]


@pytest.mark.parametrize(("line", "offered", "missing"), CASES)
def test_fish_offers_what_fits(line: str, offered: set[str], missing: set[str], bin_directory: pathlib.Path) -> None:
    need("fish")
    answer = subprocess.run(
        ["fish", "--no-config", "-c", f"source {PACKAGING}/triagectl.fish; complete -C '{line}'"],
        capture_output=True, text=True, check=True,
        env={"PATH": f"{bin_directory}:/usr/bin:/bin", "HOME": str(bin_directory), "LC_ALL": "C.UTF-8"},
    )
    found = {row.split("\t")[0] for row in answer.stdout.splitlines()}
    assert offered <= found
    assert not missing & found


def zsh_lists(line: str, directory: pathlib.Path, functions: pathlib.Path) -> list[str]:
    """The words that zsh lists at the end of the line, on a terminal as a person has it."""
    need("zsh")
    setup = [
        f"PS1=; fpath=({functions} $fpath); path=({directory} /usr/bin /bin); stty -echo columns 200",
        "autoload -U compinit; compinit -u -D; LISTMAX=0; unsetopt list_beep; zstyle ':completion:*' list-prompt ''",
        "list-now() { zle list-choices; }; zle -N list-now; bindkey '^T' list-now",
        "say-end() { print -r E''ND; }; zle -N say-end; bindkey '^Y' say-end; print -r RE''ADY",
    ]
    shell, terminal = pty.fork()
    if shell == 0:
        os.execve("/bin/zsh", ["zsh", "-f", "-i"], {"HOME": str(functions), "TERM": "xterm", "LC_ALL": "C.UTF-8"})
    try:
        os.write(terminal, ("\n".join(setup) + "\n").encode())
        read_until(terminal, "READY")
        # Each key is read when the one before it is done.
        os.write(terminal, f"{line}\x14".encode())
        os.write(terminal, b"\x19")
        shown = read_until(terminal, "END")
    finally:
        os.kill(shell, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(shell, 0)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", " ", shown).split()


def read_until(terminal: int, mark: str) -> str:
    data = b""
    while mark.encode() not in data:
        ready, _, _ = select.select([terminal], [], [], 30)
        assert ready, f"no {mark} after 30 s in {data!r}"
        data += os.read(terminal, 65536)
    return data.decode()


@pytest.mark.parametrize(("line", "offered", "missing"), CASES)
def test_zsh_offers_what_fits(
    line: str, offered: set[str], missing: set[str], bin_directory: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    functions = tmp_path / "functions"
    functions.mkdir()
    shutil.copy(PACKAGING / "triagectl.zsh", functions / "_triagectl")
    found = set(zsh_lists(line, bin_directory, functions))
    assert offered <= found
    assert not missing & found
