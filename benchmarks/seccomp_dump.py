#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long dumping its filters stops a process. Run as root.

    python3 benchmarks/seccomp_dump.py [--dumps 300] [--realtime]

Measured twice: by the tracer (from the request to stop to the release), and by the process itself, which does nothing but look
at the clock and keeps the longest gap around each dump. The same process without dumps is the baseline. On a busy machine both
show how long they waited for a CPU; with --realtime both run before all others (SCHED_FIFO, and one CPU is taken for some seconds).
"""
from __future__ import annotations

import argparse
import mmap
import os
import statistics
import struct
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "daemon"))

from triaged.kernel.paths import KernelPaths  # noqa: E402
from triaged.kernel.seccomp_dump import read_filters  # noqa: E402
from triaged.kernel.seccomp_load import Command, LoadedFilter  # noqa: E402
from triaged.seccomp import oci  # noqa: E402
from triaged.seccomp.compiler import compiled  # noqa: E402
from triaged.seccomp.syscalls import native_arch, number_of  # noqa: E402

LOOKER = """
import mmap, struct, sys, time
memory = mmap.mmap(int(sys.argv[1]), 16)
last = time.monotonic_ns()
worst, turn = 0, 0
while True:
    now = time.monotonic_ns()
    asked = struct.unpack_from("=q", memory, 0)[0]
    if asked != turn:
        turn, worst = asked, 0
    elif now - last > worst:
        worst = now - last
        struct.pack_into("=q", memory, 8, worst)
    last = now
"""


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def told(name: str, values: list[float]) -> str:
    p99, worst = percentile(values, 0.99), max(values)
    return f"{name:<44} median {statistics.median(values):8.1f} us  p99 {p99:8.1f} us  max {worst:8.1f} us"


def gaps(pid: int, memory: mmap.mmap, dumps: int, with_dump: bool) -> tuple[list[float], list[float]]:
    by_tracer, by_process = [], []
    for turn in range(1, dumps + 1):
        struct.pack_into("=q", memory, 8, 0)
        struct.pack_into("=q", memory, 0, turn if with_dump else -turn)
        time.sleep(0.004)
        if with_dump:
            by_tracer.append(read_filters(KernelPaths(), pid).stopped_ns / 1000)
        else:
            time.sleep(0.001)
        time.sleep(0.004)
        by_process.append(struct.unpack_from("=q", memory, 8)[0] / 1000)
    return by_tracer, by_process


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dumps", type=int, default=300)
    parser.add_argument("--realtime", action="store_true", help="run before all other processes")
    options = parser.parse_args()
    dumps = options.dumps
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))  # inherited by what is started
    profile = oci.parse_profile((ROOT / "config/seccomp/defaults/docker-26.1.json").read_text(), "docker-26.1")
    program = compiled(oci.resolved(profile, oci.Setting(native_arch(), oci.DEFAULT_CAPABILITIES))).packed()
    descriptor = os.memfd_create("gaps", 0)
    os.ftruncate(descriptor, 4096)
    os.set_inheritable(descriptor, True)
    memory = mmap.mmap(descriptor, 16)
    print(f"{os.uname().release}, {dumps} dumps each, a filter of {len(program) // 8} instructions")
    for filters in (1, 3):
        loaded = [LoadedFilter(program)] * filters
        with Command([sys.executable, "-c", LOOKER, str(descriptor)], loaded, number_of(native_arch(), "seccomp") or 0) as command:
            command.start()
            time.sleep(0.5)
            try:
                _, idle = gaps(command.pid, memory, dumps, False)
                by_tracer, by_process = gaps(command.pid, memory, dumps, True)
            finally:
                os.kill(command.pid, 9)
                command.wait()
        print(told(f"{filters} filters: longest gap without a dump", idle))
        print(told(f"{filters} filters: longest gap around a dump", by_process))
        print(told(f"{filters} filters: stop to release, by the tracer", by_tracer))


if __name__ == "__main__":
    main()
