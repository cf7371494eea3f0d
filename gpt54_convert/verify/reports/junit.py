"""JUnit XML: one test case a check; what could not be measured is an error, never a skip."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from gpt54_convert.verify.verdict import FAIL, UNKNOWN, Verdict

_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def render(verdict: Verdict) -> str:
    """The document."""
    outcomes = [check.outcome for check in verdict.checks]
    suite = ElementTree.Element(
        "testsuite",
        name=f"gpt54-convert verify {_clean(str(verdict.about['artifact']))}",
        tests=str(len(outcomes)),
        failures=str(outcomes.count(FAIL)),
        errors=str(outcomes.count(UNKNOWN)),
    )
    for check in verdict.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"verify.{check.kind}", name=_clean(check.name)
        )
        if check.outcome == FAIL:
            ElementTree.SubElement(case, "failure", message=_clean(check.detail))
        elif check.outcome == UNKNOWN:
            ElementTree.SubElement(case, "error", message=_clean(check.detail))
        else:
            ElementTree.SubElement(case, "system-out").text = _clean(check.detail)
    ElementTree.indent(suite)
    return "<?xml version='1.0' encoding='utf-8'?>\n" + ElementTree.tostring(suite, "unicode") + "\n"


def _clean(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
