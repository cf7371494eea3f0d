"""A verdict as a file; each file beside this one writes one format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt54_convert.core import discover
from gpt54_convert.core.workspace import as_output_error
from gpt54_convert.verify.verdict import Verdict

__all__ = ["number", "stages", "write"]


def write(kind: str, verdict: Verdict, path: Path) -> None:
    """Write `verdict` as `kind` (`junit`, `markdown`, `html`).  Raises OutputError where it cannot be."""
    text: str = discover.load(__name__, kind).render(verdict)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise as_output_error(error, path) from error


def number(value: float | None) -> str:
    """A figure as people read it."""
    return "" if value is None else f"{value:.4g}"


def stages(split: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(stage, KL or NMSE, top-1 or cosine) of the split."""
    rows = []
    for name, figures in split.items():
        found = figures or {}
        error = found.get("kl_mean_nats", found.get("hidden_nmse"))
        good = found.get("top1_agreement", found.get("cosine_mean"))
        rows.append((name, number(error) if figures else "not finite", number(good)))
    return rows
