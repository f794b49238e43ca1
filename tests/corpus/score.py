# SPDX-License-Identifier: Apache-2.0
"""Runs the corpus and prints how good the reports are: right cause first, right cause at all, wrong claims, fixes verified."""
from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from case import HERE, Case, read_cases
from needs import missing
from runner import Ground, Here, Outcome, run_case

ROOT = HERE.parents[1]
DOCUMENT = ROOT / "docs/corpus.md"
BEGIN, END = "<!-- scores: written by scripts/score-corpus --write -->", "<!-- end of scores -->"
WHERE = ("native", "trixie", "bookworm")


def chosen(patterns: list[str], where: str) -> list[Case]:
    """The cases of this machine ("native") or of a Debian release."""
    return [
        case for case in read_cases()
        if (case.where == "native" if where == "native" else case.where == "vm" and where in case.suites)
        and (not patterns or any(fnmatch.fnmatch(case.title, each) for each in patterns))
    ]


@contextmanager
def ground_of(where: str, go: str, plain: bool) -> Iterator[tuple[Ground, str]]:
    """A place for cases, and the directory of its test binaries."""
    with tempfile.TemporaryDirectory(prefix="triaged-corpus-") as directory:
        if where == "native":
            here = Here(Path(directory), go)
            here.warm()
            yield here, f"{directory}/built"
            return
        from machine import Machine, ensure_image, restore
        from vm_ground import TOP, Vm, built_for_machines

        if not plain:
            from package import INSIDE, PACKAGE

            subprocess.run([ROOT / "scripts/build-deb"], check=True, capture_output=True, stdin=subprocess.DEVNULL)

        def start() -> Machine:
            machine = restore(ensure_image(where), is_patched=True)
            if not plain:
                machine.put(ROOT / "dist" / PACKAGE, INSIDE)
                machine.run(["dpkg", "-i", INSIDE], timeout=300)
                machine.run("systemctl enable --now triaged", timeout=180)
            return machine

        with Vm(start, built_for_machines(go, dict(os.environ), Path(directory) / "built")) as vm:
            yield vm, f"{TOP}/built"


def row(name: str, outcomes: list[Outcome]) -> str:
    """One line of the table."""
    faults = [each for each in outcomes if each.case.is_fault]
    others = [each for each in outcomes if not each.case.is_fault]
    expected = sum(each.case.fix.by != "none" for each in faults)
    numbers = (
        len(faults), sum(each.is_first for each in faults), sum(each.is_right for each in faults),
        sum(bool(each.wrong) for each in faults),
        f"{sum(each.fix == 'verified' for each in faults)} of {expected}", len(others), sum(bool(each.wrong) for each in others),
        sum(each.verdict != each.case.verdict for each in outcomes),
    )
    return f"| {name} | {' | '.join(str(number) for number in numbers)} |"


def table(outcomes: list[Outcome]) -> str:
    """The scores by topic and altogether."""
    topics: dict[str, list[Outcome]] = defaultdict(list)
    for each in outcomes:
        topics[each.case.topic].append(each)
    lines = [
        "| topic | faults | right cause first | right at all | with a wrong claim | fix verified | healthy or self-inflicted "
        "| with a wrong claim | wrong verdicts |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(topic, topics[topic]) for topic in sorted(topics)),
        row("**all**", outcomes),
    ]
    return "\n".join(lines)


def run_all(args: argparse.Namespace, where: str, go: str) -> list[Outcome]:
    """Every chosen case there; what is wrong is printed as it comes."""
    outcomes: list[Outcome] = []
    with ground_of(where, go, args.plain) as (ground, built):
        for case in chosen(args.pattern, where):
            why = missing(case.needs) if where == "native" else ""
            if why:
                print(f"skip        {case.title}: {why}", flush=True)
                continue
            begun = time.monotonic()
            outcome = run_case(case, ground, built, plain=args.plain)
            outcomes.append(outcome)
            complaints = [text for text in outcome.complaints if not (args.plain and text == "no report")]
            mark = "ok  " if not complaints else "BAD "
            text = "; ".join(complaints) or f"{outcome.verdict} {outcome.first} {outcome.fix}"
            print(f"{mark} {time.monotonic() - begun:5.1f} s {case.title}: {text}", flush=True)
            if args.verbose or (complaints and args.plain):
                print("    | " + outcome.ended.output[-1500:].replace("\n", "\n    | "), flush=True)
            if args.json:
                found = [
                    {"case": each.case.title, "complaints": each.complaints, "report": each.report, "status": each.ended.status,
                     "output": each.ended.output[-6000:], "fix": each.fix, "fix_output": each.fix_output[-2000:]}
                    for each in outcomes
                ]
                args.json.write_text(json.dumps(found, indent=1))
        print(f"\n{where}, Linux {ground.kernel}\n\n{table(outcomes)}\n", flush=True)
        if args.write:
            write(where, ground.kernel, outcomes)
    return outcomes


def write(where: str, kernel: str, outcomes: list[Outcome]) -> None:
    """Puts the table into the document, instead of the one of the same place."""
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    place = "in namespaces and cgroups of this machine" if where == "native" else f"in a virtual machine of Debian {where}"
    parts = {part.partition("\n")[0]: part for part in old.split("\n### ")[1:]}
    heading = f"{where}, Linux {kernel}"
    parts = {name: part for name, part in parts.items() if not name.startswith(f"{where},")}
    misses = [f"- `{each.case.title}`: {'; '.join(each.complaints)}" for each in outcomes if each.complaints]
    below = "\n\nNot as they should be:\n\n" + "\n".join(misses) if misses else "\n\nEvery case is as it should be."
    parts[heading] = f"{heading}\n\nRun on {time.strftime('%Y-%m-%d')} {place}.\n\n{table(outcomes)}{below}\n"
    scores = "\n".join(f"### {parts[name]}" for name in sorted(parts, key=lambda name: WHERE.index(name.partition(",")[0])))
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{scores}\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="score-corpus", description=__doc__)
    parser.add_argument("--where", choices=WHERE, default="native", help="this machine, or a virtual one of a Debian release")
    parser.add_argument("--plain", action="store_true", help="without triagectl: only see that each fault is there")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}")
    parser.add_argument("--verbose", action="store_true", help="show what each command printed")
    parser.add_argument("--json", type=Path, help="where to write every report")
    parser.add_argument("pattern", nargs="*", help="TOPIC/NAME, with *")
    args = parser.parse_args()
    go = os.environ.get("TRIAGED_TEST_GO") or shutil.which("go")
    if not go:
        print("score-corpus: needs a Go toolchain in PATH or TRIAGED_TEST_GO", file=sys.stderr)
        return 2
    outcomes = run_all(args, args.where, go)
    return int(any(each.complaints for each in outcomes) and not args.plain)


if __name__ == "__main__":
    sys.exit(main())
