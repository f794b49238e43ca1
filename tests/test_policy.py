# SPDX-License-Identifier: Apache-2.0
"""Policy files, how they combine, and the packs that are shipped."""
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triaged.config import ConfigPaths, config_paths, load_workloads
from triaged.data import DataPaths
from triaged.errors import ConfigError
from triaged.model.facts import ParameterFacts
from triaged.model.limit import Unknown
from triaged.model.requirement import Operator, ParameterRequirement
from triaged.model.verdict import Problem, Severity
from triaged.policy import Policy, combine, load_policies, load_policy, policy_names
from triaged.rules import parameters

SHIPPED = config_paths({})
PACKS = ("ci-runner", "default", "go-test", "hardened", "load-test", "mmap-heavy", "rootless-containers")
STOCK = sorted((Path(__file__).parent / "stock").glob("*.sysctl"))

# What issue and design ask the packs to cover between them.
COVERED = [
    "kernel.pid_max", "kernel.threads-max", "fs.file-max", "fs.nr_open", "fs.inotify.max_user_watches",
    "fs.inotify.max_user_instances", "fs.aio-max-nr", "vm.max_map_count", "vm.overcommit_memory", "vm.overcommit_ratio",
    "net.core.somaxconn", "net.ipv4.tcp_max_syn_backlog", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range", "net.ipv4.tcp_tw_reuse", "net.netfilter.nf_conntrack_max", "user.max_user_namespaces",
    "user.max_mnt_namespaces", "user.max_net_namespaces", "user.max_pid_namespaces", "user.max_ipc_namespaces",
    "user.max_uts_namespaces", "user.max_cgroup_namespaces", "user.max_time_namespaces", "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns", "kernel.yama.ptrace_scope", "kernel.perf_event_paranoid",
    "kernel.unprivileged_bpf_disabled", "kernel.io_uring_disabled", "kernel.keys.maxkeys", "kernel.keys.maxbytes",
    "kernel.core_pattern", "net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.lo.disable_ipv6", "fs.protected_hardlinks",
    "fs.protected_symlinks", "fs.protected_regular", "fs.protected_fifos",
]


@pytest.fixture
def paths(tmp_path: Path) -> ConfigPaths:
    for name in ("policies", "workloads.d", "run/policies.d", "etc/policies.d"):
        (tmp_path / name).mkdir(parents=True)
    data = DataPaths(
        str(tmp_path / "policies"), str(tmp_path / "workloads.d"), str(tmp_path / "triaged.toml"), str(tmp_path / "x.xml")
    )
    return ConfigPaths(data, str(tmp_path / "run"), str(tmp_path / "etc"))


ENTRY = """
[[parameter]]
key = "kernel.pid_max"
operator = "at-least"
value = 100
why = "because"
"""


def write(paths: ConfigPaths, text: str, name: str = "mine.toml") -> Path:
    path = Path(paths.data.policies) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def complaint(paths: ConfigPaths, name: str = "mine") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_policy(paths, name)
    return caught.value


# Reading


