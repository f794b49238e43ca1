# SPDX-License-Identifier: Apache-2.0
"""How much of each limit is in use: of the host, of a cgroup and its ancestors, of a process and its user.

Hard facts:
- The total of /proc/loadavg's fourth field is the kernel's own count of threads, which kernel.threads-max bounds; pid numbers in
  use are at least as many.
- memory.current counts page cache that the kernel gives back under pressure: near the limit it says nothing. What is compared
  with memory.max here is the use without reclaimable cache.
- Of a listening socket /proc/PID/net/tcp gives the queue of connections not yet accepted as rx_queue, not how long it may be
  (that is in inet_diag, `kernel.sockets`).
- /proc/PID/net is the process's own network namespace; /proc/sys/net is the reader's.
"""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator

from triaged.errors import Gone, KernelError, Malformed
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.cgroups import ancestry, read_counters, read_limit, read_number
from triaged.kernel.files import read_bytes, read_text
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import pids
from triaged.kernel.resource_limits import read_resource_limits
from triaged.model.facts import CgroupLimit
from triaged.model.limit import Limit, Unknown
from triaged.model.process import ProcessIdentity
from triaged.model.usage import Usage

_UNKNOWN_NAMESPACE = Unknown("it is that of another network namespace, which cannot be read from here")


def _parameter(paths: KernelPaths, key: str) -> tuple[int | Unknown, str]:
    """A kernel parameter that is one number, and its file."""
    path = f"{paths.proc}/sys/{key.replace('.', '/')}"
    try:
        return read_number(path), path
    except KernelError as error:
        return Unknown(str(error)), path


def read_host_usage(paths: KernelPaths) -> Iterator[Usage]:
    """What the whole machine has in use: threads, open files, asynchronous I/O contexts, tracked connections.

    Sources: /proc/loadavg, /proc/sys/kernel/{threads-max,pid_max}, /proc/sys/fs/{file-nr,aio-nr,aio-max-nr},
    /proc/sys/net/netfilter/nf_conntrack_{count,max} (of the reader's network namespace; absent without the module).
    """
    loadavg = f"{paths.proc}/loadavg"
    threads: int | Unknown
    try:
        threads = parse_threads(read_text(loadavg, 4096), loadavg)
    except KernelError as error:
        threads = Unknown(str(error))
    for key in ("kernel.threads-max", "kernel.pid_max"):
        limit, file = _parameter(paths, key)
        yield Usage("tasks", key, "host", threads, limit, loadavg, file, is_lower_bound=key == "kernel.pid_max")
    file_nr = f"{paths.proc}/sys/fs/file-nr"
    files: int | Unknown
    try:
        files = int(read_text(file_nr, 4096).split()[0])
    except (KernelError, ValueError, IndexError) as error:
        files = Unknown(str(error))
    limit, file = _parameter(paths, "fs.file-max")
    yield Usage("files", "fs.file-max", "host", files, limit, file_nr, file)
    for resource, used_key, limit_key in (
        ("asynchronous I/O", "fs.aio-nr", "fs.aio-max-nr"),
        ("tracked connections", "net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"),
    ):
        limit, file = _parameter(paths, limit_key)
        if isinstance(limit, int):
            used, used_file = _parameter(paths, used_key)
            yield Usage(resource, limit_key, "host", used, limit, used_file, file)


def parse_threads(text: str, path: str = "loadavg") -> int:
    """The number of threads of the machine, from the text of /proc/loadavg. Raises: Malformed."""
    fields = text.split()
    if len(fields) < 4 or "/" not in fields[3] or not fields[3].split("/")[1].isdecimal():
        raise Malformed(path, text)
    return int(fields[3].split("/")[1])


def read_cgroup_usage(layout: CgroupLayout, controller: str, path: str) -> Iterator[Usage]:
    """Tasks ("pids") or memory ("memory") of a cgroup and of each ancestor with a limit, innermost first."""
    hierarchy = layout.holding(controller)
    if hierarchy is None:
        return
    for limit in ancestry(layout, controller, path):
        yield from limit_usage(hierarchy, controller, limit)


