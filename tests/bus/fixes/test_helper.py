# SPDX-License-Identifier: Apache-2.0
"""triaged-helper as the bus starts it: whom it serves, what it takes, when it leaves, and what a killed one leaves behind."""
from __future__ import annotations

import asyncio
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from triaged.bus.connection import BUS_NAME, BUS_PATH, Connection
from triaged.bus.contract import read_interfaces
from triaged.bus.fix_values import fix_to_bus
from triaged.bus.helper_client import HelperFixer
from triaged.bus.helper_service import HELPER, HELPER_NAME, HELPER_PATH
from triaged.bus.seam import Variant
from triaged.errors import BusError, FixFailed, FixRefused, FixRepeated, FixStale, FixUnknown
from triaged.fixers.fixer import Caller, RecordState
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks
from triaged.model.fix import SetParameter, SetResourceLimit

INTERFACE = str(Path(__file__).resolve().parents[3] / "dbus/org.triaged.Helper1.xml")
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


async def helper_pid(connection: Connection) -> int:
    """The helper's process, 0 if none runs. It is asked of the bus, which does not start one for that."""
    try:
        (pid,) = await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "GetConnectionUnixProcessID", "s", [HELPER_NAME])
    except BusError:
        return 0
    return int(pid)


CALLER = Caller(1000, ":1.99")


def fix_for(pid: int, soft: int = 2000) -> SetResourceLimit:
    return SetResourceLimit(pid, read_start_ticks(KernelPaths(), pid), "NOFILE", soft, HARD, seen=f"64:{HARD}")


async def test_a_call_starts_it_and_what_it_applied_the_next_one_undoes(machine: Any, connection: Connection, limited: int) -> None:
    fixer = HelperFixer(lambda: connection)
    preview = await fixer.preview(fix_for(limited))
    assert (preview.old, preview.new, preview.obstacle) == (f"64:{HARD}", f"2000:{HARD}", "")
    outcome = await fixer.apply("f", fix_for(limited), CALLER)
    assert outcome.state is RecordState.VERIFIED
    assert outcome.caller == CALLER
    assert resource.prlimit(limited, resource.RLIMIT_NOFILE) == (2000, HARD)
    first = await helper_pid(connection)
    assert first
    for _ in range(100):
        if not await helper_pid(connection):
            break
        await asyncio.sleep(0.1)
    assert not await helper_pid(connection), "the helper did not leave"
    with pytest.raises(FixRepeated):
        await fixer.apply("f", fix_for(limited), CALLER)
    assert (await fixer.undo("f", "", CALLER)).state is RecordState.UNDONE
    assert resource.prlimit(limited, resource.RLIMIT_NOFILE) == (64, HARD)
    assert [outcome.state for outcome in await fixer.outcomes()] == [RecordState.UNDONE]


async def test_errors_keep_their_kind_on_their_way(machine: Any, connection: Connection, limited: int) -> None:
    fixer = HelperFixer(lambda: connection)
    with pytest.raises(FixUnknown):
        await fixer.undo("f", "", CALLER)
    with pytest.raises(FixRefused, match="not a parameter that triaged sets"):
        await fixer.apply("f", SetParameter("kernel.modprobe", "1"), CALLER)
    resource.prlimit(limited, resource.RLIMIT_NOFILE, (70, HARD))
    with pytest.raises(FixStale, match="is 70"):
        await fixer.apply("f", fix_for(limited), CALLER)


async def test_other_users_are_refused(machine: Any, limited: int) -> None:
    for call in ('"ListOutcomes"', '"Apply", "sa{sv}a{sv}", ["f", {"type": Variant("s", "set-parameter")}, {}]'):
        name, text = await machine.as_user_async(65534, f"""
            try:
                await connection.call(HELPER_NAME, HELPER_PATH, HELPER, {call})
                result = ["served", ""]
            except BusError as error:
                result = [error.name, str(error)]
        """)
        assert name == "org.freedesktop.DBus.Error.AccessDenied"
        assert text == "triaged-helper serves triaged and root only"


def parameter(**fields: Any) -> dict[str, Any]:
    """A fix of type set-parameter with these fields, whatever they are."""
    fields = {"parameter": "kernel.pid_max", "value": "4000", **fields}
    return {"type": Variant("s", "set-parameter"), **{name: Variant("s", value) for name, value in fields.items()}}


NO_RESOURCE = {"pid": Variant("u", 1), "start_ticks": Variant("t", 1), "resource": Variant("s", "X"), "soft": Variant("t", 1)}
NO_UNIT = {"unit": Variant("s", "../x.service"), "name": Variant("s", "TasksMax"), "value": Variant("s", "5")}


@pytest.mark.parametrize(("fix", "why"), [
    ({}, "unknown fix type"),
    ({"type": Variant("s", "run-command"), "argv": Variant("as", ["reboot"])}, "unknown fix type 'run-command'"),
    ({"type": Variant("s", "manual"), "name": Variant("s", "x"), "title": Variant("s", "x")}, "does not do this itself"),
    ({"type": Variant("s", "set-parameter"), "parameter": Variant("s", "kernel.pid_max")}, "value"),
    ({**parameter(), "value": Variant("u", 5)}, "is int, not str"),
    (parameter(parameter="../../etc/x"), "is not a parameter"),
    (parameter(parameter="kernel.pid_max\n"), "is not a parameter"),
    (parameter(parameter="kernel/core_pattern"), "is not a parameter"),
    (parameter(value="999999999"), "301 to 4194304"),
    (parameter(value="4000\nkernel.core_pattern = x"), "takes a number"),
    (parameter(path="/etc/passwd"), "has no 'path'"),
    ({"type": Variant("s", "set-resource-limit"), **NO_RESOURCE, "hard": Variant("t", 1)}, "is not a resource"),
    ({"type": Variant("s", "set-unit-property"), **NO_UNIT}, "is not the name of a|systemd is not running"),
])  # fmt: skip
async def test_what_is_not_on_the_closed_list_is_refused(
    machine: Any, connection: Connection, fix: dict[str, Any], why: str
) -> None:
    with pytest.raises(BusError, match=why) as caught:
        await connection.call(HELPER_NAME, HELPER_PATH, HELPER, "Apply", "sa{sv}a{sv}", ["f", fix, {}])
    assert caught.value.name == "org.triaged.Helper1.Error.FixRefused"
    assert not list(machine.state.glob("*.json"))


