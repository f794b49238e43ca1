# SPDX-License-Identifier: Apache-2.0
"""The real bus service over findings that are made up, as a process of its own: run as `python service_process.py ADDRESS`.

TRIAGED_DBUS_LIBRARY chooses the D-Bus library. Commands come as lines of JSON on standard input, each is answered by one line on
standard output; lines that begin with "state" tell what the service said of the bus.
"""
from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from dataclasses import replace
from typing import Any

from triaged.bus import seam
from triaged.bus.connection import Limits
from triaged.bus.service import BusState, Change, Service
from triaged.data import find_data
from triaged.model.finding import Finding, State, finding_id
from triaged.model.fix import SetUnitProperty
from triaged.model.verdict import Evidence, Kind, Severity
from triaged.rules.rule import Rule
from triaged.sources.source import SourceState, SourceStatus

RULE = "cgroup.pids.limit-hit"
SECRET = "hunter2"


def make_finding(number: int, owner_uid: int | None = None) -> Finding:
    """A finding like those that triaged makes, about 1.5 kB; with a secret in its command line where it has an owner."""
    key = f"cgroup:/test.slice/unit-{number}.service"
    subject: dict[str, str | int] = {
        "type": "cgroup", "name": f"/test.slice/unit-{number}.service", "unit": f"unit-{number}.service", "slice": "test.slice",
    }
    if owner_uid is not None:
        command = f"pkg.test --token={SECRET}"
        subject = {"type": "process", "name": "/home/u/pkg.test", "pid": 77, "uid": owner_uid, "command": command}
    return Finding(
        finding_id(RULE, key), RULE, Kind.HIT, Severity.ERROR, State.OPEN, key, subject,
        f"{number} forks refused at 512 tasks" if owner_uid is None else f"pkg.test --token={SECRET} was refused a fork",
        1_700_000_000_000_000 + number, 1_700_000_000_000_000 + number, 1, owner_uid,
        (
            Evidence("pids.max", 512, "/sys/fs/cgroup/test.slice/pids.max", 1_700_000_000_000_000),
            Evidence("pids.current", 512, "/sys/fs/cgroup/test.slice/pids.current", 1_700_000_000_000_000),
            Evidence("limit set by", "unit property TasksMax=", "systemd", 1_700_000_000_000_000),
            Evidence("command", f"go test --token={SECRET}", "/proc/77/cmdline", 1_700_000_000_000_000, private=True),
        ),
        (SetUnitProperty(f"unit-{number}.service", "TasksMax", "1024", risk="none"),),
        ("man:systemd.resource-control(5)",),
    )


class Findings:
    """FindingsView and Host over a dictionary."""

    def __init__(self, count: int) -> None:
        self.kept = {finding.identifier: finding for finding in map(make_finding, range(count))}
        self.looks = 0
        self.look_fails = False

    def findings(self) -> list[Finding]:
        return list(self.kept.values())

    def find(self, identifier: str) -> Finding | None:
        return self.kept.get(identifier)

    def sources(self) -> list[SourceStatus]:
        return [SourceStatus("process-events", SourceState.DEGRADED, "no CAP_NET_ADMIN", "run as root", {"events": 7})]

    def rules(self) -> list[Rule]:
        def judge(_: Any) -> Any:
            raise NotImplementedError

        title = "The kernel refused fork()."
        return [Rule(RULE, object, Kind.HIT, Severity.ERROR, title, f"{title}\n\nMore – text.", judge)]

    def policies(self) -> list[str]:
        return ["ci-runner"]

    def dropped(self) -> dict[str, int]:
        return {"facts": 3}

    async def refresh(self) -> None:
        self.looks += 1
        await asyncio.sleep(0.05)
        if self.look_fails:
            raise RuntimeError(f"/home/u/private {SECRET}")


class LongestCallback:
    """The most processor time, in seconds, for which anything held up the loop; it does not grow with the machine's load."""

    def __init__(self) -> None:
        self.seconds = 0.0
        run = asyncio.events.Handle._run

        def measured(handle: asyncio.Handle) -> None:
            start = time.thread_time()
            run(handle)
            self.seconds = max(self.seconds, time.thread_time() - start)

        asyncio.events.Handle._run = measured  # type: ignore[method-assign]

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


LONGEST = LongestCallback()


def resident_bytes() -> int:
    """How much memory this process has in use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def obey(command: dict[str, Any], findings: Findings, service: Service) -> Any:
    """Carries out one command."""
    what = command["do"]
    if what == "open":
        first = len(findings.kept)
        for number in range(first, first + command.get("count", 1)):
            finding = make_finding(number, command.get("owner_uid"))
            findings.kept[finding.identifier] = finding
            service.announce(Change.OPENED, finding)
        return finding.identifier
    if what == "burst":
        finding = make_finding(0)
        for _ in range(command["count"]):
            service.announce(Change.OPENED, finding)
        return None
    if what in ("change", "close", "remove"):
        finding = findings.kept[command["id"]]
        now = replace(finding, count=finding.count + 1, last_seen_usec=finding.last_seen_usec + 1)
        if what == "close":
            now = replace(finding, state=State.RESOLVED, reason="no fork refused for an hour")
        findings.kept[finding.identifier] = now
        if what == "remove":
            del findings.kept[finding.identifier]
        service.announce({"change": Change.CHANGED, "close": Change.CLOSED, "remove": Change.REMOVED}[what], now)
        return None
    if what == "sources":
        return service.announce_manager("Sources")
    if what == "fail":
        findings.look_fails = True
        return None
    if what == "looks":
        return findings.looks
    if what == "status":
        return {
            "rss": resident_bytes(), "cpu_s": time.process_time(), "library": seam.LIBRARY, "dropped": dict(service.dropped),
            "fds": len(os.listdir("/proc/self/fd")), "longest_callback_s": LONGEST.take(),
        }
    raise ValueError(what)


async def main(address: str, count: int, stall_s: float) -> None:
    findings = Findings(count)

    def on_state(state: BusState, detail: str) -> None:
        print("state", json.dumps([state.value, detail]), flush=True)

    service = Service(
        findings, findings, interface_xml=find_data().interface_xml, version="0.0.test", address=address, on_state=on_state,
        limits=Limits(stall_s=stall_s),
    )
    running = asyncio.ensure_future(service.run())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await obey(json.loads(line), findings, service)), flush=True)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
