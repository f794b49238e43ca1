# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs while nothing happens: CPU, wake-ups and memory in one window, next to a bare asyncio process and to tuned.

    python benchmarks/idle.py [--seconds S] [--executions N]

The daemon runs from byte code on a bus that runs already, as its service does on the system bus. First it is given so many
executions to look at (what ten minutes of building bring), so that its tables are filled; then all are left alone together.

tuned (the Debian package) is started where it is installed and this is root: in network and mount namespaces of its own, with a bus
of its own, the shipped configuration but with dynamic tuning off, an empty profile, and /proc/sys and /sys read-only, so that
it tunes nothing. One that runs already is measured as it is.

Executions by others in the window are printed: they wake the daemon as they should; a still machine is wanted for the wake-ups.
"""
from __future__ import annotations

import argparse
import os
import py_compile
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from processes import DAEMON_DIRECTORY, Measured, daemon_argv, ratio, running, table

_BARE = "import asyncio, socket, os\n" \
    "async def main():\n" \
    "    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:\n" \
    "        notify.sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])\n" \
    "    await asyncio.Event().wait()\n" \
    "asyncio.run(main())\n"
_LIVED_S = 0.03  # long enough to be read
_TUNED = "/usr/sbin/tuned"
_TUNED_START_S = 60.0
# In its own mount namespace: what it would write goes into a directory of ours, and what it would tune is read-only.
_ENCLOSE = """
set -e
mount --make-rprivate /
mount --bind "$0/etc" /etc/tuned
mount -t tmpfs none /run
mount -t tmpfs none /var/log
for kernel in /proc/sys /sys; do mount --bind "$kernel" "$kernel"; mount -o remount,ro,bind "$kernel"; done
exec /usr/sbin/tuned
"""
_BUS = """<busconfig>
  <type>session</type>
  <listen>unix:path={}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"""


def forks() -> int:
    """Processes and threads made since boot. Source: /proc/stat."""
    return next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("processes "))


def feed(executions: int) -> None:
    """Executes programs that live a moment, eight at a time."""
    for _ in range(executions // 8):
        children = [subprocess.Popen(["/bin/sleep", str(_LIVED_S)]) for _ in range(8)]
        for child in children:
            child.wait()


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends the process after the block."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def own_bus(directory: Path) -> Iterator[str]:
    """A dbus-daemon; gives its address."""
    (directory / "bus.conf").write_text(_BUS.format(directory))
    argv = ["dbus-daemon", f"--config-file={directory}/bus.conf", "--nofork", "--nopidfile", "--print-address=1"]
    with ended(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "dbus-daemon did not start"
        process.stdout.close()
        yield f"unix:path={directory}/bus"


def compile_daemon(directory: Path) -> dict[str, str]:
    """Byte code of the daemon, as its package has it; the environment that has it used."""
    environment = {"PYTHONPYCACHEPREFIX": str(directory), "PYTHONDONTWRITEBYTECODE": ""}
    sys.pycache_prefix = str(directory)
    for path in (DAEMON_DIRECTORY / "triaged").rglob("*.py"):
        py_compile.compile(str(path), doraise=True)
    # The first run leaves that of everything else there.
    subprocess.run([sys.executable, "-c", "import triaged.daemon"], check=True, env={
        **os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(DAEMON_DIRECTORY), os.environ.get("PYTHONPATH", "")])
    })
    return environment


def find_tuned() -> Measured | None:
    """A tuned that runs on this machine already."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                argv = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.endswith(b"sbin/tuned") for word in argv[:3]):
                found = Measured.__new__(Measured)
                found.name, found.start_s = "tuned", 0.0
                found.process = type("Running", (), {"pid": int(name)})()
                return found
    return None


