# SPDX-License-Identifier: Apache-2.0
"""Nine limits on a real kernel, each set low until a Go test fails, and repaired over D-Bus through the installed package.

The same in each: the test fails, the finding is there, a preview says what would be done, a user without the right is refused and
nothing changes, a caller with the right applies, the same test passes, the fix is undone, the test fails again.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixing import (
    TEST_BINARY,
    apply,
    ask,
    compile_tests,
    files_of_settings,
    finding_beginning,
    finding_with,
    fixes_of,
    go_test,
    prepare,
    preview,
    refusal,
    undo,
)
from hardware import Snapshot
from image import SUITES
from machine import Completed, Machine, restore
from observe import entries

DROP_IN = "/etc/sysctl.d/zz-triaged.conf"
JOB = f"""[Service]
Type=oneshot
User=alice
Slice=ci.slice
StandardOutput=truncate:/run/ci-job.log
LimitNOFILE=256
ExecStart={TEST_BINARY} -test.run ^TestManyFiles$
"""
HOLDER = "[Service]\nSlice=ci.slice\nExecStart=/bin/sleep infinity\n"


@dataclass(frozen=True)
class Limit:
    """One limit: how to lower it, the test that then fails and what the kernel tells it, and the fix."""

    name: str
    lower: str
    low: str
    test: str
    says: str
    key: str
    rule: str = "sysctl.below-policy"
    state: str = "verified"
    by: str = "root"
    kind: str = "risk"
    reset: str = ""

    def read(self, machine: Machine) -> str:
        """The value in force, as the kernel or systemd has it."""
        if self.name == "TasksMax":
            return machine.get("/sys/fs/cgroup/ci.slice/pids.max").decode().strip()
        if self.name == "nofile":
            return machine.run("systemctl show --property=LimitNOFILE --value ci-job.service").out.strip()
        return machine.run(["sysctl", "-n", self.name]).out.strip()

    def run_test(self, machine: Machine) -> Completed:
        """The Go test, where the limit counts for it."""
        if self.name == "TasksMax":
            scope = "systemd-run --quiet --scope --slice=ci.slice -p TasksMax=infinity"
            return machine.run(f"{scope} {TEST_BINARY} -test.run '^{self.test}$'", check=False)
        if self.name == "nofile":
            return machine.run("systemctl start ci-job; status=$?; cat /run/ci-job.log; exit $status", check=False)
        return go_test(machine, self.test)


def parameter(name: str, low: int, test: str, says: str, lasting: bool = False, **more: str) -> Limit:
    key = f"set-parameter:{name}" + (":lasting" if lasting else "")
    reset = f"sysctl -q -w {name}=$(cat /run/before)"
    return Limit(name, f"sysctl -n {name} >/run/before; sysctl -q -w {name}={low}", str(low), test, says, key, reset=reset, **more)


OFF = "sysctl.user-namespaces-off"
LIMITS = (
    parameter("kernel.pid_max", 345, "TestWorkers", "resource temporarily unavailable", lasting=True),
    parameter("fs.file-max", 800, "TestManyFiles", "too many open files in system"),
    Limit("nofile", "", "256", "TestManyFiles", "too many open files", "set-unit-setting:ci-job.service:LimitNOFILE",
          rule="rlimit.below-policy", state="applied"),
    parameter("net.core.somaxconn", 4, "TestBurstOfClients", "i/o timeout", lasting=True, by="bob"),
    parameter("vm.max_map_count", 2000, "TestManyMappings", "cannot allocate memory", by="bob"),
    parameter("user.max_user_namespaces", 0, "TestSandbox", "no space left on device", lasting=True, rule=OFF),
    parameter("kernel.unprivileged_userns_clone", 0, "TestSandbox", "operation not permitted", by="bob", rule=OFF),
    parameter("fs.inotify.max_user_instances", 4, "TestWatchers", "inotify_init1: too many open files", lasting=True),
    Limit("TasksMax", "systemctl set-property --runtime ci.slice TasksMax=40", "40", "TestWorkers",
          "resource temporarily unavailable", "set-unit-property:ci.slice:TasksMax", rule="cgroup.pids.limit-hit", by="bob",
          kind="hit", reset="systemctl revert ci.slice"),
)  # fmt: skip
# On Debian 12, whose systemd and kernel are older, one of each type.
ON_BOTH = [limit for limit in LIMITS if limit.name in ("kernel.pid_max", "nofile", "kernel.unprivileged_userns_clone", "TasksMax")]
ON_TRIXIE = pytest.mark.parametrize("booted", SUITES[:1], indirect=True)


@pytest.fixture(scope="session")
def limits_test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binary of the Go tests."""
    return compile_tests(tmp_path_factory.mktemp("limits"))


