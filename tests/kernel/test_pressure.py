# SPDX-License-Identifier: Apache-2.0
"""Pressure files, made up and this kernel's."""
from __future__ import annotations

from pathlib import Path

import pytest

from triaged.errors import Gone, Malformed
from triaged.kernel.pressure import Pressure, parse_pressure, read_pressure

TEXT = "some avg10=41.20 avg60=9.00 avg300=2.00 total=1234567\nfull avg10=40.00 avg60=8.00 avg300=1.00 total=1200000\n"


def test_totals_and_short_averages_are_read() -> None:
    assert parse_pressure(TEXT) == Pressure(1234567, 1200000, 41.2, 40.0)


def test_a_file_without_full_says_zero() -> None:
    assert parse_pressure(TEXT.splitlines()[0]).full_usec == 0


@pytest.mark.parametrize("text", ["", "some avg10=x total=1", "some avg10=1.0", "most avg10=1.0 total=1", TEXT.splitlines()[1]])
def test_anything_else_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_pressure(text)


def test_the_hosts_own_pressure_can_be_read() -> None:
    if not Path("/proc/pressure/cpu").exists():
        with pytest.raises(Gone):
            read_pressure("/proc/pressure/cpu")
        return
    before = read_pressure("/proc/pressure/cpu")
    assert 0 < before.some_usec <= read_pressure("/proc/pressure/cpu").some_usec
