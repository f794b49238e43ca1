# SPDX-License-Identifier: Apache-2.0
"""The cgroups of a run: their counters before it and after, and what bounds those that may be gone when it is judged.

The cgroup in which the command begins is triagectl's own and stays. Others that its processes are put into (systemd-run --scope, a
container) go with their last process: what they count and limit is read while they are there, once a second.
"""
from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping

from triaged.errors import Gone
from triaged.kernel.cgroup_layout import CgroupLayout
from triaged.kernel.paths import KernelPaths
from triaged.run.counters import Counters, counter_files, read_counters

_LOOK_EVERY_S = 1.0
_PLACES = 64
Place = tuple[tuple[str, str], ...]


def place_of(cgroups: Mapping[str, str]) -> Place:
    """The cgroups of a process, by hierarchy, as a key."""
    return tuple(sorted(cgroups.items()))


class CgroupWatch:
    """Begins with `start`; other cgroups are looked at from `note` to `finish`. `baseline`: each counter as it was first read."""

    def __init__(self, paths: KernelPaths, layout: CgroupLayout, cgroups: Mapping[str, str]) -> None:
        self._paths, self._layout = paths, layout
        self._files = counter_files(paths, layout, cgroups)
        self._later: list[str] = []
        self._latest: Counters = {}
        self._places: dict[Place, Mapping[str, str]] = {}
        self._moved: Mapping[str, str] = {}
        self._own = place_of(cgroups)
        self._limits: dict[Place, Mapping[str, object]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.baseline: Counters = {}

    def start(self) -> None:
        """Reads the counters as they are before the command begins."""
        self.baseline = read_counters(self._files, is_stamped=True)

    def note(self, cgroups: Mapping[str, str]) -> None:
        """From now on also what is above a process in these cgroups counts. From any thread."""
        place = place_of(cgroups)
        if place == self._own or place in self._places or not place:
            return
        with self._lock:
            if place in self._places or len(self._places) >= _PLACES:
                return
            self._places[place] = cgroups
            files = counter_files(self._paths, self._layout, cgroups)
            new = [file for file in files if file not in self._files and file not in self._later]
            self._later += new
            first = read_counters(new, is_stamped=True)
            self.baseline.update(first)
            self._latest.update(first)
            self._read_limits([place])
        self._begin_looking()

    def moved(self, cgroups: Mapping[str, str]) -> None:
        """The command is in these cgroups now: takes note of them, in a thread of its own."""
        place = place_of(cgroups)
        if place != self._own and place not in self._places and self._own:
            self._moved = cgroups
            self._begin_looking()

    def _begin_looking(self) -> None:
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._keep_looking, name="cgroups", daemon=True)
            with contextlib.suppress(RuntimeError):  # no room for a thread: what is left at the end counts
                self._thread.start()

    def _keep_looking(self) -> None:
        self.note(self._moved)
        while not self._stop.wait(_LOOK_EVERY_S):
            self.note(self._moved)
            self.look()

    def look(self) -> None:
        """Reads what is there now of the cgroups that may go."""
        with self._lock:
            self._latest.update(read_counters(self._later, is_stamped=True))
            self._read_limits(self._places)

    def _read_limits(self, places: Iterable[Place]) -> None:
        from triaged.explain.cgroup_limits import read_limits

        for place in places:
            if self._is_there(place):
                limits = read_limits(self._paths, self._layout, self._places[place])
                if self._is_there(place):  # still: else the innermost were left out
                    self._limits[place] = limits

    def _is_there(self, place: Place) -> bool:
        for hierarchy in self._layout.hierarchies:
            path = dict(place).get("" if hierarchy.is_v2 else hierarchy.name)
            with contextlib.suppress(Gone):
                if path is not None and not os.path.isdir(hierarchy.directory(path)):
                    return False
        return True

    def finish(self) -> None:
        """Looks once more, and no further."""
        self._stop.set()
        if self._later:
            self.look()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()

    def counters_now(self) -> Counters:
        """Every counter as it is now, or as it was last read where its cgroup has gone."""
        with self._lock:
            return {**self._latest, **read_counters([*self._files, *self._later], is_stamped=True)}

    def limits_of(self, cgroups: Mapping[str, str]) -> Mapping[str, object]:
        """What was last read of the limits above a process in these cgroups; see `Situation.limits_then`."""
        return self._limits.get(place_of(cgroups), {})
