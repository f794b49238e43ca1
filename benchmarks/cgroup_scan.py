# SPDX-License-Identifier: Apache-2.0
"""What ten thousand cgroups cost: the first look, the watches, memory, an idle minute's share, and cgroups that come and go.

    python benchmarks/cgroup_scan.py [--cgroups N] [--rounds N] [--hierarchy pids|memory|unified]

Each approach runs in a process of its own, interleaved with the others; CPU time is user and system, the median of the rounds.
systemd-cgls, systemd-cgtop, os.walk and psutil stand beside it. Needs root: it makes cgroups of its own and removes them.
"""
from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from processes import DAEMON_DIRECTORY, median, ratio, table

sys.path.insert(0, str(DAEMON_DIRECTORY))
from triaged.kernel.cgroup_layout import Hierarchy, read_layout
from triaged.kernel.cgroups import walk
from triaged.kernel.inotify import Inotify, read_watch_limit
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.process import ProcessIdentity
from triaged.sources.cgroup_tree import CgroupTree
from triaged.sources.cgroups import CgroupEvents
from triaged.sources.headroom import Headroom
from triaged.sources.ledger import Ledger

_WIDTH = 100
_IDLE_S = 5.0
_CHURN = 1000


class _Nobody:
    def identify(self, pid: int) -> ProcessIdentity | None:
        return None


def _hierarchy(name: str) -> Hierarchy:
    layout = read_layout(KernelPaths())
    found = layout.unified if name == "unified" else layout.holding(name)
    if found is None:
        raise SystemExit(f"there is no hierarchy for {name} here")
    return found


def _make(top: Path, cgroups: int) -> None:
    top.mkdir()
    for first in range(0, cgroups, _WIDTH):
        middle = top / f"slice-{first}.slice"
        middle.mkdir()
        for number in range(first, min(first + _WIDTH, cgroups) - 1):
            (middle / f"run-{number}.scope").mkdir()


def _remove(top: Path) -> None:
    for directory, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)


def _rss_kb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def _tree(hierarchy: Hierarchy, inotify: Inotify | None) -> CgroupTree:
    controllers = [each for each in ("pids", "memory") if each in hierarchy.controllers]
    return CgroupTree(hierarchy, controllers, inotify, lambda what: None, lambda cgroup, file: 0)


# -- what runs in a process of its own: each prints the CPU seconds of its work and a number to check it by


def child_walk(hierarchy: Hierarchy) -> str:
    began = time.process_time()
    found = sum(1 for _ in walk(hierarchy))
    return f"{time.process_time() - began} {found}"


def child_oswalk(hierarchy: Hierarchy) -> str:
    began = time.process_time()
    found = sum(1 for _ in os.walk(hierarchy.mount))
    return f"{time.process_time() - began} {found}"


def child_watch(hierarchy: Hierarchy) -> str:
    """The tree with its watches and first counters; also what it takes of memory, and a look at every counter after it."""
    inotify = Inotify()
    tree = _tree(hierarchy, inotify)
    before = _rss_kb()
    began = time.process_time()
    tree.scan()
    scanned = time.process_time() - began
    memory = _rss_kb() - before
    began = time.process_time()
    tree.mark_all()
    tree.count_dirty()
    return f"{scanned} {len(tree)} {memory} {time.process_time() - began} {tree.unwatched} {len(inotify)}"


def child_headroom(hierarchy: Hierarchy) -> str:
    """What is done once a minute: the second look of the whole source."""
    source = Headroom(KernelPaths(), ProcessTable(KernelPaths(), ()))
    list(source.snapshot())
    began = time.process_time()
    list(source.snapshot())
    return f"{time.process_time() - began} {source.counters['looks']}"


def child_psutil(hierarchy: Hierarchy) -> str:
    import psutil

    began = time.process_time()
    found: dict[str, int] = defaultdict(int)
    for process in psutil.process_iter(["pid", "name"]):
        with suppress(OSError):
            found[Path(f"/proc/{process.pid}/cgroup").read_text()] += 1
    return f"{time.process_time() - began} {sum(found.values())}"


