# SPDX-License-Identifier: Apache-2.0
"""What other test runners print of a failed test: a heading, its lines, and the next heading. pytest, unittest, cargo test.

Of a command that is none of them everything that it printed belongs to the command itself.
"""
from __future__ import annotations

import re

from triaged.model.mention import FailedStage, Failure, OutputReport, ToldResult
from triaged.output.lines import Kept, LineCutter

_CAP = 2000
# pytest: "____ TestClass.test_name ____"; unittest: "ERROR: test_name (module.Class.test_name)"; cargo: "---- name stdout ----"
_HEADING = re.compile(r"^(?:_{3,} (\S.*?) _{3,}|(?:ERROR|FAIL): (\S+ \(\S+\))|---- (\S+) stdout ----)$")
_END = re.compile(r"^(?:={3,} .* ={3,}|={60,}|failures:|Ran \d+ tests? in .*)$")
# pytest's summary: "FAILED path::name - text"; its -v, unittest's and cargo's lines of one test each.
_SUMMARY = re.compile(r"^(?:FAILED|ERROR) (\S+?::\S+)(?: - .*)?$")
_RESULT = re.compile(r"^(?:test )?(\S+)(?: \(\S+\))?(?: \.\.\.)? (ok|FAILED|PASSED|SKIPPED|ERROR|FAIL|ignored)(?: +\[ *\d+%\])?$")
_OUTCOMES = {"ok": "pass", "PASSED": "pass", "SKIPPED": "skip", "ignored": "skip"}


class SectionReader:
    """Takes the output of a command as it comes, and tells at the end what failed."""

    def __init__(self) -> None:
        self._cutters: dict[str, LineCutter] = {}
        self._all = Kept()
        self._sections: dict[str, Kept] = {}
        self._current: Kept | None = None
        self._results: list[ToldResult] = []
        self._full_names: list[str] = []

    def feed(self, stream: str, data: bytes, at_ns: int) -> None:
        """Takes a piece of "stdout" or "stderr"."""
        for line in self._cutters.setdefault(stream, LineCutter()).feed(data):
            self._line(line, at_ns)

    def _line(self, line: str, at_ns: int) -> None:
        self._all.add(line, at_ns)
        heading = _HEADING.match(line)
        if heading:
            name = next(filter(None, heading.groups()))
            self._current = self._sections.setdefault(name, Kept()) if len(self._sections) < _CAP else None
            return
        if _END.match(line):
            self._current = None
        elif self._current is not None:
            self._current.add(line, at_ns)
        summary = _SUMMARY.match(line)
        if summary and len(self._full_names) < _CAP:
            self._full_names.append(summary[1])
        elif (result := _RESULT.match(line)) and len(self._results) < _CAP:
            self._results.append(ToldResult("", result[1], _OUTCOMES.get(result[2], "fail")))

    def finish(self, has_failed: bool, at_ns: int = 0) -> OutputReport:
        """All that was told. `has_failed`: whether the command ended with another status than 0."""
        for cutter in self._cutters.values():
            for line in cutter.finish():
                self._line(line, at_ns)
        results = tuple(self._results)
        if not has_failed:
            return OutputReport((), results)
        failures = [
            Failure(FailedStage.TEST, "", self._full_name(name), kept.mentions(), kept.text, at_ns)
            for name, kept in self._sections.items()
        ]
        if not failures:
            failures = [Failure(FailedStage.COMMAND, "", "", self._all.mentions(), self._all.text, at_ns)]
        return OutputReport(tuple(failures), results, self._all.mentions())

    def _full_name(self, name: str) -> str:
        wanted = name.replace(".", "::")
        return next((full for full in self._full_names if full.endswith(f"::{wanted}")), name)