def test_an_entry_is_read_with_all_its_fields(paths: ConfigPaths) -> None:
    path = write(paths, 'title = "T"\n' + ENTRY + 'severity = "notice"\nworkloads = ["go-test"]\nreferences = ["man:x(5)"]\n'
                 'exists-on = "Debian"\nweakens = "a\\n  lot"\n')
    policy = load_policy(paths, "mine")
    assert policy.title == "T"
    assert policy.parameters == (
        ParameterRequirement(
            "mine", "kernel.pid_max", Operator.AT_LEAST, 100, Severity.NOTICE, "because", ("go-test",), ("man:x(5)",), "Debian",
            "a lot", f"{path}:3",
        ),
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "remedy"),
    [
        ('why = "because"', 'why = "because"\nseverty = "info"', 8, "unknown key 'severty'", "did you mean 'severity'?"),
        ('"at-least"', '"atleast"', 5, "'operator' has no value 'atleast'", "did you mean 'at-least'?"),
        ("value = 100", "value = true", 6, "'value' must be an integer or a string, not a boolean", ""),
        ("value = 100", 'value = "many"', 6, "'at-least' takes an integer, or a range such as \"32768 60999\"", ""),
        ("value = 100", "value = [\n  1,\n  2.5,\n]", 8, "'value' must be an integer or a string, not a float", ""),
        ("value = 100", "", 3, "'value' is missing", ""),
        ('"kernel.pid_max"', '"pid_max"', 4, "'pid_max' is not the dotted name of a kernel parameter", ""),
        ('"kernel.pid_max"', '"kernel..%2fpid_max"', 4, "'kernel..%2fpid_max' is not the dotted name of a kernel parameter", ""),
        ('"because"', '""', 7, "'why' is empty: a wish without a reason helps nobody", ""),
        ('"because"', "3", 7, "'why' must be a string, not an integer", ""),
        ("[[parameter]]", "[[paramter]]", 3, "unknown key 'paramter'", "did you mean 'parameter'?"),
        ("key =", "kye =", 4, "unknown key 'kye'", "did you mean 'key'?"),
        ("operator =", "operater =", 5, "unknown key 'operater'", "did you mean 'operator'?"),
        ("value =", "values =", 6, "unknown key 'values'", "did you mean 'value'?"),
        ("why =", "wy =", 7, "unknown key 'wy'", "did you mean 'why'?"),
        ("[[parameter]]", "[parameter]", 3, "'parameter' must be an array of tables ([[parameter]]), not a table", ""),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_nearest_name(
    paths: ConfigPaths, old: str, new: str, line: int, message: str, remedy: str
) -> None:
    path = write(paths, 'title = "T"\n' + ENTRY.replace(old, new, 1))
    error = complaint(paths)
    assert (error.path, error.line) == (str(path), line)
    assert str(error) == f"{path}:{line}: {message}"
    assert error.remedy == remedy


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('title = "T"\n[[limit]]\nresource = "NOFILES"\nat-least = 1\nwhy = "w"\nworkloads = ["a"]', 3, "no resource 'NOFILES'"),
        ('title = "T"\n[[limit]]\nresource = "NOFILE"\nat-least = -1\nwhy = "w"\nworkloads = ["a"]', 4, "at least 0 is needed"),
        ('title = "T"\n[[limit]]\nresource = "NOFILE"\nat-least = 1\nwhy = "w"\nworkloads = []', 6, "'workloads' is empty"),
        ('title = "T"\n[[placement]]\nworkloads = ["a"]\nwhy = "w"\nforbidden-slices = "x"', 5, "must be an array of strings"),
        ('title = "T"\n[[placement]]\nworkloads = ["a"]\nwhy = "w"\nforbidden-slices = ["x",\n 1]', 6, "must hold strings"),
        (ENTRY, 1, "'title' is missing"),
        ('tilte = "T"\n' + ENTRY, 1, "unknown key 'tilte'"),
        ('title = "T"\n[[limit]]\nresorce = "NOFILE"\nat-least = 1\nwhy = "w"\nworkloads = ["a"]', 3, "unknown key 'resorce'"),
        ('title = "T"\n[[limit]]\nresource = "NOFILE"\natleast = 1\nwhy = "w"\nworkloads = ["a"]', 4, "unknown key 'atleast'"),
        ('title = "T"\n[[placement]]\nworkload = ["a"]\nwhy = "w"\nforbidden-slices = ["x"]', 3, "unknown key 'workload'"),
        ('title = "T"\n' + ENTRY + ENTRY, 10, "the first is in line 3"),
        ('title = "T"\nx = [', 2, "not valid TOML"),
        ('title = "T"\nx = 1\nx = 2\n', 3, "not valid TOML"),
    ],
)
def test_other_mistakes_have_their_lines_too(paths: ConfigPaths, text: str, line: int, message: str) -> None:
    write(paths, text)
    error = complaint(paths)
    assert error.line == line
    assert message in str(error)


@pytest.mark.parametrize(
    ("operator", "value", "good"),
    [
        ("one-of", "[0, 1]", True), ("one-of", "1", False), ("one-of", "[]", False),
        ("between", "[1, 5]", True), ("between", "[5, 1]", False), ("between", "[1]", False), ("between", '["a", "b"]', False),
        ("at-most", "5", True), ("at-most", '"1 5"', False), ("at-least", '"1 5"', True), ("at-least", "[1]", False),
        ("equals", '"|/bin/false"', True), ("equals", "[1]", False),
    ],
)
def test_a_value_must_fit_its_operator(paths: ConfigPaths, operator: str, value: str, good: bool) -> None:
    write(paths, 'title = "T"\n' + ENTRY.replace("at-least", operator).replace("100", value))
    if good:
        assert len(load_policy(paths, "mine").parameters) == 1
    else:
        assert complaint(paths).line == 6


