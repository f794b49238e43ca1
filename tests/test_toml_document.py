# SPDX-License-Identifier: Apache-2.0
"""Where things stand in a TOML text, against texts whose lines are known."""
from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triaged.errors import ConfigError
from triaged.toml_document import MAX_BYTES, KeyPath, Layer, Table, lines_of, parse_document, read_document

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NESTED = '''\
# a comment = 1
title = "x"            # 2
"quoted key" = 1
'literal.key' = 2
a.b.c = 3              # 5
text = """
[not.a.table]
key = 1
""" # 9
after = 1

[table]                # 12
key = [ # 13
  1,
  # comment ] here
  [2, "]", 3], { x = 1, y = [4,
    5] },
]                      # 18
last = '\\'
[table.sub]            # 20
key = 1

[[list]]               # 23
key = 1

[list.inner]           # 26
key = 1

[[list]]               # 29

[list.inner]           # 31
key = \'\'\'
a\'\'\'\'
other = 2

[[list.deep]]          # 36
key = 1
[[list.deep]]
key = { z = 2026-11-22 10:00:00, w = "\\"}#" } # 39
'''
EXPECTED: dict[KeyPath, int] = {
    ("title",): 2, ("quoted key",): 3, ("literal.key",): 4, ("a",): 5, ("a", "b", "c"): 5, ("text",): 6, ("after",): 10,
    ("table",): 12, ("table", "key"): 13, ("table", "key", 0): 14, ("table", "key", 1): 16, ("table", "key", 1, 1): 16,
    ("table", "key", 2): 16, ("table", "key", 2, "y"): 16, ("table", "key", 2, "y", 1): 17, ("table", "last"): 19,
    ("table", "sub"): 20, ("table", "sub", "key"): 21, ("list",): 23, ("list", 0): 23, ("list", 0, "key"): 24,
    ("list", 0, "inner"): 26, ("list", 0, "inner", "key"): 27, ("list", 1): 29, ("list", 1, "inner"): 31,
    ("list", 1, "inner", "key"): 32, ("list", 1, "inner", "other"): 34, ("list", 1, "deep"): 36, ("list", 1, "deep", 0): 36,
    ("list", 1, "deep", 0, "key"): 37, ("list", 1, "deep", 1): 38, ("list", 1, "deep", 1, "key"): 39,
    ("list", 1, "deep", 1, "key", "w"): 39,
}


def test_every_kind_of_nesting_has_its_line() -> None:
    tomllib.loads(NESTED)
    lines = lines_of(NESTED)
    assert {path: lines.get(path) for path in EXPECTED} == EXPECTED


def test_windows_line_ends_count_once() -> None:
    text = 'a = 1\r\nb = """\r\nx\r\n"""\r\n[t]\r\nc = 1\r\n'
    tomllib.loads(text)
    assert lines_of(text)["t", "c"] == 6


# Documents of which the writer notes each line itself

