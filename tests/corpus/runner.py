# SPDX-License-Identifier: Apache-2.0
"""Runs cases: on this machine, in namespaces and cgroups of their own, or in a virtual machine; and tries the fix of the report."""
from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from case import HERE, MODULE, Case
from layers import CommandLine, Place, command_line, expanded, kind_of

SHARED = ("processes", "memory", "files", "network", "namespaces", "kernel", "healthy", "wrong")
KEPT_OUTPUT = 8 << 20


@dataclass(frozen=True)
class Ended:
    """How a command ended, as a shell tells it; -1 if its time was up."""

    status: int
    output: str
    seconds: float = 0.0


class Ground(Protocol):
    """Where cases run."""

    name: str
    kernel: str

    def place(self, case: Case) -> Place:
        """Makes the case's own directory. `environment` is complete."""

    def run(self, words: tuple[str, ...], place: Place, timeout_s: int) -> Ended:
        """Runs a command in the place's directory and environment."""

    def read(self, path: str) -> str:
        """A file, "" where there is none."""

    def clear(self, place: Place) -> None:
        """Removes what is left of the case."""


@dataclass
class Outcome:
    """What one case gave. `fix` is verified, failed, missing (the report has none that says what it should) or "" (not tried)."""

    case: Case
    ended: Ended
    report: Mapping[str, Any] = field(default_factory=dict)
    fix: str = ""
    fix_output: str = ""

    @property
    def verdict(self) -> str:
        return str(self.report.get("verdict", "none"))

    @property
    def claims(self) -> list[Mapping[str, Any]]:
        """The causes of the report, the first first."""
        return sorted(self.report.get("causes", ()), key=lambda cause: int(cause["rank"]))

    @property
    def first(self) -> str:
        return str(self.claims[0]["cause"]) if self.claims else ""

    @property
    def is_first(self) -> bool:
        return self.first in self.case.causes

    @property
    def is_right(self) -> bool:
        return any(claim["cause"] in self.case.causes for claim in self.claims)

    @property
    def wrong(self) -> list[str]:
        """Causes that are claimed and are none. What is merely possible is no claim, unless it stands first."""
        right = {*self.case.causes, *self.case.also}
        return [
            str(claim["cause"]) for place, claim in enumerate(self.claims)
            if claim["cause"] not in right and (not self.case.is_fault or place == 0 or claim["status"] != "possible")
        ]

    def __str__(self) -> str:
        parts = ["; ".join(self.complaints), json.dumps(self.report, indent=1), self.ended.output[-4000:]]
        return "\n".join([*parts, *(["with the fix:", self.fix_output[-2000:]] if self.fix else [])])

    @property
    def complaints(self) -> list[str]:
        """What is not as the case expects it."""
        found = []
        if self.case.text and self.case.text not in self.ended.output:
            found.append(f"the command does not print {self.case.text!r}: the fault is not there")
        if self.ended.status == 0 and self.case.verdict != "passed":
            found.append("the command passes: the fault is not there")
        if self.ended.status != 0 and self.case.verdict == "passed":
            found.append(f"the command should pass and ends with {self.ended.status}")
        if not self.report:
            return [*found, "no report"]
        if self.verdict != self.case.verdict:
            found.append(f"verdict {self.verdict}, not {self.case.verdict}")
        if self.case.is_fault and not self.is_first:
            found.append(f"first cause {self.first or 'none'}, not {' or '.join(self.case.causes)}")
        found += [f"wrong claim: {cause}" for cause in self.wrong]
        if self.is_first:
            claim = self.claims[0]
            if self.case.errno and claim["errno"] != self.case.errno:
                found.append(f"errno {claim['errno'] or 'none'}, not {self.case.errno}")
            if self.case.tied == "test" and self.case.test and claim["test"] != self.case.test:
                found.append(f"tied to test {claim['test'] or 'none'}, not to {self.case.test}")
            if self.case.tied == "package" and not str(claim["package"]).endswith(f"/{self.case.package}"):
                found.append(f"tied to package {claim['package'] or 'none'}, not to {self.case.package}")
        if self.fix in ("missing", "failed"):
            found.append(f"the fix is {self.fix}")
        return found


def words_of(case: Case, built: str) -> tuple[str, ...]:
    """The command line of a case."""
    test = f"^{case.test}$" if case.test else "."
    if case.go:
        return ("go", "test", "-count=1", *(("-run", test) if case.test else ()), *case.flags, f"./{case.package}")
    if case.binary:
        return (f"{built}/{case.package}.test", f"-test.run={test}", *case.flags)
    return case.argv


