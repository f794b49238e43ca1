# SPDX-License-Identifier: Apache-2.0
import json
import pathlib
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from triaged.cli.commands import build_parser
from triaged.cli.log import entry_lines, explanation_lines, field, journalctl_argv, unit_name
from triaged.cli.style import Style


def argv_of(*words: str, uid: int = 1000) -> list[str]:
    return journalctl_argv(build_parser(["log", *words]).parse_args(["log", *words]), uid)


def test_every_writer_that_is_believed_is_asked_for_the_unit() -> None:
    argv = argv_of("app.service")
    matches = " ".join(argv[argv.index("_SYSTEMD_UNIT=triaged.service"):]).split(" + ")
    by_hand = "SYSLOG_IDENTIFIER=triaged"
    writers = ["_SYSTEMD_UNIT=triaged.service", "_SYSTEMD_UNIT=triaged-helper.service", by_hand, by_hand]
    units = ["OBJECT_SYSTEMD_UNIT=app.service", "OBJECT_SYSTEMD_USER_UNIT=app.service"]
    assert [(match.split()[0], match.split()[-1]) for match in matches] == [(writer, unit) for writer in writers for unit in units]


def test_an_identifier_alone_is_never_believed() -> None:
    argv = argv_of(uid=1000)
    followers = [argv[index + 1] for index, word in enumerate(argv) if word == "SYSLOG_IDENTIFIER=triaged"]
    assert followers == ["_UID=0", "_UID=1000"]


@pytest.mark.parametrize(("given", "whole"), [("app", "app.service"), ("x.slice", "x.slice"), ("a.b", "a.b.service")])
def test_a_unit_without_a_type_is_a_service(given: str, whole: str) -> None:
    assert unit_name(given) == whole


def test_time_count_and_follow_are_handed_to_journalctl() -> None:
    argv = argv_of("--since=-1h", "-n", "5", "-f")
    assert {"--since=-1h", "--lines=5", "--follow"} <= set(argv)


def test_a_field_may_be_bytes_or_given_twice_or_missing() -> None:
    assert field({"A": [119, 255, 27]}, "A") == "w\udcff\x1b"
    assert field({"A": ["first", "last"]}, "A") == "last"
    assert field({}, "A") == ""
    assert field({"A": None}, "A") == ""


def test_an_entry_is_shown_with_time_severity_text_and_finding() -> None:
    record = {
        "__REALTIME_TIMESTAMP": "1800000000000000", "PRIORITY": "3", "MESSAGE": "13 forks refused", "TRIAGED_FINDING": "a.b-3f2a",
    }
    first, second = entry_lines(record, Style())
    assert first.endswith("  error     13 forks refused")
    assert first.startswith("2027-01-15 ")
    assert second.strip() == "a.b-3f2a"


def test_control_characters_in_an_entry_are_spelled_out() -> None:
    record = {"PRIORITY": "3", "MESSAGE": [27, 91, 51, 49, 109, 10, 255], "TRIAGED_FINDING": "\x1b"}
    lines = entry_lines(record, Style())
    assert all(line.isprintable() for line in lines)


def test_a_catalog_entry_takes_the_fields_of_the_record() -> None:
    record = {"OBJECT_SYSTEMD_UNIT": "x\x1b.service"}
    lines = explanation_lines("A limit of @OBJECT_SYSTEMD_UNIT@ was hit.\n@NOT_THERE@", record, Style())
    assert lines == ["  ░░ A limit of x\\x1b.service was hit.", "  ░░ @NOT_THERE@"]


# With journalctl itself

REMOTE = "/usr/lib/systemd/systemd-journal-remote"
UNIT = "actions.runner.service"
OPENED = {
    "MESSAGE": "13 forks refused at 64 tasks", "PRIORITY": "3", "SYSLOG_IDENTIFIER": "triaged",
    "TRIAGED_RULE": "cgroup.pids.limit-hit", "TRIAGED_FINDING": "cgroup.pids.limit-hit-c4078caa", "OBJECT_SYSTEMD_UNIT": UNIT,
    "_SYSTEMD_UNIT": "triaged.service", "_UID": "989",
}


