# SPDX-License-Identifier: Apache-2.0
"""`triagectl seccomp dump` for whoever may not read filters: the daemon is asked (D-Bus InspectSeccomp)."""
from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triaged.cli.daemon import daemon, is_nobody_there
from triaged.cli.exit_status import ExitStatus
from triaged.cli.style import safe, wrapped
from triaged.errors import BusError, NotPermitted

if TYPE_CHECKING:
    from triaged.bus.client import BlockingClient

_WIDTH = 110
_TIMEOUT_S = 60.0
_DEFAULT = "go-test"  # what is asked about where neither the command line nor the process says


def asked_dump(args: argparse.Namespace, refused: NotPermitted) -> int:
    """Asks and prints; the exit status is as that of `dump`. Raises: NotPermitted where the daemon cannot help, BusError."""
    if args.output or args.call or args.toolchain:
        raise refused  # for these the instructions are needed, which the kernel gives to root only
    from triaged.bus.seam import Variant

    try:
        with daemon(getattr(args, "bus", "system")) as client:
            answer = _inspected(client, args.pid, {"workload": Variant("s", args.workload)} if args.workload else {})
            if not args.workload and not answer[0]["Workload"]:
                answer = _inspected(client, args.pid, {"workload": Variant("s", _DEFAULT)})
    except BusError as error:
        if not is_nobody_there(error):
            raise
        remedy = f"{refused.remedy}; or start triaged, which tells the owner of a process what its filters refuse"
        raise NotPermitted(refused.path, "its filters may not be read by this user", remedy) from error
    process, filters, calls, consequences = answer
    if args.json:
        print(json.dumps({"process": process, "filters": filters, "calls": calls, "consequences": consequences}, indent=2))
    else:
        for line in _lines(process, filters, calls, consequences):
            print(line)
    return ExitStatus.FINE if process.get("Works", True) else ExitStatus.FOUND


def _inspected(client: BlockingClient, pid: int, options: Mapping[str, Any]) -> list[Any]:
    return client.call("InspectSeccomp", "ua{sv}", pid, options, timeout_s=_TIMEOUT_S, may_interact=True)


def _lines(process: Mapping[str, Any], filters: Sequence[Mapping[str, Any]], calls: Sequence[Mapping[str, Any]],
           consequences: Sequence[str]) -> list[str]:
    if process["Mode"] != "filter":
        what = {"none": "has no seccomp filter: seccomp refuses it nothing", "strict": "may only read, write and exit (strict)"}
        return [f"process {process['Pid']} {what.get(process['Mode'], safe(process['Mode']))}"]
    kinds = ", ".join(f"{one['Instructions']} instructions{', refusals are logged' if one['Logged'] else ''}" for one in filters)
    out = [f"process {process['Pid']}: {len(filters)} filters, read by triaged, newest first: {kinds}"]
    works = "works, as far as is known" if process.get("Works", True) else "does not work under these filters"
    out += ["", f"{safe(process['Workload'])} (needs of {safe(process['Toolchain'])}): {works}"]
    for outcome, heading in (("breaks", "denied, and needed"), ("depends", "depends on arguments, or on what was not measured")):
        rows = [call for call in calls if call["Outcome"] == outcome]
        out += [f"  {heading}:"] if rows else []
        for call in rows:
            shows = f"; prints {safe(call['Shows'])}" if call["Shows"] else ""
            answers = "; ".join(safe(answer) for answer in call["Answers"])
            out += wrapped(answers + shows, _WIDTH, f"    {safe(call['Call']):<18} ", " " * 23)
    if consequences:
        out.append("")
        for sentence in consequences:
            out += wrapped(safe(sentence), _WIDTH, "  ", "    ")
    return out
