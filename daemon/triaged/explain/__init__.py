# SPDX-License-Identifier: Apache-2.0
"""(process, symptom) -> ranked causes, each proved, ruled out or not decidable against the live state."""
