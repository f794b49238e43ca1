# SPDX-License-Identifier: Apache-2.0
"""triaged-helper: the only part of triaged that changes the host, and that reads seccomp filters.

The bus starts it as root; it leaves when it is idle.
"""
from __future__ import annotations

import argparse
import asyncio
import logging
import os
import pwd
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from triaged.bus import address as bus_address
from triaged.bus.connection import Connection
from triaged.bus.helper_service import HELPER_NAME, IDLE_S, HelperService
from triaged.bus.systemd1 import Systemd1
from triaged.data import find_data
from triaged.errors import TriagedError
from triaged.fixers.fixer import Fixer, TypeFixer
from triaged.fixers.local import LocalFixer
from triaged.fixers.moves import MoveFixer
from triaged.fixers.network_namespace import read_parameters
from triaged.fixers.parameters import ParameterFixer
from triaged.fixers.records import Records
from triaged.fixers.resource_limits import ResourceLimitFixer
from triaged.fixers.units import UnitPropertyFixer, UnitSettingFixer
from triaged.kernel.paths import KernelPaths
from triaged.kernel.seccomp_dump import read_filters
from triaged.kernel.trace_relay import TraceRelay
from triaged.model.filters import FilterDump

log = logging.getLogger("triaged.helper")

STATE_DIRECTORY = "/var/lib/triaged-helper"
RUNTIME_DIRECTORY = "/run/triaged-helper"  # open to everybody (0711): the sockets of traces
DAEMON_USER = "triaged"
EX_UNAVAILABLE = 69


def local_fixer(
    link: Callable[[], Connection | None],
    state_directory: str,
    kernel: KernelPaths,
    on_step: Callable[[str], None] = lambda step: None,
) -> LocalFixer:
    """A fixer that works in this process. Unit fixes go through the systemd on the bus of `link`, where there is one.

    `state_directory` must belong to this user alone. Await `recover` before the first fix.
    """
    systemd = Systemd1(link)
    fixers: list[TypeFixer] = [ParameterFixer(kernel), ResourceLimitFixer(kernel)]  # type: ignore[type-arg]
    if os.path.isdir(f"{kernel.run}/systemd/system"):  # sd_booted(3)
        fixers += [UnitPropertyFixer(systemd, kernel), UnitSettingFixer(systemd, kernel), MoveFixer(systemd, kernel)]
    return LocalFixer(fixers, Records(state_directory), kernel, on_step=on_step)


async def serve(
    address: str, state_directory: str, interface_xml: str, idle_s: float, on_step: Callable[[str], None] = lambda step: None,
    runtime_directory: str = RUNTIME_DIRECTORY,
) -> None:
    """Serves until idle or told to stop. Raises: TriagedError, OSError."""

    async def make(link: Callable[[], Connection | None]) -> Fixer:
        fixer = local_fixer(link, state_directory, KernelPaths(), on_step)
        for outcome in await fixer.recover():
            log.warning("fix %s of %s was interrupted: %s: %s", outcome.key, outcome.finding, outcome.state.value, outcome.message)
        return fixer

    def filters_of(pid: int, start_ticks: int) -> FilterDump:
        return read_filters(KernelPaths(), pid, start_ticks=start_ticks)

    def read_network(pid: int, start_ticks: int, parameters: Sequence[str]) -> Mapping[str, str]:
        return read_parameters(KernelPaths(), pid, start_ticks, parameters)

    service = HelperService(
        make, read_network, read_filters=filters_of, relay=TraceRelay(KernelPaths(), runtime_directory),
        interface_xml=interface_xml, uids=_allowed_uids(),
    )
    work = asyncio.ensure_future(service.serve(address, idle_s))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        log.info("told to stop")


def _allowed_uids() -> set[int]:
    uids = {0, os.geteuid()}
    try:
        uids.add(pwd.getpwnam(DAEMON_USER).pw_uid)
    except KeyError:
        log.info("there is no user %s; only root is served", DAEMON_USER)
    return uids


def main(arguments: Sequence[str] | None = None, on_step: Callable[[str], None] = lambda step: None) -> int:
    """The command. `on_step` is for tests that end the process between two steps."""
    what = "Applies and undoes fixes, and reads seccomp filters, for triaged, over D-Bus."
    parser = argparse.ArgumentParser(prog="triaged-helper", description=what)
    parser.add_argument("--bus", default="system", help="system, session, or an address (default: %(default)s)")
    parser.add_argument("--state-directory", default=STATE_DIRECTORY, help="where originals are kept (default: %(default)s)")
    parser.add_argument("--runtime-directory", default=RUNTIME_DIRECTORY, help="where traces are read (default: %(default)s)")
    parser.add_argument("--idle", type=float, default=IDLE_S, metavar="SECONDS", help="leave after that (default: %(default)g)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.umask(0o077)
    try:
        xml = os.path.join(os.path.dirname(find_data().interface_xml), f"{HELPER_NAME}.xml")
        address = bus_address.resolve(options.bus)
        asyncio.run(serve(address, options.state_directory, xml, options.idle, on_step, options.runtime_directory))
    except (TriagedError, OSError) as error:
        log.error("%s", error.shown() if isinstance(error, TriagedError) else error)
        return EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
