# SPDX-License-Identifier: Apache-2.0
"""Why a process could not be moved into a cgroup: writing into cgroup.procs (version 1: also tasks) failed.

Hard facts:
- Version 1: a cpuset without CPUs or memory nodes takes no process (ENOSPC); a new one begins without.
- Version 2: a cgroup that hands controllers on (cgroup.subtree_control) takes none itself (EBUSY), unless it is the root.
"""
from __future__ import annotations

from triaged.errors import KernelError
from triaged.explain.hypothesis import hypothesis
from triaged.explain.situation import Situation
from triaged.kernel.files import read_text
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.fix import ManualStep
from triaged.model.quoting import shown
from triaged.model.verdict import Evidence

_WRITES = ("write", "pwrite64", "writev")


def _target(situation: Situation) -> str:
    """The cgroup's directory into whose file was written; "" where it was another file."""
    directory, _, name = situation.symptom.path.rpartition("/")
    return directory if name in ("cgroup.procs", "tasks", "cgroup.threads") else ""


def _text(path: str) -> str | None:
    try:
        return read_text(path, 4096).strip()
    except KernelError:
        return None


@hypothesis("cgroup.cpuset", syscalls=_WRITES, errnos=("ENOSPC",))
def empty_cpuset(situation: Situation) -> Outcome | None:
    """A cpuset (version 1) without CPUs or memory nodes takes no process. The text says "no space left on device"."""
    cause, directory = "cgroup.cpuset", _target(situation)
    if not directory:
        return None
    values = {name: _text(f"{directory}/{name}") for name in ("cpuset.cpus", "cpuset.mems")}
    if all(value is None for value in values.values()):
        return NotDecidable(cause, f"the cpuset of {shown(directory, 400)} cannot be read")
    empty = [name for name, value in values.items() if value == ""]
    if not empty:
        return RuledOut(cause, "its cpuset has CPUs and memory nodes")
    step = ManualStep("cpuset", f"write CPUs and nodes into {' and '.join(empty)} of {shown(directory, 400)} before (the parent's)")
    evidence = tuple(Evidence(name, "", f"{directory}/{name}", situation.time_usec) for name in empty)
    summary = f"{' and '.join(empty)} of {shown(directory, 400)} is empty"
    return Blamed(cause, Status.PROVED, shown(directory, 400), summary, evidence, (step,))


@hypothesis("cgroup.subtree_control", syscalls=_WRITES, errnos=("EBUSY",))
def no_internal_processes(situation: Situation) -> Outcome | None:
    """A cgroup (version 2) that hands controllers on to its children takes no process itself. Move it into a leaf."""
    cause, directory = "cgroup.subtree_control", _target(situation)
    if not directory:
        return None
    handed_on = _text(f"{directory}/cgroup.subtree_control")
    if handed_on is None:
        return NotDecidable(cause, f"cgroup.subtree_control of {shown(directory, 400)} cannot be read")
    if not handed_on:
        return RuledOut(cause, "it hands no controller on")
    step = ManualStep("leaf", f"make a cgroup below {shown(directory, 400)} and move the process there")
    evidence = (Evidence("cgroup.subtree_control", handed_on, f"{directory}/cgroup.subtree_control", situation.time_usec),)
    summary = f"{shown(directory, 400)} hands {handed_on} on, so that it takes no process itself"
    return Blamed(cause, Status.PROVED, shown(directory, 400), summary, evidence, (step,))


CGROUP_MOVES = (empty_cpuset, no_internal_processes)
