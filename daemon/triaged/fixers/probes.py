# SPDX-License-Identifier: Apache-2.0
"""The failing things themselves, each done in a process of its own: `python -I -S probes.py NAME ARGUMENTS-AS-JSON`.

Prints one JSON object: {"done": true} with "text", or {"done": false} with "text" (what the kernel said), or
{"cannot": why} where the probe itself could not be set up. "count" is how far it came, where that is a number.

This file is run by its path and imports only the standard library: a few ms instead of a package's import, and
nothing of the daemon's state. Everything that it makes ends with the process.
"""
import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
CLONE_FLAGS = {
    "cgroup": 0x02000000, "ipc": 0x08000000, "mnt": 0x00020000, "net": 0x40000000, "pid": 0x20000000, "time": 0x00000080,
    "user": 0x10000000, "uts": 0x04000000,
}  # fmt: skip
CLONE_VM = 0x100
LIFETIME_S = 30
# The same on every architecture since 5.1 (the common part of the tables begins at 424).
NR_IO_URING_SETUP, NR_CLONE3 = 425, 435
NR_BY_MACHINE = {
    "x86_64": {"perf_event_open": 298, "bpf": 321, "userfaultfd": 323, "io_setup": 206},
    "aarch64": {"perf_event_open": 241, "bpf": 280, "userfaultfd": 282, "io_setup": 0},
    "riscv64": {"perf_event_open": 241, "bpf": 280, "userfaultfd": 282, "io_setup": 0},
    "ppc64le": {"perf_event_open": 319, "bpf": 361, "userfaultfd": 364, "io_setup": 227},
    "s390x": {"perf_event_open": 331, "bpf": 351, "userfaultfd": 355, "io_setup": 243},
}


class Cannot(Exception):
    """The probe could not be set up."""


def become(uid: int) -> None:
    """Gives up root for the user, with the user's groups."""
    if os.geteuid() == uid:
        return
    try:
        import pwd

        entry = pwd.getpwuid(uid)
        gid, groups = entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid)
    except KeyError:
        gid, groups = uid, [uid]
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise Cannot(f"cannot become user {uid}: {error.strerror}") from error
    # setuid() makes the process undumpable; /proc/self/uid_map would then belong to root.
    libc.prctl(4, 1, 0, 0, 0)


def syscall(name: str, *arguments: Any) -> int:
    """The result of a system call by name. Raises OSError, Cannot."""
    number = NR_BY_MACHINE.get(os.uname().machine, {}).get(name)
    if number is None:
        raise Cannot(f"no number for {name} on {os.uname().machine}")
    return checked(libc.syscall(ctypes.c_long(number), *arguments))


def checked(result: int) -> int:
    """The result, or OSError where it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def allow_files(count: int) -> None:
    """Room for `count` descriptors in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 64
    if wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (OSError, ValueError) as error:
            raise Cannot(f"this process may not open {wanted} files: {error}") from error


def hold_tasks(count: int) -> int:
    """Starts up to `count` processes that only wait; how many there were when the kernel refused. They have ended by then."""
    # They share our memory and run libc's sleep() on a stack of their own: no copy of this interpreter is made. Should
    # somebody kill us before we kill them, they end by themselves.
    sleep = ctypes.cast(libc.sleep, ctypes.c_void_p)
    size = 16384
    stacks = mmap.mmap(-1, size * (count + 1))
    base = ctypes.addressof(ctypes.c_char.from_buffer(stacks))
    libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    held: list[int] = []
    try:
        while len(held) < count:
            pid = libc.clone(sleep, base + size * (len(held) + 1) - 64, CLONE_VM | signal.SIGCHLD, LIFETIME_S)
            if pid == -1:
                number = ctypes.get_errno()
                if number != errno.EAGAIN:
                    raise OSError(number, os.strerror(number))
                break
            held.append(pid)
        return len(held)
    finally:
        for pid in held:
            os.kill(pid, signal.SIGKILL)
        for pid in held:
            os.waitpid(pid, 0)


