# SPDX-License-Identifier: Apache-2.0
"""The Debian package under test: its name, and where it lies inside a machine."""
from __future__ import annotations

from triaged import __version__

PACKAGE = f"triaged_{__version__}_all.deb"
INSIDE = f"/root/{PACKAGE}"
