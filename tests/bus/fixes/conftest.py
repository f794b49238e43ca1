# SPDX-License-Identifier: Apache-2.0
"""A private system bus with the real polkitd on it, the helper started by the bus, and the service with findings to repair."""
from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import triaged
from triaged.bus.authority import Authority
from triaged.bus.connection import Connection, connect
from triaged.bus.helper_client import HelperFixer, HelperTraces
from triaged.bus.objects import Handler
from triaged.bus.repairs import FixEvent, Repairs
from triaged.bus.service import BusState, Service
from triaged.bus.traces import Traces
from triaged.data import find_data
from triaged.errors import BusError
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks
from triaged.model.finding import Finding, State
from triaged.model.fix import Fix, ManualStep, SetParameter, SetResourceLimit
from triaged.model.verdict import Kind, Severity

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = Path(triaged.__file__).parents[1]
POLKITD = next((path for path in ("/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd") if os.path.exists(path)), "")
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
USER = 65534

_CONFIG = """<busconfig><type>session</type><keep_umask/><listen>unix:abstract={socket}</listen><auth>EXTERNAL</auth>
<servicedir>{services}</servicedir>
<policy context="default"><allow user="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>"""


@dataclass
class Machine:
    """The bus, and what belongs to it."""

    directory: Path
    address: str
    environment: dict[str, str]
    polkitd: subprocess.Popen[bytes] | None = None

    @property
    def state(self) -> Path:
        return self.directory / "state"

    def as_user(self, uid: int, code: str) -> Any:
        """What a client of that user finds out: `code` is awaited with `connection` and sets `result`."""
        program = f"""
import asyncio, json, os
from triaged.bus.connection import connect, Limits
from triaged.bus.helper_service import HELPER, HELPER_NAME, HELPER_PATH
from triaged.bus.fix_values import fix_to_bus
from triaged.bus.seam import Variant, plain
from triaged.bus.wire import Flag
from triaged.errors import BusError
from triaged.model.fix import SetParameter, SetResourceLimit
SERVICE, PATH, MANAGER = "org.triaged.Triage1", "/org/triaged/Triage1", "org.triaged.Triage1.Manager"
os.setgroups([])
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
async def main():
    connection = await connect({self.address!r}, limits=Limits(request_bytes=2 << 20))
    async def manager(member, signature, *values, flags=Flag.NONE):
        try:
            return [plain(value) for value in await connection.call(SERVICE, PATH, MANAGER, member, signature, values, flags=flags)]
        except BusError as error:
            return [error.name, str(error)]
{textwrap.indent(textwrap.dedent(code), "    ")}
    await connection.close()
    print(json.dumps(result, default=list))
asyncio.run(main())
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, env=self.environment)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    async def as_user_async(self, uid: int, code: str) -> Any:
        """As `as_user`, while this loop goes on."""
        return await asyncio.to_thread(self.as_user, uid, code)

    def start_polkitd(self, rules: str = "") -> None:
        """polkitd with our actions only and these rules, in a mount namespace of its own."""
        (self.directory / "rules").mkdir(exist_ok=True)
        (self.directory / "rules/10-test.rules").write_text(rules)
        shutil.copy(ROOT / "dbus/org.triaged.policy", self.directory / "org.triaged.policy")
        script = (
            "mount -t tmpfs -o mode=755 none /usr/share/polkit-1/actions && "
            "mount -t tmpfs -o mode=755 none /etc/polkit-1/rules.d && "
            f"cp {self.directory}/org.triaged.policy /usr/share/polkit-1/actions/ && "
            f"cp {self.directory}/rules/*.rules /etc/polkit-1/rules.d/ && "
            "chmod 644 /usr/share/polkit-1/actions/* /etc/polkit-1/rules.d/* && "
            f"exec {POLKITD} --no-debug"
        )
        with (self.directory / "polkitd.log").open("wb") as log:
            self.polkitd = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], stdout=log, stderr=log,
                env={**self.environment, "DBUS_SYSTEM_BUS_ADDRESS": self.address},
            )  # fmt: skip
        asked = """
            from triaged.bus.connection import BUS_NAME, BUS_PATH
            import time
            for _ in range(100):
                name = "org.freedesktop.PolicyKit1"
                (result,) = await connection.call(BUS_NAME, BUS_PATH, BUS_NAME, "NameHasOwner", "s", [name])
                if result:
                    break
                time.sleep(0.1)
        """
        assert self.as_user(0, asked), (self.directory / "polkitd.log").read_text()

    def stop_polkitd(self) -> None:
        if self.polkitd is not None:
            self.polkitd.terminate()
            self.polkitd.wait(10)
            self.polkitd = None


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A bus that starts the helper; no polkitd yet."""
    if os.geteuid() != 0:
        pytest.skip("needs root to call as several users")
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed")
    socket = f"triaged-fixes-{os.getpid()}-{time.monotonic_ns()}"
    address = f"unix:abstract={socket}"
    services = tmp_path / "services"
    services.mkdir()
    # Every user must be able to reach a trace's socket; nobody else can reach what pytest makes.
    traces = tempfile.mkdtemp(prefix="triaged-traces-", dir="/tmp")
    os.chmod(traces, 0o711)
    places = f"--state-directory {tmp_path}/state --runtime-directory {traces}"
    command = f"{sys.executable} -m triaged.helper --bus {address} {places} --idle 1.5"
    (services / "org.triaged.Helper1.service").write_text(f"[D-BUS Service]\nName=org.triaged.Helper1\nExec={command}\n")
    config = tmp_path / "bus.conf"
    config.write_text(_CONFIG.format(socket=socket, services=services))
    python_path = os.pathsep.join([str(PACKAGE), *(path for path in sys.path if path)])
    environment = {**os.environ, "PYTHONPATH": python_path, "TRIAGED_DBUS_LIBRARY": "dbus-next"}
    bus = subprocess.Popen(
        ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-pid=1"], stdout=subprocess.PIPE, env=environment,
        start_new_session=True,
    )  # fmt: skip
    assert bus.stdout is not None
    bus.stdout.readline()
    made = Machine(tmp_path, address, environment)
    yield made
    made.stop_polkitd()
    bus.terminate()
    bus.wait(10)
    bus.stdout.close()
    shutil.rmtree(traces)