@pytest.fixture(scope="module")
def workshop(installed: Snapshot, limits_test: Path) -> Iterator[Machine]:
    """One machine for all limits: they do not depend on each other, and each is as it was when its test is over."""
    with restore(installed) as machine:
        prepare(machine, limits_test)
        machine.write("/etc/systemd/system/ci-job.service", JOB)
        machine.write("/etc/systemd/system/ci-holder.service", HOLDER)
        machine.run("systemctl daemon-reload; systemctl start ci-holder")
        yield machine


@pytest.mark.parametrize("limit", ON_BOTH, ids=lambda limit: limit.name)
def test_a_limit_is_found_repaired_by_who_may_and_undone(workshop: Machine, limit: Limit) -> None:
    find_repair_and_undo(workshop, limit)


@ON_TRIXIE
@pytest.mark.parametrize("limit", [limit for limit in LIMITS if limit not in ON_BOTH], ids=lambda limit: limit.name)
def test_another_limit_is_found_repaired_by_who_may_and_undone(workshop: Machine, limit: Limit) -> None:
    find_repair_and_undo(workshop, limit)


def find_repair_and_undo(machine: Machine, limit: Limit) -> None:
    """The whole of it for one limit."""
    if limit.lower:
        machine.run(limit.lower)
    assert limit.read(machine) == limit.low
    failed = limit.run_test(machine)
    assert failed.status, str(failed)
    assert limit.says in failed.out + failed.err, str(failed)

    finding = finding_with(machine, limit.key, limit.rule)
    assert (finding["Rule"], finding["Kind"], finding["State"]) == (limit.rule, limit.kind, "open")
    promised = preview(machine, finding["Id"], limit.key)
    assert (promised["Old"], promised["Obstacle"]) == (limit.low, "")
    files = files_of_settings(machine)

    name, text = refusal(machine, "ApplyFix", finding["Id"], limit.key, "{}", user="alice")
    assert name in ("NotAuthorized", "NoSuchFinding"), text
    assert limit.read(machine) == limit.low
    assert files_of_settings(machine) == files
    assert fixes_of(machine, finding["Id"]) == []

    outcome = apply(machine, finding["Id"], limit.key, user=limit.by)
    assert (outcome["State"], outcome["Old"], outcome["New"]) == (limit.state, limit.low, promised["New"]), outcome
    assert limit.read(machine) == promised["New"]
    assert outcome["Verification"].startswith("verified: ") == (limit.state == "verified"), outcome
    if limit.key.endswith(":lasting"):
        assert f"{limit.name} = {promised['New']}\n" in machine.get(DROP_IN).decode()
    passed = limit.run_test(machine)
    assert passed.status == 0, str(passed)

    assert refusal(machine, "UndoFix", finding["Id"], limit.key, "{}", user="alice")[0] in ("NotAuthorized", "NoSuchFinding")
    assert limit.read(machine) == promised["New"]
    assert undo(machine, finding["Id"], limit.key, user=limit.by)["State"] == "undone"
    assert limit.read(machine) == limit.low
    assert files_of_settings(machine) == files
    again = limit.run_test(machine)
    assert again.status, str(again)
    assert limit.says in again.out + again.err, str(again)

    uid = machine.run(["id", "-u", limit.by]).out.strip()
    told = entries(machine, f"TRIAGED_FINDING={finding['Id']}", f"TRIAGED_FIX={limit.key}")
    assert [entry["TRIAGED_CALLER"] for entry in told] == [uid, uid], told
    if limit.reset:
        machine.run(limit.reset)


LONG_RUN = (
    "systemd-run --quiet --scope --slice=default.slice --unit=long-run -p TasksMax=77 sh -c 'ulimit -n 256; "
    "exec setpriv --reuid=alice --regid=alice --init-groups env SAYS=/tmp/said "
    f"{TEST_BINARY} -test.run ^TestManyFilesForLong$' >/dev/null 2>&1 &"
)