_bare = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
_quoted = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters='"\\'), max_size=5)
_scalar = st.one_of(
    st.integers(-9, 9).map(str),
    st.sampled_from(["true", "1.5", "2026-01-02", "2026-01-02 03:04:05", '""', "''", '"a # b"', "'[x]'", '"\\""', '"\\\\"']),
    st.sampled_from(['"""\na = 1\n[b]\n"""', "'''\n\n]'''", '"""x""""', '"""\\""""', "''''a'''", '"""a\\\n  b"""']),
)
_value = st.recursive(
    _scalar,
    lambda inner: st.one_of(
        st.lists(st.tuples(st.sampled_from(["", "\n", " # ]\n", " "]), inner), max_size=3).map(
            lambda items: "[" + ",".join(space + item for space, item in items) + "\n]"
        ),
        st.dictionaries(_bare, inner.filter(lambda text: "\n" not in text), max_size=2).map(
            lambda items: "{" + ", ".join(f"{key} = {item}" for key, item in items.items()) + "}"
        ),
    ),
    max_leaves=5,
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    text, lines = "", {}

    def write(part: str) -> int:
        nonlocal text
        line = text.count("\n") + 1
        text += part + draw(st.sampled_from(["\n", "\n\n", " # x = 1\n", "\n  \t\n# [c]\n"]))
        return line

    def pairs(path: KeyPath) -> None:
        for key in draw(st.lists(st.tuples(st.booleans(), _bare, _quoted), max_size=3, unique_by=lambda k: k[2] if k[0] else k[1])):
            name = key[2] if key[0] else key[1]
            line = write((f'"{name}"' if key[0] else name) + draw(st.sampled_from([" = ", "=", "\t=  "])) + draw(_value))
            lines[(*path, name)] = line

    pairs(())
    for table in draw(st.lists(st.sampled_from("tuv"), max_size=3, unique=True)):
        name = f"table-{table}"
        if draw(st.booleans()):
            lines[name,] = write(f"[{name}]")
            pairs((name,))
            continue
        for index in range(draw(st.integers(1, 3))):
            line = write(f"[[ {name} ]]")
            lines.setdefault((name,), line)
            lines[name, index] = line
            pairs((name, index))
            if draw(st.booleans()):
                lines[name, index, "sub.x"] = write(f'[{name} . "sub.x"]')
                pairs((name, index, "sub.x"))
    return text, lines


def _paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    out = {path} if path else set()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        out |= _paths(inner, (*path, key))
    return out


@settings(max_examples=150, deadline=None)
@given(documents())
def test_lines_are_those_where_the_writer_put_them(document: tuple[str, dict[KeyPath, int]]) -> None:
    text, expected = document
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # the same key twice, or a bare key that is also a quoted one
    lines = lines_of(text)
    assert {path: lines.get(path) for path in expected} == expected
    assert _paths(data) <= set(lines)


def test_the_generated_documents_are_mostly_valid() -> None:
    valid = 0

    @settings(max_examples=40, database=None, deadline=None)
    @given(documents())
    def count(document: tuple[str, dict[KeyPath, int]]) -> None:
        nonlocal valid
        try:
            tomllib.loads(document[0])
            valid += 1
        except tomllib.TOMLDecodeError:
            pass

    count()
    assert valid >= 20


# Errors


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = \n", 1), ("a = 1\nb = [1,\n2\nc = 3", 4), ('a = 1\nb = "x\n', 2), ("a = 1\n\na = 2", 3), ("[t]\n[t]\n", 2),
        ("a = 1\nb", 2),
    ],
)
def test_a_syntax_error_has_its_line(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "f.toml")
    assert caught.value.line == line
    assert re.match(r"f\.toml:\d+: not valid TOML: \w", str(caught.value))
    assert "(at " not in str(caught.value)


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    with pytest.raises(ConfigError, match=r"nested too deeply|not valid TOML"):
        parse_document("a = " + "[" * 5000 + "]" * 5000, "f.toml")


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"a = 1\nb = '\xff'\n", 2, "is not UTF-8"),
        (b"#" * (MAX_BYTES + 1), 0, "is larger than"),
        (None, 0, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_text_is_told(tmp_path: Path, content: bytes | None, line: int, message: str) -> None:
    path = tmp_path / "f.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_document(str(path))
    assert caught.value.line == line


# Tables


def table(*texts: str) -> Table:
    documents = [parse_document(text, f"{number}.toml") for number, text in enumerate(texts)]
    return Table(tuple(Layer(document, (), document.data) for document in documents))


def test_the_last_layer_that_has_a_key_counts() -> None:
    both = table("a = 1\nb = 2\n[t]\nx = 1\ny = 2", "a = 3\n[t]\ny = 5")
    assert (both.integer("a"), both.integer("b")) == (3, 2)
    inner = both.table("t")
    assert (inner.integer("x"), inner.integer("y"), inner.integer("z", 9)) == (1, 5, 9)


def test_a_complaint_points_into_the_layer_that_is_to_blame() -> None:
    with pytest.raises(ConfigError, match=r"^1\.toml:2: 'a' must be an integer, not a string$"):
        table("a = 1", "\na = 'x'").integer("a")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a = 1.5", "a float"), ("a = true", "a boolean"), ("a = [1]", "an array"), ("a = {b = 1}", "a table"),
        ("a = 2026-01-01", "a date or time"),
    ],
)
def test_a_wrong_type_is_named(text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"'a' must be a string, not {kind}"):
        table(text).string("a")


def test_a_boolean_is_no_integer() -> None:
    with pytest.raises(ConfigError, match="must be an integer, not a boolean"):
        table("a = true").integer("a")


def test_bounds_are_held() -> None:
    with pytest.raises(ConfigError, match="'a' is 5, at most 4 is allowed"):
        table("a = 5").integer("a", at_most=4)


def test_an_unknown_key_is_told_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError) as caught:
        table("policies = []\n", "\npolicys = []").expect("policies", "log-level")
    assert caught.value.shown() == "1.toml:2: unknown key 'policys'; did you mean 'policies'?"


def test_a_key_that_is_expected_or_absent_is_no_complaint() -> None:
    read = table("policies = []", "log-level = 'info'").expect("policies", "log-level", "findings")
    assert read.strings("policies") == ()
    with pytest.raises(ConfigError, match="'findings' is missing"):
        read.string("findings")
