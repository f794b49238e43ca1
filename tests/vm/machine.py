# SPDX-License-Identifier: Apache-2.0
"""A virtual machine with systemd as process 1, restored from a snapshot, thrown away afterwards."""
from __future__ import annotations

import ctypes
import io
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from hardware import Snapshot, qemu_command
from image import WARM_UP, ImageError, build_disk, cache_directory, forget_old, image_key, locked, say

BOOT_TIMEOUT_S = 300.0
FRAME = struct.Struct(">4sII")
MAGIC = b"\xf5tri"
PR_SET_PDEATHSIG = 1


class MachineError(Exception):
    """The machine itself failed: it did not boot, ended, or stopped answering. The text ends with its console."""


@dataclass(frozen=True)
class Completed:
    """A command that ended inside. `status` as a shell would tell it: 128 + N for signal N."""

    argv: tuple[str, ...]
    status: int
    timed_out: bool
    seconds: float
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def err(self) -> str:
        return self.stderr.decode(errors="replace")

    def __str__(self) -> str:
        state = "timed out" if self.timed_out else f"status {self.status}"
        return f"$ {shlex.join(self.argv)}\n{state} after {self.seconds:.1f} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


class Machine:
    """One running QEMU. Made by `boot` or `restore`; ends with `close`, at the latest with this process.

    `arguments` are added to the kernel's command line; one that is restored must be given those that it was booted with.
    `is_patched`: code of the running kernel will be patched (trace events are switched on and off).
    """

    def __init__(
        self, snapshot: Snapshot, restore: bool, record: bool, arguments: str = "", is_patched: bool = False
    ) -> None:
        self.snapshot = snapshot
        self._record = record
        self._directory = Path(tempfile.mkdtemp(prefix="triaged-vm-"))
        self._request = 0
        self._port: socket.socket | None = None
        command = qemu_command(snapshot, self._directory, restore, record)
        if arguments:
            command[command.index("-append") + 1] += f" {arguments}"
        if is_patched:
            # Emulated in two threads a processor may run into code that the other is just patching: a kernel panicked in
            # __schedule with a half-patched call, once in about 50 runs under a trace.
            command = [word.replace("thread=multi", "thread=single") for word in command]
        with open(self._directory / "qemu.log", "wb") as log:
            self._qemu = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {"TMPDIR": str(self._directory)}, start_new_session=True, preexec_fn=_die_with_parent,
            )
        try:
            if restore:
                self._control(
                    ("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}),
                    ("migrate-incoming", {"uri": f"exec:cat {shlex.quote(str(snapshot.state))}"}),
                )
            self._connect(60.0 if restore else BOOT_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the machine at once; nothing of it stays."""
        if self._port:
            self._port.close()
        self._qemu.kill()
        self._qemu.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def console(self) -> str:
        """The end of what QEMU and the console said."""
        parts = []
        for name in ("qemu.log", "console.log"):
            path = self._directory / name
            if path.exists():
                parts.append(f"--- {name}\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts)

    def _failed(self, text: str) -> MachineError:
        state = self._qemu.poll()
        ended = "" if state is None else f" (QEMU exited {state})"
        return MachineError(f"{self.snapshot.suite}: {text}{ended}\n{self.console()}")

    def _wait_for_socket(self, name: str, deadline: float) -> socket.socket:
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._directory / name))
            except OSError:
                connection.close()
                if self._qemu.poll() is not None or time.monotonic() > deadline:
                    raise self._failed(f"QEMU does not offer its {name} socket") from None
                time.sleep(0.01)
            else:
                return connection

    def _control(self, *commands: tuple[str, dict[str, object]]) -> list[dict[str, object]]:
        """Talks QMP to QEMU. The answers in order. Raises: MachineError."""
        answers: list[dict[str, object]] = []
        with self._wait_for_socket("control", time.monotonic() + 30) as connection:
            connection.settimeout(60)
            with connection.makefile("rwb") as stream:
                stream.readline()
                for name, arguments in (("qmp_capabilities", {}), *commands):
                    stream.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
                    stream.flush()
                    answer: dict[str, object] = {}
                    while not {"return", "error"} & set(answer):  # events come in between
                        line = stream.readline()
                        if not line:
                            raise self._failed(f"QEMU closed its control socket at {name}")
                        answer = json.loads(line)
                    if "error" in answer:
                        raise self._failed(f"{name}: {answer['error']}")
                    result = answer["return"]
                    answers.append(result if isinstance(result, dict) else {})
        return answers[1:]

    def _connect(self, timeout_s: float) -> None:
        """Waits until the agent answers; a booting machine drops what comes before it listens, so the hello is repeated."""
        deadline = time.monotonic() + timeout_s
        self._port = self._wait_for_socket("agent", deadline)
        while True:
            nonce = secrets.token_hex(8)
            self._send({"nonce": nonce, "time": time.time(), "seed": secrets.token_hex(32)})
            try:
                while self._receive(min(2.0, max(0.1, deadline - time.monotonic())))[0].get("nonce") != nonce:
                    pass
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise self._failed(f"no answer from inside within {timeout_s:.0f} s") from None
            else:
                return

    def _send(self, header: dict[str, object], payload: bytes = b"") -> None:
        assert self._port
        encoded = json.dumps(header).encode()
        self._port.settimeout(120)
        try:
            self._port.sendall(FRAME.pack(MAGIC, len(encoded), len(payload)) + encoded + payload)
        except OSError as error:
            raise self._failed(f"the machine takes no more requests: {error}") from error

    def _receive(self, timeout_s: float) -> tuple[dict[str, object], bytes]:
        """Raises: TimeoutError; MachineError if the machine ended."""
        deadline = time.monotonic() + timeout_s
        head = self._read(FRAME.size, deadline)
        magic, header_size, payload_size = FRAME.unpack(head)
        if magic != MAGIC:
            raise self._failed(f"not a frame: {head!r}")
        return json.loads(self._read(header_size, deadline + 60)), self._read(payload_size, deadline + 60)

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._port
        data = bytearray()
        while len(data) < size:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            self._port.settimeout(remaining)
            try:
                piece = self._port.recv(size - len(data))
            except TimeoutError:
                raise
            except OSError as error:
                raise self._failed(f"the machine hung up: {error}") from error
            if not piece:
                raise self._failed("the machine hung up")
            data += piece
        return bytes(data)

    def run(
        self, argv: Sequence[str] | str, *, timeout: float = 120.0, stdin: bytes = b"", user: str = "root", cwd: str = "",
        env: dict[str, str] | None = None, check: bool = True,
    ) -> Completed:
        """Runs a command inside, a string by sh. `timeout` in seconds of real time; emulation is about ten times slower.

        Raises: MachineError if the machine does not answer; AssertionError if `check` and the command failed or timed out.
        """
        words = ("sh", "-c", argv) if isinstance(argv, str) else tuple(argv)
        self._request += 1
        self._send(
            {"id": self._request, "argv": words, "timeout": timeout, "user": user, "cwd": cwd, "env": env or {}}, stdin
        )
        try:
            header, payload = self._receive(timeout + 60)
        except TimeoutError:
            raise self._failed(f"{shlex.join(words)}: no answer within {timeout + 60:.0f} s") from None
        status, out = int(str(header["status"])), int(str(header["out"]))
        seconds, timed_out = float(str(header["seconds"])), bool(header["timed_out"])
        done = Completed(words, 128 - status if status < 0 else status, timed_out, seconds, payload[:out], payload[out:])
        assert not check or (done.status == 0 and not done.timed_out), str(done)
        return done

    def wait_until(self, argv: Sequence[str] | str, holds: Callable[[Completed], bool], *, timeout: float = 30.0) -> Completed:
        """Repeats a command until its result is as wanted. Raises: AssertionError with the last result."""
        deadline = time.monotonic() + timeout
        while True:
            done = self.run(argv, check=False)
            if holds(done):
                return done
            assert time.monotonic() < deadline, f"not within {timeout:.0f} s; the last was\n{done}"

    def put(self, source: Path, target: str) -> None:
        """Copies a file or a directory in, under the absolute name `target`."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(source, target.lstrip("/"), filter=_owned_by_root)
        self.run(["tar", "-C", "/", "--no-overwrite-dir", "-xf", "-"], stdin=buffer.getvalue())

    def write(self, target: str, text: str) -> None:
        """Makes a text file inside, and its directory."""
        self.run(["sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', target], stdin=text.encode())

    def get(self, source: str) -> bytes:
        """The content of a file inside."""
        return self.run(["cat", source]).stdout

    def save(self) -> None:
        """Writes the state of a machine that records, and ends it; its snapshot can be restored from then on."""
        assert self._record
        assert self._port
        self.run("sync; journalctl --flush")
        self._port.close()
        time.sleep(0.5)  # the agent notices that nobody is there and rests
        unfinished = self.snapshot.state.with_suffix(".unfinished")
        self._control(
            ("migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}),
            ("migrate", {"uri": f"exec:cat >{shlex.quote(str(unfinished))}"}),
        )
        deadline = time.monotonic() + 120
        while (status := self._control(("query-migrate", {}))[0].get("status")) != "completed":
            if status == "failed" or time.monotonic() > deadline:
                raise self._failed(f"snapshot: {status}")
            time.sleep(0.1)
        self._qemu.send_signal(signal.SIGTERM)
        self._qemu.wait(60)
        unfinished.rename(self.snapshot.state)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def ensure_image(suite: str) -> Snapshot:
    """The snapshot of a freshly booted system, built if it is not in the cache. Raises: ImageError, MachineError."""
    cache = cache_directory()
    with locked(cache):
        name = f"image-{suite}-{image_key(suite)}"
        directory = cache / name
        if not directory.exists():
            for left_over in [*cache.glob("unfinished-*"), *cache.glob("tmp*")]:  # of a builder that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            begun = time.monotonic()
            with tempfile.TemporaryDirectory(prefix=f"unfinished-{suite}-", dir=cache) as scratch:
                unfinished = Snapshot(suite, Path(scratch) / name)
                unfinished.directory.mkdir()
                build_disk(suite, unfinished.directory, cache)
                say(f"{suite}: first boot, emulated")
                machine = Machine(unfinished, restore=False, record=True)
                try:
                    done = machine.run(WARM_UP, timeout=900, check=False)
                    if done.status or not done.out.rstrip().endswith("running"):
                        raise ImageError(f"{suite}: the first boot did not end in a running system\n{done}\n{machine.console()}")
                    machine.save()
                finally:
                    machine.close()
                unfinished.directory.rename(directory)
            say(f"{suite}: built in {time.monotonic() - begun:.0f} s")
        os.utime(directory)
        forget_old(cache)
    return Snapshot(suite, directory)


def restore(snapshot: Snapshot, *, is_patched: bool = False) -> Machine:
    """A throw-away machine that continues where the snapshot was taken. `is_patched`: see Machine. Raises: MachineError."""
    return Machine(snapshot, restore=True, record=False, is_patched=is_patched)


def derive(snapshot: Snapshot, directory: Path, prepare: Callable[[Machine], None]) -> Snapshot:
    """A further snapshot: the given one, continued by `prepare`, as files in a new directory."""
    derived = Snapshot(snapshot.suite, directory)
    directory.mkdir(parents=True)
    for name in ("kernel", "initrd"):
        os.link(snapshot.directory / name, directory / name)
    for name in ("disk.img", "ram.img", "state"):
        copy = ["cp", "--reflink=auto", "--sparse=always", snapshot.directory / name, directory / name]
        subprocess.run(copy, check=True, stdin=subprocess.DEVNULL)
    machine = Machine(derived, restore=True, record=True)
    try:
        prepare(machine)
        machine.save()
    finally:
        machine.close()
    return derived


def boot_again(snapshot: Snapshot, directory: Path, arguments: str, prepare: Callable[[Machine], None]) -> Snapshot:
    """A further snapshot: the given one's disk, booted with more kernel arguments and continued by `prepare`. Takes a minute.

    Its memory holds what the arguments made of the system, so that it is restored like any other.
    """
    booted = Snapshot(snapshot.suite, directory)
    directory.mkdir(parents=True)
    for name in ("kernel", "initrd"):
        os.link(snapshot.directory / name, directory / name)
    copy = ["cp", "--reflink=auto", "--sparse=always", snapshot.disk, booted.disk]
    subprocess.run(copy, check=True, stdin=subprocess.DEVNULL)
    machine = Machine(booted, restore=False, record=True, arguments=arguments)
    try:
        prepare(machine)
        machine.save()
    finally:
        machine.close()
    return booted
