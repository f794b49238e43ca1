# SPDX-License-Identifier: Apache-2.0
"""A scope of its own for a run, in a slice: systemd's transient unit, or a plain cgroup where there is no systemd.

The command is put there before it executes anything, so that what the kernel counts for the scope is the run's and nobody else's.

Facts that shape this module (systemd 252 and 257):
- systemd removes a scope's cgroup within milliseconds of its last process's end, and its counters with it: on kernels before 6.11
  refused forks are counted nowhere else, and whom the OOM killer ended is not known without them. So a process that does nothing
  (cat, which waits for the end of its input) keeps the scope until the counters have been read.
- StartTransientUnit returns when its job is queued. Whether that came to a good end is told by the signal JobRemoved, which goes to
  whoever queued the job, subscribed or not.
- systemd ends everything in a scope in which the OOM killer ended one process (OOMPolicy=stop is the default of scopes too). Nobody
  asked for that here: the run would end where it does not without a scope, with nothing but "Terminated". What does not know the
  property in a scope (249, by its manual) does not do that either.
- An ordinary user may ask polkit for a scope of the system's (org.freedesktop.systemd1.manage-units: that is as good as root).
  His own systemd moves his processes by asking the system's one, from wherever they are.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from triaged.errors import BusError, ConfigError, KernelError
from triaged.kernel.cgroup_layout import CgroupLayout, Hierarchy
from triaged.kernel.files import translated
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import parse_cgroups, read_cgroup_record

_SLICE = re.compile(r"[A-Za-z0-9:_.\\]+(?:-[A-Za-z0-9:_.\\]+)*\.slice")
_CONTROLLERS = ("cpu", "memory", "pids", "io")
_WAIT_S, _ASKED_S = 25.0, 100.0  # polkit may have to be started first
_KEEPER = "/bin/cat"
_ACCOUNTING = ("CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting")


def slice_path(name: str) -> str:
    """Where systemd puts a slice: a-b.slice is "a.slice/a-b.slice" (systemd.slice(5)). Raises: ConfigError for another name."""
    if not _SLICE.fullmatch(name) or len(name) > 240:
        raise ConfigError("--slice", 0, f"{name!r} is not the name of a slice", "give one as ci.slice or ci-nightly.slice")
    words = name.removesuffix(".slice").split("-")
    return "/".join("-".join(words[: count + 1]) + ".slice" for count in range(len(words)))


@dataclass(frozen=True)
class Scope:
    """The scope of a run. `directories` were made here, and are removed when it is over; none where systemd made it.

    `keeper` is a process that keeps it until then. `note` says where the scope is, if that is not what was asked for.
    """

    name: str
    directories: tuple[str, ...] = ()
    keeper: int = 0
    note: str = ""

    def close(self) -> str:
        """Removes what was made. Gives what could not be, and why; ""."""
        if self.keeper:
            _end(self.keeper)
        left = ""
        for directory in self.directories:
            is_scope = directory.endswith("/" + self.name)
            try:
                _remove(directory, 10 if is_scope else 1)
            except OSError as error:
                if is_scope:  # a slice may hold other runs
                    left = f"{directory} is left: {os.strerror(error.errno or 0).lower()} (does the command still have processes?)"
        return left


def enter_scope(paths: KernelPaths, layout: CgroupLayout, pid: int, slice_name: str, may_ask: bool = False) -> Scope:
    """Puts a process into a scope of its own in the slice. `may_ask`: a person may be asked for a password.

    Raises: ConfigError for a wrong name, BusError or KernelError where it cannot be done.
    """
    path = slice_path(slice_name)
    name = f"triagectl-run-{pid}-{os.urandom(3).hex()}.scope"  # what an earlier run left may still live, and pids are used again
    if os.path.isdir(f"{paths.run}/systemd/system"):
        return _ask_systemd(paths, pid, Scope(name), slice_name, may_ask)
    return _make_cgroups(paths, layout, pid, path, name)


def _ask_systemd(paths: KernelPaths, pid: int, scope: Scope, slice_name: str, may_ask: bool) -> Scope:
    from triaged.bus import address

    keeper = _start_keeper()
    pids = [pid, keeper] if keeper else [pid]
    scope = replace(scope, keeper=keeper)
    try:
        try:
            asyncio.run(_start_scope(address.system_bus(), pids, scope.name, slice_name, may_ask))
        except BusError as error:
            if os.geteuid() == 0:
                raise
            scope = replace(scope, note=_ask_own_systemd(paths, pids, scope.name, slice_name, error))
        if not any(path.endswith("/" + scope.name) for path in parse_cgroups(read_cgroup_record(paths, pid)).values()):
            raise BusError("", f"systemd made {scope.name}, and the command is not in it")
    except BaseException:
        scope.close()
        raise
    return scope


def _ask_own_systemd(paths: KernelPaths, pids: list[int], name: str, slice_name: str, refused: BusError) -> str:
    """Has the user's own systemd make the scope, where the system's refused; a note of where it is."""
    from triaged.bus import address

    uid = os.geteuid()
    # Not everybody has the variable who has a systemd: cron, sudo -u and services of the system do not set it.
    environment = {"XDG_RUNTIME_DIR": f"{paths.run}/user/{uid}", **os.environ}
    try:
        asyncio.run(_start_scope(address.session_bus(environment), pids, name, slice_name, False))
    except BusError as error:
        remedy = (
            f"as root: triagectl run --slice {slice_name} -- sudo -u \"$USER\" COMMAND; "
            "or loginctl enable-linger, for a systemd and slices of one's own"
        )
        raise BusError(error.name, f"systemd: {refused}; user {uid}'s own systemd: {error}", remedy) from error
    return f"the scope is in the {slice_name} of user {uid}'s own systemd (user@{uid}.service), not in the system's: {refused}"


async def _start_scope(bus: str, pids: list[int], name: str, slice_name: str, may_ask: bool) -> None:
    """A scope that has the processes. Raises: BusError where there is none."""
    from triaged.bus.connection import Connection, Message, connect
    from triaged.bus.seam import Variant
    from triaged.bus.systemd1 import MANAGER, SYSTEMD, SYSTEMD_PATH
    from triaged.bus.wire import Flag

    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(connection: Connection, message: Message) -> None:
        if message.header.member == "JobRemoved" and not ended.done():
            _, _, unit, result = message.values()
            if unit == name:
                ended.set_result(result)

    properties = [
        ["Description", Variant("s", "A command under triagectl run")], ["Slice", Variant("s", slice_name)],
        ["PIDs", Variant("au", pids)], ["CollectMode", Variant("s", "inactive-or-failed")],
        *([each, Variant("b", True)] for each in _ACCOUNTING),
    ]
    connection = await connect(bus, on_signal=hear)
    try:
        await connection.add_match(
            f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved',path='{SYSTEMD_PATH}',arg2='{name}'"
        )

        async def start(more: list[object]) -> None:
            await connection.call(
                SYSTEMD, SYSTEMD_PATH, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", [name, "fail", properties + more, []],
                timeout_s=_ASKED_S if may_ask else _WAIT_S, flags=Flag.ALLOW_INTERACTIVE_AUTHORIZATION if may_ask else Flag.NONE,
            )

        try:
            await start([["OOMPolicy", Variant("s", "continue")]])
        except BusError as error:
            if not error.name.endswith(".PropertyReadOnly"):  # unknown to it, that is
                raise
            await start([])
        result = await asyncio.wait_for(ended, _WAIT_S)
    except asyncio.TimeoutError:
        raise BusError("", f"systemd did not make {name} within {_WAIT_S:g} s") from None
    finally:
        await connection.close()
    if result != "done":
        raise BusError("", f"systemd could not start {name} ({result})", f"systemctl status {slice_name}")


def _start_keeper() -> int:
    """A process that waits for the end of this one; 0 where there is none to be had."""
    try:
        read, _write = os.pipe()  # the writing end is this process's until its own end
        try:
            return os.posix_spawn(
                _KEEPER, [_KEEPER], {}, setsid=True, setsigmask=(),  # not for it: Ctrl-C, and the end of the terminal
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                ],
            )
        finally:
            os.close(read)
    except OSError:
        return 0


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _make_cgroups(paths: KernelPaths, layout: CgroupLayout, pid: int, slice_directory: str, name: str) -> Scope:
    cgroups = parse_cgroups(read_cgroup_record(paths, pid))
    made: list[str] = []
    try:
        for hierarchy in layout.hierarchies:
            if _holds_something(hierarchy):
                made += _make_in(hierarchy, pid, cgroups, f"{slice_directory}/{name}")
    except OSError as error:
        Scope(name, tuple(reversed(made))).close()
        raise translated(error, error.filename or name) from error
    if not made:
        raise KernelError(paths.cgroup, "no cgroup hierarchy with controllers, and no systemd")
    return Scope(name, tuple(reversed(made)))


def _holds_something(hierarchy: Hierarchy) -> bool:
    return bool(hierarchy.controllers & frozenset(_CONTROLLERS))


def _make_in(hierarchy: Hierarchy, pid: int, cgroups: Mapping[str, str], path: str) -> list[str]:
    """Makes the cgroup below the process's own one, and moves it there; the directories that are new, outermost first."""
    directory = hierarchy.directory(cgroups.get(hierarchy.name, "/"))
    made = []
    for word in path.split("/"):
        if hierarchy.is_v2:
            _delegate(directory, hierarchy)
        directory = f"{directory}/{word}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
            made.append(directory)
    with open(f"{directory}/cgroup.procs", "w") as file:
        file.write(str(pid))
    return made


def _delegate(directory: str, hierarchy: Hierarchy) -> None:
    # A cgroup with processes cannot give controllers to its children (EBUSY): then the scope counts processes only by being there.
    for controller in sorted(hierarchy.controllers & frozenset(_CONTROLLERS)):
        with contextlib.suppress(OSError), open(f"{directory}/cgroup.subtree_control", "w") as file:
            file.write(f"+{controller}")


def _remove(directory: str, attempts: int) -> None:
    for attempt in range(1, attempts + 1):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
            if attempt == attempts:
                raise
            time.sleep(0.01)  # EBUSY for a moment after the last process has ended
        else:
            return
