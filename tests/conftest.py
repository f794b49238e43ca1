# SPDX-License-Identifier: Apache-2.0
"""For all tests: the signals of a terminal are heeded, by what the tests start too."""
from __future__ import annotations

import signal

# A shell's & has both ignored, and so has every process below it: the tests of what they do would fail or never end.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
