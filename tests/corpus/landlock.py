# SPDX-License-Identifier: Apache-2.0
"""landlock.py RULE... -- COMMAND...: runs a command under a Landlock ruleset, as a supervisor would.

A rule is RIGHTS:PATH, where RIGHTS are r (read, execute), w (everything) or n (everything but execute) below the path; nothing else
is allowed. `bind:PORT` and `connect:PORT` are the only ports that TCP may use where one of them is given.
"""
from __future__ import annotations

import ctypes
import os
import struct
import sys

CREATE, ADD, RESTRICT = 444, 445, 446
PATH_BENEATH, NET_PORT = 1, 2
NO_NEW_PRIVS = 38
EVERY_FILE_RIGHT = (1 << 13) - 1  # ABI 1
EXECUTE = 1 << 0
READ = EXECUTE | 1 << 2 | 1 << 3  # execute, read files, read directories
BIND, CONNECT = 1, 2
libc = ctypes.CDLL(None, use_errno=True)


def call(*arguments: object) -> int:
    value = int(libc.syscall(*arguments))
    if value < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return value


def main() -> None:
    cut = sys.argv.index("--")
    rules, command = sys.argv[1:cut], sys.argv[cut + 1 :]
    with_net = any(rule.startswith(("bind:", "connect:")) for rule in rules)
    attributes = struct.pack("QQ", EVERY_FILE_RIGHT, (BIND | CONNECT) if with_net else 0)
    ruleset = call(CREATE, attributes, ctypes.c_size_t(16 if with_net else 8), 0)
    for rule in rules:
        kind, _, what = rule.partition(":")
        if kind in ("bind", "connect"):
            call(ADD, ruleset, NET_PORT, struct.pack("QQ", BIND if kind == "bind" else CONNECT, int(what)), 0)
            continue
        path = os.open(what, os.O_PATH)
        rights = {"r": READ, "w": EVERY_FILE_RIGHT, "n": EVERY_FILE_RIGHT & ~EXECUTE}[kind]
        call(ADD, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, path), 0)
        os.close(path)
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    call(RESTRICT, ruleset, 0)
    os.close(ruleset)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
