# SPDX-License-Identifier: Apache-2.0
"""Runs a probe in a process of its own and judges what it says."""
from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Union

from triaged.fixers import probes
from triaged.fixers.fixer import Probe

TIME_LIMIT_S = 35.0  # probes end themselves after 30 s


@dataclass(frozen=True)
class Managed:
    """The probe did it; `count` is how far it came (0 where it is not a number)."""

    text: str
    count: int = 0


@dataclass(frozen=True)
class Refused:
    """The kernel still refuses; `text` is what it said."""

    text: str


@dataclass(frozen=True)
class CouldNot:
    """The probe could not be done at all."""

    why: str


ProbeResult = Union[Managed, Refused, CouldNot]


async def run_probe(probe: Probe) -> ProbeResult:
    """Does the failing thing once. Raises nothing: a probe that cannot be run is one that could not be done."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", probes.__file__, probe.name, json.dumps(dict(probe.arguments)),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd="/", env={}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return CouldNot(f"the test could not be started: {os.strerror(error.errno or 0).lower()}")
    try:
        out, errors = await asyncio.wait_for(process.communicate(), TIME_LIMIT_S)
    except asyncio.TimeoutError:
        return CouldNot(f"the test took longer than {TIME_LIMIT_S:.0f} s")
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    try:
        answer = json.loads(out)
    except ValueError:
        last = errors.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1]
        return CouldNot(f"the test ended with status {process.returncode}: {last[:200]}")
    if "cannot" in answer:
        return CouldNot(str(answer["cannot"]))
    if answer["done"]:
        return Managed(str(answer["text"]), int(answer.get("count", 0)))
    return Refused(str(answer["text"]))


@dataclass(frozen=True)
class Verification:
    """What the probe shows: `helped` True, False, or None where it shows nothing. `text` says why, for people."""

    helped: bool | None
    text: str


def judge(probe: Probe, before: ProbeResult | None, after: ProbeResult) -> Verification:
    """What two looks at the same thing, before (None: not needed) and after the change, show."""
    if isinstance(after, CouldNot):
        return Verification(None, f"not verified: tried to {probe.text}, but {after.why}")
    if probe.closes:
        return _judge_closing(probe, before, after)
    if isinstance(after, Refused):
        if isinstance(before, CouldNot):
            return Verification(None, f"not verified: could not {probe.text} ({after.text}), and not tell before the change either")
        return Verification(False, f"still could not {probe.text}: {after.text}")
    if before is None or isinstance(before, Refused):
        return Verification(True, f"verified: {after.text}" + (f" (before: {before.text})" if before is not None else ""))
    if isinstance(before, CouldNot):
        return Verification(None, f"not verified: {after.text}, but it could not be tried before the change ({before.why})")
    if after.count > before.count:
        return Verification(True, f"verified: {after.text} (before: {before.count})")
    if probe.arguments.get("instances", 0) == after.count or probe.arguments.get("watches", 0) == after.count:
        return Verification(None, f"not verified: {after.text}, and could do so before the change")
    if after.count:
        return Verification(False, f"no more than before: {after.text}")
    return Verification(None, f"not verified: {after.text}, and could do so before the change")


def _judge_closing(probe: Probe, before: ProbeResult | None, after: Managed | Refused) -> Verification:
    if isinstance(after, Managed):
        return Verification(False, f"it is still allowed: {after.text}")
    if isinstance(before, Managed):
        return Verification(True, f"verified: it is refused to {probe.text}: {after.text} (before: {before.text})")
    why = before.why if isinstance(before, CouldNot) else "it was refused before the change, too"
    return Verification(None, f"not verified: it is refused to {probe.text} ({after.text}), but {why}")
