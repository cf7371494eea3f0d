"""`gpt54-convert calibrate`: what enters each matrix of a model, collected once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt54_convert.calibrate.options import Calibration
from gpt54_convert.cli._options import build, model_argument, options_of, output_options, resolve_model
from gpt54_convert.cli._terminal import TerminalReport, print_json
from gpt54_convert.core.options import MOST_THREADS


@click.command("calibrate")
@model_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("imatrix.gguf"),
    show_default=True,
    metavar="FILE",
    help="The file to write; an existing one is replaced.",
)
@options_of(Calibration)
@click.option(
    "--threads", type=click.IntRange(0, MOST_THREADS), default=0, help="Worker threads; 0 takes one per core."
)
@output_options
def command(
    model: Path | None,
    output: Path,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Run MODEL on text and write the mean squares of what enters each of its matrices: an imatrix.

    The file is llama.cpp's own kind (GGUF), by the names that tensors have there; `quantize --method imatrix
    --stats FILE` reads it, whoever made it, and needs no torch then.  Needs the extra `torch`.
    """
    options = build(Calibration, values)
    report = TerminalReport(quiet, verbose)
    from gpt54_convert import loaders
    from gpt54_convert.calibrate.gather import calibrate

    facts = calibrate(loaders.load(resolve_model(model)), options, output, report, threads)
    if as_json:
        print_json({"schema": "gpt54-convert/calibration/1", **facts})
    elif not quiet:
        click.echo(f"{output}: {facts['matrices']} matrices, {facts['tokens']:,} tokens")
