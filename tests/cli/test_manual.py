# SPDX-License-Identifier: Apache-2.0
import ast
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from triaged.__main__ import build_parser as build_daemon_parser
from triaged.cli.commands import COMMANDS

ROOT = pathlib.Path(__file__).parents[2]
MAN = ROOT / "docs" / "man"
PAGES = sorted(MAN.iterdir())


def words_of(page: str) -> str:
    """The page without roff's escapes of hyphens and fonts."""
    return re.sub(r"\\f[A-Z]", "", (MAN / page).read_text()).replace("\\-", "-")


def test_what_is_made_from_the_code_is_current() -> None:
    argv = [sys.executable, ROOT / "scripts" / "make-manual", "--check"]
    answer = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (answer.stdout, answer.stderr, answer.returncode) == ("", "", 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_groff_sets_the_page_without_a_warning(page: pathlib.Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    answer = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-z", page], capture_output=True, text=True, check=True)
    assert answer.stderr == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_nothing_wrong(page: pathlib.Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    answer = subprocess.run(["mandoc", "-T", "lint", page], capture_output=True, text=True, check=False)
    # A date in the page would be that of a build or lie; the version says how old it is.
    told = [line for line in answer.stdout.splitlines() if "missing date" not in line]
    assert told == []


def test_every_command_has_its_section() -> None:
    text = words_of("triagectl.1")
    assert all(f".SS {command.name}\n" in text for command in COMMANDS)


def test_every_option_of_the_daemon_is_in_its_page() -> None:
    text = words_of("triaged.8")
    options = [name for action in build_daemon_parser()._actions for name in action.option_strings if name not in ("-h", "--help")]
    assert options
    assert [name for name in options if name not in text] == []


def keys_read_in(module: str, ends_in: str = "") -> set[str]:
    """The first arguments of calls such as table.string("key") in the functions of a module whose names end so."""
    readers = {"string", "strings", "integer", "boolean", "choice", "table", "tables", "scalar_or_list"}
    tree = ast.parse((ROOT / "daemon" / "triaged" / module).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.endswith(ends_in)]
    return {
        call.args[0].value
        for function in functions for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in readers
        and call.args and isinstance(call.args[0], ast.Constant)
    }


@pytest.mark.parametrize(
    ("page", "module", "function", "some"),
    [
        ("triaged.toml.5", "config.py", "load_config", {"policies", "cap"}),
        ("triaged.workload.5", "config.py", "parse_workload", {"exe-names"}),
        ("triaged.policy.5", "policy.py", "", {"key", "why", "also-allowed-units"}),
    ],
)
def test_every_key_that_the_code_reads_is_in_the_page(page: str, module: str, function: str, some: set[str]) -> None:
    keys = keys_read_in(module, function)
    assert some <= keys
    text = words_of(page)
    assert [key for key in sorted(keys) if not re.search(rf"^(\.B|\.BR|\.SS) .*\b{re.escape(key)}\b", text, re.MULTILINE)] == []
