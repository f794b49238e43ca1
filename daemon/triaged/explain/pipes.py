# SPDX-License-Identifier: Apache-2.0
"""Limits on what pipes hold.

Hard facts (fs/pipe.c):
- Who has CAP_SYS_RESOURCE or CAP_SYS_ADMIN is exempt.
- Beyond fs.pipe-user-pages-soft new pipes are made smaller, without an error; beyond the hard one none are made.
- How much a user's pipes hold is shown nowhere.
"""
from __future__ import annotations

import re

from triaged.explain.capability import CAP_SYS_ADMIN, CAP_SYS_RESOURCE, has_on_host
from triaged.explain.hypothesis import hypothesis
from triaged.explain.remedies import set_parameter
from triaged.explain.situation import Situation
from triaged.explain.wording import count, size
from triaged.model.cause import Blamed, NotDecidable, Outcome, RuledOut, Status
from triaged.model.limit import Unknown
from triaged.model.verdict import Evidence

_NEAR = 256
_F_SETPIPE_SZ = 1031
_SPEAKS_OF_PIPES = re.compile(r"\bpipes?\b|F_SETPIPE_SZ", re.IGNORECASE)


@hypothesis("sysctl.fs.pipe-user-pages-hard", syscalls=("pipe", "pipe2"), errnos=("ENFILE",))
def pipe_pages(situation: Situation) -> Outcome | None:
    """The pipes of the user hold fs.pipe-user-pages-hard pages already. 0, the default, is no limit; root is exempt."""
    key, cause = "fs.pipe-user-pages-hard", "sysctl.fs.pipe-user-pages-hard"
    if not situation.symptom.syscall:
        return None
    most = situation.number(key)
    if isinstance(most, Unknown):
        return NotDecidable(cause, most.why)
    if most == 0:
        return RuledOut(cause, "there is no hard limit")
    if has_on_host(situation, CAP_SYS_RESOURCE) or has_on_host(situation, CAP_SYS_ADMIN):
        return RuledOut(cause, "it does not bind who has CAP_SYS_RESOURCE or CAP_SYS_ADMIN")
    usage = situation.host_limit("fs.file-max")
    free = usage.free if usage is not None else None
    evidence = (Evidence(key, most, f"/proc/sys/{key.replace('.', '/')}", situation.time_usec),)
    status = Status.PROVED if free is not None and free > _NEAR and not situation.was_asked else Status.POSSIBLE
    return Blamed(
        cause, status, "host", f"{key} is {count(most)}: all pipes of a user may hold no more pages", evidence,
        set_parameter(key, 0, most), weight=4,
    )


@hypothesis("sysctl.fs.pipe-", syscalls=("fcntl",), errnos=("EPERM",))
def pipe_size(situation: Situation) -> Outcome | None:
    """A pipe may not become so large: fs.pipe-max-size, or all pipes of the user hold fs.pipe-user-pages-hard or -soft pages."""
    arguments, symptom = situation.symptom.arguments, situation.symptom
    if len(arguments) > 1 and arguments[1] != _F_SETPIPE_SZ:
        return None
    if not arguments and not situation.was_asked and not _SPEAKS_OF_PIPES.search(symptom.text):
        return None  # what else fcntl refuses
    if has_on_host(situation, CAP_SYS_RESOURCE):
        return RuledOut("sysctl.fs.pipe-max-size", "it does not bind who has CAP_SYS_RESOURCE")
    asked = arguments[2] if len(arguments) > 2 else 0
    largest, hard, soft = (situation.number(f"fs.pipe-{name}") for name in ("max-size", "user-pages-hard", "user-pages-soft"))
    if isinstance(largest, Unknown) or isinstance(hard, Unknown) or isinstance(soft, Unknown):
        return NotDecidable("sysctl.fs.pipe-user-pages-hard", "fs.pipe-* cannot be read")
    if asked > largest or (not asked and hard == 0 and not situation.was_asked):
        name, value, wanted = "max-size", largest, 1 << (asked - 1).bit_length() if asked else largest * 4
        what = f"a pipe of {size(asked)} was asked for" if asked else "no pipe of an ordinary user may be larger"
    elif hard > 0 and (soft == 0 or hard <= soft):
        name, value, wanted = "user-pages-hard", hard, 0
        what = "all pipes of a user may hold no more pages"
    elif soft > 0:
        name, value, wanted = "user-pages-soft", soft, soft * 4
        what = "a user whose pipes hold so many pages may make none larger"
    else:
        return RuledOut("sysctl.fs.pipe-user-pages-hard", "there is no limit on the pages of a user's pipes")
    key = f"fs.pipe-{name}"
    if situation.was_asked and not asked:
        return NotDecidable(f"sysctl.{key}", f"{key} is {count(value)}; how much the user's pipes hold is shown nowhere")
    evidence = [Evidence(key, value, f"/proc/sys/{key.replace('.', '/')}", situation.time_usec)]
    if asked:
        evidence.append(Evidence("asked for", size(asked), "", situation.time_usec))
    # How much was asked for is not always seen; then the limit that is met most often stands for all three.
    return Blamed(
        f"sysctl.{key}", Status.PROVED if asked else Status.LIKELY, "host", f"{key} is {count(value)}: {what}", tuple(evidence),
        set_parameter(key, wanted, value), weight=8,
    )


PIPES = (pipe_pages, pipe_size)
