# SPDX-License-Identifier: Apache-2.0
"""One module per architecture, imported on first use by `syscalls`; all are written by scripts/make-syscall-tables."""
