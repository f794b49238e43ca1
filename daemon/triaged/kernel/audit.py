# SPDX-License-Identifier: Apache-2.0
"""Seccomp records from the kernel's audit multicast group.

Hard facts (kernel/audit.c, kernel/auditsc.c audit_seccomp; checked on 6.18):
- The records arrive with audit disabled and with no auditd; only the boot parameter audit=0 ends them.
- They go to the first network namespace only; a bind elsewhere succeeds and then nothing comes.
- KILL_PROCESS, KILL_THREAD and LOG are recorded; TRAP, ERRNO, USER_NOTIF and TRACE only where the filter was loaded with
  SECCOMP_FILTER_FLAG_LOG; each only while kernel.seccomp.actions_logged names it.
- `code=` is the action without its data, so the errno of ERRNO is not in it (seen on 6.18).
- `pid=` is the process (not the thread) in the first pid namespace. comm and exe are in quotes, or in hexadecimal digits
  where they hold a quote, a space, a control character or a byte above 126; so they cannot forge a field.
- nlmsg_len of multicast records has been with and without the header: the datagram's own length counts.
"""
from __future__ import annotations

import errno
import re
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from triaged.errors import InterfaceMissing, Malformed, NotPermitted
from triaged.kernel.files import read_text, translated
from triaged.kernel.netlink import HEADER, filter_program, open_netlink, read_drops
from triaged.kernel.paths import KernelPaths

INTERFACE = "audit multicast"
BUFFER_BYTES = 8 << 20
SECCOMP = 1326  # AUDIT_SECCOMP
_SECCOMP_TYPE = struct.pack("=H", SECCOMP)
_NETLINK_AUDIT = 9
_NLGRP_READLOG = 1
_UNSET = 0xFFFFFFFF
_ACTIONS = {
    0x80000000: "KILL_PROCESS",
    0x00000000: "KILL_THREAD",
    0x00030000: "TRAP",
    0x00050000: "ERRNO",
    0x7FC00000: "USER_NOTIF",
    0x7FF00000: "TRACE",
    0x7FFC0000: "LOG",
    0x7FFF0000: "ALLOW",
}
LOGGABLE = ("kill_process", "kill_thread", "trap", "errno", "user_notif", "trace", "log")
# A security label may hold anything, so it is passed over greedily; comm and exe behind it hold no space.
_USUAL = re.compile(
    rb"audit\((\d+)\.(\d{1,6}):\d+\): auid=\d+ uid=(\d+) gid=\d+ ses=\d+(?: subj=.*)? pid=(\d+) comm=(\S+) exe=(\S+) sig=(\d+)"
    rb" arch=([0-9a-f]+) syscall=(-?\d+) compat=\d+ ip=0x[0-9a-f]+ code=0x([0-9a-f]+)"
    rb"(?!.* (?:pid|uid|comm|exe|sig|arch|syscall|code)=)"
)


@dataclass(frozen=True)
class SeccompRecord:
    """One audit record of type 1326. Fields that the record lacks are -1 (numbers) or "".

    `time_usec` is the kernel's own stamp (µs since the epoch); `code` the filter's return value; `audit_arch` as in
    linux/audit.h; `text` the record as the kernel wrote it.
    """

    time_usec: int
    pid: int
    uid: int
    comm: str
    exe: str
    signal: int
    audit_arch: int
    syscall: int
    code: int
    text: str

    @property
    def action(self) -> str:
        """The kernel's name of the filter's return value; the number where it is unknown."""
        return _ACTIONS.get(self.code & 0xFFFF0000, f"0x{self.code & 0xFFFF0000:08x}")

    @property
    def errno(self) -> int:
        """What the call returned instead of being made (for ERRNO), else 0; kernels up to 6.18 do not tell it."""
        return self.code & 0xFFFF if self.action == "ERRNO" else 0