def test_what_lives_is_moved_and_gets_more_files_and_a_slice_keeps_its_limit(workshop: Machine) -> None:
    """The types of fixes that the other tests do not have: they go through the same sandbox of the helper."""
    machine = workshop
    machine.run(LONG_RUN)
    machine.wait_until("cat /tmp/said", lambda done: "too many open files" in done.out)
    pid = machine.run("pgrep -f '^/srv/limits/limits.test -test.run .TestManyFilesForLong'").out.strip()

    def place() -> str:
        return machine.get(f"/proc/{pid}/cgroup").decode().strip()

    placed = finding_beginning(machine, f"move-processes:{pid}.", "placement.forbidden-slice")
    key = next(fix["Key"] for fix in placed["Fixes"] if fix["Type"] == "move-processes")
    assert place() == "0::/default.slice/long-run.scope"
    assert apply(machine, placed["Id"], key)["State"] == "applied"
    assert place().startswith(f"0::/ci.slice/triaged-moved-{pid}-")
    assert undo(machine, placed["Id"], key)["State"] == "undone"
    assert place() == "0::/default.slice/long-run.scope"
    assert machine.run("systemctl show --property=TasksMax --value long-run.scope").out == "77\n"

    key = f"set-resource-limit:{pid}:NOFILE"
    limited = finding_with(machine, key, "rlimit.below-policy")
    # alice's matter, which is not shown to bob.
    assert refusal(machine, "ApplyFix", limited["Id"], key, "{}", user="bob")[0] == "NoSuchFinding"
    outcome = apply(machine, limited["Id"], key)
    assert (outcome["State"], outcome["Old"], outcome["New"]) == ("verified", "256:256", "4096:4096")
    machine.wait_until("cat /tmp/said", lambda done: done.out == "enough\n")
    assert undo(machine, limited["Id"], key)["State"] == "undone"
    machine.wait_until("cat /tmp/said", lambda done: "too many open files" in done.out)
    machine.run("touch /tmp/said.stop")

    machine.run("systemctl set-property --runtime ci.slice TasksMax=40")
    limit = LIMITS[-1]
    assert limit.run_test(machine).status
    key = f"{limit.key}:lasting"
    full = finding_with(machine, key, limit.rule)
    files = files_of_settings(machine)
    assert apply(machine, full["Id"], key)["State"] == "verified"
    machine.run("systemctl daemon-reload")
    assert (limit.read(machine), limit.run_test(machine).status) == ("80", 0)
    assert undo(machine, full["Id"], key)["State"] == "undone"
    machine.run("systemctl daemon-reload")
    assert (limit.read(machine), files_of_settings(machine)) == ("40", files)
    assert machine.run("systemctl show --property=NeedDaemonReload --value ci.slice").out == "no\n"
    machine.run("systemctl revert ci.slice")


@ON_TRIXIE
def test_what_is_to_be_refused_is_refused_afterwards(workshop: Machine) -> None:
    machine = workshop
    machine.run("sysctl -q -w kernel.unprivileged_bpf_disabled=0")
    machine.write("/etc/triaged/triaged.toml.d/hardened.toml", 'policies = ["hardened"]\n')
    machine.run("systemctl reload triaged")
    key = "set-parameter:kernel.unprivileged_bpf_disabled"
    finding = finding_with(machine, key)
    outcome = apply(machine, finding["Id"], key, user="bob")
    assert (outcome["State"], outcome["New"]) == ("verified", "2"), outcome
    assert outcome["Verification"].startswith("verified: it is refused to create a BPF map as user 65534")
    assert undo(machine, finding["Id"], key, user="bob")["State"] == "undone"
    assert machine.run("sysctl -n kernel.unprivileged_bpf_disabled").out == "0\n"
    machine.run("sysctl -q -w kernel.unprivileged_bpf_disabled=2; rm /etc/triaged/triaged.toml.d/hardened.toml")
    machine.run("systemctl reload triaged")


def test_a_policy_is_checked_in_the_network_namespace_of_a_process(workshop: Machine) -> None:
    machine = workshop
    script = "sysctl -q -w net.core.somaxconn=77; exec sleep infinity"
    machine.run(f"systemd-run --quiet --unit=elsewhere unshare --net sh -c '{script}'")
    pid = machine.run("systemctl show --property=MainPID --value elsewhere").out.strip()
    machine.wait_until(["cat", f"/proc/{pid}/comm"], lambda done: done.out == "sleep\n")
    here = ask(machine, "CheckPolicy", "asa{sv}", "1", "default", "0")
    there = ask(machine, "CheckPolicy", "asa{sv}", "1", "default", "1", "pid", "u", pid)
    values = [[item["Value"] for item in rows if item["Subject"] == "net.core.somaxconn"] for rows in (here, there)]
    assert values == [["4096"], ["77"]]
    assert refusal(machine, "CheckPolicy", "['default']", f"{{'pid': <uint32 {pid}>}}", user="alice")[0] == "NotAuthorized"
    machine.run("systemctl stop elsewhere")
