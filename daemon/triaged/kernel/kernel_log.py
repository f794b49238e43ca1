# SPDX-License-Identifier: Apache-2.0
"""The kernel log (/dev/kmsg), and the records in it that speak of limits.

Hard facts (measured on 6.18, 6.12 and 6.1):
- A read gives one record: "priority,sequence,µs,flags;text\\n", then " KEY=value" lines. Bytes below 32, above 126 and the
  backslash come as \\xNN, so that no name can forge a line. EPIPE: records were overwritten before they were read.
- Whoever may open it for writing can add records; the kernel lets none of them have its own facility, 0.
- A record holds at most 1,024 bytes. A longer line goes on in records with the flag `c`: a cgroup path of more than
  about 400 bytes comes in a record of its own, cut at 1,021 bytes.
- "fork rejected by pids controller" is written for the first refusal of a cgroup only, and names the forking task's cgroup.
- An OOM kill writes "oom-kill:constraint=..." (at most 10 in 5 s) and then "... Killed process PID (comm)" (always). With
  memory.oom.group the victim is killed, written and counted once more with the rest of its cgroup.
- comm and cgroup names may hold commas and "=". The line of the kill tells the comm, and so where the path before it ends; where
  an oom-kill line can still be read in two ways, it names no cgroup here.
"""
from __future__ import annotations

import errno
import os
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Union

from triaged.errors import InterfaceMissing, Malformed, NotPermitted
from triaged.kernel.files import translated
from triaged.kernel.oom_report import ReportParser
from triaged.kernel.paths import KernelPaths
from triaged.model.memory import OomReport

_RECORD_CAP = 8192
_CUT_AT = 1000  # a path record of so many bytes was cut by the kernel
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_REJECTED = "cgroup: fork rejected by pids controller in "
_OOM = "oom-kill:constraint="
_OOM_FIELDS = re.compile(r"^oom-kill:constraint=\w+,.*?(?:global_oom|oom_memcg=(/.*?)),task_memcg=(.*),pid=(\d+),uid=(\d+)$", re.S)
_KILLED = re.compile(
    r"^(?P<why>Memory cgroup out of memory|Out of memory[^:]*): Killed process (?P<pid>\d+) \((?P<comm>.*)\) "
    r"total-vm:.*?(?: UID:(?P<uid>\d+))?(?: pgtables:.*)?$",
    re.S,
)
_SUPPRESSED = re.compile(r"^(?P<who>[\w.-]+): (?P<records>\d+) callbacks suppressed$")
_UNPAIRED_CAP = 64


@dataclass(frozen=True)
class LogRecord:
    """One record: syslog priority (0 to 7), sequence number, stamp in µs since boot, and the text without escapes.

    `is_kernels`: the kernel itself wrote it, not a program that logs there.
    """

    priority: int
    sequence: int
    stamp_usec: int
    text: str
    is_continued: bool = False
    is_kernels: bool = True


@dataclass(frozen=True)
class OomKill:
    """The OOM killer ended one process. `limit_path` is the memory cgroup whose limit was hit, `cgroup_path` the victim's.

    Both are "" where no record says so. `uid` is -1 where it is not known. `text` holds the records. `report` is what the kernel
    wrote before them; `is_repeated`: it writes and counts this victim a second time (memory.oom.group).
    """

    pid: int
    comm: str
    uid: int
    is_host_wide: bool
    limit_path: str
    cgroup_path: str
    stamp_usec: int
    text: str
    is_repeated: bool = False
    report: OomReport | None = None


@dataclass(frozen=True)
class ForkRejected:
    """The first fork that a pids.max refused in `path`, the forking task's cgroup. `is_cut`: that is only the path's beginning."""

    path: str
    stamp_usec: int
    text: str
    is_cut: bool = False


@dataclass(frozen=True)
class Suppressed:
    """The kernel says that `records` lines of `who` were not written (its rate limit)."""

    who: str
    records: int


LogEvent = Union[OomKill, ForkRejected, Suppressed]


class KernelLogReader:
    """/dev/kmsg, from its end (`from_start`: from the oldest record). Never blocks; `lost` counts overruns."""

    def __init__(self, paths: KernelPaths, from_start: bool = False) -> None:
        """Raises: NotPermitted without CAP_SYSLOG (kernel.dmesg_restrict) or the right to open the device; InterfaceMissing."""
        path = f"{paths.dev}/kmsg"
        self.path = path
        self.lost = 0
        self.malformed = 0
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            remedy = "a container sees it only if the host gives it /dev/kmsg"
            raise InterfaceMissing(path, "there is no kernel log here", remedy) from error
        except PermissionError as error:
            raise NotPermitted(path, remedy="needs CAP_SYSLOG and read access to /dev/kmsg") from error
        except OSError as error:
            raise translated(error, path) from error
        if not from_start:
            try:
                os.lseek(self._descriptor, 0, os.SEEK_END)
            except OSError as error:
                os.close(self._descriptor)
                raise translated(error, path) from error

    def fileno(self) -> int:
        return self._descriptor

    def read(self, limit: int = 256) -> list[LogRecord]:
        """The records that are waiting, at most `limit`; empty at the end of the log. Records that cannot be parsed are counted.

        Raises: NotPermitted, KernelError.
        """
        records = []
        for _ in range(limit):
            try:
                data = os.read(self._descriptor, _RECORD_CAP)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:
                    self.lost += 1
                    continue
                raise translated(error, self.path) from error
            if not data:
                break
            try:
                records.append(parse_record(data, self.path))
            except Malformed:
                self.malformed += 1
        return records

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def parse_record(data: bytes, path: str = "kmsg") -> LogRecord:
    """One record as /dev/kmsg gives it (Documentation/ABI/testing/dev-kmsg).

    Raises: Malformed.
    """
    head, separator, rest = data.partition(b";")
    fields = head.split(b",")
    if not separator or len(fields) < 3:
        raise Malformed(path, data[:200].decode("latin-1"))
    try:
        priority, sequence, stamp = int(fields[0]), int(fields[1]), int(fields[2])
    except ValueError as error:
        raise Malformed(path, data[:200].decode("latin-1")) from error
    text = _ESCAPE.sub(lambda match: bytes((int(match.group(1), 16),)), rest.partition(b"\n")[0])
    is_continued = len(fields) > 3 and fields[3][:1] in (b"c", b"+")
    return LogRecord(priority & 7, sequence, stamp, text.decode("utf-8", "surrogateescape"), is_continued, priority >> 3 == 0)


