# SPDX-License-Identifier: Apache-2.0
"""The kinds of injection: each becomes words that stand before a command line, and scripts that run before and after it.

What surrounds a command (cgroups, mounts, namespaces, units, kernel parameters) surrounds `triagectl run` too, as it would on a
runner that is set up like that; what belongs to a process (user, resource limits, capabilities, filters, Landlock, AppArmor) is
put on the command only. `{ run = true }` says otherwise where it stands.
"""
from __future__ import annotations

import errno
import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from case import BadCase

Table = Mapping[str, Any]
USER = 61234  # an uid that nobody has here
GO_ON = 'exec "$@"'
# What a limit of version 2 is called on version 1.
ON_VERSION_1 = {"memory.max": "memory.limit_in_bytes", "cpu.max": "cpu.cfs_quota_us"}


@dataclass(frozen=True)
class Layer:
    """`words` come before the command; `before` and `after` are run by a shell outside, `after` in any case."""

    words: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    is_process: bool = False


@dataclass(frozen=True)
class Place:
    """What the ground gives: the words that start triagectl, a directory of this case's own, where the command runs and in what
    environment, and the programs that injections need."""

    triagectl: tuple[str, ...]
    scratch: str
    directory: str
    environment: Mapping[str, str]
    python: str
    landlock: str


def expanded(word: str, environment: Mapping[str, str]) -> str:
    """The word with $NAMES of the environment replaced; what a shell would make of $$ and $1 stays."""
    return re.sub(r"\$([A-Z]+)", lambda found: environment.get(found[1], found[0]), word)


def _shell(script: str, *arguments: str) -> tuple[str, ...]:
    return ("sh", "-ec", script + "\n" + GO_ON, *(arguments or ("sh",)))


def _user(table: Table, place: Place) -> Layer:
    uid = USER if table["user"] is True else int(table["user"])
    return Layer(("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"), is_process=True)


def _limit(table: Table, place: Place) -> Layer:
    return Layer(("prlimit", *(f"--{limit}" for limit in str(table["limit"]).split())), is_process=True)


def _capabilities(table: Table, place: Place) -> Layer:
    dropped = table["without"]
    return Layer(("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"), is_process=True)


def _no_new_privileges(table: Table, place: Place) -> Layer:
    return Layer(("setpriv", "--no-new-privs"), is_process=True)


def _seccomp(table: Table, place: Place) -> Layer:
    profile = table["seccomp"]
    run = (*place.triagectl, "seccomp", "run", "--profile")
    options = tuple(str(table.get("options", "")).split())
    if isinstance(profile, str):
        return Layer((*run, profile, *options, "--"), is_process=True)
    rules = []
    for call, answer in profile.items():
        if answer in ("KILL_PROCESS", "KILL_THREAD", "TRAP", "LOG"):
            rules.append({"names": [call], "action": f"SCMP_ACT_{answer}"})
        else:
            rules.append({"names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": getattr(errno, answer)})
    path = f"{place.scratch}/profile.json"
    text = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
    return Layer((*run, path, *options, "--"), before=f"printf %s {shlex.quote(text)} >{path}", is_process=True)


def _landlock(table: Table, place: Place) -> Layer:
    rules = (expanded(rule, place.environment) for rule in table["landlock"])
    return Layer((place.python, place.landlock, *rules, "--"), is_process=True)


def _words(table: Table, place: Place) -> Layer:
    return Layer(tuple(expanded(word, place.environment) for word in table["words"]), is_process=True)


def _apparmor(table: Table, place: Place) -> Layer:
    path = f"{place.scratch}/apparmor"
    text = f"profile corpus flags=(attach_disconnected) {{\n{table['apparmor']}\n}}\n"
    return Layer(
        ("aa-exec", "--profile=corpus", "--"), f"printf %s {shlex.quote(text)} >{path} && apparmor_parser --replace {path}",
        f"apparmor_parser --remove {path}", is_process=True,
    )


def _unshare(table: Table, place: Place) -> Layer:
    return Layer(("unshare", *str(table["unshare"]).split(), *_shell(str(table.get("script", "")))))


def _script(table: Table, place: Place) -> Layer:
    return Layer(_shell(str(table["script"])), after=str(table.get("after", "")))


