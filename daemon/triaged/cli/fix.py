# SPDX-License-Identifier: Apache-2.0
"""`triagectl fix`: preview a fix of a finding, and apply it after a yes."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triaged.cli.exit_status import ExitStatus

if TYPE_CHECKING:
    from triaged.cli.commands import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """The command line of `triagectl fix`."""
    parser = subparsers.add_parser(
        "fix", help="preview and apply the fix of a finding",
        description="Shows exactly what a fix would change, asks, applies it through the daemon, and says whether the failing "
                    "thing works now. polkit decides who may (org.triaged.apply-fix). Exit status: 0 done, 1 not done (the text "
                    "says why, and in which state the machine is), 2 nobody could be asked.",
    )
    parser.add_argument("id", metavar="ID", help="the finding, as 'triagectl list' names it, or the beginning of its id")
    parser.add_argument("key", metavar="FIX", nargs="?", default="", help="which fix of it (default: the first that is not manual)")
    parser.add_argument("--lasting", action="store_true", help="take the fix that lasts over a reboot")
    parser.add_argument("--preview", action="store_true", help="only show what would change")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print JSON: the preview, or with --yes the outcome")


def chosen(fixes: Sequence[Mapping[str, Any]], key: str, lasting: bool) -> Mapping[str, Any] | None:
    """The fix that is meant; None where there is none."""
    if key:
        return next((fix for fix in fixes if fix["Key"] == key), None)
    ours = [fix for fix in fixes if fix["Type"] != "manual"]
    if lasting:
        return next((fix for fix in ours if fix["Key"].endswith(":lasting") or fix["Type"] == "set-unit-setting"), None)
    return next(iter(ours), None) or next(iter(fixes), None)


def run(args: argparse.Namespace) -> int:
    """Previews, asks, applies. Raises BusError."""
    from triaged.cli.__main__ import say_error
    from triaged.cli.daemon import daemon
    from triaged.cli.repair import APPLY_TIMEOUT_S, NotMeant, is_agreed, outcome_lines, preview_lines, read_finding
    from triaged.cli.style import style_for
    from triaged.errors import BusError

    style = style_for(sys.stdout, args.color)
    with daemon(args.bus) as client:
        try:
            finding = read_finding(client, args.id)
            fix = chosen(finding["Fixes"], args.key, args.lasting)
            if fix is None:
                known = ", ".join(fix["Key"] for fix in finding["Fixes"]) or "none that triaged knows"
                what = "no fix that lasts" if args.lasting and not args.key else "no such fix"
                raise NotMeant(f"{finding['Id']} has {what}", f"its fixes: {known}")
            preview = client.call("PreviewFix", "ssa{sv}", finding["Id"], fix["Key"], {}, timeout_s=APPLY_TIMEOUT_S)[0]
            if not (args.json and args.yes):
                print(json.dumps(preview, indent=2) if args.json else "\n".join(preview_lines(preview, style)), flush=True)
            if args.preview:
                return ExitStatus.FINE
            if fix["Type"] == "manual":
                say_error("triaged does not make this change itself", "type the command above")
                return ExitStatus.FOUND
            if preview["Obstacle"] and not args.yes:
                say_error("it cannot be applied now", preview["Obstacle"])
                return ExitStatus.FOUND
            if not args.yes and not is_agreed("apply it?"):
                say_error("nothing was changed", "")
                return ExitStatus.FOUND
            outcome = client.call(
                "ApplyFix", "ssa{sv}", finding["Id"], fix["Key"], {}, timeout_s=APPLY_TIMEOUT_S, may_interact=sys.stdin.isatty()
            )[0]
        except NotMeant as error:
            say_error(str(error), error.remedy)
            return ExitStatus.COULD_NOT_LOOK if "nobody can be asked" in str(error) else ExitStatus.FOUND
        except BusError as error:
            if not error.name.startswith("org.triaged."):
                raise
            say_error(str(error), error.remedy)
            return ExitStatus.FOUND
    print(json.dumps(outcome, indent=2) if args.json else "\n" + "\n".join(outcome_lines(outcome, style)))
    return ExitStatus.FINE if outcome["State"] in ("applied", "verified") else ExitStatus.FOUND