def child_steady(hierarchy: Hierarchy) -> str:
    """The whole source: idle for some seconds, then while cgroups are made and removed."""

    async def run() -> str:
        ledger = Ledger()
        ledger.log_is_read = True  # as in the daemon: without the log, version 1 would be polled
        source = CgroupEvents(KernelPaths(), _Nobody(), ledger=ledger)
        started = asyncio.Event()
        source.on_status = lambda status: started.set()

        async def follow() -> None:
            async for _ in source.facts():
                pass

        task = asyncio.create_task(follow())
        await started.wait()
        await asyncio.sleep(0.5)
        used, switches = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
        await asyncio.sleep(_IDLE_S)
        idle = time.process_time() - used
        woken = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - switches
        print("idle", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.sleep(0.2)
        churned = time.process_time() - used - idle
        counters = source.counters
        task.cancel()
        return f"{idle} {woken} {churned} {counters.get('events', 0)} {counters.get('overflows', 0)} {len(source._trees[0])}"

    return asyncio.run(run())


CHILDREN = {
    "walk": child_walk, "os.walk": child_oswalk, "watch": child_watch, "headroom": child_headroom, "psutil": child_psutil,
    "steady": child_steady,
}


def _in_child(name: str, hierarchy: str) -> list[float]:
    argv = [sys.executable, __file__, "--child", name, "--hierarchy", hierarchy]
    return [float(word) for word in subprocess.run(argv, capture_output=True, check=True, text=True).stdout.split()]


def _of_command(argv: list[str]) -> float:
    """CPU seconds of a command."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _steady(name: str, top: Path) -> list[float]:
    argv = [sys.executable, __file__, "--child", "steady", "--hierarchy", name]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "idle\n"
    began = time.monotonic()
    for number in range(_CHURN):
        (top / f"fleeting-{number}.scope").mkdir()
        (top / f"fleeting-{number}.scope").rmdir()
        time.sleep(max(0.0, began + number / _CHURN - time.monotonic()))
    took = time.monotonic() - began
    out, _ = child.communicate("done\n")
    return [*(float(word) for word in out.split()), took]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cgroups", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hierarchy", choices=("pids", "memory", "unified"), default="pids")
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    hierarchy = _hierarchy(arguments.hierarchy)
    if arguments.child:
        print(CHILDREN[arguments.child](hierarchy))
        return
    top = Path(hierarchy.mount) / f"triaged-benchmark-{os.getpid()}"
    rows: dict[str, list[float]] = defaultdict(list)
    extra: list[list[float]] = []
    try:
        _make(top, arguments.cgroups)
        for _ in range(arguments.rounds):
            for name in ("walk", "os.walk", "psutil"):
                used, found = _in_child(name, arguments.hierarchy)
                rows[name].append(used)
                if name != "psutil" and found < arguments.cgroups:
                    raise SystemExit(f"{name} found {found:.0f} of {arguments.cgroups} cgroups")
            watched = _in_child("watch", arguments.hierarchy)
            if watched[1] < arguments.cgroups or watched[4]:
                raise SystemExit(f"{watched[1]:.0f} cgroups seen, {watched[4]:.0f} of them not watched")
            rows["watch"].append(watched[0])
            rows["look"].append(watched[3])
            extra.append(watched)
            rows["headroom"].append(_in_child("headroom", arguments.hierarchy)[0])
            rows["cgls"].append(_of_command(["systemd-cgls", "-a", "--no-pager", hierarchy.mount]))
            rows["cgtop"].append(_of_command(["systemd-cgtop", "-n", "1", "--raw", "-b", "--recursive=yes"]))
        steady = _steady(arguments.hierarchy, top) if hierarchy.controllers & {"pids", "memory"} else None
    finally:
        _remove(top)
    cgls = median(rows["cgls"])
    shown = [
        ("systemd-cgls -a", "cgls"), ("systemd-cgtop -n 1", "cgtop"), ("os.walk", "os.walk"),
        ("psutil: processes and their cgroups", "psutil"),
        ("triaged: find all cgroups", "walk"), ("triaged: find and watch all, read what must be", "watch"),
        ("triaged: look at every counter that may be untold", "look"),
        ("triaged: once a minute, which limits are nearly used up", "headroom"),
    ]
    print(f"{arguments.cgroups} cgroups on {hierarchy.mount}, {arguments.rounds} rounds")
    lines = []
    for text, name in shown:
        used = median(rows[name])
        lines.append((
            text, f"{used * 1e3:.1f}", f"{used / arguments.cgroups * 1e6:.1f}", ratio(used, cgls),
            ratio(used, median(rows["cgtop"])), ratio(used, median(rows["psutil"])),
        ))
    print(table(("what", "CPU ms", "µs per cgroup", "of systemd-cgls", "of systemd-cgtop", "of psutil"), lines))
    print(f"memory of the tree: {median([each[2] for each in extra]) * 1024 / arguments.cgroups:.0f} bytes per cgroup")
    limit = read_watch_limit(KernelPaths())
    print(f"inotify watches: {extra[0][5]:.0f}; this user may have {limit}")
    if steady is None:
        return  # no limits there, so the daemon does not watch it
    idle, woken, churned, events, overflows, _, took = steady
    print(f"idle, all of them watched: {idle / _IDLE_S * 100:.3f} % of a core, {woken:.0f} wake-ups in {_IDLE_S:.0f} s")
    print(
        f"{_CHURN / took:.0f} cgroups made and removed a second: {churned / took * 100:.1f} % of a core, "
        f"{events:.0f} events, {overflows:.0f} overflows"
    )


if __name__ == "__main__":
    main()
