# SPDX-License-Identifier: Apache-2.0
"""The D-Bus library behind the seam: which one runs, what it marshals, and what it keeps."""
from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triaged.bus import seam
from triaged.errors import BusError


def in_process(library: tuple[str, str], code: str) -> str:
    """What a process prints that uses this library."""
    environment = {**os.environ, "TRIAGED_DBUS_LIBRARY": library[0]}
    daemon = os.path.dirname(os.path.dirname(os.path.dirname(seam.__file__)))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (daemon, environment.get("PYTHONPATH", ""))))
    command = [library[1], "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_wish_dbus_next_runs() -> None:
    pytest.importorskip("dbus_next")
    code = "from triaged.bus import seam; print(seam.LIBRARY, seam.library_version())"
    assert in_process(("", sys.executable), code) == "dbus-next 0.2.3"


def test_dbus_fast_runs_where_dbus_next_is_missing() -> None:
    pytest.importorskip("dbus_fast")
    code = "import sys; sys.modules['dbus_next'] = None\nfrom triaged.bus import seam; print(seam.LIBRARY)"
    assert in_process(("", sys.executable), code) == "dbus-fast"


def test_an_unknown_wish_and_a_missing_library_are_told() -> None:
    code = """
        import sys
        sys.modules["dbus_next"] = sys.modules["dbus_fast"] = None
        try:
            import triaged.bus.seam
        except Exception as error:
            print(error.shown())
    """
    assert "set it to dbus-next or dbus-fast" in in_process(("jdbus", sys.executable), code)
    assert "install python3-dbus-next" in in_process(("", sys.executable), code)


def test_dbus_next_is_imported_on_a_python_without_its_decorator() -> None:
    pytest.importorskip("dbus_next")
    code = """
        import typing
        if hasattr(typing, "no_type_check_decorator"):
            del typing.no_type_check_decorator  # as Python 3.15 does
        from triaged.bus import seam
        print(seam.LIBRARY)
    """
    assert in_process(("dbus-next", sys.executable), code) == "dbus-next"


def test_gobject_is_not_imported_with_the_library(library: tuple[str, str]) -> None:
    code = "import sys, triaged.bus.seam; print(sorted({'gi', 'gi.repository'} & set(sys.modules)))"
    assert in_process(library, code) == "[]"


def test_values_come_back_as_they_were(library: tuple[str, str]) -> None:
    code = """
        from triaged.bus.seam import Variant, marshal, plain, unmarshal
        signature = "a{sv}sa(st)yaasbxd"
        values = [
            {"a": Variant("s", "x"), "b": Variant("aas", [["q", ""]]), "c": Variant("t", 2**64 - 1)},
            "tail", [["n", 5]], 7, [["a"], []], True, -2**63, 0.5,
        ]
        body = marshal(signature, values)
        assert plain(unmarshal(signature, body)) == plain(values), plain(unmarshal(signature, body))
        print(len(body))
    """
    assert int(in_process(library, code)) == len(seam.marshal("a{sv}sa(st)yaasbxd", [
        {"a": seam.Variant("s", "x"), "b": seam.Variant("aas", [["q", ""]]), "c": seam.Variant("t", 2**64 - 1)},
        "tail", [["n", 5]], 7, [["a"], []], True, -(2**63), 0.5,
    ]))


def test_text_beyond_ascii_is_never_a_broken_message(library: tuple[str, str]) -> None:
    code = """
        from triaged.bus.seam import marshal, unmarshal
        body = marshal("ss", ["größer – \U0001f600", "end"])
        text, end = unmarshal("ss", body)
        assert end == "end"
        # dbus-fast 1.84 cannot write it; then it is escaped.
        assert text in ("größer – \U0001f600", r"gr\\xf6\\xdfer \\u2013 \\U0001f600"), text
        print(int.from_bytes(body[:4], "little") == len(text.encode()))
    """
    assert in_process(library, code) == "True"


def test_signatures_are_not_kept_without_bound(library: tuple[str, str]) -> None:
    code = """
        from triaged.bus import seam
        import itertools
        for letters in itertools.islice(itertools.product("ybnqiuxtd", repeat=5), 5000):
            seam.unmarshal("a(" + "".join(letters) + ")", bytes(8))
        tree = seam._signature
        cache = getattr(tree.SignatureTree, "_cache", None)
        print(len(cache) if isinstance(cache, dict) else tree.get_signature_tree.cache_info().currsize)
    """
    assert 0 < int(in_process(library, code)) <= seam.SIGNATURES_KEPT


def test_a_broken_body_is_refused_whatever_the_library_makes_of_it(library: tuple[str, str]) -> None:
    # A bus forwards no such body; a peer without a bus between could send one.
    code = r"""
        from triaged.bus import seam
        from triaged.errors import BusError
        for signature, body in (
            ("s", b""), ("s", b"\4\0\0\0a"), ("s", b"\1\0\0\0\xff\0"), ("a{sv}", b"\x08\0\0\0\0\0\0\0\1\0\0\0"),
            ("v", b"\1"), ("v", b"\3abc\0"), ("as", b"\xff\xff\xff\x7f"),
        ):
            try:
                print("taken", signature, body, seam.unmarshal(signature, body))
            except BusError as error:
                assert error.name == "org.freedesktop.DBus.Error.InvalidArgs", error
    """
    assert in_process(library, code) == ""


def test_values_that_do_not_fit_are_refused() -> None:
    for signature, values in (("u", ["x"]), ("s", []), ("y", [256]), ("nonsense", [1])):
        with pytest.raises(BusError, match="do not fit"):
            seam.marshal(signature, values)


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_cleaned_text_can_be_carried(text: str) -> None:
    assert "\0" not in seam.clean(text)
    values: list[Any] = seam.unmarshal("s", seam.marshal("s", [seam.clean(text)]))
    assert values == [seam.clean(text)]


def test_cleaning_leaves_ordinary_text_alone_and_escapes_the_rest() -> None:
    assert seam.clean("größer – ok") == "größer – ok"
    assert seam.clean("a\0b\udcffc") == "a\\x00b\\udcffc"