def user_namespace(uid: int) -> str:
    become(uid)
    gid = os.getegid()
    checked(libc.unshare(CLONE_FLAGS["user"]))
    # Where an LSM restricts it, the namespace is made but gives no capabilities: so use one.
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)
    checked(libc.unshare(CLONE_FLAGS["uts"]))
    socket.sethostname("probe")
    return f"user {uid} created a user namespace and was root in it"


def namespace(uid: int, kind: str) -> str:
    become(uid)
    checked(libc.unshare(CLONE_FLAGS[kind] | (0 if uid == 0 else CLONE_FLAGS["user"])))
    return f"user {uid} created a {kind} namespace"


def listen(backlog: int, old: int, connections: int, netns_pid: int = 0) -> str:
    if netns_pid:
        with open(f"/proc/{netns_pid}/ns/net") as file:
            checked(libc.setns(file.fileno(), CLONE_FLAGS["net"]))
    allow_files(connections)
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(backlog)
    # struct tcp_info of a listening socket: tcpi_sacked (offset 28) is the queue's limit, tcpi_unacked (24) its length.
    waiting, limit = struct.unpack_from("=II", server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)
    if limit <= old:
        raise OSError(0, f"the kernel cut the backlog to {limit}")
    if not connections:
        return f"the kernel gave a listening socket an accept queue of {limit}"
    clients: list[socket.socket] = []
    for _ in range(connections):
        client = socket.socket()
        client.settimeout(5)
        try:
            client.connect(server.getsockname())
        except TimeoutError:
            raise OSError(0, f"connection {len(clients) + 1} was not queued") from None
        except OSError as error:
            if error.errno == errno.ENETUNREACH:
                return f"the kernel gave a listening socket an accept queue of {limit}"
            raise
        clients.append(client)
    waiting, limit = struct.unpack_from("=II", server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)
    return f"{waiting} connections waited to be accepted, {limit} may"


def process_id(pid: int) -> str:
    # clone3 with set_tid asks for a certain process id; the kernel compares it with pid_max (EINVAL).
    numbers = (ctypes.c_int * 1)(pid)
    for candidate in range(pid, pid + 32):
        numbers[0] = candidate
        arguments = (ctypes.c_uint64 * 11)()
        arguments[4] = signal.SIGCHLD
        arguments[8] = ctypes.addressof(numbers)
        arguments[9] = 1
        try:
            child = checked(libc.syscall(ctypes.c_long(NR_CLONE3), arguments, ctypes.c_size_t(88)))
        except OSError as error:
            if error.errno == errno.EEXIST:  # somebody has this one: it is in range, then
                return f"the process id {candidate} is in use by now"
            if error.errno in (errno.ENOSYS, errno.EPERM):
                raise Cannot(f"clone3 with a certain process id: {error.strerror}") from error
            raise
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return f"a process got the id {candidate}"
    raise Cannot("no free process id to try")


def tasks(beyond: int, most: int) -> str:
    with open("/proc/loadavg") as file:
        now = int(file.read().split()[3].partition("/")[2])
    needed = beyond - now + 8
    if needed > most:
        raise Cannot(f"{needed} tasks more would be needed, {most} are allowed to a test")
    held = hold_tasks(max(needed, 1))
    if held < needed:
        raise OSError(errno.EAGAIN, f"fork was refused after {held} of {needed} tasks")
    return f"the host ran more than {beyond} tasks"


def open_files(uid: int, beyond: int, most: int) -> str:
    with open("/proc/sys/fs/file-nr") as file:
        allocated = int(file.read().split()[0])
    needed = max(beyond - allocated + 256, 1)  # the count is kept per CPU and may be off by some
    if needed > most:
        raise Cannot(f"{needed} files more would have to be opened, {most} are allowed to a test")
    allow_files(needed)
    become(uid)
    for _ in range(needed):
        os.open("/dev/null", os.O_RDONLY)
    return f"user {uid} opened {needed} files more than the host had open"


