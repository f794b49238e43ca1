# SPDX-License-Identifier: Apache-2.0
"""One cgroup hierarchy as it stands: its cgroups, their watches, and what their counters said last.

A counter's rise is reported once, at the cgroup that it belongs to. Where the kernel counts hierarchically, each cgroup's
total is kept beside what is *accounted for* below it (its own part and its children's totals): a difference that remains
after every living child was read again happened in cgroups that are gone. So a kill in a cgroup that
vanished at once is not lost, however many others come and go beside it.

Where the kernel tells of changes is written in `kernel.inotify`. Hence the cgroups right below the root have a watch on the
counter's file itself (the kernel notifies every ancestor); below them a directory watch is enough: what it
misses shows as a difference, and then the tree is read downwards from there.
"""
from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from triaged.errors import Exhausted, Gone, KernelError, Malformed
from triaged.kernel.cgroup_layout import Hierarchy
from triaged.kernel.cgroups import EventCounter, child_names, read_counter, read_event_counter, read_pids_in
from triaged.kernel.inotify import IN_CREATE, IN_DELETE, IN_ISDIR, IN_MODIFY, IN_ONLYDIR, Inotify, InotifyEvent
from triaged.model.cgroup import CgroupId

_DIRECTORY_MASK = IN_MODIFY | IN_CREATE | IN_DELETE | IN_ONLYDIR
_NODE_CAP = 200_000
_PIN_CAP = 1024
_GRAVES_CAP = 1024
_GRAVE_AGE_S = 5.0
_SAMPLES = 16
_NEWEST_CAP = 256
_MEMBERS_CAP = 16


class Count:
    """What one counter of one cgroup said last: in total, its own part, and what is accounted for (see the module)."""

    __slots__ = ("accounted", "own", "total")

    def __init__(self) -> None:
        self.total = 0
        self.own = 0
        self.accounted = 0


class Node:
    """One cgroup. `watch` is -1 where it has none; `children` and `counts` are None while there are none."""

    __slots__ = ("children", "counts", "depth", "inode", "name", "parent", "watch")

    def __init__(self, name: str, parent: Node | None) -> None:
        self.name = name
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.watch = -1
        self.inode = 0
        self.children: dict[str, Node] | None = None
        self.counts: dict[str, Count] | None = None

    def count(self, controller: str) -> Count:
        if self.counts is None:
            self.counts = {}
        found = self.counts.get(controller)
        if found is None:
            found = self.counts[controller] = Count()
        return found

    def known_count(self, controller: str) -> Count | None:
        return self.counts.get(controller) if self.counts else None

    def below(self) -> Iterable[Node]:
        return tuple(self.children.values()) if self.children else ()


@dataclass(frozen=True)
class Increase:
    """A counter rose by `by` to `total`. `own_file` is the file that says so.

    `is_lost`: it happened below `cgroup`, in cgroups that are gone; `removed` are those that went meanwhile.
    `before_start`: it was so at the first look.
    """

    controller: str
    cgroup: CgroupId
    by: int
    total: int
    own_file: str
    is_hierarchical: bool = False
    is_lost: bool = False
    removed: tuple[str, ...] = ()
    before_start: bool = False


