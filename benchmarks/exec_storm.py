# SPDX-License-Identifier: Apache-2.0
"""What a storm of executions costs: the daemon, next to nothing at all and to forkstat, in one interleaved run.

    python benchmarks/exec_storm.py [--seconds S] [--rounds N] [--rate R] [--loops L]

Loops of posix_spawn(/bin/true) run as fast as they can, or at --rate executions a second altogether. For each watcher: its share
of a core, CPU per execution, the messages that the kernel dropped for it, and how fast the loops were next to no watcher.
Needs root (or CAP_NET_ADMIN). forkstat is measured where it is installed, or where FORKSTAT names it.
"""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass

from processes import Measured, daemon_argv, median, ratio, running, table

_LOOP = """
import os, sys, time
until, pause = time.monotonic() + float(sys.argv[1]), float(sys.argv[2])
done, due = 0, time.monotonic()
while time.monotonic() < until:
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    done += 1
    if pause:
        due += pause
        time.sleep(max(0.0, due - time.monotonic()))
print(done)
"""


@dataclass
class Round:
    """What one round gave. `drops` are netlink messages."""

    executions: int
    seconds: float
    cpu_s: float = 0.0
    drops: int = 0
    wake_ups: int = 0


def storm(seconds: float, loops: int, rate: float, watcher: Measured | None) -> Round:
    """Runs the loops once, measuring the watcher meanwhile."""
    pause = loops / rate if rate else 0.0
    before = (watcher.cpu_s(), watcher.netlink_drops(), watcher.wake_ups()) if watcher else (0.0, 0, 0)
    began = time.monotonic()
    running_loops = [
        subprocess.Popen([sys.executable, "-ISc", _LOOP, str(seconds), str(pause)], stdout=subprocess.PIPE) for _ in range(loops)
    ]
    executions = sum(int(loop.communicate()[0]) for loop in running_loops)
    took = time.monotonic() - began
    if watcher is None:
        return Round(executions, took)
    time.sleep(0.2)  # the last batch
    return Round(
        executions, took, watcher.cpu_s() - before[0], watcher.netlink_drops() - before[1], watcher.wake_ups() - before[2]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What a storm of executions costs.")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="of each watcher, interleaved (default 3)")
    parser.add_argument("--rate", type=float, default=0.0, help="executions a second altogether (default: as fast as can be)")
    parser.add_argument("--loops", type=int, default=2)
    options = parser.parse_args()

    daemon, environment = daemon_argv("--bus", "none")
    watchers: dict[str, tuple[list[str], dict[str, str], bool]] = {
        "no watcher": ([], {}, False), "triaged": (daemon, environment, True),
    }
    forkstat = os.environ.get("FORKSTAT") or shutil.which("forkstat") or shutil.which("forkstat", path="/usr/sbin:/sbin")
    if forkstat:
        watchers["forkstat"] = ([forkstat, "-e", "exec,exit"], {}, False)
    else:
        print("forkstat is not installed: not compared")

    rounds: dict[str, list[Round]] = defaultdict(list)
    for number in range(options.rounds):
        for name, (argv, extra, has_ready) in watchers.items():
            with ExitStack() as stack:
                watcher = stack.enter_context(running(name, argv, waits_for_ready=has_ready, environment=extra)) if argv else None
                rounds[name].append(storm(options.seconds, options.loops, options.rate, watcher))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)

    free = median([one.executions / one.seconds for one in rounds["no watcher"]])
    peer = median([one.cpu_s / one.executions for one in rounds["forkstat"]]) if forkstat else 0.0
    rows = []
    for name, found in rounds.items():
        per_execution = median([one.cpu_s / one.executions for one in found])
        rows.append([
            name,
            f"{median([one.executions / one.seconds for one in found]):.0f}",
            ratio(median([one.executions / one.seconds for one in found]), free),
            f"{100 * median([one.cpu_s / one.seconds for one in found]):.2f} %" if name != "no watcher" else "-",
            f"{1e6 * per_execution:.1f}" if name != "no watcher" else "-",
            ratio(per_execution, peer),
            f"{median([one.wake_ups / one.seconds for one in found]):.0f}",
            str(sum(one.drops for one in found)) if name != "no watcher" else "-",
        ])
    print(table(["watcher", "executions/s", "of no watcher", "core", "us/execution", "of forkstat", "wake-ups/s", "dropped"], rows))


if __name__ == "__main__":
    main()
