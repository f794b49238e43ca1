# SPDX-License-Identifier: Apache-2.0
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
    assert [match.split()[0] for match in matches] == writers
    assert all("OBJECT_SYSTEMD_UNIT=app.service" in match for match in matches)


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
