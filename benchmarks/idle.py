# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs while nothing happens: CPU, wake-ups and memory in one window, next to a bare asyncio process.

    python benchmarks/idle.py [--seconds S] [--executions N] [--bus none|private]

First the daemon is given so many executions to look at (what ten minutes of building bring), so that its tables are filled; then
all are left alone together. tuned is measured where it runs already. Executions by others in the window are printed: they wake the
daemon as they should; a still machine is wanted for the wake-ups.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from processes import Measured, daemon_argv, ratio, running, table

_BARE = "import asyncio, socket, os\n" \
    "async def main():\n" \
    "    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:\n" \
    "        notify.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n" \
    "    await asyncio.Event().wait()\n" \
    "asyncio.run(main())\n"
_LIVED_S = 0.03  # long enough to be read


def forks() -> int:
    """Processes and threads made since boot. Source: /proc/stat."""
    return next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("processes "))


def feed(executions: int) -> None:
    """Executes programs that live a moment, eight at a time."""
    for _ in range(executions // 8):
        children = [subprocess.Popen(["/bin/sleep", str(_LIVED_S)]) for _ in range(8)]
        for child in children:
            child.wait()


def find_tuned() -> Measured | None:
    """A tuned that runs on this machine."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                argv = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(b"sbin/tuned") for word in argv[:3]):
                found = Measured.__new__(Measured)
                found.name, found.start_s = "tuned", 0.0
                found.process = type("Running", (), {"pid": int(name)})()  # type: ignore[assignment]
                return found
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description="What the daemon costs while nothing happens.")
    parser.add_argument("--seconds", type=float, default=60.0, help="the window (default 60)")
    parser.add_argument("--executions", type=int, default=6000, help="before it (default 6000: ten a second for ten minutes)")
    parser.add_argument("--bus", default="private", help="as the daemon's --bus (default private)")
    options = parser.parse_args()

    argv, environment = daemon_argv("--bus", options.bus)
    with ExitStack() as stack:
        bare = stack.enter_context(running("bare asyncio", [sys.executable, "-ISE", "-c", _BARE], waits_for_ready=True))
        daemon = stack.enter_context(running("triaged", argv, waits_for_ready=True, environment=environment))
        fresh = daemon.memory_mb()
        feed(options.executions)
        time.sleep(2)
        everyone = [bare, daemon]
        tuned = find_tuned()
        if tuned:
            everyone.append(tuned)
        else:
            print("tuned does not run here: not compared")
        before = {one.name: (one.cpu_s(), one.wake_ups()) for one in everyone}
        forks_before = forks()
        time.sleep(options.seconds)
        made = forks() - forks_before
        rows = []
        bare_rss, bare_pss = bare.memory_mb()
        for one in everyone:
            cpu_s, wakes = one.cpu_s() - before[one.name][0], one.wake_ups() - before[one.name][1]
            rss, pss = one.memory_mb()
            rows.append([
                one.name, f"{1000 * cpu_s:.1f}", str(wakes), f"{rss:.1f}", ratio(rss, bare_rss), f"{pss:.1f}", ratio(pss, bare_pss),
                str(one.threads()), f"{one.start_s:.2f}" if one.start_s else "-", ratio(one.start_s, bare.start_s),
            ])
        print(table(
            ["process", "CPU ms", "wake-ups", "RSS MB", "of bare", "PSS MB", "of bare", "threads", "start s", "of bare"], rows
        ))
        print(f"window {options.seconds:.0f} s, after {options.executions} executions (RSS before them {fresh[0]:.1f} MB); "
              f"{made} processes and threads were made on this machine meanwhile")


if __name__ == "__main__":
    main()
