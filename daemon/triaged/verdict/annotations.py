# SPDX-License-Identifier: Apache-2.0
"""A judged run in the notations by which CI systems mark a job's log."""
from __future__ import annotations

import time
from collections.abc import Iterator

from triaged.model.quoting import shown
from triaged.verdict.report import FailureVerdict, Report, Verdict
from triaged.verdict.wording import cause_text, headline


def github_lines(report: Report) -> Iterator[str]:
    """Workflow commands (docs.github.com, "Workflow commands for GitHub Actions"): an error or notice for each failed thing."""
    for judged in report.failures:
        word = "notice" if judged.verdict is Verdict.CODE else "error"
        title = "code" if judged.verdict is Verdict.CODE else _title(judged)
        text = "\n".join([headline(judged), *(cause_text(charge) for charge in judged.charges), *_fixes(judged)])
        yield f"::{word} title={_property(f'triaged: {title}')}::{_data(text)}"


def gitlab_lines(report: Report, now_s: float | None = None) -> Iterator[str]:
    """A collapsible section of the job log (docs.gitlab.com, "CI/CD job logs"), opened where the machine is to blame."""
    now = int(time.time() if now_s is None else now_s)
    for number, judged in enumerate(report.failures):
        name = f"triaged_{number}"
        is_closed = "true" if judged.verdict is Verdict.CODE else "false"
        yield f"\x1b[0Ksection_start:{now}:{name}[collapsed={is_closed}]\r\x1b[0Ktriaged: {shown(headline(judged), 400)}"
        for line in (*(cause_text(charge) for charge in judged.charges), *_fixes(judged), *judged.reasons):
            yield shown(line, 1000)
        yield f"\x1b[0Ksection_end:{now}:{name}\r\x1b[0K"


def _title(judged: FailureVerdict) -> str:
    return judged.charges[0].blamed.cause if judged.charges else judged.verdict.value


def _fixes(judged: FailureVerdict) -> list[str]:
    return [f"fix: {fix.title}" for charge in judged.charges[:1] for fix in charge.blamed.fixes[:1]]


def _data(text: str) -> str:
    lines = [shown(line, 1000).replace("%", "%25") for line in text.split("\n")]
    return "%0A".join(lines)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