def open_files_under_limit(pid: int, files: int) -> str:
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    except (OSError, ValueError) as error:
        raise Cannot(f"this process may not take the limit {limits[0]}:{limits[1]}: {error}") from error
    used = len(os.listdir("/proc/self/fd"))
    for _ in range(files - used):
        os.open("/dev/null", os.O_RDONLY)
    return f"a process with the same limit held {files} files open"


def file_limit(limit: int) -> str:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except ValueError as error:  # Python's word for EPERM
        raise OSError(errno.EPERM, str(error)) from error
    return f"a process was allowed {limit} open files"


def map_regions(regions: int) -> str:
    with open("/proc/self/maps") as file:
        have = sum(1 for _ in file)
    size = mmap.PAGESIZE
    needed = regions - have
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # One range without access, every other page of which becomes readable: two regions per page of them, no memory.
    base = libc.mmap(None, (needed + 2) * size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if base == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    made = 1
    for page in range(1, needed, 2):
        if libc.mprotect(base + page * size, size, mmap.PROT_READ) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)} after {have + made} regions")
        made += 2
    return f"a process held {have + made} memory regions"


def inotify_instances(uid: int, instances: int) -> tuple[int, str]:
    allow_files(instances)
    become(uid)
    for made in range(instances):
        if libc.inotify_init1(0) == -1:
            number = ctypes.get_errno()
            if number != errno.EMFILE:
                raise OSError(number, os.strerror(number))
            return made, f"user {uid} made {made} inotify instances, then: {os.strerror(number)}"
    return instances, f"user {uid} made {instances} inotify instances"


def inotify_watches(uid: int, watches: int) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        for number in range(watches):
            file = os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY)
            os.fchmod(file, 0o644)  # whatever the umask is: who may not read a file may not watch it
            os.close(file)

        def place() -> str:
            become(uid)
            instance = checked(libc.inotify_init1(0))
            made = 0
            while made < watches and libc.inotify_add_watch(instance, f"{directory}/{made}".encode(), 2) != -1:
                made += 1
            return str(made)

        made = int(in_child(place))  # which gives up root, so that we can still tidy up
    return made, f"user {uid} placed {made} inotify watches" + ("" if made == watches else ", then was refused")


def fork_in_cgroup(directory: str, tasks: int, beyond: int) -> str:
    inside = directory
    # A cgroup with children may hold no processes itself (cgroup v2; a slice never does): then a child of our own, that counts too.
    if any(entry.is_dir() for entry in os.scandir(directory)):
        inside = f"{directory}/triaged-probe-{os.getpid()}"
        os.mkdir(inside)

    def hold() -> str:
        with open(f"{inside}/cgroup.procs", "w") as file:
            file.write("0")
        with open(f"{directory}/pids.current") as file:
            now = int(file.read())
        needed = max(beyond - now + 1, 1)
        if needed > tasks + 256:
            raise Cannot(f"the cgroup holds {now} tasks now; {needed} more would be needed")
        held = hold_tasks(needed)
        if held < needed:
            raise OSError(errno.EAGAIN, f"fork was refused after {held} of {needed} tasks more")
        return f"{directory} held {now + held} tasks, where {beyond} was the limit"

    try:
        return in_child(hold)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            raise Cannot(f"{directory} is gone") from error
        raise
    finally:
        if inside != directory:
            os.rmdir(inside)


