# SPDX-License-Identifier: Apache-2.0
"""Seccomp audit records: texts as kernels write them, and this kernel's own."""
from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triaged.errors import KernelError, Malformed, NotPermitted
from triaged.kernel.audit import AuditSocket, SeccompGroup, SeccompTally, parse_seccomp_record, read_unlogged_actions
from triaged.kernel.paths import KernelPaths

# As Linux 6.18 wrote them.
KILLED = (
    b'audit(1795363623.829:2): auid=4294967295 uid=1000 gid=1000 ses=4294967295 pid=6257 comm="worker.test" '
    b'exe="/tmp/worker.test" sig=31 arch=c000003e syscall=39 compat=0 ip=0x7f8c21b1f829 code=0x80000000'
)
LABELLED = KILLED.replace(b"ses=4294967295 ", b"ses=1 subj=docker-default (enforce) pid=1 comm=x ")
LOG, ERRNO, KILL_PROCESS, KILL_THREAD = 0x7FFC0000, 0x00050000, 0x80000000, 0
FILTER_FLAG_LOG = 2


def tallied(*payloads: bytes) -> tuple[SeccompTally, list[SeccompGroup]]:
    tally = SeccompTally()
    for payload in payloads:
        tally.add(payload)
    return tally, tally.take()


def test_a_record_of_this_kernel_is_read() -> None:
    record = parse_seccomp_record(KILLED)
    assert (record.pid, record.uid, record.comm, record.exe) == (6257, 1000, "worker.test", "/tmp/worker.test")
    assert (record.signal, record.audit_arch, record.syscall, record.action) == (31, 0xC000003E, 39, "KILL_PROCESS")
    assert record.time_usec == 1795363623_829000
    assert record.errno == 0
    assert record.text == KILLED.decode()


@pytest.mark.parametrize(("code", "action", "errno"), [
    ("80000000", "KILL_PROCESS", 0), ("0", "KILL_THREAD", 0), ("30000", "TRAP", 0), ("50001", "ERRNO", 1), ("50026", "ERRNO", 38),
    ("7fc00000", "USER_NOTIF", 0), ("7ff00000", "TRACE", 0), ("7ffc0000", "LOG", 0), ("12340000", "0x12340000", 0),
])
def test_the_filter_return_value_names_the_action(code: str, action: str, errno: int) -> None:
    record = parse_seccomp_record(KILLED.replace(b"0x80000000", b"0x" + code.encode()))
    assert (record.action, record.errno) == (action, errno)


def test_names_in_hexadecimal_digits_are_read_as_the_bytes_that_they_were() -> None:
    record = parse_seccomp_record(KILLED.replace(b'"worker.test"', b"612062290AFF").replace(b'"/tmp/worker.test"', b"2F6120622F63"))
    assert record.comm == "a b)\n\udcff"
    assert record.exe == "/a b/c"


def test_a_security_label_cannot_forge_a_field() -> None:
    record = parse_seccomp_record(LABELLED)
    assert (record.pid, record.comm) == (6257, "worker.test")
    _, groups = tallied(LABELLED, KILLED)
    assert [(group.records, dict(group.pids)) for group in groups] == [(2, {6257: 2})]


def test_missing_and_unknown_fields_are_passed_over() -> None:
    record = parse_seccomp_record(b"audit(1.5:9): new=7 pid=4 syscall=101 code=0x30000 more")
    assert (record.pid, record.uid, record.comm, record.exe, record.signal, record.audit_arch) == (4, -1, "", "", -1, -1)
    assert (record.syscall, record.action, record.time_usec) == (101, "TRAP", 1_500_000)
    assert parse_seccomp_record(KILLED.replace(b'exe="/tmp/worker.test"', b"exe=(null)")).exe == ""
    assert parse_seccomp_record(KILLED.replace(b"uid=1000 gid", b"uid=4294967295 gid")).uid == -1
    assert parse_seccomp_record(KILLED.replace(b"syscall=39", b"syscall=-1")).syscall == -1
    assert parse_seccomp_record(KILLED + b"\0\n").text == KILLED.decode()


@pytest.mark.parametrize("payload", [
    b"", b"nonsense", KILLED[:-20], KILLED.replace(b"syscall=39", b"syscall=x"), KILLED.replace(b"0x80000000", b"0x1ffffffff"),
    KILLED.replace(b'comm="worker.test"', b"comm=61f"), KILLED.replace(b"pid=6257", b"pid=many"), bytes(range(256)),
])
def test_nonsense_is_malformed_and_shows_the_record(payload: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse_seccomp_record(payload)
    assert caught.value.path == "audit multicast"
    assert payload[:20].decode("utf-8", "backslashreplace").rstrip("\0\n") in caught.value.record


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    tally = SeccompTally()
    for data in (payload, b"audit(1.1:1): syscall=1 code=0x0 " + payload, KILLED[:100] + payload):
        tally.add(data)
        try:
            parse_seccomp_record(data)
        except Malformed:
            continue


@given(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name))
def test_any_name_survives_the_kernel_encoding(name: bytes) -> None:
    plain = all(0x21 <= byte <= 0x7E and byte != 0x22 for byte in name)  # audit_string_contains_control
    encoded = b'"%s"' % name if plain else name.hex().upper().encode()
    payload = KILLED.replace(b'"worker.test"', encoded)
    assert os.fsencode(parse_seccomp_record(payload).comm) == name
    tally, groups = tallied(payload)
    assert tally.malformed == 0
    assert os.fsencode(groups[0].first.comm) == name


