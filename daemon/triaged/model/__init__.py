# SPDX-License-Identifier: Apache-2.0
"""What triaged talks about: facts, verdicts, findings, fixes. No I/O anywhere below this package."""
