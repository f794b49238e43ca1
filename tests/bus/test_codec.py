# SPDX-License-Identifier: Apache-2.0
"""Findings as D-Bus values: names, views, and what users can put into them."""
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triaged.bus import codec
from triaged.bus.codec import View, finding_of_path, finding_path, finding_properties
from triaged.bus.contract import read_interfaces
from triaged.bus.seam import plain
from triaged.data import find_data
from triaged.model.finding import Finding, State
from triaged.model.fix import ManualStep, SetParameter, SetResourceLimit
from triaged.model.verdict import Evidence, Kind, Severity

FINDING = Finding(
    "memory.oom-1", "memory.oom", Kind.HIT, Severity.ERROR, State.OPEN, "process:1.2",
    {"type": "process", "pid": 1, "exe": "/home/u/x"}, "x was killed", 1, 2, 3, 1000,
    (Evidence("memory.max", 7, "/sys/x", 5), Evidence("command", "x --secret", private=True)),
    (SetParameter("kernel.pid_max", "9"), SetResourceLimit(7, 8, "NOFILE", 1, 2), ManualStep("ask", "asks somebody")),
)


@settings(deadline=None, max_examples=200)
@given(st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()))
def test_every_id_has_a_path_of_its_own(identifier: str) -> None:
    path = finding_path(identifier)
    assert path.removeprefix(codec.FINDINGS_PATH + "/").replace("_", "a").isalnum()
    assert path.isascii()
    assert finding_of_path(path) == identifier


@pytest.mark.parametrize("node", ["", "a/b", "_6", "_6x", "_61", "a_2E", "_ff", "../x", "a b"])
def test_a_path_that_no_finding_has_is_none(node: str) -> None:
    assert finding_of_path(f"{codec.FINDINGS_PATH}/{node}") == ""


def test_every_view_has_every_property_of_the_contract_and_fits_it() -> None:
    contract = read_interfaces(find_data().interface_xml)["org.triaged.Triage1.Finding"]
    signatures = {name: item.signature for name, item in contract.properties.items()}
    for view in View:
        properties = finding_properties(FINDING, "why", view)
        assert set(properties) == set(contract.properties)
        assert codec.entries(properties, signatures)


def test_each_view_shows_what_its_reader_may_see() -> None:
    full, part, broadcast = (finding_properties(FINDING, "", view) for view in (View.FULL, View.PLAIN, View.BROADCAST))
    assert (set(full["Evidence"]), set(part["Evidence"]), broadcast["Evidence"]) == ({"memory.max", "command"}, {"memory.max"}, {})
    assert plain(part["Subject"])["exe"] == "/home/u/x"
    assert plain(broadcast["Subject"]) == {"type": "process"}
    assert (part["Summary"], broadcast["Summary"]) == ("x was killed", codec.PRIVATE)


def test_what_is_nobodys_private_matter_is_broadcast_without_private_evidence() -> None:
    shown = finding_properties(replace(FINDING, owner_uid=None), "", View.BROADCAST)
    assert (shown["Summary"], set(shown["Evidence"])) == ("x was killed", {"memory.max"})


def test_fixes_have_the_fields_of_their_type() -> None:
    rows = [plain(row) for row in finding_properties(FINDING, "", View.FULL)["Fixes"]]
    assert [row["Type"] for row in rows] == ["set-parameter", "set-resource-limit", "manual"]
    assert (rows[0]["Parameter"], rows[0]["Value"], rows[0]["Lasting"]) == ("kernel.pid_max", "9", False)
    assert (rows[1]["StartTicks"], rows[1]["Commands"]) == (8, [["prlimit", "--pid=7", "--nofile=1:2"]])
    assert rows[2]["Name"] == "ask"


def test_values_that_no_integer_of_dbus_holds_are_text() -> None:
    values = (True, 5, -5, 1 << 64, -(1 << 64), 0.5, "x")
    assert [codec.variant(value).signature for value in values] == ["b", "t", "x", "s", "s", "d", "s"]


def test_long_and_dangerous_text_is_cut_and_escaped() -> None:
    finding = replace(
        FINDING, summary="x" * 100_000 + "\0", reason="a\0b", subject={"name": "\udcff"}, count=1 << 70, first_seen_usec=-1
    )
    shown = finding_properties(finding, "", View.FULL)
    assert len(shown["Summary"]) == codec.TEXT_CHARACTERS + 1
    assert (shown["Reason"], plain(shown["Subject"])) == ("a\\x00b", {"name": "\\udcff"})
    assert (shown["Count"], shown["FirstSeen"]) == ((1 << 64) - 1, 0)
