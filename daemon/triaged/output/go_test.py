# SPDX-License-Identifier: Apache-2.0
"""What `go test` prints, plain, with -v or with -json, and what a test binary prints by itself.

Hard facts (cmd/go/internal/test, testing, cmd/internal/test2json of Go 1.27):
- Of several packages each one's output comes in one piece, closed by "ok", "FAIL" or "?" with its name; of one alone it streams.
- Without -v a test's lines follow its "--- FAIL", indented; with -v they come before it, after "=== RUN", "=== CONT" or "=== NAME".
- A subtest's "--- FAIL" is indented by four more; its parent fails too and says so first.
- Build errors come on standard error below "# package", and the package's own line says "[build failed]".
- A time-out lists the tests that were running below "running tests:".
"""
from __future__ import annotations

import json
import re
from dataclasses import replace

from triaged.model.mention import FailedStage, Failure, OutputReport, ToldResult
from triaged.output.lines import Kept, LineCutter

_FAILURES_CAP = 2000
_RESULTS_CAP = 100_000
_RUNNING = re.compile(r"^=== (RUN|CONT|NAME|PAUSE)\s+(\S+)$")
_ENDED = re.compile(r"^( *)--- (FAIL|PASS|SKIP|BENCH): (\S+)(?: \((\d+(?:\.\d+)?)s\))?$")
_PACKAGE = re.compile(r"^(ok  |FAIL|\?   )\t(\S+)(?:\s+(\[build failed\]|\[setup failed\]|.*))?$")
_BUILD = re.compile(r"^# (\S+)(?: \[\S+\])?$")
_DIED = re.compile(r"^(panic: |fatal error: |runtime: |SIG[A-Z]+: |signal: |runtime/cgo: )")
_STILL_RUNNING = re.compile(r"^\t\t(Test\S+|Fuzz\S+|Benchmark\S+|Example\S*) \(")
_FRAME = re.compile(r"\.(Test[A-Z_0-9]\w*|Fuzz[A-Z_0-9]\w*|Benchmark[A-Z_0-9]\w*|Test)(?:\.func[\d.]+)?\(")
_OUTCOMES = {"FAIL": "fail", "PASS": "pass", "SKIP": "skip", "BENCH": "pass"}


class _Package:
    """What one package has printed so far."""

    def __init__(self) -> None:
        self.all = Kept()
        self.tests: dict[str, Kept] = {}
        self.outcomes: dict[str, tuple[str, float]] = {}
        self.current = ""
        self.last_failed = ""
        self.is_after_end = False
        self.is_dying = False
        self.is_killed = False  # by a signal from outside: no panic follows the "--- FAIL" of who caused it
        self.is_streaming = False
        self.suspects: list[str] = []

    def add(self, line: str, at_ns: int) -> None:
        """Takes note of a plain line."""
        running = _RUNNING.match(line)
        if running:
            self.is_streaming = True
            self.current = running[2] if running[1] != "PAUSE" else ""
            self.is_after_end = False
            self._kept(running[2])
            return
        ended = _ENDED.match(line)
        if ended:
            self.end(ended[3], _OUTCOMES[ended[2]], float(ended[4] or -1))
            self.current, self.is_after_end = ended[3], True
            return
        self._look_at(line, at_ns)
        if self.is_after_end and not line.startswith("    "):
            self.current, self.is_after_end = "", False
        if self.current:
            self._kept(self.current).add(line, at_ns)

    def _look_at(self, line: str, at_ns: int) -> None:
        self.all.add(line, at_ns)
        if _DIED.match(line):
            self.is_dying = True
            self.is_killed = self.is_killed or line.startswith("signal: ")
        suspect = _STILL_RUNNING.match(line) or (_FRAME.search(line) if self.is_dying else None)
        if suspect and suspect[1] not in self.suspects and len(self.suspects) < 16:
            self.suspects.append(suspect[1])

    def _kept(self, test: str) -> Kept:
        kept = self.tests.get(test)
        if kept is None:
            kept = self.tests[test] = Kept()
        return kept

    def add_to(self, test: str, line: str, at_ns: int) -> None:
        """Takes note of a line that is known to be a test's."""
        self._look_at(line, at_ns)
        self._kept(test).add(line, at_ns)
        if self.is_killed:
            self.current = test

    def end(self, test: str, outcome: str, seconds: float) -> None:
        """A test is over."""
        self.outcomes[test] = (outcome, seconds)
        self._kept(test)
        if outcome == "fail":
            self.last_failed = test
        else:
            self.tests.pop(test, None)

    def failed_tests(self) -> list[str]:
        """The tests that failed; of a test whose subtests failed only if it says more than they do."""
        failed = [test for test, (outcome, _) in self.outcomes.items() if outcome == "fail"]
        return [
            test for test in failed
            if self.tests[test].mentions() or not any(other.startswith(f"{test}/") for other in failed)
        ]


