# SPDX-License-Identifier: Apache-2.0
"""Which failing thing is done again for which kernel parameter.

A probe goes beyond the *old* value: what it manages could not have been managed before. Where only a difference shows
something (may this user do it at all?), it is done before the change as well.
"""
from __future__ import annotations

from triaged.fixers.fixer import Probe, Unverifiable
from triaged.model.fix import SetParameter

NOBODY = 65534
# What one probe may use of the machine for a moment.
MOST_FILES = 131072
MOST_MAPPINGS = 300_000
MOST_TASKS = 2048
MOST_INOTIFY_INSTANCES = 16384
MOST_INOTIFY_WATCHES = 32768
MOST_CONNECTIONS = 1024

# Done as the user before and after; no argument but the user.
_AS_USER = {
    "user.max_user_namespaces": ("user-namespace", "create a user namespace"),
    "kernel.unprivileged_userns_clone": ("user-namespace", "create a user namespace"),
    "kernel.apparmor_restrict_unprivileged_userns": ("user-namespace", "create a user namespace and use its capabilities"),
    "user.max_net_namespaces": ("namespace", "create a network namespace"),
    "user.max_mnt_namespaces": ("namespace", "create a mount namespace"),
    "user.max_pid_namespaces": ("namespace", "create a pid namespace"),
    "user.max_ipc_namespaces": ("namespace", "create an IPC namespace"),
    "user.max_uts_namespaces": ("namespace", "create a UTS namespace"),
    "user.max_cgroup_namespaces": ("namespace", "create a cgroup namespace"),
    "user.max_time_namespaces": ("namespace", "create a time namespace"),
    "kernel.io_uring_disabled": ("io-uring", "set up an io_uring"),
    "kernel.unprivileged_bpf_disabled": ("bpf", "create a BPF map"),
    "kernel.perf_event_paranoid": ("perf-event", "open a perf event"),
    "kernel.yama.ptrace_scope": ("ptrace", "attach to a process of the same user that is not its child"),
    "vm.unprivileged_userfaultfd": ("userfaultfd", "open a userfaultfd"),
    "net.ipv4.ping_group_range": ("ping-socket", "open an ICMP socket"),
}
# Of these a higher value allows less; of the others a lower one does.
_CLOSED_BY_MORE = frozenset({
    "kernel.apparmor_restrict_unprivileged_userns", "kernel.io_uring_disabled", "kernel.unprivileged_bpf_disabled",
    "kernel.perf_event_paranoid", "kernel.yama.ptrace_scope",
})  # fmt: skip
_NO_GROUP = "1 0"  # net.ipv4.ping_group_range


def parameter_probe(fix: SetParameter, present: str, uid: int | None) -> Probe | Unverifiable:
    """What shows that the parameter's new value helps. `present` is the value before the change."""
    user = NOBODY if uid is None else uid
    parameter = fix.parameter
    if parameter in _AS_USER:
        name, text = _AS_USER[parameter]
        closes = _closes(parameter, present, fix.value)
        if closes:
            user = NOBODY  # some of it stays allowed to root
        if name not in ("user-namespace", "namespace") and user == 0:
            user = NOBODY  # root passes these checks always
        arguments: dict[str, object] = {"uid": user}
        if name == "perf-event":
            # What the laxer of the two values allows: 2 events of one's own code, 1 the kernel's part too, 0 whole CPUs.
            arguments["level"] = min(_number(present), _number(fix.value))
        if name == "namespace":
            arguments["kind"] = parameter.removeprefix("user.max_").removesuffix("_namespaces")
        return Probe(name, f"{text} as user {user}", arguments, compares=True, closes=closes)
    if parameter == "net.core.somaxconn":
        new, old = int(fix.value), _number(present)
        arguments = {"backlog": new, "old": old, "connections": old + 2 if old + 2 <= min(MOST_CONNECTIONS, new) else 0}
        if fix.netns_pid:
            arguments["netns_pid"] = fix.netns_pid
        return Probe("listen", f"listen with a backlog of {new}", arguments)
    if fix.netns_pid:
        return Unverifiable(f"there is no test for {parameter} in another network namespace")
    if parameter == "net.ipv4.ip_unprivileged_port_start":
        port, user = int(fix.value), user or NOBODY
        if not 0 < port < _number(present):
            return Unverifiable("no port becomes free")
        return Probe("bind-port", f"bind to port {port} as user {user}", {"uid": user, "port": port}, compares=True)
    return _beyond(fix, _number(present), user)


def _closes(parameter: str, present: str, value: str) -> bool:
    if parameter == "net.ipv4.ping_group_range":
        return value == _NO_GROUP
    return _number(value) > _number(present) if parameter in _CLOSED_BY_MORE else _number(value) < _number(present)


def _beyond(fix: SetParameter, old: int, user: int) -> Probe | Unverifiable:
    """The probes that use one more of something than the old value allowed."""
    parameter = fix.parameter
    if parameter in _COUNTED and int(fix.value.split(" ")[0]) <= old:
        return Unverifiable(f"{fix.value} allows no more than {old} did")
    if parameter == "kernel.pid_max":
        return Probe("process-id", f"get the process id {old}, which was out of range", {"pid": old})
    if parameter == "kernel.threads-max":
        return Probe("tasks", f"run more than {old} tasks on the whole host", {"beyond": old, "most": MOST_TASKS})
    if parameter == "fs.file-max":
        # Root may always open one more (fs/file_table.c).
        return Probe("open-files", f"hold more than {old} files open on the whole host",
                     {"uid": user or NOBODY, "beyond": old, "most": MOST_FILES})  # fmt: skip
    if parameter == "fs.nr_open":
        return Probe("file-limit", f"allow a process {old + 1} open files", {"limit": old + 1})
    if parameter == "vm.max_map_count":
        if old > MOST_MAPPINGS:
            return Unverifiable(f"it would take more than {MOST_MAPPINGS} mappings to go beyond {old}")
        return Probe("map-regions", f"map {old + 64} regions in one process", {"regions": old + 64})
    if parameter in ("fs.inotify.max_user_instances", "user.max_inotify_instances"):
        if old > MOST_INOTIFY_INSTANCES:
            return Unverifiable(f"it would take more than {MOST_INOTIFY_INSTANCES} instances to go beyond {old}")
        return Probe("inotify-instances", f"make inotify instances as user {user}, up to {old + 1}",
                     {"uid": user, "instances": old + 1}, compares=True)  # fmt: skip
    if parameter in ("fs.inotify.max_user_watches", "user.max_inotify_watches"):
        if old > MOST_INOTIFY_WATCHES:
            return Unverifiable(f"it would take more than {MOST_INOTIFY_WATCHES} watches to go beyond {old}")
        return Probe("inotify-watches", f"place inotify watches as user {user}, up to {old + 1}",
                     {"uid": user, "watches": old + 1}, compares=True)  # fmt: skip
    if parameter == "fs.aio-max-nr":
        return Probe("aio-events", f"reserve more than {old} asynchronous I/O events on the whole host", {"beyond": old})
    return Unverifiable(f"there is no test for {parameter}; the kernel holds the new value")


_COUNTED = frozenset({
    "kernel.pid_max", "kernel.threads-max", "fs.file-max", "fs.nr_open", "vm.max_map_count", "fs.inotify.max_user_instances",
    "user.max_inotify_instances", "fs.inotify.max_user_watches", "user.max_inotify_watches", "fs.aio-max-nr",
})  # fmt: skip


def _number(text: str) -> int:
    word = text.split(" ")[0]
    return int(word) if word.lstrip("-").isdigit() else 0
