# SPDX-License-Identifier: Apache-2.0
"""Whether the program under test itself made the cgroup that held it back."""
from __future__ import annotations

from triaged.explain.situation import Situation
from triaged.explain.view import is_test_binary
from triaged.model.quoting import shown


def _is_within(path: str, above: str) -> bool:
    return above == "/" or path == above or path.startswith(above + "/")


def made_by_test(situation: Situation, controller: str, path: str) -> str:
    """What says that a test put itself, or what it started, into the cgroup `path`; "" where nothing does.

    A cgroup that the run's own command was in already is the machine's. Of another one the first process in it tells: fork
    inherits the cgroup, so who is in it while the parent is not was moved there.
    """
    start, process = situation.at_start, situation.process
    if start is None or process is None or _is_within(start.identity.cgroup_for(controller), path):
        return ""
    chain = (process, *situation.ancestors)
    inside = [number for number, each in enumerate(chain) if _is_within(each.identity.cgroup_for(controller), path)]
    if not inside:
        return ""
    first = inside[-1]
    for each in chain[first : first + 2]:  # it moved itself, or its parent moved it
        if is_test_binary(each):
            name = shown(each.identity.comm or each.identity.exe)
            return f"{name} (pid {each.identity.pid}), which is under test, put it into cgroup {shown(path, 400)}"
    return ""