def whole(line: CommandLine, report: str, place: Place, command: tuple[str, ...]) -> tuple[str, ...]:
    """The command under `triagectl run` (or plain, without a report), with everything that is injected."""
    run = (*place.triagectl, "run", "--report", report, "--") if report else ()
    main = (*line.outside, *run, *line.inside, *(expanded(word, place.environment) for word in command))
    if not line.before and not line.after:
        return main
    clean = "\n".join(("clean() {", "true", *line.after, "}", "trap clean EXIT"))
    return ("sh", "-c", "\n".join((clean, "set -e", *line.before, "set +e", '"$@"')), "sh", *main)


def run_case(case: Case, ground: Ground, built: str, *, plain: bool = False) -> Outcome:
    """Injects, runs, reads the report, tries the fix. `plain`: without triagectl, only to see that the fault is there."""
    place = ground.place(case)
    try:
        command = words_of(case, built)
        report = "" if plain else f"{place.scratch}/report.json"
        ended = ground.run(whole(command_line(case.inject, place), report, place, command), place, case.timeout_s)
        outcome = Outcome(case, ended)
        if report:
            text = ground.read(report)
            outcome.report = json.loads(text) if text.strip() else {}
        if outcome.is_first and case.fix.by != "none":
            try_fix(outcome, ground, place, command)
        elif outcome.is_first and case.fix.says and not fixes_that_say(outcome):
            outcome.fix = "missing"
        return outcome
    finally:
        ground.clear(place)


def fixes_that_say(outcome: Outcome) -> list[Mapping[str, Any]]:
    """The fixes of the first cause whose title or commands have the words that the case wants."""
    wanted = outcome.case.fix.says
    return [
        fix for fix in outcome.claims[0]["fixes"]
        if wanted.lower() in fix["title"].lower() or any(wanted in shlex.join(command) for command in fix["commands"])
    ]


def try_fix(outcome: Outcome, ground: Ground, place: Place, command: tuple[str, ...]) -> None:
    """The same again with the report's fix in force: it has to pass."""
    case = outcome.case
    found = fixes_that_say(outcome)
    if case.fix.by == "limit":
        found = [fix for fix in found if limit_of(fix)]
    if not found:
        outcome.fix = "missing"
        return
    inject, typed = amended(case, found[0])
    if case.fix.environment:
        place = replace(place, environment={**place.environment, **case.fix.environment})
    ended = ground.run(whole(command_line(inject, place, typed), "", place, command), place, case.timeout_s)
    outcome.fix = "verified" if ended.status == 0 else "failed"
    outcome.fix_output = ended.output


def amended(case: Case, fix: Mapping[str, Any]) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """What is injected when the fix is in force, and what is typed after it."""
    if case.fix.by == "inject":
        return case.fix.inject, ""
    if case.fix.by == "commands":
        return case.inject, typed_for(fix)
    changed = []
    for table in case.inject:
        if case.fix.by == "limit" and kind_of(table) == "limit":
            changed.append({"limit": limit_of(fix)})
        elif case.fix.by == "property" and kind_of(table) == "unit":
            kept = [setting for setting in table["unit"] if not setting.startswith(f"{fix['name']}=")]
            changed.append({**table, "unit": [*kept, f"{fix['name']}={fix['value']}"]})
        else:
            changed.append(dict(table))
    return tuple(changed), ""


def limit_of(fix: Mapping[str, Any]) -> str:
    """The resource limit that a fix names, as prlimit(1) takes it; "" if it names none.

    No more than this process has itself: without CAP_SYS_RESOURCE, which containers lack, not even root may go beyond.
    """
    if "resource" in fix:
        text = f"{str(fix['resource']).lower()}={fix['soft']}:{fix['hard']}"
    else:
        words = [word for command in fix["commands"] if command[0] == "prlimit" for word in command[1:] if word.startswith("--")]
        text = words[0].removeprefix("--") if words else ""
    name, _, bounds = text.partition("=")
    own = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1] if text else resource.RLIM_INFINITY
    if own == resource.RLIM_INFINITY:
        return text
    return f"{name}={':'.join(str(min(int(bound), own)) if bound.isdecimal() else str(own) for bound in bounds.split(':'))}"


def typed_for(fix: Mapping[str, Any]) -> str:
    """The fix as a script: its commands, or the file that its title would have written."""
    written = re.match(r"write (\S+) into (/sys/fs/cgroup/[^\s,]+)", fix["title"])
    if written and not fix["commands"]:
        return f"echo {shlex.quote(written[1])} >{shlex.quote(written[2])}"
    return "\n".join(shlex.join(_here(command)) for command in fix["commands"]).replace("'--pid=$$'", "--pid=$$")


