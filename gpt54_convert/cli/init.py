"""`gpt54-convert init`: a model of the GPT-5.4 family with random weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from gpt54_convert.cli._job import show
from gpt54_convert.cli._options import build, options_of, output_options
from gpt54_convert.cli._terminal import TerminalReport
from gpt54_convert.fresh.options import Init
from gpt54_convert.recipe import Convert, Export


@click.command("init")
@options_of(Init, Export)
@output_options
def command(as_json: bool, quiet: bool, verbose: bool, **values: Any) -> None:
    """Write a model of the GPT-5.4 family with random weights: no trained ones are public.

    It has the exact shape, says that it is random, and takes as much disk as a trained one (full: 13.4 GB),
    but little memory.  Its tokenizer is that of the embedded model.  Examples: `init --tier nano -o out`,
    `init --tier full --scale 1/16`.
    """
    from pathlib import Path

    from gpt54_convert import pipeline
    from gpt54_convert.fresh.weights import checkpoint
    from gpt54_convert.recipe import Recipe

    options, export = build(Init, values), build(Export, values)
    export = dataclasses.replace(export, to=export.to or ("safetensors",))
    report = TerminalReport(quiet, verbose)
    fresh = checkpoint(options)
    recipe = Recipe(Path(options.name), Convert(), export)
    show(pipeline.run_on(fresh, recipe, report), recipe, as_json, report)
    report.note(
        f"{options.name} has random weights: {fresh.parameter_count:,} parameters that have learned nothing"
    )
