# SPDX-License-Identifier: Apache-2.0
"""What is in the way of a program: another architecture, no_new_privs, the umask, no core file.

Hard facts:
- execve() of a program for another architecture gives ENOEXEC unless binfmt_misc has an interpreter for it; so does a script
  without "#!", which shells run themselves and Go does not.
- no_new_privs (systemd's NoNewPrivileges=, docker's no-new-privileges) takes a set-user-id program its owner's rights, silently.
- A core file needs RLIMIT_CORE above 0 (unless core_pattern is a pipe) and a kernel.core_pattern that can be written; the kernel's
  log says "coredump: PID(comm): ..." when it cannot.
"""
from __future__ import annotations

import re
import struct

from triaged.errors import InterfaceMissing, KernelError
from triaged.explain import calls
from triaged.explain.access import access_of
from triaged.explain.hypothesis import hypothesis
from triaged.explain.mounts import setid_program
from triaged.explain.remedies import raise_resource
from triaged.explain.resource_limits import of_unread
from triaged.explain.situation import Situation
from triaged.explain.view import (
    credentials_of,
    file_facts,
    own_deeds,
    owner_of,
    parameter_evidence,
    set_parameter,
    state_evidence,
    subject_of,
    subject_path,
)
from triaged.kernel.files import read_text
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, SelfInflicted, Status
from triaged.model.cgroup import container_of, unit_of
from triaged.model.fix import Fix, ManualStep
from triaged.model.limit import UNLIMITED, Unknown
from triaged.model.process_state import ProcessState
from triaged.model.quoting import shown
from triaged.model.symptom import SymptomKind
from triaged.model.verdict import Evidence
from triaged.seccomp.syscalls import native_arch

_PR_SET_NO_NEW_PRIVS = 38
_USUAL_UMASKS = (0o022, 0o002)
# e_machine (linux/elf-em.h)
_MACHINES = {
    3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64",
    258: "loongarch64",
}  # fmt: skip
_ALSO_RUNS = {"x86_64": {"i386", "x86_64"}, "aarch64": {"aarch64", "arm"}, "ppc64le": {"ppc64"}}
_MODE = re.compile(r"(?<![\w-])[-dlpsbcDTL]?((?:[r-][w-][xsStT-]){3})(?![\w-])")
_OCTAL = re.compile(r"(?<![\w.])0o?([0-7]{3})(?![\w.])")
_NO_CORE = re.compile(r"\bno core (?:file|dump)\b|\bcore (?:file|dump) (?:is )?missing\b", re.I)
_DUMP_FAILED = re.compile(r"coredump: .*?\d+\(.*?\): .*(?:failed|not written|skipped|aborting)", re.I)


@hypothesis("binfmt.missing", syscalls=calls.EXECS, errnos=("ENOEXEC",))
def foreign_program(situation: Situation) -> Outcome | None:
    """The program is for another architecture, and binfmt_misc has no interpreter for it: "exec format error".

    With qemu-user registered (binfmt_misc) it would run; go test -exec does the same for one test.
    """
    path, cause = subject_path(situation), "binfmt.missing"
    if not path:
        return NotDecidable(cause, "which program it was is not known")
    facts = file_facts(situation, path)
    if isinstance(facts, Unknown):
        return NotDecidable(cause, facts.why)
    if facts.node is None:
        # Tests that make a program of text by themselves remove it again; one for another machine was built, and stays.
        return NotDecidable(cause, f"{shown(path)} is gone") if situation.was_asked else None
    machine = machine_of(facts.head)
    if machine is None:
        return SelfInflicted(cause, f"{shown(path)} is no program (neither ELF nor #!)")
    try:
        native = native_arch()
    except InterfaceMissing as error:
        return NotDecidable(cause, str(error))
    if machine in _ALSO_RUNS.get(native, {native}):
        return SelfInflicted(cause, f"{shown(path)} is a program for this machine ({machine}), and broken")
    evidence = (
        Evidence("program is for", machine, shown(path)), Evidence("machine", native, "uname"),
        Evidence("binfmt_misc", _handlers(situation) or "none", "/proc/sys/fs/binfmt_misc"),
    )
    step = ManualStep(
        "qemu-user", f"register an interpreter for {machine} (packages qemu-user-static, binfmt-support), or test on {machine}",
        (("apt-get", "install", "qemu-user-static", "binfmt-support"),), "programs for another architecture then run, slowly",
    )  # fmt: skip
    summary = f"{shown(path)} is a program for {machine}, this machine is {native} and has no interpreter for it"
    return Blamed(cause, Status.PROVED, "host", summary, evidence, (step,), weight=6)


def machine_of(head: bytes) -> str | None:
    """The architecture of an ELF file by its beginning; None where it is none, a number where it has no name here."""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    order = "<" if head[5] == 1 else ">"
    (number,) = struct.unpack_from(f"{order}H", head, 18)
    return _MACHINES.get(number, str(number))