def _here(command: list[str]) -> list[str]:
    """The command as it is typed here: what it was for has ended, its successor is the shell that types it."""
    if command[0] == "nsenter":
        command = command[2:]
    return [re.sub(r"^--pid=\d+$", "--pid=$$", word) for word in command]


def build(go: str, environment: Mapping[str, str], target: Path) -> None:
    """The test binaries, static; the ones with cgo beside them."""
    for package in SHARED:
        subprocess.run(
            [go, "test", "-c", "-vet=off", "-ldflags=-s -w", "-o", target / f"{package}.test", f"./{package}"], check=True,
            cwd=MODULE, env={**environment, "CGO_ENABLED": "0"}, stdin=subprocess.DEVNULL,
        )


def _is_for_others(case: Case) -> bool:
    """Whether another user runs triagectl."""
    kinds = ["run" if "run" in table else kind_of(table) for table in case.inject]
    return "run" in kinds and "user" in kinds[: kinds.index("run")]


def everybody_may_enter(path: str) -> bool:
    """Whether other users reach a file that is there."""
    real = Path(path).resolve()
    return real.exists() and all(parent.stat().st_mode & 1 for parent in (*real.parents, *Path(os.path.abspath(path)).parents))


@dataclass
class Here:
    """This machine. Needs root; `top` is a directory that everybody can enter, `go` the go command of a toolchain."""

    top: Path
    go: str
    name: str = "native"
    kernel: str = os.uname().release

    def __post_init__(self) -> None:
        self.top.chmod(0o755)
        self.module = self.top / "module"
        shutil.copytree(MODULE, self.module)
        for directory in (self.top / "built", self.top / "cache"):
            directory.mkdir()
        root = subprocess.run([self.go, "env", "GOROOT"], check=True, capture_output=True, text=True).stdout.strip()
        self.environment = {
            "PATH": f"{root}/bin:{os.environ['PATH']}", "GOROOT": root, "GOTOOLCHAIN": "local", "GOPROXY": "off",
            "GOFLAGS": "-mod=mod",
            "GOCACHE": str(self.top / "cache"), "GOPATH": str(self.top / "gopath"), "GOTELEMETRY": "off", "LANG": "C.UTF-8",
            "MODULE": str(self.module), "BUILT": str(self.top / "built"), "PYTHON": sys.executable,
            "PYTHONPATH": str(HERE.parents[1] / "daemon"),
        }
        build(self.go, {**os.environ, **self.environment}, self.top / "built")
        landlock = self.top / "landlock.py"
        shutil.copy(HERE / "landlock.py", landlock)

    def warm(self) -> None:
        """Fills the build cache with what cases compile, so that no case pays for it."""
        subprocess.run(
            [self.go, "test", "-count=1", "-run=^$", *(f"./{name}" for name in (*SHARED, "cgofault"))], cwd=self.module, check=True,
            env={**os.environ, **self.environment}, capture_output=True,
        )

    def place(self, case: Case) -> Place:
        # Cgroups are named after it: another run of the corpus may be going on.
        scratch = self.top / f"{case.title.replace('/', '-')}-{os.getpid()}"
        for directory in (scratch, scratch / "tmp", scratch / "home"):
            directory.mkdir()
            directory.chmod(0o1777)
        directory = self.module / case.package if case.binary else self.module
        environment = {
            **self.environment, "CORPUS": str(scratch), "TMPDIR": str(scratch / "tmp"), "HOME": str(scratch / "home"),
            **{name: value.replace("$CORPUS", str(scratch)) for name, value in case.environment.items()},
        }
        # Other users may not be let into where this interpreter lies.
        own = str(HERE.parents[1] / ".venv/bin/triagectl")
        is_open = everybody_may_enter(sys.executable) or not os.path.exists("/usr/bin/python3")
        at_hand = (own,) if os.path.exists(own) else (sys.executable, "-m", "triaged.cli")
        triagectl = at_hand if is_open or not _is_for_others(case) else ("/usr/bin/python3", "-m", "triaged.cli")
        return Place(
            triagectl, str(scratch), str(directory), environment, sys.executable,
            str(self.top / "landlock.py"),
        )

    def run(self, words: tuple[str, ...], place: Place, timeout_s: int) -> Ended:
        process = subprocess.Popen(
            ("env", *words), cwd=place.directory, env=dict(place.environment), start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        try:
            output, _ = process.communicate(timeout=timeout_s)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = -1
        return Ended(128 - status if status < -1 else status, output.decode(errors="replace")[-KEPT_OUTPUT:])

    def read(self, path: str) -> str:
        return Path(path).read_text() if os.path.exists(path) else ""

    def clear(self, place: Place) -> None:
        shutil.rmtree(place.scratch, ignore_errors=True)
