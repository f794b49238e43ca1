#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How fast filters are evaluated: every call of one profile, directly, by its filter, and with unknown arguments.

    python3 benchmarks/seccomp_evaluate.py [--rounds 5]

CPU time of the best round, so that other work on the machine does not count. Prints one line for each profile.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "daemon"))

from triaged.seccomp import bpf, oci, systemd_filter  # noqa: E402
from triaged.seccomp.bpf import Instruction, Program, SeccompData  # noqa: E402
from triaged.seccomp.compiler import compiled  # noqa: E402
from triaged.seccomp.outcomes import outcomes_of  # noqa: E402
from triaged.seccomp.policy import Policy  # noqa: E402
from triaged.seccomp.syscalls import audit_arch_of, names_on, number_of  # noqa: E402

ARCH = audit_arch_of("x86_64")
NUMBERS = tuple(number_of("x86_64", name) or 0 for name in names_on("x86_64"))


def best_s(work: Callable[[], None], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def report(name: str, program: Program, policy: Policy | None, rounds: int) -> None:
    words = [SeccompData(number, ARCH).words() for number in NUMBERS]

    def by_filter() -> None:
        for each in words:
            program.run_words(each)

    def unknown() -> None:
        for number in NUMBERS:
            outcomes_of([program], number, ARCH)

    def directly() -> None:
        assert policy is not None
        for number in NUMBERS:
            policy.action(ARCH, number)

    def told(work: Callable[[], None]) -> str:
        seconds = best_s(work, rounds)
        return f"{seconds * 1000:8.2f} ms {len(NUMBERS) / seconds:10,.0f}/s"

    print(f"{name:<28} {len(program):>5} {told(by_filter)} {told(unknown)} {told(directly) if policy else ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{len(NUMBERS)} calls of x86_64, Python {sys.version.split()[0]}")
    print(f"{'profile':<28} {'insns':>5} {'filter, all calls':>22} {'unknown arguments':>22} {'directly':>22}")
    for path in sorted((ROOT / "config/seccomp/defaults").glob("*.json")):
        profile = oci.parse_profile(path.read_text(), str(path))
        policy = oci.resolved(profile, oci.Setting(capabilities=oci.DEFAULT_CAPABILITIES))
        report(path.stem, compiled(policy), policy, rounds)
    groups = systemd_filter.parse_groups((ROOT / "config/seccomp/systemd-252.groups").read_text())
    policy = systemd_filter.resolved(systemd_filter.parse_filter("@system-service", "list", groups), "x86_64")
    report("systemd @system-service", compiled(policy), policy, rounds)
    chain = [Instruction(bpf.LD_ABS, 0, 0, 0)]
    for number in range(2047):
        chain += [Instruction(bpf.JEQ_K, 0, 1, number + 1000), Instruction(bpf.RET_K, 0, 0, 0x50001)]
    report("chain of 4096, to its end", Program([*chain, Instruction(bpf.RET_K, 0, 0, 0x7FFF0000)]), None, 1)


if __name__ == "__main__":
    main()
