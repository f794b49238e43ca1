# SPDX-License-Identifier: Apache-2.0
"""What is the program's own doing, and what is not called so."""
from __future__ import annotations

from situations import call, outcomes, own_fault
from surroundings import ROOT_MOUNTS, deed, directory, facts, regular, seeing, someone, told

from triaged.explain.own_fault import closed_by_mode, crashed, sent_by_the_run, wrong_path
from triaged.model.symptom import SeenIn, Symptom, SymptomKind

DATA = facts("/data/x", regular("/data/x", 0o600))


def killed(signal: int = 9, sender: int = 0) -> Symptom:
    return Symptom(SymptomKind.KILLED, signal=signal, sender_pid=sender, seen_in=SeenIn.TRACE)


def test_a_path_that_does_not_exist() -> None:
    symptom = told("fork/exec /no/such: no such file or directory", "ENOENT", path="/no/such")
    assert "there is no /no/such" in own_fault(wrong_path, seeing(symptom, someone(), files=[facts("/no/such", None)]))
    assert "ENOTDIR" in own_fault(wrong_path, seeing(call("openat", "ENOTDIR", path="/etc/passwd/x"), someone()))


def test_what_a_machine_has_to_have_is_not_the_programs_fault() -> None:
    assert outcomes(wrong_path, seeing(call("openat", "ENOENT", path="/proc/self/status"), someone())) == []
    assert outcomes(wrong_path, seeing(call("openat", "ENOENT", path="/dev/shm/x"), someone())) == []


def test_a_script_without_its_interpreter() -> None:
    script = facts("/x", regular("/x", 0o755), head=b"#!/usr/bin/no-such -x\n")
    situation = seeing(call("execve", "ENOENT", path="/x"), someone(), files=[script, facts("/usr/bin/no-such", None)])
    assert "/usr/bin/no-such" in own_fault(wrong_path, situation)


def test_a_mode_that_closes_a_file() -> None:
    symptom = call("openat", "EACCES", path="/data/x")
    assert "mode 0600" in own_fault(closed_by_mode, seeing(symptom, someone(mounts=ROOT_MOUNTS), files=[DATA]))
    open_to_all = facts("/data/x", regular("/data/x", 0o666))
    assert outcomes(closed_by_mode, seeing(symptom, someone(mounts=ROOT_MOUNTS), files=[open_to_all])) == []


def test_root_too_executes_only_programs() -> None:
    symptom = call("execve", "EACCES", path="/data/x")
    assert "no program" in own_fault(closed_by_mode, seeing(symptom, someone(0, mounts=ROOT_MOUNTS), files=[DATA]))


def test_a_umask_that_made_the_mode_is_blamed_instead() -> None:
    inside = facts("/tmp/d/x", None, directory("/"), directory("/tmp", 0o1777), directory("/tmp/d", 0, 1000))
    symptom = call("openat", "EACCES", path="/tmp/d/x")
    assert own_fault(closed_by_mode, seeing(symptom, someone(mounts=ROOT_MOUNTS, umask=0o022), files=[inside]))
    assert outcomes(closed_by_mode, seeing(symptom, someone(mounts=ROOT_MOUNTS, umask=0o777), files=[inside])) == []


def test_a_signal_from_the_run_itself() -> None:
    parent = someone(pid=400)
    assert "sent itself" in own_fault(sent_by_the_run, seeing(killed(sender=500), someone()))
    assert "started it" in own_fault(sent_by_the_run, seeing(killed(sender=400), someone(), ancestors=(parent,)))
    assert "by kill()" in own_fault(sent_by_the_run, seeing(killed(sender=77), someone(), deeds=(deed("kill", 500, 9, pid=77),)))
    assert "by kill()" in own_fault(sent_by_the_run, seeing(killed(), someone(), deeds=(deed("kill", 500, 9, pid=77),)))
    assert "by tgkill()" in own_fault(sent_by_the_run, seeing(killed(), someone(), deeds=(deed("tgkill", 500, 501, 9, pid=77),)))


def test_a_signal_from_elsewhere_or_of_the_oom_killer_is_not_its_own() -> None:
    assert outcomes(sent_by_the_run, seeing(killed(sender=77), someone())) == []
    assert outcomes(sent_by_the_run, seeing(killed(), someone(), deeds=(deed("kill", 600, 9),))) == []
    assert outcomes(sent_by_the_run, seeing(killed(), someone(), deeds=(deed("kill", 500, 15),))) == []
    line = "Memory cgroup out of memory: Killed process 500 (a.test) total-vm:1kB"
    assert outcomes(sent_by_the_run, seeing(killed(sender=500), someone(), log=[line])) == []
    key = ("/sys/fs/cgroup/x/memory.events", "oom_kill")
    assert outcomes(sent_by_the_run, seeing(killed(sender=500), someone(), before={key: 0}, after={key: 1})) == []


def test_a_crash() -> None:
    assert "SIGSEGV" in own_fault(crashed, seeing(killed(11), someone()))
    assert outcomes(crashed, seeing(killed(9), someone())) == []