def parse_seccomp_record(payload: bytes) -> SeccompRecord:
    """A seccomp record. Unknown fields are passed over; only `syscall` and `code` must be there.

    Raises: Malformed.
    """
    text = payload.rstrip(b"\0\n").decode("utf-8", "backslashreplace")
    usual = _USUAL.match(payload)
    if usual is not None:
        try:
            return _usual_record(usual, text)
        except ValueError:
            pass  # the slow way says what is wrong with it
    fields: dict[str, str] = {}
    for word in text.split(" "):
        name, equals, value = word.partition("=")
        if equals:
            fields[name] = value  # the last one counts, as in the fast pattern
    stamp = re.match(r"(?:.*\s)?audit\((\d+)(?:\.(\d{1,6}))?", text)
    try:
        code, syscall = int(fields["code"], 16), int(fields["syscall"])
        if not 0 <= code <= 0xFFFFFFFF:
            raise ValueError("code")
        uid = _number(fields.get("uid"))
        return SeccompRecord(
            time_usec=int(stamp[1]) * 1_000_000 + int((stamp[2] or "0").ljust(6, "0")) if stamp else 0,
            pid=_number(fields.get("pid")),
            uid=-1 if uid == _UNSET else uid,
            comm=_untrusted(fields.get("comm")),
            exe=_untrusted(fields.get("exe")).removesuffix(" (deleted)"),
            signal=_number(fields.get("sig")),
            audit_arch=int(fields["arch"], 16) if "arch" in fields else -1,
            syscall=syscall,
            code=code,
            text=text,
        )
    except (KeyError, ValueError) as error:
        raise Malformed(INTERFACE, text, "seccomp record that cannot be parsed") from error


def _usual_record(found: re.Match[bytes], text: str) -> SeccompRecord:
    """The record of the kernel's usual form. Raises: ValueError."""
    seconds, fraction, uid, pid, comm, exe, signal, arch, syscall, code = found.groups()
    number = int(code, 16)
    if number > 0xFFFFFFFF:
        raise ValueError("code")
    return SeccompRecord(
        int(seconds) * 1_000_000 + int(fraction.ljust(6, b"0")), int(pid), -1 if uid == b"4294967295" else int(uid),
        _untrusted(comm.decode("utf-8", "backslashreplace")), _untrusted(exe.decode("utf-8", "backslashreplace"))
        .removesuffix(" (deleted)"), int(signal), int(arch, 16), int(syscall), number, text,
    )


def _number(value: str | None) -> int:
    return -1 if value is None else int(value)


def _untrusted(value: str | None) -> str:
    """Undoes audit_log_untrustedstring."""
    if value is None or value in ("(null)", "?"):
        return ""
    if value.startswith('"'):
        return value.strip('"')
    return bytes.fromhex(value).decode("utf-8", "surrogateescape")


@dataclass
class SeccompGroup:
    """Records that differ in nothing but pid and time. `first` is the earliest; `pids` counts some, `others` the rest."""

    first: SeccompRecord
    records: int = 0
    pids: Counter[int] = field(default_factory=Counter)
    others: int = 0


class SeccompTally:
    """Counts records by program, call and action, in bounded space: at most `cap` groups and `pids_each` pids in each."""

    def __init__(self, cap: int = 1024, pids_each: int = 16) -> None:
        self._cap = cap
        self._pids_each = pids_each
        self._groups: dict[tuple[object, ...], SeccompGroup] = {}
        self._alike: dict[tuple[bytes, bytes, bytes], SeccompGroup] = {}
        self._fresh: set[int] = set()
        self.records = 0
        self.malformed = 0
        self.left_out = 0
        self.first_malformed: Malformed | None = None

    def add(self, payload: bytes) -> None:
        """Counts a record. One that is malformed is counted as such; one that has no room in `left_out`."""
        # Nearly all records of a storm differ from one before in stamp, pid and instruction pointer only: then nothing else of them
        # is looked at. From the right, because a security label may hold anything, but comm, exe and what follows hold no space.
        pid_at = payload.rfind(b" pid=") + 5
        pid_ends = payload.find(b" ", pid_at)
        middle = payload[pid_ends : payload.rfind(b" ip=")]
        alike = payload[payload.find(b"): ") : pid_at], middle, payload[payload.rfind(b" code=") :]
        group = self._alike.get(alike)
        if group is not None:
            try:
                pid = int(payload[pid_at:pid_ends])
            except ValueError:
                group = None
            else:
                self.records += 1
        if group is None:
            found = self._found(payload)
            if found is None:
                return
            pid, group = found
            if len(self._alike) < 4 * self._cap and _USUAL.match(payload):
                self._alike[alike] = group
        group.records += 1
        pids = group.pids
        if pid in pids:
            pids[pid] += 1
        elif len(pids) < self._pids_each:
            pids[pid] = 1
            self._fresh.add(pid)
        else:
            group.others += 1

    def _found(self, payload: bytes) -> tuple[int, SeccompGroup] | None:
        """The record's pid and group, which is made if there is room."""
        record = self._parsed(payload)
        if record is None:
            return None
        self.records += 1
        key = (record.uid, record.comm, record.exe, record.signal, record.audit_arch, record.syscall, record.code)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= self._cap:
                self.left_out += 1
                return None
            group = self._groups[key] = SeccompGroup(record)
        return record.pid, group

    def take(self) -> list[SeccompGroup]:
        """The groups so far; begins anew. The counters go on."""
        groups = list(self._groups.values())
        self._groups = {}
        self._alike = {}
        return groups

    def take_fresh_pids(self) -> set[int]:
        """The pids that groups took in since the last call: to be looked at while they live."""
        fresh, self._fresh = self._fresh, set()
        return fresh

    def _parsed(self, payload: bytes) -> SeccompRecord | None:
        try:
            return parse_seccomp_record(payload)
        except Malformed as error:
            self.malformed += 1
            self.first_malformed = self.first_malformed or error
            return None


