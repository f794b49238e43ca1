# SPDX-License-Identifier: Apache-2.0
"""Whether a process is exempt from a limit by what it may do."""
from __future__ import annotations

from triaged.explain.situation import Situation
from triaged.model.process_state import Credentials

CAP_SYS_RAWIO, CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_RESOURCE = 17, 21, 23, 24
CAP_IPC_LOCK = 14


def has_on_host(situation: Situation, capability: int) -> bool:
    """Whether the process has the capability in the first user namespace, where limits of the machine ask for it."""
    process = situation.process
    if process is None or not isinstance(process.credentials, Credentials):
        return False
    return process.has_initial_user_namespace and process.credentials.has(capability)
