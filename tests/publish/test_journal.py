# SPDX-License-Identifier: Apache-2.0
"""The native protocol against sockets of our own, and against a real systemd-journald in namespaces of its own."""
from __future__ import annotations

import array
import asyncio
import fcntl
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triaged.publish.journal import Journal, encode_entry

PACKAGE_ROOT = Path(__file__).resolve().parents[2] / "daemon"
_PLACES = ("/usr/lib/systemd/systemd-journald", "/lib/systemd/systemd-journald")
JOURNALD = next((path for path in _PLACES if os.path.exists(path)), "")
ENTRY = {"MESSAGE": "full", "PRIORITY": "3", "TRIAGED_FINDING": "cgroup.pids.limit-hit-0badcafe"}


def decode(entry: bytes) -> dict[str, str]:
    """The reader's half of the protocol, written from its description."""
    out = {}
    while entry:
        head, _, entry = entry.partition(b"\n")
        if b"=" in head:
            name, _, value = head.partition(b"=")
        else:
            name, (length,) = head, struct.unpack("<Q", entry[:8])
            value, entry = entry[8 : 8 + length], entry[8 + length + 1 :]
        out[name.decode()] = value.decode("utf-8", "surrogateescape")
    return out


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Z0-9][A-Z0-9_]{0,10}", fullmatch=True),
        st.text(st.characters(blacklist_categories=("Cs",)), max_size=50) | st.just("a\udcff\nb"),
    )
)
def test_what_is_encoded_is_read_back(fields: dict[str, str]) -> None:
    assert decode(encode_entry(fields)) == fields


def test_a_value_cannot_add_a_field() -> None:
    entry = encode_entry({"MESSAGE": "x\nPRIORITY=0\n", "TRIAGED_SUBJECT": "/a\n_UID=0"})
    assert set(decode(entry)) == {"MESSAGE", "TRIAGED_SUBJECT"}


@pytest.mark.parametrize("name", ["_UID", "a", "A=B", "A\nB", "", "Ä", "A" * 65])
def test_a_name_that_journald_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a journal field"):
        encode_entry({name: "x"})


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(tmp_path / "socket"))
        receiving.settimeout(5)
        yield receiving


async def test_an_entry_is_one_datagram(receiver: socket.socket) -> None:
    journal = Journal(receiver.getsockname())
    await journal.send(ENTRY)
    assert decode(receiver.recv(65536)) == ENTRY
    assert journal.counters == {"sent": 1, "fallback": 0, "lost": 0}
    journal.close()


async def test_a_big_entry_goes_by_a_sealed_memory_file(receiver: socket.socket) -> None:
    fields = {**ENTRY, **{f"F{number}": "x" * 60000 for number in range(10)}}
    journal = Journal(receiver.getsockname())
    await journal.send(fields)
    data, ancillary, _, _ = receiver.recvmsg(65536, socket.CMSG_SPACE(4))
    descriptors = array.array("i")
    descriptors.frombytes(ancillary[0][2])
    with os.fdopen(descriptors[0], "rb") as file:
        assert fcntl.fcntl(file.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        file.seek(0)
        assert decode(file.read()) == fields
    assert data == b""
    journal.close()


async def test_without_journald_an_entry_is_a_line_on_standard_error(tmp_path: Path) -> None:
    out = io.StringIO()
    journal = Journal(str(tmp_path / "nobody"), out)
    await journal.send({**ENTRY, "MESSAGE": "two\nlines \udcff"})
    assert out.getvalue() == "error: two lines \\udcff [cgroup.pids.limit-hit-0badcafe]\n"
    assert journal.counters == {"sent": 0, "fallback": 1, "lost": 0}
    journal.close()


async def test_a_journald_that_never_reads_costs_entries_not_the_daemon(receiver: socket.socket) -> None:
    journal = Journal(receiver.getsockname())
    started = time.monotonic()
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.05)

    beating = asyncio.create_task(beat())
    while not journal.counters["lost"]:
        await journal.send(ENTRY)
        assert time.monotonic() - started < 30
    beating.cancel()
    assert journal.counters["sent"] > 0
    assert beats > 10  # the loop went on meanwhile
    journal.close()


async def test_a_restarted_journald_is_found_again(tmp_path: Path) -> None:
    path, out = str(tmp_path / "socket"), io.StringIO()
    journal = Journal(path, out)
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
            receiving.bind(path)
            await journal.send(ENTRY)
            assert decode(receiving.recv(65536)) == ENTRY
        os.unlink(path)
    await journal.send(ENTRY)
    assert journal.counters == {"sent": 2, "fallback": 1, "lost": 0}
    journal.close()


_INSIDE = """
set -e
mount -t tmpfs none /run
mkdir -p /run/log/journal /run/systemd/journald.conf.d
mount -t tmpfs none /var/log
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nForwardToWall=no\\n' > /run/systemd/journald.conf.d/test.conf
"$1" & journald=$!
trap 'kill $journald; wait $journald || true' EXIT
for _ in $(seq 100); do [ -S /run/systemd/journal/socket ] && break; sleep 0.05; done
"$2" -c "$3" >&2
journalctl --sync
journalctl -o json --no-pager SYSLOG_IDENTIFIER=triaged
"""
_SEND = """
import asyncio
from triaged.publish.journal import Journal
journal = Journal()
about = {"SYSLOG_IDENTIFIER": "triaged", "PRIORITY": "3", "OBJECT_SYSTEMD_UNIT": "ci.service"}
asyncio.run(journal.send({"MESSAGE": "two\\nlines", "MESSAGE_ID": "1c45fc3fcada48d89ba08440a4c8edc9", **about}))
asyncio.run(journal.send({"MESSAGE": "big", **about, **{f"F{number}": "x" * 60000 for number in range(10)}}))
assert journal.counters == {"sent": 2, "fallback": 0, "lost": 0}, journal.counters
"""


@pytest.mark.skipif(not JOURNALD or not shutil.which("unshare"), reason="systemd-journald and unshare are not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")
def test_a_real_journald_takes_small_and_big_entries() -> None:
    # A network namespace of its own too: journald would otherwise have a say in the host's audit.
    done = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", _INSIDE, "sh", JOURNALD, sys.executable, _SEND],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)}, capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    small, big = (json.loads(line) for line in done.stdout.splitlines())
    assert small["MESSAGE"] == "two\nlines"
    assert small["MESSAGE_ID"] == "1c45fc3fcada48d89ba08440a4c8edc9"
    assert small["PRIORITY"] == "3"
    assert small["OBJECT_SYSTEMD_UNIT"] == "ci.service"
    assert small["_TRANSPORT"] == "journal"
    assert big["MESSAGE"] == "big"
    assert {f"F{number}" for number in range(10)} <= set(big)