def test_present_takes_no_value(paths: ConfigPaths) -> None:
    write(paths, 'title = "T"\n' + ENTRY.replace("at-least", "present").replace("value = 100\n", ""))
    assert load_policy(paths, "mine").parameters[0].value is None
    write(paths, 'title = "T"\n' + ENTRY.replace("at-least", "present"))
    assert str(complaint(paths)).endswith(":6: 'present' takes no value")


# Drop-ins


def test_a_drop_in_changes_what_it_names_and_keeps_the_rest(paths: ConfigPaths) -> None:
    write(paths, 'title = "T"\n' + ENTRY)
    drop_in = Path(paths.etc) / "policies.d/mine.toml.d/10-local.toml"
    drop_in.parent.mkdir()
    drop_in.write_text('[[parameter]]\nkey = "kernel.pid_max"\nvalue = 7\n\n[[parameter]]\nkey = "vm.max_map_count"\n'
                       'operator = "at-least"\nvalue = 1\nwhy = "new"\n')
    first, second = load_policy(paths, "mine").parameters
    assert (first.value, first.why, first.origin) == (7, "because", f"{drop_in}:1")
    assert (second.key, second.origin) == ("vm.max_map_count", f"{drop_in}:5")


def test_a_mistake_in_a_drop_in_is_told_as_the_drop_in_s(paths: ConfigPaths) -> None:
    write(paths, 'title = "T"\n' + ENTRY)
    drop_in = Path(paths.run) / "policies.d/mine.toml.d/10-local.toml"
    drop_in.parent.mkdir()
    drop_in.write_text('\n[[parameter]]\nkey = "kernel.pid_max"\n\noperator = "one-of"\n')
    error = complaint(paths)
    assert (error.path, error.line) == (f"{paths.data.policies}/mine.toml", 6)  # the value no longer fits, and stands there
    drop_in.write_text('\n[[parameter]]\nkey = "kernel.pid_max"\nvalu = 3\n')
    error = complaint(paths)
    assert (error.path, error.line) == (str(drop_in), 4)


def test_a_drop_in_can_take_an_entry_out(paths: ConfigPaths) -> None:
    write(paths, 'title = "T"\n' + ENTRY)
    drop_in = Path(paths.etc) / "policies.d/mine.toml.d/x.toml"
    drop_in.parent.mkdir()
    drop_in.write_text('[[parameter]]\nkey = "kernel.pid_max"\nignored = true\n')
    assert load_policy(paths, "mine").parameters == ()


def test_a_drop_in_adds_units_that_may_run_tests(paths: ConfigPaths) -> None:
    write(paths, 'title = "T"\n[[placement]]\nworkloads = ["go-test"]\nforbidden-slices = ["system.slice"]\n'
                 'allowed-units = ["a.service"]\nwhy = "w"\n')
    drop_in = Path(paths.etc) / "policies.d/mine.toml.d/x.toml"
    drop_in.parent.mkdir()
    drop_in.write_text('[[placement]]\nworkloads = ["go-test"]\nalso-allowed-units = ["mine.service"]\n')
    assert load_policy(paths, "mine").placements[0].allowed_units == ("a.service", "mine.service")


def test_a_file_of_the_same_name_in_etc_takes_the_place_of_the_installed_one(paths: ConfigPaths) -> None:
    write(paths, 'title = "installed"\n')
    (Path(paths.etc) / "policies.d/mine.toml").write_text('title = "own"\n')
    assert load_policy(paths, "mine").title == "own"


def test_a_masked_policy_says_so(paths: ConfigPaths) -> None:
    write(paths, 'title = "installed"\n')
    mask = Path(paths.etc) / "policies.d/mine.toml"
    mask.symlink_to("/dev/null")
    error = complaint(paths)
    assert str(error) == f"{mask}: the policy 'mine' is masked"
    assert policy_names(paths) == ()


