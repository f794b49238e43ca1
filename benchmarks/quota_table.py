# SPDX-License-Identifier: Apache-2.0
"""What a CPU quota does to Go tests at each GOMAXPROCS: time, throttled periods, missed deadlines. Needs root and Go.

    python benchmarks/quota_table.py [--quota 50000] [--period 100000] [--repeat 3]

Makes a cgroup of its own in the hierarchy that holds the cpu controller, and removes it. Each cell is the median of the runs. The
quota's rows stand next to the same test without one, so that a busy machine shows itself; the cgroup has the largest weight there
is, so that what else runs takes little.
"""
from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "daemon"))
sys.dont_write_bytecode = True

from triaged.kernel.cgroup_layout import Hierarchy, read_layout  # noqa: E402
from triaged.kernel.cgroups import read_cpu  # noqa: E402
from triaged.kernel.paths import KernelPaths  # noqa: E402

TIMEOUT_S = 60
GOMAXPROCS = ("", "1", "2", "4", "8")
TESTS = (("CPU", "CPU-bound"), ("Alloc", "allocating (GC)"), ("Latency", "latency-bound"))
SOURCE = """package quota

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"
)

var sink [64]uint64

func spin(rounds int, slot int) {
	x := uint64(slot) + 88172645463325252
	for range rounds {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	sink[slot] = x
}

// The same work, split among as many goroutines as run at once.
func TestCPU(t *testing.T) {
	var all sync.WaitGroup
	n := runtime.GOMAXPROCS(0)
	for i := range n {
		all.Add(1)
		go func() { defer all.Done(); spin(600_000_000/n, i) }()
	}
	all.Wait()
}

type tree struct{ left, right *tree }

func grow(depth int) *tree {
	if depth == 0 {
		return &tree{}
	}
	return &tree{grow(depth - 1), grow(depth - 1)}
}

// Trees that are garbage as soon as they are grown, beside one that lives.
func TestAlloc(t *testing.T) {
	var all sync.WaitGroup
	kept := grow(18)
	for range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			for range 24 {
				grow(14)
			}
		}()
	}
	all.Wait()
	runtime.KeepAlive(kept)
}

// A request every 210 ms, answered by four goroutines with about 15 ms of work each: 29 % of a CPU; a deadline of 80 ms.
func TestLatency(t *testing.T) {
	missed, worst := 0, time.Duration(0)
	begin := time.Now()
	for i := range 30 {
		time.Sleep(time.Until(begin.Add(time.Duration(i) * 210 * time.Millisecond)))
		asked := time.Now()
		var all sync.WaitGroup
		for j := range 4 {
			all.Add(1)
			go func() { defer all.Done(); spin(7_200_000, j) }()
		}
		all.Wait()
		took := time.Since(asked)
		worst = max(worst, took)
		if took > 80*time.Millisecond {
			missed++
		}
	}
	fmt.Printf("missed=%d worst_ms=%d\\n", missed, worst.Milliseconds())
}
"""


@dataclass(frozen=True)
class Run:
    """One run. Units: s, µs, periods; `missed` deadlines and the `worst_ms` of the latency test, else -1."""

    wall_s: float
    cpu_s: float
    periods: int
    throttled: int
    throttled_usec: int
    missed: int
    worst_ms: int
    failed: bool


def build(directory: Path, go: str) -> Path:
    """The test binary."""
    (directory / "go.mod").write_text("module example.org/quota\n\ngo 1.25\n", encoding="utf-8")
    (directory / "quota_test.go").write_text(SOURCE, encoding="utf-8")
    binary = directory / "quota.test"
    subprocess.run([go, "test", "-c", "-o", binary, "."], cwd=directory, check=True)
    return binary


def set_weight(directory: Path) -> None:
    """Gives the cgroup the largest weight."""
    is_v2 = (directory / "cpu.weight").exists()
    (directory / ("cpu.weight" if is_v2 else "cpu.shares")).write_text("10000" if is_v2 else "262144", encoding="ascii")


