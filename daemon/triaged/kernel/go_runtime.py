# SPDX-License-Identifier: Apache-2.0
"""How many goroutines of a live Go process run at once: GOMAXPROCS, as its runtime decided it.

Hard facts (Go 1.27, runtime/cgroup_linux.go and proc.go; golang/go#73193, #81180):
- GOMAXPROCS of the environment wins if it is a positive number. `go test -cpu` sets it from within, for each of its values in turn.
- Since 1.25 the default is min(CPUs of the affinity mask, max(2, ceil(quota))); the quota is that of the process's own cgroup, an
  ancestor's tighter one is not seen. It is read again about once a second, and the file stays the one of the start.
- That needs GODEBUG containermaxprocs=1, which the go line of the main module's go.mod decides: below 1.25 the linker writes
  DefaultGODEBUG=...,containermaxprocs=0,... into the build info. GODEBUG of the environment wins over that.
- Before 1.25: the CPUs of the affinity mask. No quota is read.
"""
from __future__ import annotations

import math
import re

from triaged.errors import KernelError, Malformed
from triaged.kernel.build_info import GoBuildInfo
from triaged.kernel.files import read_bytes, read_text
from triaged.kernel.paths import KernelPaths
from triaged.model.cpu import CpuQuota, GoProcess
from triaged.model.limit import Unknown
from triaged.model.process import ProcessIdentity

_READS_QUOTA_SINCE = 25
_SETTING = "containermaxprocs"
_ENVIRONMENT_CAP = 1 << 18
_VERSION = re.compile(r"\bgo1\.(\d+)")


class GoRuntime:
    """What of a process decides its GOMAXPROCS and does not change while it lives: read once, asked often."""

    def __init__(self, paths: KernelPaths, process: ProcessIdentity, info: GoBuildInfo | None) -> None:
        self._paths = paths
        self._process = process
        self._info = info
        try:
            self._environment = parse_go_environment(read_bytes(f"{paths.proc}/{process.pid}/environ", _ENVIRONMENT_CAP))
            self._unread = ""
        except KernelError as error:
            self._environment, self._unread = {}, str(error)

    def now(self, leaf: CpuQuota | None) -> GoProcess:
        """The process with its GOMAXPROCS as it is now. `leaf` is its own cgroup's quota, None where no controller limits CPU."""
        cpus = read_cpus(self._paths, self._process.pid)
        gomaxprocs, origin = self._decide(cpus, leaf)
        return GoProcess(self._process, gomaxprocs, origin, cpus)

    def _decide(self, cpus: int | Unknown, leaf: CpuQuota | None) -> tuple[int | Unknown, str]:
        values = parse_cpu_flag(self._process.argv) if self._process.exe.endswith((".test", ".test.exe")) else ()
        if values:
            return max(values), f"-test.cpu={','.join(str(value) for value in values)}"
        if self._unread:
            return Unknown(f"its environment cannot be read: {self._unread}"), ""
        own = self._environment.get("GOMAXPROCS", "")
        if re.fullmatch(r"\+?[0-9]{1,9}", own) and int(own) > 0:
            return int(own), f"GOMAXPROCS={own} in its environment"
        if self._info is None:
            return Unknown("it has no Go build information"), ""
        if isinstance(cpus, Unknown):
            return cpus, ""
        version = self._info.go_version
        mask = f"{version}: the {cpus} CPUs of its affinity mask"
        reads_quota = self._reads_quota()
        if isinstance(reads_quota, Unknown):
            return reads_quota, ""
        if not reads_quota:
            return cpus, mask + ", whatever the quota"
        cores = leaf.cores if leaf is not None else None
        if cores is None:
            return cpus, mask + "; its own cgroup has no quota, and an ancestor's is not read"
        allowed = max(2, math.ceil(cores))
        return min(cpus, allowed), f"{version}: smaller of {cpus} CPUs and {allowed}, its own cgroup's quota rounded up, or 2"

    def _reads_quota(self) -> bool | Unknown:
        assert self._info is not None
        match = _VERSION.search(self._info.go_version)
        if match is None:
            return Unknown(f"of what age Go {self._info.go_version[:40]} is")
        if int(match.group(1)) < _READS_QUOTA_SINCE:
            return False
        for settings in (self._environment.get("GODEBUG", ""), self._info.default_godebug):
            if settings is None:
                return Unknown("its build information is too long: the go line of its go.mod (1.25 or later?) is not known")
            value = parse_godebug(settings).get(_SETTING)
            if value is not None:
                return value != "0"
        return True


def read_cpus(paths: KernelPaths, pid: int) -> int | Unknown:
    """The number of CPUs of a process's affinity mask, which its cpuset makes smaller.

    Source: /proc/PID/status, Cpus_allowed_list.
    """
    path = f"{paths.proc}/{pid}/status"
    try:
        for line in read_text(path, 16384).splitlines():
            if line.startswith("Cpus_allowed_list:"):
                return len(parse_cpu_list(line.partition(":")[2], path))
    except KernelError as error:
        return Unknown(str(error))
    return Unknown(f"{path} has no Cpus_allowed_list")


def parse_cpu_list(text: str, path: str = "cpu list") -> frozenset[int]:
    """The CPUs in a list as the kernel writes it: "0-3,8". Raises: Malformed."""
    found: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if match is None:
            if not part and not text.strip():
                break
            raise Malformed(path, text)
        first = int(match.group(1))
        found |= set(range(first, int(match.group(2) or first) + 1))
    return frozenset(found)


def parse_go_environment(record: bytes) -> dict[str, str]:
    """GOMAXPROCS and GODEBUG, of the text of /proc/PID/environ."""
    found: dict[str, str] = {}
    for entry in record.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and name in (b"GOMAXPROCS", b"GODEBUG"):
            found.setdefault(name.decode(), value[:4096].decode("utf-8", "surrogateescape"))
    return found


def parse_godebug(text: str) -> dict[str, str]:
    """The settings of a GODEBUG text, "name=value,name=value"; of a name that comes twice the last one counts, as in Go."""
    return {name.strip(): value for name, _, value in (entry.partition("=") for entry in text.split(",")) if name.strip()}


def parse_cpu_flag(argv: tuple[str, ...]) -> tuple[int, ...]:
    """The values of a test binary's -test.cpu, or ()."""
    for number, word in enumerate(argv):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "test.cpu":
            text = value if equals else "".join(argv[number + 1 : number + 2])
            return tuple(int(part) for part in text.split(",") if part.strip().isdecimal() and part.strip().isascii() and int(part))
    return ()