@pytest.mark.parametrize("name", ["min", "../mine", "", "a/b"])
def test_a_policy_that_does_not_exist_is_told_with_the_nearest_name(paths: ConfigPaths, name: str) -> None:
    write(paths, 'title = "installed"\n')
    error = complaint(paths, name)
    assert f"there is no policy {name!r}" in str(error)
    assert "mine" in error.remedy


# Combining


def wanted(policy: str, operator: Operator, value: object, severity: Severity = Severity.WARNING) -> ParameterRequirement:
    return ParameterRequirement(policy, "k.k", operator, value, severity, "why")  # type: ignore[arg-type]


LEAST, MOST, EQUALS, ONE_OF, BETWEEN = Operator.AT_LEAST, Operator.AT_MOST, Operator.EQUALS, Operator.ONE_OF, Operator.BETWEEN


def together(*wishes: ParameterRequirement) -> ParameterRequirement | None:
    policies = combine([Policy(each.policy, "t", (each,)) for each in wishes])
    assert len(policies.parameters) + len(policies.conflicts) == 1
    return policies.parameters[0] if policies.parameters else None


@pytest.mark.parametrize(
    ("one", "other", "operator", "value"),
    [
        ((LEAST, 5), (LEAST, 9), LEAST, 9),
        ((MOST, 5), (MOST, 9), MOST, 5),
        ((LEAST, 1), (MOST, 9), BETWEEN, (1, 9)),
        ((LEAST, 9), (MOST, 1), None, None),
        ((LEAST, 1), (EQUALS, 0), None, None),
        ((LEAST, 0), (EQUALS, 1), EQUALS, 1),
        ((ONE_OF, (0, 1, 2)), (LEAST, 1), ONE_OF, (1, 2)),
        ((ONE_OF, (0, 1)), (EQUALS, 1), EQUALS, 1),
        ((ONE_OF, ("a", "b")), (EQUALS, "c"), None, None),
        ((BETWEEN, (1, 5)), (BETWEEN, (4, 9)), BETWEEN, (4, 5)),
        ((BETWEEN, (1, 2)), (BETWEEN, (4, 9)), None, None),
        ((Operator.PRESENT, None), (LEAST, 3), LEAST, 3),
        ((LEAST, "10 20"), (LEAST, "15 30"), LEAST, "10 30"),
        ((LEAST, "10 20"), (LEAST, 5), LEAST, "10 20"),
        ((LEAST, "10 20"), (LEAST, 50), None, None),
        ((EQUALS, "1 0"), (LEAST, "0 99"), None, None),
    ],
)
def test_two_wishes_become_the_stricter_or_a_conflict(
    one: tuple[Operator, object], other: tuple[Operator, object], operator: Operator | None, value: object
) -> None:
    for first, second in ((one, other), (other, one)):
        result = together(wanted("a", *first), wanted("b", *second))
        assert (result.operator, result.value) == (operator, value) if result else operator is None


def test_a_conflict_names_the_policies_their_wishes_and_files() -> None:
    (conflict,) = combine([
        Policy("a", "t", (replace(wanted("a", LEAST, 1), origin="a.toml:3"),)),
        Policy("b", "t", (replace(wanted("b", EQUALS, 0), origin="b.toml:9"),)),
    ]).conflicts
    assert conflict.wishes == ("a wants at least 1 (a.toml:3)", "b wants 0 (b.toml:9)")
    said = "the policies disagree on k.k: a wants at least 1 (a.toml:3); b wants 0 (b.toml:9); it is not judged"
    assert conflict.summary.startswith(said)


wishes = st.one_of(
    st.builds(lambda v: (LEAST, v), st.integers(0, 9)),
    st.builds(lambda v: (MOST, v), st.integers(0, 9)),
    st.builds(lambda v: (EQUALS, v), st.integers(0, 9)),
    st.builds(lambda v: (ONE_OF, tuple(sorted(v))), st.sets(st.integers(0, 9), min_size=1)),
    st.builds(lambda a, b: (BETWEEN, (min(a, b), max(a, b))), st.integers(0, 9), st.integers(0, 9)),
    st.just((Operator.PRESENT, None)),
)


