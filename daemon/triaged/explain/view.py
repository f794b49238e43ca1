# SPDX-License-Identifier: Apache-2.0
"""What hypotheses look at besides limits: files, space and network as the process sees them, and whom the process belongs to.

Each is read when the first hypothesis asks for it and then kept in the situation (`Situation.kept`) under a name of its own:
"file:PATH", "network", "netns:PARAMETER". Where the process is gone, whoever is still there and sees the same is looked through.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from triaged.errors import KernelError
from triaged.explain.calls import ON_DESCRIPTORS
from triaged.explain.replay import is_old
from triaged.explain.situation import Situation
from triaged.kernel.file_view import read_file_facts, read_open_file, read_open_paths, read_text_of
from triaged.kernel.namespaces import read_namespace
from triaged.kernel.network_state import read_network, read_network_parameter
from triaged.kernel.process import read_start_ticks
from triaged.model.cgroup import container_of, unit_of
from triaged.model.fix import Fix, SetParameter
from triaged.model.limit import Unknown
from triaged.model.process_state import Credentials, ProcessState
from triaged.model.quoting import shown
from triaged.model.surroundings import FileFacts, NetworkFacts
from triaged.model.symptom import Deed
from triaged.model.verdict import Evidence

T = TypeVar("T")
_NOBODY = "the process is gone, and nobody is left who sees its {} namespace"
_ON_ADDRESSES = frozenset({"bind", "connect", "listen", "accept4", "sendto", "sendmsg", "socket", "setsockopt", "getsockopt"})
_ADDRESS = re.compile(r":\d+$|://|^\[?[0-9a-fA-F:.]+\]?$|->")


def credentials_of(situation: Situation) -> Credentials | None:
    """Who the process is, where that is known."""
    process = situation.process
    return process.credentials if process is not None and isinstance(process.credentials, Credentials) else None


def label_of(process: ProcessState | None) -> str:
    """The security label of the process; "" where it has none or that is not known."""
    return process.lsm_label if process is not None and isinstance(process.lsm_label, str) else ""


def is_labelled(process: ProcessState | None) -> bool:
    """Whether a security module with labels has a say in what the process does, or may have."""
    if process is None:
        return False
    return isinstance(process.lsm_label, Unknown) or (process.lsm_label != "" and not process.lsm_label.startswith("unconfined"))


def subject_of(process: ProcessState | None) -> str:
    """The process, by name and number."""
    if process is None:
        return "host"
    identity = process.identity
    return f"process {identity.pid}" + (f" ({shown(identity.comm)})" if identity.comm else "")


def pids_of(situation: Situation) -> frozenset[int]:
    """The numbers under which the process is known: its own, and that of the process which stands for it."""
    process = situation.process
    return frozenset() if process is None else frozenset({process.identity.pid, process.stands_for} - {0})


def own_deeds(situation: Situation, *calls: str) -> tuple[Deed, ...]:
    """What the program under test did itself by these calls.

    A launcher that makes a sandbox and executes the test in it is the same process, and another program.
    """
    process = situation.process
    program = process.identity.exe.rsplit("/", 1)[-1] if process is not None and not is_old(process) else ""
    pids = pids_of(situation)
    return tuple(
        deed for deed in situation.deeds
        if deed.is_test and deed.syscall in calls and not (program and deed.pid in pids and deed.comm and deed.comm != program)
    )


def inherited_deeds(situation: Situation, *calls: str) -> tuple[Deed, ...]:
    """Those of `own_deeds` that the process did itself or has from an ancestor."""
    process = situation.process
    above = {each.identity.pid for each in situation.ancestors}
    family = above | pids_of(situation) | ({process.identity.ppid} if process is not None else set())
    return tuple(deed for deed in own_deeds(situation, *calls) if deed.pid in family)


def tested_ancestors(situation: Situation) -> tuple[ProcessState, ...]:
    """The ancestors of the process that are test binaries: what is otherwise in them was changed by the test."""
    return tuple(each for each in situation.ancestors if is_test_binary(each))


def is_test_binary(process: ProcessState) -> bool:
    """Whether it is a test binary. States that a run reads are held against no workload: there by how `go test` calls them."""
    identity = process.identity
    if identity.workload is not None:
        return "test" in identity.workload.role
    return identity.exe.endswith(".test") and any(word.startswith("-test.") for word in identity.argv)


def owner_of(process: ProcessState | None) -> str:
    """Who set the process up: its container or service; else the process itself."""
    if process is None:
        return "host"
    path = process.identity.cgroup
    container = container_of(path)
    if container:
        return f"container {container.identifier[:12]}"
    unit = unit_of(path)
    return shown(unit) if unit.endswith(".service") else subject_of(process)


def subject_path(situation: Situation) -> str:
    """The absolute path that the symptom is about, as the process writes it; "" where it is not known or no path."""
    symptom, process = situation.symptom, situation.process
    path = symptom.path
    if path:
        if path.startswith("/"):
            return path
        is_address = symptom.syscall in _ON_ADDRESSES or _ADDRESS.search(path) is not None or path.startswith("@")
        if process is not None and process.directory and not is_address:
            return f"{process.directory.rstrip('/')}/{path}"
        return ""
    if symptom.syscall in ON_DESCRIPTORS and symptom.arguments and process is not None and process.identity.pid:
        descriptor = symptom.arguments[0] & 0xFFFFFFFF

        def read() -> str:
            try:
                return read_open_file(situation.paths, process.identity.pid, descriptor)
            except KernelError:
                return ""

        found = situation.kept("descriptor", read)
        return found if found.startswith("/") else ""
    return ""


def open_files(situation: Situation) -> tuple[str, ...]:
    """The files that the process has open, by their paths; none where it is gone or may not be looked into."""
    process = situation.process

    def read() -> tuple[str, ...]:
        if process is None or not process.identity.pid or process.stands_for:
            return ()
        try:
            return tuple(read_open_paths(situation.paths, process.identity.pid))
        except KernelError:
            return ()

    return situation.kept("open files", read)


def file_facts(situation: Situation, path: str) -> FileFacts | Unknown:
    """A path as the process sees it."""
    return situation.kept(
        f"file:{path}", lambda: _seen(situation, "mnt", lambda who: read_file_facts(situation.paths, who, path))
    )


def file_text(situation: Situation, path: str) -> str | Unknown | None:
    """The text of a small file as the process sees it; None where there is no such file."""

    def read(who: str) -> str | None:
        facts = read_file_facts(situation.paths, who, path)
        return None if facts.node is None else read_text_of(situation.paths, who, facts.path)

    return situation.kept(f"text:{path}", lambda: _seen(situation, "mnt", read))


def network_facts(situation: Situation) -> NetworkFacts | Unknown:
    """The network namespace of the process."""
    return situation.kept("network", lambda: _seen(situation, "net", lambda who: read_network(situation.paths, who)))


def network_parameter(situation: Situation, key: str) -> str | Unknown:
    """A parameter net.* as it is in the network namespace of the process."""

    def read() -> str | Unknown:
        if is_own_network(situation):
            return situation.parameter(key)
        found = [read_network_parameter(situation.paths, int(who), key) for who in _who_see(situation, "net") if who != "self"]
        nobody = found[0] if found else Unknown(_NOBODY.format("net"))
        return next((each for each in found if not isinstance(each, Unknown)), nobody)

    return situation.kept(f"netns:{key}", read)


def network_number(situation: Situation, key: str) -> int | Unknown:
    """A parameter net.* that is one number, in the network namespace of the process."""
    value = network_parameter(situation, key)
    if isinstance(value, Unknown):
        return value
    words = value.split()
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else Unknown(f"{key} is {value!r}")


def is_own_network(situation: Situation) -> bool:
    """Whether the process is in the reader's network namespace (yes where there is no process)."""
    process = situation.process
    own = read_namespace(situation.paths, "net")
    return process is None or own is None or process.namespaces.get("net", own) == own


