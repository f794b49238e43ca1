# SPDX-License-Identifier: Apache-2.0
"""`triagectl check` against this machine and against policies made for the occasion."""
from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
MAPS = int(Path("/proc/sys/vm/max_map_count").read_text())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The shipped data, to which a test adds policies."""
    shutil.copytree(ROOT / "config", tmp_path / "data")
    return tmp_path / "data"


def policy(data: Path, name: str, *entries: str) -> None:
    (data / "policies" / f"{name}.toml").write_text(f'title = "{name}"\n' + "\n".join(entries))


def parameter(key: str, operator: str, value: str) -> str:
    return f'[[parameter]]\nkey = "{key}"\noperator = "{operator}"\nvalue = {value}\nwhy = "the test wants it"\n'


def triagectl(data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRIAGED_DATA_DIR": str(data)}
    command = [sys.executable, "-m", "triaged.cli", "check", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_every_item_that_passes_gives_exit_status_0(data: Path) -> None:
    policy(data, "mine", parameter("vm.max_map_count", "at-least", "1"))
    done = triagectl(data, "--policy", "mine")
    assert done.returncode == 0, done.stderr
    assert "ok" in done.stdout
    assert f"vm.max_map_count  {MAPS}" in done.stdout
    assert done.stdout.rstrip().endswith("policies mine: 1 pass")


def test_an_item_that_fails_says_where_the_value_comes_from_and_why(data: Path) -> None:
    policy(data, "mine", parameter("vm.max_map_count", "at-least", str(MAPS + 1)))
    done = triagectl(data, "--policy", "mine", "--json")
    assert done.returncode == 1
    item = json.loads(done.stdout)["items"][0]
    assert (item["outcome"], item["value"], item["why"]) == ("fail", str(MAPS), "the test wants it")
    assert "sysctl.d" in item["origin"] or ".conf:" in item["origin"]
    assert item["entry"].endswith("policies/mine.toml:2")


def test_two_policies_that_contradict_each_other_are_shown_and_not_decided(data: Path) -> None:
    policy(data, "more", parameter("vm.max_map_count", "at-least", str(MAPS + 1)))
    policy(data, "less", parameter("vm.max_map_count", "at-most", str(MAPS - 1)))
    done = triagectl(data, "--policy", "more", "--policy", "less")
    assert done.returncode == 2
    assert "CONFLICT" in done.stdout
    assert f"more wants at least {MAPS + 1}" in done.stdout
    assert f"less wants at most {MAPS - 1}" in done.stdout


def test_a_parameter_that_this_kernel_lacks_is_absent_and_no_failure(data: Path) -> None:
    policy(data, "mine", parameter("kernel.no_such_parameter", "at-least", "1"))
    done = triagectl(data, "--policy", "mine")
    assert done.returncode == 0
    assert "absent" in done.stdout


def test_a_resource_limit_is_judged_for_the_process_that_is_named(data: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = f'[[limit]]\nresource = "NOFILE"\nat-least = {hard + 1}\nworkloads = ["go-test"]\nwhy = "the test wants it"\n'
    policy(data, "mine", limit)
    assert triagectl(data, "--policy", "mine").returncode == 0
    assert triagectl(data, "--policy", "mine", "--strict").returncode == 2
    done = triagectl(data, "--policy", "mine", "--pid", str(os.getpid()))
    assert done.returncode == 1
    assert str(hard) in done.stdout


def test_junit_has_a_case_for_each_item(data: Path, tmp_path: Path) -> None:
    policy(
        data, "mine", parameter("vm.max_map_count", "at-least", "1"), parameter("kernel.pid_max", "at-least", "99999999"),
        parameter("kernel.no_such_parameter", "at-least", "1"),
    )
    assert triagectl(data, "--policy", "mine", "--junit", str(tmp_path / "out.xml")).returncode == 1
    suite = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["kernel.pid_max"]


def test_a_policy_that_is_not_there_is_said_with_the_nearest_name(data: Path) -> None:
    done = triagectl(data, "--policy", "ci-runer")
    assert done.returncode == 2
    assert "ci-runner" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_shipped_policy_is_listed_with_its_title(data: Path) -> None:
    done = triagectl(data, "--list")
    assert {line.split()[0] for line in done.stdout.splitlines()} >= {
        "default", "ci-runner", "go-test", "load-test", "mmap-heavy", "rootless-containers", "hardened",
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="making a network namespace needs root")
def test_network_parameters_are_those_of_the_process_that_is_named(data: Path) -> None:
    policy(data, "mine", parameter("net.core.somaxconn", "equals", "77"))
    code = "import sys; open('/proc/sys/net/core/somaxconn', 'w').write('77'); print(1, flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert triagectl(data, "--policy", "mine").returncode == 1
        done = triagectl(data, "--policy", "mine", "--pid", str(process.pid))
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        process.communicate()


@pytest.mark.parametrize(("word", "says"), [
    ("0", "'0' is not the number of a process"), ("-5", "is not the number of a process"), ("x", "'x' is not the number of"),
    ("4194000", "/proc/4194000: there is no such process"),
])  # fmt: skip
def test_what_is_no_process_is_said_to_be_none(data: Path, word: str, says: str) -> None:
    done = triagectl(data, f"--pid={word}")
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
