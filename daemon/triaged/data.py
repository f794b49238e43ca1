# SPDX-License-Identifier: Apache-2.0
"""Where triaged's own installed files are: policies, workload definitions, the D-Bus contract, the vendor's triaged.toml."""
from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from triaged.errors import ConfigError

INTERFACE_XML = "org.triaged.Triage1.xml"
_INSTALLED_XML = "/usr/share/dbus-1/interfaces"
_SHARED = ("/usr/local/share/triaged", "/usr/share/triaged")


@dataclass(frozen=True)
class DataPaths:
    """The directories and files that came with triaged. Paths are absolute; a file may be missing, its reader says so."""

    policies: str
    workloads: str
    config: str
    interface_xml: str


def _checkout() -> str:
    """The root of the source tree that the package lies in, or ''."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return root if os.path.isfile(os.path.join(root, "dbus", INTERFACE_XML)) else ""


def _below(directory: str) -> DataPaths:
    beside = os.path.join(directory, INTERFACE_XML)
    installed = os.path.join(_INSTALLED_XML, INTERFACE_XML)
    return DataPaths(
        os.path.join(directory, "policies"),
        os.path.join(directory, "workloads.d"),
        os.path.join(directory, "triaged.toml"),
        beside if os.path.isfile(beside) else installed,
    )


def find_data(environ: Mapping[str, str] = os.environ) -> DataPaths:
    """Where the data is: $TRIAGED_DATA_DIR, the source checkout, PREFIX/share/triaged, /usr/share/triaged: the first that is there.

    Raises: ConfigError if there is none.
    """
    asked = environ.get("TRIAGED_DATA_DIR", "")
    if asked:
        if not os.path.isdir(asked):
            raise ConfigError(asked, 0, "TRIAGED_DATA_DIR is not a directory", "unset it or point it at share/triaged")
        return _below(os.path.abspath(asked))
    root = _checkout()
    if root:
        config = os.path.join(root, "config")
        return DataPaths(
            os.path.join(config, "policies"), os.path.join(config, "workloads.d"), os.path.join(config, "triaged.toml"),
            os.path.join(root, "dbus", INTERFACE_XML),
        )
    tried = [os.path.join(sys.prefix, "share", "triaged"), *_SHARED]
    for directory in tried:
        if os.path.isdir(os.path.join(directory, "policies")):
            return _below(directory)
    raise ConfigError(
        tried[-1], 0, f"triaged's policies are not installed (looked in {', '.join(tried)})",
        "install the package, or set TRIAGED_DATA_DIR",
    )
