# SPDX-License-Identifier: Apache-2.0
"""On a loaded machine making an example may take longer than hypothesis likes; that says nothing about what is tested."""
from hypothesis import HealthCheck, settings

settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loaded")
