"""A verdict on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from gpt54_convert.cli._terminal import print_table, size_text
from gpt54_convert.verify.reports import number, stages
from gpt54_convert.verify.verdict import FAIL, PASS, SKIPPED, Verdict

_WORDS = {PASS: ("pass", "green"), FAIL: ("FAIL", "red")}


def show(verdict: Verdict, verbose: bool) -> None:
    """What was compared, each check, the figures, where the error arises, and the verdict last."""
    about = verdict.about
    facts = [
        ("artifact", f"{about['artifact']} ({size_text(about['size_bytes'])})"),
        ("against", about["against"]),
    ]
    if about.get("bits_per_weight"):
        facts.append(("bits per weight", f"{about['bits_per_weight']:.3f} (layers)"))
    if "runtime" in about:
        protocol = about["protocol"]
        facts += [
            ("runtime", about["runtime"]),
            ("reference", about["reference_runtime"]),
            ("text", f"{protocol['text']}: {protocol['tokens']:,} tokens, {protocol['documents']} documents"),
        ]
    print_table("", ("", ""), facts)
    if verdict.figures:
        _figures(verdict.figures)
    if verdict.split:
        header = ("stage", "KL mean, nats", "top-1") if "kl_mean_nats" in _first(verdict.split) else ()
        print_table("", header or ("stage", "NMSE", "cosine"), stages(verdict.split), numbers=2)
    rows = [(check.outcome, check.kind, check.name, check.detail) for check in verdict.checks]
    print_table("", ("outcome", "check", "of", "what was found"), rows)
    if verbose and verdict.tensors:
        tensors = [
            (row["name"], str(row.get("grid", "")), number(row.get("relative_error")), row["problem"] or "ok")
            for row in verdict.tensors
        ]
        print_table("", ("tensor", "grid", "error", "verdict"), tensors)
    word, colour = _WORDS.get(verdict.outcome, ("COULD NOT MEASURE", "yellow"))
    click.secho(f"Verdict: {word}", fg=colour, bold=True)


def verdict_line(verdict: Verdict | None, thorough: bool = False) -> str:
    """The look at something written, in one line."""
    if verdict is None:
        return "not verified"
    from gpt54_convert.verify.quick import outcomes

    words = {FAIL: "FAIL", PASS: "pass"}
    word = words.get(verdict.outcome, "could not measure everything")
    parts = [f"{kind} {outcome}" for kind, outcome in outcomes(verdict).items() if kind != "outputs"]
    figures = {name: number(figure["value"]) for name, figure in verdict.figures.items()}
    skipped = next((c.detail for c in verdict.checks if (c.kind, c.outcome) == ("outputs", SKIPPED)), "")
    if "kl_mean_nats" in figures:
        parts.append(f"mean KL {figures['kl_mean_nats']} nats, top-1 {figures['top1_agreement']}")
    elif "hidden_nmse" in figures:
        parts.append(f"NMSE {figures['hidden_nmse']}, cosine {figures['cosine_mean']}")
    elif skipped:
        parts.append(f"outputs skipped: {skipped}")
    how = "verified" if thorough else "verified quickly"
    return f"{how}: {word} ({', '.join(parts)})"


def _first(split: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((stage for stage in split.values() if stage), {})


def _figures(figures: Mapping[str, Any]) -> None:
    rows = [
        (name, number(figure["value"]), f"{number(figure['low'])} to {number(figure['high'])}")
        for name, figure in figures.items()
    ]
    print_table("", ("figure", "value", "95 % interval"), rows, numbers=2)
