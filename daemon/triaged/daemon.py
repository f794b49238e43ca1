# SPDX-License-Identifier: Apache-2.0
"""The only place that knows every part: it wires them, in one task group, and speaks with systemd."""
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import sdnotify

from triaged import __version__
from triaged.assembly import Assembly, Settings, assemble, load_settings, read_boot_id
from triaged.bus import address as bus_address
from triaged.bus.authority import Authority
from triaged.bus.client import can_own_name
from triaged.bus.explanations import Explanations
from triaged.bus.helper_client import HelperFilters, HelperFixer, HelperTraces
from triaged.bus.inspections import FilterAnswer, Inspections, Network
from triaged.bus.repairs import FixEvent, FixEventKind, Repairs
from triaged.bus.service import MANAGER, MANAGER_PATH, SERVICE_NAME, BusState, Service
from triaged.bus.service import Change as BusChange
from triaged.bus.traces import Traces
from triaged.bus.unit_witness import UnitWitness
from triaged.changes import Subscription, What
from triaged.errors import BusError, ConfigError, Gone, KernelError, TriagedError
from triaged.fixers.fixer import DeferredFixer, Fixer
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_process, read_start_ticks
from triaged.model.cause import Blamed
from triaged.model.facts import Fact
from triaged.model.finding import Finding, State
from triaged.model.quoting import shown
from triaged.model.usage import Usage
from triaged.policy import Policies, load_policies
from triaged.publish.alerts import Event, JournalPublisher
from triaged.publish.journal import Journal
from triaged.rules.rule import Rule
from triaged.sources.filter_reader import ChosenFilters, LocalFilters
from triaged.sources.source import SourceState, SourceStatus, numberless
from triaged.store import Store, StoreStatus
from triaged.tasks import FleetingThreads, TaskGroup, keep_watching, wait_ended

log = logging.getLogger(__name__)

STATUS_AT_MOST_EVERY_S = 1.0
READY_AT_THE_LATEST_S = 20.0
_ORIGINALS = "originals"


@dataclass(frozen=True)
class Options:
    """What the command line says. `state_directory` None: as configured; "": in memory only."""

    bus: str = "auto"
    state_directory: str | None = None
    print_findings: bool = False
    kernel: KernelPaths = field(default_factory=KernelPaths)


