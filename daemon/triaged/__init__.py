# SPDX-License-Identifier: Apache-2.0
"""triaged finds out which limit of the operating system broke a test run, and proves it."""

__version__ = "0.1.0"
