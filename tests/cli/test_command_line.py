# SPDX-License-Identifier: Apache-2.0
"""triagectl as a person runs it: real processes, this machine's kernel."""
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from triaged.cli.commands import COMMANDS, build_parser, typed_command

NOBODY = 65534
IS_ROOT = os.geteuid() == 0
KEYS = {"id", "rule", "kind", "severity", "state", "subject", "summary", "evidence", "fixes"}


def users() -> list[Any]:
    needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
    return [pytest.param(None, id="as-is"), pytest.param(NOBODY, id="as-nobody", marks=needs_root)]


# scan


@pytest.mark.parametrize("uid", users())
def test_a_scan_that_finds_nothing_says_so_with_status_0(machine: Any, uid: int | None) -> None:
    answer = machine.triagectl("scan", uid=uid)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.splitlines()[-1] == "Nothing found; 1 of 1 source could look."


@pytest.mark.parametrize("uid", users())
def test_a_scan_that_finds_a_warning_has_status_1(machine: Any, uid: int | None) -> None:
    machine.want_the_impossible("warning")
    answer = machine.triagectl("scan", uid=uid)
    assert (answer.returncode, answer.stderr) == (1, "")
    assert "RISK" in answer.stdout
    assert "vm.max_map_count" in answer.stdout
    assert "HIT" not in answer.stdout


def test_a_notice_is_shown_and_leaves_status_0(machine: Any) -> None:
    machine.want_the_impossible("notice")
    answer = machine.triagectl("scan")
    assert answer.returncode == 0
    assert answer.stdout.endswith("1 risk; 1 of 1 source could look. Nothing of severity warning or worse.\n")


def test_a_scan_in_which_no_source_can_look_has_status_2(machine: Any) -> None:
    machine.write_policy(sources=())
    assert machine.triagectl("scan").returncode == 2


def test_the_json_of_a_scan_has_the_documented_shape(machine: Any) -> None:
    machine.want_the_impossible()
    answer = machine.triagectl("scan", "--json")
    report = json.loads(answer.stdout)
    assert answer.returncode == 1
    assert set(report) == {"findings", "sources"}
    (finding,) = report["findings"]
    assert set(finding) >= KEYS
    assert (finding["kind"], finding["severity"], finding["state"]) == ("risk", "warning", "open")
    assert finding["evidence"]
    assert all({"value", "source"} <= set(item) for item in finding["evidence"].values())
    (source,) = report["sources"]
    assert set(source) >= {"name", "state", "reason"}


@pytest.mark.parametrize("uid", users())
def test_a_scan_with_every_source_ends_by_itself_and_names_what_it_could_not_look_at(machine: Any, uid: int | None) -> None:
    from triaged.sources import SOURCE_NAMES

    machine.write_policy(sources=tuple(SOURCE_NAMES))
    answer = machine.triagectl("scan", "--json", uid=uid)
    assert answer.returncode in (0, 1)
    sources = json.loads(answer.stdout)["sources"]
    assert sorted(source["name"] for source in sources) == sorted(SOURCE_NAMES)
    assert all(source["state"] in ("active", "degraded", "unavailable") for source in sources)
    assert all(source["reason"] and source["remedy"] for source in sources if source["state"] != "active")
    text = machine.triagectl("scan", uid=uid).stdout
    assert all(source["reason"].split()[0] in text for source in sources if source["state"] != "active")


def test_a_mistake_in_the_policy_is_told_with_file_and_line_and_status_2(machine: Any) -> None:
    machine.want_the_impossible()
    with (machine.data / "policies" / "default.toml").open("a") as policy:
        policy.write('worklods = ["go-test"]\n')
    answer = machine.triagectl("scan")
    assert answer.returncode == 2
    assert re.match(r"^triagectl: .*/default\.toml:9: .*worklods.*\n +.*workloads", answer.stderr)
    assert "Traceback" not in answer.stderr


def test_a_policy_that_does_not_exist_is_told_with_the_nearest_name(machine: Any) -> None:
    answer = machine.triagectl("scan", "--policy", "defualt")
    assert answer.returncode == 2
    assert re.search(r"^triagectl: .*defualt.*\n +.*default", answer.stderr)


# Terminals, pipes, signals


