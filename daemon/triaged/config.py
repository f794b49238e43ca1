# SPDX-License-Identifier: Apache-2.0
"""triaged.toml and the workload definitions, found by systemd's rules for drop-in files.

Directories, the later one winning: the installed data (/usr/share/triaged), /run/triaged, /etc/triaged. The main file is the
last one found; triaged.toml.d/*.toml of all directories are read after it in the order of their names, where a file masks one
of the same name in an earlier directory, and an empty one or a symbolic link to /dev/null masks it altogether.
"""
from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from triaged.data import DataPaths, find_data
from triaged.errors import ConfigError
from triaged.model.workload import PackageFrom, ProcessPattern, WorkloadDefinition
from triaged.toml_document import Layer, Table, nearest, read_document

SUFFIX = ".toml"


class LogLevel(str, Enum):
    """How much the daemon says about itself."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class ConfigPaths:
    """Where configuration is looked for: the installed data, then /run/triaged, then /etc/triaged."""

    data: DataPaths
    run: str = "/run/triaged"
    etc: str = "/etc/triaged"


@dataclass(frozen=True)
class Config:
    """What triaged.toml says. `state_directory` "" keeps findings in memory only. `origin` are the files that were read.

    `findings_cap` is the greatest number of findings kept; `closed_kept_s` for how many seconds a closed one is kept.
    """

    policies: tuple[str, ...] = ("default",)
    log_level: LogLevel = LogLevel.INFO
    state_directory: str = ""
    disabled_sources: tuple[str, ...] = ()
    findings_cap: int = 2000
    closed_kept_s: int = 7 * 86400
    origin: tuple[str, ...] = ()


def config_paths(environ: Mapping[str, str] = os.environ) -> ConfigPaths:
    """The usual places. Raises: ConfigError if the installed data is not found."""
    return ConfigPaths(find_data(environ))


def is_masked(path: str) -> bool:
    """Whether the file is a mask: empty, or a symbolic link to /dev/null. Raises: ConfigError if it cannot be looked at."""
    if os.path.realpath(path) == os.devnull:
        return True
    try:
        return os.stat(path).st_size == 0
    except OSError as error:
        raise ConfigError(path, 0, f"cannot be read: {error.strerror}") from error


def find_drop_ins(directories: Iterable[str], suffix: str = SUFFIX) -> list[str]:
    """The files of the directories by name, each from the last directory that has it, without the masked ones.

    Raises: ConfigError if a directory is there and cannot be listed.
    """
    found: dict[str, str] = {}
    for directory in directories:
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(directory, 0, f"cannot be read: {error.strerror}") from error
        for name in names:
            if name.endswith(suffix) and not name.startswith("."):
                found[name] = os.path.join(directory, name)
    return [found[name] for name in sorted(found) if not is_masked(found[name])]


def _default_state_directory(environ: Mapping[str, str]) -> str:
    # systemd gives StateDirectory= as a list with colons; triaged.service has one.
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return given
    home = environ.get("HOME", "")
    base = environ.get("XDG_STATE_HOME", "") or (os.path.join(home, ".local", "state") if home else "")
    return os.path.join(base, "triaged") if os.path.isabs(base) else ""


def load_config(
    paths: ConfigPaths, environ: Mapping[str, str] = os.environ, known_sources: Collection[str] = ()
) -> Config:
    """The configuration. `known_sources`, where given, are the names that `disabled-sources` may hold.

    Raises: ConfigError with the file and line of the first mistake.
    """
    candidates = [os.path.join(paths.etc, "triaged.toml"), os.path.join(paths.run, "triaged.toml"), paths.data.config]
    main = next((path for path in candidates if os.path.lexists(path)), "")
    files = [main] if main and not is_masked(main) else []
    drop_ins = [f"{paths.data.config}.d", os.path.join(paths.run, "triaged.toml.d"), os.path.join(paths.etc, "triaged.toml.d")]
    files += find_drop_ins(drop_ins)
    defaults = Config(state_directory=_default_state_directory(environ))
    if not files:
        return defaults
    documents = [read_document(path) for path in files]
    table = Table(tuple(Layer(document, (), document.data) for document in documents))
    table.expect("policies", "log-level", "state-directory", "disabled-sources", "findings")
    findings = table.table("findings").expect("cap", "closed-kept-days")
    config = Config(
        policies=table.strings("policies", defaults.policies),
        log_level=table.choice("log-level", LogLevel, defaults.log_level),
        state_directory=table.string("state-directory", defaults.state_directory),
        disabled_sources=table.strings("disabled-sources", ()),
        findings_cap=findings.integer("cap", defaults.findings_cap, at_least=10, at_most=100_000),
        closed_kept_s=findings.integer("closed-kept-days", defaults.closed_kept_s // 86400, at_least=0, at_most=3650) * 86400,
        origin=tuple(files),
    )
    for index, policy in enumerate(config.policies):
        if not policy or "/" in policy or policy.startswith("."):
            raise table.error(f"{policy!r} is not the name of a policy", "policies", index)
    if config.state_directory and not os.path.isabs(config.state_directory):
        raise table.error("'state-directory' must be an absolute path", "state-directory")
    for index, source in enumerate(config.disabled_sources):
        if known_sources and source not in known_sources:
            message = f"there is no source {source!r}"
            raise table.error(message, "disabled-sources", index, nearest(source, known_sources))
    return config


def parse_workload(layer: Layer) -> WorkloadDefinition:
    """The definition that a file of workloads.d holds. Raises: ConfigError."""
    table = Table((layer,)).expect("name", "title", "process")
    patterns = []
    for entry in table.tables("process"):
        process = Table((entry,)).expect("role", "exe-names", "subcommand", "options-with-value", "arguments", "package-from")
        pattern = ProcessPattern(
            role=process.string("role"),
            exe_names=process.strings("exe-names"),
            subcommand=process.string("subcommand", ""),
            options_with_value=process.strings("options-with-value", ()),
            arguments=process.strings("arguments", ()),
            package_from=process.choice("package-from", PackageFrom, PackageFrom.NONE),
        )
        if not pattern.exe_names:
            raise process.error("'exe-names' is empty: no process could match", "exe-names")
        patterns.append(pattern)
    definition = WorkloadDefinition(table.string("name"), table.string("title"), tuple(patterns), layer.document.path)
    if not patterns:
        raise table.error("no [[process]]: nothing could match")
    return definition


def load_workloads(paths: ConfigPaths) -> tuple[WorkloadDefinition, ...]:
    """All workload definitions, by file name. Raises: ConfigError with file and line."""
    directories = [paths.data.workloads, os.path.join(paths.run, "workloads.d"), os.path.join(paths.etc, "workloads.d")]
    definitions: dict[str, WorkloadDefinition] = {}
    for path in find_drop_ins(directories):
        document = read_document(path)
        layer = Layer(document, (), document.data)
        definition = parse_workload(layer)
        if definition.name in definitions:
            where = definitions[definition.name].origin
            raise layer.error(f"the workload {definition.name!r} is already defined in {where}", "name")
        definitions[definition.name] = definition
    return tuple(definitions.values())
