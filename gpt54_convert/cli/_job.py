"""What `quantize` and `convert` share: run the recipe or show its plan, and print what came of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gpt54_convert.cli._options import resolve_model
from gpt54_convert.cli._terminal import TerminalReport, print_json, print_table, size_text
from gpt54_convert.cli._verdict import verdict_line
from gpt54_convert.core.words import listed, not_installed

_HEADER = ("tensors", "grid", "count", "weights", "bpw", "before", "after", "rel. error", "est. loss")


def do(
    step: Any,
    export: Any,
    model: Path | None,
    dry_run: bool,
    as_json: bool,
    report: TerminalReport,
    passes: tuple[Any, ...] = (),
) -> None:
    """Run or plan a recipe of one step on one model; `passes` come before it."""
    from gpt54_convert.recipe import Recipe

    recipe = Recipe(resolve_model(model), step, export, passes)
    if model is None:
        report.note(f"no MODEL given: using the embedded model {recipe.source.name}")
    do_recipe(recipe, dry_run, as_json, report)


def do_recipe(recipe: Any, dry_run: bool, as_json: bool, report: TerminalReport) -> None:
    """Run or plan one recipe."""
    if dry_run:
        _plan(recipe, as_json, report)
        return
    from gpt54_convert import pipeline

    artifacts = pipeline.run(recipe, report)
    if recipe.verify is not None:
        from gpt54_convert.verify import verify

        artifacts = [
            replace(artifact, verdict=verify(artifact.folder, None, recipe.verify, report))
            for artifact in artifacts
        ]
    show(artifacts, recipe, as_json, report)


def show(artifacts: Sequence[Any], recipe: Any, as_json: bool, report: TerminalReport) -> None:
    """Print what was written."""
    if as_json:
        print_json(
            {
                "schema": "gpt54-convert/artifacts/1",
                "source": str(recipe.source),
                "artifacts": [_as_dict(artifact) for artifact in artifacts],
            }
        )
    elif not report.quiet:
        for artifact in artifacts:
            _print(f"{artifact.container}: {artifact.label}", artifact.tensors, artifact.totals, report)
            click.echo("\n".join(f"  {path}" for path in artifact.files))
            click.echo(f"  {verdict_line(artifact.verdict, recipe.verify is not None)}\n")
    _conclude(artifacts, report, recipe.verify is not None)


def _conclude(artifacts: Sequence[Any], report: TerminalReport, thorough: bool) -> None:
    """Say what could not be measured in one note; exit with 3 where a verdict is `fail`.

    Where verifying was asked for, what could not be measured exits with 4.
    """
    from gpt54_convert.verify.verdict import FAIL, UNKNOWN

    verdicts = [(artifact.folder, artifact.verdict) for artifact in artifacts if artifact.verdict]
    missing = {
        package: install for _, v in verdicts for package, install in v.about.get("missing", {}).items()
    }
    if missing:
        installs = listed(dict.fromkeys(missing.values()))
        report.note(
            f"files and weights were verified, but the model was not run, for {not_installed(missing)}: "
            f"{installs}, then `gpt54-convert verify {verdicts[0][0]}`"
        )
    for folder, verdict in verdicts:
        unknown = [check.detail for check in verdict.checks if check.outcome == UNKNOWN]
        if unknown and not missing:
            report.note(f"{folder}: could not measure everything: {unknown[0]}")
    failed = [(folder, verdict) for folder, verdict in verdicts if verdict.outcome == FAIL]
    for folder, verdict in failed:
        first = next(check for check in verdict.checks if check.outcome == FAIL)
        click.echo(
            f"Error: {folder} was written, but fails its verification: {first.kind}, {first.name}: "
            f"{first.detail}; look closer with `gpt54-convert verify {folder}`",
            err=True,
        )
    if failed:
        sys.exit(3)
    if thorough and any(verdict.outcome == UNKNOWN for _, verdict in verdicts):
        sys.exit(4)


def _plan(recipe: Any, as_json: bool, report: TerminalReport) -> None:
    from gpt54_convert import dry_run

    found = dry_run.describe(recipe, report)
    if as_json:
        print_json(found)
        return
    for artifact in found["artifacts"]:
        title = f"{artifact['container']}: {artifact['scheme']} (plan, nothing is written)"
        rows = [
            (row["name"], row["role"], row["grid"], str(row["shape"]), _why(row))
            for row in artifact["tensors"]
        ]
        print_table(title, ("tensor", "role", "grid", "shape", "why"), rows)
        click.echo(f"  exact size: {artifact['totals']['size_bytes']:,} bytes")
    click.echo(f"  peak memory: about {size_text(found['peak_memory_bytes'])}")
    click.echo(f"  time: roughly {found['estimated_s']:,.0f} s on this machine, verifying not counted")
    free = size_text(found["disk_free_bytes"])
    verdict = "enough" if found["disk_enough"] else "NOT enough"
    click.echo(f"  disk: {free} free at {recipe.export.output}, {verdict}")


def _why(row: Mapping[str, Any]) -> str:
    """Why a tensor left its scheme, or what a budget expects its grid to cost."""
    if "sensitivity" in row:
        return f"est. loss {row['sensitivity']:.2g}"
    return str(row.get("reason", ""))


def _as_dict(artifact: Any) -> dict[str, Any]:
    from gpt54_convert.verify.quick import summary

    return {
        "container": artifact.container,
        "scheme": artifact.label,
        "folder": str(artifact.folder),
        "files": [str(path) for path in artifact.files],
        "totals": artifact.totals,
        "verification": summary(artifact.verdict),
        "tensors": artifact.tensors,
    }


def _print(
    title: str, tensors: Sequence[Mapping[str, Any]], totals: Mapping[str, Any], report: TerminalReport
) -> None:
    from gpt54_convert.summary import groups, reasons

    rows = [
        (
            group.role,
            group.grid,
            str(group.count),
            f"{group.weights:,}",
            f"{group.bits_per_weight:.2f}",
            size_text(group.before_bytes),
            size_text(group.after_bytes),
            f"{group.relative_error:.4f}" if group.relative_error else "0",
            "" if group.sensitivity is None else f"{group.sensitivity:.2g}",
        )
        for group in groups(tensors)
    ]
    before = sum(group.before_bytes for group in groups(tensors))
    rows.append(
        (
            "all files",
            "",
            str(len(tensors)),
            f"{totals['parameters']:,}",
            f"{totals['bits_per_weight']:.2f}",
            size_text(before),
            size_text(totals["size_bytes"]),
            "",
            "",
        )
    )
    columns = len(_HEADER) - (not any(row[-1] for row in rows))
    print_table(title, _HEADER[:columns], [row[:columns] for row in rows], numbers=columns - 2)
    for reason, names in reasons(tensors).items():
        named = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        report.note(f"{title}: {named} stored otherwise ({reason})")
