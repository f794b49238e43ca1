# SPDX-License-Identifier: Apache-2.0
"""Reads what a command prints while it passes by: which tests failed, and what they say of the operating system."""
