# SPDX-License-Identifier: Apache-2.0
"""The installed data about what workloads need of system calls (config/seccomp), one file for each toolchain measured."""
from __future__ import annotations

import os
import re
import sys

from triaged.data import find_data
from triaged.errors import ConfigError
from triaged.seccomp.needs import Needs, needs_from
from triaged.toml_document import read_document

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def data_directory() -> str:
    """Where the data about seccomp is. Raises: ConfigError."""
    return os.path.join(os.path.dirname(find_data().policies), "seccomp")


def measured_toolchains() -> tuple[str, ...]:
    """The toolchains that data is there for, oldest first: go1.19, go1.27. Raises: ConfigError."""
    directory = data_directory()
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise ConfigError(directory, 0, f"cannot be read: {error.strerror}", "install the package anew") from error
    found = sorted(_minor(name) for name in names if re.fullmatch(r"go-1\.\d+\.toml", name))
    if not found:
        raise ConfigError(directory, 0, "has no measured needs (go-VERSION.toml)", "install the package anew")
    return tuple(f"go1.{minor}" for minor in found)


def nearest_toolchain(version: str) -> str:
    """The measured toolchain for a version ("go1.24.4"): its own, else the next newer one, else the newest. Raises: ConfigError."""
    measured = measured_toolchains()
    if not re.match(r"go1\.\d", version):
        return measured[-1]
    return next((name for name in measured if _minor(name) >= _minor(version)), measured[-1])


def read_needs(toolchain: str = "") -> Needs:
    """What workloads need, as measured with a toolchain (of `measured_toolchains`: go1.24, also 1.24 or go1.24.4; "": the newest).

    Raises: ConfigError.
    """
    measured = measured_toolchains()
    match = re.fullmatch(r"(?:go)?(1\.\d+)(?:\.\d+)?", toolchain)
    chosen = f"go{match[1]}" if match else toolchain or measured[-1]
    if chosen not in measured:
        raise ConfigError("--toolchain", 0, f"{chosen!r} was not measured", f"known are {', '.join(measured)}")
    directory = data_directory()
    path = os.path.join(directory, f"go-1.{_minor(chosen)}.toml")
    described = read_document(os.path.join(directory, "go-workloads.toml"))
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)  # made by a script: no person looks for its lines, and finding them takes most of the time
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(path, 0, f"cannot be read: {error}") from error
    return needs_from(table, described.data, path)


def workloads_of(needs: Needs, words: str) -> tuple[str, ...]:
    """The workloads that `--workload` names: words with commas, or "all". Raises: ConfigError."""
    if words == "all":
        return tuple(needs.workloads)
    names = tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
    unknown = [name for name in names if name not in needs.workloads]
    if unknown or not names:
        what = f"unknown workload {unknown[0]!r}" if unknown else "names no workload"
        raise ConfigError("--workload", 0, what, f"known are all, {', '.join(needs.workloads)}")
    return names


def read_runtime_calls(arch: str) -> dict[str, frozenset[str]]:
    """What container runtimes call between loading a profile and starting the command, by name. Empty where not measured.

    Raises: ConfigError.
    """
    path = os.path.join(data_directory(), "runtimes.toml")
    try:
        return {
            str(table["name"]): frozenset(str(call) for call in table["calls"])
            for table in read_document(path).data.get("runtime", ()) if table["arch"] == arch
        }
    except (KeyError, TypeError) as error:
        raise ConfigError(path, 0, f"is no description of runtimes: {error!r}") from error


def _minor(name: str) -> int:
    match = re.search(r"1\.(\d+)", name)
    return int(match[1]) if match else 0
