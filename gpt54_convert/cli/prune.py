"""`gpt54-convert prune`: a smaller model out of a larger one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from gpt54_convert.cli._job import do
from gpt54_convert.cli._options import build, model_argument, options_of, output_options
from gpt54_convert.cli._terminal import TerminalReport
from gpt54_convert.prune.step import Prune
from gpt54_convert.recipe import Convert, Export


@click.command("prune")
@model_argument
@options_of(Prune, Convert, Export)
@click.option("--dry-run", is_flag=True, help="Print the plan, sizes and memory; measure and write nothing.")
@output_options
def command(
    model: Path | None, dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **values: Any
) -> None:
    """Remove layers, heads, channels or weights of MODEL; without MODEL, of the embedded one.

    Writes a safetensors folder unless --to names another container.  Examples: `prune --tier mini -o out`,
    `prune my-llama --layers 24`, `prune my-llama --ffn 8192 --heads 24 --kv-heads 6`.
    """
    export = build(Export, values)
    export = dataclasses.replace(export, to=export.to or ("safetensors",))
    report = TerminalReport(quiet, verbose)
    do(build(Convert, values), export, model, dry_run, as_json, report, (build(Prune, values),))
