# SPDX-License-Identifier: Apache-2.0
"""Audit records as lines of the kernel log, of this kernel."""
from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from triaged.errors import KernelError
from triaged.kernel.audit_lines import AuditLines
from triaged.kernel.kernel_log import KernelLogReader
from triaged.kernel.paths import KernelPaths

KILL_PROCESS, LOG = 0x80000000, 0x7FFC0000


@pytest.fixture
def live() -> Iterator[AuditLines]:
    try:
        opened = AuditLines()
    except KernelError as error:
        pytest.skip(f"no audit records here: {error.shown()}")
    yield opened
    opened.close()


def lines_about(opened: AuditLines, pid: int, wanted: int) -> list[str]:
    """The lines about one process, once there are so many; fails after 10 s."""
    found: list[str] = []
    until = time.monotonic() + 10
    while len(found) < wanted:
        assert time.monotonic() < until, found
        found += [line for line in opened.read() if f" pid={pid} " in line]
        time.sleep(0.005)
    return found


def test_a_record_is_the_line_that_the_kernel_log_has_of_it(live: AuditLines, filtered: Callable[..., Any]) -> None:
    child = filtered(KILL_PROCESS)
    child.go()
    (line,) = lines_about(live, child.pid, 1)
    assert re.match(r"audit: type=1326 audit\(\d+\.\d+:\d+\): .* sig=31 arch=", line)
    try:
        log = KernelLogReader(KernelPaths(), from_start=True)
    except KernelError as error:
        pytest.skip(f"no kernel log here: {error.shown()}")
    texts = [record.text for record in log.read(1 << 20) if f" pid={child.pid} " in record.text]
    log.close()
    assert texts in ([], [line])  # none where auditd runs, or after ten others in five seconds


def test_every_record_of_a_storm_comes_through_that_the_kernel_log_cuts_short(
    live: AuditLines, filtered: Callable[..., Any]
) -> None:
    child = filtered(LOG, times=300)
    child.go()
    assert len(lines_about(live, child.pid, 300)) == 300
