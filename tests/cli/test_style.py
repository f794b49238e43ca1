# SPDX-License-Identifier: Apache-2.0
import io
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triaged.cli.style import Style, columns, command_line, fitted, safe, style_for, wrapped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text())
def test_whatever_is_shown_is_printable_and_showing_it_twice_changes_nothing(text: str) -> None:
    assert safe(text).isprintable()
    assert safe(safe(text)) == safe(text)


def test_escape_sequences_and_bidirectional_overrides_are_spelled_out() -> None:
    assert safe("a\x1b[31mb\u202ec\n") == "a\\x1b[31mb\\u202ec\\x0a"


def test_bytes_that_are_not_utf8_are_spelled_out() -> None:
    assert safe(os.fsdecode(b"w\xff")) == "w\\xff"


@given(st.text(st.characters(min_codepoint=1, codec="utf-8")))
def test_a_command_line_is_printable_and_means_the_same_word_to_bash(word: str) -> None:
    line = command_line([word])
    assert line.isprintable()
    answer = subprocess.run(["bash", "-c", f"printf %s {line}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert answer.stdout.decode() == word


def test_a_word_with_single_quotes_stays_readable() -> None:
    assert command_line(["sh", "-c", "echo 'a = 1' > /etc/b"]) == "sh -c \"echo 'a = 1' > /etc/b\""


@given(st.text(st.sampled_from("'\"$`\\! a"), max_size=8))
def test_quotes_and_dollars_mean_themselves_to_bash(word: str) -> None:
    answer = subprocess.run(["bash", "-c", f"printf %s {command_line([word])}"], capture_output=True, check=True)
    assert answer.stdout.decode() == word


def test_plain_words_are_not_quoted() -> None:
    argv = ["systemctl", "set-property", "--runtime", "a@1.service", "TasksMax=128"]
    assert command_line(argv) == " ".join(argv)


@given(st.text(st.sampled_from("abc 漢字é\u0301"), max_size=60), st.integers(5, 40))
def test_fitted_text_takes_no_more_columns_than_asked_for(text: str, width: int) -> None:
    assert columns(fitted(text, width)) <= width


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert columns("漢字") == 4
    assert columns("e\u0301") == 1
    assert columns("\x1b[1mbold\x1b[0m") == 4


def test_wrapping_never_breaks_a_word_and_indents_what_follows() -> None:
    path = "/sys/fs/cgroup/a-very-long-path"
    assert wrapped(f"limit in {path} was hit", 20, "  x ") == ["  x limit in", f"    {path}", "    was hit"]


def test_a_record_that_is_longer_than_a_line_is_broken_after_its_commas() -> None:
    lines = wrapped("oom-kill:cpuset=/,mems_allowed=0,task=a,pid=7 done", 20, "  ")
    assert lines == ["  oom-kill:cpuset=/,", "  mems_allowed=0,", "  task=a,pid=7 done"]


@given(st.text(st.sampled_from("ab, "), max_size=80), st.integers(10, 30))
def test_wrapping_loses_nothing(text: str, width: int) -> None:
    assert "".join("".join(wrapped(text, width)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("when", "environment", "coloured"),
    [
        ("auto", {"TERM": "xterm"}, True),
        ("auto", {"TERM": "xterm", "NO_COLOR": "1"}, False),
        ("auto", {"TERM": "xterm", "NO_COLOR": ""}, True),
        ("auto", {"TERM": "dumb"}, False),
        ("always", {"TERM": "dumb", "NO_COLOR": "1"}, True),
        ("never", {"TERM": "xterm"}, False),
    ],
)
def test_colours_on_a_terminal_follow_no_color_and_the_option(when: str, environment: dict[str, str], coloured: bool) -> None:
    assert style_for(Terminal(), when, environment).colours is coloured


def test_a_file_gets_no_colours() -> None:
    assert style_for(io.StringIO(), "auto", {"TERM": "xterm"}).colours is False


def test_the_width_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert style_for(Terminal()).width == 72


def test_without_colours_nothing_is_added() -> None:
    style = Style()
    assert style.strong("a") + style.faint("b") + style.severity("error", "c") == "abc"
