# SPDX-License-Identifier: Apache-2.0
"""The reader of a run's output, whatever runs the tests."""
from __future__ import annotations

from triaged.model.mention import OutputReport
from triaged.output.go_test import GoTestReader
from triaged.output.sections import SectionReader

_DECIDED_AFTER_BYTES = 1 << 20


class OutputReader:
    """Takes a command's output as it comes. Until it is clear which runner it is, two readers look at it."""

    def __init__(self) -> None:
        self._go = GoTestReader()
        self._other: SectionReader | None = SectionReader()
        self._is_go = True
        self._bytes = 0

    def feed(self, stream: str, data: bytes, at_ns: int) -> None:
        """Takes a piece of "stdout" or "stderr"; `at_ns`: ns of CLOCK_MONOTONIC."""
        self._bytes += len(data)
        if self._is_go:
            self._go.feed(stream, data, at_ns)
        if self._other is not None:
            self._other.feed(stream, data, at_ns)
            if self._go.has_recognised:
                self._other = None
            elif self._bytes > _DECIDED_AFTER_BYTES:
                self._is_go = False

    def finish(self, has_failed: bool, at_ns: int = 0) -> OutputReport:
        """All that the output told."""
        if self._other is not None and not self._go.has_recognised:
            return self._other.finish(has_failed, at_ns)
        return self._go.finish(has_failed, at_ns)