def test_colours_are_for_terminals(machine: Any) -> None:
    machine.want_the_impossible()
    assert "\x1b[33m" in machine.on_terminal("scan")
    assert "\x1b[" not in machine.triagectl("scan").stdout
    assert "\x1b[33m" in machine.triagectl("scan", "--color", "always").stdout


def test_no_color_and_a_dumb_terminal_get_no_colours(machine: Any) -> None:
    machine.want_the_impossible()
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        text = machine.on_terminal("scan", environment=environment)
        assert "\x1b[3" not in text
        assert "RISK" in text
    assert "\x1b[3" not in machine.on_terminal("--color", "never", "scan")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_report_fits_the_terminal(machine: Any, columns: int) -> None:
    machine.want_the_impossible()
    text = re.sub(r"[^\n]*\r\x1b\[K|\x1b\[[0-9;]*m", "", machine.on_terminal("scan", columns=columns))
    lines = [line for line in text.splitlines() if " # " not in line and "/" not in line]
    assert len(lines) > 5
    assert max(map(len, lines)) <= columns


def test_progress_is_shown_on_a_terminal_and_wiped_again(machine: Any) -> None:
    text = machine.on_terminal("scan")
    assert "looking at kernel-parameters ...\r\x1b[K" in text


def test_a_reader_that_goes_away_is_no_error(machine: Any) -> None:
    # /dev/full and a closed pipe are told apart: the one is a person's loss, the other a person's wish.
    process = subprocess.Popen(
        machine.argv("completion", "bash"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=machine.environment, cwd="/"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, b"")
    process.stderr.close()


def test_a_full_disk_is_an_error(machine: Any) -> None:
    with open("/dev/full", "wb") as full:
        answer = subprocess.run(
            machine.argv("rules"), stdout=full, stderr=subprocess.PIPE, env=machine.environment, cwd="/", check=False, text=True
        )
    assert answer.returncode == 2
    assert answer.stderr == "triagectl: cannot write the output: no space left on device\n"


def test_a_closed_standard_output_is_an_error(machine: Any) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *machine.argv("rules")]
    answer = subprocess.run(command, stderr=subprocess.PIPE, env=machine.environment, cwd="/", check=False, text=True)
    assert answer.returncode == 2
    assert answer.stderr == "triagectl: cannot write the output: standard output is closed\n"


def test_a_terminal_without_utf8_gets_escapes(machine: Any) -> None:
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    answer = machine.triagectl("rules", environment=environment)
    assert answer.returncode == 0
    assert answer.stdout.isascii()


# Arguments


def test_without_a_command_the_help_is_shown_with_status_2(machine: Any) -> None:
    answer = machine.triagectl()
    assert answer.returncode == 2
    assert "scan" in answer.stdout


@pytest.mark.parametrize("words", [("nonsense",), ("list", "--state", "nonsense"), ("scan", "nonsense"), ("--bus",)])
def test_wrong_arguments_have_status_2_and_a_usage_line(machine: Any, words: tuple[str, ...]) -> None:
    answer = machine.triagectl(*words)
    assert answer.returncode == 2
    assert answer.stderr.startswith("usage: triagectl")


def test_help_and_version_load_nothing_but_the_parser(machine: Any) -> None:
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "triaged.cli", "--help"],
        capture_output=True, text=True, check=True, env=machine.environment, cwd="/",
    )
    loaded = {line.rsplit("|", 1)[1].strip() for line in answer.stderr.splitlines() if "|" in line}
    assert {name for name in loaded if name.startswith("triaged")} == {
        "triaged", "triaged.cli", "triaged.cli.commands", "triaged.cli.exit_status", "triaged.errors",
    }
    assert not {"asyncio", "dataclasses", "inspect", "typing", "json", "subprocess", "psutil", "pyroute2", "dbus_next"} & loaded


