# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest

from triaged.cli.document import SEVERITY_WORDS, WARNING, FindingDocument, SourceDocument, finding_from_bus, source_from_bus
from triaged.cli.report import age, finding_lines, list_lines, report_lines, source_table_lines, subject_text, summary_text
from triaged.cli.style import Style, columns
from triaged.model.cgroup import CgroupId
from triaged.model.finding import Finding, State, finding_id
from triaged.model.fix import SetUnitProperty
from triaged.model.process import ProcessIdentity, WorkloadMatch
from triaged.model.subject import CgroupSubject, HostSubject, ProcessSubject, Subject
from triaged.model.verdict import Evidence, Kind, Severity

NOW = 1_800_000_000_000_000
RUNNER = CgroupSubject(CgroupId("/system.slice/actions.runner.service"))
PIDS = "/sys/fs/cgroup/system.slice/actions.runner.service/pids"


def finding(
    kind: Kind = Kind.HIT, severity: Severity = Severity.ERROR, subject: Subject = RUNNER, **fields: Any
) -> FindingDocument:
    rule = fields.pop("rule", "cgroup.pids.limit-hit")
    whole: dict[str, Any] = {
        "identifier": finding_id(rule, subject.key), "rule": rule, "kind": kind, "severity": severity, "state": State.OPEN,
        "subject_key": subject.key, "subject": subject.as_dict(), "summary": "13 forks refused at 64 tasks",
        "first_seen_usec": NOW - 300_000_000, "last_seen_usec": NOW - 120_000_000, "count": 13,
        "evidence": (Evidence("pids.max", 64, f"{PIDS}.max", NOW), Evidence("pids.events max", 13, f"{PIDS}.events", NOW)),
        "fixes": (SetUnitProperty("actions.runner.service", "TasksMax", "128", risk="more tasks may use more memory"),),
    }
    document: Any = Finding(**{**whole, **fields}).as_json()
    return document


def source(name: str, state: str, reason: str = "", remedy: str = "", **counters: int) -> SourceDocument:
    return {"name": name, "state": state, "reason": reason, "remedy": remedy, "counters": counters}


def test_hits_headroom_and_risks_stand_apart_and_in_that_order() -> None:
    findings = [finding(Kind.RISK, Severity.WARNING, HostSubject("kernel.pid_max")), finding(Kind.HEADROOM), finding()]
    lines = report_lines({"findings": findings, "sources": []}, Style())
    headings = [line.split()[0] for line in lines if line[:1].isupper()]
    assert headings[:3] == ["HIT", "HEADROOM", "RISK"]


def test_a_risk_is_never_under_the_heading_of_a_hit() -> None:
    text = "\n".join(report_lines({"findings": [finding(Kind.RISK)], "sources": []}, Style()))
    assert "HIT" not in text
    assert "RISK  nothing hit" in text


def test_the_worst_comes_first() -> None:
    mild = finding(Kind.RISK, Severity.NOTICE, HostSubject("a.b"), summary="mild")
    bad = finding(Kind.RISK, Severity.CRITICAL, HostSubject("c.d"), summary="bad")
    text = "\n".join(report_lines({"findings": [mild, bad], "sources": []}, Style()))
    assert text.index("bad") < text.index("mild")


def test_a_finding_shows_severity_subject_evidence_with_its_source_fix_and_command() -> None:
    text = "\n".join(finding_lines(finding(), Style(width=200)))
    assert "error    13 forks refused at 64 tasks" in text
    assert "subject   actions.runner.service in system.slice" in text
    assert f"pids.max = 64  {PIDS}.max" in text
    assert "sets TasksMax=128 of actions.runner.service for this boot" in text
    assert "# systemctl set-property --runtime actions.runner.service TasksMax=128" in text
    assert "risk: more tasks may use more memory" in text
    assert finding()["id"] in text


def test_a_finding_without_fix_says_so() -> None:
    assert any("none that triaged knows" in line for line in finding_lines(finding(fixes=()), Style()))


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_but_paths_and_commands_is_wider_than_the_terminal(width: int) -> None:
    document = finding(summary="a summary of many words " * 20)
    sources = [source("audit", "unavailable", "needs a capability " * 12, "run as root " * 12)]
    for line in report_lines({"findings": [document], "sources": sources}, Style(width=width, colours=True)):
        assert columns(line) <= width or "/sys/fs" in line or "# systemctl" in line


def test_control_characters_of_users_never_reach_the_output() -> None:
    evil = "\x1b]0;owned\x07\r\n\u202e"
    who = ProcessIdentity(7, 1, comm=evil, exe=f"/tmp/{evil}", argv=(evil,), cgroups={"": f"/{evil}"})
    document = finding(subject=ProcessSubject(who), summary=f"killed {evil}", evidence=(Evidence(evil, evil, evil),))
    document["subject"]["comm"] = evil  # also from a daemon that forgot to escape
    document["id"] += evil
    lines = report_lines({"findings": [document], "sources": [source(evil, "degraded", evil, evil)]}, Style())
    lines += list_lines([document], Style(is_terminal=True, width=80), NOW) + list_lines([document], Style(), NOW)
    lines += source_table_lines([source(evil, evil, evil, evil, **{evil: 1})], Style())
    assert all(line.isprintable() for line in lines)
    assert any("owned" in line for line in lines)


