# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from triaged.kernel.paths import KernelPaths
from triaged.model.facts import Fact, ParameterFacts
from triaged.model.limit import Unknown
from triaged.model.requirement import Operator, ParameterRequirement
from triaged.model.verdict import Severity
from triaged.sources import parameters
from triaged.sources.parameters import KernelParameters
from triaged.sources.source import SourceState


def wish(key: str) -> ParameterRequirement:
    return ParameterRequirement("test", key, Operator.AT_LEAST, 1, Severity.WARNING, "because")


def tree(root: Path, **values: str) -> KernelPaths:
    directory = root / "proc/sys/kernel"
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (directory / name).write_text(f"{value}\n")
    return KernelPaths.below(str(root))


async def following(facts: AsyncIterator[Fact], number: int) -> list[ParameterFacts]:
    found = []
    for _ in range(number):
        fact = await asyncio.wait_for(anext(facts), 5)
        assert isinstance(fact, ParameterFacts)
        found.append(fact)
    return found


async def test_the_first_look_tells_everything_and_what_is_missing(tmp_path: Path) -> None:
    source = KernelParameters(tree(tmp_path, pid_max="32768"), [wish("kernel.pid_max"), wish("kernel.unprivileged_userns_clone")])
    facts = source.facts()
    first, second = await following(facts, 2)
    assert (first.key, first.value, first.is_missing) == ("kernel.pid_max", "32768", False)
    assert first.path.endswith("/proc/sys/kernel/pid_max")
    assert first.time_usec > 0
    assert (second.value, second.is_missing) == (Unknown("this kernel has no such parameter"), True)
    waiting = asyncio.ensure_future(anext(facts))
    await asyncio.sleep(0)
    assert source.status.state is SourceState.ACTIVE
    waiting.cancel()


async def test_later_looks_tell_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parameters, "LOOK_EVERY_S", 0.01)
    paths = tree(tmp_path, pid_max="32768", threads_max="100")
    source = KernelParameters(paths, [wish("kernel.pid_max"), wish("kernel.threads_max")])
    facts = source.facts()
    await following(facts, 2)
    tree(tmp_path, threads_max="200")
    (changed,) = await following(facts, 1)
    assert (changed.key, changed.value) == ("kernel.threads_max", "200")
    assert source.counters["values read"] == 3


async def test_refresh_looks_at_once(tmp_path: Path) -> None:
    source = KernelParameters(tree(tmp_path, pid_max="32768"), [wish("kernel.pid_max")])
    facts = source.facts()
    await following(facts, 1)
    again = asyncio.ensure_future(following(facts, 1))
    await asyncio.sleep(0)
    tree(tmp_path, pid_max="4194304")
    source.refresh()
    assert [fact.value for fact in await again] == ["4194304"]


async def test_a_source_that_is_woken_and_cancelled_at_once_ends(tmp_path: Path) -> None:
    source = KernelParameters(tree(tmp_path, pid_max="1"), [wish("kernel.pid_max")])
    facts = source.facts()
    await following(facts, 1)
    waiting = asyncio.ensure_future(anext(facts))
    await asyncio.sleep(0)
    source.refresh()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_a_snapshot_tells_everything_once(tmp_path: Path) -> None:
    source = KernelParameters(tree(tmp_path, pid_max="1"), [wish("kernel.pid_max"), wish("kernel.x")])
    assert len(list(source.snapshot())) == 2


def test_a_key_that_cannot_be_a_parameter_does_not_end_the_source(tmp_path: Path) -> None:
    source = KernelParameters(tree(tmp_path, pid_max="1"), [wish("kernel..pid_max"), wish("kernel.pid_max")])
    bad, good = source.snapshot()
    assert isinstance(bad, ParameterFacts)
    assert isinstance(good, ParameterFacts)
    assert isinstance(bad.value, Unknown)
    assert good.value == "1"


def test_without_proc_sys_the_source_is_unavailable_and_claims_nothing(tmp_path: Path) -> None:
    source = KernelParameters(KernelPaths.below(str(tmp_path)), [wish("kernel.pid_max"), wish("vm.x")])
    assert all(isinstance(fact, ParameterFacts) and fact.is_missing for fact in source.snapshot())
    assert source.status.state is SourceState.UNAVAILABLE
    assert source.status.remedy
    source = KernelParameters(tree(tmp_path, pid_max="1"), [wish("kernel.of_another_kernel")])
    assert len(list(source.snapshot())) == 1
    assert source.status.state is SourceState.ACTIVE


def test_a_value_that_cannot_be_read_is_unknown_and_degrades_the_source(tmp_path: Path) -> None:
    paths = tree(tmp_path, pid_max="1")
    (tmp_path / "proc/sys/kernel/loop").symlink_to("loop")  # ELOOP, also for root
    source = KernelParameters(paths, [wish("kernel.pid_max"), wish("kernel.loop")])
    good, bad = source.snapshot()
    assert isinstance(good, ParameterFacts)
    assert isinstance(bad, ParameterFacts)
    assert good.value == "1"
    assert isinstance(bad.value, Unknown)
    assert not bad.is_missing
    assert source.status.state is SourceState.DEGRADED
    assert "kernel.loop" in source.status.reason