@settings(deadline=None)
@given(st.lists(wishes, min_size=1, max_size=4))
def test_what_grants_the_combination_is_what_grants_every_wish(chosen: list[tuple[Operator, object]]) -> None:
    each = [wanted(f"p{number}", *wish) for number, wish in enumerate(chosen)]
    result = together(*each)
    for number in range(12):
        granted = all(wish.is_granted_by(str(number)) for wish in each)
        assert granted == (result is not None and bool(result.is_granted_by(str(number))))


def test_limits_and_places_combine_by_workload(paths: ConfigPaths) -> None:
    place = '[[placement]]\nworkloads = ["go-test"]\nforbidden-slices = ["{}"]\npreferred-slice = "{}"\nwhy = "w"\n'
    limit = '[[limit]]\nresource = "NOFILE"\nat-least = {}\nworkloads = ["go-test", "{}"]\nwhy = "w"\n'
    write(paths, 'title = "A"\n' + place.format("a.slice", "ci.slice") + limit.format(5, "x"), "a.toml")
    write(paths, 'title = "B"\n' + place.format("b.slice", "other.slice") + limit.format(9, "y"), "b.toml")
    policies = load_policies(paths, ["a", "b"])
    assert {(each.resource, each.workloads): each.at_least for each in policies.limits} == {
        ("NOFILE", ("go-test",)): 9, ("NOFILE", ("x",)): 5, ("NOFILE", ("y",)): 9,
    }
    (placement,) = policies.placements
    assert placement.forbidden_slices == ("a.slice", "b.slice")
    assert placement.preferred_slice == ""
    assert [conflict.subject for conflict in policies.conflicts] == ["the slice of go-test"]


# The shipped packs


def test_the_packs_are_those_that_are_promised() -> None:
    assert policy_names(SHIPPED) == PACKS


@pytest.mark.parametrize("name", PACKS)
def test_a_shipped_pack_is_complete(name: str) -> None:
    policy = load_policy(SHIPPED, name)
    workloads = {definition.name for definition in load_workloads(SHIPPED)}
    assert policy.parameters
    for each in (*policy.parameters, *policy.limits):
        assert len(each.why) > 25, each.origin
        assert each.references, each.origin
        assert all(re.match(r"^(https://|man:[a-z_0-9.-]+\(\d\))", reference) for reference in each.references), each.origin
        assert set(each.workloads) <= workloads, each.origin
    for parameter in policy.parameters:
        assert len(parameter.weakens) > 20, parameter.origin
        if name == "hardened":
            assert parameter.weakens.startswith("breaks "), parameter.origin


def test_the_packs_cover_what_is_promised() -> None:
    keys = {parameter.key for name in PACKS for parameter in load_policy(SHIPPED, name).parameters}
    assert set(COVERED) <= keys, set(COVERED) - keys


def test_the_packs_but_hardened_agree_with_each_other() -> None:
    assert load_policies(SHIPPED, [name for name in PACKS if name != "hardened"]).conflicts == ()


def test_hardened_disagrees_where_it_must() -> None:
    conflicts = {conflict.subject for conflict in load_policies(SHIPPED, PACKS).conflicts}
    assert {"user.max_user_namespaces", "kernel.unprivileged_userns_clone", "kernel.io_uring_disabled"} <= conflicts


def stock(path: Path) -> dict[str, str]:
    lines = (line.partition("=") for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in lines}


def test_there_are_stock_values_to_compare_with() -> None:
    assert {path.stem for path in STOCK} >= {"debian-12", "debian-13", "fedora-41", "ubuntu-22.04", "ubuntu-24.04"}


@pytest.mark.parametrize("path", STOCK, ids=lambda path: path.stem)
def test_default_is_quiet_on_a_stock_distribution(path: Path) -> None:
    values, judged = stock(path), 0
    for requirement in load_policies(SHIPPED, ["default"]).parameters:
        running = values.get(requirement.key)
        facts = ParameterFacts(
            requirement.key, "", running if running is not None else Unknown("missing"), requirement, is_missing=running is None
        )
        for rule in (parameters.below_policy, parameters.user_namespaces_off):
            assert not isinstance(rule.judge(facts), Problem), (requirement.key, running)
        judged += running is not None
    assert judged >= 9