@pytest.fixture
def polkit(machine: Machine) -> Machine:
    """The machine with polkitd running."""
    if not POLKITD:
        pytest.skip("polkitd is not installed")
    machine.start_polkitd()
    return machine


@pytest.fixture
def limited() -> Iterator[int]:
    """The pid of a process of ours with a soft limit of 64 open files."""
    started = subprocess.Popen(["sh", "-c", "ulimit -S -n 64 && echo ready && exec sleep 600"], stdout=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == b"ready\n"
    yield started.pid
    started.kill()
    started.communicate()


def make_finding(identifier: str, fixes: tuple[Fix, ...], owner_uid: int | None = None) -> Finding:
    """An open finding with these fixes."""
    subject: dict[str, str | int] = {"type": "process", "name": "/usr/bin/x", "uid": owner_uid or 0}
    return Finding(identifier, "test.rule", Kind.RISK, Severity.WARNING, State.OPEN, identifier, subject, "low", 1, 1, 1, owner_uid,
                   (), fixes)  # fmt: skip


@dataclass
class Daemon:
    """The service under test, its findings (which are also its store), and what it told."""

    machine: Machine
    service: Any = None
    found: dict[str, Finding] = field(default_factory=dict)
    events: list[FixEvent] = field(default_factory=list)

    def findings(self) -> list[Finding]:
        return list(self.found.values())

    def find(self, identifier: str) -> Finding | None:
        return self.found.get(identifier)

    def close(self, identifier: str, state: State, reason: str) -> bool:
        from dataclasses import replace

        self.found[identifier] = replace(self.found[identifier], state=state, reason=reason)
        return True

    def reopen(self, identifier: str, reason: str = "") -> bool:
        return self.close(identifier, State.OPEN, reason)

    def sources(self) -> tuple[()]:
        return ()

    def rules(self) -> tuple[()]:
        return ()

    def policies(self) -> tuple[()]:
        return ()

    def dropped(self) -> dict[str, int]:
        return {}

    async def refresh(self) -> None:
        return None


def owner_of(pid: int) -> int | None:
    """The user of a process."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


@asynccontextmanager
async def on_the_bus(one: Daemon, methods_of: Callable[[Service], Mapping[str, Handler]]) -> AsyncIterator[Service]:
    """The service with what `one` has, and with these methods, as long as the context is open."""
    serving = asyncio.Event()
    service = Service(
        one, one, interface_xml=find_data().interface_xml, version="0", address=one.machine.address,
        on_state=lambda state, detail: serving.set() if state is BusState.SERVING else None,
    )  # fmt: skip
    service.provide(methods_of(service))
    running = asyncio.ensure_future(service.run())
    await asyncio.wait_for(serving.wait(), 10)
    yield service
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def serving(machine: Machine) -> Callable[[Callable[[Service], Mapping[str, Handler]]], AbstractAsyncContextManager[Service]]:
    """The service without findings: a context, to be given the methods that it is to have."""
    return lambda methods_of: on_the_bus(Daemon(machine), methods_of)


@pytest.fixture
async def daemon(machine: Machine, limited: int) -> AsyncIterator[Daemon]:
    """The service on the bus, with two findings about the limited process, one private to user 1, one manual."""
    ticks = read_start_ticks(KernelPaths(), limited)

    def fix(soft: int) -> SetResourceLimit:
        return SetResourceLimit(limited, ticks, "NOFILE", soft, HARD, seen=f"64:{HARD}")

    one = Daemon(machine)
    for finding in (
        make_finding("files-1", (fix(2000),)),
        make_finding("files-2", (fix(3000), SetParameter("kernel.pid_max", "4194304"))),
        make_finding("private", (fix(2500),), owner_uid=1),
        make_finding("manual", (ManualStep("container", "raise it in the container's options", (("docker", "run"),)),)),
    ):
        one.found[finding.identifier] = finding

    def methods_of(service: Service) -> Mapping[str, Handler]:
        def link() -> Connection | None:
            return service.connection

        repairs = Repairs(service.finding_for, one, HelperFixer(link), Authority(link, time_limit_s=5), one.events.append)
        traces = Traces(HelperTraces(link).start, owner_of, Authority(link, time_limit_s=5))
        return {**repairs.methods(), **traces.methods()}

    async with on_the_bus(one, methods_of) as one.service:
        yield one


@pytest.fixture
async def connection(machine: Machine) -> AsyncIterator[Connection]:
    """A connection of root's on the bus."""
    made = await connect(machine.address)
    yield made
    await made.close()


@pytest.fixture
def bus_error() -> type[BusError]:
    return BusError
