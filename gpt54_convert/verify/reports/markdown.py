"""A Markdown summary, as CI pages show it."""

from __future__ import annotations

from collections.abc import Sequence

from gpt54_convert.verify.reports import number, stages
from gpt54_convert.verify.verdict import FAIL, PASS, Verdict

_MARKS = {PASS: "✅ pass", FAIL: "❌ **fail**"}


def render(verdict: Verdict) -> str:
    """The document."""
    about = verdict.about
    lines = [
        f"## {_MARKS.get(verdict.outcome, '⚠️ **could not measure**')}: `{about['artifact']}`",
        "",
        f"Against `{about['against']}`, {about['size_bytes']:,} bytes.",
    ]
    if "protocol" in about:
        protocol = about["protocol"]
        lines.append(
            f"Runtime: {about['runtime']}; reference: {about['reference_runtime']}; "
            f"text: {protocol['text']}, {protocol['tokens']:,} tokens in {protocol['documents']} documents "
            f"of up to {protocol['context']} tokens."
        )
    rows = [
        (_MARKS.get(check.outcome, "⚠️ not measured"), f"{check.kind}: {check.name}", check.detail)
        for check in verdict.checks
    ]
    lines += _table(("outcome", "check", "what was found"), rows)
    if verdict.figures:
        figures = [
            (name, number(f["value"]), f"{number(f['low'])} to {number(f['high'])}")
            for name, f in verdict.figures.items()
        ]
        lines += _table(("figure", "value", "95 % interval"), figures)
    if verdict.split:
        lines += _table(("stage", "error", "agreement"), stages(verdict.split))
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return lines + [f"| {' | '.join(map(_cell, row))} |" for row in rows]


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
