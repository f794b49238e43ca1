# SPDX-License-Identifier: Apache-2.0
"""dbus-broker without systemd: `python broker_process.py NAME` (of an abstract socket) prints its pid and ends with its input.

dbus-broker-launch needs a running systemd, the broker itself only a controller: a connection over which it is given a
listening socket and a policy (org.bus1.DBus.Broker.AddListener). The limits are those that the launcher sets on a system bus.
"""
from __future__ import annotations

import array
import socket
import subprocess
import sys

from dbus_next import Message, Variant

_BATCH = "bta(btbs)a(btssssuutt)a(btssssuutt)"
_POLICY = f"(a(u({_BATCH}))a(buu({_BATCH}))a(ss)bs)"
_ANY_MESSAGE = [True, 1, "", "", "", "", 0, 0, 0, (1 << 64) - 1]
# Everybody may connect, own any name, send and receive anything.
_EVERYTHING = [True, 1, [[True, 1, True, ""]], [_ANY_MESSAGE], [_ANY_MESSAGE]]


def listen(name: str) -> socket.socket:
    """The socket that clients will connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind("\0" + name)
    listener.listen(256)
    return listener


def start(listener: socket.socket) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The running broker and the controller's end of its connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    broker = subprocess.Popen(
        [
            "dbus-broker", "--controller", str(theirs.fileno()), "--machine-id", "0123456789abcdef0123456789abcdef",
            "--max-bytes", "536870912", "--max-fds", "4096", "--max-matches", "131072", "--max-objects", "16384",
        ],
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    ours.settimeout(10)
    ours.sendall(b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
    answer = b""
    while answer.count(b"\r\n") < 3:
        answer += ours.recv(1)
    policy = [[[(1 << 32) - 1, _EVERYTHING]], [], [], False, "user"]
    message = Message(
        path="/org/bus1/DBus/Broker", interface="org.bus1.DBus.Broker", member="AddListener", signature="ohv", serial=1,
        body=["/org/bus1/DBus/Listener/0", 0, Variant(_POLICY, policy)], unix_fds=[listener.fileno()],
    )
    fds = array.array("i", [listener.fileno()])
    ours.sendmsg([message._marshall(negotiate_unix_fd=True)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    if ours.recv(4096)[1] != 2:
        raise SystemExit("dbus-broker refused the listener")
    return broker, ours


def main() -> None:
    broker, controller = start(listen(sys.argv[1]))
    print(broker.pid, flush=True)
    try:
        sys.stdin.read()
    finally:
        controller.close()
        broker.terminate()
        broker.wait()


if __name__ == "__main__":
    main()
