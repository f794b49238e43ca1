# SPDX-License-Identifier: Apache-2.0
"""The real polkitd: refused for an unprivileged caller, allowed for root, allowed by a rule file; and what happens without it."""
from __future__ import annotations

import asyncio
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from triaged.bus.authority import POLKIT, Action, Authority
from triaged.bus.connection import Connection, connect
from triaged.bus.objects import Caller
from triaged.errors import BusError

USER = 65534
ROOT = Path(__file__).resolve().parents[3]
DAEMON = 1  # a user that every Debian has; the bus knows nobody by number alone
ALLOW_APPLY = """polkit.addRule(function(action, subject) {
    if (action.id == "org.triaged.apply-fix" && subject.user == "nobody") { return polkit.Result.YES; }
    if (action.id == "org.triaged.undo-fix" && subject.user == "nobody") { return polkit.Result.NO; }
});
"""


async def ask(machine: Any, action: Action, uid: int, may_interact: bool = False, **limits: float) -> str:
    """What polkit says to a real connection of that user: '' if it is allowed, else the refusal."""
    # The connection whose right is asked for belongs to another process of another user.
    program = textwrap.dedent(f"""
        import asyncio, os
        from triaged.bus.connection import connect
        os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
        async def main():
            connection = await connect({machine.address!r})
            print(connection.unique_name, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """)
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=machine.environment
    )
    assert other.stdout is not None
    name = (await other.stdout.readline()).decode().strip()
    assert name.startswith(":"), name
    asking = await connect(machine.address)
    try:
        authority = Authority(lambda: asking, **limits)
        await authority.demand(action, Caller(name, uid, may_interact=may_interact))
        return ""
    except BusError as error:
        return f"{error.name.removeprefix('org.triaged.Triage1.Error.NotAuthorized')}{error}"
    finally:
        await asking.close()
        other.kill()
        await other.communicate()


@pytest.mark.parametrize("action", list(Action))
async def test_an_unprivileged_caller_is_refused_and_told_how(polkit: Any, action: Action) -> None:
    refusal = await ask(polkit, action, USER)
    assert refusal.startswith(f"{action.value} needs authentication, and the call does not allow to ask for it")
    refusal = await ask(polkit, action, USER, may_interact=True)
    assert refusal.startswith(f"{action.value} needs authentication, and there is no agent")


@pytest.mark.parametrize("action", list(Action))
async def test_root_is_allowed(polkit: Any, action: Action) -> None:
    assert await ask(polkit, action, 0) == ""


async def test_a_rule_file_decides(machine: Any) -> None:
    machine.start_polkitd(ALLOW_APPLY)
    assert await ask(machine, Action.APPLY_FIX, USER) == ""
    assert await ask(machine, Action.UNDO_FIX, USER) == "org.triaged.undo-fix: polkit does not allow it to user 65534"
    assert (await ask(machine, Action.DISMISS, USER)).startswith("org.triaged.dismiss needs authentication")
    assert (await ask(machine, Action.APPLY_FIX, DAEMON)).startswith("org.triaged.apply-fix needs authentication")


async def test_without_polkit_root_may_and_nobody_else(machine: Any) -> None:
    assert await ask(machine, Action.APPLY_FIX, 0) == ""
    assert await ask(machine, Action.APPLY_FIX, USER) == (
        "org.triaged.apply-fix: polkit is not running, so only root may (user 65534 asked)"
    )


async def test_the_caller_is_who_the_bus_says_not_who_we_say(polkit: Any, connection: Connection) -> None:
    """A user id that is wrong on our side changes nothing: polkit asks the bus about the name."""
    refusal = await ask(polkit, Action.APPLY_FIX, USER)
    assert refusal
    with pytest.raises(BusError):
        await Authority(lambda: connection).demand(Action.APPLY_FIX, Caller(":1.99999", 0))


class MutePolkit:
    """Has polkit's name, and takes as long as a person who is at lunch."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.asked = asyncio.Event()

    async def start(self, address: str) -> Connection:
        def on_call(connection: Connection, message: Any) -> None:
            if message.header.member == "CheckAuthorization":
                self.asked.set()
            if message.header.member == "CancelCheckAuthorization":
                self.cancelled.extend(message.values())
                connection.reply(message, "", b"")

        made = await connect(address, on_call=on_call)
        await made.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName", "su", [POLKIT, 4])
        return made


async def test_a_question_without_an_answer_is_refused_after_its_time_and_taken_back(machine: Any) -> None:
    mute = MutePolkit()
    serving = await mute.start(machine.address)
    refusal = await ask(machine, Action.APPLY_FIX, 0, may_interact=True, interactive_time_limit_s=0.3)
    assert refusal == "org.triaged.apply-fix: no authentication within 0.3 s"
    assert len(mute.cancelled) == 1
    await serving.close()


async def test_a_caller_that_gives_up_takes_the_question_back(machine: Any, connection: Connection) -> None:
    mute = MutePolkit()
    serving = await mute.start(machine.address)
    question = asyncio.ensure_future(Authority(lambda: connection).demand(Action.APPLY_FIX, Caller(connection.unique_name, 0)))
    await mute.asked.wait()
    question.cancel()
    with pytest.raises(asyncio.CancelledError):
        await question
    assert len(mute.cancelled) == 1
    await serving.close()


async def test_an_answer_that_is_an_error_allows_nothing_even_to_root(machine: Any) -> None:
    def on_call(connection: Connection, message: Any) -> None:
        connection.reply_error(message, "org.freedesktop.PolicyKit1.Error.Failed", "no action org.triaged.apply-fix")

    serving = await connect(machine.address, on_call=on_call)
    await serving.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName", "su", [POLKIT, 4])
    assert await ask(machine, Action.APPLY_FIX, 0) == (
        "org.triaged.apply-fix: polkit cannot say (no action org.triaged.apply-fix)"
    )
    await serving.close()


async def test_without_a_connection_nothing_is_allowed() -> None:
    with pytest.raises(BusError, match="connection to the bus is lost"):
        await Authority(lambda: None).demand(Action.APPLY_FIX, Caller(":1.1", 0))


def test_every_action_is_described_and_may_be_asked_about_by_triaged() -> None:
    text = (ROOT / "dbus/org.triaged.policy").read_text()
    described = dict(re.findall(r'<action id="([^"]+)">(.*?)</action>', text, re.DOTALL))
    assert set(described) == {action.value for action in Action}
    for body in described.values():
        assert '<annotate key="org.freedesktop.policykit.owner">unix-user:triaged</annotate>' in body
        assert re.findall(r"<allow_\w+>(\w+)<", body) == ["auth_admin", "auth_admin", "auth_admin_keep"]
