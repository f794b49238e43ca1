# SPDX-License-Identifier: Apache-2.0
"""Classic BPF decoded and evaluated, system call tables per architecture, profiles, and what workloads need."""