class Daemon:
    """The running daemon: what the configuration says now, the sources that follow from it, and who is told."""

    def __init__(self, options: Options, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        directory = settings.config.state_directory if options.state_directory is None else options.state_directory
        self.store = Store(
            directory,
            cap=settings.config.findings_cap,
            closed_kept_s=settings.config.closed_kept_s,
            boot=read_boot_id(options.kernel),
        )
        self._filters = ChosenFilters(LocalFilters(options.kernel))
        self._assembly = assemble(settings, self.store, options.kernel, self._filters)
        self._watching: list[asyncio.Task[None]] = []
        self._notifier = sdnotify.SystemdNotifier()
        if self._notifier.socket is not None:
            # Nothing waits for whoever should read this: the library would block the loop, and ignores what a full queue says.
            self._notifier.socket.setblocking(False)
        # Findings that are printed need not stand on standard error too where there is no journald.
        self._nowhere = open(os.devnull, "w") if options.print_findings else None  # noqa: SIM115 - closed at the end of run()
        self._journal = Journal(fallback=self._nowhere)
        self._alerts: JournalPublisher | None = None
        self._group: TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._service: Service | None = None
        self._witness: UnitWitness | None = None
        self._is_ready = False
        self._ready = asyncio.Event()
        self._bus_told = asyncio.Event()
        self._told: dict[str, tuple[SourceState, str]] = {}
        self._status_later: asyncio.TimerHandle | None = None
        self._reload_wanted = asyncio.Event()
        self._stop = asyncio.Event()

    # What the bus service asks for (bus.service.Host)

    def sources(self) -> Sequence[SourceStatus]:
        return [source.status for source in self._assembly.sources]

    def rules(self) -> Sequence[Rule]:
        return self._assembly.engine.rules

    def policies(self) -> Sequence[str]:
        return self._settings.policies.names

    def dropped(self) -> Mapping[str, int]:
        service = self._service.dropped if self._service is not None else {}
        suppressed = self._alerts.suppressed if self._alerts is not None else 0
        return {
            **service,
            "findings": self.store.dropped,
            "units-not-asked": self._witness.dropped if self._witness is not None else 0,
            "journal-entries": self._journal.counters["lost"] + (self._alerts.failures if self._alerts is not None else 0),
            "journal-entries-suppressed": suppressed,
        }

    async def refresh(self) -> None:
        """Looks again at what has no notification. Returns when its findings are in place."""
        loop = asyncio.get_running_loop()
        for source in self._assembly.sources:
            if source.is_cheap_to_read:
                facts: list[Fact] = await loop.run_in_executor(None, list, source.snapshot())
                for fact in facts:
                    self._assembly.engine.take(fact)
            else:
                source.refresh()
        await self.store.catch_up()

    # Life

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT. Raises: BusError where the bus that was asked for cannot be had at all."""
        self._loop = loop = asyncio.get_running_loop()
        loop.set_default_executor(FleetingThreads())
        for error in await loop.run_in_executor(None, self.store.load):
            log.warning("%s", error.shown())
        for conflict in self._settings.policies.conflicts:
            log.warning("%s", conflict.summary)
        self.store.on_status = self._store_changed
        self._alerts = JournalPublisher(self.store, self._journal)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_wanted.set)
        try:
            async with self._bus() as (address, how), TaskGroup() as group:
                self._group = group
                group.start(self.store.run(), "store")
                group.start(self._assembly.engine.run_expiry(), "expiry")
                group.start(self._alerts.run(), "journal")
                group.start(self._reloads(group), "reload")
                group.start(self._watchdog(), "watchdog")
                if address:
                    await self._serve(group, address)
                else:
                    self._bus_told.set()
                if self._options.print_findings:
                    group.start(self._print_all(self.store.subscribe("terminal"), address, how), "terminal")
                self._watch(group)
                group.start(self._tell_ready(), "ready")
                await self._stop.wait()
                self._notify("STOPPING=1", "STATUS=stopping")
                group.cancel()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
            self._group = None
            self.store.flush()
            self._journal.close()
            if self._nowhere is not None:
                self._nowhere.close()

    def _watch(self, group: TaskGroup) -> None:
        """Starts the sources."""
        for source in self._assembly.sources:
            source.on_status = self._source_changed
            self._watching.append(group.start(keep_watching(source, self._take), source.name))

    def _take(self, fact: Fact) -> None:
        if self._witness is not None:
            self._witness.take(fact)
        else:
            self._assembly.engine.take(fact)

    async def _serve(self, group: TaskGroup, address: str) -> None:
        service = Service(
            self.store,
            self,
            interface_xml=self._settings.paths.data.interface_xml,
            version=__version__,
            address=address,
            on_state=self._bus_changed,
        )
        self._service = service
        authority = Authority(lambda: service.connection)
        if address == bus_address.system_bus():
            self._filters.reader = HelperFilters(lambda: service.connection)
        fixer = await self._fixer(service, address)

        async def network(names: Sequence[str], pid: int) -> Network:
            return await self._network_of(fixer, names, pid)

        inspections = Inspections(self._check, network, self._inspect, self._inspect_filters, self._owner_of, authority)
        repairs = Repairs(service.finding_for, self.store, fixer, authority, self._fix_changed)
        explanations = Explanations(self._explain, self._owner_of, authority)
        traces = Traces(self._tracer(service, address), self._owner_of, authority)
        service.provide({**inspections.methods(), **explanations.methods(), **traces.methods(), **repairs.methods()})
        if address == bus_address.system_bus():  # elsewhere there is no systemd to ask
            self._witness = UnitWitness(lambda: service.connection, lambda fact: self._assembly.engine.take(fact))
            group.start(self._witness.run(), "units")
        group.start(service.run(), "bus")
        group.start(self._announce(service, self.store.subscribe("bus")), "announcements")

    def _tracer(self, service: Service, address: str) -> Callable[[int, int, int], Awaitable[str]]:
        if address == bus_address.system_bus():
            return HelperTraces(lambda: service.connection).start

        async def refuse(pid: int, start_ticks: int, uid: int) -> str:
            raise KernelError("tracefs", "triaged-helper, which may trace, is on the system bus only", "run triagectl as root")

        return refuse

    async def _fixer(self, service: Service, address: str) -> Fixer:
        """Who makes repairs: on the system bus the helper, which runs as root; elsewhere this process, as far as its user may."""
        if address == bus_address.system_bus():
            return HelperFixer(lambda: service.connection)
        fixer = DeferredFixer(self._local_fixer)
        kept = os.path.join(self.store.status.directory, _ORIGINALS) if self.store.status.directory else ""
        if await asyncio.get_running_loop().run_in_executor(None, _has_files, kept):
            # What the daemon before this one left half done is set right now, not when somebody asks for another fix.
            try:
                await fixer.made()
            except TriagedError as error:
                log.warning("fixes of an earlier run: %s", error.shown())
        return fixer

    async def _local_fixer(self) -> Fixer:
        from triaged.helper import local_fixer

        directory = self.store.status.directory or self._state_directory_for_one_run()
        fixer = local_fixer(lambda: None, os.path.join(directory, _ORIGINALS), self._options.kernel)
        for outcome in await fixer.recover():
            log.warning("fix %s was interrupted: %s: %s", outcome.key, outcome.state.value, outcome.message)
        return fixer

    def _state_directory_for_one_run(self) -> str:
        """Where originals are kept while findings are in memory only: removed with the rest at the end, undone or not."""
        import tempfile

        self._scratch = tempfile.TemporaryDirectory(prefix="triaged-originals-")
        return self._scratch.name

    def _fix_changed(self, event: FixEvent) -> None:
        if self._alerts is None or self._group is None:
            return
        kinds = {
            FixEventKind.APPLIED: Event.FIX_APPLIED, FixEventKind.UNDONE: Event.FIX_UNDONE, FixEventKind.FAILED: Event.FIX_FAILED,
        }
        who = "unknown" if event.caller.uid is None else str(event.caller.uid)
        if event.finding is not None:
            entry = self._alerts.fix_changed(kinds[event.kind], event.finding, event.key, who, event.message)
        else:
            fields = {"TRIAGED_FINDING": event.finding_id, "TRIAGED_FIX": event.key, "TRIAGED_CALLER": who}
            entry = self._alerts.send(kinds[event.kind], event.message, 5, fields)
        self._group.start(entry, "journal entry")

    # What is looked at on request (in a thread)

    def _policies(self, names: Sequence[str]) -> Policies:
        return load_policies(self._settings.paths, names) if names else self._settings.policies

    def _check(self, names: Sequence[str], pid: int, network: Network) -> Sequence[Mapping[str, str | int | float | bool]]:
        from triaged.check import check
        from triaged.kernel.parameters import ParameterReader

        here = ParameterReader(self._options.kernel)

        def read(key: str) -> str:
            if network is None or not key.startswith("net."):
                return here.read(key)
            if isinstance(network, str):
                raise KernelError(key, network)
            if key not in network:
                raise Gone(key)
            return network[key]

        where = "" if network is None else f"the network namespace of process {pid}"
        items = check(self._policies(names), self._options.kernel, pid=pid, read=read, network=where)
        return [item.as_row() for item in items]

    async def _network_of(self, fixer: Fixer, names: Sequence[str], pid: int) -> Network:
        from triaged.fixers.network_namespace import read_parameters
        from triaged.kernel.usage import shares_network

        kernel = self._options.kernel
        if shares_network(kernel, pid):
            return None
        policies = await asyncio.to_thread(self._policies, names)
        keys = [wanted.key for wanted in policies.parameters if wanted.key.startswith("net.")]
        try:
            ticks = read_start_ticks(kernel, pid)
            if isinstance(fixer, HelperFixer):
                return await fixer.read_parameters(pid, ticks, keys)
            return await asyncio.to_thread(read_parameters, kernel, pid, ticks, keys)
        except TriagedError as error:
            return str(error)

    def _inspect(self, pid: int) -> tuple[Mapping[str, str | int], Sequence[Mapping[str, str | int | float | bool]]]:
        from triaged.inspection import inspect_process

        inspection = inspect_process(self._options.kernel, self._assembly.table, pid)
        who, first = inspection.process, inspection.binding()
        process: dict[str, str | int] = {"Pid": pid, "Cgroup": inspection.cgroup, "Blind": "; ".join(inspection.blind)}
        if who is not None:
            process.update({"Comm": who.comm, "Exe": who.exe, "Uid": who.uid})
            if who.workload is not None:
                process.update({"Workload": who.workload.workload, "Role": who.workload.role, "Package": who.workload.package})
        return process, [_usage_row(usage, usage in first) for usage in inspection.usages]

    def _explain(
        self, what: str, error: str, pid: int, arguments: Sequence[int], path: str
    ) -> tuple[Sequence[Blamed], Sequence[tuple[str, str, str]]]:
        from triaged.explain.question import causes_and_others  # what only few ask for need not be in memory

        return causes_and_others(self._options.kernel, self._assembly.table, what, error, pid, arguments, path)

    async def _inspect_filters(self, pid: int, workloads: str, with_programs: bool) -> FilterAnswer:
        from triaged.filter_inspection import FilterInspector  # what only few ask for need not be in memory

        found = await FilterInspector(self._options.kernel, self._assembly.table, self._filters).inspect(pid, workloads)
        return found.process_row(), found.filter_rows(with_programs), found.call_rows(), found.assessment.sentences()

    def _owner_of(self, pid: int) -> int | None:
        try:
            return read_process(self._options.kernel, pid).uid
        except KernelError:
            return None

    async def _announce(self, service: Service, changes: Subscription) -> None:
        async for change in changes:
            try:
                if change.what is What.RESYNC:
                    service.resync()
                elif change.finding is not None:
                    service.announce(BusChange(change.what.value), change.finding)
            except Exception:  # the border of a publisher
                service.dropped["bus-announcements-failed"] += 1
                log.exception("a change could not be announced on the bus, going on without it; please report this")
            self._plan_status()

    @contextlib.asynccontextmanager
    async def _bus(self) -> AsyncIterator[tuple[str, str]]:
        """The address of the bus to serve on ("" for none) and busctl's option for it; ends the bus that it started."""
        asked = self._options.bus
        if asked == "none":
            yield "", ""
            return
        if asked == "auto":
            system = bus_address.system_bus()
            if await can_own_name(system):
                yield system, ""
                return
            asked = "private"
        if asked != "private":
            address = bus_address.resolve(asked)
            yield address, {"system": "", "session": "--user "}.get(asked, f"--address={shlex.quote(address)} ")
            return
        import tempfile  # a megabyte that a service on the system bus does not need

        with tempfile.TemporaryDirectory(prefix="triaged-") as directory:
            # Others may query it, as they may on the system bus; only this user may change what is in the directory.
            os.chmod(directory, 0o755)
            async with bus_address.PrivateBus(directory) as private:
                yield private.address, f"--address={private.address} "

    # What is told

    def _source_changed(self, status: SourceStatus) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # the look that found it out runs in a thread
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._source_changed, status)
            return
        before = self._told.get(status.name)
        now = (status.state, numberless(status.reason))
        if self._service is not None and status.state is not SourceState.STARTING:
            self._service.announce_manager("Sources")
        if now == before or status.state is SourceState.STARTING:
            return
        self._told[status.name] = now
        is_worse = status.state is not SourceState.ACTIVE
        if self._alerts is not None and self._group is not None and (is_worse or before is not None):
            entry = self._alerts.source_changed(status.name, status.state.value, status.reason, status.remedy, is_worse)
            self._group.start(entry, "journal entry")
        if all(source.status.state is not SourceState.STARTING for source in self._assembly.sources):
            self._ready.set()
        self._plan_status()

    def _store_changed(self, status: StoreStatus) -> None:
        if self._alerts is not None and self._group is not None:
            self._group.start(self._alerts.store_changed(status.is_saving, status.reason, status.remedy), "journal entry")
        self._plan_status()

    def _bus_changed(self, state: BusState, detail: str) -> None:
        self._bus_told.set()
        self._plan_status()

    async def _tell_ready(self) -> None:
        # A source may take its time (a first look at 10,000 cgroups); the unit's start does not wait for ever.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(self._ready.wait(), self._bus_told.wait()), READY_AT_THE_LATEST_S)
        self._is_ready = True
        self._notify("READY=1", f"STATUS={self.status_line()}")

    def status_line(self) -> str:
        """The daemon in a line, as `systemctl status` shows it."""
        states = [source.status.state for source in self._assembly.sources]
        short = [source.name for source in self._assembly.sources if source.status.state is SourceState.UNAVAILABLE]
        text = f"{self.store.open_count} open findings; {states.count(SourceState.ACTIVE)} of {len(states)} sources active"
        degraded = states.count(SourceState.DEGRADED)
        text += f", {degraded} degraded" if degraded else ""
        return text + (f", without {', '.join(short)}" if short else "")

    def _plan_status(self) -> None:
        if self._is_ready and self._status_later is None:
            self._status_later = asyncio.get_running_loop().call_later(STATUS_AT_MOST_EVERY_S, self._tell_status)

    def _tell_status(self) -> None:
        self._status_later = None
        self._notify(f"STATUS={self.status_line()}")

    def _notify(self, *assignments: str) -> None:
        self._notifier.notify("\n".join(assignments))

    async def _watchdog(self) -> None:
        """Tells systemd twice in each WatchdogSec= that the loop turns. Ends at once where nobody asked."""
        wanted = os.environ.get("WATCHDOG_USEC", "")
        if not wanted.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return
        while True:
            self._notify("WATCHDOG=1")
            await asyncio.sleep(int(wanted) / 2e6)

    # Reloading

    async def _reloads(self, group: TaskGroup) -> None:
        """At SIGHUP, reads the configuration again and starts the sources anew. A mistake in it leaves all as it was."""
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self._notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", "STATUS=reloading")
            try:
                settings = await asyncio.get_running_loop().run_in_executor(None, load_settings)
                assembly = assemble(settings, self.store, self._options.kernel, self._filters)
            except ConfigError as error:
                log.error("not reloaded, going on as before: %s", error.shown())
                self._notify("READY=1", f"STATUS={self.status_line()}; not reloaded: {error.shown()}")
                continue
            await self._replace(group, settings, assembly)
            log.info("reloaded: policies %s", ", ".join(settings.policies.names))
            self._notify("READY=1", f"STATUS={self.status_line()}")

    async def _replace(self, group: TaskGroup, settings: Settings, assembly: Assembly) -> None:
        for task in self._watching:
            task.cancel()
        await wait_ended(self._watching)
        self._watching.clear()
        self._settings, self._assembly = settings, assembly
        for conflict in settings.policies.conflicts:
            log.warning("%s", conflict.summary)
        wanted = {f"parameter:{requirement.key}" for requirement in settings.policies.parameters}
        for finding in self.store.findings():
            if finding.is_open and finding.subject_key.startswith("parameter:") and finding.subject_key not in wanted:
                self.store.close(finding.identifier, State.RESOLVED, "the policies in force no longer speak of it")
        self._watch(group)
        if self._service is not None:
            self._service.announce_manager("Sources", "Policies")

    # The terminal

    async def _print_all(self, changes: Subscription, address: str, how: str) -> None:
        """Prints until cancelled. Who reads has gone: then this process ends, as others in a pipe do."""
        try:
            with _when_unread(sys.stdout.fileno(), self._stop.set):
                await self._print(changes, address, how)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                log.warning("cannot print (%s), going on without it", error.strerror)
            # What is left in the buffer would fail again at the end.
            _forget_output()
            if isinstance(error, BrokenPipeError):
                self._stop.set()

    async def _print(self, changes: Subscription, address: str, how: str) -> None:
        """Prints how the sources stand, the line that queries the daemon, what is open already, and then each change."""
        await asyncio.wait_for(asyncio.gather(self._ready.wait(), self._bus_told.wait()), None)
        for status in self.sources():
            print(f"source   {status.name:18} {status.state.value}" + (f": {status.reason}" if status.reason else ""))
            if status.remedy:
                print(f"         {'':18} to do: {status.remedy}")
        if address:
            print(f"query    busctl {how}call {SERVICE_NAME} {MANAGER_PATH} {MANAGER} ListFindings 'a{{sv}}' 0")
            print(f"         triagectl --bus {shlex.quote(address)} list")
        shown_already = {finding.identifier for finding in self.store.findings() if finding.is_open}
        for finding in self.store.findings():
            if finding.is_open:
                self._print_finding("open", finding)
        print("watching; Ctrl-C ends it", flush=True)
        async for change in changes:
            if change.finding is None or change.what not in (What.OPENED, What.CLOSED):
                continue
            # What opened before the list above was printed waits in the queue too.
            is_news = change.what is What.CLOSED or change.finding.identifier not in shown_already
            shown_already.discard(change.finding.identifier)
            if is_news:
                self._print_finding(change.what.value, change.finding)

    @staticmethod
    def _print_finding(what: str, finding: Finding) -> None:
        at = time.strftime("%H:%M:%S", time.localtime(finding.last_seen_usec / 1e6))
        text = finding.reason if what == "closed" and finding.reason else finding.summary
        words = f"{at} {what:8} {finding.severity.word:8} {finding.kind.value:8}"
        print(f"{words} {finding.identifier}: {shown(text, 400)}", flush=True)


