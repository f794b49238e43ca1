# SPDX-License-Identifier: Apache-2.0
"""`triagectl run` as an ordinary user: by way of triaged, polkit and the helper, all of them real."""
from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
from typing import Any

USER = 65534
ALLOW = """
polkit.addRule(function(action, subject) {
    if (action.id == "org.triaged.trace" && subject.user == "nobody") { return polkit.Result.YES; }
});
"""
# Everything is imported before the user is left who may read the interpreter's files.
RUN = """
import json, os, sys
import triaged.explain, triaged.run.observer, triaged.bus.client, triaged.kernel.trace_relay, triaged.kernel.kernel_log
import triaged.run.session, triaged.kernel.failing_calls, triaged.config, triaged.kernel.process_state, triaged.kernel.namespaces
from triaged.config import config_paths, load_workloads
from triaged.run.session import Options, Session
from triaged.seccomp.syscalls import native_arch, numbers_on
numbers_on(native_arch())
definitions = load_workloads(config_paths())
triaged.config.load_workloads = lambda paths: definitions
os.setgroups([])
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
os.chdir("/")
with Session({argv!r}, lambda *_: None, Options(bus={address!r})) as session:
    record = session.run()
symptoms = [[each.symptom.syscall, each.symptom.errno, each.symptom.count] for each in record.incidents]
print(json.dumps([record.is_traced, record.blind, symptoms]))
"""


async def run_as(uid: int, daemon: Any, *argv: str) -> Any:
    """What a run as that user found out."""
    machine = daemon.machine
    code = textwrap.dedent(RUN).format(uid=uid, argv=argv, address=machine.address)
    answer = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, timeout=60, env=machine.environment, check=False
    )
    assert answer.returncode == 0, answer.stderr.decode()
    return json.loads(answer.stdout.splitlines()[-1])


async def test_a_user_whom_polkit_allows_it_sees_his_failing_calls(polkit: Any, daemon: Any) -> None:
    polkit.stop_polkitd()
    polkit.start_polkitd(ALLOW)
    # By the shell itself: of a program that is gone at once the helper cannot know whose rights it had.
    is_traced, blind, incidents = await run_as(USER, daemon, "sh", "-c", "true 2>/dev/null >/sys/not-for-users; sleep 0.2")
    assert is_traced
    assert not [text for text in blind if "failing system calls" in text]
    assert [count for call, error, count in incidents if call in ("open", "openat") and error in ("EACCES", "EPERM")] == [1]


async def test_without_leave_the_run_goes_on_and_says_what_is_lost(polkit: Any, daemon: Any) -> None:
    is_traced, blind, incidents = await run_as(USER, daemon, "sh", "-c", "mkdir /sys/not-for-users 2>/dev/null; true")
    assert not is_traced
    assert incidents == []
    (why,) = [text for text in blind if "failing system calls" in text]
    assert "org.triaged.trace needs authentication" in why
    assert "sudo" in why


async def test_only_ones_own_process_is_traced(polkit: Any, daemon: Any) -> None:
    polkit.stop_polkitd()
    polkit.start_polkitd(ALLOW)
    result = await polkit.as_user_async(USER, f'result = await manager("StartTrace", "ut", {os.getpid()}, 1)')
    assert result[0] == "org.triaged.Triage1.Error.NotAuthorized"
    result = await polkit.as_user_async(USER, 'result = await manager("StartTrace", "ut", 4194303, 1)')
    assert result[0] == "org.triaged.Triage1.Error.NoSuchProcess"
    result = await polkit.as_user_async(USER, 'result = await manager("StartTrace", "ut", os.getpid(), 1)')
    assert result[0] == "org.triaged.Triage1.Error.NoSuchProcess"  # that is not when it began


async def test_the_helper_itself_serves_nobody_else(polkit: Any, daemon: Any) -> None:
    result = await polkit.as_user_async(USER, """
        try:
            result = await connection.call(HELPER_NAME, HELPER_PATH, HELPER, "StartTrace", "utu", (os.getpid(), 1, os.getuid()))
        except BusError as error:
            result = error.name
    """)
    assert result == "org.freedesktop.DBus.Error.AccessDenied"
