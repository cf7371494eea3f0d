"""`gpt54-convert inspect`: what a checkpoint or artifact is, from its headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt54_convert.cli._options import model_argument, output_options, resolve_model
from gpt54_convert.cli._terminal import TerminalReport, print_json, print_table, size_text


@click.command("inspect")
@model_argument
@output_options
def command(model: Path | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show what MODEL is: architecture, sizes, dtypes and grids, bits per weight, parameters.

    No weight is read.  -v lists every tensor.
    """
    from gpt54_convert import inspection, loaders

    path, report = resolve_model(model), TerminalReport(quiet, verbose)
    if model is None:
        report.note(f"no MODEL given: inspecting the embedded model {path.name}")
    checkpoint = loaders.load(path)
    for note in checkpoint.notes:
        report.note(note)
    found = inspection.describe(checkpoint)
    if as_json:
        print_json(found)
    elif not quiet:
        _print(found, verbose)


def _history(found: dict[str, Any]) -> list[tuple[str, str]]:
    tier = found["family"]
    scaled = "" if not tier or tier["scale"] == "1" else f", scaled by {tier['scale']}"
    return [
        *([("family", f"{tier['tier']} of {tier['of']}{scaled}")] if tier else []),
        *([("weights", found["weights"])] if found["weights"] else []),
    ]


def _print(found: dict[str, Any], verbose: bool) -> None:
    facts = [
        ("path", found["path"]),
        ("container", found["container"]),
        ("architecture", found["architecture"] or f"not described (model_type {found['model_type']})"),
        ("kind", found["kind"] or "unknown"),
        ("parameters", f"{found['parameters']:,}"),
        ("size", f"{size_text(found['size_bytes'])} ({found['size_bytes']:,} bytes of tensors)"),
        ("bits per weight", f"{found['bits_per_weight']:.3f}"),
        ("tokenizer", found["tokenizer"]),
        *_history(found),
        *((name, f"{value:,}") for name, value in found["sizes"].items()),
    ]
    print_table("", ("", ""), facts)
    rows = [
        (
            g["grid"],
            str(g["tensors"]),
            f"{g['weights']:,}",
            f"{g['bits_per_weight']:.2f}",
            size_text(g["size_bytes"]),
        )
        for g in found["grids"]
    ]
    print_table("", ("stored as", "tensors", "weights", "bpw", "size"), rows, numbers=4)
    if verbose:
        tensors = [(t["name"], t["role"], t["grid"], str(t["shape"])) for t in found["tensors"]]
        print_table("", ("tensor", "role", "stored as", "shape"), tensors)