def set_parameter(situation: Situation, key: str, value: str, risk: str = "") -> tuple[Fix, ...]:
    """The fixes that set a parameter: on the host until the next boot and lastingly, or in the process's network namespace."""
    seen = network_parameter(situation, key) if key.startswith("net.") else situation.parameter(key)
    was = "" if isinstance(seen, Unknown) else " ".join(seen.split())
    process = situation.process
    if key.startswith("net.") and process is not None and not is_own_network(situation):
        identity = process.identity
        return (SetParameter(key, value, False, risk, was, identity.pid, identity.start_ticks),)
    return tuple(SetParameter(key, value, lasting, risk, was) for lasting in (False, True))


def parameter_evidence(situation: Situation, key: str, value: object) -> Evidence:
    """A parameter's value as evidence."""
    time_usec = situation.process.time_usec if situation.process is not None else 0
    return Evidence(key, " ".join(str(value).split()), f"/proc/sys/{key.replace('.', '/')}", time_usec)


def state_evidence(situation: Situation, name: str, value: str | int | bool, file: str) -> Evidence:
    """Something of the process's own /proc directory as evidence."""
    process = situation.process
    if process is None:
        return Evidence(name, value)
    return Evidence(name, value, f"/proc/{process.stands_for or process.identity.pid}/{file}", process.time_usec)


def _seen(situation: Situation, namespace: str, read: Callable[[str], T]) -> T | Unknown:
    """What `read` gives for whoever sees what the process saw in its namespace of this kind, the process itself first."""
    why = Unknown(_NOBODY.format(namespace))
    for who in _who_see(situation, namespace):
        try:
            return read(who)
        except KernelError as error:  # it ended meanwhile, or may not be looked into
            why = Unknown(str(error))
    return why


def _who_see(situation: Situation, namespace: str) -> Iterator[str]:
    """The pids (or "self") whose /proc directories show what the process saw in its namespace of this kind."""
    process = situation.process
    if process is None:
        yield "self"
        return
    wanted = process.namespaces.get(namespace)
    others = [*situation.ancestors, *([situation.at_start] if situation.at_start is not None else [])]
    for state in (process, *others):
        sees_the_same = state is process or (wanted is not None and state.namespaces.get(namespace) == wanted)
        if not sees_the_same or (namespace == "mnt" and state.root != process.root):
            continue
        for pid, ticks in ((state.identity.pid, state.identity.start_ticks), (state.stands_for, 0)):
            if pid > 0 and _is_alive(situation, pid, ticks):
                yield str(pid)
    if wanted is not None and wanted == read_namespace(situation.paths, namespace) and (namespace != "mnt" or process.root == "/"):
        yield "self"


def _is_alive(situation: Situation, pid: int, start_ticks: int) -> bool:
    try:
        return start_ticks in (0, read_start_ticks(situation.paths, pid))
    except KernelError:
        return False
