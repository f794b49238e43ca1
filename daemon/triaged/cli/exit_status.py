# SPDX-License-Identifier: Apache-2.0
"""What triagectl's exit status says."""
from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """The same number means the same for every command; a command that runs another one gives that one's status."""

    FINE = 0
    FOUND = 1
    COULD_NOT_LOOK = 2
    NO_DAEMON = 3
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


# For the manual and for --help; kept beside the numbers.
MEANINGS: tuple[tuple[ExitStatus, str], ...] = (
    (ExitStatus.FINE, "Nothing found, or done."),
    (ExitStatus.FOUND, "Findings of severity warning or worse; or what was named does not exist."),
    (ExitStatus.COULD_NOT_LOOK, "Could not look: no source can be read, or a configuration file or the command line is wrong."),
    (ExitStatus.NO_DAEMON, "The daemon cannot be reached over the message bus."),
    (ExitStatus.INTERRUPTED, "Interrupted (Ctrl-C)."),
    (ExitStatus.OUTPUT_CLOSED, "Whoever read the output closed it before the end."),
)