def test_a_record_of_several_lines_cannot_pass_for_other_evidence() -> None:
    record = "killed (a)\npids.max = 1  /sys/fs/cgroup/forged\x1b"
    lines = finding_lines(finding(evidence=(Evidence("kernel log", record, "kernel log"), Evidence("b", 1))), Style())
    forged = next(line for line in lines if "forged" in line)
    names = [line for line in lines if line.endswith("b = 1")]
    assert forged.startswith(" " * (names[0].index("b") + 2) + "pids.max = 1")
    assert forged.isprintable()


def test_a_process_is_named_with_its_workload_package_and_place() -> None:
    who = ProcessIdentity(
        7, 1, comm="app.test", exe="/tmp/app.test", cgroups={"": "/default.slice/x.scope"},
        workload=WorkloadMatch("go-test", "test-binary", "example.org/app"),
    )
    text = subject_text(ProcessSubject(who).as_dict())
    assert text == "process app.test (pid 7), go-test test-binary of example.org/app in x.scope in default.slice"


def test_a_container_is_named_by_runtime_and_short_id() -> None:
    cgroup = CgroupId(f"/system.slice/docker-{'ab' * 32}.scope")
    assert subject_text(CgroupSubject(cgroup).as_dict()) == "docker container abababababab in system.slice"


def test_sources_that_cannot_look_are_named_with_reason_and_remedy() -> None:
    blind = source("audit", "unavailable", "no CAP_AUDIT_READ: seccomp records are not seen", "run as root")
    lines = report_lines({"findings": [], "sources": [blind, source("kernel-parameters", "active")]}, Style())
    text = "\n".join(lines)
    assert "audit" in text
    assert "no CAP_AUDIT_READ" in text
    assert "run as root" in text
    assert "kernel-parameters" not in text
    assert lines[-1] == "Nothing found; 1 of 2 sources could look."


def test_what_an_active_source_does_not_judge_is_a_note() -> None:
    lines = report_lines({"findings": [], "sources": [source("process-events", "active", "slices are not judged")]}, Style())
    assert "    note      slices are not judged" in lines


def test_the_summary_counts_each_kind() -> None:
    documents = [finding(), finding(Kind.RISK), finding(Kind.RISK, Severity.NOTICE)]
    assert summary_text({"findings": documents, "sources": []}) == "1 hit, 2 risks; 0 of 0 sources could look."


def test_a_list_for_a_file_has_one_untruncated_line_a_finding() -> None:
    document = finding(summary="long " * 60)
    lines = list_lines([document], Style(), NOW)
    assert len(lines) == 2
    assert document["id"] in lines[1]
    assert lines[1].endswith("long " * 60)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_list_on_a_terminal_fits_and_still_gives_the_whole_id(width: int) -> None:
    documents = [finding(summary="long " * 60), finding(Kind.RISK, Severity.WARNING, HostSubject("vm.max_map_count"))]
    lines = list_lines(documents, Style(is_terminal=True, width=width), NOW)
    assert max(columns(line) for line in lines) <= width
    assert all(any(document["id"] in line for line in lines) for document in documents)


def test_an_empty_list_is_empty() -> None:
    assert list_lines([], Style(), NOW) == []


@pytest.mark.parametrize(
    ("usec", "text"),
    [(0, "-"), (NOW, "now"), (NOW + 5_000_000, "now"), (NOW - 40_000_000, "40s"), (NOW - 90_000_000, "1m"),
     (NOW - 2 * 3600_000_000, "2h"), (NOW - 3 * 86400_000_000, "3d")],
)
def test_ages_are_short(usec: int, text: str) -> None:
    assert age(usec, NOW) == text


def test_the_properties_of_the_bus_give_the_same_document_as_a_scan() -> None:
    document = finding()
    on_bus = {
        "Id": document["id"], "Rule": document["rule"], "Kind": "hit", "Severity": 3, "State": "open", "Reason": "",
        "Subject": document["subject"], "Summary": document["summary"], "Explanation": "…",
        "Evidence": {name: item["value"] for name, item in document["evidence"].items()},
        "EvidenceSources": {name: [item["source"], item["time_usec"]] for name, item in document["evidence"].items()},
        "Fixes": [{key.title().replace("_", ""): value for key, value in fix.items()} for fix in document["fixes"]],
        "References": [], "FirstSeen": document["first_seen_usec"], "LastSeen": document["last_seen_usec"], "Count": 13,
    }
    assert finding_from_bus(on_bus) == document


def test_the_words_for_severities_are_the_models() -> None:
    assert {severity.value: severity.word for severity in Severity} == SEVERITY_WORDS
    assert SEVERITY_WORDS[WARNING] == "warning"


def test_a_severity_of_a_newer_daemon_is_shown_as_a_number() -> None:
    document = finding_from_bus({"Id": "a", "Rule": "a", "Kind": "hit", "Severity": 1, "State": "open", "Summary": "s"})
    assert document["severity"] == "1"
    assert finding_lines(document, Style(colours=True))


def test_a_source_of_the_bus_keeps_its_counters() -> None:
    document = source_from_bus({"Name": "audit", "State": "active", "Counters": {"records": 4}})
    assert source_table_lines([document], Style()) == ["  audit  active       records 4"]
