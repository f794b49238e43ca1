# SPDX-License-Identifier: Apache-2.0
"""The message catalog against the events, the fields, and journald's own compiler."""
from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from triaged.cli.commands import COMMANDS
from triaged.publish.alerts import Event

CATALOG = Path(__file__).resolve().parents[2] / "units" / "triaged.catalog"
FINDING = {"TRIAGED_RULE", "TRIAGED_FINDING", "TRIAGED_SUBJECT", "TRIAGED_KIND", "TRIAGED_STATE", "TRIAGED_COUNT"}
SOURCE = {"TRIAGED_SOURCE", "TRIAGED_SOURCE_STATE", "TRIAGED_REASON", "TRIAGED_REMEDY"}
FIX = FINDING | {"TRIAGED_FIX", "TRIAGED_CALLER"}
FIELDS = {
    Event.FINDING_OPENED: FINDING, Event.FINDING_CLOSED: FINDING, Event.ALERTS_SUPPRESSED: {"TRIAGED_COUNT"},
    Event.SOURCE_DEGRADED: SOURCE, Event.SOURCE_RECOVERED: SOURCE, Event.STATE_NOT_SAVED: {"TRIAGED_REASON", "TRIAGED_REMEDY"},
    Event.STATE_SAVED_AGAIN: set(), Event.FIX_APPLIED: FIX, Event.FIX_UNDONE: FIX, Event.FIX_FAILED: FIX,
}


def entries() -> dict[str, str]:
    parts = re.split(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_event_is_explained_and_nothing_else() -> None:
    assert set(entries()) == {event.value for event in Event}


@pytest.mark.parametrize("event", Event)
def test_a_text_uses_only_fields_that_its_entries_have(event: Event) -> None:
    assert set(re.findall(r"@([A-Z_]+)@", entries()[event.value])) <= FIELDS[event]


def test_what_it_tells_to_type_exists() -> None:
    known = {command.name for command in COMMANDS} | {"undo"}  # undo comes with the fixes that it undoes
    said = set(re.findall(r"triagectl ([a-z]+)", CATALOG.read_text()))
    assert said
    assert said <= known


@pytest.mark.skipif(not shutil.which("journalctl"), reason="journalctl is not installed")
def test_journalctl_compiles_it(tmp_path: Path) -> None:
    place = tmp_path / "usr/lib/systemd/catalog"
    place.mkdir(parents=True)
    shutil.copy(CATALOG, place)
    subprocess.run(["journalctl", f"--root={tmp_path}", "--update-catalog"], check=True, capture_output=True)
    listed = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--list-catalog"], check=True, capture_output=True, text=True
    ).stdout
    assert {line.split()[0] for line in listed.splitlines()} == {event.value for event in Event}
    assert all(line.split()[1] == "triaged:" for line in listed.splitlines())