def set_quota(directory: Path, quota: int, period: int) -> None:
    """Sets the quota; 0: none."""
    if (directory / "cpu.max").exists():
        (directory / "cpu.max").write_text(f"{quota or 'max'} {period}", encoding="ascii")
    else:
        (directory / "cpu.cfs_period_us").write_text(str(period), encoding="ascii")
        (directory / "cpu.cfs_quota_us").write_text(str(quota or -1), encoding="ascii")


def run(binary: Path, hierarchy: Hierarchy, path: str, test: str, procs: str) -> Run:
    """The test in the cgroup, once."""
    directory = Path(hierarchy.directory(path))

    def enter() -> None:
        (directory / "cgroup.procs").write_text("0", encoding="ascii")

    environment = {"GOMAXPROCS": procs} if procs else {}
    before, begin = read_cpu(hierarchy, path), time.monotonic()
    argv = [binary, f"-test.run=^Test{test}$", f"-test.timeout={TIMEOUT_S}s"]
    child = subprocess.Popen(argv, env=environment, preexec_fn=enter, stdout=subprocess.PIPE)
    assert child.stdout is not None
    output = child.stdout.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    wall, after = time.monotonic() - begin, read_cpu(hierarchy, path)
    words = dict(word.split("=") for word in output.split() if word.startswith(("missed=", "worst_ms=")))
    return Run(
        wall, usage.ru_utime + usage.ru_stime, after.periods - before.periods, after.throttled_periods - before.throttled_periods,
        after.throttled_usec - before.throttled_usec, int(words.get("missed", -1)), int(words.get("worst_ms", -1)), status != 0,
    )


def row(title: str, procs: str, quota: str, runs: list[Run]) -> str:
    """One line of the table."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    walls = [each.wall_s for each in runs]
    missed, worst = median([each.missed for each in runs]), median([each.worst_ms for each in runs])
    latency = "" if missed < 0 else f"{missed:.0f} of 30, {worst:.0f} ms"
    cells = (
        title, quota, procs or "unset", f"{median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f})",
        f"{median([r.cpu_s for r in runs]):.2f}", f"{sum(r.failed for r in runs)} of {len(runs)}",
        f"{median([r.throttled for r in runs]):.0f} of {median([r.periods for r in runs]):.0f}",
        f"{median([r.throttled_usec for r in runs]):.0f}", latency,
    )
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quota", type=int, default=50_000, metavar="USEC")
    parser.add_argument("--period", type=int, default=100_000, metavar="USEC")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--go", default="go")
    options = parser.parse_args()
    hierarchy = read_layout(KernelPaths()).holding("cpu")
    if hierarchy is None or os.geteuid() != 0 or shutil.which(options.go) is None:
        sys.exit("needs the cpu controller, root and a Go toolchain")
    version = subprocess.run([options.go, "version"], capture_output=True, text=True, check=True).stdout.strip()
    path = f"/triaged-quota-table-{os.getpid()}"
    directory = Path(hierarchy.directory(path))
    kind = "version 2, cpu.max" if hierarchy.is_v2 else "version 1, cpu.cfs_quota_us"
    machine = f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}; {version};")
    command = " ".join(["python3", os.path.relpath(__file__, ROOT), *sys.argv[1:]])
    print(f"{kind} {options.quota} of {options.period} µs; `{command}`.\n")
    print(
        "| test | quota | GOMAXPROCS | time, s (median, from to) | CPU, s | time-outs | nr_throttled of nr_periods "
        "| throttled_usec | deadlines missed, worst |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    directory.mkdir()
    try:
        set_weight(directory)
        with tempfile.TemporaryDirectory() as scratch:
            binary = build(Path(scratch), options.go)
            for test, title in TESTS:
                for quota in (0, options.quota):
                    set_quota(directory, quota, options.period)
                    for procs in GOMAXPROCS:
                        runs = [run(binary, hierarchy, path, test, procs) for _ in range(options.repeat)]
                        print(row(title, procs, f"{quota / options.period:.0%}" if quota else "none", runs), flush=True)
    finally:
        directory.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