def _handlers(situation: Situation) -> str:
    def read() -> str:
        try:
            return read_text(f"{situation.paths.proc}/sys/fs/binfmt_misc/status", 4096).strip()
        except KernelError:
            return ""

    return situation.kept("binfmt", read)


@hypothesis("process.no-new-privileges", kinds=(SymptomKind.CALL, SymptomKind.SILENT))
def no_new_privileges(situation: Situation) -> Outcome | None:
    """The process runs with no_new_privs: set-user-id programs (sudo, ping) and file capabilities give no rights.

    systemd sets it by NoNewPrivileges= and by many sandboxing settings for services that are not root; containers by
    no-new-privileges. It is never taken back.
    """
    found = setid_program(situation)
    if found is None:
        return None
    who, process = credentials_of(situation), situation.process
    assert who is not None
    assert process is not None
    if not who.no_new_privileges:
        return RuledOut("process.no-new-privileges", "NoNewPrivs is 0")
    for deed in own_deeds(situation, "prctl"):
        if deed.arguments[:1] == (_PR_SET_NO_NEW_PRIVS,):
            return SelfInflicted("process.no-new-privileges", f"{shown(deed.comm)} (pid {deed.pid}) set it itself")
    summary = f"{owner_of(process)} runs with no_new_privs, so {shown(found.path)} does not get the rights of {found.rights}"
    status = Status.PROVED if found.is_named else Status.LIKELY
    evidence = (state_evidence(situation, "NoNewPrivs", True, "status"),)
    fixes = _for_privileges(process)
    return Blamed("process.no-new-privileges", status, owner_of(process), summary, evidence, fixes, weight=9)


def _for_privileges(process: ProcessState) -> tuple[Fix, ...]:
    path = process.identity.cgroup
    container, unit = container_of(path), unit_of(path)
    risk = "set-user-id programs then get their rights again"
    if container:
        option = "--security-opt=no-new-privileges (Kubernetes: allowPrivilegeEscalation: true)"
        title = f"start container {container.identifier[:12]} without {option}"
        return (ManualStep("container-privileges", title, risk=risk),)
    if unit.endswith(".service"):
        show = ("systemctl", "show", "--property=NoNewPrivileges", unit)
        return (ManualStep("unit-privileges", f"set NoNewPrivileges=no of {shown(unit)} and restart it",
                           (show, ("systemctl", "edit", unit)), risk),)  # fmt: skip
    title = "start the command without no_new_privs (setpriv --no-new-privs, bwrap and systemd-run -p NoNewPrivileges= set it)"
    return (ManualStep("privileges", title, risk=risk),)


@hypothesis("process.umask", kinds=(SymptomKind.CALL, SymptomKind.SILENT), errnos=("EACCES", "EPERM", ""))
def umask(situation: Situation) -> Outcome | None:
    """The umask takes rights from files that the test makes: modes are not as expected, or the owner itself is shut out (EACCES).

    Tests assume 022 more often than they know; 077 and 027 are what hardened logins and services have.
    """
    symptom, process, who, cause = situation.symptom, situation.process, credentials_of(situation), "process.umask"
    if process is None or isinstance(process.umask, Unknown):
        return None
    mask = process.umask
    if mask in _USUAL_UMASKS:
        is_asked = symptom.kind is SymptomKind.SILENT and bool(told_modes(symptom.text))
        return RuledOut(cause, f"the umask is {mask:04o}") if is_asked else None
    own = own_deeds(situation, "umask")
    evidence = (state_evidence(situation, "umask", f"{mask:04o}", "status"),)
    fix = _for_umask(process)
    if symptom.errno == "" or symptom.kind is SymptomKind.SILENT:
        pair = masked_pair(told_modes(symptom.text), mask)
        if pair is None:
            return None
        if own:
            return SelfInflicted(cause, "the program under test set the umask itself")
        summary = f"the umask is {mask:04o}, which makes {pair[1]:04o} of {pair[0]:04o}"
        return Blamed(cause, Status.LIKELY, subject_of(process), summary, evidence, fix, weight=5)
    access = access_of(situation)
    if isinstance(access, Unknown) or access.obstacle is None or who is None or symptom.errno != "EACCES":
        return None
    obstacle = access.obstacle
    missing = ~obstacle.mode & 0o700
    if obstacle.uid != who.uids[3] or not missing or missing & ~mask:
        return None
    if own:
        return SelfInflicted(cause, "the program under test set the umask itself")
    mode = f"mode {obstacle.mode & 0o777:04o}"
    summary = f"the umask is {mask:04o}: {shown(obstacle.path)} was made with {mode}, which shuts out its owner"
    return Blamed(cause, Status.LIKELY, subject_of(process), summary, evidence, fix, weight=6)