@dataclass(frozen=True)
class _OomLine:
    """One oom-kill line. `path_and_task` is "PATH,task=COMM": only the kill that follows tells where the comm begins."""

    pid: int
    uid: int
    limit_path: str
    path_and_task: str
    text: str
    report: OomReport | None = None


@dataclass
class LogParser:
    """Records in, events out: puts continued lines together, and an oom-kill line with the kill that follows it."""

    _open: LogRecord | None = None
    _oom_lines: OrderedDict[int, _OomLine] = field(default_factory=OrderedDict)
    _killed: OrderedDict[int, int] = field(default_factory=OrderedDict)
    _report: ReportParser = field(default_factory=ReportParser)

    def feed(self, record: LogRecord) -> LogEvent | None:
        """The event that this record completes, or None."""
        if not record.is_kernels:
            return None
        is_cut = False
        if record.is_continued:
            if self._open is None:
                return None
            is_cut = len(os.fsencode(record.text)) >= _CUT_AT
            begun = self._open
            record = LogRecord(begun.priority, begun.sequence, begun.stamp_usec, (begun.text + record.text)[:_RECORD_CAP])
            self._open = None
        text = record.text
        if text.startswith(_REJECTED):
            if text == _REJECTED:
                self._open = record
                return None
            return ForkRejected(text[len(_REJECTED) :], record.stamp_usec, text, is_cut)
        if text.startswith(_OOM):
            self._take_oom_line(record)
            return None
        killed = _KILLED.match(text)
        if killed:
            return self._kill(record, killed)
        suppressed = _SUPPRESSED.match(text)
        if suppressed:
            return Suppressed(suppressed["who"], int(suppressed["records"]))
        self._report.feed(text)
        return None

    def _take_oom_line(self, record: LogRecord) -> None:
        match = _OOM_FIELDS.match(record.text)
        if match is None:
            self._open = record  # its path, or what follows the path, comes in the next record
            return
        limit_path = "" if ",task_memcg=" in match.group(2) else match.group(1) or ""
        line = _OomLine(int(match.group(3)), int(match.group(4)), limit_path, match.group(2), record.text, self._report.finish())
        self._oom_lines[line.pid] = line
        if len(self._oom_lines) > _UNPAIRED_CAP:
            self._oom_lines.popitem(last=False)

    def _kill(self, record: LogRecord, killed: re.Match[str]) -> OomKill:
        pid = int(killed["pid"])
        line = self._oom_lines.pop(pid, None)
        uid = int(killed["uid"]) if killed["uid"] else line.uid if line else -1
        # memory.oom.group kills the victim, then all of its cgroup, the victim again.
        before = self._killed.pop(pid, None)
        self._killed[pid] = record.stamp_usec
        if len(self._killed) > _UNPAIRED_CAP:
            self._killed.popitem(last=False)
        return OomKill(
            pid=pid,
            comm=killed["comm"],
            uid=uid,
            is_host_wide=not killed["why"].startswith("Memory cgroup"),
            limit_path=line.limit_path if line else "",
            cgroup_path=_path_before(killed["comm"], line.path_and_task) if line else "",
            stamp_usec=record.stamp_usec,
            text=f"{line.text}\n{record.text}" if line else record.text,
            is_repeated=before is not None and line is None and record.stamp_usec - before < 1_000_000,
            report=line.report if line else None,
        )


def _path_before(comm: str, path_and_task: str) -> str:
    """The path in "PATH,task=COMM"; "" where the kernel cut it, or where it may have another beginning."""
    path = path_and_task.removesuffix(f",task={comm}")
    if path == path_and_task or ",task_memcg=" in path or len(os.fsencode(path)) >= _CUT_AT:
        return ""
    return path


def realtime_of(stamp_usec: int, monotonic_s: float, realtime_s: float) -> int:
    """The wall-clock time (µs since the epoch) of a record's stamp, given both clocks at one moment; never in the future of it.

    The log's clock does not count suspended time and drifts a little against CLOCK_MONOTONIC.
    """
    age_usec = max(0, int(monotonic_s * 1_000_000) - stamp_usec)
    return int(realtime_s * 1_000_000) - age_usec