def limit_usage(hierarchy: Hierarchy, controller: str, limit: CgroupLimit) -> Iterator[Usage]:
    """One cgroup's limit as usage: pids.max, or memory.max and memory.high."""
    where = limit.cgroup.path
    name = limit.file.rsplit("/", 1)[-1]
    directory = limit.file.rsplit("/", 1)[0]
    if controller == "pids":
        used_from = f"{directory}/pids.current"
        yield Usage("tasks", name, where, limit.used, limit.limit, used_from, limit.file, limit.unit)
        return
    used = unreclaimable_bytes(hierarchy, directory, limit.used)
    yield Usage("memory", name, where, used, limit.limit, f"{directory}/memory.stat", limit.file, limit.unit)
    if hierarchy.is_v2:
        high = f"{directory}/memory.high"
        try:
            yield Usage("memory", "memory.high", where, used, read_limit(high), f"{directory}/memory.stat", high, limit.unit)
        except KernelError:
            return  # removed meanwhile, or without the controller: memory.max has said so


def unreclaimable_bytes(hierarchy: Hierarchy, directory: str, used: int | Unknown) -> int | Unknown:
    """What of the memory in use the kernel cannot give back without swap: without file cache (tmpfs is no cache) and
    reclaimable slab.

    Source: memory.stat (version 2: file, shmem, slab_reclaimable; version 1: total_cache, total_shmem).
    """
    if not isinstance(used, int):
        return used
    try:
        stat = read_counters(f"{directory}/memory.stat")
    except KernelError as error:
        return Unknown(str(error))
    prefix = "" if hierarchy.is_v2 else "total_"
    cache = stat.get(f"{prefix}file", stat.get(f"{prefix}cache", 0)) - stat.get(f"{prefix}shmem", 0)
    return max(used - max(cache, 0) - stat.get("slab_reclaimable", 0), 0)


def read_process_usage(paths: KernelPaths, process: ProcessIdentity) -> Iterator[Usage]:
    """What one process has in use of its own limits: open files, memory mappings, address space, locked memory.

    Sources: /proc/PID/{limits,fd,maps,status}, /proc/sys/vm/max_map_count.
    Raises: Gone if it ended; what may not be read is Unknown.
    """
    base = f"{paths.proc}/{process.pid}"
    where = f"process {process.pid}"
    limits = read_resource_limits(paths, process.pid)
    files = count_open_files(f"{base}/fd")
    nofile = limits.get("NOFILE")
    if nofile is not None:
        yield Usage("files", "RLIMIT_NOFILE", where, files, nofile.soft, f"{base}/fd", f"{base}/limits")
    limit, file = _parameter(paths, "vm.max_map_count")
    yield Usage("mappings", "vm.max_map_count", where, count_lines(f"{base}/maps"), limit, f"{base}/maps", file)
    status = parse_status(read_text(f"{base}/status", 16384))
    for resource, name, field in (("address space", "AS", "VmSize"), ("locked memory", "MEMLOCK", "VmLck")):
        bound = limits.get(name)
        if bound is not None and isinstance(bound.soft, int):
            used = status.get(field)
            in_use = used * 1024 if used is not None else Unknown(f"{base}/status has no {field}")
            yield Usage(resource, f"RLIMIT_{name}", where, in_use, bound.soft, f"{base}/status", f"{base}/limits")


def parse_status(text: str) -> dict[str, int]:
    """The fields of /proc/PID/status that begin with a number (kB where it gives kB), by name."""
    out = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            out[name] = int(words[0])
    return out


def count_open_files(directory: str) -> int | Unknown:
    """How many file descriptors /proc/PID/fd shows. Raises: Gone."""
    try:
        # Since Linux 6.2 the directory's size is their number; before it is 0.
        size = os.stat(directory).st_size
        return size or len(os.listdir(directory))
    except PermissionError as error:
        return Unknown(f"{directory}: {error.strerror}")
    except OSError as error:
        raise Gone(directory) from error


def count_lines(path: str) -> int | Unknown:
    """The number of lines of a file (/proc/PID/maps: one line a mapping)."""
    try:
        # 1,048,576 mappings, what Debian 13 allows, are about 100 MB of text: in pieces.
        with open(path, "rb", buffering=0) as file:
            return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 18), b""))
    except OSError as error:
        return Unknown(f"{path}: {error.strerror}")