class GoTestReader:
    """Takes the output of `go test` or of a test binary as it comes, and tells at the end what failed."""

    def __init__(self) -> None:
        self._cutters: dict[str, LineCutter] = {}
        self._open = _Package()  # the package whose plain output is coming
        self._named: dict[str, _Package] = {}  # by name, where every line says whose it is (-json)
        self._builds: dict[str, Kept] = {}
        self._build = self._build_stream = ""
        self._command = Kept()
        self._failures: list[Failure] = []
        self._results: list[ToldResult] = []
        self._is_dying_here = False

    def feed(self, stream: str, data: bytes, at_ns: int) -> None:
        """Takes a piece of "stdout" or "stderr"."""
        for line in self._cutters.setdefault(stream, LineCutter()).feed(data):
            self._line(stream, line, at_ns)

    def _line(self, stream: str, line: str, at_ns: int) -> None:
        if line.startswith("{") and self._json(line, at_ns):
            return
        build = _BUILD.match(line)
        if build:
            self._build, self._build_stream = build[1], stream
            self._builds.setdefault(self._build, Kept())
            return
        package = _PACKAGE.match(line)
        if package:
            self._close(package[2], package[1].strip(), package[3] or "", at_ns)
        elif stream == "stderr" or (self._build and stream == self._build_stream):
            # Where both go to the same file or terminal they come as one.
            self._error_line(line, at_ns)
        elif line not in ("FAIL", "PASS"):
            self._open.add(line, at_ns)

    def _error_line(self, line: str, at_ns: int) -> None:
        # A test binary by itself dies on standard error; `go test` puts both into one.
        self._is_dying_here = self._is_dying_here or bool(_DIED.match(line))
        if self._is_dying_here and not self._build:
            self._open.add(line, at_ns)
        if self._build and not line.startswith(("go: ", "FAIL")):
            self._builds[self._build].add(line, at_ns)
        else:
            self._build = ""
            self._command.add(line, at_ns)

    def _json(self, line: str, at_ns: int) -> bool:
        try:
            event = json.loads(line)
        except ValueError:
            return False
        if not isinstance(event, dict) or not isinstance(event.get("Action"), str):
            return False
        action, name, test = event["Action"], str(event.get("Package", "")), str(event.get("Test", ""))
        output = str(event.get("Output", "")).rstrip("\n")
        if action == "build-output":
            self._builds.setdefault(str(event.get("ImportPath", "")).split(" ")[0], Kept()).add(output, at_ns)
            return True
        package = self._named.setdefault(name, _Package())
        if action == "output":
            if test and not _RUNNING.match(output) and not _ENDED.match(output):
                package.add_to(test, output, at_ns)
            elif not test and not _PACKAGE.match(output):
                package.add(output, at_ns)
        elif action in ("pass", "fail", "skip"):
            seconds = event.get("Elapsed")
            if test:
                package.end(test, action, float(seconds) if isinstance(seconds, (int, float)) else -1.0)
            else:
                detail = "[build failed]" if event.get("FailedBuild") else ""
                self._close(name, "FAIL" if action == "fail" else "ok", detail, at_ns, self._named.pop(name))
        return True

    def _close(self, name: str, word: str, detail: str, at_ns: int, package: _Package | None = None) -> None:
        """A package is over."""
        if package is None:
            package, self._open = self._open, _Package()
        for test, (outcome, seconds) in package.outcomes.items():
            if len(self._results) < _RESULTS_CAP:
                self._results.append(ToldResult(name, test, outcome, seconds))
        self._build = ""
        if word != "FAIL":
            return
        if detail in ("[build failed]", "[setup failed]"):
            self._fail(Failure(FailedStage.BUILD, name, at_ns=at_ns))  # what was printed of it may still be to come
            return
        self._fail_package(name, package, at_ns)

    def _fail_package(self, name: str, package: _Package, at_ns: int) -> None:
        failed = package.failed_tests()
        if package.is_dying and (not failed or not _says_more(package, failed)):
            # The binary ended before its test could say so: by a panic, a signal, a time-out.
            suspect = package.last_failed or package.current or (package.suspects[0] if package.suspects else "")
            suspect = next((test for test in package.suspects if test not in package.outcomes), suspect)
            mentions = package.all.mentions()
            if package.is_killed:
                # The one that was running: it has not ended. What others said before they had, is theirs.
                suspect = next((test for test in (suspect, package.current) if test not in package.outcomes), "")
                others = {mention.text for test in failed for mention in package.tests[test].mentions()}
                mentions = tuple(mention for mention in mentions if mention.text not in others)
            else:
                failed = [test for test in failed if test != suspect and package.tests[test].mentions()]
            self._fail(Failure(FailedStage.PACKAGE, name, suspect, mentions, package.all.text, at_ns))
        for test in failed:
            kept = package.tests[test]
            self._fail(Failure(FailedStage.TEST, name, test, kept.mentions(), kept.text, at_ns))
        if not failed and not package.is_dying:
            self._fail(Failure(FailedStage.PACKAGE, name, "", package.all.mentions(), package.all.text, at_ns))

    def _fail(self, failure: Failure) -> None:
        if len(self._failures) < _FAILURES_CAP:
            self._failures.append(failure)

    def finish(self, has_failed: bool, at_ns: int = 0) -> OutputReport:
        """All that was told. `has_failed`: whether the command ended with another status than 0."""
        for stream, cutter in self._cutters.items():
            for line in cutter.finish():
                self._line(stream, line, at_ns)
        for name, package in {"": self._open, **self._named}.items():
            # A test binary by itself names no package; a `go test` that was killed closes none.
            for test, (outcome, seconds) in package.outcomes.items():
                self._results.append(ToldResult(name, test, outcome, seconds))
            if has_failed and (package.failed_tests() or package.is_dying):
                self._fail_package(name, package, at_ns)
            elif has_failed and not self._failures:
                self._command.absorb(package.all)
        self._failures = [self._with_build_output(failure) for failure in self._failures]
        if has_failed and not self._failures:
            for kept in self._builds.values():
                self._command.absorb(kept)
            self._fail(Failure(FailedStage.COMMAND, "", "", self._command.mentions(), self._command.text, at_ns))
            return OutputReport(tuple(self._failures), tuple(self._results))
        return OutputReport(tuple(self._failures), tuple(self._results), self._command.mentions())

    @property
    def has_recognised(self) -> bool:
        """Whether anything so far was the output of Go's tests."""
        now = self._open
        has_begun = now.outcomes or now.is_streaming or now.suspects
        return bool(self._failures or self._results or self._named or self._builds or has_begun)

    def _with_build_output(self, failure: Failure) -> Failure:
        if failure.stage is not FailedStage.BUILD:
            return failure
        # The linker's lines stand below "# package.test", those of an external test package below "# package_test".
        names = (failure.package, f"{failure.package}.test", f"{failure.package}_test")
        kept = next((self._builds[name] for name in names if name in self._builds), None) or self._of_dependencies()
        return replace(failure, mentions=kept.mentions(), text=kept.text)

    def _of_dependencies(self) -> Kept:
        """What was printed of packages that are not tested: why one could not be built that nothing was printed of."""
        tested = {failure.package for failure in self._failures}
        others = [kept for name, kept in self._builds.items() if name.removesuffix(".test").removesuffix("_test") not in tested]
        if not others:
            return self._command
        together = Kept()
        for kept in others:
            together.absorb(kept)
        return together


def _says_more(package: _Package, failed: list[str]) -> bool:
    """Whether a failed test's own lines hold the reason already (a panic is printed after "--- FAIL", not indented)."""
    own = {mention.text for test in failed for mention in package.tests[test].mentions()}
    return bool(own) and all(mention.text in own for mention in package.all.mentions())
