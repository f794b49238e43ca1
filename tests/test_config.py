# SPDX-License-Identifier: Apache-2.0
"""triaged.toml and workload definitions by the drop-in rules, on directories of our own and on the shipped ones."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from triaged.config import Config, ConfigPaths, LogLevel, config_paths, find_drop_ins, load_config, load_workloads
from triaged.data import DataPaths, find_data
from triaged.errors import ConfigError
from triaged.model.workload import match_workload


class Places:
    """The three directories, empty."""

    def __init__(self, root: Path) -> None:
        self.data, self.run, self.etc = root / "share", root / "run", root / "etc"
        for directory in (self.data, self.run, self.etc):
            directory.mkdir()
        data = DataPaths(
            str(self.data / "policies"), str(self.data / "workloads.d"), str(self.data / "triaged.toml"), str(self.data / "x.xml")
        )
        self.paths = ConfigPaths(data, str(self.run), str(self.etc))

    def write(self, directory: Path, name: str, text: str) -> Path:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def load(self, **environ: str) -> Config:
        return load_config(self.paths, environ)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def test_without_any_file_the_defaults_hold(places: Places) -> None:
    assert places.load() == Config()
    assert places.load().policies == ("default",)
    assert places.load().findings_cap == 2000


def test_the_shipped_file_says_what_the_defaults_are() -> None:
    shipped = load_config(config_paths({}), {})
    assert (shipped.policies, shipped.log_level, shipped.disabled_sources) == (("default",), LogLevel.INFO, ())
    assert (shipped.findings_cap, shipped.closed_kept_s) == (2000, 7 * 86400)


def test_the_main_file_is_the_last_one_found(places: Places) -> None:
    places.write(places.data, "triaged.toml", 'policies = ["a"]\nlog-level = "debug"\n')
    assert places.load().policies == ("a",)
    places.write(places.run, "triaged.toml", 'policies = ["b"]\n')
    assert places.load().policies == ("b",)
    places.write(places.etc, "triaged.toml", 'policies = ["c"]\n')
    assert places.load() == Config(policies=("c",), origin=(str(places.etc / "triaged.toml"),))


def test_drop_ins_are_read_in_the_order_of_their_names_whatever_their_directory(places: Places) -> None:
    places.write(places.etc, "triaged.toml", 'policies = ["main"]\nlog-level = "error"\n')
    places.write(places.etc, "triaged.toml.d/10-a.toml", 'policies = ["ten"]\n[findings]\ncap = 10\n')
    places.write(places.data, "triaged.toml.d/20-b.toml", 'policies = ["twenty"]\n[findings]\nclosed-kept-days = 1\n')
    config = places.load()
    assert config.policies == ("twenty",)
    assert config.log_level is LogLevel.ERROR
    assert (config.findings_cap, config.closed_kept_s) == (10, 86400)


def test_a_drop_in_masks_one_of_the_same_name(places: Places) -> None:
    places.write(places.data, "triaged.toml.d/x.toml", 'policies = ["data"]\n')
    places.write(places.run, "triaged.toml.d/x.toml", 'log-level = "debug"\n')
    assert (places.load().policies, places.load().log_level) == (("default",), LogLevel.DEBUG)
    (places.etc / "triaged.toml.d").mkdir()
    (places.etc / "triaged.toml.d/x.toml").symlink_to("/dev/null")
    assert places.load() == Config()


def test_an_empty_main_file_masks_the_installed_one(places: Places) -> None:
    places.write(places.data, "triaged.toml", 'policies = ["a"]\n')
    places.write(places.etc, "triaged.toml", "")
    assert places.load() == Config()


def test_hidden_files_and_other_suffixes_are_not_read(places: Places) -> None:
    for name in (".x.toml", "x.toml.bak", "x.toml~", "README"):
        places.write(places.etc, f"triaged.toml.d/{name}", "nonsense")
    assert places.load() == Config()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('\npolices = ["x"]', "{}:2: unknown key 'polices'; did you mean 'policies'?"),
        ("[findings]\n\ncap = 1.5", "{}:3: 'cap' must be an integer, not a float"),
        ("[findings]\ncap = 5", "{}:2: 'cap' is 5, at least 10 is needed"),
        ("[findings]\nkap = 5", "{}:2: unknown key 'kap'; did you mean 'cap'?"),
        ("[finding]\ncap = 50", "{}:1: unknown key 'finding'; did you mean 'findings'?"),
        ("findings = 5", "{}:1: 'findings' must be a table, not an integer"),
        ('log-level = "verbose"', "{}:1: 'log-level' has no value 'verbose'; known are debug, error, info, warning"),
        ('policies = [\n"default",\n"../../etc/passwd"]', "{}:3: '../../etc/passwd' is not the name of a policy"),
        ('policies = ["default",\n1]', "{}:2: 'policies' must hold strings, not an integer"),
        ('state-directory = "state"', "{}:1: 'state-directory' must be an absolute path"),
        ('disabled-sources = [\n"adit"]', "{}:2: there is no source 'adit'; did you mean 'audit'?"),
        ("a = 1\na = 2", "{}:2: not valid TOML: Cannot overwrite a value"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_the_nearest_name(places: Places, text: str, said: str) -> None:
    places.write(places.data, "triaged.toml", 'policies = ["default"]\n')
    path = places.write(places.etc, "triaged.toml.d/50-mine.toml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(places.paths, {}, ("audit", "parameters"))
    assert caught.value.shown() == said.format(path)


def test_a_directory_that_cannot_be_read_is_told(places: Places) -> None:
    (places.etc / "triaged.toml.d").symlink_to("triaged.toml.d")
    with pytest.raises(ConfigError, match=r"triaged\.toml\.d: cannot be read: Too many levels of symbolic links"):
        places.load()


def test_a_dangling_link_is_told(places: Places) -> None:
    (places.etc / "triaged.toml.d").mkdir()
    (places.etc / "triaged.toml.d/x.toml").symlink_to("/nonexistent/x.toml")
    with pytest.raises(ConfigError, match=r"x\.toml: cannot be read: No such file"):
        places.load()


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"STATE_DIRECTORY": "/var/lib/triaged:/other", "HOME": "/h"}, "/var/lib/triaged"),
        ({"XDG_STATE_HOME": "/xdg", "HOME": "/h"}, "/xdg/triaged"),
        ({"HOME": "/h"}, "/h/.local/state/triaged"),
        ({"XDG_STATE_HOME": "relative"}, ""),
        ({}, ""),
    ],
)
def test_findings_are_kept_where_systemd_or_the_user_s_home_says(places: Places, environ: dict[str, str], directory: str) -> None:
    assert places.load(**environ).state_directory == directory
    places.write(places.etc, "triaged.toml", 'state-directory = "/own"\n')
    assert places.load(**environ).state_directory == "/own"


def test_a_later_directory_wins_and_names_are_sorted(tmp_path: Path) -> None:
    for directory, names in (("a", "31"), ("b", "32")):
        (tmp_path / directory).mkdir()
        for name in names:
            (tmp_path / directory / f"{name}.toml").write_text("x = 1")
    found = find_drop_ins([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "missing")])
    assert [os.path.relpath(path, tmp_path) for path in found] == ["a/1.toml", "b/2.toml", "b/3.toml"]


# Workloads

WORKLOAD = 'name = "w"\ntitle = "W"\n\n[[process]]\nrole = "r"\nexe-names = ["x"]\n'


def test_the_shipped_workload_finds_the_go_command_and_its_test_binaries() -> None:
    definitions = load_workloads(config_paths({}))
    assert [definition.name for definition in definitions] == ["go-test"]

    def role(exe: str, *argv: str) -> str:
        found = match_workload(definitions, exe, argv)
        return found[1].role if found else ""

    assert role("/usr/local/go/bin/go", "go", "-C", "dir", "test", "./...") == "command"
    assert role("/usr/local/go/bin/go", "go", "build", "test") == ""
    assert role("/tmp/go-build1/b001/x.test", "/tmp/go-build1/b001/x.test", "-test.timeout=10m0s") == "test-binary"
    assert role("/tmp/x.test", "/tmp/x.test") == ""


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (WORKLOAD.replace('"r"', "1"), 5, "'role' must be a string, not an integer"),
        (WORKLOAD.replace('["x"]', "[]"), 6, "'exe-names' is empty"),
        (WORKLOAD + 'exe_names = ["y"]', 7, "unknown key 'exe_names'"),
        (WORKLOAD + 'package-from = "go"', 7, "'package-from' has no value 'go'"),
        (WORKLOAD.partition("[[")[0], 1, "no [[process]]"),
        (WORKLOAD.replace("name", "nome", 1), 1, "unknown key 'nome'"),
        (WORKLOAD.replace("name", "title", 1).replace("title = \"W\"\n", "", 1), 1, "'name' is missing"),
    ],
)
def test_a_mistake_in_a_workload_has_its_line(places: Places, text: str, line: int, message: str) -> None:
    path = places.write(places.etc, "workloads.d/w.toml", text)
    with pytest.raises(ConfigError) as caught:
        load_workloads(places.paths)
    assert (caught.value.path, caught.value.line) == (str(path), line)
    assert message in str(caught.value)


def test_a_workload_is_defined_once(places: Places) -> None:
    first = places.write(places.data, "workloads.d/a.toml", WORKLOAD)
    places.write(places.etc, "workloads.d/b.toml", WORKLOAD)
    with pytest.raises(ConfigError, match=rf"b\.toml:1: the workload 'w' is already defined in {first}"):
        load_workloads(places.paths)
    places.write(places.etc, "workloads.d/a.toml", WORKLOAD.replace('"w"', '"other"'))
    assert [definition.name for definition in load_workloads(places.paths)] == ["other", "w"]


# Data


def test_a_checkout_finds_its_own_files() -> None:
    data = find_data({})
    root = Path(__file__).resolve().parents[1]
    assert data.policies == str(root / "config/policies")
    assert Path(data.interface_xml).is_file()


def test_a_data_directory_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "org.triaged.Triage1.xml").touch()
    data = find_data({"TRIAGED_DATA_DIR": str(tmp_path)})
    assert data == DataPaths(
        str(tmp_path / "policies"), str(tmp_path / "workloads.d"), str(tmp_path / "triaged.toml"),
        str(tmp_path / "org.triaged.Triage1.xml"),
    )
    with pytest.raises(ConfigError, match="TRIAGED_DATA_DIR is not a directory"):
        find_data({"TRIAGED_DATA_DIR": str(tmp_path / "no")})


def test_an_installed_package_finds_the_installed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "share/triaged"
    (share / "policies").mkdir(parents=True)
    monkeypatch.setattr("triaged.data._checkout", lambda: "")
    monkeypatch.setattr("triaged.data.sys.prefix", str(tmp_path))
    assert find_data({}).config == str(share / "triaged.toml")
    assert find_data({}).interface_xml == "/usr/share/dbus-1/interfaces/org.triaged.Triage1.xml"


def test_data_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triaged.data._checkout", lambda: "")
    monkeypatch.setattr("triaged.data._SHARED", (str(tmp_path / "a"),))
    monkeypatch.setattr("triaged.data.sys.prefix", str(tmp_path))
    with pytest.raises(ConfigError, match="triaged's policies are not installed"):
        find_data({})