@contextmanager
def own_tuned(directory: Path) -> Iterator[Measured | None]:
    """A tuned that can tune nothing; None, with the reason printed, where there can be none."""
    if not os.path.exists(_TUNED) or os.geteuid() != 0:
        why = "starting one needs root" if os.path.exists(_TUNED) else "apt-get install --no-install-recommends tuned"
        print(f"tuned does not run here: not compared ({why})")
        yield None
        return
    configuration = directory / "etc"
    (configuration / "nothing").mkdir(parents=True)
    shipped = Path("/etc/tuned/tuned-main.conf").read_text()
    (configuration / "tuned-main.conf").write_text(shipped.replace("dynamic_tuning = 1", "dynamic_tuning = 0"))
    (configuration / "active_profile").write_text("nothing\n")
    (configuration / "profile_mode").write_text("manual\n")
    (configuration / "nothing" / "tuned.conf").write_text("[main]\nsummary=nothing is tuned\n")
    with own_bus(directory) as address:
        environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address}
        argv = ["unshare", "--net", "--mount", "sh", "-c", _ENCLOSE, str(directory)]
        began = time.monotonic()
        with open(directory / "log", "wb") as log, ended(
            subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        ) as process:
            ask = ["busctl", f"--address={address}", "call", "com.redhat.tuned", "/Tuned", "com.redhat.tuned.control", "is_running"]
            while subprocess.run(ask, capture_output=True, text=True, check=False).stdout != "b true\n":
                if process.poll() is not None or time.monotonic() > began + _TUNED_START_S:
                    raise SystemExit(f"tuned does not start: {(directory / 'log').read_text()}")
                time.sleep(0.02)
            yield Measured("tuned", process, time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the daemon costs while nothing happens.")
    parser.add_argument("--seconds", type=float, default=60.0, help="the window (default 60)")
    parser.add_argument("--executions", type=int, default=6000, help="before it (default 6000: ten a second for ten minutes)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended

    with ExitStack() as stack:
        def directory() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="triaged-benchmark-")))

        compiled = compile_daemon(directory())
        argv, environment = daemon_argv("--bus", stack.enter_context(own_bus(directory())))
        bare = stack.enter_context(running("bare asyncio", [sys.executable, "-ISE", "-c", _BARE], waits_for_ready=True))
        daemon = stack.enter_context(running("triaged", argv, waits_for_ready=True, environment={**environment, **compiled}))
        tuned = find_tuned() or stack.enter_context(own_tuned(directory()))
        fresh = daemon.memory_mb()
        feed(options.executions)
        time.sleep(2)
        everyone = [bare, daemon, *([tuned] if tuned else [])]
        before = {one.name: (one.cpu_s(), one.wake_ups()) for one in everyone}
        forks_before = forks()
        time.sleep(options.seconds)
        made = forks() - forks_before
        cost = {one.name: (one.cpu_s() - before[one.name][0], one.wake_ups() - before[one.name][1]) for one in everyone}
        memory = {one.name: one.memory_mb() for one in everyone}
        (bare_rss, bare_pss), (tuned_rss, tuned_pss) = memory[bare.name], memory.get("tuned", (0.0, 0.0))
        rows = []
        for one in everyone:
            (cpu_s, wakes), (rss, pss) = cost[one.name], memory[one.name]
            rows.append([
                one.name, f"{1000 * cpu_s:.1f}", str(wakes),
                f"{rss:.1f}", ratio(rss, bare_rss), ratio(rss, tuned_rss),
                f"{pss:.1f}", ratio(pss, bare_pss), ratio(pss, tuned_pss),
                str(one.threads()), f"{one.start_s:.2f}" if one.start_s else "-", ratio(one.start_s, bare.start_s),
            ])
        of = ("of bare", "of tuned")
        print(table(("process", "CPU ms", "wake-ups", "RSS MB", *of, "PSS MB", *of, "threads", "start s", "of bare"), rows))
        print(f"window {options.seconds:.0f} s, after {options.executions} executions (RSS before them {fresh[0]:.1f} MB, "
              f"{ratio(fresh[0], bare_rss)} of bare); {made} processes and threads were made on this machine meanwhile")


if __name__ == "__main__":
    main()
