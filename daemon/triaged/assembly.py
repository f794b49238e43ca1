# SPDX-License-Identifier: Apache-2.0
"""The parts that look and judge, put together from a configuration: what the daemon runs and what `triagectl scan` runs once."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from triaged.config import Config, ConfigPaths, config_paths, load_config, load_workloads
from triaged.engine import Engine
from triaged.errors import KernelError
from triaged.kernel.files import read_text
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process_table import ProcessTable
from triaged.model.facts import Refusals
from triaged.model.filters import FilterDump
from triaged.model.process import ProcessIdentity
from triaged.policy import Policies, load_policies
from triaged.rules import RULES
from triaged.sources import SOURCE_NAMES, Parts, build_sources
from triaged.sources.failures import Failures
from triaged.sources.filter_reader import FilterReader
from triaged.sources.ledger import Ledger
from triaged.sources.source import Source, SourceState, SourceStatus
from triaged.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What the configuration files say, read once: the daemon's own settings, the policies in force, the workloads."""

    config: Config
    policies: Policies
    paths: ConfigPaths


@dataclass(frozen=True)
class Assembly:
    """The sources, and the engine that takes their facts. `table` is shared by the sources."""

    sources: tuple[Source, ...]
    engine: Engine
    table: ProcessTable


def load_settings(paths: ConfigPaths | None = None) -> Settings:
    """Reads the configuration. Raises: ConfigError with the file and line of the first mistake."""
    paths = paths or config_paths()
    config = load_config(paths, known_sources=SOURCE_NAMES)
    return Settings(config, load_policies(paths, config.policies), paths)


def read_boot_id(kernel: KernelPaths) -> str:
    """What tells this boot from others; '' where it cannot be read. Source: /proc/sys/kernel/random/boot_id."""
    try:
        return read_text(f"{kernel.proc}/sys/kernel/random/boot_id").strip()
    except KernelError:
        return ""


def assemble(settings: Settings, store: Store, kernel: KernelPaths, filters: FilterReader | None = None) -> Assembly:
    """Builds the sources that the configuration does not switch off, and the engine above `store`.

    `filters` reads the seccomp filters of processes (None: nobody does).

    Raises: ConfigError for a wrong workload definition.
    """
    table = ProcessTable(kernel, load_workloads(settings.paths))
    parts = Parts(
        paths=kernel,
        table=table,
        parameters=settings.policies.parameters,
        limits=settings.policies.limits,
        placements=settings.policies.placements,
        counters=store,
        ledger=Ledger(),
        judge_filters=_judge_filters,
        failures=Failures(),
        filters=filters,
    )
    sources = tuple(source for source in build_sources(parts) if source.name not in settings.config.disabled_sources)
    return Assembly(sources, Engine(RULES, store), table)


def _judge_filters(dump: FilterDump, process: ProcessIdentity) -> Refusals:
    from triaged.filter_inspection import refusals_of  # a megabyte that is not needed before a test has failed under a filter

    return refusals_of(dump, process)


def look_once(assembly: Assembly, store: Store, progress: Callable[[str], None] = lambda name: None) -> Iterator[SourceStatus]:
    """One pass over every source, judged by the same engine; yields how each source stood. Blocking.

    `progress` is told the name of each source before it looks.
    """
    for source in assembly.sources:
        progress(source.name)
        try:
            for fact in source.snapshot():
                assembly.engine.take(fact)
        except Exception as error:  # the border of a source: whatever it does, the others are looked at
            log.exception("source %s failed, going on without it", source.name)
            source.set_status(SourceState.UNAVAILABLE, f"{type(error).__name__}: {error}", "please report this")
        yield source.status
    store.flush()
