# SPDX-License-Identifier: Apache-2.0
"""A judged run as JUnit XML: what the machine broke is an <error>, what the code broke a <failure>.

CI systems show the two apart, and count an error as "could not be tested".
"""
from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import OrderedDict

from triaged.model.mention import ToldResult
from triaged.model.quoting import shown
from triaged.verdict.report import FailureVerdict, Report, Verdict
from triaged.verdict.wording import cause_text, headline, limit_name

_TEXT_CAP = 20_000


def junit_xml(report: Report) -> str:
    """The report as JUnit XML: a test suite for each package, a test case for each test that was told of."""
    suites: OrderedDict[str, OrderedDict[str, tuple[ToldResult | None, FailureVerdict | None]]] = OrderedDict()
    for result in report.results:
        suites.setdefault(result.package, OrderedDict())[result.test] = (result, None)
    for judged in report.failures:
        failure = judged.failure
        name = failure.test or f"({failure.stage.value})"
        suite = suites.setdefault(failure.package, OrderedDict())
        suite[name] = (suite[name][0] if name in suite else None, judged)
    root = ET.Element("testsuites")
    for package, cases in suites.items():
        _suite(root, package, cases)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, package: str, cases: OrderedDict[str, tuple[ToldResult | None, FailureVerdict | None]]) -> None:
    suite = ET.SubElement(root, "testsuite", name=_clean(package or "command"), tests=str(len(cases)))
    counted = {"failures": 0, "errors": 0, "skipped": 0}
    for name, (result, judged) in cases.items():
        case = ET.SubElement(suite, "testcase", classname=_clean(package or "command"), name=_clean(name))
        if result is not None and result.seconds >= 0:
            case.set("time", f"{result.seconds:.3f}")
        if judged is not None:
            is_error = judged.verdict in (Verdict.MACHINE, Verdict.UNDECIDED)
            counted["errors" if is_error else "failures"] += 1
            kind = judged.charges[0].blamed.cause if judged.charges else judged.verdict.value
            body = ET.SubElement(case, "error" if is_error else "failure", type=kind, message=_clean(headline(judged)))
            body.text = _clean(_body(judged))
        elif result is not None and result.outcome == "skip":
            counted["skipped"] += 1
            ET.SubElement(case, "skipped")
        elif result is not None and result.outcome == "fail":  # its subtests say why
            counted["failures"] += 1
            ET.SubElement(case, "failure", type="code", message="a subtest failed")
    for name, number in counted.items():
        suite.set(name, str(number))


def _body(judged: FailureVerdict) -> str:
    lines = [f"cause: {cause_text(charge)}" for charge in judged.charges]
    lines += [f"fix: {fix.title}" for charge in judged.charges[:1] for fix in charge.blamed.fixes[:2]]
    lines += [f"not {limit_name(each.cause)}: {each.because}" for each in judged.ruled_out]
    lines += list(judged.reasons)
    return "\n".join([*lines, "", judged.failure.text])[:_TEXT_CAP]


def _clean(text: str) -> str:
    """The text without what XML 1.0 cannot hold."""
    return "\n".join(shown(line, 4096).replace("\\\\", "\\") for line in text.replace("\t", "    ").split("\n"))
