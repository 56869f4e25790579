"""The reports for programs: JUnit XML, and a line of JSON per answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

import msgspec

from parley.evaluation.results import CaseResult

if TYPE_CHECKING:
    from parley.evaluation.results import Report

_NO_XML: Final = re.compile("[^\\t\\n\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


def json_lines(report: Report) -> bytes:
    """Return a line of JSON per answer, with the answer's text."""
    return b"".join(
        msgspec.json.encode(
            {
                "case": result.case.id,
                "number": number,
                "is_right": attempt.judgement.is_right,
                "is_in_time": attempt.judgement.is_in_time,
                "is_broken": attempt.judgement.broken is not None,
                "failures": [failure._asdict() for failure in CaseResult(result.case, [attempt]).failures],
                **msgspec.structs.asdict(attempt.answer),
            }
        )
        + b"\n"
        for result in report.results
        for number, attempt in enumerate(result.attempts, start=1)
    )


def junit(report: Report, *, has_text: bool) -> bytes:
    """Return JUnit XML: a wrong or late case is a failure, and one that could not be judged is an error."""
    cases = [_case(result, report.suite.name, has_text=has_text) for result in report.results]
    suite = ET.Element("testsuite", name=report.suite.name, tests=str(len(cases)), time=f"{report.seconds:.3f}")
    suite.extend(cases)
    for kind in ("failure", "error"):
        suite.set(f"{kind}s", str(sum(case.find(kind) is not None for case in cases)))
    root = ET.Element("testsuites")
    root.append(suite)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _case(result: CaseResult, suite: str, *, has_text: bool) -> ET.Element:
    seconds = (result.total_ms or 0) / 1000
    case = ET.Element("testcase", classname=suite, name=result.case.id, time=f"{seconds:.3f}")
    judged = len(result.judged)
    lines = "\n".join(f"{failure.expectation}: {failure.detail}" for failure in result.failures)
    if result.broken:
        ET.SubElement(case, "error", type="broken", message=f"{result.broken} not judged").text = _xml(lines)
    elif result.right < judged:
        ET.SubElement(case, "failure", type="wrong", message=f"{result.right} of {judged} right").text = _xml(lines)
    elif result.in_time < judged:
        ET.SubElement(case, "failure", type="late", message=f"{result.in_time} of {judged} in time").text = _xml(lines)
    said = [f"correlation id: {attempt.answer.correlation_id}" for attempt in result.attempts]
    if has_text:
        said = [f"{line}\n{attempt.answer.text}" for line, attempt in zip(said, result.attempts, strict=True)]
    ET.SubElement(case, "system-out").text = _xml("\n".join(said))
    return case


def _xml(text: str) -> str:
    """Remove the characters that XML cannot hold."""
    return _NO_XML.sub("", text)
