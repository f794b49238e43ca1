# SPDX-License-Identifier: Apache-2.0
"""Every hypothesis. Kept out of the package itself: who only needs a situation does not load them all."""
from __future__ import annotations

from triaged.explain.capabilities import CAPABILITY_HYPOTHESES
from triaged.explain.cgroup_moves import CGROUP_MOVES
from triaged.explain.disks import DISKS
from triaged.explain.files import FILES
from triaged.explain.gates import GATES
from triaged.explain.hypothesis import Hypothesis
from triaged.explain.io_rates import IO_RATES
from triaged.explain.ipc import IPC
from triaged.explain.kernel_objects import KERNEL_OBJECTS
from triaged.explain.kills import KILLS
from triaged.explain.locked_memory import LOCKED_MEMORY
from triaged.explain.memory import MEMORY
from triaged.explain.mounts import MOUNTS
from triaged.explain.namespaces import NAMESPACES
from triaged.explain.network import NETWORK
from triaged.explain.own_fault import OWN_FAULTS
from triaged.explain.pipes import PIPES
from triaged.explain.programs import PROGRAMS
from triaged.explain.scheduling import SCHEDULING
from triaged.explain.seccomp import SECCOMP
from triaged.explain.security_modules import SECURITY_MODULES
from triaged.explain.slowness import SLOWNESS
from triaged.explain.tasks import TASKS
from triaged.explain.watches import WATCHES

HYPOTHESES: tuple[Hypothesis, ...] = (
    *TASKS,
    *FILES,
    *MEMORY,
    *KILLS,
    *SLOWNESS,
    *IO_RATES,
    *LOCKED_MEMORY,
    *PIPES,
    *WATCHES,
    *KERNEL_OBJECTS,
    *IPC,
    *SCHEDULING,
    *CGROUP_MOVES,
    *SECCOMP,
    *NAMESPACES,
    *GATES,
    *CAPABILITY_HYPOTHESES,
    *SECURITY_MODULES,
    *MOUNTS,
    *DISKS,
    *PROGRAMS,
    *NETWORK,
    *OWN_FAULTS,
)