def in_child(work: Callable[[], str]) -> str:
    """What `work` returns or raises, called in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer: dict[str, Any] = {"text": work()}
        except Cannot as error:
            answer = {"cannot": str(error)}
        except OSError as error:
            answer = {"errno": error.errno, "text": error.strerror}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        raise Cannot("the child was killed")
    answer = json.loads(text)
    if "cannot" in answer:
        raise Cannot(answer["cannot"])
    if "errno" in answer:
        raise OSError(answer["errno"], answer["text"])
    return str(answer["text"])


def aio_events(beyond: int) -> str:
    with open("/proc/sys/fs/aio-nr") as file:
        now = int(file.read())
    context = ctypes.c_ulong(0)
    needed = max(beyond - now + 1, 1)
    if needed > 1 << 20:
        raise Cannot(f"{needed} events more would be needed")
    syscall("io_setup", ctypes.c_uint(needed), ctypes.byref(context))
    return f"{needed} events more than the {now} in use were reserved"


def bind_port(uid: int, port: int) -> str:
    become(uid)
    server = socket.socket()
    try:
        server.bind(("127.0.0.1", port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # looked at after the permission
            return f"user {uid} may bind to port {port} (somebody holds it now)"
        raise
    return f"user {uid} bound to port {port}"


def ping_socket(uid: int) -> str:
    become(uid)
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    return f"user {uid} opened an ICMP socket"


def io_uring(uid: int) -> str:
    become(uid)
    parameters = (ctypes.c_uint32 * 30)()
    try:
        os.close(checked(libc.syscall(ctypes.c_long(NR_IO_URING_SETUP), ctypes.c_uint(4), parameters)))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise Cannot("this kernel has no io_uring") from error
        raise
    return f"user {uid} set up an io_uring"


def bpf(uid: int) -> str:
    become(uid)
    attributes = struct.pack("=IIII", 2, 4, 4, 1).ljust(72, b"\0")  # BPF_MAP_TYPE_ARRAY: key, value, entries
    os.close(syscall("bpf", ctypes.c_long(0), attributes, ctypes.c_uint(len(attributes))))
    return f"user {uid} created a BPF map"


def perf_event(uid: int, level: int) -> str:
    become(uid)
    # struct perf_event_attr: type SOFTWARE (1), size, config TASK_CLOCK (1), three more, exclude_kernel and exclude_hv (0x60).
    attributes = struct.pack("=IIQQQQQ", 1, 64, 1, 0, 0, 0, 0x60 if level > 1 else 0).ljust(64, b"\0")
    whose, cpu = (-1, 0) if level < 1 else (0, -1)
    os.close(syscall("perf_event_open", attributes, ctypes.c_int(whose), ctypes.c_int(cpu), ctypes.c_int(-1), ctypes.c_ulong(0)))
    what = "of a whole CPU" if level < 1 else "with kernel samples" if level == 1 else "of its own code"
    return f"user {uid} opened a perf event {what}"


def userfaultfd(uid: int) -> str:
    become(uid)
    os.close(syscall("userfaultfd", ctypes.c_int(0)))
    return f"user {uid} opened a userfaultfd"


def ptrace(uid: int) -> str:
    become(uid)
    # A sibling: not our child, not our ancestor.
    sibling = os.fork()
    if sibling == 0:
        signal.alarm(LIFETIME_S)
        while True:
            signal.pause()

    def attach() -> str:
        checked(libc.ptrace(16, sibling, None, None))
        os.waitpid(sibling, 0x40000000)  # __WALL
        libc.ptrace(17, sibling, None, None)
        return f"user {uid} attached to a process that was not its child"

    try:
        return in_child(attach)
    finally:
        os.kill(sibling, signal.SIGKILL)
        os.waitpid(sibling, 0)


def system_call(unit: str, calls: list[str]) -> str:
    numbers = {call: call_number(call) for call in calls}
    shown = command("/usr/bin/systemctl", "show", "--property=" + ",".join(FILTER_SETTINGS), unit)
    settings = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    settings["SystemCallErrorNumber"] = {"0": "", "2147483646": "kill"}.get(
        settings.get("SystemCallErrorNumber", ""), settings.get("SystemCallErrorNumber", "")
    )
    if settings["SystemCallErrorNumber"] in ("38", "ENOSYS"):
        raise Cannot(f"{unit} answers refused calls with ENOSYS, which cannot be told from a call that was let through")
    options = [f"--property={name}={value}" for name, value in settings.items() if value not in ("", "no", "~")]
    done = command(
        "/usr/bin/systemd-run", "--quiet", "--wait", "--pipe", "--collect", *options,
        sys.executable, "-I", "-S", __file__, "system-calls-here", json.dumps({"numbers": numbers}),
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if not lines or lines[0] != "ready":
        raise Cannot(f"the test could not run with the filters of {unit}: {(done.stderr.strip() or 'it was killed')[:200]}")
    if not lines[-1].startswith("{"):
        raise OSError(0, f"{lines[-1]} was killed by the filter")
    answer = json.loads(lines[-1])
    if not answer["done"]:
        raise OSError(0, answer["text"])
    return f"the filters of {unit} let {', '.join(calls)} through"


# What systemd loads seccomp filters for.
FILTER_SETTINGS = (
    "SystemCallFilter", "SystemCallErrorNumber", "SystemCallArchitectures", "RestrictNamespaces", "RestrictAddressFamilies",
    "RestrictRealtime", "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute", "ProtectKernelModules",
    "ProtectKernelLogs", "ProtectClock", "ProtectHostname", "PrivateDevices",
)  # fmt: skip


def command(*argv: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command of systemd's."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=LIFETIME_S / 2, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Cannot(f"{argv[0]}: {error}") from error


def call_number(name: str) -> int:
    """The number of a call on this machine, from libseccomp, which systemd's filters are made with."""
    try:
        resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name
    except OSError as error:
        raise Cannot("libseccomp is not installed") from error
    number: int = resolve(name.encode())
    if number < 0:
        raise Cannot(f"this machine has no call {name}")
    return number


