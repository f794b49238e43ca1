# SPDX-License-Identifier: Apache-2.0
"""A test that is no Go: it holds more files open than a small limit grants."""
from __future__ import annotations


def test_many_files() -> None:
    files = [open("/etc/passwd") for _ in range(200)]  # noqa: SIM115
    for file in files:
        file.close()