def test_records_that_differ_only_in_pid_and_time_are_added_up() -> None:
    others = [KILLED.replace(b"6257", str(pid).encode()).replace(b"829:2", b"900:3") for pid in range(100, 200)]
    tally, groups = tallied(KILLED, *others, KILLED.replace(b"syscall=39", b"syscall=40"))
    assert [group.records for group in groups] == [101, 1]
    assert groups[0].first.pid == 6257
    assert sum(groups[0].pids.values()) + groups[0].others == 101
    assert len(groups[0].pids) == 16
    assert tally.records == 102


_LABELS = st.sampled_from([b"", b" subj=unconfined", b" subj=docker-default (enforce) pid=1 ip=0x1 code=0x0", b" subj=a): b"])


@given(
    st.lists(st.tuples(
        _LABELS, st.integers(0, 5), st.sampled_from([b'"a"', b'"b.test"', b"612062", b"(null)"]), st.sampled_from([31, 0]),
        st.sampled_from([b"", b" new=1", b" pid=7"]), st.sampled_from([b"0x50000", b"0x80000000", b"0x7ffc0000", b"0x123456789"]),
    ), max_size=30),
)
def test_the_short_way_counts_exactly_what_the_long_way_reads(rows: list[tuple[bytes, int, bytes, int, bytes, bytes]]) -> None:
    payloads = [
        b"audit(17953636%02d.829:2): auid=1 uid=1000 gid=1000 ses=1%s pid=%d comm=%s exe=%s sig=%d arch=c000003e syscall=39 "
        b"compat=0 ip=0x7f8c21b1f8%02d code=%s%s" % (number, label, pid, comm, comm, signal, number, code, more)
        for number, (label, pid, comm, signal, more, code) in enumerate(rows)
    ]
    wanted: Counter[tuple[object, ...]] = Counter()
    for payload in payloads:
        with contextlib.suppress(Malformed):
            # A word before it keeps the pattern for the usual form from matching.
            record = parse_seccomp_record(b"x=1 " + payload)
            assert replace(parse_seccomp_record(payload), text="") == replace(record, text="")
            wanted[(record.uid, record.comm, record.exe, record.signal, record.code, record.pid)] += 1
    tally, groups = tallied(*payloads)
    found: Counter[tuple[object, ...]] = Counter()
    for group in groups:
        assert group.records == sum(group.pids.values())
        for pid, records in group.pids.items():
            found[(group.first.uid, group.first.comm, group.first.exe, group.first.signal, group.first.code, pid)] += records
    assert found == wanted
    assert (tally.records, tally.malformed) == (wanted.total(), len(rows) - wanted.total())


def test_a_storm_of_ever_new_programs_takes_bounded_room() -> None:
    tally, groups = tallied(*(KILLED.replace(b"/tmp/worker.test", b"/tmp/%d" % number) for number in range(5000)))
    assert len(groups) == 1024
    assert (tally.records, tally.left_out) == (5000, 5000 - 1024)


def test_malformed_records_are_counted_and_the_first_is_kept() -> None:
    tally, groups = tallied(b"nonsense", b"more nonsense", KILLED)
    assert (tally.malformed, tally.records, len(groups)) == (2, 1, 1)
    assert tally.first_malformed is not None
    assert tally.first_malformed.record == "nonsense"


def test_messages_cut_short_and_of_other_types_are_passed_over() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    tally, reader = SeccompTally(), AuditSocket(theirs)
    header = struct.pack("=IHHII", len(KILLED), 1326, 0, 0, 0)
    for data in (header[:3], header, struct.pack("=IHHII", 0, 1300, 0, 0, 0) + KILLED, header + KILLED, header + KILLED[:50]):
        ours.send(data)
    batch = reader.drain(tally)
    ours.close()
    reader.close()
    assert (batch.messages, batch.truncated, batch.lost) == (5, 2, False)
    assert (tally.records, tally.malformed) == (1, 1)


