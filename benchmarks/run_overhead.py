# SPDX-License-Identifier: Apache-2.0
"""What `triagectl run -- go test` costs in wall time, beside plain `go test` and beside `strace -f -Z`.

Usage: benchmarks/run_overhead.py [--rounds N] [--strace] [--scale F]        as root; Go in PATH

Four packages: one that spends its time in the compiler (every package is built anew), one that starts 1,000 programs, one that
writes, reads and removes 30,000 files, one that prints 200,000 lines (go test -v). In each round every way runs once, in
another order each time; told are the medians of the ratios within a round, which a machine that is busy with other things
disturbs least.
"""
from __future__ import annotations

import argparse
import os
import pathlib
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXECS, FILES, LINES = 1000, 30000, 200000
PACKAGES = ("compile", "exec", "syscalls", "prints")

GO_MOD = "module example.org/overhead\n\ngo 1.22\n"
COMPILE = """package compile

import (
	"encoding/json"
	"testing"
)

func TestCompiled(t *testing.T) {
	if _, err := json.Marshal([]int{1}); err != nil {
		t.Fatal(err)
	}
}
"""
EXEC = """package exec

import (
	"os/exec"
	"testing"
)

func TestExec(t *testing.T) {
	for i := 0; i < %d; i++ {
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Fatal(err)
		}
	}
}
"""
SYSCALL = """package syscalls

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFiles(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for i := 0; i < %d; i++ {
		if err := os.WriteFile(name, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}
"""
PRINT = """package prints

import (
	"fmt"
	"testing"
)

func TestPrints(t *testing.T) {
	for i := 0; i < %d; i++ {
		fmt.Println("line", i, "of what a test has to say")
	}
}
"""


def write_module(directory: pathlib.Path, scale: float) -> None:
    """The module with the packages."""
    (directory / "go.mod").write_text(GO_MOD)
    sources = {
        "compile": COMPILE, "exec": EXEC % max(1, int(EXECS * scale)), "syscalls": SYSCALL % max(1, int(FILES * scale)),
        "prints": PRINT % max(1, int(LINES * scale)),
    }
    for name, text in sources.items():
        (directory / name).mkdir()
        (directory / name / f"{name}_test.go").write_text(text)


def commands_for(package: str) -> list[str]:
    """`go test` of a package; the compile-heavy one builds everything anew."""
    options = {"compile": ["-a"], "prints": ["-v"]}.get(package, [])
    return ["go", "test", "-count=1", *options, f"./{package}"]


def timed(argv: list[str], directory: pathlib.Path) -> tuple[float, float]:
    """Wall and CPU seconds of a command, with all that it waited for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    answer = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False,
                            env={**os.environ, "PYTHONPATH": str(ROOT / "daemon")})
    took = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if answer.returncode:
        sys.exit(f"{argv}: {answer.returncode}\n{answer.stdout}{answer.stderr}")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="so much of the work")
    parser.add_argument("--strace", action="store_true", help="also under strace -f -Z (slow)")
    parser.add_argument("--only", choices=PACKAGES)
    args = parser.parse_args()
    if shutil.which("go") is None:
        sys.exit("go is not in PATH")
    triagectl = [sys.executable, "-m", "triaged.cli", "run"]
    ways: dict[str, list[str]] = {
        "plain": [],
        "triagectl run": [*triagectl, "--"],
        "triagectl run --no-trace": [*triagectl, "--no-trace", "--"],
    }
    if args.strace:
        ways["strace -f -Z"] = ["strace", "-f", "-Z", "-o", "/dev/null"]
    version = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, {version}, Python {platform.python_version()}, "
          f"load {os.getloadavg()[0]:.1f}, {args.rounds} rounds")
    print(f"{'package':10} {'way':26} {'wall s':>8} {'ratio':>7} {'min':>6} {'max':>6} {'CPU s':>8} {'CPU ratio':>9}")
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        write_module(directory, args.scale)
        for package in PACKAGES:
            if args.only and package != args.only:
                continue
            argv = commands_for(package)
            timed(argv, directory)  # fills the build cache
            figures: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(args.rounds):
                order = list(ways)
                random.shuffle(order)
                for way in order:
                    figures[way].append(timed([*ways[way], *argv], directory))
            for way, took in figures.items():
                ratios = [mine[0] / plain[0] for mine, plain in zip(took, figures["plain"], strict=True)]
                cpu = [mine[1] / plain[1] for mine, plain in zip(took, figures["plain"], strict=True)]
                print(f"{package:10} {way:26} {statistics.median(each[0] for each in took):8.3f} {statistics.median(ratios):7.3f} "
                      f"{min(ratios):6.3f} {max(ratios):6.3f} {statistics.median(each[1] for each in took):8.3f} "
                      f"{statistics.median(cpu):9.3f}", flush=True)


if __name__ == "__main__":
    main()
