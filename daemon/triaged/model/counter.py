# SPDX-License-Identifier: Apache-2.0
"""Counters of the kernel, by file and name."""
from __future__ import annotations

# Not the kernel's: under this name stands when a file was read (µs of CLOCK_MONOTONIC), so that its rise is the time in between.
READ_AT = "read at"