@pytest.fixture
def write_journal(tmp_path: pathlib.Path) -> Any:
    """Writes a journal file with these entries, and gives its directory."""
    need = [program for program in ("journalctl", REMOTE) if shutil.which(program) is None]
    if need:
        pytest.skip(f"not installed: {', '.join(need)}")

    def write(*entries: Mapping[str, str | bytes]) -> pathlib.Path:
        export = b""
        for number, entry in enumerate(entries):
            export += b"__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n" % (1_800_000_000_000_000 + number, number)
            export += b"_BOOT_ID=%032x\n" % 1
            for name, value in entry.items():
                data = value if isinstance(value, bytes) else value.encode()
                # The Journal Export Format: what is not plain text is given with its length.
                export += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
            export += b"\n"
        subprocess.run([REMOTE, "-o", str(tmp_path / "test.journal"), "-"], input=export, check=True, capture_output=True)
        return tmp_path

    return write


def test_the_entries_of_a_unit_are_found_and_others_are_not(machine: Any, write_journal: Any) -> None:
    journal = write_journal(OPENED, {**OPENED, "OBJECT_SYSTEMD_UNIT": "other.service", "MESSAGE": "about another"})
    answer = machine.triagectl("log", "actions.runner", "--directory", str(journal))
    assert answer.returncode == 0
    assert "error     13 forks refused at 64 tasks" in answer.stdout
    assert "cgroup.pids.limit-hit-c4078caa" in answer.stdout
    assert "about another" not in answer.stdout


def test_the_entries_of_a_unit_of_a_user_s_own_systemd_are_found(machine: Any, write_journal: Any) -> None:
    entry = {name: value for name, value in OPENED.items() if name != "OBJECT_SYSTEMD_UNIT"}
    journal = write_journal({**entry, "OBJECT_SYSTEMD_USER_UNIT": UNIT})
    assert "13 forks refused" in machine.triagectl("log", UNIT, "--directory", str(journal)).stdout


def test_what_another_user_wrote_in_the_daemon_s_name_is_not_shown(machine: Any, write_journal: Any) -> None:
    forged = {**OPENED, "_SYSTEMD_UNIT": "session-1.scope", "_UID": "4242", "MESSAGE": "forged"}
    by_hand = {**OPENED, "_SYSTEMD_UNIT": "session-1.scope", "_UID": "0", "MESSAGE": "started by hand"}
    answer = machine.triagectl("log", "--directory", str(write_journal(forged, by_hand)))
    assert "forged" not in answer.stdout
    assert "started by hand" in answer.stdout


def test_entries_with_control_characters_are_spelled_out(machine: Any, write_journal: Any) -> None:
    journal = write_journal({**OPENED, "MESSAGE": b"\x1b]0;owned\x07 \xff"})
    answer = machine.triagectl("log", "--directory", str(journal))
    assert "\\x1b]0;owned\\x07 \\xff" in answer.stdout


def test_json_gives_the_journal_s_own_fields_one_entry_a_line(machine: Any, write_journal: Any) -> None:
    journal = write_journal(OPENED, OPENED)
    answer = machine.triagectl("log", "--json", "--finding", OPENED["TRIAGED_FINDING"], "--directory", str(journal))
    first, second = map(json.loads, answer.stdout.splitlines())
    assert first["TRIAGED_RULE"] == second["TRIAGED_RULE"] == "cgroup.pids.limit-hit"


def test_a_journal_without_entries_is_told_on_standard_error(machine: Any, write_journal: Any) -> None:
    answer = machine.triagectl("log", "nothing.service", "--directory", str(write_journal(OPENED)))
    assert (answer.returncode, answer.stdout) == (0, "")
    assert answer.stderr.endswith("no entries\n")


def test_a_failure_of_journalctl_is_an_error(machine: Any, tmp_path: pathlib.Path) -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("journalctl is not installed")
    answer = machine.triagectl("log", "--since", "nonsense", "--directory", str(tmp_path))
    assert answer.returncode == 2
    assert "triagectl: journalctl failed with status 1" in answer.stderr


def test_a_machine_without_journalctl_is_told_what_else_there_is(machine: Any, tmp_path: pathlib.Path) -> None:
    answer = machine.triagectl("log", environment={"PATH": str(tmp_path)})
    assert answer.returncode == 2
    assert answer.stderr.startswith("triagectl: journalctl is not installed\n")