def test_a_command_loads_no_other_command(machine: Any) -> None:
    code = (
        "import sys; from triaged.cli.__main__ import main; main(['rules', '-q']); "
        "print(*[name for name in sys.modules if name.startswith(('triaged.cli', 'triaged.bus', 'asyncio', 'psutil', 'pyroute2'))])"
    )
    argv = [sys.executable, "-c", code]
    answer = subprocess.run(argv, capture_output=True, text=True, check=True, env=machine.environment, cwd="/")
    loaded = set(answer.stdout.splitlines()[-1].split())
    assert "triaged.cli.rules" in loaded
    assert not {f"triaged.cli.{command.module}" for command in COMMANDS if command.module != "rules"} & loaded
    assert not {"asyncio", "psutil", "pyroute2", "triaged.bus"} & loaded


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_list_of_commands_says_what_each_parser_says(command: Any) -> None:
    parser = build_parser([command.name])
    (subparsers,) = (action for action in parser._actions if action.dest == "command")
    summaries = {choice.dest: choice.help for choice in subparsers._choices_actions}
    assert summaries[command.name] == command.summary
    assert subparsers.choices[command.name].description


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["list"], "list"), (["--bus", "session", "list"], "list"), (["--bus=scan", "list"], "list"),
        (["--color", "never"], None), ([], None), (["nonsense"], None),
    ],
)
def test_the_command_is_found_without_a_parser(words: list[str], name: str | None) -> None:
    found = typed_command(words)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    "words", [["--bus", "session", "list"], ["list", "--bus", "session"], ["--bus", "system", "list", "--bus=session"]]
)
def test_the_bus_may_be_given_before_and_after_the_command(words: list[str]) -> None:
    assert build_parser(words).parse_args(words).bus == "session"


# rules


def test_a_rule_is_explained(machine: Any) -> None:
    answer = machine.triagectl("rules", "cgroup.pids.limit-hit")
    assert answer.returncode == 0
    assert "kind        hit" in answer.stdout


def test_the_id_of_a_finding_explains_its_rule(machine: Any) -> None:
    assert machine.triagectl("rules", "cgroup.pids.limit-hit-c4078caa").stdout.startswith("cgroup.pids.limit-hit\n")


def test_an_unknown_rule_is_told_with_the_nearest(machine: Any) -> None:
    answer = machine.triagectl("rules", "cgroup.pids.limit-hitt")
    assert answer.returncode == 2
    assert "did you mean cgroup.pids.limit-hit?" in answer.stderr


# With a daemon


def test_without_a_daemon_it_says_what_to_do_with_status_3(machine: Any) -> None:
    for command in ("status", "list", "watch"):
        answer = machine.triagectl("--bus", f"unix:path={machine.directory}/none", command)
        assert answer.returncode == 3
        assert "systemctl start triaged" in answer.stderr
        assert "triagectl scan" in answer.stderr
        assert "Traceback" not in answer.stderr


def test_the_status_names_version_bus_and_sources(daemon: Any) -> None:
    answer = daemon.machine.triagectl("status")
    assert answer.stdout.startswith("triaged 0.")
    assert daemon.address in answer.stdout
    assert re.search(r"^  kernel-parameters +active", answer.stdout, re.MULTILINE)
    document = json.loads(daemon.machine.triagectl("status", "--json").stdout)
    assert [source["name"] for source in document["sources"]] == ["kernel-parameters"]
    assert document["open_findings"] == 2


def test_the_list_gives_what_the_daemon_has(daemon: Any) -> None:
    answer = daemon.machine.triagectl("list")
    assert answer.returncode == 0
    assert "actions.runner.service: 13 forks refused at 64 tasks" in answer.stdout
    only = daemon.machine.triagectl("list", "--unit", "actions.runner.service", "--severity", "error", "-q")
    assert only.stdout == "cgroup.pids.limit-hit-c4078caa\n"
    none = daemon.machine.triagectl("list", "--kind", "headroom")
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "no open findings\n")


def test_the_json_of_the_list_has_the_shape_of_a_scan(daemon: Any) -> None:
    listed = json.loads(daemon.machine.triagectl("list", "--json", "--rule", "cgroup.pids.limit-hit").stdout)
    scanned = json.loads(daemon.machine.triagectl("scan", "--json").stdout)
    assert set(listed) == set(scanned) == {"findings", "sources"}
    (finding,) = listed["findings"]
    assert set(finding) >= KEYS
    assert finding["count"] == 13
    assert finding["fixes"][0]["commands"] == [["systemctl", "set-property", "--runtime", "actions.runner.service", "TasksMax=128"]]
    assert set(listed["sources"][0]) == set(scanned["sources"][0])


