# SPDX-License-Identifier: Apache-2.0
"""The imports of every module, held against the table of the design: arrows point one way."""
from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import triaged

PACKAGE = Path(triaged.__file__).parent
TOP = frozenset({"__main__", "assembly", "daemon", "run", "cli", "explain", "helper", "inspect", "verdict"})
ANYTHING = frozenset({"*"})

# Part -> the parts of ours that it may import, besides itself and errors.
ALLOWED = {
    "__init__": frozenset(),
    "errors": frozenset(),
    "model": frozenset(),
    "data": frozenset(),
    "toml_document": frozenset(),
    "config": frozenset({"model", "data", "toml_document"}),
    "policy": frozenset({"model", "config", "toml_document"}),
    "kernel": frozenset({"model"}),
    "seccomp": frozenset({"model"}),
    "sources": frozenset({"kernel", "model", "seccomp"}),  # seccomp: the names of system calls in audit records
    "rules": frozenset({"model", "seccomp"}),
    "changes": frozenset({"model"}),
    "finding_files": frozenset({"model"}),
    "store": frozenset({"model", "changes", "finding_files"}),
    "publish": frozenset({"model", "store", "changes"}),
    "engine": frozenset({"model", "rules", "store"}),
    "fixers": frozenset({"kernel", "model"}),
    "bus": frozenset({"model", "rules", "store", "changes", "fixers", "engine", "data", "sources"}),  # sources: their status
    "check": frozenset({"kernel", "model", "policy"}),
    "workload_needs": frozenset({"data", "toml_document", "seccomp"}),
    "filter_inspection": frozenset({"kernel", "model", "seccomp", "sources", "workload_needs"}),
    "output": frozenset({"model"}),
    "inspection": frozenset({"kernel", "model"}),
    "tasks": frozenset({"sources", "model"}),
    **{part: ANYTHING for part in TOP},
}
D_BUS_LIBRARIES = {"dbus_next", "dbus_fast"}


def _part(module: str) -> str:
    words = module.split(".")
    return words[1] if len(words) > 1 else "__init__"


def _imports(path: Path) -> set[str]:
    """The modules that a file imports, absolute."""
    package = ["triaged", *path.relative_to(PACKAGE).parent.parts]
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from triaged import store" names a module, "from triaged.store import Store" does not
            out |= {f"{module}.{name.name}" for name in node.names} if module == "triaged" else {module}
    return out


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_stands_in_the_table() -> None:
    assert {_own_part(path) for path in _modules()} <= set(ALLOWED)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_the_table_allows(path: Path) -> None:
    part = _own_part(path)
    allowed = ALLOWED[part] | {part, "errors", "__init__", "__version__"}
    ours = {_part(module) for module in _imports(path) if module.split(".")[0] == "triaged"}
    assert "*" in allowed or ours <= allowed, f"{part} may not import {sorted(ours - allowed)}"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_bus_imports_a_d_bus_library(path: Path) -> None:
    assert _own_part(path) == "bus" or not {module.split(".")[0] for module in _imports(path)} & D_BUS_LIBRARIES


def test_the_check_sees_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    wrong = tmp_path / "model" / "wrong.py"
    wrong.write_text("from triaged.kernel.files import read_text\nfrom triaged import store\nimport os\n")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    assert _imports(wrong) == {"triaged.kernel.files", "triaged.store", "os"}
    with pytest.raises(AssertionError, match="model may not import"):
        test_a_module_imports_only_what_the_table_allows(wrong)


def test_the_helper_starts_without_what_only_the_daemon_needs() -> None:
    """The bus waits 25 s for it; sources and rules were half of its start."""
    program = "import sys, triaged.helper; print(*sorted(name for name in sys.modules if name.startswith('triaged.')))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    loaded = set(done.stdout.split())
    assert "triaged.fixers.local" in loaded
    assert not {name for name in loaded if name.startswith(("triaged.sources", "triaged.rules", "triaged.cli", "triaged.seccomp"))}