class AuditBatch(NamedTuple):
    """How many messages were read; whether some were dropped before them; how many were cut short."""

    messages: int
    lost: bool
    truncated: int


def seccomp_filter() -> bytes:
    """The filter: messages of type 1326 only."""
    wanted = struct.unpack("=H", struct.pack(">H", SECCOMP))[0]
    return filter_program((
        (0x28, 0, 0, 4),  # ldh nlmsg_type
        (0x15, 0, 1, wanted),
        (0x06, 0, 0, 0x40000),
        (0x06, 0, 0, 0),
    ))


class AuditSocket:
    """An open subscription to the kernel's audit records of type SECCOMP."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened

    @staticmethod
    def open() -> AuditSocket:
        """Subscribes. Raises: NotPermitted without CAP_AUDIT_READ; InterfaceMissing where the kernel has no audit."""
        try:
            return AuditSocket(open_netlink(_NETLINK_AUDIT, _NLGRP_READLOG, INTERFACE, BUFFER_BYTES, seccomp_filter()))
        except NotPermitted as error:
            raise NotPermitted(
                INTERFACE, "not allowed to read audit records", "run triaged as a service, with CAP_AUDIT_READ"
            ) from error
        except InterfaceMissing as error:
            raise InterfaceMissing(
                INTERFACE, "the kernel has no audit (CONFIG_AUDIT, or booted with audit=0)", "boot without audit=0"
            ) from error

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Unsubscribes."""
        self._socket.close()

    def drain(self, tally: SeccompTally, limit: int = 8192) -> AuditBatch:
        """Counts the waiting records into `tally`, at most `limit` of them. Never blocks.

        Raises: KernelError if the socket broke.
        """
        lost = False
        messages = truncated = 0
        receive = self._socket.recv
        add = tally.add
        begin = HEADER.size
        for _ in range(limit):
            try:
                data = receive(16384)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise translated(error, INTERFACE) from error
                lost = True
                continue
            if not data:
                break
            messages += 1
            if len(data) <= begin:
                truncated += 1
            elif data[4:6] == _SECCOMP_TYPE:
                add(data[begin:])
        return AuditBatch(messages, lost, truncated)

    def read_drops(self, paths: KernelPaths) -> int:
        """How many records the kernel dropped so far for want of room. Raises: KernelError."""
        return read_drops(paths, self._socket)


def read_unlogged_actions(paths: KernelPaths) -> tuple[str, ...]:
    """The seccomp actions that the kernel is told not to record, of those that it could.

    Source: kernel.seccomp.actions_logged and actions_avail (seccomp(2), "/proc interfaces").
    Raises: Gone where the kernel has no such parameter, NotPermitted.
    """
    base = f"{paths.proc}/sys/kernel/seccomp"
    logged = read_text(f"{base}/actions_logged", 4096).split()
    available = read_text(f"{base}/actions_avail", 4096).split()
    return tuple(action for action in LOGGABLE if action in available and action not in logged)