def told_modes(text: str) -> list[int]:
    """The file modes that a line of output names, as "-rw-r--r--" or as "0644"."""
    words = [sum(1 << (8 - at) for at, letter in enumerate(each) if letter not in "-ST") for each in _MODE.findall(text)]
    return [*words, *(int(each, 8) for each in _OCTAL.findall(text))]


def masked_pair(modes: list[int], mask: int) -> tuple[int, int] | None:
    """Two of the modes of which the umask makes one out of the other; what others may write no usual umask leaves as it is."""
    for wanted in modes:
        for got in modes:
            if got != wanted and wanted & ~mask & 0o777 == got and not wanted & 0o002:
                return wanted, got
    return None


def _for_umask(process: ProcessState) -> tuple[Fix, ...]:
    unit = unit_of(process.identity.cgroup)
    if unit.endswith(".service"):
        show = ("systemctl", "show", "--property=UMask", unit)
        return (ManualStep("unit-umask", f"set UMask=0022 of {shown(unit)} and restart it", (show, ("systemctl", "edit", unit))),)
    return (ManualStep("umask", "run the tests with umask 022", (("sh", "-c", "umask 022; go test ./..."),)),)


@hypothesis("rlimit.CORE", kinds=(SymptomKind.SILENT, SymptomKind.CALL), errnos=("", "ENOENT"))
def no_core_limit(situation: Situation) -> Outcome | None:
    """RLIMIT_CORE is 0: a process that crashes leaves no core file, and nothing says so. systemd's and most shells' default."""
    process = situation.process
    if not _NO_CORE.search(situation.symptom.text) or process is None:
        return None
    if _core_pattern(situation).startswith("|"):
        return RuledOut("rlimit.CORE", "kernel.core_pattern is a pipe, which the limit does not bind (unless it is 1)")
    soft, hard = process.soft("CORE"), process.hard("CORE")
    if isinstance(soft, Unknown):
        return of_unread(situation, "CORE", soft, UNLIMITED)
    if soft != 0:
        return RuledOut("rlimit.CORE", f"the soft limit is {soft}")
    evidence = (
        state_evidence(situation, "RLIMIT_CORE soft", 0, "limits"),
        state_evidence(situation, "RLIMIT_CORE hard", str(hard), "limits"),
    )
    summary = "RLIMIT_CORE is 0: no core file is written"
    fixes = raise_resource(situation, "CORE", UNLIMITED)
    return Blamed("rlimit.CORE", Status.PROVED, subject_of(process), summary, evidence, fixes, weight=7)


def _core_pattern(situation: Situation) -> str:
    value = situation.parameter("kernel.core_pattern")
    return "" if isinstance(value, Unknown) else value


@hypothesis("sysctl.kernel.core_pattern", kinds=(SymptomKind.SILENT, SymptomKind.CALL), errnos=("", "ENOENT"))
def core_pattern(situation: Situation) -> Outcome | None:
    """kernel.core_pattern sends core files elsewhere: to a program (a pipe), or into a directory that does not exist.

    A test that looks for a file "core" beside itself finds none. The kernel logs a pipe that fails.
    """
    key = "kernel.core_pattern"
    if not _NO_CORE.search(situation.symptom.text):
        return None
    pattern = _core_pattern(situation)
    failed = [line for line in situation.log() if "coredump" in line.lower() and _DUMP_FAILED.search(line)]
    evidence = (
        parameter_evidence(situation, key, shown(pattern, 200)),
        *(Evidence("kernel log", shown(line, 300), "kmsg") for line in failed[:1]),
    )
    fixes = set_parameter(situation, key, "core", "core files then lie in the directory of the process that crashed")
    if failed:
        summary = f"{key} is {shown(pattern, 120)!r}, and the kernel says that it could not be written"
        return Blamed(f"sysctl.{key}", Status.PROVED, "host", summary, evidence, fixes, weight=8)
    if pattern.startswith("|"):
        summary = f"{key} is {shown(pattern, 120)!r}: core files go to that program, not into a file"
        return Blamed(f"sysctl.{key}", Status.LIKELY, "host", summary, evidence, fixes, weight=5)
    if "/" in pattern:
        directory = pattern.rsplit("/", 1)[0] or "/"
        facts = file_facts(situation, directory)
        if not isinstance(facts, Unknown) and facts.node is None:
            summary = f"{key} is {shown(pattern, 120)!r}, and there is no directory {shown(directory)}"
            return Blamed(f"sysctl.{key}", Status.PROVED, "host", summary, evidence, fixes, weight=8)
        summary = f"{key} is {shown(pattern, 120)!r}: core files go there"
        return Blamed(f"sysctl.{key}", Status.LIKELY, "host", summary, evidence, fixes, weight=3)
    return RuledOut(f"sysctl.{key}", f"{key} is {shown(pattern, 120)!r}: a file beside the process") if pattern else None


PROGRAMS = (foreign_program, no_new_privileges, umask, no_core_limit, core_pattern)
