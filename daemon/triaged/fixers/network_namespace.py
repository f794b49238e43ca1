# SPDX-License-Identifier: Apache-2.0
"""Doing something inside the network namespace of another process.

Facts that shape this module: setns() moves the calling thread only, and /proc/sys/net shows the namespace of the
thread that looks it up; so a thread of its own goes there, does it, and ends. Needs CAP_SYS_ADMIN over the
namespace's owner (setns(2)).
"""
from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from triaged.errors import Gone, KernelError
from triaged.kernel.files import translated
from triaged.kernel.parameters import ParameterReader
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks

CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def in_network_namespace(paths: KernelPaths, pid: int, start_ticks: int, work: Callable[[], T]) -> T:
    """What `work` returns when it is called in the network namespace of the process. Blocking.

    Raises: Gone if it is not that process any more; NotPermitted; whatever `work` raises.
    """
    path = f"{paths.proc}/{pid}/ns/net"
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise translated(error, path) from error
    results: list[T] = []
    errors: list[BaseException] = []

    def inside() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace, CLONE_NEWNET) != 0:
                raise translated(OSError(ctypes.get_errno(), ""), path)
            results.append(work())
        except BaseException as error:  # carried over to the caller's thread, whatever it is
            errors.append(error)

    try:
        # Read after the open: if the pid were reused meanwhile, the start time would differ.
        if read_start_ticks(paths, pid) != start_ticks:
            raise Gone(path)
        thread = threading.Thread(target=inside, name=f"netns-of-{pid}")
        thread.start()
        thread.join()
    finally:
        os.close(namespace)
    if errors:
        raise errors[0]
    if not results:
        raise KernelError(path, "nothing came back from the namespace")
    return results[0]


def read_parameters(paths: KernelPaths, pid: int, start_ticks: int, keys: Iterable[str]) -> dict[str, str]:
    """The parameters as the network namespace of the process has them, without those that it has not. Blocking.

    Raises: as `in_network_namespace`; NotPermitted, KernelError.
    """

    def read() -> dict[str, str]:
        reader, out = ParameterReader(paths), {}
        for key in keys:
            with suppress(Gone):
                out[key] = reader.read(key)
        return out

    return in_network_namespace(paths, pid, start_ticks, read)