@contextlib.contextmanager
def _when_unread(descriptor: int, do: Callable[[], None]) -> Iterator[None]:
    """Does something as soon as nobody can read what is written to a pipe any more, not only when it is written to."""
    watch = select.epoll()
    loop = asyncio.get_running_loop()
    try:
        # No events asked for: those of an end are always told. What is no pipe, socket or terminal cannot be watched so.
        with contextlib.suppress(PermissionError):
            watch.register(descriptor, 0)
            loop.add_reader(watch.fileno(), do)
        yield
    finally:
        loop.remove_reader(watch.fileno())
        watch.close()


def _forget_output() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _has_files(directory: str) -> bool:
    return directory != "" and os.path.isdir(directory) and bool(os.listdir(directory))


def _usage_row(usage: Usage, binds_first: bool) -> Mapping[str, str | int | float | bool]:
    row: dict[str, str | int | float | bool] = {
        "Resource": usage.resource, "Limit": usage.limit_name, "Where": usage.where, "Unit": usage.unit, "BindsFirst": binds_first,
        "IsLowerBound": usage.is_lower_bound, "Note": usage.note,
    }
    for name, value in (("Used", usage.used), ("Of", usage.limit)):
        if isinstance(value, int):
            row[name] = value
        elif not usage.note:
            row["Note"] = str(value)
    if usage.share is not None:
        row["Share"] = usage.share
    return row


async def run(options: Options) -> None:
    """Runs the daemon until a signal ends it. Raises: ConfigError, BusError."""
    settings = load_settings()
    logging.getLogger().setLevel(settings.config.log_level.value.upper())
    try:
        await Daemon(options, settings).run()
    except BusError as error:
        raise BusError(error.name, f"no bus: {error}", error.remedy or "use --bus private, or --bus none") from error
