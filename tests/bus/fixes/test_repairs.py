# SPDX-License-Identifier: Apache-2.0
"""PreviewFix, ApplyFix, UndoFix, ListFixes and DismissFinding over the bus, with the real helper and the real polkitd."""
from __future__ import annotations

import asyncio
import resource
from asyncio.subprocess import PIPE
from dataclasses import replace
from typing import Any

import pytest

from triaged.bus.connection import Connection
from triaged.bus.repairs import FixEventKind
from triaged.bus.seam import Variant
from triaged.bus.service import MANAGER, MANAGER_PATH, SERVICE_NAME
from triaged.errors import BusError
from triaged.kernel.paths import KernelPaths
from triaged.kernel.process import read_start_ticks
from triaged.model.finding import State
from triaged.model.fix import SetParameter

HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
ERROR = "org.triaged.Triage1.Error."
USER = 65534


def limit(pid: int) -> int:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


def key(daemon: Any, finding: str) -> str:
    return str(daemon.found[finding].fixes[0].key)


async def call(daemon: Any, uid: int, member: str, *arguments: Any, options: str | None = "{}") -> Any:
    """What the Manager answers to that user: [value] or [error name, text]."""
    values = ", ".join([*(repr(argument) for argument in arguments), *([options] if options is not None else [])])
    signature = "s" * len(arguments) + ("a{sv}" if options is not None else "")
    return await daemon.machine.as_user_async(uid, f"result = await manager({member!r}, {signature!r}, {values})")


async def test_anybody_may_preview_what_he_may_see(polkit: Any, daemon: Any, limited: int) -> None:
    (preview,) = await call(daemon, USER, "PreviewFix", "files-1", key(daemon, "files-1"))
    assert (preview["Old"], preview["New"], preview["Obstacle"]) == (f"64:{HARD}", f"2000:{HARD}", "")
    assert preview["Commands"] == [["prlimit", f"--pid={limited}", f"--nofile=2000:{HARD}"]]
    assert preview["Verification"].startswith("will open 72 files")
    assert preview["Undoable"]
    assert limit(limited) == 64
    assert (await call(daemon, USER, "PreviewFix", "private", key(daemon, "private")))[0] == ERROR + "NoSuchFinding"
    (preview,) = await call(daemon, 1, "PreviewFix", "private", key(daemon, "private"))
    assert preview["New"] == f"2500:{HARD}"


async def test_an_unauthorised_caller_changes_nothing(polkit: Any, daemon: Any, limited: int) -> None:
    fix = key(daemon, "files-1")
    for member, arguments in (("ApplyFix", ("files-1", fix)), ("UndoFix", ("files-1", fix)), ("UndoFix", ("gone", ""))):
        name, text = await call(daemon, USER, member, *arguments)
        assert name == ERROR + "NotAuthorized"
        assert "needs authentication" in text
    name, _ = await call(daemon, USER, "DismissFinding", "files-1", "no matter", options=None)
    assert name == ERROR + "NotAuthorized"
    assert limit(limited) == 64
    assert daemon.events == []
    assert daemon.found["files-1"].state is State.OPEN


async def test_root_applies_sees_and_undoes_and_each_is_told_with_the_caller(polkit: Any, daemon: Any, limited: int) -> None:
    fix = key(daemon, "files-1")
    (outcome,) = await call(daemon, 0, "ApplyFix", "files-1", fix)
    assert (outcome["State"], outcome["CallerUid"], outcome["Finding"]) == ("verified", 0, "files-1")
    assert outcome["Verification"] == "verified: a process with the same limit held 72 files open"
    assert limit(limited) == 2000
    assert daemon.found["files-1"].state is State.FIXED
    (rows,) = await call(daemon, USER, "ListFixes", options=None)
    assert [(row["Key"], row["State"]) for row in rows] == [(fix, "verified")]
    name, _ = await call(daemon, 0, "ApplyFix", "files-1", fix)
    assert name == ERROR + "FixAlreadyApplied"
    (outcome,) = await call(daemon, 0, "UndoFix", "files-1", "")
    assert outcome["State"] == "undone"
    assert limit(limited) == 64
    assert daemon.found["files-1"].state is State.OPEN
    assert [(event.kind, event.finding_id, event.key, event.caller.uid) for event in daemon.events] == [
        (FixEventKind.APPLIED, "files-1", fix, 0), (FixEventKind.UNDONE, "files-1", fix, 0),
    ]  # fmt: skip


