#!/usr/bin/python3 -u
# SPDX-License-Identifier: Apache-2.0
"""Runs inside the virtual machine and executes what the test asks for, one command at a time.

A frame is the magic, two lengths (big endian), a JSON header and a payload. The port gives end-of-file while nobody is connected
outside, also in the middle of a snapshot; a new connection begins with a hello, at which everything older is forgotten.
"""
import fcntl
import json
import os
import pwd
import signal
import struct
import subprocess
import time

PORT = "/dev/virtio-ports/triaged.test"
FRAME = struct.Struct(">4sII")
MAGIC = b"\xf5tri"
RNDRESEEDCRNG = 0x5207
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}


def read_exactly(port: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(port, min(size - len(data), 1 << 18))
        if not piece:
            time.sleep(0.02)
        data += piece
    return data


def write_all(port: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(port, view[: 1 << 16]) :]


def receive(port: int) -> tuple[dict, bytes]:
    head = read_exactly(port, FRAME.size)
    while not head.startswith(MAGIC):  # the rest of a frame whose sender went away
        head = head[1:] + read_exactly(port, 1)
    _, header_size, payload_size = FRAME.unpack(head)
    return json.loads(read_exactly(port, header_size)), read_exactly(port, payload_size)


def send(port: int, header: dict, payload: bytes = b"") -> None:
    encoded = json.dumps(header).encode()
    write_all(port, FRAME.pack(MAGIC, len(encoded), len(payload)) + encoded + payload)


def greet(request: dict) -> dict:
    """After a restore the clock stands still at the snapshot, and the random numbers would repeat."""
    time.clock_settime(time.CLOCK_REALTIME, request["time"])
    with open("/dev/urandom", "wb", buffering=0) as urandom:
        urandom.write(request["seed"].encode())
        fcntl.ioctl(urandom, RNDRESEEDCRNG)
    return {"nonce": request["nonce"]}


def execute(request: dict, stdin: bytes) -> tuple[dict, bytes]:
    account = pwd.getpwnam(request["user"])
    environment = ENVIRONMENT | {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name} | request["env"]
    begun = time.monotonic()
    # Output goes to files, not to pipes: a background process that inherits it does not keep the command from ending.
    with open("/run/agent.out", "wb+") as out, open("/run/agent.err", "wb+") as err:
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            cwd=request["cwd"] or account.pw_dir,
            env=environment,
            user=account.pw_uid if account.pw_uid else None,
            group=account.pw_gid if account.pw_uid else None,
            extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account.pw_uid else None,
            umask=0o022,
            start_new_session=True,
        )
        timed_out = False
        try:
            process.communicate(stdin, timeout=request["timeout"])
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        output, errors = out.read(), err.read()
    result = {"status": process.returncode, "timed_out": timed_out, "seconds": time.monotonic() - begun, "out": len(output)}
    return result, output + errors


def main() -> None:
    while not os.path.exists(PORT):  # udev makes it, and may be later than this
        time.sleep(0.1)
    port = os.open(PORT, os.O_RDWR | os.O_NOCTTY)
    while True:
        request, payload = receive(port)
        if "nonce" in request:
            send(port, greet(request))
            continue
        try:
            header, output = execute(request, payload)
        except (OSError, KeyError) as error:
            header, output = {"status": 127, "timed_out": False, "seconds": 0.0, "out": 0}, f"{error}\n".encode()
        send(port, {"id": request["id"], **header}, output)


if __name__ == "__main__":
    main()
