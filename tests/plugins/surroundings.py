# SPDX-License-Identifier: Apache-2.0
"""What a made-up process sees around it: files, mounts, space, a network; and what it may do."""
from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from situations import process, situated

from triaged.explain.situation import Situation
from triaged.model.capability import CAPABILITIES, capability_number
from triaged.model.limit import Unknown
from triaged.model.process_state import Credentials, Mount, ProcessState
from triaged.model.surroundings import FileFacts, NetworkFacts, Node, Space
from triaged.model.symptom import Deed, SeenIn, Symptom, SymptomKind

EVERYTHING = (1 << len(CAPABILITIES)) - 1
ROOMY = Space(100 << 30, 50 << 30, 45 << 30, 1_000_000, 900_000)
LOOPBACK = NetworkFacts(frozenset({"127.0.0.1"}), (("0" * 31 + "1", "lo"),))
NO_LOOPBACK = NetworkFacts(frozenset(), ())


def bits(names: Iterable[str]) -> int:
    return sum(1 << capability_number(name) for name in names)


def someone(uid: int = 1000, has: Iterable[str] = (), lacks: Iterable[str] = (), **more: Any) -> ProcessState:
    """A process without filters. Root has all capabilities but those that it `lacks`, which are not in its bounding set either."""
    without = bits(lacks)
    effective = (EVERYTHING if uid == 0 else bits(has)) & ~without
    credentials = Credentials(
        (uid,) * 4, (uid,) * 4, effective=effective, permitted=effective, bounding=EVERYTHING & ~without,
        no_new_privileges=bool(more.pop("no_new_privileges", False)),
    )
    more.setdefault("seccomp_mode", "none")
    more.setdefault("filters", ())
    return replace(process(uid=uid, **more), credentials=credentials)


def mount(
    point: str, options: str = "rw", kind: str = "ext4", super_options: str = "rw", identifier: int = 0, parent: int = 0
) -> Mount:
    number = identifier or (hash(point) & 0xFFFF)
    return Mount(
        number, "8:1", "/", point, frozenset(options.split(",")), kind, "/dev/x", frozenset(super_options.split(",")), parent
    )


ROOT_MOUNTS = (mount("/"), mount("/proc", kind="proc"), mount("/sys", kind="sysfs"), mount("/dev/shm", kind="tmpfs"))


def directory(path: str, mode: int = 0o755, uid: int = 0) -> Node:
    return Node(path, stat.S_IFDIR | mode, uid, uid)


def regular(path: str, mode: int = 0o644, uid: int = 0) -> Node:
    return Node(path, stat.S_IFREG | mode, uid, uid)


def facts(path: str, node: Node | None, *way: Node, space: Space = ROOMY, **more: Any) -> FileFacts:
    """A file, in the directories given (by default those of its path, open to all)."""
    if not way:
        parts = path.split("/")[1:-1]
        way = (directory("/"), *(directory("/" + "/".join(parts[: n + 1]), 0o777) for n in range(len(parts))))
    return FileFacts(path, node, way, space=space, **more)


def seeing(
    symptom: Symptom, who: ProcessState | None = None, *, files: Sequence[FileFacts] = (),
    network: NetworkFacts | Unknown | None = None, parameters: dict[str, str] | None = None,
    texts: dict[str, str | None] | None = None, log: Sequence[str] = (), **more: Any,
) -> Situation:
    """A situation in which these files, this network and these parameters are found, and no others."""
    kept: dict[str, object] = {f"file:{each.path}": each for each in files}
    for key, value in (parameters or {}).items():
        kept[f"parameter:{key}"] = kept[f"netns:{key}"] = value
    kept.update({f"text:{path}": text for path, text in (texts or {}).items()})
    if network is not None:
        kept["network"] = network
    return situated(symptom, who, kept={**kept, **more.pop("kept", {})}, read_log=lambda: tuple(log), **more)


def told(text: str, errno: str = "", syscall: str = "", path: str = "", kind: SymptomKind = SymptomKind.CALL) -> Symptom:
    """What only the output tells."""
    return Symptom(kind, syscall, errno, path=path, text=text, seen_in=SeenIn.OUTPUT)


def deed(syscall: str, *arguments: int, pid: int = 500, is_test: bool = True) -> Deed:
    return Deed(pid, "a.test", syscall, arguments, is_test=is_test)


def filter_of(*rules: tuple[int, int], otherwise: int = 0x7FFF0000) -> bytes:
    """A seccomp filter: each (call number, what it answers)."""
    steps = [(0x20, 0, 0, 0)]
    for number, answer in rules:
        steps += [(0x15, 0, 1, number), (0x06, 0, 0, answer)]
    steps.append((0x06, 0, 0, otherwise))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def filter_on_flags(number: int, flags: int, answer: int) -> bytes:
    """A seccomp filter that answers a call only if its first argument has one of the flags (little endian)."""
    steps = [
        (0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x45, 0, 1, flags), (0x06, 0, 0, answer),
        (0x06, 0, 0, 0x7FFF0000),
    ]  # fmt: skip
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
