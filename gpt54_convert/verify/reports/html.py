"""One self-contained page: the verdict, its checks and figures, and plots as inline SVG.

No script, no font and no file from elsewhere; it follows the reader's light or dark setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from gpt54_convert.verify.reports import number, stages
from gpt54_convert.verify.reports._svg import Point, Series, bars, lines, scatter
from gpt54_convert.verify.verdict import FAIL, PASS, Verdict

_STYLE = """
:root { --paper: #fff; --ink: #1b1e23; --faint: #6b7280; --line: #d8dce2; --one: #2563eb;
  --two: #d97706; --good: #15803d; --bad: #b91c1c; --unknown: #a16207; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e8eb; --faint: #9aa3af;
  --line: #343a44; --one: #6ea0ff; --two: #f5b04c; --good: #4ade80; --bad: #f87171;
  --unknown: #facc15; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
th { color: var(--faint); font-weight: 500; white-space: nowrap; }
td:first-child { white-space: nowrap; }
.pass { color: var(--good); } .fail { color: var(--bad); } .unknown { color: var(--unknown); }
.verdict { font-size: 1.6rem; font-weight: 700; } code { overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figcaption { color: var(--faint); } svg { width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; }
"""
_WORDS = {PASS: ("pass", "pass"), FAIL: ("fail", "fail")}


def render(verdict: Verdict) -> str:
    """The page."""
    about = verdict.about
    word, style = _word(verdict.outcome)
    title = escape(f"{word}: {about['artifact']}")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>gpt54-convert verify</h1><p class='verdict {style}'>{escape(word)}</p>",
        f"<p><code>{escape(str(about['artifact']))}</code><br>against "
        f"<code>{escape(str(about['against']))}</code></p>",
        _facts(verdict),
        "<h2>Checks</h2>",
        _checks(verdict),
        _plots(verdict),
        _figures(verdict),
        _split(verdict),
        _tensors(verdict),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _word(outcome: str) -> tuple[str, str]:
    return _WORDS.get(outcome, ("could not measure", "unknown"))


def _facts(verdict: Verdict) -> str:
    about = verdict.about
    rows = [("container", about["container"]), ("size", f"{about['size_bytes']:,} bytes")]
    if about.get("bits_per_weight"):
        rows.append(("bits per weight of the layers", f"{about['bits_per_weight']:.3f}"))
    if "protocol" in about:
        protocol = about["protocol"]
        rows += [
            ("runtime", about["runtime"]),
            ("reference", about["reference_runtime"]),
            (
                "text",
                f"{protocol['text']}: {protocol['tokens']:,} tokens in {protocol['documents']} documents "
                f"of up to {protocol['context']}",
            ),
        ]
    return _table((), rows)


def _checks(verdict: Verdict) -> str:
    rows = []
    for check in verdict.checks:
        word, style = _word(check.outcome)
        cells = (f"{check.kind}: {check.name}", check.detail)
        rows.append(
            f"<tr><td class='{style}'>{word}</td>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"
        )
    return f"<table><tr><th>outcome</th><th>check</th><th>what was found</th></tr>{''.join(rows)}</table>"


def _plots(verdict: Verdict) -> str:
    plots = verdict.plots
    found = []
    if plots.get("layer_error"):
        rows = plots["layer_error"]
        found.append(
            _figure(
                "Error behind each layer (squared error over squared hidden states, logarithmic)",
                lines(
                    [row["name"] for row in rows],
                    [
                        Series("artifact", "--one", [row["nmse"] for row in rows]),
                        Series("plain rounding", "--two", [row["rounding_nmse"] for row in rows]),
                    ],
                    logarithmic=True,
                ),
            )
        )
    if plots.get("tensor_error"):
        rows = plots["tensor_error"]
        names = [f"{row['stack']} {row['layer']}" for row in rows]
        series = [Series("weights", "--one", [row["relative_error"] for row in rows])]
        found.append(_figure("Relative error of the weights, by layer", lines(names, series)))
    if plots.get("kl_histogram"):
        histogram = plots["kl_histogram"]
        found.append(
            _figure(
                "KL divergence of single tokens (nats, logarithmic)",
                bars(histogram["log10_edges"], histogram["counts"], lambda value: f"{10**value:.0e}"),
            )
        )
    for key, title in (
        ("top1_by_position", "Top-1 agreement by position in the document"),
        ("cosine_by_position", "Cosine of hidden states by position in the document"),
    ):
        if plots.get(key):
            series = [Series("agreement", "--one", [value for _, value in plots[key]])]
            found.append(_figure(title, lines([str(at) for at, _ in plots[key]], series)))
    if plots.get("size_quality"):
        found.append(_size_and_quality(plots["size_quality"]))
    return f"<h2>Plots</h2><div class='plots'>{''.join(found)}</div>" if found else ""


def _size_and_quality(plot: Mapping[str, Any]) -> str:
    colours = {"this artifact": "--one", "baseline": "--good"}
    points = [
        Point(p["name"], colours.get(p["name"], "--two"), p["bits_per_weight"], p["error"])
        for p in plot["points"]
    ]
    title = f"Size against quality: {plot['figure']}, logarithmic (dashed: the default gates)"
    return _figure(title, scatter(points, plot["gates"], "bits per weight of the layers"))


def _figure(title: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>"


def _figures(verdict: Verdict) -> str:
    if not verdict.figures:
        return ""
    rows = [
        (name, number(f["value"]), f"{number(f['low'])} to {number(f['high'])}")
        for name, f in verdict.figures.items()
    ]
    return "<h2>Figures</h2>" + _table(("figure", "value", "95 % interval"), rows)


def _split(verdict: Verdict) -> str:
    if not verdict.split:
        return ""
    return "<h2>Where the error arises</h2>" + _table(("stage", "error", "agreement"), stages(verdict.split))


def _tensors(verdict: Verdict) -> str:
    rows = [
        (row["name"], str(row.get("grid", "")), number(row.get("relative_error")), row["problem"] or "ok")
        for row in verdict.tensors
    ]
    header = ("tensor", "stored as", "relative error", "verdict")
    return (
        f"<h2>Tensors</h2><details><summary>{len(rows)} tensors</summary>{_table(header, rows)}</details>"
        if rows
        else ""
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{body}</table>"