class CgroupTree:
    """The cgroups of one hierarchy and the counters of `controllers` in it.

    Not for two threads at a time. `increases` and `gone` (each with whether it was hit) grow until the caller takes them.
    `counted` counts what went wrong (see `CgroupEvents`). `saved` gives what a counter said when triaged last ran, 0 if
    nothing is known.
    `told` are the controllers of whose counters a notification came; `hot` local counters that rose once. `on_members` is told
    which processes were seen in a cgroup when they were put into it, `on_vanished` which cgroup is gone.
    """

    def __init__(
        self,
        hierarchy: Hierarchy,
        controllers: Iterable[str],
        inotify: Inotify | None,
        counted: Callable[[str], None],
        saved: Callable[[CgroupId, str], int],
    ) -> None:
        self.hierarchy = hierarchy
        self.controllers = tuple(controllers)
        self.increases: list[Increase] = []
        self.gone: list[tuple[CgroupId, bool]] = []
        self.unsettled: set[tuple[Node, str]] = set()
        self.hot: set[tuple[Node, str]] = set()
        self.told: set[str] = set()
        self._unwatched: set[Node] = set()
        self._inotify = inotify
        self._counted = counted
        self._saved = saved
        self._counters: dict[str, EventCounter] = {}
        self._watches: dict[int, Node] = {}
        self._pins: dict[int, tuple[Node, str]] = {}
        self._dirty: set[tuple[Node, str]] = set()
        self._graves: deque[tuple[float, str]] = deque(maxlen=_GRAVES_CAP)
        self._nodes = 0
        self._is_first_look = True
        self._newest: deque[Node] = deque(maxlen=_NEWEST_CAP)
        self.on_members: Callable[[str, list[int]], None] = lambda path, pids: None
        self.on_vanished: Callable[[str], None] = lambda path: None
        self.root = Node("", None)

    def __len__(self) -> int:
        return self._nodes

    @property
    def unwatched(self) -> int:
        """For how many cgroups no inotify watch was left."""
        return len(self._unwatched)

    # -- what there is

    def path(self, node: Node) -> str:
        """The cgroup's path in its hierarchy."""
        names: list[str] = []
        at: Node | None = node
        while at is not None and at.parent is not None:
            names.append(at.name)
            at = at.parent
        below = "/".join(reversed(names))
        top = "" if self.hierarchy.root == "/" else self.hierarchy.root
        return f"{top}/{below}" if below else top or "/"

    def directory(self, node: Node) -> str:
        """The cgroup's directory."""
        names: list[str] = []
        at: Node | None = node
        while at is not None:
            names.append(at.name if at.parent is not None else self.hierarchy.mount)
            at = at.parent
        return "/".join(reversed(names))

    def identity(self, node: Node, controller: str) -> CgroupId:
        return CgroupId(self.path(node), node.inode, "" if self.hierarchy.is_v2 else controller)

    def find(self, path: str) -> Node | None:
        """The cgroup with this path, or the nearest ancestor of it that is known."""
        top = "" if self.hierarchy.root == "/" else self.hierarchy.root
        if not path.startswith(top):
            return None
        node = self.root
        for name in path[len(top) :].split("/"):
            if name:
                child = node.children.get(name) if node.children else None
                if child is None:
                    break
                node = child
        return node

    def has_local_counters(self) -> bool:
        """Whether some counter here is not hierarchical, so that a lost notification can only be found by looking."""
        return any(not counter.is_hierarchical for counter in self._counters.values())

    def is_hierarchical(self, controller: str) -> bool:
        counter = self._counters.get(controller)
        return counter is not None and counter.is_hierarchical

    @property
    def dirty(self) -> int:
        """How many counters are marked as perhaps changed."""
        return len(self._dirty)

    # -- scanning

    def scan(self) -> None:
        """Makes the tree agree with the file system; watches what is new. The first time it reads the counters too.

        Blocking: about 20 µs a cgroup.
        """
        first = self._is_first_look
        if first:
            self._enter(self.root, self.hierarchy.mount)
        self._agree(self.root, recheck=not first)
        if first:
            self._is_first_look = False
            for controller in self.controllers:
                self._read_first(controller)
        else:
            self._watch_unwatched()
            self.mark_all()

    def mark_all(self) -> None:
        """Marks every counter as perhaps changed: the hierarchical ones at the top, the local ones everywhere."""
        for controller in self.controllers:
            for node in self._tops() if self.is_hierarchical(controller) else self.nodes():
                self._dirty.add((node, controller))

    def nodes(self) -> Iterator[Node]:
        """Every cgroup, a parent before its children."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            if node.children:
                stack.extend(node.children.values())

    def _watch_unwatched(self) -> None:
        """Tries again where no watch was left; the first that is still refused ends it."""
        for node in tuple(self._unwatched):
            self._unwatched.discard(node)
            with suppress(KernelError):
                self._watch(node, self.directory(node))
                self._agree(node)  # what was made before the watch began
            if node not in self._unwatched and node.depth == 1:
                self._pin_all(node)
            if node in self._unwatched:
                return

    def _watch(self, node: Node, directory: str) -> None:
        """Watches the cgroup's directory, if there is a watch left. Raises: KernelError."""
        if self._inotify is None or node.watch >= 0:
            return
        try:
            node.watch = self._inotify.watch(directory, _DIRECTORY_MASK)
        except Exhausted:
            self._unwatched.add(node)
        else:
            self._watches[node.watch] = node

    def _enter(self, node: Node, directory: str) -> bool:
        """Watches the cgroup and says whether it may have children. The watch comes first: what is made after it is told."""
        try:
            self._watch(node, directory)
        except KernelError:
            return False
        try:
            status = os.stat(directory)
        except OSError:
            return False
        node.inode = status.st_ino
        self._nodes += 1
        return status.st_nlink != 2

    def _agree(self, top: Node, recheck: bool = False) -> list[Node]:
        """Makes the subtree of `top` agree with the file system; the cgroups that are new in it."""
        new: list[Node] = []
        stack = [(top, self.directory(top))]
        while stack:
            node, directory = stack.pop()
            names = set(child_names(directory))
            for child in node.below():
                if child.name not in names or (recheck and self._is_another(child, f"{directory}/{child.name}")):
                    self._drop(child)
            for name in names:
                known = node.children.get(name) if node.children else None
                if known is not None:
                    if recheck:
                        stack.append((known, f"{directory}/{name}"))
                    continue
                if self._nodes >= _NODE_CAP:
                    self._counted("untracked cgroups")
                    continue
                child = Node(name, node)
                if self._enter(child, f"{directory}/{name}"):
                    stack.append((child, f"{directory}/{name}"))
                elif child.inode == 0:
                    self._unwatch(child)
                    self._bury(child)
                    continue
                if node.children is None:
                    node.children = {}
                node.children[name] = child
                new.append(child)
                if child.depth == 1:
                    self._pin_all(child)
        return new

    def _is_another(self, node: Node, directory: str) -> bool:
        try:
            return os.stat(directory).st_ino != node.inode
        except OSError:
            return True

    def _drop(self, node: Node) -> None:
        """Forgets a cgroup that is gone and all below it."""
        if node.parent is not None and node.parent.children is not None:
            node.parent.children.pop(node.name, None)
            if not node.parent.children:
                node.parent.children = None
        doomed = [node]
        for each in doomed:
            doomed.extend(each.below())
        for each in reversed(doomed):
            self._nodes -= 1
            self._unwatch(each)
            self._bury(each)
            counts = each.counts or {}
            was_hit = [controller for controller, count in counts.items() if count.own]
            for controller in was_hit or self.controllers[:1]:
                self.gone.append((self.identity(each, controller), bool(was_hit)))
            for controller in counts:
                self._hand_up(each, controller)
                self._dirty.discard((each, controller))
                self.unsettled.discard((each, controller))
                self.hot.discard((each, controller))
        # What it counted stays accounted for above: an ancestor's total keeps it too.

    def _hand_up(self, node: Node, controller: str) -> None:
        """What a cgroup's total told and nothing explained when it went is to be explained by its parent; by itself at the top."""
        rest = self._unexplained(node, controller)
        if rest <= 0 or node.parent is None:
            return
        above = node.parent.known_count(controller)
        if above is None or not above.total:
            self._report_lost(node, controller, rest)
        else:
            above.accounted -= rest
            self.unsettled.add((node.parent, controller))

    def _bury(self, node: Node) -> None:
        path = self.path(node)
        self._graves.append((time.monotonic(), path))
        self.on_vanished(path)

    def _unwatch(self, node: Node) -> None:
        self._unwatched.discard(node)
        if self._inotify is None:
            return
        if node.watch >= 0:
            self._watches.pop(node.watch, None)
            self._inotify.unwatch(node.watch)  # the kernel does not end it by itself
            node.watch = -1
        if self._pins and (node.depth == 1 or node.counts):
            for watch in [watch for watch, (pinned, _) in self._pins.items() if pinned is node]:
                del self._pins[watch]
                self._inotify.unwatch(watch)

    def _tops(self) -> Iterable[Node]:
        """The highest cgroups that have counters: the root of a part of a tree, else those right below the root."""
        return (self.root,) if self._has_files(self.root) else self.root.below()

    def _has_files(self, node: Node) -> bool:
        directory = self.directory(node)
        return any(read_event_counter(self.hierarchy, controller, directory) for controller in self.controllers)

    def _pin_all(self, node: Node) -> None:
        for controller in self.controllers:
            counter = self._counter(node, controller)
            if counter is not None and counter.is_hierarchical:
                self._pin(node, counter)

    def _pin(self, node: Node, counter: EventCounter) -> None:
        """Watches the counter's own file, which keeps its inode in memory, so that no change goes untold."""
        if self._inotify is None or len(self._pins) >= _PIN_CAP:
            return
        try:
            watch = self._inotify.watch(f"{self.directory(node)}/{counter.file}", IN_MODIFY)
        except Exhausted:
            self._unwatched.add(node)
        except KernelError:
            pass  # gone, or the controller is off: a write to cgroup.subtree_control above tells when that changes
        else:
            self._pins[watch] = (node, counter.controller)

    def _counter(self, node: Node, controller: str) -> EventCounter | None:
        """How this kernel counts; known from the first cgroup that has the files."""
        found = self._counters.get(controller)
        if found is None and controller in self.controllers:
            found = read_event_counter(self.hierarchy, controller, self.directory(node))
            if found is not None:
                self._counters[controller] = found
        return found

    # -- events

    def take(self, event: InotifyEvent) -> bool:
        """Takes an inotify event; False if it is not about this tree."""
        pinned = self._pins.get(event.watch)
        if pinned is not None:
            if event.mask & IN_MODIFY:
                self._dirty.add(pinned)
                self.told.add(pinned[1])
            return True
        node = self._watches.get(event.watch)
        if node is None:
            return False
        if event.mask & IN_ISDIR:
            child = node.children.get(event.name) if node.children else None
            if event.mask & IN_CREATE:
                if child is not None and self._is_another(child, f"{self.directory(node)}/{event.name}"):
                    self._drop(child)
                    child = None
                if child is None:
                    self._adopt(node, event.name)
            elif event.mask & IN_DELETE and child is not None and self._is_another(child, f"{self.directory(node)}/{event.name}"):
                self._drop(child)  # unless the name was made again before its removal was read
        elif event.mask & IN_MODIFY:
            controller, _, rest = event.name.partition(".")
            if controller in self.controllers and (rest.startswith("events") or rest == "oom_control"):
                self._dirty.add((node, controller))
                if rest == "events":
                    self.told.add(controller)
            elif event.name == "cgroup.subtree_control":
                for child in node.below():
                    if child.depth == 1:
                        self._pin_all(child)
        return True

    def _adopt(self, parent: Node, name: str) -> None:
        """Takes in a cgroup that was just made, with what was made below it meanwhile."""
        if self._nodes >= _NODE_CAP:
            self._counted("untracked cgroups")
            return
        child = Node(name, parent)
        directory = f"{self.directory(parent)}/{name}"
        has_children = self._enter(child, directory)
        if child.inode == 0:
            self._unwatch(child)
            self._bury(child)
            self._counted("cgroups gone before they were read")
            return
        if parent.children is None:
            parent.children = {}
        parent.children[name] = child
        new = [child, *self._agree(child)] if has_children else [child]
        if child.depth == 1:
            self._pin_all(child)
        self._newest.extend(new)
        for node in new:
            self._note_members(node)
            for controller in self.controllers:
                counter = self._counter(node, controller)
                # A local counter that rose before the watch began would be told by nobody.
                if counter is not None and not counter.is_hierarchical:
                    self._dirty.add((node, controller))

    def note_members(self, watch: int) -> bool:
        """Somebody put processes into the cgroup of this watch: tells which. False if it is not of this tree. About 20 µs."""
        node = self._watches.get(watch)
        if node is not None:
            self._note_members(node)
        return node is not None

    def _note_members(self, node: Node) -> None:
        path = self.path(node)
        try:
            pids = read_pids_in(self.hierarchy, path)
        except KernelError:
            return
        if 0 < len(pids) <= _MEMBERS_CAP:  # of a crowd it is not worth the while
            self.on_members(path, pids)

    def mark_newest(self, controller: str) -> None:
        """Marks the local counters of the cgroups that were made last: somewhere something happened, and nobody says where."""
        if not self.is_hierarchical(controller):
            self._dirty |= {(node, controller) for node in self._newest if self._is_known(node)}

    def _is_known(self, node: Node) -> bool:
        return node.parent is not None and node.parent.children is not None and node.parent.children.get(node.name) is node

    def mark_hot(self) -> None:
        """Marks the local counters that rose once."""
        self._dirty |= self.hot

    def beginning_with(self, prefix: str) -> list[str]:
        """The paths that begin so (the kernel log cuts long ones). Cost: as many steps as there are cgroups."""
        return [path for path in map(self.path, self.nodes()) if path.startswith(prefix)]

    def mark(self, path: str, controller: str) -> None:
        """Marks a counter as perhaps changed: the kernel log spoke of this cgroup."""
        node = self.find(path)
        if node is not None:
            if self.path(node) != path:
                for new in self._agree(node):
                    self._dirty.add((new, controller))
                node = self.find(path) or node
            self._dirty.add((node, controller))

    # -- counting

    def count_dirty(self) -> None:
        """Reads every counter that may have changed, the innermost first, and what they add up to above them."""
        wanted: set[tuple[Node, str]] = set()
        for node, controller in self._dirty:
            wanted.add((node, controller))
            if self.is_hierarchical(controller):
                above = node.parent
                while above is not None and (above, controller) not in wanted:
                    wanted.add((above, controller))
                    above = above.parent
        self._dirty.clear()
        for node, controller in sorted(wanted, key=lambda each: -each[0].depth):
            self._count(node, controller)
            if self._unexplained(node, controller) > 0:
                self.unsettled.add((node, controller))

    def settle(self) -> None:
        """Finds what made the unsettled totals rise: reads downwards from them; what is left happened in cgroups that are gone.

        Blocking: about 12 µs for each child of a cgroup in which something rose.
        """
        unsettled, self.unsettled = self.unsettled, set()
        for top, controller in sorted(unsettled, key=lambda each: -each[0].depth):
            if self._unexplained(top, controller) <= 0:
                continue
            visited: list[Node] = []
            stack = [top]
            while stack:
                node = stack.pop()
                visited.append(node)
                self._agree(node)
                for child in node.below():
                    self._count(child, controller)
                    if self._unexplained(child, controller) > 0:
                        stack.append(child)
            for node in reversed(visited):
                lost = self._unexplained(node, controller)
                if lost > 0:
                    self._agree(node)  # a child that went while it was read has a name still
                    self._report_lost(node, controller, lost)

    def _unexplained(self, node: Node, controller: str) -> int:
        count = node.known_count(controller)
        return count.total - count.accounted if count is not None and self.is_hierarchical(controller) else 0

    def _count(self, node: Node, controller: str) -> None:
        counter = self._counter(node, controller)
        if counter is None:
            return
        total = self._read(node, counter.file, counter.field)
        known = node.known_count(controller)
        if total is None or total == (known.total if known else 0):
            return
        count = node.count(controller)
        by, count.total = total - count.total, total
        if by < 0:
            self._counted("counters that fell")
            return
        if not counter.is_hierarchical:
            count.own = total
            self._report(node, counter, by, count)
            return
        if node.parent is not None:
            node.parent.count(controller).accounted += by
        own = self._read(node, counter.local_file, counter.field)
        if own is not None and own > count.own:
            rose, count.own = own - count.own, own
            count.accounted += rose
            self._report(node, counter, rose, count)

    def _read(self, node: Node, file: str, field: str) -> int | None:
        path = f"{self.directory(node)}/{file}"
        try:
            return read_counter(path, field)
        except Gone:
            return None
        except Malformed:
            self._counted("malformed")
        except KernelError:
            self._counted("unreadable")
        return None

    def _report(self, node: Node, counter: EventCounter, by: int, count: Count, before_start: bool = False) -> None:
        file = f"{self.directory(node)}/{counter.local_file or counter.file}"
        identity = self.identity(node, counter.controller)
        self.increases.append(
            Increase(counter.controller, identity, by, count.own, file, counter.is_hierarchical, before_start=before_start)
        )
        if not counter.is_hierarchical and len(self.hot) < _PIN_CAP and (node, counter.controller) not in self.hot:
            self.hot.add((node, counter.controller))
            self._pin(node, counter)

    def _report_lost(self, node: Node, controller: str, lost: int) -> None:
        count, counter = node.count(controller), self._counters[controller]
        count.accounted += lost
        path = self.path(node)
        inside = path if path.endswith("/") else path + "/"
        since = time.monotonic() - _GRAVE_AGE_S
        removed = tuple(dict.fromkeys(grave for when, grave in self._graves if when >= since and grave.startswith(inside)))
        file = f"{self.directory(node)}/{counter.file}"
        identity = self.identity(node, controller)
        self.increases.append(Increase(controller, identity, lost, count.total, file, True, is_lost=True, removed=removed))

    # -- the first look

    def _read_first(self, controller: str) -> None:
        """What the counters say at the first look. Below a hierarchical total of 0 nothing needs to be read."""
        # Where the root passes a controller on, every child of it has the files; where it does not, no cgroup has.
        for node in (self.root, *islice(self.root.below(), _SAMPLES)):
            if self._counter(node, controller) is not None:
                break
        counter = self._counters.get(controller)
        if counter is None:
            return
        for top in self._tops():
            self._pin_all(top)
        if not counter.is_hierarchical:
            for node in self.nodes():
                total = self._read(node, counter.file, counter.field)
                if total:
                    count = node.count(controller)
                    count.total = count.own = total
                    self._report_first(node, counter, count)
            return
        for top in self._tops():
            for _ in range(3):
                order = self._read_totals(top, counter)
                again = self._read(top, counter.file, counter.field)
                if again is None or again == top.count(controller).total:
                    break  # nothing rose meanwhile: the totals belong together
            for node in reversed(order):
                count = node.count(controller)
                count.own = self._read(node, counter.local_file, counter.field) or 0
                count.accounted = count.own
                for child in node.below():
                    known = child.known_count(controller)
                    count.accounted += known.total if known else 0
                # What is missing happened in cgroups that were gone before triaged came.
                count.accounted = max(count.accounted, count.total)
                if count.own:
                    self._report_first(node, counter, count)

    def _read_totals(self, top: Node, counter: EventCounter) -> list[Node]:
        order: list[Node] = []
        stack = [top]
        while stack:
            node = stack.pop()
            total = self._read(node, counter.file, counter.field)
            if total:
                node.count(counter.controller).total = total
                order.append(node)
                stack.extend(node.below())
        if not order:
            top.count(counter.controller)
        return order

    def _report_first(self, node: Node, counter: EventCounter, count: Count) -> None:
        saved = self._saved(self.identity(node, counter.controller), counter.local_file or counter.file)
        # Fewer than were saved: the cgroup is another one that got the same name and number.
        by = count.own - saved if saved <= count.own else count.own
        if by > 0:
            self._report(node, counter, by, count, before_start=True)
        elif not counter.is_hierarchical and len(self.hot) < _PIN_CAP:
            self.hot.add((node, counter.controller))
            self._pin(node, counter)
