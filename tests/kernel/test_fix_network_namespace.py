# SPDX-License-Identifier: Apache-2.0
"""net.core.somaxconn in a network namespace of our own: really set, really verified, undone; and set back by somebody else."""
from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from triaged.errors import FixFailed, FixStale
from triaged.fixers.fixer import Caller, Probe, RecordState
from triaged.fixers.local import LocalFixer
from triaged.fixers.network_namespace import in_network_namespace
from triaged.fixers.parameters import ParameterFixer
from triaged.fixers.records import Records
from triaged.fixers.verification import Managed, Refused, run_probe
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks
from triaged.model.fix import SetParameter

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a network namespace")
PATHS = KernelPaths()
SOMAXCONN = "/proc/sys/net/core/somaxconn"


class Namespace:
    """A network namespace with its loopback up, held by a sleeping process."""

    def __init__(self) -> None:
        script = "ip link set lo up && echo 16 > /proc/sys/net/core/somaxconn && echo ready && exec sleep 600"
        self.process = subprocess.Popen(["unshare", "-n", "sh", "-c", script], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.pid = self.process.pid
        self.start_ticks = read_start_ticks(PATHS, self.pid)

    def read(self) -> str:
        return in_network_namespace(PATHS, self.pid, self.start_ticks, lambda: Path(SOMAXCONN).read_text().strip())

    def write(self, value: str) -> None:
        in_network_namespace(PATHS, self.pid, self.start_ticks, lambda: Path(SOMAXCONN).write_text(value))

    def fix(self, value: str, seen: str = "16") -> SetParameter:
        return SetParameter("net.core.somaxconn", value, seen=seen, netns_pid=self.pid, netns_start_ticks=self.start_ticks)


def host_value() -> str:
    return Path(SOMAXCONN).read_text()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture
def fixer(tmp_path: Path) -> LocalFixer:
    return LocalFixer([ParameterFixer(PATHS)], Records(str(tmp_path / "state")), PATHS)


async def test_set_verified_by_listening_and_undone(namespace: Namespace, fixer: LocalFixer) -> None:
    host = host_value()
    outcome = await fixer.apply("f", namespace.fix("1024"), Caller(0))
    assert outcome.state is RecordState.VERIFIED
    assert outcome.verification == "verified: 18 connections waited to be accepted, 1024 may"
    assert namespace.read() == "1024"
    assert host_value() == host
    assert (await fixer.undo("f", "", Caller(0))).state is RecordState.UNDONE
    assert namespace.read() == "16"


async def test_the_test_fails_while_the_value_is_low(namespace: Namespace) -> None:
    arguments = {"backlog": 1024, "old": 16, "connections": 18, "netns_pid": namespace.pid}
    assert await run_probe(Probe("listen", "", arguments)) == Refused("the kernel cut the backlog to 16")
    namespace.write("1024")
    assert isinstance(await run_probe(Probe("listen", "", arguments)), Managed)


async def test_a_value_that_the_kernel_refuses_leaves_everything(namespace: Namespace, fixer: LocalFixer) -> None:
    # Ephemeral ports must not reach down to the privileged ones (net/ipv4/sysctl_net_ipv4.c): EINVAL.
    namespace.write("16")
    before = in_network_namespace(
        PATHS, namespace.pid, namespace.start_ticks, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text
    )
    fix = SetParameter("net.ipv4.ip_local_port_range", "80 65535", netns_pid=namespace.pid, netns_start_ticks=namespace.start_ticks)
    with pytest.raises(FixFailed, match="the kernel refused 80 65535: invalid argument; everything is as before"):
        await fixer.apply("f", fix, Caller(0))
    after = in_network_namespace(
        PATHS, namespace.pid, namespace.start_ticks, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text
    )
    assert before == after


async def test_somebody_who_resets_the_value_at_once_is_told(namespace: Namespace, fixer: LocalFixer) -> None:
    stop = threading.Event()

    def reset() -> None:
        while not stop.wait(0.05):
            if namespace.read() != "16":
                namespace.write("16")

    thread = threading.Thread(target=reset)
    thread.start()
    try:
        with pytest.raises(FixFailed, match=r"is 16 although 1024 was written|did not help"):
            await fixer.apply("f", namespace.fix("1024"), Caller(0))
    finally:
        stop.set()
        thread.join()
    assert namespace.read() == "16"
    assert [outcome.state for outcome in await fixer.outcomes()] == [RecordState.FAILED]


async def test_the_namespace_of_another_process_with_the_pid_is_not_entered(namespace: Namespace, fixer: LocalFixer) -> None:
    fix = SetParameter(
        "net.core.somaxconn", "1024", netns_pid=namespace.pid, netns_start_ticks=namespace.start_ticks + 1
    )
    with pytest.raises(FixStale, match=r"there is no net\.core\.somaxconn of the network namespace"):
        await fixer.apply("f", fix, Caller(0))
    assert namespace.read() == "16"


async def test_a_namespace_that_ended_ends_the_fix(namespace: Namespace, fixer: LocalFixer) -> None:
    await fixer.apply("f", namespace.fix("1024"), Caller(0))
    namespace.process.kill()
    namespace.process.wait()
    assert [outcome.state for outcome in await fixer.recover()] == [RecordState.ENDED]
