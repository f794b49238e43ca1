# SPDX-License-Identifier: Apache-2.0
"""What is wrong: pure functions from one fact to one verdict. RULES is the whole list."""
from __future__ import annotations

from triaged.rules import cpu, devices, headroom, killed, memory, parameters, pids, placement, resource_limits, seccomp, stalls
from triaged.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    parameters.below_policy,
    parameters.user_namespaces_off,
    resource_limits.below_policy,
    pids.pids_limit_hit,
    memory.cgroup_oom_kill,
    memory.host_oom_kill,
    seccomp.seccomp_denied,
    seccomp.seccomp_logged,
    seccomp.silent_denials,
    placement.forbidden_slice,
    cpu.cpu_throttled,
    stalls.memory_high,
    stalls.pressure,
    devices.io_throttled,
    devices.huge_pages_refused,
    stalls.cpuset_small,
    stalls.frozen,
    killed.killed,
    headroom.nearly_used_up,
)
