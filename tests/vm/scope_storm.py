# SPDX-License-Identifier: Apache-2.0
"""Runs inside the machine: makes transient scopes through systemd, in each of which a program runs out of memory at once.

python3 scope_storm.py FIRST LAST STEP: one connection to the bus for all of them, for systemd-run takes half a second each here.
Prints number and pid of each victim. What is made is what systemd-run --scope makes: the process first, then its program.
"""
from __future__ import annotations

import asyncio
import os
import sys

from triaged.bus.address import system_bus
from triaged.bus.connection import Connection, Message, connect
from triaged.bus.seam import Variant
from triaged.bus.systemd1 import MANAGER, SYSTEMD, SYSTEMD_PATH

LIMIT = 8 << 20


def waiting_child() -> tuple[int, int]:
    """A process that fills its memory as soon as the descriptor is written to."""
    read, write = os.pipe()
    # A shell that is there already: forking Python costs more than all the rest.
    pid = os.posix_spawn(
        "/bin/sh", ["sh", "-c", "read x; exec tail /dev/zero"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)]
    )
    os.close(read)
    return pid, write


async def main(first: int, last: int, step: int) -> None:
    done: dict[str, asyncio.Future[str]] = {}

    def hear(_: Connection, message: Message) -> None:
        if message.header.member == "JobRemoved":
            _, _, unit, result = message.values()
            if unit in done and not done[unit].done():
                done[unit].set_result(result)

    connection = await connect(system_bus(), on_signal=hear)
    await connection.add_match(f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'")
    for number in range(first, last + 1, step):
        name = f"storm-{number}.scope"
        done[name] = asyncio.get_running_loop().create_future()
        pid, go = waiting_child()
        properties = [
            ["PIDs", Variant("au", [pid])], ["CollectMode", Variant("s", "inactive-or-failed")],
            ["MemoryMax", Variant("t", LIMIT)], ["MemorySwapMax", Variant("t", 0)],
        ]
        words = [name, "fail", properties, []]
        await connection.call(SYSTEMD, SYSTEMD_PATH, MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", words, timeout_s=60)
        assert await asyncio.wait_for(done[name], 60) == "done", name
        del done[name]
        os.write(go, b"\n")
        os.close(go)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == -9, (name, status)
        print(number, pid)
    await connection.close()


asyncio.run(main(*map(int, sys.argv[1:])))
