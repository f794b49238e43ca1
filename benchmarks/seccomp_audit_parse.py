#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Audit records of seccomp parsed per second, next to `ausearch` (Debian package auditd) on the same file.

    python3 benchmarks/seccomp_audit_parse.py [--records 100000] [--rounds 3]

The records are made of real ones: 40 programs, 12 calls, three actions. Ours counts them by program, call and action
(`SeccompTally`, what the daemon does) and parses each in full; ausearch reads the file and interprets it to nothing but text.
User and system CPU time; the best of the rounds, run in turn.
"""
from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "daemon"))

from triaged.kernel.audit import SeccompTally, parse_seccomp_record  # noqa: E402

CALLS = (9, 41, 56, 101, 165, 272, 298, 308, 319, 321, 425, 435)
CODES = ("0x7ffc0000", "0x50000", "0x80000000")


def record(number: int) -> str:
    program = number % 40
    signal = 31 if number % 3 == 2 else 0
    return (
        f"audit({1763800000 + number // 500}.{number % 1000:03}:{1000 + number}): auid=4294967295 uid=0 gid=0 ses=4294967295 "
        f'pid={1000 + number % 3000} comm="prog{program}" exe="/usr/bin/prog{program}" sig={signal} arch=c000003e '
        f"syscall={CALLS[number % 12]} compat=0 ip=0x7f{number:010x} code={CODES[number % 3]}"
    )


def cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = [record(number) for number in range(options.records)]
    payloads = [text.encode() for text in texts]
    ausearch = shutil.which("ausearch")

    def tally() -> int:
        counted = SeccompTally()
        for payload in payloads:
            counted.add(payload)
        assert counted.records == options.records
        assert counted.malformed == counted.left_out == 0
        return sum(group.records for group in counted.take())

    def parse() -> int:
        return sum(1 for payload in payloads if parse_seccomp_record(payload).pid > 0)

    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "audit.log"
        log.write_text("".join(f"type=SECCOMP msg={text}\n" for text in texts))

        def peer(*words: str) -> int:
            assert ausearch
            done = subprocess.run([ausearch, "-if", log, "-m", "SECCOMP", *words], capture_output=True, check=True,
                                  env={**os.environ, "TZ": "UTC"})
            return done.stdout.count(b"type=SECCOMP")

        works = {"ours: counted by program, call, action": tally, "ours: each record parsed in full": parse}
        if ausearch:
            works["ausearch --raw"] = lambda: peer("--raw")
            works["ausearch -i (names of calls and users)"] = lambda: peer("-i")
        best: dict[str, tuple[float, float]] = {}
        for _ in range(options.rounds):
            for name, work in works.items():
                start, clock = cpu_s(), time.monotonic()
                assert work() == options.records, name
                spent = (cpu_s() - start, time.monotonic() - clock)
                best[name] = min(best.get(name, spent), spent)
    print(f"{options.records} records, best of {options.rounds} rounds, Python {sys.version.split()[0]}")
    for name, (cpu, wall) in best.items():
        print(f"{name:<42} {options.records / cpu:>10,.0f} records/s of CPU   {cpu:6.2f} s CPU {wall:6.2f} s wall")
    if not ausearch:
        print("ausearch is not here: apt-get install auditd")


if __name__ == "__main__":
    main()