async def test_a_rule_lets_a_user_apply_and_that_user_is_named(machine: Any, daemon: Any, limited: int) -> None:
    machine.start_polkitd("""polkit.addRule(function(action, subject) {
        if (action.id == "org.triaged.apply-fix" && subject.user == "nobody") { return polkit.Result.YES; }
    });""")
    (outcome,) = await call(daemon, USER, "ApplyFix", "files-1", key(daemon, "files-1"))
    assert (outcome["State"], outcome["CallerUid"]) == ("verified", USER)
    assert daemon.events[0].caller.uid == USER
    assert (await call(daemon, USER, "UndoFix", "files-1", ""))[0] == ERROR + "NotAuthorized"
    assert limit(limited) == 2000


UID_TEXT, UID_NONE, FORCE = {"uid": Variant("s", "root")}, {"uid": Variant("u", 0xFFFFFFFF)}, {"force": Variant("b", True)}
BAD_INPUT: list[tuple[str, tuple[str, ...], dict[str, Any] | None, str]] = [
    ("ApplyFix", ("nothing", "x"), {}, "NoSuchFinding"),
    ("ApplyFix", ("", ""), {}, "NoSuchFinding"),
    ("ApplyFix", ("files-1", "set-parameter:kernel.pid_max"), {}, "NoSuchFix"),  # another finding's
    ("ApplyFix", ("files-1", ""), {}, "NoSuchFix"),
    ("ApplyFix", ("files-1", "set-parameter:../../../etc/passwd"), {}, "NoSuchFix"),
    ("ApplyFix", ("files-1", "x\ny"), {}, "InvalidArgs"),
    ("ApplyFix", ("x\x01", "y"), {}, "InvalidArgs"),
    ("ApplyFix", ("files-1", "k" * 5000), {}, "InvalidArgs"),
    ("ApplyFix", ("files-2", "set-parameter:kernel.pid_max"), UID_TEXT, "InvalidArgs"),
    ("ApplyFix", ("files-2", "set-parameter:kernel.pid_max"), UID_NONE, "InvalidArgs"),
    ("ApplyFix", ("files-2", "set-parameter:kernel.pid_max"), FORCE, "InvalidArgs"),
    ("PreviewFix", ("files-1", "none"), {}, "NoSuchFix"),
    ("PreviewFix", ("files-2", "set-parameter:kernel.pid_max"), FORCE, "InvalidArgs"),
    ("ApplyFix", ("manual", "manual:container"), {}, "FixRefused"),
    ("UndoFix", ("files-1", ""), {}, "NoSuchFix"),
    ("UndoFix", ("nothing", "x"), {}, "NoSuchFix"),
    ("UndoFix", ("files-1", ""), FORCE, "InvalidArgs"),
    ("UndoFix", ("files-1", "x\ny"), {}, "InvalidArgs"),
    ("DismissFinding", ("nothing", "why"), None, "NoSuchFinding"),
    ("DismissFinding", ("files-1", "  "), None, "InvalidArgs"),
    ("DismissFinding", ("files-1", "two\nlines"), None, "InvalidArgs"),
    ("DismissFinding", ("files-1", "w" * 501), None, "InvalidArgs"),
]


async def test_bad_input_has_a_name_and_changes_nothing(polkit: Any, daemon: Any, limited: int, connection: Connection) -> None:
    for member, arguments, options, name in BAD_INPUT:
        signature = "s" * len(arguments) + ("" if options is None else "a{sv}")
        values = [*arguments, *([] if options is None else [options])]
        with pytest.raises(BusError) as caught:
            await connection.call(SERVICE_NAME, MANAGER_PATH, MANAGER, member, signature, values)
        assert caught.value.name == ERROR + name, (member, arguments, str(caught.value))
        assert len(str(caught.value)) < 2000
    assert limit(limited) == 64
    assert not list(daemon.machine.state.glob("*.json"))
    assert all(finding.state is State.OPEN for finding in daemon.found.values())
    assert daemon.events == []