@pytest.mark.parametrize("options", [{"verify": Variant("b", False)}, {"uid": Variant("s", "0")}, {"uid": Variant("i", -1)}])
async def test_an_option_that_is_unknown_or_of_the_wrong_type_is_refused(
    machine: Any, connection: Connection, limited: int, options: dict[str, Any]
) -> None:
    with pytest.raises(BusError, match="option") as caught:
        await connection.call(
            HELPER_NAME, HELPER_PATH, HELPER, "Apply", "sa{sv}a{sv}", ["f", fix_to_bus(fix_for(limited)), options]
        )
    assert caught.value.name == "org.triaged.Helper1.Error.FixRefused"
    assert resource.prlimit(limited, resource.RLIMIT_NOFILE) == (64, HARD)


async def test_a_huge_argument_is_refused_and_the_helper_lives(machine: Any, connection: Connection) -> None:
    huge = {"type": Variant("s", "set-parameter"), "parameter": Variant("s", "x" * 1_000_000), "value": Variant("s", "5")}
    with pytest.raises(BusError) as caught:
        await connection.call(HELPER_NAME, HELPER_PATH, HELPER, "Apply", "sa{sv}a{sv}", ["f", huge, {}])
    assert caught.value.name == "org.freedesktop.DBus.Error.LimitsExceeded"
    assert await HelperFixer(lambda: connection).outcomes() == ()


async def test_introspection_is_the_contract(machine: Any, connection: Connection) -> None:
    (text,) = await connection.call(HELPER_NAME, HELPER_PATH, "org.freedesktop.DBus.Introspectable", "Introspect")
    contract = read_interfaces(INTERFACE)[HELPER]
    for name, method in contract.methods.items():
        assert f'<method name="{name}">' in text
        assert method.arguments >= 0
    assert contract.methods.keys() == {"Preview", "Apply", "Undo", "ListOutcomes", "DumpFilters", "ReadParameters", "StartTrace"}


async def test_parameters_of_another_network_namespace_are_read_there(machine: Any, connection: Connection) -> None:
    holder = await asyncio.create_subprocess_exec(
        "unshare", "--net", "sh", "-c", "echo 77 >/proc/sys/net/core/somaxconn; echo ready; exec sleep 60", stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"ready\n"
    helper, ticks = HelperFixer(lambda: connection), read_start_ticks(KernelPaths(), holder.pid)
    keys = ["net.core.somaxconn", "net.core.no_such_parameter"]
    assert await helper.read_parameters(holder.pid, ticks, keys) == {"net.core.somaxconn": "77"}
    for wrong in (["kernel.pid_max"], ["net.core.somaxconn"] * 201, ["net.../kernel/core_pattern"], ["net.core.somaxconn\n"]):
        with pytest.raises(FixRefused, match="parameters net"):
            await helper.read_parameters(holder.pid, ticks, wrong)
    with pytest.raises(FixFailed, match="gone"):
        await helper.read_parameters(holder.pid, ticks + 1, keys)
    holder.kill()
    await holder.wait()


KILLED = """
import os, signal, sys
from triaged.helper import main
sys.exit(main(sys.argv[2:], on_step=lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == sys.argv[1] else None))
"""


@pytest.mark.parametrize(("step", "state", "soft"), [
    ("saved", RecordState.FAILED, 64), ("changed", RecordState.APPLIED, 2000), ("applied", RecordState.APPLIED, 2000),
])  # fmt: skip
async def test_a_helper_that_is_killed_in_between_leaves_the_truth_to_the_next(
    machine: Any, connection: Connection, limited: int, step: str, state: RecordState, soft: int
) -> None:
    arguments = ["--bus", machine.address, "--state-directory", str(machine.state)]
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, step, *arguments, env=machine.environment)
    for _ in range(100):
        if await helper_pid(connection) == victim.pid:
            break
        await asyncio.sleep(0.1)
    fixer = HelperFixer(lambda: connection)
    # Another helper, which has looked, gives the answer.
    if state is RecordState.FAILED:
        with pytest.raises(FixFailed, match=r"did not answer.*it is failed, interrupted before anything was changed"):
            await fixer.apply("f", fix_for(limited), CALLER)
    else:
        assert (await fixer.apply("f", fix_for(limited), CALLER)).state is state
    assert await victim.wait() == -signal.SIGKILL
    (outcome,) = await fixer.outcomes()
    assert outcome.state is state
    assert "interrupted" in f"{outcome.message}; {outcome.verification}"
    assert resource.prlimit(limited, resource.RLIMIT_NOFILE) == (soft, HARD)
    if state is RecordState.APPLIED:
        await fixer.undo("f", "", CALLER)
        assert resource.prlimit(limited, resource.RLIMIT_NOFILE) == (64, HARD)


async def test_a_second_helper_does_not_take_the_name(machine: Any, connection: Connection) -> None:
    await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "RequestName", "su", [HELPER_NAME, 4])
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "triaged.helper", "--bus", machine.address, "--state-directory", str(machine.state),
        env=machine.environment, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, errors = await second.communicate()
    assert second.returncode == 69
    assert b"another process has the name" in errors