@pytest.mark.parametrize(("logged", "unlogged"), [
    ("kill_process kill_thread trap errno user_notif trace log\n", ()),
    ("log\n", ("kill_process", "kill_thread", "trap", "errno", "user_notif", "trace")),
    ("kill_process kill_thread trap errno trace log\n", ("user_notif",)),
])
def test_actions_that_the_kernel_does_not_record_are_named(tmp_path: object, logged: str, unlogged: tuple[str, ...]) -> None:
    directory = f"{tmp_path}/proc/sys/kernel/seccomp"
    os.makedirs(directory)
    for name, text in (
        ("actions_logged", logged), ("actions_avail", "kill_process kill_thread trap errno user_notif trace log allow\n")
    ):
        with open(f"{directory}/{name}", "w", encoding="ascii") as file:
            file.write(text)
    assert read_unlogged_actions(KernelPaths.below(str(tmp_path))) == unlogged


@pytest.fixture
def live() -> Iterator[AuditSocket]:
    try:
        opened = AuditSocket.open()
    except KernelError as error:
        pytest.skip(f"no audit records here: {error.shown()}")
    yield opened
    opened.close()


def gathered(opened: AuditSocket, pid: int, records: int) -> list[SeccompGroup]:
    """The groups about one process, once there are so many records of it; fails after 10 s."""
    tally = SeccompTally(cap=100_000, pids_each=100_000)
    groups: dict[tuple[object, ...], SeccompGroup] = {}
    until = time.monotonic() + 10
    while sum(group.pids[pid] for group in groups.values()) < records:
        assert time.monotonic() < until, f"only {groups}"
        opened.drain(tally)
        for group in tally.take():
            if pid not in group.pids:
                continue
            key = (group.first.syscall, group.first.code, group.first.comm)
            groups.setdefault(key, SeccompGroup(group.first)).pids.update(group.pids)
        time.sleep(0.005)  # records come by a kernel thread
    assert tally.malformed == 0
    return list(groups.values())


def test_a_real_kill_is_recorded(live: AuditSocket, filtered: Callable[..., Any]) -> None:
    child = filtered(KILL_PROCESS)
    child.go()
    (group,) = gathered(live, child.pid, 1)
    assert (group.first.action, group.first.syscall, group.first.signal) == ("KILL_PROCESS", 39, 31)
    assert group.first.exe == os.path.realpath(sys.executable)
    assert group.first.uid == os.getuid()
    assert abs(group.first.time_usec / 1e6 - time.time()) < 60


def test_a_real_kill_of_a_thread_is_recorded_as_one(live: AuditSocket, filtered: Callable[..., Any]) -> None:
    child = filtered(KILL_THREAD)
    child.go()
    (group,) = gathered(live, child.pid, 1)
    assert group.first.action == "KILL_THREAD"


def test_real_records_of_a_wild_comm_are_read_and_counted(live: AuditSocket, filtered: Callable[..., Any]) -> None:
    child = filtered(LOG, times=300, comm='a b)=\\n"\\xff')
    child.go()
    (group,) = gathered(live, child.pid, 300)
    assert group.first.comm == 'a b)=\n"\udcff'
    assert group.pids[child.pid] == 300


def test_an_errno_is_recorded_only_where_the_filter_asks_for_it(live: AuditSocket, filtered: Callable[..., Any]) -> None:
    silent, told = filtered(ERRNO | 13), filtered(ERRNO | 13, flags=FILTER_FLAG_LOG)
    silent.go()
    told.go()
    (group,) = gathered(live, told.pid, 1)
    # The record holds the action without its data (kernel/seccomp.c: SECCOMP_RET_ACTION_FULL), so the errno is not known.
    assert (group.first.action, group.first.errno) == ("ERRNO", 0)
    assert silent.pid not in group.pids


def test_records_that_were_dropped_are_told(live: AuditSocket, filtered: Callable[..., Any]) -> None:
    live._socket.setsockopt(socket.SOL_SOCKET, 33, 4096)
    child = filtered(LOG, times=2000)
    child.go()
    tally = SeccompTally()
    until = time.monotonic() + 10
    lost = False
    while not lost or tally.records + live.read_drops(KernelPaths()) < 2000:
        assert time.monotonic() < until, (tally.records, live.read_drops(KernelPaths()), lost)
        lost = live.drain(tally).lost or lost
        time.sleep(0.02)  # slower than the kernel, on purpose
    assert live.read_drops(KernelPaths()) > 0


def test_without_the_capability_it_says_what_to_do() -> None:
    python = shutil.which("python3", path="/usr/bin:/bin")
    if os.geteuid() != 0 or shutil.which("setpriv") is None or python is None:
        pytest.skip("needs root, setpriv and a python3 in /usr/bin, to become a user without the capability")
    probe = "from triaged.kernel.audit import AuditSocket\nfrom triaged.errors import KernelError\n" \
        "try:\n AuditSocket.open()\nexcept KernelError as error:\n print(type(error).__name__, error.shown())"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", probe],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if "No module named 'triaged'" in done.stderr:
        pytest.skip("the checkout may not be read by other users")
    assert done.stdout.startswith(NotPermitted.__name__), done.stderr
    assert "CAP_AUDIT_READ" in done.stdout