def _cgroup(table: Table, place: Place) -> Layer:
    """An own cgroup, with one above it where that gets a limit of its own."""
    limits, above = dict(table["cgroup"]), dict(table.get("above", {}))
    controller = next(iter({**limits, **above})).split(".")[0]
    script = [
        f'top=/sys/fs/cgroup; if [ -e $top/cgroup.controllers ]; then v1=; else v1=yes; top=$top/{controller}; fi',
        'outer=$top/corpus-$(basename "$CORPUS"); inner=$outer/job',
        f'[ "$v1" ] || echo +{controller} >$top/cgroup.subtree_control 2>/dev/null || true',
        'mkdir -p $outer',
        f'[ "$v1" ] || [ {controller} = cgroup ] || echo +{controller} >$outer/cgroup.subtree_control',
        'mkdir -p $inner',
    ]
    if controller == "cpuset":
        fill = "cat $top/cpuset.cpus >$i/cpuset.cpus; cat $top/cpuset.mems >$i/cpuset.mems"
        script.append(f'[ -z "$v1" ] || for i in $outer $inner; do {fill}; done')
    for directory, files in (("outer", above), ("inner", limits)):
        for name, value in files.items():
            old = ON_VERSION_1.get(name, name)
            old_value = str(value).split()[0] if name == "cpu.max" else value
            script.append(
                f'if [ "$v1" ]; then echo {shlex.quote(str(old_value))} >${directory}/{old}; '
                f'else echo {shlex.quote(str(value))} >${directory}/{name}; fi'
            )
    script += ["echo $$ >$inner/cgroup.procs", "export CGROUP=$inner"]
    remove = (
        'for top in /sys/fs/cgroup /sys/fs/cgroup/*; do outer=$top/corpus-$(basename "$CORPUS"); [ -d $outer ] || continue; '
        'for i in 1 2 3 4 5 6 7 8 9 10; do find $outer -depth -type d -exec rmdir {} + 2>/dev/null; '
        '[ -d $outer ] || break; sleep 0.2; done; done'
    )
    return Layer(_shell("\n".join(script)), after=remove)


def _parameters(table: Table, place: Place) -> Layer:
    before, after = [], []
    for name, value in table["parameters"].items():
        before.append(f"sysctl -n {name} >{place.scratch}/{name}; sysctl -qw {name}=\"{value}\"")
        after.append(f'sysctl -qw {name}="$(cat {place.scratch}/{name})"')
    return Layer((), "\n".join(before), "\n".join(reversed(after)))


def _unit(table: Table, place: Place) -> Layer:
    """A transient service or (`scope`) scope."""
    kind = ("--scope",) if table.get("scope") else ("--pipe", "--wait", "--collect")
    properties = [word for setting in table["unit"] for word in ("-p", expanded(str(setting), place.environment))]
    options = str(table.get("options", "")).split()
    # A service has nothing of its caller's environment.
    where = () if table.get("scope") else ("env", f"--chdir={place.directory}", *(f"{k}={v}" for k, v in place.environment.items()))
    name = f"--unit=corpus-{place.scratch.rpartition('/')[2]}"
    return Layer(("systemd-run", "--quiet", *kind, name, *options, *properties, "--", *where))


KINDS: Mapping[str, Callable[[Table, Place], Layer]] = {
    "user": _user, "limit": _limit, "without": _capabilities, "no-new-privileges": _no_new_privileges, "seccomp": _seccomp,
    "landlock": _landlock, "apparmor": _apparmor, "unshare": _unshare, "cgroup": _cgroup, "parameters": _parameters, "unit": _unit,
    "script": _script, "words": _words,
}


def kind_of(table: Table) -> str:
    """Raises: BadCase."""
    for kind in KINDS:
        if kind in table:
            return kind
    raise BadCase(f"no such injection: {dict(table)}")


@dataclass(frozen=True)
class CommandLine:
    """Everything together: scripts, and the words around and inside `triagectl run`."""

    before: tuple[str, ...]
    outside: tuple[str, ...]
    inside: tuple[str, ...]
    after: tuple[str, ...]


def command_line(inject: tuple[Table, ...], place: Place, typed: str = "") -> CommandLine:
    """Wraps what is injected around a run; `typed` is a script of a fix, run inside what surrounds the command."""
    outside: list[str] = []
    inside: list[str] = []
    before, after = [], []
    is_told = any("run" in table for table in inject)
    is_within = is_typed = False

    def add(layer: Layer) -> None:
        (inside if is_within or (layer.is_process and not is_told) else outside).extend(layer.words)

    for table in inject:
        if "run" in table:
            is_within = True
            continue
        layer = KINDS[kind_of(table)](table, place)
        if layer.is_process and typed and not is_typed:
            add(Layer(_shell(typed)))
            is_typed = True
        add(layer)
        before += [layer.before] if layer.before else []
        after += [layer.after] if layer.after else []
    if typed and not is_typed:
        add(Layer(_shell(typed)))
    return CommandLine(tuple(before), tuple(outside), tuple(inside), tuple(reversed(after)))