def test_a_finding_is_shown_also_by_the_beginning_of_its_id(daemon: Any) -> None:
    whole = daemon.machine.triagectl("show", "cgroup.pids.limit-hit-c4078caa")
    assert whole.returncode == 0
    assert "pids.events max = 13" in whole.stdout
    assert "13 times" in whole.stdout
    assert daemon.machine.triagectl("show", "cgroup.pids").stdout == whole.stdout
    missing = daemon.machine.triagectl("show", "nonsense")
    assert missing.returncode == 1
    assert "'nonsense'" in missing.stderr


def test_names_that_a_terminal_would_obey_are_spelled_out(daemon: Any) -> None:
    identifier = daemon.machine.triagectl("list", "-q", "--rule", "seccomp.denied").stdout.strip()
    assert identifier
    for words in (("list",), ("show", identifier), ("show", identifier, "--json")):
        answer = daemon.machine.triagectl(*words)
        assert "owned" in answer.stdout
        assert all(line.isprintable() for line in answer.stdout.splitlines())


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_another_user_sees_the_system_s_findings_and_not_root_s_processes(daemon: Any) -> None:
    answer = daemon.machine.triagectl("list", "-q", uid=NOBODY)
    assert answer.stdout == "cgroup.pids.limit-hit-c4078caa\n"


class Watch:
    """A running `triagectl watch` that is subscribed. Its standard error is a terminal: only there it says that it is watching."""

    def __init__(self, machine: Any, *words: str) -> None:
        self._main, side = pty.openpty()
        self.process = subprocess.Popen(
            machine.argv("watch", *words), stdout=subprocess.PIPE, stderr=side, env=machine.environment, cwd="/"
        )
        os.close(side)
        self._told = b""
        while b"Ctrl-C" not in self._told:
            self._told += self._read(self._main)

    def _read(self, descriptor: int) -> bytes:
        ready, _, _ = select.select([descriptor], [], [], 30)
        assert ready, f"nothing came for 30 s; before: {self._told!r}"
        return os.read(descriptor, 65536)

    def output(self, until: bytes) -> bytes:
        """Standard output as far as `until`."""
        assert self.process.stdout is not None
        data = b""
        while until not in data:
            part = self._read(self.process.stdout.fileno())
            assert part, data
            data += part
        return data

    def end(self) -> tuple[int, str]:
        """Its exit status and what it wrote to standard error."""
        assert self.process.stdout is not None
        status = self.process.wait(60)
        self.process.stdout.close()
        with contextlib.suppress(OSError):  # EIO: the last writer closed it
            while part := os.read(self._main, 4096):
                self._told += part
        os.close(self._main)
        return status, self._told.decode()


@pytest.fixture
def start_watch() -> Iterator[Callable[..., Watch]]:
    """Starts `triagectl watch`; what a test leaves running is ended after it."""
    started: list[Watch] = []

    def start(machine: Any, *words: str) -> Watch:
        started.append(Watch(machine, *words))
        return started[-1]

    yield start
    for watch in started:
        if watch.process.poll() is None:
            watch.process.kill()
            watch.end()


def test_watch_prints_a_finding_as_it_is_opened_and_ends_at_ctrl_c(daemon: Any, start_watch: Any) -> None:
    watch = start_watch(daemon.machine, "--json")
    daemon.machine.want_the_impossible()
    daemon.reload()
    finding = json.loads(watch.output(b"\n"))
    assert (finding["kind"], finding["subject"]["name"]) == ("risk", "vm.max_map_count")
    watch.process.send_signal(signal.SIGINT)
    status, told = watch.end()
    assert status == 130
    assert "Traceback" not in told


def test_watch_ends_after_the_number_asked_for(daemon: Any, start_watch: Any) -> None:
    watch = start_watch(daemon.machine, "--number", "1")
    daemon.machine.want_the_impossible()
    daemon.reload()
    assert b"vm.max_map_count" in watch.output(b"max_map_count")
    assert watch.end()[0] == 0


def test_watch_says_when_the_bus_is_lost(lonely_daemon: Any, start_watch: Any) -> None:
    watch = start_watch(lonely_daemon.machine)
    lonely_daemon.bus.terminate()
    status, told = watch.end()
    assert status == 3
    assert "the connection to the bus was lost" in told