def count_user_tasks(paths: KernelPaths, uid: int) -> int:
    """The threads of all processes whose real user is `uid`, as RLIMIT_NPROC counts them. About 15 µs a process.

    Source: /proc/*/status, Uid and Threads.
    Raises: InterfaceMissing, NotPermitted where /proc cannot be listed.
    """
    tasks = 0
    for pid in pids(paths):
        try:
            record = read_bytes(f"{paths.proc}/{pid}/status", 16384)
        except KernelError:
            continue
        if _first_number(record, b"\nUid:") == uid:
            tasks += _first_number(record, b"\nThreads:") or 1
    return tasks


def _first_number(record: bytes, field: bytes) -> int:
    at = record.find(field)
    words = record[at + len(field) : at + 64].split(None, 1) if at >= 0 else []
    return int(words[0]) if words and words[0].isdigit() else -1


def read_user_usage(paths: KernelPaths, process: ProcessIdentity) -> Iterator[Usage]:
    """What the process's user has in use over all its processes: tasks against RLIMIT_NPROC, inotify, namespaces.

    Looks through all of /proc (about 40 µs a process): for one process on request, never on the always-on path.
    Of processes that may not be read only the number of tasks is known: the rest is then a lower bound.
    """
    uid = process.uid
    where = f"user {uid}"
    tasks = instances = watches = 0
    hidden = False
    namespaces: dict[str, set[str]] = {}
    for pid in pids(paths):
        base = f"{paths.proc}/{pid}"
        try:
            status = parse_status(read_text(f"{base}/status", 16384))
        except KernelError:
            continue
        if status.get("Uid") != uid:
            continue
        tasks += status.get("Threads", 1)
        try:
            links = os.listdir(f"{base}/fd")
            for descriptor in links:
                if os.readlink(f"{base}/fd/{descriptor}") == "anon_inode:inotify":
                    instances += 1
                    watches += read_bytes(f"{base}/fdinfo/{descriptor}", 1 << 22).count(b"inotify wd:")
            for kind in os.listdir(f"{base}/ns"):
                namespaces.setdefault(kind, set()).add(os.readlink(f"{base}/ns/{kind}"))
        except PermissionError:
            hidden = True
        except (OSError, KernelError):
            continue  # it ended meanwhile, or closed the descriptor
    try:
        limit: Limit = read_resource_limits(paths, process.pid)["NPROC"].soft
    except KeyError:
        limit = Unknown("this kernel shows no such limit")
    exempt = "root is exempt" if uid == 0 else ""
    limits_file = f"{paths.proc}/{process.pid}/limits"
    yield Usage("tasks", "RLIMIT_NPROC", where, tasks, limit, f"{paths.proc}/*/status", limits_file, note=exempt)
    for resource, key, used in (
        ("inotify instances", "fs.inotify.max_user_instances", instances),
        ("inotify watches", "fs.inotify.max_user_watches", watches),
    ):
        bound, file = _parameter(paths, key)
        yield Usage(resource, key, where, used, bound, f"{paths.proc}/*/fdinfo", file, is_lower_bound=hidden)
    initial = {kind: _own_namespace(paths, kind) for kind in namespaces}
    for kind, key in (("user", "user.max_user_namespaces"), ("net", "user.max_net_namespaces"), ("mnt", "user.max_mnt_namespaces")):
        bound, file = _parameter(paths, key)
        if isinstance(bound, int):
            # What the kernel counts (ucounts) is shown nowhere: namespaces of the user's processes other than the reader's own.
            used = len(namespaces.get(kind, set()) - {initial.get(kind, "")})
            yield Usage(f"{kind} namespaces", key, where, used, bound, f"{paths.proc}/*/ns/{kind}", file, is_lower_bound=True)


