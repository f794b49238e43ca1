# SPDX-License-Identifier: Apache-2.0
"""Resource limits as the kernel writes them."""
from __future__ import annotations

import os
import resource

import pytest

from triaged.errors import Gone, Malformed
from triaged.kernel.paths import KernelPaths
from triaged.kernel.resource_limits import parse_resource_limits, read_resource_limits
from triaged.model.limit import UNLIMITED

TEXT = """Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 524288               files
Max something new         1                    2                    things
Max realtime timeout      unlimited            unlimited            us
"""


def test_numbers_and_unlimited_are_told_apart() -> None:
    limits = parse_resource_limits(TEXT)
    assert (limits["NOFILE"].soft, limits["NOFILE"].hard) == (1024, 524288)
    assert limits["CPU"].hard is UNLIMITED
    assert set(limits) == {"CPU", "NOFILE", "RTTIME"}


def test_every_limit_of_this_process_is_as_getrlimit_says() -> None:
    limits = read_resource_limits(KernelPaths(), os.getpid())
    assert len(limits) == 16
    compared = 0
    for name, found in limits.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is None:
            continue
        wanted = [UNLIMITED if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(number)]
        assert [found.soft, found.hard] == wanted, name
        compared += 1
    assert compared >= 12


@pytest.mark.parametrize("text", ["", "nonsense\n", "Limit\nMax open files\n", "Limit\nMax open files            x 1 files\n"])
def test_nonsense_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_resource_limits(text)


def test_of_a_process_that_ended_nothing_is_said(tmp_path: object) -> None:
    with pytest.raises(Gone):
        read_resource_limits(KernelPaths.below(str(tmp_path)), 4)