def system_calls_here(numbers: dict[str, int]) -> str:
    """Tries calls without making them: a filter of our own answers TRACE, which is laxer than every refusal, and without a tracer
    that gives ENOSYS. So any other error is that of a filter loaded before. Calls whose first argument is not -1 are let through.
    """
    load, equal, give, number_at = 0x20, 0x15, 0x06, 0
    argument_at = 20 if sys.byteorder == "big" else 16  # the low half of the first one
    wanted = sorted(set(numbers.values()))
    program = [(load, 0, 0, number_at)]
    program += [(equal, len(wanted) - at, 0, number) for at, number in enumerate(wanted)]
    program += [(give, 0, 0, 0x7FFF0000), (load, 0, 0, argument_at), (equal, 0, 1, 0xFFFFFFFF), (give, 0, 0, 0x7FF00000),
                (give, 0, 0, 0x7FFF0000)]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP: SECCOMP_MODE_FILTER
        raise Cannot(f"no filter could be loaded: {os.strerror(ctypes.get_errno())}")
    print("ready", flush=True)
    for name, number in numbers.items():
        print(name, flush=True)
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), -1, -1, -1, -1, -1, -1)
        if result != -1 or ctypes.get_errno() != errno.ENOSYS:
            said = os.strerror(ctypes.get_errno()) if result == -1 else f"it returned {result}"
            raise OSError(0, f"{name}: {said.lower()}")
    return ", ".join(numbers)


PROBES: dict[str, Callable[..., "str | tuple[int, str]"]] = {
    "aio-events": aio_events,
    "bind-port": bind_port,
    "bpf": bpf,
    "file-limit": file_limit,
    "fork-in-cgroup": fork_in_cgroup,
    "inotify-instances": inotify_instances,
    "inotify-watches": inotify_watches,
    "io-uring": io_uring,
    "listen": listen,
    "map-regions": map_regions,
    "namespace": namespace,
    "open-files": open_files,
    "open-files-under-limit": open_files_under_limit,
    "perf-event": perf_event,
    "ping-socket": ping_socket,
    "process-id": process_id,
    "ptrace": ptrace,
    "system-call": system_call,
    "system-calls-here": system_calls_here,
    "tasks": tasks,
    "user-namespace": user_namespace,
    "userfaultfd": userfaultfd,
}


def answer_of(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Does the probe and says how it went."""
    try:
        result = PROBES[name](**arguments)
    except Cannot as error:
        return {"cannot": str(error)}
    except OSError as error:
        return {"done": False, "text": error.strerror or str(error)}
    if isinstance(result, tuple):
        return {"done": True, "count": result[0], "text": result[1]}
    return {"done": True, "text": result}


if __name__ == "__main__":
    signal.alarm(LIFETIME_S)
    print(json.dumps(answer_of(sys.argv[1], json.loads(sys.argv[2]))))