def count_tasks_by_user(paths: KernelPaths) -> Counter[int]:
    """The threads of each real user of the machine. Looks through all of /proc, about 30 µs a process.

    Source: /proc/PID/status Uid, Threads. In a user namespace, or with hidepid, fewer are seen: a lower bound.
    """
    found: Counter[int] = Counter()
    for pid in pids(paths):
        try:
            status = parse_status(read_text(f"{paths.proc}/{pid}/status", 16384))
        except KernelError:
            continue
        if "Uid" in status:
            found[status["Uid"]] += status.get("Threads", 1)
    return found


def read_task_limits(paths: KernelPaths, processes: Iterable[ProcessIdentity]) -> Iterator[tuple[ProcessIdentity, Usage]]:
    """RLIMIT_NPROC of the users of some processes, each with how many tasks that user has; of several processes of a user, the one
    with the lowest limit. Root is exempt from it, and nothing is read where no other user has a limit.

    Sources: /proc/PID/limits of those processes, /proc/*/status.
    """
    lowest: dict[int, tuple[int, ProcessIdentity]] = {}
    for process in processes:
        if process.uid <= 0:
            continue
        try:
            soft = read_resource_limits(paths, process.pid)["NPROC"].soft
        except (KernelError, KeyError):
            continue
        if isinstance(soft, int) and (process.uid not in lowest or soft < lowest[process.uid][0]):
            lowest[process.uid] = (soft, process)
    if not lowest:
        return
    tasks = count_tasks_by_user(paths)
    for uid, (soft, process) in lowest.items():
        limits = f"{paths.proc}/{process.pid}/limits"
        yield process, Usage(
            "tasks", "RLIMIT_NPROC", f"user {uid}", tasks[uid], soft, f"{paths.proc}/*/status", limits, is_lower_bound=True
        )


def _own_namespace(paths: KernelPaths, kind: str) -> str:
    try:
        return os.readlink(f"{paths.proc}/self/ns/{kind}")
    except OSError:
        return ""


def read_port_usage(paths: KernelPaths, process: ProcessIdentity) -> Iterator[Usage]:
    """Ephemeral ports in use in the process's network namespace: towards the one destination that takes the most of them.

    A port may be used again towards another destination, so the busiest one is where EADDRNOTAVAIL comes first.
    Sources: /proc/PID/net/{tcp,tcp6}; /proc/sys/net/ipv4/ip_local_port_range, which is the reader's namespace's.
    """
    path = f"{paths.proc}/sys/net/ipv4/ip_local_port_range"
    limit: Limit
    low, high = 32768, 60999
    if not shares_network(paths, process.pid):
        limit = _UNKNOWN_NAMESPACE
    else:
        try:
            low, high = (int(word) for word in read_text(path, 4096).split())
            limit = high - low + 1
        except (KernelError, ValueError) as error:
            limit = Unknown(str(error))
    towards: Counter[str] = Counter()
    for name in ("tcp", "tcp6"):
        file = f"{paths.proc}/{process.pid}/net/{name}"
        try:
            towards.update(parse_destinations(read_text(file, 64 << 20), low, high))
        except KernelError as error:
            if name == "tcp":
                used = Unknown(str(error))
                yield Usage("ports", "net.ipv4.ip_local_port_range", "network namespace", used, limit, file, path)
                return
    busiest = max(towards.values(), default=0)
    yield Usage(
        "ports", "net.ipv4.ip_local_port_range", "network namespace", busiest, limit, f"{paths.proc}/{process.pid}/net/tcp", path
    )


def parse_destinations(text: str, low: int, high: int) -> Iterator[str]:
    """The remote address of each connection of /proc/net/tcp whose local port lies in the range; listening sockets left out."""
    for line in text.splitlines()[1:]:
        fields = line.split(None, 4)
        if len(fields) < 4 or fields[3] == "0A":
            continue
        try:
            port = int(fields[1].rsplit(":", 1)[1], 16)
        except (IndexError, ValueError):
            continue
        if low <= port <= high:
            yield fields[2]


def shares_network(paths: KernelPaths, pid: int) -> bool:
    """Whether the process is in the reader's network namespace; no where that may not be read."""
    try:
        return os.readlink(f"{paths.proc}/{pid}/ns/net") == os.readlink(f"{paths.proc}/self/ns/net")
    except OSError:
        return False