async def test_an_argument_of_the_wrong_type_or_of_a_megabyte_is_refused(polkit: Any, daemon: Any) -> None:
    (name, _) = await daemon.machine.as_user_async(0, "result = await manager('ApplyFix', 'su', 'files-1', 5)")
    assert name == "org.freedesktop.DBus.Error.InvalidArgs"
    (name, _) = await daemon.machine.as_user_async(0, "result = await manager('ApplyFix', 'ssa{sv}', 'files-1', 'x' * 1000000, {})")
    assert name == "org.freedesktop.DBus.Error.LimitsExceeded"
    (rows,) = await call(daemon, 0, "ListFixes", options=None)
    assert rows == []


async def test_two_callers_at_once(polkit: Any, daemon: Any, limited: int) -> None:
    both = await asyncio.gather(
        call(daemon, 0, "ApplyFix", "files-1", key(daemon, "files-1")),
        call(daemon, 0, "ApplyFix", "files-2", key(daemon, "files-2")),
    )
    applied = [answer[0] for answer in both if isinstance(answer[0], dict)]
    refused = [answer for answer in both if not isinstance(answer[0], dict)]
    # Whoever comes first is served; the other one is busy, or finds another value than its finding saw.
    assert len(applied) == 1
    assert refused[0][0] in (ERROR + "FixBusy", ERROR + "FixStale")
    assert limit(limited) == int(applied[0]["New"].split(":")[0])


async def test_a_dismissed_finding_says_why_and_by_whom(polkit: Any, daemon: Any) -> None:
    assert await call(daemon, 0, "DismissFinding", "files-1", "a test machine", options=None) == []
    assert daemon.found["files-1"].state is State.DISMISSED
    assert daemon.found["files-1"].reason == "a test machine (user 0)"


async def test_a_fix_of_a_forgotten_finding_can_still_be_undone(polkit: Any, daemon: Any, limited: int) -> None:
    await call(daemon, 0, "ApplyFix", "files-1", key(daemon, "files-1"))
    del daemon.found["files-1"]
    (outcome,) = await call(daemon, 0, "UndoFix", "files-1", "")
    assert outcome["State"] == "undone"
    assert limit(limited) == 64
    assert daemon.events[-1].finding is None


async def test_a_fix_that_the_kernel_refuses_is_told(polkit: Any, daemon: Any, limited: int) -> None:
    holder = await asyncio.create_subprocess_exec("unshare", "-n", "sh", "-c", "echo ready; exec sleep 600", stdout=PIPE)
    assert holder.stdout is not None
    await holder.stdout.readline()
    # Ephemeral ports must not reach down to the privileged ones.
    fix = SetParameter("net.ipv4.ip_local_port_range", "80 65535", netns_pid=holder.pid,
                       netns_start_ticks=read_start_ticks(KernelPaths(), holder.pid))  # fmt: skip
    daemon.found["files-1"] = replace(daemon.found["files-1"], fixes=(fix,))
    name, text = await call(daemon, 0, "ApplyFix", "files-1", fix.key)
    assert name == ERROR + "FixFailed"
    assert "the kernel refused 80 65535: invalid argument; everything is as before" in text
    assert [event.kind for event in daemon.events] == [FixEventKind.FAILED]
    (rows,) = await call(daemon, 0, "ListFixes", options=None)
    assert [row["State"] for row in rows] == ["failed"]
    holder.kill()
    await holder.communicate()


async def test_a_manual_step_is_previewed_as_what_it_is(polkit: Any, daemon: Any) -> None:
    (preview,) = await call(daemon, USER, "PreviewFix", "manual", "manual:container")
    assert preview["Commands"] == [["docker", "run"]]
    assert preview["Obstacle"].startswith("triaged does not do this itself")
    assert not preview["Undoable"]
